"""Changes of turn on a simulated engine (`control/changes_of_turn.py`): who has stood still for long goes on, and one
that runs is preempted in its place. The twin of `engine/vllm/instance/making_way.py`."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from llumnix.control.changes_of_turn import ChangesOfTurn, Runner
from llumnix.sim.engine.request import SimRequest

if TYPE_CHECKING:
    from llumnix.sim.engine.engine import EngineModel


class Turns:
    """Of one engine."""

    def __init__(self) -> None:
        self._changes = ChangesOfTurn()
        self._looks_at_s = inf
        """A timer is set for then; inf: none is."""

    def change(self, engine: EngineModel, missing_blocks: int) -> bool:
        """Between two steps. True: somebody's turn has come, and it may find room before the next step.
        `missing_blocks`: of the one that has stood still for longest."""
        stopped = engine.queue.longest_stopped()
        if stopped is None or engine.queue.called is not None or engine.prefilling:
            return False
        if engine.waiting[0].priority < stopped.priority:
            return False
        now = engine.kernel.now
        wait_s = self._changes.wait_s(now - stopped.last_token_s, now)
        if wait_s > 0:
            self._look_later(engine, now + wait_s)
            return False
        if missing_blocks > 0:
            running = engine.batch.members
            runners = [_runner(engine, each) for each in running]
            place = self._changes.gives_way(runners, missing_blocks, stopped.priority, engine.step_cost, now)
            if place is None:
                return True
            engine.queue.call(stopped)
            engine.preempt(running[place])
        elif engine.waiting[0] is not stopped:
            engine.queue.call(stopped)
        return False

    def _look_later(self, engine: EngineModel, at_s: float) -> None:
        if at_s < self._looks_at_s:
            self._looks_at_s = at_s
            engine.kernel.at(at_s, self._look, engine)

    def _look(self, engine: EngineModel) -> None:
        self._looks_at_s = inf
        engine.steps.plan_soon()


def _runner(engine: EngineModel, request: SimRequest) -> Runner:
    ran_s = engine.kernel.now - request.began_s
    return Runner(request.priority, request.arrival_s, ran_s, engine.held_blocks(request), engine.tokens_of(request))
