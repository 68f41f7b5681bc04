"""The live page's share of a front end: what it remembers, and whom it tells."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from time import monotonic, time
from typing import Any

import vllm

import llumnix
from llumnix.api.frames import ServerFacts
from llumnix.engine.vllm.front_end.page.feed import Feed
from llumnix.engine.vllm.front_end.page.history import History
from llumnix.engine.vllm.front_end.page.pictures import ClusterPictures, RequestPictures
from llumnix.engine.vllm.front_end.switchboard import Switchboard

_SAMPLE_S = 1.0
_CLUSTER_S = 0.5
_REQUESTS_S = 1.0


class Page:
    """`run` does its work, which is little while nobody watches."""

    def __init__(self, board: Switchboard, server: ServerFacts, is_closing: Callable[[], bool]) -> None:
        self.history = History()
        self._board = board
        self._pictures = ClusterPictures(board, server)
        self.cluster = Feed(self._pictures.look, _CLUSTER_S, is_closing)
        self.requests = Feed(RequestPictures(board).look, _REQUESTS_S, is_closing)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._remember())
            group.create_task(self.cluster.run())
            group.create_task(self.requests.run())

    async def _remember(self) -> None:
        while True:
            self.remember(time(), monotonic())
            await asyncio.sleep(_SAMPLE_S)

    def remember(self, at: float, now_s: float) -> None:
        """How it is now, `at` seconds after 1970, and at `now_s` of a clock that is never set."""
        loads = {name: member.snapshot for name, member in self._board.client.members.by_id.items()}
        self._pictures.sample = self.history.sample(at, now_s, loads)


def make_page(
    board: Switchboard, args: argparse.Namespace, model_config: Any, is_closing: Callable[[], bool]
) -> Page | None:
    """None if it is not wanted (`--page off`). `args`: flags of `vllm serve`."""
    if board.spec.cluster.page == "off":
        return None
    return Page(board, _facts(board, args, model_config), is_closing)


def _facts(board: Switchboard, args: argparse.Namespace, model_config: Any) -> ServerFacts:
    spec = board.spec
    path = "/v1/completions" if model_config.runner_type == "generate" else "/pooling"
    return ServerFacts(
        version=llumnix.__version__,
        vllm=vllm.__version__,
        model=args.served_model_name[0] if args.served_model_name else args.model,
        policy=spec.policy.policy,
        migration=spec.policy.migration,
        front_ends=spec.book.front_ends,
        front_end=spec.index,
        since_s=time(),
        acts=spec.cluster.page == "on",
        records=bool(spec.cluster.record),
        example_path=path if spec.admin_socket is None else None,
    )
