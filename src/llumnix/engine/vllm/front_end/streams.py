"""The token streams of a front end: what its mind (`control/front_end.py`) decides about them is done here.

`sort_out` is the front end's hot path, once per engine step.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any, assert_never

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, EngineCoreRequestType, FinishReason

from llumnix.control import front_end_events as fe
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.kept_media import KeptMedia
from llumnix.control.messages import Adopted, AnyNotice, Doubt
from llumnix.control.prefix_table import PrefixNews
from llumnix.engine.vllm.between import LAST_WORD, NOTICE, THROWN_AWAY, TURNED_AWAY
from llumnix.engine.vllm.front_end.client_access import ClientAccess, Observer, OnEnd
from llumnix.engine.vllm.front_end.given_up import GivenUp, why_given_up
from llumnix.engine.vllm.front_end.members import Members
from llumnix.engine.vllm.front_end.moves_told import MovesTold
from llumnix.engine.vllm.front_end.resuming import Resuming
from llumnix.engine.vllm.front_end.session import Session, arrival, client_id_of, media_bytes, why_not_exact
from llumnix.engine.vllm.front_end.telling import begin_story, mail_of, refuse, tell_onward, tell_output
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId

log = logging.getLogger(__name__)

_NOTICES: msgspec.msgpack.Decoder[AnyNotice] = msgspec.msgpack.Decoder(AnyNotice)


class Streams:
    """All methods run on the front end's event loop."""

    def __init__(
        self,
        members: Members,
        machine: FrontEndMachine,
        access: ClientAccess,
        observer: Observer,
        most_media_bytes: int,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        """By engine id; those that wait for an instance, too."""
        self.seeds_lost = ""
        """Why a stream with a seed cannot go on exactly when its instance dies, by word of the instance that joined
        last; empty if it can."""
        self.on_end: OnEnd = lambda session: None
        self._members = members
        self._machine = machine
        self._access = access
        self._observer = observer
        self._stories = observer.stories
        self._moves = MovesTold(observer)
        self._kept = KeptMedia(most_media_bytes)
        self._engine_ids: dict[str, str] = {}  # vLLM's request id -> engine id, only where they differ
        self._resuming = Resuming(access, self._tell)

    # -- requests

    def session_of(self, request_id: str) -> Session | None:
        """`request_id`: as vLLM's front end knows it."""
        return self.sessions.get(self._engine_ids.get(request_id, request_id))

    @property
    def parked(self) -> int:
        """Requests that wait for an instance to be replayed on."""
        return self._machine.parked

    def open(self, request: EngineCoreRequest) -> fe.SendTo | fe.GiveUp:
        """Where the new request is to be sent, or why it is not."""
        name, arrived = RequestId(request.request_id), self.arrival(request)
        (answer,) = self._machine.handle(arrived)
        assert isinstance(answer, fe.SendTo | fe.GiveUp)
        if isinstance(answer, fe.SendTo):
            stream = self._machine.stream(name)
            assert stream is not None
            story = begin_story(self._stories, request, arrived.prompt_tokens, arrived.at_s)
            story.dispatched(arrived.at_s, answer.reason)
            kept = self._kept.keep(name, media_bytes(request))
            self.sessions[name] = Session(request, name, stream, story, keeps_media=kept)
            tell_onward(answer, self._members, self._access.post)
        else:
            self.refused(client_id_of(request), answer.why)
        return answer

    def arrival(self, request: EngineCoreRequest) -> fe.Arrived:
        """How the mind is told of it, if it arrives now."""
        return arrival(
            request,
            monotonic(),
            only_on=None if (rank := request.data_parallel_rank) is None else self._members.in_slot(rank),
            not_exact=why_not_exact(request, self.seeds_lost) or self._kept.why_not(media_bytes(request)),
            chunk_tokens=self._machine.prefix_chunk_tokens,
        )

    def refused(self, request_id: str | None, why: str, status: int = 503) -> None:
        """A request that is told to come later. `request_id`: as vLLM's server named it, if it did."""
        refuse(self._stories, request_id, why, status, monotonic())

    def unsent(self, request_id: str) -> None:
        """It was opened just now, and then could not be sent: to `on_end` it has never begun."""
        self._forget(self.sessions[request_id], "error", "it could not be sent", began=False)
        self._machine.handle(fe.Unsent(monotonic(), RequestId(request_id)))

    def sent(self, request: EngineCoreRequest) -> None:
        """It was opened just now. Its engine says nothing of one that is there only to be aborted."""
        if request.abort_immediately:
            self._ended(self.sessions[request.request_id], str(FinishReason.ABORT), monotonic())

    def sent_more(self, session: Session, chunk: EngineCoreRequest) -> None:
        """To its engine, as it arrived."""
        session.takes(chunk)
        if session.is_over:
            self._ended(session, str(FinishReason.STOP), monotonic())

    def abort(self, request_id: str) -> None:
        session = self.session_of(request_id)
        if session is not None:
            self._forget(session, str(FinishReason.ABORT))
            self._tell(fe.Aborted(monotonic(), RequestId(session.engine_id)))

    def _forget(self, session: Session, outcome: str, why: str = "", began: bool = True) -> None:
        self._moves.over(session, monotonic(), outcome, why)
        self.sessions.pop(session.engine_id, None)
        self._engine_ids.pop(session.id, None)
        self._kept.forget(RequestId(session.id))
        if began:
            self.on_end(session)

    # -- what instances say

    def sort_out(self, instance: InstanceId, outputs: list[EngineCoreOutput]) -> list[EngineCoreOutput]:
        """Those of an instance's outputs that go to clients now, with what they set free. Their times are ours
        (clocks.py)."""
        now = monotonic()
        kept: list[EngineCoreOutput] = []
        for output in outputs:
            session = self.sessions.get(output.request_id)
            if session is not None and session.stream.live == instance and output.kv_transfer_params is None:
                session.stream.delivered_tokens += len(output.new_token_ids)
                self._deliver(session, output, now, kept)
            else:
                kept += self._unusual(instance, output, now)
        return kept

    def _deliver(self, session: Session, output: EngineCoreOutput, now: float, to: list[EngineCoreOutput]) -> None:
        if output.events or not session.story.decodes:
            tell_output(session.story, output, now)
        if output.new_token_ids:
            downtime_s = session.tokens_delivered(output.new_token_ids, now)
            if downtime_s is not None:
                self._moves.first_token(session, downtime_s, now)
        if session.stream.replays:
            output.request_id = session.id
        if output.finish_reason is None or self._ends_well(session, output, now):
            to.append(output)

    def _ends_well(self, session: Session, output: EngineCoreOutput, now: float) -> bool:
        """It, or the output for a chunk of its input; its client is to be told of the end."""
        session.unanswered -= 1
        why = why_given_up(session.request, output)
        if why:
            self._give_up(session, why)
            self._obey(self._machine.handle(fe.Aborted(now, RequestId(session.engine_id))))
        elif session.is_over:
            self._ended(session, str(output.finish_reason), now)
        return not why

    def _ended(self, session: Session, outcome: str, now: float) -> None:
        self._forget(session, outcome)
        self._obey(self._machine.handle(fe.Finished(now, RequestId(session.engine_id))))

    def _unusual(self, instance: InstanceId, output: EngineCoreOutput, now: float) -> list[EngineCoreOutput]:
        """Notices, and outputs of an instance that is not (or not yet) the owner."""
        request, params = RequestId(output.request_id), output.kv_transfer_params or {}  # vLLM has its own use for them
        session = self.sessions.get(request)
        if NOTICE in params:
            return self._read_notice(instance, request, params[NOTICE], now)
        if THROWN_AWAY in params:
            if session is not None:
                session.thrown_away += 1
            return []
        if LAST_WORD in params:
            self._access.last_word(instance)
            return []
        if TURNED_AWAY in params:
            return self._obey(self._machine.handle(fe.TurnedAway(now, instance, request)))
        last = output.finish_reason is not None and not (session is not None and session.request.resumable)
        tokens = len(output.new_token_ids)
        return self._obey(self._machine.handle(fe.Outputs(now, instance, request, tokens, (output,), last)))

    def _read_notice(self, instance: InstanceId, request: RequestId, said: Any, now: float) -> list[EngineCoreOutput]:
        """One that cannot be read costs the stream that it speaks of, which may wait for what it says, and no other."""
        try:
            notice = _NOTICES.decode(said)
        except (ValueError, TypeError) as error:
            why = f"{instance} said something of it that cannot be read: {error}"
            return self._obey(self._machine.handle(fe.Broken(now, request, why)))
        return self._take_notice(notice, now)

    def _take_notice(self, notice: AnyNotice, now: float) -> list[EngineCoreOutput]:
        session = self.sessions.get(notice.request)
        self._moves.noticed(session, notice, now)
        before = None if session is None else session.stream.owner
        commands = self._machine.handle(fe.Noticed(now, notice))
        if session is not None and isinstance(notice, Adopted) and session.stream.owner != before:
            session.passes(notice.epoch, notice.source, now)
        return self._obey(commands)

    # -- what is heard of instances otherwise

    def reported(self, snapshot: InstanceSnapshot) -> None:
        """By an instance that takes requests."""
        self._tell(fe.Reported(monotonic(), snapshot))

    def prefixes_told(self, instance: InstanceId, news: PrefixNews) -> None:
        self._tell(fe.PrefixesTold(monotonic(), instance, news))

    def equipped(self, instance: InstanceId, lacks: tuple[int, ...]) -> None:
        self._tell(fe.Equipped(monotonic(), instance, lacks))

    def closed(self, instance: InstanceId) -> None:
        """It takes no more requests; what it still says counts."""
        self._tell(fe.Closed(monotonic(), instance))

    def departed(self, instance: InstanceId, complete: bool = False) -> None:
        """What it owned goes on elsewhere. `complete`: all that it said was read."""
        self._tell(fe.Departed(monotonic(), instance, complete))
        self._moves.departed(instance, self.sessions.values())

    def doubted(self, doubt: Doubt) -> None:
        self._tell(fe.Doubted(monotonic(), doubt))

    def drive_out(self, instance: InstanceId, why: str) -> int:
        """Starts what is on a draining instance anew elsewhere, with the tokens so far; returns how many. What cannot
        be continued exactly, and everything if there is no place for it, stays and goes on."""
        *commands, answer = self._machine.handle(fe.DriveOut(monotonic(), instance, why))
        assert isinstance(answer, fe.DroveOut)
        self._access.emit(self._obey(commands))
        return answer.count

    # -- what the machine wants

    def _tell(self, event: fe.FrontEndEvent) -> None:
        self._access.emit(self._obey(self._machine.handle(event)))

    def _obey(self, commands: list[fe.FrontEndCommand]) -> list[EngineCoreOutput]:
        """Carries commands out; returns the outputs that go to the client now."""
        outputs: list[EngineCoreOutput] = []
        for command in commands:
            match command:
                case fe.Deliver():
                    for output in command.outputs:
                        self._deliver(self.sessions[command.request], output, monotonic(), outputs)
                case fe.TellVerdict() | fe.AskPrefixes():
                    member = self._members.known.get(command.to)
                    if member is not None:  # else it is asked for again, or nobody is there to ask
                        self._access.post(member.info.control, mail_of(command))
                case fe.Abort():
                    self._access.send(command.to, EngineCoreRequestType.ABORT, [command.request])
                case fe.ReplayAt():
                    self._replay(command)
                case fe.GiveUp():
                    self._give_up(self.sessions[command.request], command.why)
                case fe.Park():
                    log.info("request %s waits for an instance: %s", command.request, command.why)
                    parked = self.sessions[command.request]
                    parked.story.parked(monotonic(), command.why, parked.last_token_s)
                case fe.SendTo() | fe.DroveOut():
                    raise AssertionError(f"nobody asked for {command}")
                case _:
                    assert_never(command)
        return outputs

    def _replay(self, command: fe.ReplayAt) -> None:
        """Starts the request anew elsewhere, where it left off."""
        session, stream = self.sessions.pop(command.request), self._machine.stream(command.new_id)
        assert stream is not None
        session.engine_id, session.stream = command.new_id, stream
        session.begins_anew()
        self.sessions[command.new_id] = session
        self._engine_ids[session.id] = command.new_id
        renamed = msgspec.structs.replace(session.request, request_id=command.new_id)
        self._observer.replayed(command)
        session.story.replayed(monotonic(), command.reason, command.why, command.delivered_tokens, session.last_token_s)
        if session.tokens:
            self._access.spawn(self._resuming.resume(session, renamed, command.instance))
        else:
            self._access.send(command.instance, EngineCoreRequestType.ADD, renamed)

    def _give_up(self, session: Session, why: str) -> None:
        log.error("request %s ends: %s", session.client_id, why)
        self._forget(session, "error", why)
        self._observer.failed(session, why)
        self._access.give_up(GivenUp(session.id, why))
