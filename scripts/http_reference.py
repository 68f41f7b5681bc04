"""Writes src/llumnix/api/openapi.json and docs/use/http.md from `llumnix.api`. `--check` only compares."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from llumnix.api.bodies import RefusalAnswer
from llumnix.api.routes import ALWAYS, OPENAPI, PREFIX, ROUTES, Parameter, Route

TARGET = Path(__file__).parent.parent / "docs" / "use" / "http.md"

_SCHEMA = "#/components/schemas/"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
Json = dict[str, Any]

HEAD = """# The admin API over HTTP

What `llumnix status`, `migrate`, `drain` and the others are made of. Under the API key, if there is one
(`Authorization: Bearer KEY`), and else [not for web pages](security.md#web-pages-of-strangers); with `--admin-port` on
a port of its own. `GET /llumnix/v1/openapi.json` is this page for programs. Made from `src/llumnix/api/` by
`scripts/http_reference.py`.

What an instance, or a front end, would have told that does not answer in time is missing in a list. Whatever is refused
is refused in one sentence, in OpenAI's shape and ours: [RefusalAnswer](#refusalanswer). Beside what stands at a route:

| status | when |
|---|---|
"""


def document() -> Json:
    """As OpenAPI 3.1 has it."""
    structs = {struct for route in ROUTES for struct in (route.answer, route.body) if struct} | {RefusalAnswer}
    _, schemas = msgspec.json.schema_components(
        sorted(structs, key=lambda struct: struct.__name__), ref_template=_SCHEMA + "{name}"
    )
    paths: Json = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Llumnix admin API",
            "version": PREFIX.rpartition("/")[2],
            "summary": "Look at and steer a server of many instances.",
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: _explained(name, schema, structs) for name, schema in sorted(schemas.items())},
        },
    }


def _operation(route: Route) -> Json:
    name = re.sub(r"\W+", "_", route.path.replace("{id}", "one")).strip("_") or "index"
    operation: Json = {"summary": _sentence(route.text), "operationId": f"{route.method.lower()}_{name}"}
    parameters = [_parameter(parameter) for parameter in route.parameters]
    if "{id}" in route.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    refusals = (ALWAYS if route.guarded else {}) | route.refusals
    operation["responses"] = {
        str(route.status): {
            "description": HTTPStatus(route.status).phrase,
            "content": _content(route.answer, route.streams),
        },
        **{str(s): {"description": why, "content": _content(RefusalAnswer)} for s, why in sorted(refusals.items())},
    }
    if not route.guarded:
        operation["security"] = []
    return operation


def _parameter(parameter: Parameter) -> Json:
    schema: Json = {"type": _TYPES[parameter.kind]}
    if parameter.default is not None:
        schema["default"] = parameter.default
    return {"name": parameter.name, "in": "query", "description": parameter.text, "schema": schema}


def _content(struct: Any, streams: bool = False) -> Json:
    schema = {"type": "object"} if struct is None else {"$ref": _SCHEMA + struct.__name__}
    return {"text/event-stream" if streams else "application/json": {"schema": schema}}


def _explained(name: str, schema: Json, structs: set[Any]) -> Json:
    """A struct's schema with what the docstrings below its fields say."""
    struct = _all_structs(structs).get(name)
    if struct is None:
        return schema
    texts = _docstrings(struct)
    encoded = dict(zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True))
    fields = {
        field: {**facts, "description": texts[encoded[field]]} if encoded.get(field) in texts else facts
        for field, facts in schema["properties"].items()
    }
    return {**schema, "properties": fields}


def _all_structs(structs: set[Any]) -> dict[str, Any]:
    """With those inside of them, by name."""
    found: dict[str, Any] = {}
    rest: list[Any] = [msgspec.inspect.type_info(struct) for struct in structs]
    while rest:
        info = rest.pop()
        if isinstance(info, msgspec.inspect.StructType):
            found[info.cls.__name__] = info.cls
            rest += [field.type for field in info.fields]
        elif isinstance(info, msgspec.inspect.UnionType):
            rest += info.types
        elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
            rest.append(info.item_type)
    return found


def _docstrings(struct: Any) -> dict[str, str]:
    """What stands below the fields of a struct, those that it has from another one included."""
    texts: dict[str, str] = {}
    for kind in reversed(
        [kind for kind in struct.__mro__ if issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct]
    ):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


# the page


def reference() -> str:
    schemas = document()["components"]["schemas"]
    parts = [HEAD, *(f"| {status} | {_cell(why)} |\n" for status, why in ALWAYS.items()), "\n"]
    parts += [_section(route) for route in ROUTES]
    parts.append("## Bodies and rows\n\n")
    parts += [_body(name, schema) for name, schema in schemas.items()]
    return "".join(parts).rstrip() + "\n"


def _section(route: Route) -> str:
    answer = "the OpenAPI document" if route.answer is None else _link(route.answer.__name__)
    answer = f"server-sent events, each a {answer}" if route.streams else answer
    text = f"## {route.method} {PREFIX}{route.path}\n\n{_sentence(route.text)} Answers {route.status}, {answer}."
    text += f" The body is {_link(route.body.__name__)}.\n\n" if route.body is not None else "\n\n"
    if not route.guarded:
        text += (
            "Wants no key.\n\n"
            if route.path
            else "Wants no key; the same at `/`, and with `--page off` at `/llumnix/`.\n\n"
        )
    if route.parameters:
        rows = [f"| `{p.name}` | {_TYPES[p.kind]}{_default(p)} | {_cell(p.text)} |\n" for p in route.parameters]
        text += "| parameter | | |\n|---|---|---|\n" + "".join(rows) + "\n"
    if route.refusals:
        rows = [f"| {status} | {_cell(why)} |\n" for status, why in sorted(route.refusals.items())]
        text += "| status | when |\n|---|---|\n" + "".join(rows) + "\n"
    return text


def _body(name: str, schema: Json) -> str:
    text = f"### {name}\n\n" + (f"{schema['description']}\n\n" if "description" in schema else "")
    if "enum" in schema:
        return text + "One of " + ", ".join(f"`{word}`" for word in schema["enum"]) + ".\n\n"
    rows = [
        f"| `{field}` | {_type(facts)} | {_cell(facts.get('description', ''))} |\n"
        for field, facts in schema["properties"].items()
    ]
    return text + "| field | | |\n|---|---|---|\n" + "".join(rows) + "\n"


def _type(facts: Json) -> str:
    if "$ref" in facts:
        return _link(facts["$ref"].removeprefix(_SCHEMA))
    if "anyOf" in facts:
        return " or ".join(_type(each) for each in facts["anyOf"])
    if "enum" in facts:
        return ", ".join(f"`{json.dumps(value)}`" for value in facts["enum"])
    if facts.get("type") == "array":
        return f"list of {_type(facts['items'])}"
    return str(facts.get("type", ""))


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _default(parameter: Parameter) -> str:
    return "" if parameter.default is None else f", {json.dumps(parameter.default)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def main() -> int:
    made = {OPENAPI: json.dumps(document(), indent=1, ensure_ascii=False) + "\n", TARGET: reference()}
    if "--check" in sys.argv[1:]:
        old = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
        if old:
            print(f"{' and '.join(old)}: not what llumnix.api says; run scripts/http_reference.py")
        return 1 if old else 0
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
