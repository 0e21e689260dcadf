"""Networks by name: ``torchvision:resnet18``, ``timm:mobilenetv3_small_050``, ``package.module:factory``."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from plantops.errors import ArgumentError
from plantops.train.seeds import generator

SOURCE = "_plantops_source"
"""Attribute of a model that ``ZooFamily`` made: the arguments that make it again. Copies and grown models keep it."""
LIBRARIES = ("torchvision", "timm")


def is_name(text: str) -> bool:
    """Could ``text`` name a network, rather than a folder?"""
    library, sign, name = text.partition(":")
    return bool(sign and name) and all(part.isidentifier() for part in library.split("."))


def make(text: str, num_classes: int, shape: Sequence[int]) -> nn.Module:
    """The network called ``text``, with random weights (a factory of the user's own may load some).

    Args:
        text: ``torchvision:NAME``, ``timm:NAME``, or ``package.module:factory``. A factory is called with those of
            ``num_classes``, ``in_channels`` and ``image_size`` that its signature has.
        num_classes: of its logits.
        shape: of an image, ``(channels, height, width)``.

    Raises:
        ValueError: no such network, or one that does not turn these images into these logits.
    """
    model = _factory(text, num_classes, shape)()
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{text} must make a torch.nn.Module, got {type(model).__name__}")
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *shape))
    except Exception as error:
        text_of = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ArgumentError(f"{text} does not take images {list(shape)} ({text_of})") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ArgumentError(
            f"{text} must give logits {[2, num_classes]} for 2 images of {num_classes} classes, got {got}"
        )
    setattr(model, SOURCE, {"model": text, "num_classes": num_classes, "shape": list(shape)})
    return model.train()


def _factory(text: str, num_classes: int, shape: Sequence[int]) -> Callable[[], Any]:
    if not is_name(text):
        raise ArgumentError(f"a network is torchvision:NAME, timm:NAME or package.module:factory, got {text!r}")
    library, _, name = text.partition(":")
    try:
        module = importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except ImportError as error:
        raise ArgumentError(f"{text}: {error}; install {library}, or run where it can be imported") from error
    if library == "torchvision":
        build, options = _torchvision(module, name), {"weights": None, "num_classes": num_classes}
        options |= {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return lambda: build(**options)
    if library == "timm":
        if not module.is_model(name):
            near = _near(name, module.list_models())
            raise ArgumentError(f"timm has no model {name!r}; {near}timm.list_models() lists them")
        return lambda: module.create_model(name, pretrained=False, num_classes=num_classes, in_chans=shape[0])
    factory = getattr(module, name, None)
    if factory is None or not callable(factory):
        raise ArgumentError(f"{library} has no function or class {name!r}")
    known = {"num_classes": num_classes, "in_channels": shape[0], "image_size": shape[1]}
    asked = inspect.signature(factory).parameters
    return lambda: factory(**{key: value for key, value in known.items() if key in asked})


def _torchvision(models: Any, name: str) -> Callable[..., Any]:
    try:
        return models.get_model_builder(name)
    except ValueError:
        near = _near(name, models.list_models(models))
        raise ArgumentError(
            f"torchvision has no classification model {name!r}; {near}"
            "torchvision.models.list_models(torchvision.models) lists them"
        ) from None


def _near(name: str, names: Sequence[str]) -> str:
    """The names that look most like ``name``, as a part of a sentence."""
    found = difflib.get_close_matches(name, names, 3, cutoff=0.4)
    return f"did you mean {' or '.join(found)}? " if found else ""


@dataclass(frozen=True)
class ZooFamily:
    """What ``Family`` is for the paper's networks: a student, and a teacher that is made with it or not."""

    student: str
    teacher: str
    num_classes: int
    shape: tuple[int, ...]

    def build(self, widths: Sequence[int], seed: int, name: str) -> nn.Module:
        """The network called ``name``, its weights a function of (seed, name) alone; it has its own ``widths``."""
        own = generator(seed, "init", name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own.initial_seed())
            return make(self.teacher if name == "teacher" else self.student, self.num_classes, self.shape)
