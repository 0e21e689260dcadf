"""The text of ``plantops COMMAND --help``: options by topic, with the defaults of the data set that is named.

It reads the options' own source, and imports nothing but that: it has to be there at once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from plantops._cli import options as module
from plantops._cli.options import COMMANDS, OLD_NAMES, POSITIONAL, by_topic
from plantops._cli.parse import as_flag, defaults_of, given

WORDS = {int: "N", float: "X", str: "TEXT"}
ABOUT = (
    "The defaults are those of --data {data}{preset}; name another data set to see its own. --config FILE takes "
    "options from a JSON file, such as a run's config.json (flags win); --resume RUN goes on with an interrupted run."
)


def help_of(command: str, arguments: Sequence[str]) -> str:
    """The text; ``arguments``: what else was given, of which --data and --preset choose the defaults."""
    kind = COMMANDS[command]
    width = max(60, min(110, shutil.get_terminal_size((100, 24)).columns))
    runs = any(field.name == "out" for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    place = "" if runs else f" {POSITIONAL.upper()}"
    lines = [f"usage: plantops {command}{place} [OPTIONS]", "", *_wrapped(inspect.cleandoc(kind.__doc__ or ""), width)]
    defaults: dict[str, Any] = {}
    if runs:
        others = [argument for argument in arguments if argument not in ("-h", "--help")]
        defaults = defaults_of(kind, command, others)
        preset = given(others, "preset")
        defaults |= {"preset": preset} if preset else {}
        data = defaults["data"] = given(others, "data") or "digits"
        about = ABOUT.format(data=data, preset=f" --preset {preset}" if preset else "")
        lines += ["", *_wrapped(about, width)]
    for topic, fields in _topics(kind):
        lines += ["", topic]
        for field, text in fields:
            lines += _entry(field, text, get_type_hints(kind)[field.name], defaults, width)
    return "\n".join(lines) + "\n"


def _topics(kind: type[Any]) -> Iterator[tuple[str, list[tuple[dataclasses.Field[Any], str]]]]:
    """The command's own options, then those of each class that it is made of."""
    texts = _texts()
    for owner, fields in by_topic(kind):
        topic = "Options" if owner is kind else inspect.cleandoc(owner.__doc__ or owner.__name__)
        yield topic, [(field, texts[owner.__name__].get(field.name, "")) for field in fields]


def _texts() -> dict[str, dict[str, str]]:
    """What the source says under each field, by class."""
    texts: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        own = texts.setdefault(node.name, {})
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                own[field.target.id] = " ".join(str(getattr(text.value, "value", "")).split())
    return texts


def _entry(field: dataclasses.Field[Any], text: str, expected: Any, defaults: dict[str, Any], width: int) -> list[str]:
    flag = as_flag(field.name)
    if field.name == POSITIONAL:
        left, default = POSITIONAL.upper(), ""
    else:
        value = defaults.get(field.name, field.default)
        default = f" [{_shown(value)}]" if value not in (None, "", dataclasses.MISSING) else ""
        left = f"{flag}, --no-{flag[2:]}" if expected is bool else f"{flag} {_word(expected)}"
    old = [as_flag(name) for name, now in OLD_NAMES.items() if now == field.name]
    also = f" (Before: {', '.join(old)}.)" if old else ""
    head = f"  {left}"
    body = textwrap.wrap(f"{text}{default}{also}", width - 30, break_on_hyphens=False) or [""]
    if len(head) > 28:
        return [head, *(" " * 30 + line for line in body)]
    return [f"{head:<30}{body[0]}", *(" " * 30 + line for line in body[1:])]


def _word(expected: Any) -> str:
    """What stands for the value."""
    kinds = get_args(expected) if get_origin(expected) is not Literal and get_args(expected) else (expected,)
    kind = next(one for one in kinds if one is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind)) if len(get_args(kind)) <= 5 else "NAME"
    return WORDS[kind]


def _shown(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)
