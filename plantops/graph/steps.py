"""What the steps between layers do to channels: norms, sums, concatenations, pooling, reshapes.

``Steps`` keeps the layout of each tensor's channel dimension, the groups and what happened to them; ``Flow`` walks the
graph with it and knows the layers.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from plantops.graph import forms, reshapes, rules, shuffles, sizes, splits
from plantops.graph.capture import Capture
from plantops.graph.forms import Form
from plantops.graph.layers import Layers
from plantops.graph.layout import Layout, Refused, Segment
from plantops.graph.partition import Partition

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Event:
    """A node that makes, reads or changes channels of ``group``, which are entries ``start`` and on of its input.

    ``again``: it calls a layer that another event has already.
    """

    kind: str  # "producer", "consumer", "norm", "conv", "activation" (with weights of its own), "pass"
    node: fx.Node
    group: int
    start: int = 0
    repeat: int = 1
    path: tuple[fx.Node, ...] | None = None
    again: bool = False


class Steps:
    """Layouts, groups and events of a captured forward, and how each kind of step changes them.

    Attributes:
        groups: who grows together, and which groups cannot grow.
        partition: where the new channels of each layer come.
        events: what happens to the channels, in execution order.
        refusals: reasons for layers that begin no group.
    """

    def __init__(self, captured: Capture, layers: Layers, partition: Partition) -> None:
        self.partition = partition
        self.groups = partition.groups
        self.events: list[Event] = []
        self.refusals: dict[str, str] = {}
        self._layouts: dict[fx.Node, Layout] = {}
        self._pieces: dict[fx.Node, list[Layout]] = {}  # of nodes that split the channels
        self._layers = layers
        self._read: dict[str, Layout | None] = {}  # by layer, what its first call reads
        self._concrete = captured.concrete

    def _refuse(self, layouts: Iterable[Layout], reason: str) -> None:
        for layout in layouts:
            for group in layout.groups():
                self.groups.refuse(group, reason)

    # Sizes

    def _check_sizes(self, node: fx.Node) -> None:
        """Refuse channels whose number is read, unless only for sizes of which it can be told what they become."""
        for dim, item in sizes.reads(node) or ():
            tensor = node.args[0]
            layout = self._layouts.get(tensor) if isinstance(tensor, fx.Node) else None
            if layout is None or not isinstance(tensor, fx.Node):
                continue
            channels = dim is None or dim % len(tensor.meta["shape"]) == layout.dim
            if channels and (dim is None or not self._told(item)):
                self._refuse([layout], rules.COUNTED)
        if _takes_sizes(node) and node.args[0] not in self._layouts:
            self._refuse_counted(node)

    def _told(self, size: fx.Node) -> bool:
        """Does ``size`` end in steps that look at what it becomes when channels grow?"""
        return all(_takes_sizes(user) or (self.form(user) is not None and self._told(user)) for user in size.users)

    def _refuse_counted(self, node: fx.Node) -> None:
        """Refuse the channels on whose number ``node`` depends."""
        for size in node.all_input_nodes:
            form = None if size.meta.get("shape") else self.form(size)
            for group in form.growth if form else ():
                self.groups.refuse(group, rules.COUNTED)

    def form(self, size: Any) -> Form | None:
        """What a size becomes when channels grow."""
        return forms.of_size(size, self._layouts, self.groups)

    def channels(self, layout: Layout) -> Form:
        """The number of channels of a tensor."""
        return forms.of_layout(layout, self.groups)

    def _counted(self, size: Any) -> Layout | None:
        """The layout whose number of channels ``size`` is."""
        found = sizes.source(size)
        layout = self._layouts.get(found[0]) if found else None
        return layout if found and layout is not None and layout.dim == found[1] else None

    def join_counts(self, node: fx.Node, size: Any, layout: Layout) -> None:
        """Where ``size`` is the number of channels of another tensor than the one with ``layout``, and is as large for
        no reason that the graph knows, both grow together."""
        counted = self._counted(size)
        if counted is not None and [(p.size, p.repeat) for p in counted.segments] == [
            (p.size, p.repeat) for p in layout.segments
        ]:
            self._unite(node, layout, counted)

    def _carry(self, kind: str, node: fx.Node, layout: Layout, block: int, again: bool) -> None:
        """``node`` has tensors of its own for the channels; new ones come in blocks of so many entries."""
        for start, group, part in layout.growing():
            self.events.append(Event(kind, node, group, start, part.repeat, again=again))
            self.groups.in_multiples(group, block // math.gcd(block, part.repeat))

    def _read_again(self, node: fx.Node, source: Layout | None) -> tuple[Layout | None, bool]:
        """What a layer reads, and whether it has been called before: then all its calls must read the same channels
        at the same places, which therefore grow together."""
        name = str(node.target)
        if name not in self._read:
            self._read[name] = source
            return source, False
        first = self._read[name]
        if first is not None and source is not None:
            self._unite(node, first, source)
        elif first is not None or source is not None:
            known = [layout for layout in (first, source) if layout is not None]
            self._refuse(known, f"{name} is used {self._layers.calls(name)} times, with other channels elsewhere")
        return source, True

    # Steps between layers

    def _step(self, node: fx.Node, module: nn.Module | None) -> Layout | None:
        if module is not None and (len(node.args) != 1 or node.kwargs):
            return None
        if module is not None and rules.is_norm(module):
            return self._normalise(node, module)
        if type(module) is nn.PReLU and module.weight.numel() != 1:
            return self._slopes(node, module)
        if _is_pointwise(node, module):
            return self._pointwise(node)
        if module is None and node.target in rules.CAT_FUNCTIONS:
            return self._concatenate(node)
        if module is None and node.target is torch.stack:
            return self._stack(node)
        source = node.args[0] if node.args else None
        layout = self._layouts.get(source) if isinstance(source, fx.Node) else None
        if layout is None or not isinstance(source, fx.Node):
            return None
        shape = source.meta.get("shape")
        if shape is None:  # a tuple of tensors
            return self._taken(node, layout) if node.target is operator.getitem else None
        if _keeps_dimensions(node, module, layout, len(shape)):
            return layout
        if type(module) is nn.GLU or (module is None and node.target in rules.SPLITS):
            found = splits.follow(node, module, layout, len(shape), self)
            if isinstance(found, list):
                self._pieces[node] = found
                return layout  # of all of them, for what takes one
            return found
        if node.target == "expand_as":
            return self._pointwise(node)
        shuffled = shuffles.follow(node, module, layout, self.partition)
        if shuffled is not None:
            return shuffled
        return reshapes.follow(node, module, layout, shape, self, self._concrete)

    def _taken(self, node: fx.Node, layout: Layout) -> Layout | None:
        """One of a tuple of tensors, which have ``layout`` or are pieces of it."""
        source, index = node.args
        pieces = self._pieces.get(source)  # type: ignore[arg-type]
        if pieces is None:
            return layout
        return pieces[index] if isinstance(index, int) else None

    def _normalise(self, node: fx.Node, module: nn.Module) -> Layout:
        layout = self._layouts[node.args[0]]  # type: ignore[index]
        problem = self._layers.norm_problem(str(node.target))
        if problem:
            raise Refused(problem)
        rank = len(node.meta["shape"])
        if layout.dim != 1 or (isinstance(module, INSTANCE_NORMS) and rank != _axes(type(module).__name__) + 2):
            raise Refused(f"{node.target} normalises dimension 1, its channels are the last")
        block = 1
        if isinstance(module, nn.GroupNorm):
            block = module.num_channels // module.num_groups
            for start, _, part in layout.growing():
                if start % block or part.size % block:
                    raise Refused(f"{node.target} (GroupNorm) normalises it together with other channels")
        self._carry("norm", node, layout, block, self._read_again(node, layout)[1])
        return replace(layout, path=(node,) if rules.is_norm_act(module) else ())

    def _slopes(self, node: fx.Node, module: nn.Module) -> Layout:
        layout = self._layouts[node.args[0]]  # type: ignore[index]
        problem = self._layers.sharing_problem(str(node.target))
        if problem:
            raise Refused(problem)
        if layout.dim != 1:
            raise Refused(f"{node.target} has slopes for dimension 1, its channels are the last")
        self._carry("activation", node, layout, 1, self._read_again(node, layout)[1])
        return replace(layout, path=None)

    def _pointwise(self, node: fx.Node) -> Layout | None:
        """One function of all inputs, entry by entry, with torch's broadcasting."""
        tensors = [source for source in node.all_input_nodes if source.meta.get("shape") is not None]
        known = [source for source in tensors if source in self._layouts]
        if not known:
            return None
        if len(tensors) == 1:
            only = self._layouts[known[0]]
            if node.target in rules.CASTS:
                return only
            plain = len(node.all_input_nodes) == 1 and node.args and node.args[0] is known[0]
            return only.through(node) if plain else replace(only, path=None)
        rank = len(node.meta["shape"])
        dims = {self._layouts[source].dim + rank - len(source.meta["shape"]) for source in known}
        if len(dims) > 1:
            raise Refused(f"{rules.joined(node)} a tensor whose channels lie in another dimension")
        (dim,) = dims
        size = node.meta["shape"][dim]
        result: Layout | None = None
        for source in tensors:
            at = dim - (rank - len(source.meta["shape"]))
            own = source.meta["shape"][at] if at >= 0 else 1
            layout = self._layouts.get(source)
            if own == 1 and size > 1:
                if layout is not None:
                    self._refuse([layout], f"{rules.joined(node)} a tensor of more channels (broadcasting)")
            elif layout is None:
                if size > 1 or at >= 0:
                    raise Refused(f"{rules.joined(node)} {_describe(source)}, which cannot grow")
            elif result is None:
                result = layout
            else:
                result = self._unite(node, result, layout)
        return None if result is None else replace(result, dim=dim, path=None)

    def _unite(self, node: fx.Node, first: Layout, second: Layout) -> Layout:
        try:
            self.partition.match(first, second, f"{rules.joined(node)} channels that are made of other parts")
        except Refused as reason:
            self._refuse([first, second], str(reason))
            return first
        for a, b in zip(first.segments, second.segments, strict=True):
            if a.group is not None and b.group is not None:
                self.groups.unite(a.group, b.group)
            elif a.group is not None or b.group is not None:
                group = a.group if a.group is not None else b.group
                assert group is not None
                self.groups.refuse(group, f"{rules.joined(node)} channels that cannot grow")
        return first

    def _concatenate(self, node: fx.Node) -> Layout | None:
        parts = rules.argument(node, 0, "tensors", ())
        rank = len(node.meta["shape"])
        dim = rules.argument(node, 1, "dim", node.kwargs.get("axis", 0)) % rank
        if isinstance(parts, fx.Node):
            return self._concatenate_pieces(parts, dim)
        known = [self._layouts[part] for part in parts if part in self._layouts]
        if any(layout.dim != known[0].dim for layout in known):
            raise Refused("it is concatenated with a tensor whose channels lie in another dimension")
        if known[0].dim != dim:
            if len(known) < len(parts):
                raise Refused("it is concatenated, along another dimension, with a tensor that cannot grow")
            result = known[0]
            for layout in known[1:]:
                result = self._unite(node, result, layout)
            return replace(result, path=None)
        segments: list[Segment] = []
        for part in parts:
            own = self._layouts.get(part)
            segments += own.segments if own else [Segment(None, part.meta["shape"][dim])]
        path = known[0].path if len(known) == 1 else None
        return Layout(dim, tuple(segments), path)

    def _concatenate_pieces(self, split: fx.Node, dim: int) -> Layout | None:
        """All pieces of channels that were split, one after the other again."""
        pieces = self._pieces.get(split)
        if pieces is None or pieces[0].dim != dim:
            return None
        return replace(pieces[0], segments=tuple(part for piece in pieces for part in piece.segments), path=None)

    def _stack(self, node: fx.Node) -> Layout:
        """Tensors of the same channels, side by side in a new dimension."""
        parts = rules.argument(node, 0, "tensors", ())
        dim = rules.argument(node, 1, "dim", 0) % len(node.meta["shape"])
        if isinstance(parts, fx.Node) or any(part not in self._layouts for part in parts):
            raise Refused("it is stacked with a tensor that cannot grow")
        result = self._layouts[parts[0]]
        for part in parts[1:]:
            if self._layouts[part].dim != result.dim:
                raise Refused("it is stacked with a tensor whose channels lie in another dimension")
            result = self._unite(node, result, self._layouts[part])
        return replace(result, dim=result.dim + (dim <= result.dim), path=None)


def _takes_sizes(node: fx.Node) -> bool:
    """Does ``node`` take sizes of which the rules tell whether they fit after growth?"""
    if node.op not in ("call_function", "call_method"):
        return False
    source = node.args[0] if node.args else None
    cuts = node.target is operator.getitem and isinstance(source, fx.Node) and bool(source.meta.get("shape"))
    return cuts or reshapes.is_reshape(node) or node.target in rules.SPLITS


def _describe(source: fx.Node) -> str:
    if source.op == "placeholder":
        return f"the model's input {source.name}"
    if source.op == "get_attr":
        return f"the tensor {source.target} of the model"
    return f"the output of {rules.step_name(source)}"


def _is_pointwise(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return type(module) in rules.POINTWISE_MODULES or rules.is_stochastic_depth(module)
    if node.op == "call_method":
        return node.target in rules.POINTWISE_METHODS
    return node.target in rules.POINTWISE_FUNCTIONS or getattr(node.target, "__name__", "") == "stochastic_depth"


def _keeps_dimensions(node: fx.Node, module: nn.Module | None, layout: Layout, rank: int) -> bool:
    """Dropout, pooling and padding over other dimensions, norms and softmax over other dimensions."""
    if module is not None:
        if type(module) in rules.DROPOUT_MODULES:
            return True
        if type(module) in (nn.LayerNorm, nn.RMSNorm):
            return layout.dim < rank - len(module.normalized_shape)  # type: ignore[arg-type]
        if type(module) in (nn.Softmax, nn.LogSoftmax):
            return isinstance(module.dim, int) and module.dim % rank != layout.dim
        indices = getattr(module, "return_indices", False)
        return type(module) in rules.POOL_MODULES and not indices and _over_images(type(module).__name__, layout, rank)
    if node.target in rules.DROPOUT_FUNCTIONS or node.target == "type_as":
        return True
    if node.target in (F.layer_norm, torch.layer_norm):
        over: Sequence[int] = rules.argument(node, 1, "normalized_shape", ())
        return layout.dim < rank - len(over)
    if node.target in rules.SOFTMAX:
        dim = rules.argument(node, 1, "dim", None)
        return isinstance(dim, int) and dim % rank != layout.dim
    if node.target is F.pad:
        pads = rules.argument(node, 1, "pad", ())
        return layout.dim < rank - len(pads) // 2
    indices = node.kwargs.get("return_indices", False)
    return node.target in rules.POOL_FUNCTIONS and not indices and _over_images(node.target.__name__, layout, rank)


def _over_images(name: str, layout: Layout, rank: int) -> bool:
    """Does the pooling, padding or upsampling ``name`` take dimension 1 for the channels, as the layout has it?"""
    axes = _axes(name)
    return layout.dim == 1 and (rank == axes + 2 if axes else rank > 2)


def _axes(name: str) -> int:
    """How many dimensions a layer or function of this name works over: 2 for MaxPool2d; 0 where it does not say."""
    return next((axes for axes in (1, 2, 3) if f"{axes}d" in name), 0)
