"""From an exception to one line on standard error and an exit status."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from plantops.errors import PlantopsError

MISTAKE, INTERRUPTED = 2, 130
TRACEBACK = "PLANTOPS_TRACEBACK"


class Mistake(PlantopsError):
    """Something the caller can put right. The text says what to do."""


@dataclass
class Outcome:
    """The exit status of a command."""

    status: int = 0


@contextmanager
def mistakes(options: Any = None, **called: str) -> Iterator[None]:
    """In this block a ValueError comes from what the caller gave, so it is the caller's to put right.

    The message calls an argument what the command line calls it: the field of ``options`` with its name, or the one
    that ``called`` says (``lr="teacher_lr"``).
    """
    try:
        yield
    except ValueError as error:
        names = {field.name: field.name for field in dataclasses.fields(options)} if options is not None else {}
        raise Mistake(_in_flags(str(error), {**names, **called})) from error


def _in_flags(text: str, names: Mapping[str, str]) -> str:
    """``lr must be above 0`` with the flag in the place of the argument; so, too, ``init='copy' starts``."""
    found = re.match(r"(\w+)(?:='([^']*)'|\[[^]]*\])?(?= must| cannot| starts|:)", text)
    if found is None or found[1] not in names:
        return text
    value = "" if found[2] is None else f" {found[2]}"
    return f"--{names[found[1]].replace('_', '-')}{value}{text[found.end() :]}"


@contextmanager
def reported(program: str, arguments: Sequence[str] = ()) -> Iterator[Outcome]:
    """Turns mistakes into a message and status 2. PLANTOPS_TRACEBACK=1 shows the traceback instead.

    ``arguments``: of the call, whose spelling the message follows.
    """
    outcome = Outcome()
    if os.environ.get(TRACEBACK):
        yield outcome
        return
    try:
        with _plain_warnings():
            yield outcome
    except BrokenPipeError:  # the reader of the output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.status = 1
    except KeyboardInterrupt:
        print(f"{program}: stopped.", file=sys.stderr)
        outcome.status = INTERRUPTED
    except Exception as error:
        text = explanation(error)
        if text is None:
            raise
        from plantops._cli.parse import respelled

        print(f"{program}: {respelled(' '.join(text.split()), arguments)}", file=sys.stderr)
        outcome.status = MISTAKE


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning is one line, ``warning: ...``, without the place in the code that gives it."""
    before = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        ours = category is UserWarning
        return f"warning: {message}\n" if ours else before(message, category, *place, **more)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def explanation(error: Exception) -> str | None:
    """The message for an error that is not the program's own; None for one that is."""
    if isinstance(error, PlantopsError):
        return str(error)
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return "the device has not enough memory: use a smaller --batch-size, or --device cpu."
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory: use fewer or smaller images (--train-fraction, --image-size)."
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. Check the path, the disk and the permissions."
    return None
