"""Sizes as functions of growth: what ``x.shape[1] // 2`` is once the channels that it counts have grown.

A size is ``base + sum_g growth[g] * k_g``, where group g grows by k_g units. Whether a reshape, a split or a slice
still fits after growth is then an equation between such forms, in place of a guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import fx

from plantops.graph import sizes
from plantops.graph.layout import Groups, Layout

Growth = dict[int, Fraction]


@dataclass(frozen=True)
class Form:
    """``base`` now; ``growth``: by group (its representative), what one unit of it adds; no zeros."""

    base: Fraction
    growth: Growth

    def __add__(self, other: Form) -> Form:
        keys = {**self.growth, **other.growth}
        total = {key: self.growth.get(key, Fraction(0)) + other.growth.get(key, Fraction(0)) for key in keys}
        return Form(self.base + other.base, {key: value for key, value in total.items() if value})

    def scaled(self, factor: Fraction | int) -> Form:
        return Form(self.base * factor, {key: value * factor for key, value in self.growth.items() if factor})

    def constant(self) -> bool:
        return not self.growth


def number(value: int) -> Form:
    return Form(Fraction(value), {})


def of_layout(layout: Layout, groups: Groups) -> Form:
    """How many channels a tensor has."""
    total = number(0)
    for part in layout.segments:
        own = {} if part.group is None else {groups.find(part.group): Fraction(part.repeat)}
        total = total + Form(Fraction(part.size), own)
    return total


def of_size(size: Any, layouts: Mapping[fx.Node, Layout], groups: Groups) -> Form | None:
    """The form of a number in the graph: a literal, a size that is read, or sums, products with and whole quotients by
    numbers that do not grow. None for anything else."""
    if isinstance(size, int):
        return number(size)
    found = sizes.source(size)
    if found is not None:
        tensor, dim = found
        layout = layouts.get(tensor)
        return of_layout(layout, groups) if layout and layout.dim == dim else number(tensor.meta["shape"][dim])
    combine = _ARITHMETIC.get(size.target) if isinstance(size, fx.Node) and not size.kwargs else None
    if combine is None:
        return None
    parts = [of_size(part, layouts, groups) for part in size.args]
    return None if any(part is None for part in parts) else combine(*parts)


def _times(first: Form, second: Form) -> Form | None:
    if second.constant():
        return first.scaled(second.base)
    return second.scaled(first.base) if first.constant() else None


def _quotient(first: Form, second: Form) -> Form | None:
    """A whole quotient; its growth may be a fraction, which fits nothing that grows by whole channels."""
    whole = second.constant() and second.base != 0 and (first.base / second.base).denominator == 1
    return first.scaled(1 / second.base) if whole else None


_ARITHMETIC: dict[Any, Callable[..., Form | None]] = {
    operator.add: Form.__add__,
    operator.sub: lambda first, second: first + second.scaled(-1),
    operator.neg: lambda only: only.scaled(-1),
    operator.mul: _times,
    operator.floordiv: _quotient,
}
