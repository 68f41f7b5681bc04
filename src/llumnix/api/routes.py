"""Every route of the admin API, once: what it takes, what it answers, how it refuses."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from llumnix.api import bodies, frames, what_if

PREFIX = "/llumnix/v1"
OPENAPI = Path(__file__).parent / "openapi.json"
"""The OpenAPI document, as scripts/http_reference.py makes it."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """Behind the question mark."""

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    text: str
    default: bool | int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    """Behind `PREFIX`."""
    text: str
    """What it is for, as the index says it."""
    answer: Any
    """A struct of bodies.py; None: the OpenAPI document."""
    _: KW_ONLY
    status: int = 200
    body: Any = None
    parameters: tuple[Parameter, ...] = ()
    refusals: dict[int, str] = field(default_factory=dict)
    """Beside `ALWAYS`: HTTP status, and when."""
    streams: bool = False
    """Whether it goes on answering, with server-sent events that have an `answer` each."""
    of_page: bool = False
    """Whether it is there together with the live page only."""
    guarded: bool = True
    """Whether it wants the key, where there is one, and refuses web pages of strangers, where there is none."""


ALWAYS = {
    401: "The API key is missing or wrong, and the server has one.",
    403: "The server has no API key, and the request comes from a web page of somebody else, or by a name that is not "
    "known here.",
}
_SILENT = {503: "The scheduler does not answer; it is being restarted. `Retry-After` says when to come back."}
_BODY = "The body is not as it must be."
_LARGE = "The body has more than 1 MiB."
_PARAMETER = "A parameter is unknown or wrong."
_VIEWERS = "16 viewers watch already, or the server is shutting down."
_NO_RECORD = "The server was started without `--record`."
_NO_CLASSES = "The server was started without `--classes`."
_INSTANCE = {
    404: "There is no such instance.",
    409: "It is starting, gone, or cannot do that; the reason says which.",
}

ROUTES = (
    Route("GET", "", "which routes there are", bodies.IndexAnswer, guarded=False),
    Route("GET", "/alive", "200 while a front end can answer; on every port", bodies.AliveAnswer, guarded=False),
    Route("GET", "/instances", "every instance with its load", bodies.InstancesAnswer),
    Route(
        "POST",
        "/instances",
        "starts more",
        bodies.StartedAnswer,
        body=bodies.StartBody,
        status=202,
        refusals={
            400: _BODY,
            404: "There is no instance to be replaced.",
            409: "The scheduler will not; the reason says why.",
            413: _LARGE,
            **_SILENT,
        },
    ),
    Route(
        "POST",
        "/instances/{id}/drain",
        "empties one, then stops it",
        bodies.StateAnswer,
        parameters=(
            Parameter("keep", bool, "Leave it running, empty, until it is undrained.", False),
            Parameter("force", bool, "Also if no other instance takes requests.", False),
            Parameter(
                "timeout_s", float, "Seconds after which what is left is replayed elsewhere (`--drain-timeout-s`)."
            ),
        ),
        status=202,
        refusals={400: _PARAMETER, **_INSTANCE, **_SILENT},
    ),
    Route(
        "POST",
        "/instances/{id}/undrain",
        "lets it take requests again",
        bodies.StateAnswer,
        status=202,
        refusals={**_INSTANCE, **_SILENT},
    ),
    Route(
        "POST",
        "/instances/{id}/role",
        "prefers it for prompts, tokens, or both",
        bodies.RoleAnswer,
        body=bodies.RoleBody,
        refusals={400: _BODY, **_INSTANCE, 413: _LARGE, **_SILENT},
    ),
    Route("GET", "/requests", "every request, and where it is", bodies.RequestsAnswer),
    Route(
        "GET", "/requests/{id}", "one of them", bodies.RequestsAnswer, refusals={404: "No such request runs or waits."}
    ),
    Route(
        "GET",
        "/requests/{id}/story",
        "what happened to one of them, or to one that has ended, and where its time went",
        bodies.StoryAnswer,
        refusals={
            400: "What is given is the beginning of several ids; six letters of one, or more, are enough.",
            404: "No such request runs, waits, or is among the last that ended.",
        },
    ),
    Route(
        "GET",
        "/journal",
        "what happened, and why",
        bodies.JournalAnswer,
        parameters=(
            Parameter(
                "after",
                str,
                "A cursor: what happened since then, in the processes that it names. Else: what happened last.",
            ),
            Parameter("limit", int, "At most so many entries, from 1 to 1,000.", 100),
            Parameter("kind", str, "Only of these kinds: `moved,stayed`."),
            Parameter("instance", str, "Only about this instance, also as the target of a move."),
        ),
        refusals={400: _PARAMETER, 404: "There is no such instance, and nothing is known of one."},
    ),
    Route("GET", "/why-not", "why nothing moves, and why no instance is started", bodies.WhyNotAnswer),
    Route(
        "GET",
        "/migrations",
        "the last moves, with their reasons",
        bodies.MigrationsAnswer,
        parameters=(Parameter("limit", int, "At most so many, from 1 to 1,000,000.", 100),),
        refusals={400: _PARAMETER},
    ),
    Route(
        "POST",
        "/migrations",
        "moves a request",
        bodies.MovedAnswer,
        body=bodies.MigrateBody,
        refusals={
            400: _BODY,
            404: "No such request runs or waits, or there is no such instance.",
            409: "It is there already, is moving or cannot move, or the instance takes none; the reason says which.",
            413: _LARGE,
            504: "The move did not end in time. It may go on.",
        },
    ),
    Route(
        "GET",
        "/classes",
        "what becomes of the requests of each class and tenant",
        bodies.ClassesAnswer,
        refusals={404: _NO_CLASSES},
    ),
    Route(
        "POST",
        "/classes/reload",
        "has the file of `--classes` read again",
        bodies.ReloadedAnswer,
        refusals={400: "The file is not as it must be; all stays as it was.", 404: _NO_CLASSES},
    ),
    Route(
        "POST",
        "/record",
        "begins to record a run, or ends that",
        bodies.RecordAnswer,
        body=bodies.RecordBody,
        refusals={400: _BODY, 404: _NO_RECORD, 413: _LARGE},
    ),
    Route(
        "GET",
        "/whatif",
        "how far it is, or what would have been otherwise",
        what_if.WhatIfAnswer,
        refusals={404: _NO_RECORD},
    ),
    Route(
        "POST",
        "/whatif",
        "has what was recorded so far simulated, as it was and otherwise",
        what_if.WhatIfAnswer,
        body=what_if.WhatIfBody,
        status=202,
        refusals={
            400: "The body is not as it must be, or an alternative makes no sense.",
            404: _NO_RECORD,
            409: "Another one is under way, or nothing has been written down yet.",
            413: _LARGE,
            503: "Its process could not begin, or not within 30 s.",
        },
    ),
    Route(
        "DELETE",
        "/whatif",
        "cancels the one under way, if there is one",
        what_if.WhatIfAnswer,
        refusals={404: _NO_RECORD},
    ),
    Route("GET", "/drains", "how drains go and went", bodies.DrainsAnswer, refusals=_SILENT),
    Route("GET", "/scaling", "size of the cluster", bodies.ScalingRow, refusals=_SILENT),
    Route(
        "GET",
        "/watch",
        "the cluster, and what changes of it, twice a second",
        frames.ClusterFrame,
        streams=True,
        of_page=True,
        refusals={503: _VIEWERS},
    ),
    Route(
        "GET",
        "/watch/requests",
        "the longest requests, and what changes of them, once a second",
        frames.RequestsFrame,
        streams=True,
        of_page=True,
        refusals={503: _VIEWERS},
    ),
    Route(
        "GET",
        "/history",
        "the last hour of the cluster, or of an instance",
        frames.HistoryAnswer,
        parameters=(Parameter("instance", str, "Whose (default: of all together)."),),
        of_page=True,
        refusals={400: _PARAMETER, 404: "There is no such instance that takes requests."},
    ),
    Route("GET", "/openapi.json", "these routes, for programs", None),
)
