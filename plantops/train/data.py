"""Image data in memory: uint8 tensors with the statistics that normalise them, in training, held-out and test parts.

Images stay as the source has them (uint8, a quarter of float32's memory) on whatever device they are moved to; a batch
is cropped, flipped and normalised there (``train.batches``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.train.sources.base import DataError, RawData, RawPart
from plantops.train.sources.cifar import CIFAR10, CIFAR100, read_cifar
from plantops.train.sources.digits import read_digits
from plantops.train.sources.folder import read_folder
from plantops.train.sources.stl10 import read_stl10
from plantops.train.split import stratified_split

__all__ = ["DATA_SETS", "DataError", "DataParts", "ImageData", "MapStyle", "from_dataset", "load", "stratified_split"]

DATA_SETS = ("digits", "cifar10", "cifar100", "stl10", "folder:PATH")
TEST_FRACTION = 0.2
TEST_SEED = 0
"""A source without a test part gives up this share of every class, chosen by this seed, whatever the run's seed is."""


@dataclass(eq=False, repr=False)
class ImageData:
    """One part of a data set.

    Attributes:
        images: uint8 or float32 ``[N, C, H, W]``.
        labels: int64 ``[N]``, 0 to num_classes - 1.
        mean, std: float32 ``[C]`` in the images' own units, of the TRAINING part; a batch is ``(image - mean) / std``.
        num_classes: classes of the whole set, not of this part.
        name: for messages and logs, such as ``cifar10/val``.
        class_names: one per class, or empty.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    num_classes: int
    name: str = "data"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise ArgumentError(
                f"images must be uint8 or float32 [N, C, H, W], got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            raise ArgumentError(
                f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} {list(self.labels.shape)}"
            )
        channels = self.images.shape[1]
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value.shape != (channels,):
                raise ArgumentError(f"{name} must have one value per channel [{channels}], got {list(value.shape)}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ArgumentError(
                f"labels must lie in 0 to {self.num_classes - 1}, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            f"ImageData({self.name}: {len(self):,} images {shape} {self.images.dtype} on {self.device}, "
            f"{self.num_classes} classes)"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: torch.device | str) -> ImageData:
        """The same part on ``device``."""
        return self._with(
            self.images.to(device), self.labels.to(device), mean=self.mean.to(device), std=self.std.to(device)
        )

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """The samples at ``indices``, in that order, with this part's statistics."""
        where = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        return self._with(self.images[where], self.labels[where])

    def normalised_like(self, other: ImageData) -> ImageData:
        """The same samples, normalised with the statistics of ``other`` (which should be the training part)."""
        return self._with(self.images, self.labels, mean=other.mean.to(self.device), std=other.std.to(self.device))

    def normalise(self, images: Tensor) -> Tensor:
        """float32 ``(images - mean) / std`` for a batch of this part's images."""
        # The difference is a new tensor; float32 images themselves must not change.
        return (images - self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))

    def fingerprint(self) -> str:
        """SHA-256 over shape, dtype, image and label bytes: equal exactly when the samples and their order are."""
        digest = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        for tensor in (self.images, self.labels):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def _with(self, images: Tensor, labels: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> ImageData:
        return ImageData(
            images,
            labels,
            self.mean if mean is None else mean,
            self.std if std is None else std,
            self.num_classes,
            self.name,
            self.class_names,
        )


@dataclass
class DataParts:
    """``train`` trains, ``val`` (held out of the training part) selects, ``test`` is read once, for the report."""

    train: ImageData
    val: ImageData
    test: ImageData

    def to(self, device: torch.device | str) -> DataParts:
        return DataParts(self.train.to(device), self.val.to(device), self.test.to(device))


class MapStyle(Protocol):
    """A map-style dataset: ``len(dataset)`` samples, ``dataset[i]`` is ``(image, label)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    val_fraction: float = 0.1,
    train_fraction: float = 1.0,
    seed: int = 0,
    image_size: int | None = None,
    download: bool = False,
) -> DataParts:
    """A data set by name, split into training, held-out and test parts.

    Args:
        name: ``digits`` (embedded in scikit-learn), ``cifar10``, ``cifar100``, ``stl10`` or ``folder:PATH``.
        root: where the official files are; without it the environment variable PLANTOPS_DATA, ``data/`` and
            ``~/.cache/plantops`` are tried.
        val_fraction: the share of the training part that is held out, stratified and seeded by ``seed``. A folder with
            a ``val`` of its own keeps that one.
        train_fraction: the share of what is left that trains, stratified and seeded too; 0.1 is a case of small data.
        seed: of the held-out split. The test part never depends on it.
        image_size: resize all images to this square (bilinear, antialiased).
        download: let torchvision fetch CIFAR or STL-10 when the files are not there.

    Raises:
        DataError: an unknown name, files that are missing, damaged or not the published ones; says what to do.
        ValueError: val_fraction, train_fraction or image_size out of range.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ArgumentError(f"val_fraction must lie between 0 and 1 (both excluded), got {val_fraction}")
    if not 0.0 < train_fraction <= 1.0:
        raise ArgumentError(f"train_fraction must be above 0 and at most 1, got {train_fraction}")
    if image_size is not None and image_size < 1:
        raise ArgumentError(f"image_size must be at least 1 pixel, got {image_size}")
    raw = _read(name, root, image_size, download)
    if image_size is not None:
        raw = _resized(raw, image_size)
    if raw.test is None:
        raw.train, raw.test = _split(raw.train, TEST_FRACTION, TEST_SEED, name)
    if raw.val is None:
        raw.train, raw.val = _split(raw.train, val_fraction, seed, name)
    if train_fraction < 1.0:
        _, raw.train = _split(raw.train, train_fraction, seed, name)
    mean, std = channel_statistics(raw.train.images)

    def part(of: RawPart, suffix: str) -> ImageData:
        return ImageData(of.images, of.labels, mean, std, len(raw.class_names), f"{name}/{suffix}", raw.class_names)

    return DataParts(part(raw.train, "train"), part(raw.val, "val"), part(raw.test, "test"))


def _read(name: str, root: str | os.PathLike[str] | None, image_size: int | None, download: bool) -> RawData:
    readers: dict[str, Callable[[], RawData]] = {
        "digits": read_digits,
        "cifar10": lambda: read_cifar(CIFAR10, root, download),
        "cifar100": lambda: read_cifar(CIFAR100, root, download),
        "stl10": lambda: read_stl10(root, download),
    }
    if name.startswith("folder:") and len(name) > len("folder:"):
        return read_folder(name.removeprefix("folder:"), image_size)
    if name not in readers:
        raise DataError(f"data must be one of {', '.join(DATA_SETS)}, got {name!r}")
    return readers[name]()


def _split(part: RawPart, fraction: float, seed: int, name: str) -> tuple[RawPart, RawPart]:
    try:
        kept, held = stratified_split(part.labels, fraction, seed)
    except ValueError as error:
        raise DataError(f"{name}: the training part cannot be split: {error}") from error
    return RawPart(part.images[kept], part.labels[kept]), RawPart(part.images[held], part.labels[held])


def _resized(raw: RawData, size: int) -> RawData:
    def resize(part: RawPart | None) -> RawPart | None:
        if part is None or part.images.shape[2:] == (size, size):
            return part
        chunks = [
            functional.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True).round_()
            for chunk in part.images.split(1024)
        ]
        return RawPart(torch.cat([chunk.to(torch.uint8) for chunk in chunks]), part.labels)

    train = resize(raw.train)
    assert train is not None
    return RawData(train, resize(raw.val), resize(raw.test), raw.class_names)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population) per channel, computed in float64, returned as float32 ``[C]``.

    A channel that never changes gets the standard deviation 1, so that normalising it gives zeros and not NaN.
    """
    count = images.numel() // images.shape[1]
    if count == 0:
        raise ArgumentError(f"images must hold at least one pixel, got {list(images.shape)}")
    total = torch.zeros(images.shape[1], dtype=torch.float64, device=images.device)
    for chunk in images.split(1024):
        total += chunk.double().sum((0, 2, 3))
    mean = total / count
    squares = torch.zeros_like(total)
    for chunk in images.split(1024):
        squares += (chunk.double() - mean.view(-1, 1, 1)).square().sum((0, 2, 3))
    std = (squares / count).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def from_dataset(dataset: MapStyle, num_classes: int | None = None, name: str = "dataset") -> ImageData:
    """Any map-style dataset of (image, label) in memory, with its own mean and standard deviation.

    For a held-out or test part follow with ``.normalised_like(train)``. Random transforms inside the dataset are drawn
    once, here: leave augmentation to ``Augment``.

    Args:
        dataset: images as tensors ``[C, H, W]`` or ``[H, W]``, as arrays ``[H, W, C]`` or ``[H, W]``, or as PIL
            pictures, all of one shape; uint8 stays uint8, everything else becomes float32. Labels are integers.
        num_classes: default ``len(dataset.classes)`` where it has them, else the largest label plus one.

    Raises:
        ValueError, TypeError: an empty dataset, samples that are not (image, label), images that differ in shape.
    """
    if len(dataset) == 0:
        raise ArgumentError(f"{name} must hold at least one sample, got 0")
    first, _ = _sample(dataset, 0, name)
    images = torch.empty((len(dataset), *first.shape), dtype=first.dtype)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for index in range(len(dataset)):
        image, labels[index] = _sample(dataset, index, name)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise ArgumentError(
                f"{name}[{index}]: all images must be {first.dtype} {list(first.shape)} like the first, "
                f"got {image.dtype} {list(image.shape)}"
            )
        images[index] = image
    names = tuple(str(entry) for entry in getattr(dataset, "classes", ()))
    if num_classes is None:
        num_classes = len(names) or int(labels.max()) + 1
    mean, std = channel_statistics(images)
    return ImageData(images, labels, mean, std, num_classes, name, names)


def _sample(dataset: MapStyle, index: int, name: str) -> tuple[Tensor, int]:
    sample = dataset[index]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        raise ArgumentTypeError(f"{name}[{index}] must be (image, label), got {type(sample).__name__}")
    image, label = sample[0], sample[1]
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.array(image))  # a copy: PIL's and read-only arrays cannot be shared
        image = image.permute(2, 0, 1) if image.dim() == 3 else image
    if image.dim() == 2:
        image = image.unsqueeze(0)
    if image.dim() != 3:
        raise ArgumentError(f"{name}[{index}]: an image must be [C, H, W] or [H, W], got {list(image.shape)}")
    return image if image.dtype == torch.uint8 else image.to(torch.float32), int(label)
