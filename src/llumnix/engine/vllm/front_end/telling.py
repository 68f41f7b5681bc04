"""What vLLM knows of a request, as its story is told it; and what instances are told beside requests."""

from __future__ import annotations

from collections.abc import Callable
from time import time

from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreRequest

from llumnix.control.front_end_events import AskPrefixes, SendTo, TellVerdict
from llumnix.engine.vllm.front_end.client_ids import client_visible_id
from llumnix.engine.vllm.front_end.members import Members
from llumnix.engine.vllm.front_end.session import client_id_of
from llumnix.journal.entries import RefusalNoted
from llumnix.journal.stories import Stories
from llumnix.journal.story import Story
from llumnix.wire.outbox import Mail
from llumnix.wire.to_instance import MoveOut, TellPrefixes


def begin_story(stories: Stories, request: EngineCoreRequest, prompt_tokens: int, now: float) -> Story:
    """vLLM's server took note of its arrival, in seconds since 1970."""
    waited_s = max(0.0, time() - request.arrival_time)
    name = client_visible_id(client_id_of(request))
    return stories.began(now - waited_s, name, request.request_id, prompt_tokens)


def refuse(stories: Stories, request_id: str | None, why: str, status: int, now: float) -> None:
    name = None if request_id is None else client_visible_id(request_id)
    stories.journal.note(now, RefusalNoted(status), name, why=why)


def tell_output(story: Story, output: EngineCoreOutput, now: float) -> None:
    """What an engine says of a request beside its tokens (`Request.take_events`, vllm/v1/request.py; nothing with
    `--disable-log-stats`)."""
    for event in output.events or ():
        at_s = min(now, event.timestamp)
        if event.type == EngineCoreEventType.SCHEDULED:
            story.scheduled(at_s)
        elif event.type == EngineCoreEventType.PREEMPTED:
            story.preempted(at_s)
    if output.new_token_ids:
        story.token(now, 0 if output.prefill_stats is None else output.prefill_stats.num_cached_tokens)


def mail_of(command: TellVerdict | AskPrefixes) -> Mail:
    return command.verdict if isinstance(command, TellVerdict) else TellPrefixes()


def tell_onward(sent: SendTo, members: Members, post: Callable[[str, Mail], None]) -> None:
    """Before the request itself: where it goes with its first token. By another way, so it may come later; who is not
    known any more is not told of."""
    order = sent.onward
    if order is None:
        return
    source, target = members.known.get(sent.instance), members.by_id.get(order.target)
    if source is not None and target is not None:
        post(source.info.control, MoveOut(order=order, target=target.info))
