"""Any map-style dataset of (image, label) as ``ImageData``."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from plantops._arguments import check_minimum
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.train.data import ImageData, Normalisation, channel_statistics

CHANNELS = (1, 3, 4)
"""How many channels a picture has, as a rule: tells [C, H, W] from [H, W, C]."""
READ_TWICE = 16
"""Samples of a dataset that are read a second time, to see whether it has random transforms."""


class MapStyle(Protocol):
    """A map-style dataset: ``len(dataset)`` samples, ``dataset[i]`` is ``(image, label)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_dataset(
    dataset: MapStyle, num_classes: int | None = None, name: str = "dataset", *, normalise: bool | None = None
) -> ImageData:
    """Any map-style dataset of (image, label) in memory.

    It is read once, from its first sample to its last. Random transforms inside the dataset are drawn then, and never
    again: leave augmentation to ``Augment``. Where two readings of a sample differ there is a warning.

    Args:
        dataset: images as tensors ``[C, H, W]`` or ``[H, W]``, as arrays ``[H, W, C]`` or ``[H, W]``, or as PIL
            pictures, all of one shape; uint8 stays uint8, everything else becomes float32. Labels are whole numbers,
            one for each image.
        num_classes: default ``len(dataset.classes)`` where it has them, else the largest label plus one.
        name: for messages.
        normalise: True: by mean and standard deviation of each channel of this dataset (for a held-out or test part
            follow with ``.normalised_like(train)``). False: images go into a network as they are, as float32. None:
            uint8 images are normalised, others stay as they are.

    Raises:
        ValueError, TypeError: an empty dataset, samples that are not (image, label), images that differ in shape or are
            not finite, labels that are not whole numbers.
    """
    _check_map_style(dataset, name)
    if normalise is not None and not isinstance(normalise, bool):
        raise ArgumentTypeError(f"normalise must be True, False or None, got {normalise!r}")
    if num_classes is not None:
        check_minimum("num_classes", num_classes, 1)
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
    _warn_of_random_transforms(dataset, images, labels, name)
    names = tuple(str(entry) for entry in getattr(dataset, "classes", None) or ())
    if num_classes is None:
        num_classes = len(names) or int(labels.max()) + 1
    if normalise is None:
        normalise = images.dtype == torch.uint8
    how = Normalisation(*channel_statistics(images)) if normalise else Normalisation.none(images.shape[1])
    return ImageData(images, labels, how.mean, how.std, num_classes, name, names if len(names) == num_classes else ())


def _check_map_style(dataset: Any, name: str) -> None:
    """Raises ArgumentTypeError unless ``dataset`` has a length and samples by number."""
    if isinstance(dataset, DataLoader):
        raise ArgumentTypeError(
            f"{name} must be a map-style dataset of (image, label), got a DataLoader: pass its dataset "
            "(loader.dataset); batch size, order and augmentation are chosen here"
        )
    pairs = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not pairs or isinstance(dataset, (str, bytes, Mapping, Tensor, np.ndarray)):
        raise ArgumentTypeError(
            f"{name} must be a map-style dataset of (image, label), got {type(dataset).__name__}; "
            "torch.utils.data.TensorDataset(images, labels) makes one of two tensors"
        )


def _sample(dataset: MapStyle, index: int, name: str) -> tuple[Tensor, int]:
    where = f"{name}[{index}]"
    sample = dataset[index]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        kind = type(sample).__name__
        got = f"{kind} of {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else kind
        raise ArgumentTypeError(f"{where} must be (image, label), got {got}")
    return _image(sample[0], where), _label(sample[1], where)


def _image(image: Any, where: str) -> Tensor:
    """uint8 or float32 ``[C, H, W]``."""
    if isinstance(image, Tensor):
        image = image.detach()
        if image.is_complex():
            raise ArgumentTypeError(f"{where}: an image must be real, got {image.dtype}: give real and imaginary parts")
    else:
        image = _array(image, where)
    if image.dim() == 2:
        image = image.unsqueeze(0)
    if image.dim() != 3 or 0 in image.shape:
        raise ArgumentError(f"{where}: an image must be [C, H, W] or [H, W], got {list(image.shape)}")
    if image.dtype == torch.uint8:
        return image
    image = image.to(torch.float32)
    if not torch.isfinite(image).all():
        bad = image[~torch.isfinite(image)][0].item()
        raise ArgumentError(f"{where}: an image must be finite, got a pixel that is {bad} in float32")
    return image


def _array(image: Any, where: str) -> Tensor:
    """An array or a PIL picture as a tensor ``[C, H, W]`` or ``[H, W]``."""
    if getattr(image, "mode", None) in ("P", "PA"):
        raise ArgumentError(f"{where}: a picture of palette colours has to become one of values: image.convert('RGB')")
    array = np.array(image)  # a copy: PIL's and read-only arrays cannot be shared
    if array.dtype.kind not in "biuf":
        raise ArgumentTypeError(
            f"{where}: an image must be a tensor, an array of real numbers or a PIL picture, got "
            f"{type(image).__name__}" + (f" of {array.dtype}" if isinstance(image, np.ndarray) else "")
        )
    if array.ndim != 3:
        return torch.from_numpy(array)
    if array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:
        raise ArgumentError(
            f"{where}: an array must be [H, W, C], got {list(array.shape)}, which looks like [C, H, W]: give a tensor "
            "(torch.from_numpy(image)), whose channels come first"
        )
    return torch.from_numpy(array).permute(2, 0, 1)


def _label(label: Any, where: str) -> int:
    if isinstance(label, (Tensor, np.ndarray, np.generic)) and math.prod(label.shape) == 1:
        label = label.item()
    if isinstance(label, Integral) and abs(int(label)) < 1 << 63:
        return int(label)
    shape = getattr(label, "shape", ())
    got = f"{type(label).__name__} {list(shape)}" if shape else f"{type(label).__name__} {label!r}"
    raise ArgumentTypeError(f"{where}: a label must be one whole number, the class of its image, got {got}")


def _warn_of_random_transforms(dataset: MapStyle, images: Tensor, labels: Tensor, name: str) -> None:
    """A second reading of some samples shows random transforms. Global generators are left as they were."""
    count = len(images)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        again = [(index, *_sample(dataset, index, name)) for index in range(0, count, max(1, count // READ_TWICE))]
    random.setstate(states[0])
    np.random.set_state(states[1])
    if all(label == labels[index] and torch.equal(image, images[index]) for index, image, label in again):
        return
    warnings.warn(
        f"{name}: two readings of the same sample differ: its random transforms were drawn once, when it was read into "
        "memory, and every epoch sees the same images. Leave them out, and augment by crop and flip instead.",
        stacklevel=3,
    )
