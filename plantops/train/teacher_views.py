"""What a teacher says about every view of every image: computed when it is first asked for, and then kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from plantops.errors import ArgumentError
from plantops.train.batches import Augment, Batch, batch_sizes, epoch_batches, epoch_draws, view_batch
from plantops.train.data import ImageData
from plantops.train.row_store import RowStore, row_bytes
from plantops.train.teachers import Asked, Teacher

MEMORY = 2 << 30
"""Bytes of a store, unless something else is asked for: all views of CIFAR-10 are 175 MB, of CIFAR-100 1.5 GB."""

HALF_UP_TO = 64.0
"""The largest logit of the first images for which rows are kept in float16.

Measured with a trained teacher (CIFAR-10, logits to 41): rounding them to float16 moves the gradient of the KL
divergence by 2e-4 (a new student) to 8e-4 (one that is near, T = 4) of its length and the divergence by at most 2e-5 of
itself; bfloat16 moves the gradient eight times as far."""

_PROBE = 4096
_STALE = 0.05
"""Stored rows and the teacher of now may differ by so much of the largest logit: machines and dtypes differ by less."""


class TeacherViews:
    """The teacher's logits ``[B, K]`` for batches of ``data`` under ``augment``, each view computed once.

    A row belongs to (image, window, flip), so it serves every epoch, every seed, every batch size, every order, and, in
    a folder, every run and process under the same teacher. **The row that is kept counts**: whoever asks later gets its
    bits. Rows are computed in batches of a fixed size (the last one filled up), so that a row does not depend on what
    else was missing: for a teacher whose images do not see each other a run that is repeated from nothing, on one
    machine with as many threads, gives the same bits, too. They are kept in float16, in float32 where the teacher's
    logits are larger than 64, in float64 where they come in it.

    In a folder rows lie in one file, memory-mapped, at its full size from the beginning, with a checksum each: a
    process may be killed while it writes, two may fill it at once, and what is damaged is computed again. The file is
    known by the teacher's weights and structure, the images, their normalisation and the views; a teacher whose code
    has changed is noticed by what it says about some of the images.

    Args:
        teacher: any callable from a batch of normalised images to logits ``[B, K]`` (or to an output that has them as
            ``logits``). A module is put in ``eval()``; it is never differentiated.
        data: the part that trains.
        augment: which views there are; ``Augment.views`` keeps them few.
        seed: of the views, where ``augment`` has fewer than all.
        folder: where the rows lie between runs; None: in memory. Where it cannot be written, in memory as well.
        memory: the most bytes that the rows may take.
        channels_last: memory format of the images that the teacher gets.
        identity: what a teacher that is no module computes, in a text of your own; without it a folder is not used.

    Raises:
        ValueError: the rows take more than ``memory``.
        RunError: there is not enough room on the disk.

    >>> import torch
    >>> from plantops.train import Augment, ImageData, TeacherViews
    >>> pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    >>> data = ImageData(pixels, torch.arange(12) % 4, torch.full((3,), 127.0), torch.full((3,), 70.0), num_classes=4)
    >>> teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    >>> views = TeacherViews(teacher, data, Augment(crop=1, flip=True))
    >>> for epoch in range(2):
    ...     for batch, logits in views.batches(5, keys=("mine", epoch)):
    ...         pass  # a step of your own on batch.images, batch.labels and logits
    >>> logits.shape, views.rows, 12 <= views.known <= 24
    (torch.Size([2, 4]), 216, True)
    """

    def __init__(
        self,
        teacher: Teacher,
        data: ImageData,
        augment: Augment,
        *,
        seed: int = 0,
        folder: Path | str | None = None,
        memory: int = MEMORY,
        channels_last: bool = False,
        identity: str | None = None,
    ) -> None:
        if len(data) == 0:
            raise ArgumentError("data must hold at least one image, got 0")
        self.data, self.augment, self.seed = data, augment, seed
        self.rows = len(data) * augment.count
        self._ask = Asked(teacher, channels_last)
        # Launches of a GPU are worth more images; images of a CPU stay in its caches.
        self._size = 128 if data.device.type == "cpu" else 512
        first = self._computed(torch.arange(min(self._size, len(data))))
        self._dtype = dtype = first.dtype
        if dtype != torch.float64:
            dtype = torch.float16 if float(first.abs().max()) <= HALF_UP_TO else torch.float32
        needed = self.rows * row_bytes(first.shape[1], dtype)
        if needed > memory:
            raise ArgumentError(
                f"memory must be at least {needed} for {self.rows} views ({augment.count} of each image), got {memory}"
            )
        path, text, known = None, "", identity or self._ask.identity
        if folder is not None and known is not None:
            text = _identity(known, data, augment, seed)
            path = Path(folder) / f"views-{text[:32]}.bin"
        self._store = RowStore(self.rows, first.shape[1], dtype, path, text)
        if not self._agrees():
            self._store = RowStore(self.rows, first.shape[1], dtype, path, text, anew=True)

    @property
    def known(self) -> int:
        """How many of the ``rows`` views are there."""
        parts = range(0, self.rows, 1 << 20)
        return sum(int((~self._store.missing(_span(begin, self.rows, 1 << 20))).sum()) for begin in parts)

    @property
    def nbytes(self) -> int:
        """What all rows take."""
        return self._store.nbytes

    @property
    def path(self) -> Path | None:
        """The file; None in memory."""
        return self._store.path

    def batches(
        self, batch_size: int, *, keys: tuple[int | str, ...], seed: int | None = None, channels_last: bool = False
    ) -> Iterator[tuple[Batch, Tensor]]:
        """``epoch_batches(data, batch_size, seed=seed, keys=keys, augment=augment)`` with the logits ``[B, K]``.

        Views of this epoch that nobody has asked for are computed before the first batch. ``seed``: default, that of
        the views; ``channels_last``: of the batch.
        """
        batch_sizes(0, batch_size)  # raises
        seed = self._checked(seed)
        self.complete(keys=keys, seed=seed)
        for batch in epoch_batches(
            self.data, batch_size, seed=seed, keys=keys, augment=self.augment, channels_last=channels_last
        ):
            yield batch, self._kept(batch.rows(len(self.data)))

    def __call__(self, batch: Batch) -> Tensor:
        """The logits ``[B, K]`` for a batch that ``epoch_batches`` made of ``data`` under ``augment``."""
        rows = batch.rows(len(self.data))
        self._complete(rows.cpu())
        return self._kept(rows)

    def complete(self, *, keys: tuple[int | str, ...], seed: int | None = None) -> Tensor:
        """Compute what is missing for the epoch of ``keys``. Returns int64 ``[N]``: the row of every image."""
        draws = epoch_draws(len(self.data), self.augment, seed=self._checked(seed), keys=keys)
        rows = torch.arange(len(self.data))
        if draws is not None:
            rows += len(self.data) * draws.view
        self._complete(rows)
        return rows

    def epoch(self, *, keys: tuple[int | str, ...], seed: int | None = None) -> Tensor:
        """The logits ``[N, K]`` of every image, in the data's order, in its view of the epoch of ``keys``."""
        return self._kept(self.complete(keys=keys, seed=seed))

    def fill(self, done: Callable[[int, int], None] | None = None) -> None:
        """Compute every view that is missing, one after the other of all images; what is there is not done again.

        ``done``: told now and then how many of the ``rows`` are there.
        """
        for begin in range(0, self.rows, len(self.data)):
            self._complete(_span(begin, self.rows, len(self.data)))
            if done is not None:
                done(begin + len(self.data), self.rows)

    def _checked(self, seed: int | None) -> int:
        """Fewer views than all are those of one seed."""
        if seed is None or seed == self.seed:
            return self.seed
        if self.augment.drawn:
            raise ArgumentError(f"seed must be that of the views, {self.seed}, got {seed}")
        return seed

    def _complete(self, rows: Tensor) -> None:
        missing = rows[self._store.missing(rows)].unique()
        if len(missing) == 0:
            return
        for part in missing.split(self._size):
            self._store.put(part, self._computed(part))
        self._store.flush()

    def _kept(self, rows: Tensor) -> Tensor:
        return self._store.get(rows.cpu()).to(self.data.device, self._dtype)

    def _computed(self, rows: Tensor) -> Tensor:
        """The logits of at most so many rows as are computed at a time, on the CPU."""
        full = torch.cat([rows, rows[:1].expand(self._size - len(rows))]).to(self.data.device)
        index, view = full % len(self.data), full // len(self.data)
        batch = view_batch(self.data, index, view, self.augment, seed=self.seed)
        return self._ask(batch.images)[: len(rows)].cpu()

    def _agrees(self) -> bool:
        """Whether the teacher still says what is kept."""
        if not self._store.taken_up:
            return True
        drawn = torch.randint(0, self.rows, (_PROBE,), generator=torch.Generator().manual_seed(0)).unique()
        some = drawn[~self._store.missing(drawn)][: self._size]
        if len(some) == 0:
            return True
        kept, now = self._store.get(some).double(), self._computed(some).double()
        bound = _STALE * float(now.nan_to_num(0, 0, 0).abs().max())
        return torch.allclose(kept, now, rtol=0, atol=bound, equal_nan=True)


def views_bytes(data: ImageData, augment: Augment) -> int:
    """What the rows of ``data`` take, in float16."""
    return len(data) * augment.count * row_bytes(data.num_classes, torch.float16)


def _span(begin: int, end: int, most: int) -> Tensor:
    return torch.arange(begin, min(begin + most, end))


def _identity(teacher: str, data: ImageData, augment: Augment, seed: int) -> str:
    """Of all that the rows depend on but the machine."""
    norm = (data.mean.tolist(), data.std.tolist())
    views = (augment.crop, augment.flip, augment.windows, seed if augment.drawn else None)
    text = f"{teacher} {data.fingerprint()} {data.shape} {norm} {views}"
    return hashlib.sha256(text.encode()).hexdigest()
