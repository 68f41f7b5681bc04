"""A second engine of the paper's kind, as plain as can be: one step at a time, every token's time kept.

Written from the description of vLLM 0.1's scheduler, not from `llumnix.sim`: the two must agree. In one piece on
purpose: it is to be read from top to bottom.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.sim.profiles.cost_model import Profile


@dataclass
class Sequence:
    arrival_s: float
    prompt: int
    target: int
    token_times: list[float] = field(default_factory=list)
    blocks: int = 0
    preemptions: int = 0

    @property
    def length(self) -> int:
        return self.prompt + len(self.token_times)


def reference_run(profile: Profile, rows: list[tuple[float, int, int]]) -> list[Sequence]:  # noqa: C901
    limits, size = profile.scheduler, profile.memory.block_tokens
    everyone = [Sequence(*row) for row in rows]
    coming = list(everyone)
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    free, watermark, now = profile.memory.total_blocks, profile.watermark_blocks, 0.0

    def overhead_s(count: int) -> float:
        return (profile.host.step_overhead_ms + profile.host.sequence_overhead_ms * count) / 1e3

    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0].arrival_s)
        while coming and coming[0].arrival_s <= now:
            waiting.append(coming.pop(0))
        admitted: list[Sequence] = []
        tokens = 0
        while waiting and len(running) + len(admitted) < limits.max_num_seqs:
            one = waiting[0]
            need = -(-one.length // size)
            too_long = admitted and tokens + one.length > limits.max_num_batched_tokens
            if too_long or need + watermark > free:
                break
            one.blocks, free = need, free - need
            tokens += one.length
            admitted.append(waiting.pop(0))
        if admitted:
            compute = profile.prefill.base_ms + sum(profile.prefill.compute_ms(one.length) for one in admitted)
            now += compute / 1e3 + overhead_s(len(admitted))
            producing = admitted
            running += admitted
        else:
            index = 0
            while index < len(running):
                while free == 0:
                    victim = running.pop()
                    free += victim.blocks
                    victim.blocks = 0
                    victim.preemptions += 1
                    waiting.insert(0, victim)
                    if index >= len(running):
                        break
                else:
                    one = running[index]
                    if one.blocks * size < one.length:
                        one.blocks, free = one.blocks + 1, free - 1
                    index += 1
            if not running:
                continue
            step = profile.decode.step_ms(len(running), sum(one.length for one in running))
            now += step / 1e3 + overhead_s(len(running))
            producing = list(running)
        for one in producing:
            one.token_times.append(now)
            if len(one.token_times) == one.target:
                running.remove(one)
                free += one.blocks
        running.sort(key=everyone.index)
        waiting.sort(key=everyone.index)
    assert free == profile.memory.total_blocks
    return everyone
