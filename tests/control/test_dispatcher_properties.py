"""The dispatcher against a naive one: whatever the order of reports, dispatches and losses."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatch, Dispatcher
from llumnix.policy.catalogue import POLICIES
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.priority import headroom_blocks
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, InstanceState, Priority, RequestId

IDS = [InstanceId(name) for name in "abcde"]
FRONT_END = 1


class DispatcherModel(RuleBasedStateMachine):
    """Beside the dispatcher, a list of all that was sent to each instance, and the number that its report counts."""

    policy = "llumnix"

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(PolicyConfig(policy=self.policy), FRONT_END)
        self.reports: dict[InstanceId, InstanceSnapshot] = {}
        self.sent: dict[InstanceId, list[tuple[Dispatch, int, int, bool]]] = {}
        self.counted: dict[InstanceId, int] = {}
        self.gone: set[InstanceId] = set()
        self.number = 0

    @rule(
        id=st.sampled_from(IDS),
        free=st.integers(0, 1000),
        running=st.integers(0, 60),
        high=st.integers(0, 2),
        arrived=st.floats(0, 1),
        late=st.booleans(),
        state=st.sampled_from([InstanceState.RUNNING] * 4 + [InstanceState.DRAINING]),
    )
    def report(
        self, id: InstanceId, free: int, running: int, high: int, arrived: float, late: bool, state: InstanceState
    ) -> None:
        seq = self.reports[id].seq + (0 if late else 1) if id in self.reports else 1
        before = self.counted.get(id, 0)
        counted = before + round(arrived * (len(self.sent.get(id, [])) - before))
        snapshot = InstanceSnapshot(
            id=id,
            at=0.0,
            seq=seq,
            total_blocks=1000,
            free_blocks=free,
            running=running,
            high_running=min(high, running),
            state=state,
            dispatches_seen=(77, counted),
        )
        self.dispatcher.on_report(snapshot)
        if id not in self.gone and (id not in self.reports or not late):
            self.reports[id] = snapshot
            self.counted[id] = counted
            self.sent.setdefault(id, [])

    @rule(tokens=st.integers(1, 3000), high=st.booleans(), avoid=st.frozensets(st.sampled_from(IDS), max_size=2))
    def dispatch(self, tokens: int, high: bool, avoid: frozenset[InstanceId]) -> None:
        self.number += 1
        request = DispatchRequest(RequestId(f"r{self.number}"), tokens, Priority(-1 if high else 0))
        expected = self.best(-(-tokens // 16), high, avoid)
        dispatch = self.dispatcher.dispatch(request, avoid)
        assert (dispatch.instance if dispatch else None) == expected
        if dispatch is not None:
            assert self.reports[dispatch.instance].state is InstanceState.RUNNING
            assert dispatch.instance not in avoid
            self.sent[dispatch.instance].append((dispatch, -(-tokens // 16), tokens, high))

    @rule(id=st.sampled_from(IDS))
    def forget_the_latest(self, id: InstanceId) -> None:
        if len(self.sent.get(id, [])) > self.counted.get(id, 0):
            self.dispatcher.forget(self.sent[id].pop()[0].request, id)

    @rule(id=st.sampled_from(IDS[:2]))
    def remove(self, id: InstanceId) -> None:
        self.dispatcher.on_removed(id)
        self.gone.add(id)
        for book in (self.reports, self.sent, self.counted):
            book.pop(id, None)

    def views(self) -> dict[InstanceId, InstanceSnapshot]:
        """Recomputed from nothing: each report and whatever was sent beyond its count."""
        views = {}
        for known, reported in self.reports.items():
            under_way = self.sent[known][self.counted[known] :]
            facts = {field: getattr(reported, field) for field in reported.__struct_fields__}
            facts["waiting"] += len(under_way)
            facts["queued_blocks"] += sum(blocks for _, blocks, _, _ in under_way)
            facts["prefill_tokens"] += sum(tokens for _, _, tokens, _ in under_way)
            facts["high_waiting"] += sum(high for _, _, _, high in under_way)
            if under_way:
                facts["head_of_line_blocks"] = under_way[0][1]
            views[known] = InstanceSnapshot(**facts)
        return views

    def best(self, blocks: int, high: bool, avoid: frozenset[InstanceId]) -> InstanceId | None:
        rule = POLICIES[self.policy].dispatch
        rule = rule.fallback or rule
        able = [view for view in self.views().values() if view.id not in avoid and view.state is InstanceState.RUNNING]
        room = {view.id: room_blocks(view) - headroom_blocks(view, 1600) for view in able}
        roomy = [view for view in able if room[view.id] >= blocks] if rule.room_first and not high else []
        return min(roomy or able, key=lambda view: (*rule.rank(view, high, 0, 1600), view.id)).id if able else None

    @invariant()
    def ledger_equals_the_naive_one(self) -> None:
        views = self.views()
        assert self.dispatcher.snapshot(0.0).instances == tuple(views[known] for known in sorted(views))


class PaperModel(DispatcherModel):
    policy = "llumnix-paper"


TestDispatcherModel = DispatcherModel.TestCase
TestDispatcherModel.settings = settings(max_examples=40, stateful_step_count=30)
TestPaperModel = PaperModel.TestCase
TestPaperModel.settings = settings(max_examples=15, stateful_step_count=30)
