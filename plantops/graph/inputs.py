"""What a model is called with: positional and keyword arguments, tensors alone or nested."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from plantops.errors import ArgumentError


def arguments(example_inputs: Any, keywords: Mapping[str, Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call: a tuple or list is the former, a mapping the latter, anything else
    the first argument."""
    if isinstance(example_inputs, Mapping):
        return (), {**example_inputs, **(keywords or {})}
    positional = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    return positional, dict(keywords or {})


def bind(model: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every parameter of ``model.forward``, the defaults included, in order.

    Raises:
        ValueError: the forward does not take them.
    """
    try:
        bound = inspect.signature(model.forward).bind(*positional, **keywords)
    except TypeError as error:
        raise ArgumentError(f"example_inputs: the model's forward does not accept them ({error})") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of a nested value: in tuples, lists, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for _, part in parts(value) for tensor in tensors_in(part)]


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A copy of a nested value with ``function`` of every tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    return rebuilt(value, [map_tensors(function, part) for _, part in parts(value)])


def parts(value: Any) -> list[tuple[Any, Any]]:
    """Keys (of a dataclass: names of fields) and parts of a nested value; nothing for any other."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_record(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def is_record(value: Any) -> bool:
    """Is ``value`` an instance of a dataclass that is read by attribute, no mapping or the like?"""
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping, tuple, list))


def rebuilt(value: Any, new: list[Any]) -> Any:
    """A nested value of the same kind with other parts; any other value itself."""
    keys = [key for key, _ in parts(value)]
    if not keys:
        return value
    if is_record(value):
        result = copy.copy(value)
        for key, part in zip(keys, new, strict=True):
            object.__setattr__(result, key, part)
        return result
    if isinstance(value, Mapping):
        return dict(zip(keys, new, strict=True))
    return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
