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

from plantops.graph import reshapes, rules, shuffles, sizes
from plantops.graph.capture import Capture
from plantops.graph.layers import Layers
from plantops.graph.layout import Groups, Layout, Refused, Segment

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
        events: what happens to the channels, in execution order.
        refusals: reasons for layers that begin no group.
    """

    def __init__(self, captured: Capture, layers: Layers) -> None:
        self.groups = Groups()
        self.events: list[Event] = []
        self.refusals: dict[str, str] = {}
        self._layouts: dict[fx.Node, Layout] = {}
        self._layers = layers
        self._read: dict[str, Layout | None] = {}  # by layer, what its first call reads
        self._concrete = captured.concrete

    def _refuse(self, layouts: Iterable[Layout], reason: str) -> None:
        for layout in layouts:
            for group in layout.groups():
                self.groups.refuse(group, reason)

    # Sizes

    def _check_sizes(self, node: fx.Node) -> None:
        """Refuse channels whose number is read, unless only to reshape a tensor that has as many."""
        for dim, item in sizes.reads(node) or ():
            tensor = node.args[0]
            layout = self._layouts.get(tensor) if isinstance(tensor, fx.Node) else None
            if layout is None or not isinstance(tensor, fx.Node):
                continue
            channels = dim is None or dim % len(tensor.meta["shape"]) == layout.dim
            if channels and (dim is None or not all(reshapes.is_reshape(user) for user in item.users)):
                self._refuse([layout], reshapes.COUNTED)
        if reshapes.is_reshape(node) and node.args[0] not in self._layouts:
            counted = [self._counted(size) for size in reshapes.size_arguments(node)]
            self._refuse([layout for layout in counted if layout is not None], reshapes.COUNTED)

    def _counted(self, size: Any) -> Layout | None:
        """The layout whose number of channels ``size`` is."""
        found = sizes.source(size)
        layout = self._layouts.get(found[0]) if found else None
        return layout if found and layout is not None and layout.dim == found[1] else None

    def _counts(self, node: fx.Node, size: Any, layout: Layout) -> bool | None:
        """Is ``size`` the number of channels of ``layout``? One that is as large for another reason makes both grow
        together."""
        counted = self._counted(size)
        if counted is None:
            return None
        if [(p.size, p.repeat) for p in counted.segments] == [(p.size, p.repeat) for p in layout.segments]:
            self._unite(node, layout, counted)
            return True
        self._refuse([counted], reshapes.COUNTED)
        return False

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
        source = node.args[0] if node.args else None
        layout = self._layouts.get(source) if isinstance(source, fx.Node) else None
        if layout is None or not isinstance(source, fx.Node):
            return None
        shape = source.meta.get("shape")
        if shape is None:  # a tuple of tensors with this layout
            return layout if node.target is operator.getitem else None
        if _keeps_dimensions(node, module, layout, len(shape)):
            return layout
        if module is None and node.target in rules.SPLITS:
            return _split(node, layout, len(shape))
        if node.target == "expand_as":
            return self._pointwise(node)
        shuffled = shuffles.follow(node, module, layout, self.groups)
        if shuffled is not None:
            return shuffled
        return reshapes.follow(
            node, module, layout, shape, lambda size: self._counts(node, size, layout), self._concrete
        )

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
        pairs = list(zip(first.segments, second.segments, strict=False))
        alike = all(a.repeat == b.repeat for a, b in pairs if a.group is not None and b.group is not None)
        if not alike or [p.size for p in first.segments] != [p.size for p in second.segments]:
            self._refuse([first, second], f"{rules.joined(node)} channels that are made of other parts")
            return first
        for a, b in pairs:
            if a.group is not None and b.group is not None:
                self.groups.unite(a.group, b.group)
            elif a.group is not None or b.group is not None:
                group = a.group if a.group is not None else b.group
                assert group is not None
                self.groups.refuse(group, f"{rules.joined(node)} channels that cannot grow")
        return first

    def _concatenate(self, node: fx.Node) -> Layout:
        parts = reshapes.argument(node, 0, "tensors", ())
        rank = len(node.meta["shape"])
        dim = reshapes.argument(node, 1, "dim", node.kwargs.get("axis", 0)) % rank
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
    """Dropout, pooling and padding over other dimensions, norms over other dimensions."""
    if module is not None:
        if type(module) in rules.DROPOUT_MODULES:
            return True
        if type(module) in (nn.LayerNorm, nn.RMSNorm):
            return layout.dim < rank - len(module.normalized_shape)  # type: ignore[arg-type]
        indices = getattr(module, "return_indices", False)
        return type(module) in rules.POOL_MODULES and not indices and _over_images(type(module).__name__, layout, rank)
    if node.target in rules.DROPOUT_FUNCTIONS or node.target == "type_as":
        return True
    if node.target in (F.layer_norm, torch.layer_norm):
        over: Sequence[int] = reshapes.argument(node, 1, "normalized_shape", ())
        return layout.dim < rank - len(over)
    if node.target is F.pad:
        pads = reshapes.argument(node, 1, "pad", ())
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


def _split(node: fx.Node, layout: Layout, rank: int) -> Layout | None:
    """``split``, ``chunk`` and ``unbind`` along another dimension: the same layout for every part."""
    unbind = node.target in (torch.unbind, "unbind")
    dim = reshapes.argument(node, 1 if unbind else 2, "dim", 0) % rank
    if dim == layout.dim:
        raise Refused(f"{node.name} splits it into parts whose number of channels would change")
    return layout.at(layout.dim - 1) if unbind and dim < layout.dim else layout
