"""Follow every layer's channels through the whole graph of a forward.

``Flow`` visits the nodes once, in execution order, and keeps the layout of each tensor's channel dimension. A layer's
output begins a group; sums and gates unite groups; convolutions and linear layers read them. What is not known to
keep channels apart refuses every group that reaches it, with the reason: nothing is guessed.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from plantops.graph import reshapes, rules, sizes
from plantops.graph.capture import Capture
from plantops.graph.layers import Layers, widths
from plantops.graph.layout import Groups, Layout, Refused, Segment

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Event:
    """A node that makes, reads or changes channels of ``group``, which are entries ``start`` and on of its input."""

    kind: str  # "producer", "consumer", "norm", "conv", "activation" (with weights of its own), "pass"
    node: fx.Node
    group: int
    start: int = 0
    repeat: int = 1
    path: tuple[fx.Node, ...] | None = None


class Flow:
    """The layouts and groups of a captured forward.

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
        self._concrete = captured.concrete
        for node in captured.graph.nodes:
            layout = self._visit(node)
            if layout is not None:
                self._layouts[node] = layout

    def _visit(self, node: fx.Node) -> Layout | None:
        self._check_sizes(node)
        module = self._layers.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear)):
            return self._layer(node, module)
        inputs = [self._layouts[source] for source in node.all_input_nodes if source in self._layouts]
        if not inputs or sizes.reads(node) is not None or _reads_no_channels(node):
            return None
        try:
            if node.op == "output" or _holds_output(node):
                raise Refused("its channels are the model's output")
            layout = self._step(node, module)
            if layout is None:
                raise Refused(rules.reason_not_followed(node, module))
        except Refused as reason:
            self._refuse(inputs, str(reason))
            return None
        if module is None or not rules.is_norm(module):
            self.events += [Event("pass", node, group) for group in layout.groups()]
        return layout

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

    # Layers

    def _layer(self, node: fx.Node, module: nn.Module) -> Layout | None:
        name = str(node.target)
        problem = self._layers.weight_problem(name)
        if not isinstance(module, nn.Bilinear) and (len(node.args) != 1 or node.kwargs):
            problem = f"{name} is called with keywords or with more than its input"
            inputs = [self._layouts[source] for source in node.all_input_nodes if source in self._layouts]
            self._refuse(inputs, f"the layer that reads it cannot be planted: {problem}")
        source = self._layouts.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if source is not None and problem is not None:
            self._refuse([source], f"the layer that reads it cannot be planted: {problem}")
        elif source is not None:
            try:
                self._check_read(node, module, source)
            except Refused as reason:
                self._refuse([source], str(reason))
                source = None
        if isinstance(module, _ConvNd) and module.groups > 1:
            return self._grouped(node, module, source, problem)
        if source is not None and problem is None:
            for start, group, part in source.growing():
                self.events.append(Event("consumer", node, group, start, part.repeat, source.path))
        if isinstance(module, nn.Bilinear):
            self.refusals.setdefault(name, str(problem))
            return None
        return self._produce(node, module, problem)

    def _check_read(self, node: fx.Node, module: nn.Module, source: Layout) -> None:
        last = len(node.args[0].meta["shape"]) - 1  # type: ignore[union-attr]
        if isinstance(module, nn.Linear) and source.dim != last:
            raise Refused(f"{node.target} is a linear layer over the last dimension, not over its channels")
        if isinstance(module, _ConvNd) and (source.dim != 1 or last + 1 != module.weight.dim()):
            raise Refused(f"{node.target} is a convolution over features that are not channels of an image")

    def _produce(self, node: fx.Node, module: nn.Module, problem: str | None) -> Layout:
        group = self.groups.new()
        self.events.append(Event("producer", node, group))
        shape = node.meta["shape"]
        conv = isinstance(module, _ConvNd)
        if problem is not None:
            self.groups.refuse(group, problem)
        elif isinstance(module, _ConvNd) and len(shape) != module.weight.dim():
            axes = ("L", "H, W", "D, H, W")[module.weight.dim() - 3]
            self.groups.refuse(group, f"it gives {list(shape)} instead of a batch [N, C, {axes}]")
        return Layout(1 if conv else len(shape) - 1, (Segment(group, widths(module)[1]),))

    def _grouped(self, node: fx.Node, conv: _ConvNd, source: Layout | None, problem: str | None) -> Layout | None:
        """A convolution that grows by whole groups with its input; a depthwise one by channels."""
        name = str(node.target)
        if problem is not None or source is None:
            alone = f"{name} is a grouped convolution (groups={conv.groups}) whose input cannot grow"
            self.refusals.setdefault(name, problem or alone)
            return None
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        parts = []
        try:
            for start, _, part in source.growing():
                if start % inputs or part.size % inputs or part.repeat * outputs % inputs:
                    raise Refused(f"{name} is a grouped convolution whose groups mix it with other channels")
            for part in source.segments:
                if part.size % inputs:
                    raise Refused(f"{name} is a grouped convolution whose groups mix it with other channels")
                parts.append(Segment(part.group, part.size // inputs * outputs, part.repeat * outputs // inputs or 1))
        except Refused as reason:
            self._refuse([source], str(reason))
            self.refusals.setdefault(name, str(reason))
            return None
        self._carry("conv", node, source, inputs)
        return Layout(1, tuple(parts), None)

    def _carry(self, kind: str, node: fx.Node, layout: Layout, block: int) -> None:
        """``node`` has tensors of its own for the channels; new ones come in blocks of so many entries."""
        for start, group, part in layout.growing():
            self.events.append(Event(kind, node, group, start, part.repeat))
            self.groups.in_multiples(group, block // math.gcd(block, part.repeat))

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
        self._carry("norm", node, layout, block)
        return replace(layout, path=(node,) if rules.is_norm_act(module) else ())

    def _slopes(self, node: fx.Node, module: nn.Module) -> Layout:
        layout = self._layouts[node.args[0]]  # type: ignore[index]
        problem = self._layers.sharing_problem(str(node.target))
        if problem:
            raise Refused(problem)
        if layout.dim != 1:
            raise Refused(f"{node.target} has slopes for dimension 1, its channels are the last")
        self._carry("activation", node, layout, 1)
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


def _holds_output(node: fx.Node) -> bool:
    """Does ``node`` make the object (a dataclass, a named tuple) that the forward returns?"""
    made = node.op == "call_function" and isinstance(node.target, type)
    return made and all(user.op == "output" or _holds_output(user) for user in node.users)


def _describe(source: fx.Node) -> str:
    if source.op == "placeholder":
        return f"the model's input {source.name}"
    if source.op == "get_attr":
        return f"the tensor {source.target} of the model"
    return f"the output of {rules.step_name(source)}"


def _reads_no_channels(node: fx.Node) -> bool:
    """Does ``node`` ask for something else than values and sizes?"""
    if node.op == "call_method":
        return node.target in sizes.NO_SIZE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in sizes.NO_SIZES


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
