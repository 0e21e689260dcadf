"""Where a trunk's values for a batch come from: looked up where they are a function of the image, else computed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from plantops.planting.sweep.trunk import Trunk, Values
from plantops.train.batches import Batch, version_batches
from plantops.train.data import ImageData
from plantops.train.loop import EVAL_BATCH

Features = Callable[[Batch], Values]


class FeatureStore:
    """The values that a group of candidates starts from, for each part of the data.

    Args:
        folder: for tables that do not fit in memory; None: these values are computed for every batch.
        budget: bytes of memory for tables.
    """

    def __init__(self, trunk: Trunk, folder: Path | None, budget: int) -> None:
        self._trunk, self._folder, self._budget = trunk, folder, budget
        self._tables: list[FeatureTable] = []
        if folder is not None and folder.exists():
            self._stale = set(folder.iterdir())
        else:
            self._stale = set()

    def of(self, data: ImageData, variants: int | None, channels_last: bool) -> Features:
        """The values for batches of ``data``; ``variants``: of an image, None where there are too many to keep."""
        trunk = self._trunk
        if variants is None or len(data) == 0:
            return lambda batch: trunk(batch.images)
        size = trunk.bytes_per_sample(_images(data, channels_last)) * len(data) * variants
        # A GPU computes the values again in less time than they take from a disk.
        folder = self._folder if size > self._budget and data.device.type == "cpu" else None
        if size > self._budget and (folder is None or not _has_room(folder, 2 * size)):
            return lambda batch: trunk(batch.images)
        if folder is None:
            self._budget -= size
        else:
            folder.mkdir(exist_ok=True)
        table = FeatureTable(trunk, data, variants, channels_last, folder)
        self._tables.append(table)
        return table

    def close(self) -> None:
        """Give back memory and disk, also of tables that a killed process left behind."""
        for table in self._tables:
            table.close()
        for path in self._stale:
            path.unlink(missing_ok=True)
        if self._folder is not None and self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _has_room(folder: Path, size: int) -> bool:
    return shutil.disk_usage(folder.parent).free >= size


class FeatureTable:
    """A trunk's values for every version of every image of a part: rows that are looked up.

    Args:
        variants: versions of an image, see ``Augment.variants``.
        folder: where the rows lie, memory-mapped; default: in memory. A file that is there for the same trunk, data
            and versions is taken up; it is complete, since it gets its name when it is.
    """

    def __init__(
        self, trunk: Trunk, data: ImageData, variants: int, channels_last: bool, folder: Path | None = None
    ) -> None:
        self._samples = len(data)
        self._input = trunk.forward.input
        self._tables: Values = {}
        self._files: list[Path] = []
        example = trunk(_images(data, channels_last))
        rows = len(data) * variants
        identity = "" if folder is None else _identity(trunk, data, variants, channels_last)
        missing = []
        for place, name in enumerate(trunk.names):
            shape = _row_shape(example[name])
            if folder is None:
                self._tables[name] = example[name].new_empty((rows, *shape))
                missing.append(name)
                continue
            path = folder / f"features-{identity[:16]}-{place}.bin"
            self._files.append(path)
            if not path.exists():
                missing.append(name)
            self._tables[name] = _mapped(path, (rows, *shape), example[name].dtype)
        self._layouts = {name: _is_channels_last(example[name]) for name in trunk.names}
        if missing:
            self._fill(trunk, version_batches(data, EVAL_BATCH, variants, channels_last))
            for path in self._files:
                _partial(path).replace(path)

    def __call__(self, batch: Batch) -> Values:
        """The values for the images of ``batch``."""
        rows = batch.rows(self._samples)
        found = {self._input: batch.images}
        for name, table in self._tables.items():
            found[name] = self._seen(name, table.index_select(0, rows))
        return found

    @property
    def bytes(self) -> int:
        return sum(table.nbytes for table in self._tables.values())

    def close(self) -> None:
        """Give back memory and disk."""
        self._tables.clear()
        for path in self._files:
            path.unlink(missing_ok=True)
            _partial(path).unlink(missing_ok=True)

    def _fill(self, trunk: Trunk, batches: Iterator[Batch]) -> None:
        begin = 0
        for batch in batches:
            values = trunk(batch.images)
            for name, table in self._tables.items():
                rows = values[name].permute(0, 2, 3, 1) if self._layouts[name] else values[name]
                table[begin : begin + len(rows)] = rows
            begin += len(batch.images)

    def _seen(self, name: str, rows: Tensor) -> Tensor:
        return rows.permute(0, 3, 1, 2) if self._layouts[name] else rows


def _images(data: ImageData, channels_last: bool) -> Tensor:
    images = data.normalise(data.images[:2])  # some norms refuse a single one
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def _is_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def _row_shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.permute(0, 2, 3, 1).shape[1:]) if _is_channels_last(value) else tuple(value.shape[1:])


def _identity(trunk: Trunk, data: ImageData, variants: int, channels_last: bool) -> str:
    text = f"{trunk.hash()} {data.fingerprint()} {data.mean.tolist()} {data.std.tolist()} {variants} {channels_last}"
    return hashlib.sha256(text.encode()).hexdigest()


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A table in the file ``path`` where it is complete, else in its partial twin."""
    count = torch.Size(shape).numel()
    file = path if path.exists() else _partial(path)
    if file is not path:
        with file.open("wb") as new:
            os.posix_fallocate(
                new.fileno(), 0, count * dtype.itemsize
            )  # a full disk is an error here, not a crash later
    return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)
