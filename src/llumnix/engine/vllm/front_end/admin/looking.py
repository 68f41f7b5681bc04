"""What there is to see, in rows: instances, and the requests on them."""

from __future__ import annotations

from llumnix.api import bodies
from llumnix.engine.vllm.front_end.admin import sizing
from llumnix.engine.vllm.front_end.client_ids import client_visible_id
from llumnix.engine.vllm.front_end.gauges import freeness_of
from llumnix.engine.vllm.front_end.members import Member
from llumnix.engine.vllm.front_end.slices import in_slices
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.policy.catalogue import find_policy
from llumnix.policy.load_words import load_word
from llumnix.policy.pairing import PairingTerms
from llumnix.policy.step_cost import first_token_s, token_s
from llumnix.types import InstanceId, InstanceState, RequestState, by_number, is_high
from llumnix.wire.to_front_end import RequestRow


async def instances(board: Switchboard) -> bodies.InstancesAnswer:
    terms = find_policy(board.spec.policy.policy).pairing_terms(board.spec.policy)
    members = board.client.members
    known = [members.by_id[instance] for instance in sorted(members.by_id, key=by_number)]
    rows = [_member_row(member, terms) async for some in in_slices(known) for member in some]
    starting = {name: (message.pid, message.node) for name, message in board.strangers.starting.items()}
    starting |= {name: (member.info.pid, member.info.node) for name, member in members.courted.items()}
    for name in sorted(starting, key=by_number):
        pid, node = starting[name]
        rows.append(bodies.InstanceRow(id=name, state=InstanceState.STARTING, pid=pid, node=node, why=""))
    rows += [bodies.InstanceRow(id=gone.instance, state=state, why=gone.why) for gone, state in board.strangers.gone]
    return bodies.InstancesAnswer(
        instances=rows,
        scheduler=bodies.SchedulerRow(pid=board.scheduler_pid, state=board.scheduler_state),
        scaling=sizing.scaling_row(board),
        freeness_limits=bodies.FreenessLimits(give=terms.migrate_out_freeness, take=terms.migrate_in_freeness),
    )


def _member_row(member: Member, terms: PairingTerms) -> bodies.InstanceRow:
    load = member.snapshot
    return bodies.InstanceRow(
        id=member.info.id,
        state=load.state,
        pid=member.info.pid,
        node=member.info.node,
        role=load.role,
        block_tokens=load.block_tokens,
        state_blocks=load.state_blocks,
        total_blocks=load.total_blocks,
        free_blocks=load.free_blocks,
        running=load.running,
        waiting=load.waiting,
        preemptions=load.preemptions,
        preemptions_avoided=load.preemptions_avoided,
        recompute_tokens_saved=load.recompute_tokens_saved,
        freeness=freeness_of(load),
        load=load_word(load, terms),
        prefill_tokens=load.prefill_tokens,
        first_token_s=first_token_s(load, 1),
        token_s=token_s(load),
        step_cost=load.step_cost,
        slowdown=load.slowdown,
        migrations_in=load.migrations_in,
        migrations_out=load.migrations_out,
    )


def request(instance: InstanceId, row: RequestRow) -> bodies.ClientRequest:
    return bodies.ClientRequest(
        id=client_visible_id(row.client_id),
        instance=instance,
        priority="high" if is_high(row.priority) else "normal",
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        state=RequestState(row.state),
        migrations=row.migrations,
        movable=not row.why_pinned,
        why_pinned=row.why_pinned or None,
    )
