"""A front end's share in the state of the server: it changes it, follows others' changes, brings instances to it.

A change is written first, then told to the instances, by every front end to those that it knows; it has taken place
when all front ends have heard of it. An instance does what a version asks for once, whoever tells it first
(following.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from llumnix.control.server_state import Applied, Op, ServerState, after, awake, undone
from llumnix.engine.vllm.front_end.members import Member, Members
from llumnix.engine.vllm.front_end.state_file import StateFile
from llumnix.types import InstanceId

log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

_AGAIN_S = 5.0
"""Between two attempts to bring an instance to the state, or to load an adapter there."""


class SharedState:
    """All methods run on the front end's event loop."""

    def __init__(
        self,
        file: StateFile,
        members: Members,
        call: Callable[[Member, bytes], Coroutine[Any, Any, bytes]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        equipped: Callable[[InstanceId, tuple[int, ...]], None],
    ) -> None:
        """`call`: `llumnix_follow` of an instance; raises ConnectionError when that is gone. `equipped` is told which
        adapters an instance lacks."""
        self.file = file
        self.members = members
        self._call = call
        self._spawn = spawn
        self._equipped = equipped
        self.tell_others: Callable[[], Awaitable[Any]] = _nobody
        """Has every other front end `follow`, and waits for it."""
        self.followers: list[Callable[[ServerState], None]] = []
        """Parts of this process that keep something of the state; told of what others change."""
        self._changes: set[asyncio.Future[Any]] = set()

    async def bring(self, member: Member) -> None:
        """Returns when the instance is where all others are. Raises ConnectionError when it is gone before."""
        while True:
            state = self.file.read()
            try:
                await self._push(member, state)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 vLLM turns whatever the engine raised into a bare Exception
                log.warning("%s does not get to where the others are, it is tried again: %s", member.info.id, error)
                await asyncio.sleep(_AGAIN_S)
                continue
            if self.file.read().version == state.version:
                return

    async def to_the_end(self, change: Coroutine[Any, Any, AnswerT]) -> AnswerT:
        """What has begun to change for all is not left half done when whoever asked for it goes away."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def do(self, op: Op) -> list[Any]:
        """Changes the state of the server by this; what the instances answer. Raises what one of them raises, and then
        it has not happened."""
        return await self.to_the_end(self._do(op))

    async def _do(self, op: Op) -> list[Any]:
        async with self.file.changing() as write:
            before = self.file.read()
            state = after(before, op)
            write(state)
            pushes = [asyncio.ensure_future(self._push(member, state)) for member in self.members.by_id.values()]
            told = asyncio.ensure_future(self.tell_others())
            await asyncio.wait((told,))
        # Not within the lock: to wait until all requests have ended may take as long as it likes.
        results = await asyncio.gather(*pushes, return_exceptions=True)
        answers = [result for result in results if not isinstance(result, BaseException)]
        failures = [
            each
            for each in (told.exception(), *results)
            if isinstance(each, BaseException) and not isinstance(each, ConnectionError)
        ]
        if failures:
            await self._correct(state, lambda now: undone(now, before))
            raise failures[0]
        if op.name == "wake_up" and state.activity and answers and all(answers):
            await self._correct(state, awake)
        return answers

    async def follow(self) -> None:
        """Another front end has changed the state."""
        state = self.file.read()
        for follower in self.followers:
            follower(state)
        for member in self.members.by_id.values():
            self._spawn(self._push_again(member, state))
        await asyncio.sleep(0)  # by then it is on the way to them

    async def commit(self, state: ServerState) -> None:
        """The state was written, with the lock held: everybody is told, and the instances known here are there."""
        pushes = [self._push_again(member, state) for member in self.members.by_id.values()]
        await asyncio.gather(self.tell_others(), *pushes)

    async def _correct(self, state: ServerState, better: Callable[[ServerState], ServerState]) -> None:
        """Unless something else has happened meanwhile."""
        async with self.file.changing() as write:
            now = self.file.read()
            if now.version == state.version:
                write(better(now))
                await self.commit(better(now))

    async def _push_again(self, member: Member, state: ServerState) -> None:
        try:
            await self._push(member, state)
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001 as above
            log.warning("%s did not do what all were to do: %s", member.info.id, error)

    async def _push(self, member: Member, state: ServerState) -> Any:
        answer = await self._call(member, msgspec.msgpack.encode(state))
        applied = msgspec.msgpack.decode(answer, type=Applied)
        member.lacks = frozenset(applied.lacks)
        self._equipped(member.info.id, applied.lacks)
        if member.lacks and not member.tries_again:
            member.tries_again = True
            asyncio.get_running_loop().call_later(_AGAIN_S, self._try_again, member)
        return applied.result

    def _try_again(self, member: Member) -> None:
        """Adapters that could not be loaded: what keeps them from it may be mended."""
        member.tries_again = False
        if member.lacks and not member.gone.is_set():
            self._spawn(self._push_again(member, self.file.read()))


async def _nobody() -> None:
    """There are no other front ends."""
