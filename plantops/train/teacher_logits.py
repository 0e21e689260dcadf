"""What a teacher says about each batch, computed once where the same view of an image is asked for again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from plantops._extension import STATUS
from plantops.train.batches import Augment, Batch, batch_sizes, epoch_batches, version_batches
from plantops.train.data import ImageData
from plantops.train.environment import INFORMATIVE, describe_environment
from plantops.train.files import RunError, atomic_write_bytes
from plantops.train.row_store import check_room
from plantops.train.teacher_views import MEMORY, TeacherViews, views_bytes
from plantops.train.teachers import Asked, Teacher, content_hash

__all__ = ["EVAL_BATCH", "Teacher", "TeacherCache", "TeacherLogits", "content_hash"]

EVAL_BATCH = 500


@dataclass(frozen=True)
class TeacherCache:
    """Where the logits of a run's teacher are kept.

    Attributes:
        folder: shared with other runs; None: the views in the run's own folder.
        memory: the most bytes for all views of the training part.
        ahead: compute all views before anything trains.
    """

    folder: Path | None = None
    memory: int = MEMORY
    ahead: bool = False

    def logits(self, teacher: Teacher, channels_last: bool, run: Path | None) -> TeacherLogits:
        """The teacher's logits in a run whose folder is ``run``."""
        return TeacherLogits(
            teacher,
            channels_last=channels_last,
            cache_bytes=self.memory,
            folder=self.folder,
            views_folder=self._place(run),
        )

    def check(self, data: ImageData, augment: Augment, run: Path | None) -> None:
        """Find out early whether the disk will do.

        Raises:
            RunError: it will not.
        """
        folder, size = self._place(run), views_bytes(data, augment)
        if folder is None or size > self.memory or not augment.crop:
            return
        if not any(path.stat().st_size >= size for path in folder.glob("views-*.bin")):
            check_room(folder, size)

    def open(
        self, logits: TeacherLogits, data: ImageData, augment: Augment, seed: int, note: Callable[[str], None]
    ) -> None:
        """Make room for the views of ``data`` before anything trains on them, and fill it where that is asked for.

        ``note``: told what cannot be kept, and how far the filling is.

        Raises:
            RunError: the disk has too little room.
        """
        if not augment.crop:
            return
        views = logits.views(data, augment, seed)
        if views is None:
            note(
                f"All {augment.count} views of the images take {views_bytes(data, augment):,} bytes or more, which is "
                f"over --teacher-cache-memory {self.memory}: the teacher runs on every batch. With --teacher-views V "
                "each image has V views."
            )
        elif self.ahead:
            views.fill(lambda known, rows: note(f"The teacher's views: {known:,} of {rows:,}."))

    def _place(self, run: Path | None) -> Path | None:
        return self.folder if self.folder is not None or run is None else run / "logits"


class TeacherLogits:
    """Batches of an epoch together with the teacher's logits for them.

    Without augmentation every image has one row of logits for good, with flips alone two: they are computed once per
    (teacher, data) and looked up. With crops there are many: ``TeacherViews`` keeps those that were asked for. Where
    they would take more than ``cache_bytes``, the rows of an epoch are kept for whoever trains on the same epoch next
    (the candidates of a round that do not share a pass do), until ``forget`` is called.

    Args:
        teacher: any callable from a batch to logits (or to an output that has them as ``logits``, as Hugging Face's
            models give it); a module is put in ``eval()``. It is never differentiated.
        channels_last: memory format of the images that the teacher gets.
        cache_bytes: the most bytes for the views of one part, and for kept epochs; what does not fit is computed each
            time.
        folder: where rows that are kept for good lie between runs, too; made when it is not there. Where it cannot be
            written they are computed in every run.
        views_folder: the same for views alone, where there is no ``folder``.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        channels_last: bool = False,
        cache_bytes: int = MEMORY,
        folder: Path | None = None,
        views_folder: Path | None = None,
    ) -> None:
        self.teacher = teacher
        self._asked = Asked(teacher, channels_last)
        self.hash = self._asked.hash
        self._channels_last = channels_last
        self._cache_bytes = cache_bytes
        self._folder = folder
        self._views_folder = views_folder if folder is None else folder
        self._tables: dict[tuple[str, str, int], Tensor] = {}
        self._epochs: dict[tuple[object, ...], Tensor] = {}
        self._views: dict[tuple[object, ...], TeacherViews] = {}
        self._fingerprints: dict[int, tuple[ImageData, str]] = {}

    def batches(
        self,
        data: ImageData,
        batch_size: int,
        *,
        seed: int,
        keys: tuple[int | str, ...],
        augment: Augment,
        channels_last: bool = False,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """``epoch_batches`` with the teacher's logits ``[B, K]`` beside each batch; ``channels_last``: of the batch."""
        batches = epoch_batches(data, batch_size, seed=seed, keys=keys, augment=augment, channels_last=channels_last)
        if augment.variants is not None:
            table = self.table(data, augment.variants)
            for batch in batches:
                yield batch, table[batch.rows(len(data))]
            return
        views = self.views(data, augment, seed)
        if views is not None:
            yield from views.batches(batch_size, seed=seed, keys=keys, channels_last=channels_last)
            return
        key = (self.hash, self._fingerprint(data), batch_size, seed, keys, augment)
        if key in self._epochs:
            rows = self._epochs[key].split(batch_sizes(len(data), batch_size))
            yield from zip(batches, rows, strict=True)
            return
        seen = []
        for batch in batches:
            seen.append(self.logits(batch.images))
            yield batch, seen[-1]
        rows = torch.cat(seen)
        if sum(kept.nbytes for kept in self._epochs.values()) + rows.nbytes <= self._cache_bytes:
            self._epochs[key] = rows

    def epoch(
        self, data: ImageData, batch_size: int, *, seed: int, keys: tuple[int | str, ...], augment: Augment
    ) -> Tensor:
        """The logits ``[N, K]`` of every image as one epoch of crops has it, in the data's order."""
        views = self.views(data, augment, seed)
        if views is not None:
            return views.epoch(seed=seed, keys=keys)
        found = list(self.batches(data, batch_size, seed=seed, keys=keys, augment=augment))
        rows = torch.cat([logits for _, logits in found])
        return torch.empty_like(rows).index_copy_(0, torch.cat([batch.index for batch, _ in found]), rows)

    def views(self, data: ImageData, augment: Augment, seed: int) -> TeacherViews | None:
        """What keeps the rows of all views; None where they would take too much.

        Raises:
            RunError: there is not enough room on the disk.
        """
        key = (self.hash, self._fingerprint(data), augment, seed if augment.drawn else None)
        if key not in self._views and views_bytes(data, augment) <= self._cache_bytes:
            with contextlib.suppress(ValueError):  # too large in float32
                self._views[key] = TeacherViews(
                    self.logits,
                    data,
                    augment,
                    seed=seed,
                    folder=self._views_folder,
                    memory=self._cache_bytes,
                    identity=self._asked.identity,
                )
        return self._views.get(key)

    def forget(self) -> None:
        """Drop the kept epochs of augmented images; nobody will ask for them again."""
        self._epochs.clear()

    def logits(self, images: Tensor) -> Tensor:
        """The teacher's logits for a batch of normalised images, without a graph."""
        return self._asked(images)

    def table(self, data: ImageData, variants: int) -> Tensor:
        """The logits ``[variants N, K]`` of every version of every image, in the order of ``Batch.rows``."""
        key = (self.hash, self._fingerprint(data), variants)
        if key not in self._tables:
            path = self._path(data, variants)
            rows = None if path is None else _read(path)
            if rows is None:
                batches = version_batches(data, EVAL_BATCH, variants)
                rows = torch.cat([self.logits(batch.images) for batch in batches])
                if path is not None:
                    _write(path, rows)
            self._tables[key] = rows.to(data.device)
        return self._tables[key]

    def _path(self, data: ImageData, variants: int) -> Path | None:
        """The file of a table: its name says all that its bits depend on."""
        if self._folder is None or self._asked.identity is None:
            return None
        machine = {name: value for name, value in describe_environment().items() if name not in INFORMATIVE}
        kernels = (STATUS.loaded, STATUS.info, os.environ.get("PLANTOPS_CPU_ISA"), torch.backends.cudnn.allow_tf32)
        how = (str(data.device), self._channels_last, machine, kernels)
        text = f"{self._asked.identity} {self._fingerprint(data)} {variants} {how}"
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def _fingerprint(self, data: ImageData) -> str:
        """Of the images, their order and their normalisation."""
        held = self._fingerprints.get(id(data))
        if held is None or held[0] is not data:
            norm = (data.mean.tolist(), data.std.tolist())
            held = self._fingerprints[id(data)] = (data, f"{data.fingerprint()} {norm}")
        return held[1]


def _read(path: Path) -> Tensor | None:
    """The rows of a file that an earlier run wrote; None where there is none, or it is damaged."""
    try:
        return safetensors.torch.load(path.read_bytes())["logits"]
    except (OSError, safetensors.SafetensorError, KeyError):
        return None


def _write(path: Path, rows: Tensor) -> None:
    with contextlib.suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, safetensors.torch.save({"logits": rows.cpu().contiguous()}))
