"""What vLLM asks of engines beside requests: of one, of all that there are, or of the server as a whole."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm.v1.engine.core_client import AsyncMPClient

from llumnix.control.server_state import Op
from llumnix.engine.vllm.front_end.members import GONE, Members, of_the_living, unless_gone
from llumnix.engine.vllm.front_end.whole import Whole


class CallsOfAll(AsyncMPClient):
    """All methods run on the front end's event loop."""

    members: Members
    whole: Whole

    async def _call_known(self, method: str, *args: Any, engine: bytes) -> Any:
        """As vLLM's, of one that may not take requests yet."""
        return await super()._call_utility_async(method, *args, engine=engine)

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        """As vLLM's, but a call to an instance that dies meanwhile raises ConnectionError instead of hanging."""
        member = self.members.by_identity.get(engine)
        if member is None:
            raise ConnectionError(GONE)
        return await unless_gone(super()._call_utility_async(method, *args, engine=engine), member.gone)

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        """Engine-wide calls (reset_prefix_cache, add_lora, sleep…) go to all; the first answer is returned."""
        return (await self.call_utility_all_async(method, *args))[0]

    async def call_utility_all_async(self, method: str, *args: Any) -> list[Any]:
        """What those answer that live to do so."""
        calls = [self._call_utility_async(method, *args, engine=engine) for engine in self.core_engines]
        return of_the_living(await asyncio.gather(*calls, return_exceptions=True))

    # -- the state of the server as a whole

    async def pause_scheduler_async(self, mode: Any = "abort", clear_cache: bool = True) -> None:
        await self.whole.do(Op("pause_scheduler", (mode, clear_cache)))

    # Since 0.33, where vLLM refuses new requests meanwhile; here they wait.
    pause_generation_async = pause_scheduler_async

    async def resume_scheduler_async(self) -> None:
        await self.whole.do(Op("resume_scheduler"))

    async def is_scheduler_paused_async(self) -> bool:
        return self.whole.file.read().paused

    async def sleep_async(self, level: int = 1, mode: Any = "abort") -> None:
        await self.whole.do(Op("sleep", (level, mode)))

    async def wake_up_async(self, tags: list[str] | None = None) -> bool:
        answers = await self.whole.do(Op("wake_up", (tags,)))
        return all(answers) if answers else not self.whole.file.read().asleep

    async def is_sleeping_async(self) -> bool:
        return self.whole.file.read().asleep

    async def release_kv_cache_memory_async(self) -> None:
        await self.whole.do(Op("release_kv_cache_memory"))

    async def profile_async(self, is_start: bool = True, *how: Any) -> None:
        await self.whole.do(Op("profile", (is_start, *how)))

    async def reset_prefix_cache_async(self, *how: Any) -> bool:
        return all(await self.whole.do(Op("reset_prefix_cache", how)))

    async def reset_mm_cache_async(self) -> None:
        await self.whole.do(Op("reset_mm_cache"))

    async def reset_encoder_cache_async(self) -> None:
        await self.whole.do(Op("reset_encoder_cache"))

    async def collective_rpc_async(self, *call: Any) -> list[Any]:
        """Of the workers of all instances that there are."""
        return [answer for answers in await self.call_utility_all_async("collective_rpc", *call) for answer in answers]

    async def compute_weight_checksums_async(self) -> list[dict[str, str]]:
        """All instances have the same weights, so one of them speaks for all. Raises RuntimeError if they have not."""
        sums, *others = await self.call_utility_all_async("compute_weight_checksums")
        if any(other != sums for other in others):
            raise RuntimeError(f"The instances have different weights: {[sums, *others]}")
        return list(sums)
