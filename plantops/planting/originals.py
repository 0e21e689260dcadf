"""The parameters that a model had before it was planted, without keeping them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


class Originals:
    """Parameters by name, as weak references. Copies of a planted model share them; a stored one has none."""

    def __init__(self, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        self._parameters = {name: weakref.ref(parameter) for name, parameter in (parameters or {}).items()}

    def items(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are still alive: an optimizer that holds them keeps them so."""
        for name, reference in self._parameters.items():
            parameter = reference()
            if parameter is not None:
                yield name, parameter

    def __deepcopy__(self, memo: dict[int, Any]) -> Originals:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Originals, ())
