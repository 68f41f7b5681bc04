"""Changes of turn on a simulated engine (`control/changes_of_turn.py`): who has stood still for long goes on, and one
that runs is preempted in its place. The twin of `engine/vllm/instance/making_way.py`."""

from __future__ import annotations

from collections.abc import Callable

from llumnix.control.changes_of_turn import Runner, may_pass
from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.engine.request import SimRequest


def change_turns(engine: EngineModel, missing_blocks: Callable[[SimRequest], int]) -> bool:
    """Between two steps. `missing_blocks`: what one of the queue lacks to start. True: somebody's turn has come, and it
    may find room before the next step."""
    queue, now = engine.queue, engine.kernel.now
    looks_again = False
    for stopped in queue.longest_stopped():
        if queue.called is not None or engine.prefilling:
            break
        wait_s = queue.changes.wait_s(now - stopped.last_token_s, now)
        if wait_s > 0:
            engine.steps.plan_at(now + wait_s)
            break
        looks_again |= _call(engine, stopped, missing_blocks(stopped))
    return looks_again and queue.called is None


def _call(engine: EngineModel, stopped: SimRequest, missing_blocks: int) -> bool:
    """If it can start by that. True: not now, but it may find room soon."""
    queue, now = engine.queue, engine.kernel.now
    if engine.waiting[0].priority < stopped.priority:
        return False
    if not may_pass(queue.blocks - queue.blocks_of(stopped.tokens), engine.profile.memory.total_blocks):
        return False
    if missing_blocks > 0:
        running = engine.batch.members
        runners = [_runner(engine, each) for each in running]
        place = queue.changes.gives_way(runners, missing_blocks, stopped.priority, engine.step_cost, now)
        if place is None:
            return True
        queue.call(stopped)
        engine.preempt(running[place])
    else:
        queue.call(stopped)
    return False


def _runner(engine: EngineModel, request: SimRequest) -> Runner:
    ran_s = engine.kernel.now - request.began_s
    return Runner(request.priority, request.arrival_s, ran_s, engine.held_blocks(request), engine.tokens_of(request))
