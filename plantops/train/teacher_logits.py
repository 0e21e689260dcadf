"""What a teacher says about each batch, computed once where the same batch is asked for again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from plantops._extension import STATUS
from plantops.train.batches import Augment, Batch, batch_sizes, epoch_batches, version_batches
from plantops.train.data import ImageData
from plantops.train.environment import INFORMATIVE, describe_environment
from plantops.train.files import RunError, atomic_write_bytes
from plantops.train.fused import fused
from plantops.train.logits import logits_of

Teacher = Callable[[Tensor], Any]
"""From a batch to logits, or to something that has them as ``logits``."""

EVAL_BATCH = 500


def content_hash(teacher: Teacher) -> str:
    """SHA-256 over a module's class and every parameter and buffer; another callable is known by its identity alone."""
    if not isinstance(teacher, nn.Module):
        return f"{type(teacher).__name__}-{id(teacher)}"
    digest = hashlib.sha256(type(teacher).__qualname__.encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class TeacherLogits:
    """Batches of an epoch together with the teacher's logits for them.

    Without augmentation every image has one row of logits for good, with flips alone two: they are computed once per
    (teacher, data) and looked up. With crops the images of an epoch are a function of its keys, so the rows of that
    epoch are kept for whoever trains on the same epoch next (the candidates of a round that do not share a pass do),
    until ``forget`` is called. A hit has the bits that computing it again would have.

    Args:
        teacher: any callable from a batch to logits (or to an output that has them as ``logits``, as Hugging Face's
            models give it); a module is put in ``eval()``. It is never differentiated.
        channels_last: memory format of the images that the teacher gets.
        cache_bytes: memory for the kept epochs; epochs that do not fit are computed each time.
        folder: where rows that are kept for good lie between runs, too; made when it is not there. Where it cannot be
            written they are computed in every run.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        channels_last: bool = False,
        cache_bytes: int = 1 << 30,
        folder: Path | None = None,
    ) -> None:
        self.teacher = teacher.eval() if isinstance(teacher, nn.Module) else teacher
        self._forward = fused(teacher) if isinstance(teacher, nn.Module) else teacher
        self.hash = content_hash(teacher)
        self._channels_last = channels_last
        self._cache_bytes = cache_bytes
        self._folder = folder
        self._tables: dict[tuple[str, str, int], Tensor] = {}
        self._epochs: dict[tuple[object, ...], Tensor] = {}
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
        key = self._epoch_key(data, batch_size, seed, keys, augment)
        if key in self._epochs:
            rows = self._epochs[key].split(batch_sizes(len(data), batch_size))
            yield from zip(batches, rows, strict=True)
            return
        seen = []
        for batch in batches:
            seen.append(self.logits(batch.images))
            yield batch, seen[-1]
        self._keep(key, torch.cat(seen))

    def epoch_rows(
        self, data: ImageData, batch_size: int, *, seed: int, keys: tuple[int | str, ...], augment: Augment
    ) -> Tensor | None:
        """The rows ``[N, K]`` of one epoch of crops in its order, where they are kept."""
        return self._epochs.get(self._epoch_key(data, batch_size, seed, keys, augment))

    def keep_epoch(
        self,
        rows: Tensor,
        data: ImageData,
        batch_size: int,
        *,
        seed: int,
        keys: tuple[int | str, ...],
        augment: Augment,
    ) -> None:
        """Keep ``rows`` for whoever trains on the same epoch next, if they fit."""
        self._keep(self._epoch_key(data, batch_size, seed, keys, augment), rows)

    def forget(self) -> None:
        """Drop the kept epochs of augmented images; nobody will ask for them again."""
        self._epochs.clear()

    def logits(self, images: Tensor) -> Tensor:
        """The teacher's logits for a batch of normalised images, without a graph."""
        if self._channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return logits_of(self._forward(images), "teacher")

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

    def _epoch_key(
        self, data: ImageData, batch_size: int, seed: int, keys: tuple[int | str, ...], augment: Augment
    ) -> tuple[object, ...]:
        return (self.hash, self._fingerprint(data), batch_size, seed, keys, augment, self._channels_last)

    def _keep(self, key: tuple[object, ...], rows: Tensor) -> None:
        if sum(kept.nbytes for kept in self._epochs.values()) + rows.nbytes <= self._cache_bytes:
            self._epochs[key] = rows

    def _path(self, data: ImageData, variants: int) -> Path | None:
        """The file of a table: its name says all that its bits depend on."""
        if self._folder is None or not isinstance(self.teacher, nn.Module):
            return None
        machine = {name: value for name, value in describe_environment().items() if name not in INFORMATIVE}
        kernels = (STATUS.loaded, STATUS.info, os.environ.get("PLANTOPS_CPU_ISA"), torch.backends.cudnn.allow_tf32)
        how = (str(data.device), self._channels_last, machine, kernels)
        norm = (data.mean.tolist(), data.std.tolist())
        text = f"{self.hash} {self.teacher!r} {self._fingerprint(data)} {variants} {norm} {how}"
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def _fingerprint(self, data: ImageData) -> str:
        held = self._fingerprints.get(id(data))
        if held is None or held[0] is not data:
            held = self._fingerprints[id(data)] = (data, data.fingerprint())
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
