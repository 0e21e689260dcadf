"""Where channels lie behind operations that move, merge, split or drop dimensions.

Every function here takes a node, the layout of the tensor it changes and that tensor's shape; it gives the layout
behind the node, None when the node is no such operation, or raises ``Refused``.
"""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import fx, nn

from plantops.graph import rules, splits
from plantops.graph.forms import Form, number
from plantops.graph.layout import Layout, Refused
from plantops.graph.rules import COUNTED, argument


class Sizes(splits.Sizes, Protocol):
    """What is known of sizes and channels."""

    def join_counts(self, node: fx.Node, size: Any, layout: Layout) -> None: ...


def is_reshape(node: fx.Node) -> bool:
    """``view``, ``reshape``, ``unflatten`` or ``expand`` to sizes given one by one."""
    method = node.op == "call_method" and node.target in ("view", "reshape", "expand", "unflatten")
    return method or node.target in rules.RESHAPE_FUNCTIONS


def follow(
    node: fx.Node, module: nn.Module | None, layout: Layout, shape: Sequence[int], known: Sizes, literal_batch: bool
) -> Layout | None:
    """The layout behind ``node``. ``literal_batch``: numbers in the batch dimension of a reshape may have been read."""
    kind = None if node.op == "call_module" else node.target
    if type(module) is nn.Flatten:
        return _flatten(node, layout, shape, module.start_dim, module.end_dim)
    if kind in rules.FLATTEN_FUNCTIONS or kind == "flatten":
        return _flatten(node, layout, shape, argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))
    if kind == "expand":
        return _expand(node, layout, shape, known)
    if kind in (torch.unflatten, "unflatten"):
        dim, inner = argument(node, 1, "dim", 0) % len(shape), argument(node, 2, "sizes", ())
        return _reshape(node, layout, shape, [*shape[:dim], *inner, *shape[dim + 1 :]], known, True)
    if kind is not None and is_reshape(node):
        return _reshape(node, layout, shape, _sizes(node), known, literal_batch)
    if kind in (torch.permute, "permute"):
        dims = _sizes(node, "dims")
        order = [dim % len(shape) for dim in dims if isinstance(dim, int)]
        return layout.at(order.index(layout.dim)) if layout.dim in order else None
    if kind in (torch.transpose, "transpose"):
        first, second = (argument(node, at, f"dim{at - 1}", 0) % len(shape) for at in (1, 2))
        return layout.at({first: second, second: first}.get(layout.dim, layout.dim))
    if kind in (torch.unsqueeze, "unsqueeze"):
        dim = argument(node, 1, "dim", 0) % (len(shape) + 1)
        return layout.at(layout.dim + (dim <= layout.dim))
    if kind in (torch.squeeze, "squeeze"):
        return _squeeze(node, layout, shape)
    if kind in rules.REDUCTIONS:
        return _reduce(node, layout, shape)
    if kind is operator.getitem:
        return _index(node, layout, shape, known)
    return None


def _flatten(node: fx.Node, layout: Layout, shape: Sequence[int], first: int, last: int) -> Layout:
    begin, end = first % len(shape), last % len(shape)
    if layout.dim < begin:
        return layout
    if layout.dim > end:
        return layout.at(layout.dim - (end - begin))
    if layout.dim == begin:
        return layout.repeated(math.prod(shape[begin + 1 : end + 1]))
    name = rules.step_name(node)
    if layout.dim == len(shape) - 1 and begin == 1:
        raise Refused(f"{name} flattens its features together with other dimensions")
    raise Refused(f"{name} flattens dimensions {first} to {last}, not all behind the batch")


def _sizes(node: fx.Node, name: str = "shape") -> Sequence[Any]:
    if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)):
        return tuple(node.args[1])
    sizes: Any = node.args[1:] or node.kwargs.get(name) or node.kwargs.get("size") or ()
    return tuple(sizes)


def _reshape(
    node: fx.Node, layout: Layout, shape: Sequence[int], sizes: Sequence[Any], known: Sizes, literal_batch: bool
) -> Layout:
    if len(sizes) == len(node.meta["shape"]):
        for size in sizes:
            known.join_counts(node, size, layout)
        forms = _forms(sizes, layout, shape, known)
        grows = [at for at, form in enumerate(forms) if form is None or not form.constant()]
        read = literal_batch or grows == [0] or not isinstance(sizes[0], int) or sizes[0] == -1
        if len(grows) == 1 and read:
            found = _regrouped(node, layout, shape, sizes, grows[0], known)
            if found is not None:
                return found
    given = [known.form(size) for size in sizes]
    if any(form is not None and not form.constant() for form in given):
        raise Refused(COUNTED)
    text = ", ".join(str(size) for size in sizes)
    kind = "literal sizes" if any(isinstance(size, int) and size != -1 for size in sizes) else "sizes"
    raise Refused(
        f"it is reshaped to the {kind} ({text}), which need not fit once it has grown: use torch.flatten(x, 1)"
    )


def _forms(sizes: Sequence[Any], layout: Layout, shape: Sequence[int], known: Sizes) -> list[Form | None]:
    """What every size of a reshape becomes, -1 among them; None where that cannot be told."""
    forms = [None if isinstance(size, int) and size == -1 else known.form(size) for size in sizes]
    if -1 not in [size for size in sizes if isinstance(size, int)]:
        return forms
    total = known.channels(layout).scaled(math.prod(shape) // shape[layout.dim])
    at = next(i for i, size in enumerate(sizes) if isinstance(size, int) and size == -1)
    others = [form for i, form in enumerate(forms) if i != at]
    grown = [form for form in others if form is not None and not form.constant()]
    if any(form is None or form.base == 0 for form in others) or len(grown) > 1:
        return forms
    rest = total
    for form in others:
        if form is not None:
            rest = rest.scaled(1 / form.base)
    if grown:  # the others take all growth, or it cannot be told what is left
        if grown[0].scaled(total.base / grown[0].base) != total:
            return forms
        rest = number(int(rest.base))
    forms[at] = rest
    return forms


def _regrouped(
    node: fx.Node, layout: Layout, shape: Sequence[int], sizes: Sequence[Any], at: int, known: Sizes
) -> Layout | None:
    """The layout where new dimension ``at`` alone grows: it holds the channels, with dimensions behind them merged into
    it, and cut into groups and neighbours by the new dimensions before and behind it."""
    new = node.meta["shape"]
    reason = f"{node.name} groups its channels in a way that growth would not keep"
    for begin, end, old_end in _blocks(layout.dim, shape, new):
        if not begin <= at < end:
            continue
        result = layout.repeated(math.prod(shape[layout.dim + 1 : old_end]))
        inner, outer = math.prod(new[at + 1 : end]), math.prod(new[begin:at])
        if inner > 1:
            result = known.partition.folded(result, inner, reason)
        if outer > 1:
            result = known.partition.runs(result, outer, reason)[0]
        # Only now: what has just come to grow together counts as one.
        if known.channels(result) == _forms(sizes, layout, shape, known)[at]:
            return result.at(at)
    return None


def _blocks(dim: int, shape: Sequence[int], new: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """New dimensions ``begin`` to ``end`` that hold what old dimensions ``dim`` to ``old_end`` do, the shortest
    first."""
    before = math.prod(shape[:dim])
    for begin in range(len(new)):
        if math.prod(new[:begin]) != before:
            continue
        for end in range(begin + 1, len(new) + 1):
            for old_end in range(dim + 1, len(shape) + 1):
                if math.prod(shape[dim:old_end]) == math.prod(new[begin:end]):
                    yield begin, end, old_end


def _expand(node: fx.Node, layout: Layout, shape: Sequence[int], known: Sizes) -> Layout:
    sizes = _sizes(node)
    at = layout.dim + len(sizes) - len(shape)
    known.join_counts(node, sizes[at], layout)
    if sizes[at] != -1 and known.form(sizes[at]) != known.channels(layout):
        raise Refused(f"{node.name} expands it to literal sizes, which need not fit once it has grown")
    forms = [known.form(size) for i, size in enumerate(sizes) if i != at]
    if any(form is not None and not form.constant() for form in forms):
        raise Refused(COUNTED)
    return layout.at(at)


def _squeeze(node: fx.Node, layout: Layout, shape: Sequence[int]) -> Layout | None:
    asked = argument(node, 1, "dim", None)
    dims = range(len(shape)) if asked is None else [asked] if isinstance(asked, int) else asked
    gone = {dim % len(shape) for dim in dims if shape[dim] == 1}
    if layout.dim in gone:
        return None
    return layout.at(layout.dim - sum(dim < layout.dim for dim in gone))


def _reduce(node: fx.Node, layout: Layout, shape: Sequence[int]) -> Layout:
    asked = argument(node, 1, "dim", None)
    dims = range(len(shape)) if asked is None else [asked] if isinstance(asked, int) else asked
    gone = {dim % len(shape) for dim in dims}
    if layout.dim in gone:
        raise Refused(f"{rules.step_name(node)} reduces over its channels")
    if argument(node, 2, "keepdim", False):
        return layout
    return layout.at(layout.dim - sum(dim < layout.dim for dim in gone))


def _index(node: fx.Node, layout: Layout, shape: Sequence[int], known: Sizes) -> Layout | None:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(not (part is None or part is Ellipsis or isinstance(part, (int, slice))) for part in index):
        return None
    used = sum(part is not None and part is not Ellipsis for part in index)
    parts: list[Any] = []
    for part in index:
        parts += [slice(None)] * (len(shape) - used) if part is Ellipsis else [part]
    old = new = 0
    for part in parts:
        if part is None:
            new += 1
            continue
        if old == layout.dim:
            rest = [end for other in parts if isinstance(other, slice) and other is not part
                    for end in (other.start, other.stop)]  # fmt: skip
            splits.check_constant(rest, known)
            if isinstance(part, int):
                raise Refused(f"{node.name} takes one of its channels")
            whole = part == slice(None)
            return (layout if whole else splits.piece(node, layout, *splits.bounds(part, layout, known), known)).at(new)
        new += not isinstance(part, int)
        old += 1
    return replace(layout, dim=new + layout.dim - old)
