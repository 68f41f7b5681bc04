"""What is named and is not there: each command and each route that takes a name says so."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

from frame.page_server import PageServer, page_server
from frame.pretend import PretendCluster

from llumnix.api.routes import PREFIX, ROUTES, Route
from llumnix.cli import COMMANDS, main
from llumnix.commands import SERVER_COMMANDS

REQUEST, INSTANCE = "cmpl-nobody", "i77"
OF_ARGUMENTS = {"REQUEST": REQUEST, "INSTANCE": INSTANCE, "TARGET": INSTANCE}
"""Names that are not there, by the metavar of an argument."""
OF_FIELDS = {"request_id": REQUEST, "target": INSTANCE, "replaces": INSTANCE, "instance": INSTANCE}
"""By the name of a parameter or of a field of a body."""
OTHER_FIELDS = {"count": 1, "role": "decode"}
OTHER_ARGUMENTS = {"role": "decode"}


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server(PretendCluster(2), steps=False) as running:
        running.cluster.step(arrivals_per_instance=10.0)
        yield running


def names_of(command: str) -> list[argparse.Action]:
    """Arguments of a command that name something."""
    return [action for action in COMMANDS[command].parser()._actions if action.metavar in OF_ARGUMENTS]


def line(command: str, wrong: argparse.Action, name: str, right: str) -> list[str]:
    """`wrong` has that name; what else must be said names what is there."""
    words = [command]
    for action in COMMANDS[command].parser()._actions:
        if action.dest == wrong.dest:
            words += [*action.option_strings[:1], name]
        elif not action.option_strings and action.required:
            words.append(OTHER_ARGUMENTS.get(action.dest, right))
    return words


NAMING = [(command, action) for command in SERVER_COMMANDS for action in names_of(command)]


def test_there_are_commands_that_take_names() -> None:
    assert {command for command, _ in NAMING} == {"requests", "explain", "migrate", "drain", "undrain", "role", "start"}


@pytest.mark.parametrize(("command", "action"), NAMING, ids=[f"{command}-{action.dest}" for command, action in NAMING])
def test_command_says_that_there_is_no_such_thing(
    server: PageServer, capsys: pytest.CaptureFixture[str], command: str, action: argparse.Action
) -> None:
    there = next(request.id for one in server.cluster.all.values() for request in one.running)
    name = OF_ARGUMENTS[str(action.metavar)]
    assert main([*line(command, action, name, there), "--url", server.url]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"llumnix: There is no {'request' if name == REQUEST else 'instance'} {name!r}")


@pytest.mark.parametrize(("command", "action"), NAMING, ids=[f"{command}-{action.dest}" for command, action in NAMING])
def test_empty_name_is_none(capsys: pytest.CaptureFixture[str], command: str, action: argparse.Action) -> None:
    """As of a variable that is not set, in a script."""
    assert main([*line(command, action, "", "there"), "--url", "http://127.0.0.1:1"]) == 2
    assert "it is empty, and no id" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "action"), NAMING, ids=[f"{command}-{action.dest}" for command, action in NAMING])
def test_name_that_is_no_text_is_none(
    capsys: pytest.CaptureFixture[str], command: str, action: argparse.Action
) -> None:
    """Nothing can send it, and nobody can have been given it."""
    assert main([*line(command, action, os.fsdecode(b"\xff"), "there"), "--url", "http://127.0.0.1:1"]) == 2
    assert "it is not UTF-8, and no id" in capsys.readouterr().err


def fields_of(route: Route) -> list[str]:
    parameters = [parameter.name for parameter in route.parameters]
    return [*parameters, *(() if route.body is None else route.body.__struct_fields__)]


def wrong_names(route: Route) -> list[str]:
    return [*re.findall(r"{\w+}", route.path), *(field for field in fields_of(route) if field in OF_FIELDS)]


NAMED = [(route, field) for route in ROUTES for field in wrong_names(route)]


@pytest.mark.parametrize(("route", "field"), NAMED, ids=[f"{r.method} {r.path} {field}" for r, field in NAMED])
def test_route_says_that_there_is_no_such_thing(server: PageServer, route: Route, field: str) -> None:
    there = next(request.id for one in server.cluster.all.values() for request in one.running)
    of_request = "/requests/" in route.path or field == "request_id"
    name = REQUEST if of_request else INSTANCE
    options: dict[str, Any] = {}
    if route.body is not None:
        right = {"request_id": there, **OTHER_FIELDS}
        body = {each: right[each] for each in fields_of(route) if each in right}
        options["json"] = body if field == "{id}" else body | {field: name}
    elif field != "{id}":
        options["params"] = {field: name}
    answer = httpx.request(route.method, server.url + PREFIX + route.path.replace("{id}", name), **options)
    assert answer.status_code == 404, answer.text
    assert answer.json()["reason"].startswith(f"There is no {'request' if of_request else 'instance'} {name!r}")
    assert 404 in route.refusals


def test_instance_of_which_nothing_has_happened_is_no_unknown_one(server: PageServer) -> None:
    answer = httpx.get(f"{server.url}{PREFIX}/journal", params={"instance": "i0", "kind": "scale"})
    assert (answer.status_code, answer.json()["entries"]) == (200, [])
