"""A table of rows that are filled in one by one and then stand, in memory or in a file that several processes share.

Every row carries a seal: a checksum of its values and its number. A row without the right seal is not there: it was
never written, or is damaged, or somebody is writing it now. So the file needs no index, a process may be killed at any
moment, and a damaged row is computed again like one that is missing. Nothing in the file is ever run or unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

from plantops.train.files import TEMPORARY, RunError, explained, sync_folder
from plantops.train.seeds import generator

FORMAT = "plantops-rows-1"
HEADER = 4096
SEAL = 4
HALF_MAX = torch.finfo(torch.float16).max
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_AT_ONCE = 1 << 22  # values whose seals are looked at in one go


def row_bytes(columns: int, dtype: torch.dtype) -> int:
    """What one row takes."""
    return columns * dtype.itemsize + SEAL


class RowStore:
    """``rows`` rows of ``columns`` values, of which none is there at first.

    Args:
        path: the file; None: in memory, of which only the rows that are there take any. A file for the same
            ``identity`` is taken up as it is, with the dtype that it has; another one, or a damaged one, is replaced.
            It gets its full size at once, so a full disk is noticed here and not in the middle. Where it cannot be
            written at all, the rows lie in memory.
        identity: what the rows depend on.
        anew: begin with an empty file, whatever is there.

    Raises:
        RunError: there is not enough room on the disk.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        dtype: torch.dtype,
        path: Path | None = None,
        identity: str = "",
        *,
        anew: bool = False,
    ) -> None:
        self.rows, self.columns, self.dtype = rows, columns, dtype
        self.path, self.taken_up = path, False
        self._lock: int | None = None
        self._file: int | None = None
        slots = None if path is None else self._opened(path, identity, anew)
        if slots is None:
            self.path = None
            slots = torch.from_numpy(numpy.zeros(rows * self._words, dtype=numpy.int16))  # no memory yet
        self._slots = slots.view(rows, self._words)
        values = self._words - SEAL // 2
        self._weights = torch.randint(-(1 << 62), 1 << 62, (values + 1,), generator=generator(0, FORMAT)) * 2 + 1

    def __del__(self) -> None:
        for descriptor in (self._lock, self._file):
            if descriptor is not None:
                os.close(descriptor)

    @property
    def nbytes(self) -> int:
        """What all rows take."""
        return self.rows * row_bytes(self.columns, self.dtype)

    def missing(self, rows: Tensor) -> Tensor:
        """bool: which of ``rows`` (int64) are not there."""
        step = max(1, _AT_ONCE // self._words)
        parts = [self._is_missing(part, self._slots.index_select(0, part)) for part in rows.split(step)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def get(self, rows: Tensor) -> Tensor:
        """The values ``[len(rows), columns]`` in the store's dtype, of rows that are there."""
        values = self._slots.index_select(0, rows)[:, : -(SEAL // 2)]
        return values.clone(memory_format=torch.contiguous_format).view(self.dtype)

    def put(self, rows: Tensor, values: Tensor) -> None:
        """Write those of ``rows`` that are not there yet; the others stay as they are, whatever ``values`` are."""
        if self.dtype == torch.float16:
            values = values.clamp(-HALF_MAX, HALF_MAX)
        words = values.to(self.dtype).contiguous().view(torch.int16)
        slots = torch.cat([words, self._seals(rows, words).view(torch.int16)], 1)
        with self._locked():
            free = self.missing(rows)
            self._slots.index_copy_(0, rows[free], slots[free])

    def flush(self) -> None:
        """What was written is on the disk when this returns."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is lost is missing, and computed again
                os.fsync(self._file)

    @property
    def _words(self) -> int:
        return row_bytes(self.columns, self.dtype) // 2

    def _seals(self, rows: Tensor, words: Tensor) -> Tensor:
        """int32 ``[n, 1]``, never 0: 31 bits of a sum of the values and the number with random odd weights."""
        weights = self._weights
        total = (words.long() * weights[1:]).sum(1) + (rows + 1) * weights[0]
        return (((total * weights[0]) >> 33) & 0x7FFFFFFF).clamp_min_(1).int().unsqueeze(1)

    def _is_missing(self, rows: Tensor, slots: Tensor) -> Tensor:
        words, seals = slots[:, : -(SEAL // 2)], slots[:, -(SEAL // 2) :]
        seals = seals.clone(memory_format=torch.contiguous_format).view(torch.int32)
        return (seals != self._seals(rows, words)).squeeze(1)

    def _opened(self, path: Path, identity: str, anew: bool) -> Tensor | None:
        """The rows of the file, which is made where it has to be; None where it can be neither read nor written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                with explained(path):
                    raise
            return self._mapped(path, shared=False) if not anew and self._fits(path, identity) else None
        with self._locked():
            if anew or not self._fits(path, identity):
                self._make(path, identity)
            self._file = os.open(path, os.O_RDWR)
            return self._mapped(path, shared=True)

    def _mapped(self, path: Path, shared: bool) -> Tensor:
        """``shared`` False: what is written stays in this process."""
        count = HEADER // 2 + self.rows * self._words
        return torch.from_file(str(path), shared=shared, size=count, dtype=torch.int16)[HEADER // 2 :]

    def _fits(self, path: Path, identity: str) -> bool:
        """Whether the file holds these rows; then their dtype is the file's."""
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(HEADER))
            found, dtype = os.path.getsize(path), DTYPES[header.pop("dtype")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        size = HEADER + self.rows * row_bytes(self.columns, dtype)
        if found != size or header != self._header(identity):
            return False
        self.dtype, self.taken_up = dtype, True
        return True

    def _header(self, identity: str) -> dict[str, object]:
        return {"format": FORMAT, "identity": identity, "rows": self.rows, "columns": self.columns}

    def _make(self, path: Path, identity: str) -> None:
        """An empty table beside ``path``, then in its place."""
        size = HEADER + self.nbytes
        check_room(path.parent, size)
        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        header = json.dumps({**self._header(identity), "dtype": name}).encode().ljust(HEADER)
        temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
        with explained(path):
            try:
                with temporary.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
                    file.write(header)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
                sync_folder(path.parent)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes. The operating system gives the lock back when the process ends, however it ends."""
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            yield
            return
        if self._lock is None:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def check_room(folder: Path, size: int) -> None:
    """Raises RunError where the disk of ``folder``, which need not be there yet, has less than ``size`` bytes free."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < size:
        raise RunError(
            f"{folder}: {size:,} bytes are needed for the teacher's views, {free:,} are free. Free some space, use a "
            "folder on another disk (--teacher-cache), or keep fewer views of an image (--teacher-views)."
        )
