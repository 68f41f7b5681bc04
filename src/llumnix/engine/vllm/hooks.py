"""Every place of vLLM that the adapter relies on, with the shape that it relies on.

`problems()` compares them with the vLLM that is installed, so that another version fails with a list and not
with a mystery. Run at every start (a few milliseconds) and by a test.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from typing import Any

from llumnix.engine.vllm.front_end.hooks import FRONT_END_HOOKS, client_fields
from llumnix.engine.vllm.hook import Hook, VllmRelease, release_of
from llumnix.engine.vllm.instance.hooks import INSTANCE_HOOKS
from llumnix.vllm_words import SUPPORTED_WORDS, supports

HOOKS = (*INSTANCE_HOOKS, *FRONT_END_HOOKS)


def problems() -> list[str]:
    """What is not as relied on: one sentence each, empty if all is well."""
    import vllm

    if not supports(vllm.__version__):
        return [f"its version is {vllm.__version__}, and the adapter is for {SUPPORTED_WORDS}"]
    release = release_of(vllm.__version__)
    found = [problem for hook in HOOKS if hook.concerns(release) and (problem := _problem(hook))]
    return found + _client_field_problems(release)


def _problem(hook: Hook) -> str:
    try:
        target = _find(hook.where)
        parameters = list(inspect.signature(target).parameters.values())
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        return f"{hook.where} is missing ({error}); needed for: {hook.used_for}"
    wanted = hook.parameters.split()
    names = [parameter.name for parameter in parameters]
    rest = parameters[len(wanted) :]
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in rest if p.default is inspect.Parameter.empty and p.kind not in fixed]
    required = [name for name in required if name not in hook.by_name]
    if hook.parameters and (names[: len(wanted)] != wanted or required):
        return f"{hook.where} takes ({', '.join(names)}), not ({', '.join(wanted)}); needed for: {hook.used_for}"
    return ""


def _find(where: str) -> Any:
    module, _, name = where.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _client_field_problems(release: VllmRelease) -> list[str]:
    """Compares what the constructors of vLLM's client assign to `self` with what we assign."""
    from vllm.v1.engine.core_client import AsyncMPClient, MPClient

    theirs: set[str] = set()
    for owner in (MPClient, AsyncMPClient):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner.__init__)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                theirs.add(node.attr)
    ours = client_fields(release)
    if theirs == ours:
        return []
    new, gone = sorted(theirs - ours), sorted(ours - theirs)
    return [f"the fields of its engine client changed: new {new}, gone {gone}"]


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
