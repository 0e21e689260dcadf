"""What the report believes of a record: the fields that it reads are there, and of the kind that it expects."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from plantops.train.files import RunError

MOST = 1 << 53
LONGEST = 200
Test = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _positive(value: Any) -> bool:
    return _whole(value) and value > 0


def _number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and -1e30 < value < 1e30)


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_whole, value.values()))


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


NEEDED: dict[str, dict[str, Test]] = {
    "part": {"part": _text, "samples": _whole},
    "epoch": {"epoch": _whole},
    "candidate": {"round": _whole, "site": _text},
    "round": {"round": _whole, "parameters": _positive},
    "network": {"name": _text, "role": _text, "parameters": _positive},
    "stop": {"reason": _text},
    "pruned": {"round": _whole, "removed": _counts, "parameters": _positive, "sample_loss": _pair, "val_loss": _pair},
    "move": {"first": _whole, "last": _whole, "kept": _flag},
    "discarded": {"name": _text, "val_loss": _pair},
    "teacher": {},
}
"""By kind, what every record of it has. Records of other kinds are not read by the report."""
KNOWN: dict[str, Test] = {
    "macs": _or_none(_whole),
    "channels": _or_none(_whole),
    "epochs": _or_none(_whole),
    "grown": _or_none(_text),
    "phase": _or_none(_text),
    "name": _or_none(_text),
    "loss": _or_none(_text),
    "widths": _or_none(_counts),
    "lr": _number,
    "gain": _number,
    "gain_error": _number,
}
"""By name, what a field may be that a record need not have; losses, accuracies and seconds are numbers."""


def checked(records: Sequence[dict[str, Any]], where: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records, texts made printable.

    Raises:
        RunError: names the line and the field.
    """
    return [_checked(record, f"{where}, line {line}") for line, record in enumerate(records, 1)]


def _checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    needed = NEEDED.get(record["kind"])
    if needed is None:
        return record
    for name in needed:
        if name not in record:
            raise RunError(f"{where}: the record of a {record['kind']} has no {name}.")
    for name, value in record.items():
        test = needed.get(name) or KNOWN.get(name)
        if test is None and name.endswith(("_loss", "_accuracy", "_seconds")):
            test = _number
        if test is not None and not test(value):
            raise RunError(f"{where}: the record of a {record['kind']} has an odd {name}, {repr(value)[:80]}.")
    return {name: printable(value) for name, value in record.items()}


def printable(value: Any) -> Any:
    """The value with texts that can be drawn: of bounded length, and no signs that are none."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in value[:LONGEST])
    if isinstance(value, dict):
        return {printable(name): printable(entry) for name, entry in value.items()}
    return [printable(entry) for entry in value] if isinstance(value, list) else value
