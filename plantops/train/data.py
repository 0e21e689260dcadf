"""Image data in memory: uint8 tensors with the statistics that normalise them, in training, held-out and test parts.

Images stay as the source has them (uint8, a quarter of float32's memory) on whatever device they are moved to; a batch
is cropped, flipped and normalised there (``train.batches``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plantops._arguments import check_minimum, check_number, check_range, check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.train.logits import check_finite
from plantops.train.sources.base import DataError, RawData, RawPart
from plantops.train.sources.cifar import CIFAR10, CIFAR100, read_cifar
from plantops.train.sources.digits import read_digits
from plantops.train.sources.folder import read_folder
from plantops.train.sources.stl10 import read_stl10
from plantops.train.split import stratified_split

__all__ = [
    "DATA_SETS",
    "DataError",
    "DataParts",
    "ImageData",
    "Normalisation",
    "load",
    "stratified_split",
]

DATA_SETS = ("digits", "cifar10", "cifar100", "stl10", "folder:PATH")
TEST_FRACTION = 0.2
TEST_SEED = 0
"""A source without a test part gives up this share of every class, chosen by this seed, whatever the run's seed is."""


@dataclass(frozen=True, eq=False)
class Normalisation:
    """How images become what a network sees: ``(images - mean) / std``, one value a channel, in the images' own units.

    Mean 0 and standard deviation 1 leave images as they are, but for the type: float32.

    Attributes:
        mean, std: float32 ``[C]``.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def none(cls, channels: int) -> Normalisation:
        """The one that leaves images as they are."""
        return cls(torch.zeros(channels), torch.ones(channels))

    def __call__(self, images: Tensor) -> Tensor:
        """float32 ``[..., C, H, W]`` for images ``[..., C, H, W]`` of any type, on their device.

        Raises:
            ValueError: images of another number of channels.
        """
        if images.dim() < 3 or images.shape[-3] != len(self.mean):
            raise ArgumentError(f"images must be [..., {len(self.mean)}, H, W], got {list(images.shape)}")
        mean, std = (value.to(images.device).view(-1, 1, 1) for value in (self.mean, self.std))
        # Bytes become floats in one pass and on their own: mixed with floats they are converted element by element.
        # The difference is a new tensor; float32 images themselves must not change.
        wide = images if images.is_floating_point() else images.to(torch.float32)
        return (images - mean if wide is images else wide.sub_(mean)).div_(std)

    def __str__(self) -> str:
        if not self.mean.any() and (self.std == 1).all():
            return "images as they are"
        mean, std = (", ".join(f"{value:g}" for value in values.tolist()) for values in (self.mean, self.std))
        return f"(images - mean) / std, of each channel: mean {mean}; std {std}"


@dataclass(eq=False, repr=False)
class ImageData:
    """One part of a data set.

    Attributes:
        images: uint8 or float32 ``[N, C, H, W]``.
        labels: int64 ``[N]``, 0 to num_classes - 1.
        mean, std: float32 ``[C]`` in the images' own units, of the TRAINING part; a batch is ``(image - mean) / std``
            (0 and 1: as it is).
        num_classes: classes of the whole set, not of this part.
        name: for messages and logs, such as ``cifar10/val``.
        class_names: one per class, or empty.

    Raises:
        ValueError, TypeError: tensors of another shape or type, labels outside 0 to num_classes - 1, images that are
            NaN or infinite, a standard deviation that is not above 0.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    num_classes: int
    name: str = "data"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("images", "labels", "mean", "std"):
            if not isinstance(getattr(self, name), Tensor):
                got = type(getattr(self, name)).__name__
                raise ArgumentTypeError(f"{name} must be a tensor, got {got}: from_dataset reads data sets")
        if not isinstance(self.num_classes, int) or isinstance(self.num_classes, bool):
            raise ArgumentTypeError(f"num_classes must be an integer, got {self.num_classes!r}")
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
            if not (value.is_floating_point() and torch.isfinite(value).all()):
                raise ArgumentError(f"{name} must be finite numbers in floating point, got {value.tolist()}")
        if not (self.std > 0).all():
            raise ArgumentError(f"std must be above 0 for every channel, got {self.std.tolist()}")
        if self.images.is_floating_point():
            check_finite(self.images, self.name, "a pixel")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ArgumentError(
                f"{self.name}: labels must lie in 0 to {self.num_classes - 1}, got "
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

    @property
    def normalisation(self) -> Normalisation:
        """How these images become what a network sees."""
        return Normalisation(self.mean, self.std)

    def normalise(self, images: Tensor) -> Tensor:
        """float32 ``(images - mean) / std`` for a batch of this part's images."""
        return self.normalisation(images)

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
    check_type("name", name, str, "the name of a data set")
    check_number("val_fraction", val_fraction, "between 0 and 1")
    if not 0.0 < val_fraction < 1.0:
        raise ArgumentError(f"val_fraction must lie between 0 and 1 (both excluded), got {val_fraction}")
    check_range("train_fraction", train_fraction, lambda share: 0 < share <= 1, "above 0 and at most 1")
    if image_size is not None:
        check_minimum("image_size", image_size, 1)
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
