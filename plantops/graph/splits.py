"""Where channels lie behind ``split``, ``chunk``, ``narrow``, ``unbind``, ``glu`` and slices of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import fx, nn

from plantops.graph.forms import Form, number
from plantops.graph.layout import Layout, Refused
from plantops.graph.partition import Partition
from plantops.graph.rules import COUNTED, argument, step_name


class Sizes(Protocol):
    """What is known of sizes and channels."""

    partition: Partition

    def form(self, size: Any) -> Form | None: ...
    def channels(self, layout: Layout) -> Form: ...


def follow(node: fx.Node, module: nn.Module | None, layout: Layout, rank: int, known: Sizes) -> Layout | list[Layout]:
    """The layout of every part behind ``node``, one for all where another dimension is split.

    Raises:
        Refused: parts that would not be the same channels after growth.
    """
    if isinstance(module, nn.GLU):
        kind, dim = "glu", module.dim % rank
    else:
        kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        at = {"unbind": 1, "glu": 1, "narrow": 1}.get(kind, 2)
        dim = argument(node, at, "dim", -1 if kind == "glu" else 0) % rank
    if dim != layout.dim:
        check_constant(node.all_input_nodes, known)
        return layout.at(layout.dim - 1) if kind == "unbind" and dim < layout.dim else layout
    if kind == "unbind":
        raise Refused(f"{node.name} takes its channels apart one by one")
    if kind == "narrow":
        start, length = (known.form(argument(node, i, n, None)) for i, n in ((2, "start"), (3, "length")))
        return piece(node, layout, start, None if start is None or length is None else start + length, known)
    if kind == "glu":
        return known.partition.runs(layout, 2, _unlike(node, 2))[0]
    sizes = argument(node, 1, "chunks" if kind == "chunk" else "split_size_or_sizes", node.kwargs.get("split_size"))
    if kind != "chunk":
        return _split(node, layout, sizes, known)
    if not isinstance(sizes, int):
        raise Refused(f"{node.name} splits it into a number of parts that the forward computes")
    return known.partition.runs(layout, sizes, _unlike(node, sizes))


def check_constant(values: Iterable[Any], known: Sizes) -> None:
    """Refuse where one of ``values`` is a number of channels that grow."""
    for value in values:
        form = known.form(value)
        if form is not None and not form.constant():
            raise Refused(COUNTED)


def piece(node: fx.Node, layout: Layout, start: Form | None, end: Form | None, known: Sizes) -> Layout:
    """The channels from ``start`` to ``end``."""
    reason = f"{node.name} takes a range of its channels that would be others once it has grown"
    if start is None or end is None:
        raise Refused(reason)
    return known.partition.pieces(layout, [start, end], reason)[1]


def bounds(part: slice, layout: Layout, known: Sizes) -> tuple[Form | None, Form | None]:
    """Where a slice of the channels starts and ends."""
    total = known.channels(layout)

    def place(end: Any, default: Form) -> Form | None:
        form = default if end is None else known.form(end)
        return form if form is None or form.base >= 0 else form + total

    if part.step not in (None, 1):
        return None, None
    return place(part.start, number(0)), place(part.stop, total)


def _split(node: fx.Node, layout: Layout, sizes: Any, known: Sizes) -> list[Layout]:
    total = known.channels(layout)
    literal = f"{node.name} splits it into parts of literal sizes, which would not be its channels once it has grown"
    if not isinstance(sizes, (tuple, list)):
        each = known.form(sizes)
        if each is None or each.constant() or (total.base / each.base).denominator != 1:
            raise Refused(literal)
        count = int(total.base / each.base)
        if each.scaled(count) != total:
            raise Refused(literal)
        return known.partition.runs(layout, count, _unlike(node, count))
    ends = [number(0)]
    for size in sizes:
        form = known.form(size)
        if form is None:
            raise Refused(literal)
        ends.append(ends[-1] + form)
    if ends[-1] != total:
        raise Refused(literal)
    return known.partition.pieces(layout, ends[1:], literal)


def _unlike(node: fx.Node, count: int) -> str:
    return f"{step_name(node)} splits it into {count} parts that are not made alike"
