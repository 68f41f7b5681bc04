"""Live migration (paper section 4.2): the two transition tables, and nothing but the tables.

For every state, what each event does and which states may follow. An event that a state has no edge for is our own
mistake and raises; what is merely late (the network doubles and delays messages) has an edge that changes nothing.
`scripts/draw_states.py` draws these tables into `docs/understand/protocol.md`.

Why nobody ever runs a request twice or loses it:

* A request has one owner. Only the owner may start an attempt, and only once the front end has confirmed that it is
  the owner; so the epochs of a request grow, and each belongs to one attempt.
* Up to `Commit` the source owns it, and any failure means that it stays. `Refused` is a promise: the target will never
  adopt that attempt.
* After `Commit` the source does nothing with the request until it has `Committed`, `Refused` or a `Verdict`. Once it
  has asked the front end, only the `Verdict` counts.
* A target that adopted is the owner when the front end says so; until then it runs the request, asks, and may not give
  it on.
"""

from __future__ import annotations

from llumnix.control.events import (
    Detached,
    Gone,
    Installed,
    InstallFailed,
    PeerLost,
    Preempted,
    Progress,
    Pulled,
    PullFailed,
    Reserved,
    ReserveFailed,
)
from llumnix.control.messages import Cancel, Commit, Committed, Copied, Copy, Prepare, Prepared, Refused, Verdict
from llumnix.control.migration_source import MigrationSource as Source
from llumnix.control.migration_target import MigrationTarget as Target
from llumnix.control.migration_target import TargetState as T
from llumnix.control.source_state import SourceState as S
from llumnix.control.transitions import Edge, Expired, Table, late, no_matter

_IN_THE_BATCH: dict[type, Edge[S]] = {
    Refused: Edge(Source.refused, S.STAYED),
    Preempted: Edge(Source.preempted, S.STAYED),
    Gone: Edge(Source.gone, S.STAYED),
    PeerLost: Edge(Source.target_lost, S.STAYED),
    Expired: Edge(Source.expired, S.STAYED),
}

SOURCE: Table[S] = {
    S.PREPARING: {
        **_IN_THE_BATCH,
        Prepared: Edge(Source.prepared, S.COPYING, S.WAITING, S.DETACHING, S.STAYED),
        Progress: Edge(Source.progressed, S.PREPARING),
    },
    S.COPYING: {
        **_IN_THE_BATCH,
        Copied: Edge(Source.copied, S.COPYING, S.WAITING, S.DETACHING),
        Progress: Edge(Source.progressed, S.COPYING),
        Prepared: Edge(late, S.COPYING),
    },
    S.WAITING: {
        **_IN_THE_BATCH,
        Progress: Edge(Source.progressed_while_waiting, S.WAITING, S.COPYING, S.DETACHING),
        Prepared: Edge(late, S.WAITING),
        Copied: Edge(late, S.WAITING),
    },
    S.DETACHING: {
        Detached: Edge(Source.detached, S.COMMITTING),
        Refused: Edge(Source.refused, S.STAYED),
        Gone: Edge(Source.gone, S.STAYED),
        PeerLost: Edge(Source.target_lost, S.STAYED),
        Expired: Edge(Source.expired, S.STAYED),
        Prepared: Edge(late, S.DETACHING),
        Copied: Edge(late, S.DETACHING),
    },
    S.COMMITTING: {
        Committed: Edge(Source.committed, S.MOVED),
        Refused: Edge(Source.refused, S.STAYED),
        Gone: Edge(Source.gone, S.STAYED),
        PeerLost: Edge(Source.ask, S.DOUBT),
        Expired: Edge(Source.ask, S.DOUBT),
        Prepared: Edge(late, S.COMMITTING),
        Copied: Edge(late, S.COMMITTING),
    },
    S.DOUBT: {
        Verdict: Edge(Source.judged, S.STAYED, S.MOVED),
        Gone: Edge(Source.gone, S.STAYED),
        Expired: Edge(Source.ask, S.DOUBT),
        PeerLost: Edge(no_matter, S.DOUBT),
        Prepared: Edge(late, S.DOUBT),
        Copied: Edge(late, S.DOUBT),
        Committed: Edge(late, S.DOUBT),
        Refused: Edge(late, S.DOUBT),
    },
    S.MOVED: {},
    S.STAYED: {},
}

_NOT_YET_THERE: dict[type, Edge[T]] = {
    Cancel: Edge(Target.cancelled, T.DROPPED),
    Verdict: Edge(Target.fenced, T.DROPPED),
    PeerLost: Edge(Target.cancelled, T.DROPPED),
    Expired: Edge(Target.expired, T.DROPPED),
}

TARGET: Table[T] = {
    T.RESERVING: {
        **_NOT_YET_THERE,
        Reserved: Edge(Target.reserved, T.READY),
        ReserveFailed: Edge(Target.no_room, T.DROPPED),
        Copy: Edge(Target.out_of_step, T.DROPPED),
        Commit: Edge(Target.out_of_step, T.DROPPED),
        Prepare: Edge(late, T.RESERVING),
    },
    T.READY: {
        **_NOT_YET_THERE,
        Copy: Edge(Target.next_stage, T.PULLING, T.READY, T.DROPPED),
        Commit: Edge(Target.next_stage, T.PULLING, T.INSTALLING, T.DROPPED),
        Prepare: Edge(Target.prepared_again, T.READY),
    },
    T.PULLING: {
        **_NOT_YET_THERE,
        Pulled: Edge(Target.pulled, T.READY, T.INSTALLING),
        PullFailed: Edge(Target.failed, T.DROPPED),
        Copy: Edge(Target.stage_while_pulling, T.PULLING, T.DROPPED),
        Commit: Edge(Target.stage_while_pulling, T.PULLING, T.DROPPED),
        Prepare: Edge(late, T.PULLING),
    },
    T.INSTALLING: {
        **_NOT_YET_THERE,
        Installed: Edge(Target.installed, T.ADOPTED),
        InstallFailed: Edge(Target.failed, T.DROPPED),
        # It has all that it needs; whether it goes on is for the front end to say.
        PeerLost: Edge(no_matter, T.INSTALLING),
        Prepare: Edge(late, T.INSTALLING),
        Copy: Edge(late, T.INSTALLING),
        Commit: Edge(late, T.INSTALLING),
    },
    T.ADOPTED: {
        Verdict: Edge(Target.confirmed_or_fenced, T.SETTLED, T.DROPPED),
        Gone: Edge(Target.ended_here, T.SETTLED),
        Expired: Edge(Target.ask, T.ADOPTED),
        Commit: Edge(Target.committed_again, T.ADOPTED),
        # A source cancels when it is asked about an attempt that it has forgotten, and it forgets those that
        # succeeded, too: from here on only the front end's word counts.
        Cancel: Edge(late, T.ADOPTED),
        PeerLost: Edge(no_matter, T.ADOPTED),
        Prepare: Edge(late, T.ADOPTED),
        Copy: Edge(late, T.ADOPTED),
    },
    T.SETTLED: {},
    T.DROPPED: {},
}
