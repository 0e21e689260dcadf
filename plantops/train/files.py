"""Files that are either whole or absent, and errors that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plantops.errors import PlantopsError

_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or use a folder on another disk.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or use a folder on another disk.",
    errno.EACCES: "Permission denied: use a folder that you may write to.",
    errno.EPERM: "Not permitted: use a folder that you may write to.",
    errno.EROFS: "The file system is read-only: use a folder that you may write to.",
    errno.ENOTDIR: "Part of the path is a file: use another folder.",
    errno.ENAMETOOLONG: "The name is too long: use a shorter one.",
}

TEMPORARY = ".tmp-"
"""In the names of files that are being written."""


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
    """``atomic_write_bytes`` of the UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


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
