"""What a search is given, checked and brought into one form before anything trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plantops.errors import ArgumentError, ArgumentTypeError, PlantopsError
from plantops.planting.keeping import check_parts
from plantops.train.data import ImageData
from plantops.train.datasets import MapStyle, from_dataset
from plantops.train.logits import check_logits, logits_of
from plantops.train.teacher_logits import TeacherLogits


def check_networks(model: Any, teacher: Any) -> None:
    """Raises ArgumentTypeError unless ``model`` is a module with parameters and ``teacher`` can be called."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {_kind(model)}")
    if next(model.parameters(), None) is None:
        raise ArgumentError(f"model must have parameters, got a {type(model).__name__} without any")
    if not isinstance(teacher, TeacherLogits) and not callable(teacher):
        raise ArgumentTypeError(
            f"teacher must be a callable from a batch of images to logits, a torch.nn.Module for example, got "
            f"{_kind(teacher)}"
        )


def image_parts(
    model: nn.Module,
    train_data: ImageData | MapStyle,
    val_data: ImageData | MapStyle,
    test_data: ImageData | MapStyle | None,
    normalise: bool | None,
) -> tuple[ImageData, ImageData, ImageData | None]:
    """The parts of a search on the model's device. How many classes a data set has is how many logits ``model`` gives.

    Raises:
        ArgumentError, ArgumentTypeError: as ``from_dataset``; a part that is empty, that is no data set of images, or
            that does not fit the training part or the model.
    """
    if isinstance(train_data, ImageData) and normalise is not None:
        raise ArgumentError(f"normalise is for data sets; train_data is ImageData with {train_data.normalisation}")
    device = next(model.parameters()).device
    if isinstance(train_data, ImageData):
        check_parts(train_data=train_data)
        train = train_data.to(device)
    else:
        train = from_dataset(train_data, None, "train_data", normalise=normalise).to(device)
    was_training = model.training
    model.eval()
    classes = first_logits("model", model, train, train.num_classes if isinstance(train_data, ImageData) else None)
    model.train(was_training)
    if not isinstance(train_data, ImageData):
        largest = int(train.labels.max())
        if largest >= classes:
            raise ArgumentError(
                f"train_data: labels must lie in 0 to {classes - 1}, since model gives {classes} logits; got {largest}"
            )
        names = train.class_names if len(train.class_names) == classes else ()
        train = dataclasses.replace(train, num_classes=classes, class_names=names)
    val = _like(val_data, "val_data", train)
    test = None if test_data is None else _like(test_data, "test_data", train)
    check_parts(train_data=train, val_data=val, test_data=test)
    return train, val, test


def first_logits(name: str, forward: Callable[[Tensor], Any], train: ImageData, classes: int | None = None) -> int:
    """How many logits ``forward`` gives for each of the first training images; ``classes``: how many it must give.

    Raises:
        ArgumentError, ArgumentTypeError: it does not take these images, or gives no finite logits for them.
    """
    images = train.normalise(train.images[:2])
    try:
        with torch.no_grad():
            logits = logits_of(forward(images), name)
    except (PlantopsError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ArgumentError(f"{name} does not take images {list(images.shape)} of {images.dtype} ({text})") from error
    return check_logits(logits, name, len(images), classes)


def _like(data: ImageData | MapStyle, name: str, train: ImageData) -> ImageData:
    if isinstance(data, ImageData):
        return data.to(train.device)
    part = from_dataset(data, train.num_classes, name, normalise=False)
    if part.images.dtype != train.images.dtype:
        raise ArgumentError(f"{name} must have train_data's images of {train.images.dtype}, got {part.images.dtype}")
    return part.to(train.device).normalised_like(train)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
