"""Files that are either whole or absent, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from plantops.errors import PlantopsError

_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or use a folder on another disk.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or use a folder on another disk.",
    errno.EACCES: "Permission denied: use a folder that you may write to.",
    errno.EPERM: "Not permitted: use a folder that you may write to.",
    errno.EROFS: "The file system is read-only: use a folder that you may write to.",
    errno.ENOTDIR: "Part of the path is a file: use another folder.",
    errno.ENAMETOOLONG: "The name is too long: use a shorter one.",
    errno.ELOOP: "Symbolic links are not followed here: put a file in its place.",
}

TEMPORARY = ".tmp-"
"""In the names of files that are being written."""
DEEPEST = 100
"""Levels of lists and objects in a JSON file; what plantops writes has fewer than ten."""


class RunError(PlantopsError, RuntimeError):
    """A run folder that cannot be written, read or used. The message says what to do."""


class MissingExtra(RunError, ImportError):
    """An optional package that is needed now and not installed. The message is the pip command."""


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError about ``path`` into a RunError with a remedy."""
    try:
        yield
    except OSError as error:
        number = error.errno if error.errno is not None else 0
        remedy = _REMEDIES.get(number, "Check the disk and the path.")
        raise RunError(f"{path}: {error.strerror or error}. {remedy}") from error


def open_regular(path: str | os.PathLike[str], flags: int = 0) -> BinaryIO:
    """Open a file to read it, without waiting for it: a named pipe without a writer would never answer.

    Raises:
        RunError: not there, not readable, or no regular file (a folder, a named pipe, a device).
    """
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | flags)
        try:
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind):
                raise RunError(f"{path}: not a regular file but {_kind(kind)}. Put a file in its place.")
            return open(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((text for test, text in kinds.items() if test(mode)), "a device")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; raises RunError as ``open_regular`` does."""
    with explained(path), open_regular(path) as file:
        return file.read()


def parse_json(text: bytes | str, where: str | os.PathLike[str]) -> Any:
    """The value of a JSON text that anyone may have written; ``where`` is for the message.

    Raises:
        RunError: it is not JSON, or nested deeper than anything that plantops writes.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
        deep = True
    except ValueError as error:
        raise RunError(f"{where}: damaged, it is not JSON ({error}).") from error
    else:
        deep = _deeper(value, DEEPEST)
    if deep:
        raise RunError(f"{where}: damaged, it is nested more than {DEEPEST} levels deep.")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than ``levels`` deep; level by level, so no depth is too much."""
    layer = [value]
    for _ in range(levels):
        layer = [
            entry
            for outer in layer
            if isinstance(outer, (dict, list))
            for entry in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return any(isinstance(entry, (dict, list)) for entry in layer)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at every moment, a power cut included, it holds its former content or all of ``data``.

    Raises:
        RunError: it cannot be written (disk full, permission); the former file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    with explained(path):
        try:
            write_synced(temporary, data)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """``atomic_write_bytes`` of the UTF-8 text; half a surrogate pair, which UTF-8 has not, becomes ``\\udc80``."""
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync: the bytes are on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames and new names inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
