"""Follow every layer's channels through the whole graph of a forward.

``Flow`` visits the nodes once, in execution order, and keeps the layout of each tensor's channel dimension. A layer's
output begins a group; sums and gates unite groups; convolutions and linear layers read them. What is not known to
keep channels apart refuses every group that reaches it, with the reason: nothing is guessed.
"""

from collections.abc import Mapping

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from plantops.graph import rules, sizes
from plantops.graph.capture import Capture
from plantops.graph.layers import Layers, widths
from plantops.graph.layout import Groups, Layout, Refused, Segment
from plantops.graph.partition import Partition, Shape
from plantops.graph.steps import Event, Steps

__all__ = ["Event", "Flow", "follow"]

_WALKS = 12


def follow(captured: Capture, layers: Layers) -> "Flow":
    """Walk through the graph until it asks for no more parts of any layer."""
    shapes: dict[str, Shape] = {}
    for _ in range(_WALKS):
        flow = Flow(captured, layers, shapes)
        if not flow.partition.demands:
            return flow
        shapes = {**shapes, **flow.partition.demands}
    return Flow(captured, layers, shapes, last=True)


class Flow(Steps):
    """The layouts, groups and events of a captured forward, its layers among them."""

    def __init__(self, captured: Capture, layers: Layers, shapes: Mapping[str, Shape], last: bool = False) -> None:
        super().__init__(captured, layers, Partition(Groups(), shapes, last))
        self._made: dict[str, int] = {}  # by layer, the group that its first call makes
        for node in captured.graph.nodes:
            layout = self._visit(node)
            if layout is not None and layout.groups():
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
            self._refuse_counted(node)
            return None
        if module is None or not rules.is_norm(module):
            self.events += [Event("pass", node, group) for group in layout.groups()]
        return layout

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
        source, again = self._read_again(node, source)
        if isinstance(module, _ConvNd) and module.groups > 1:
            return self._grouped(node, module, source, problem, again)
        if source is not None and problem is None:
            for start, group, part in source.growing():
                self.events.append(Event("consumer", node, group, start, part.repeat, source.path, again))
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
        name = str(node.target)
        again = name in self._made
        group = self._made.setdefault(name, self.groups.new())
        self.events.append(Event("producer", node, group, again=again))
        shape = node.meta["shape"]
        conv = isinstance(module, _ConvNd)
        if problem is not None:
            self.groups.refuse(group, problem)
        elif isinstance(module, _ConvNd) and len(shape) != module.weight.dim():
            axes = ("L", "H, W", "D, H, W")[module.weight.dim() - 3]
            self.groups.refuse(group, f"it gives {list(shape)} instead of a batch [N, C, {axes}]")
        return Layout(1 if conv else len(shape) - 1, self.partition.made(name, group, widths(module)[1]))

    def _grouped(
        self, node: fx.Node, conv: _ConvNd, source: Layout | None, problem: str | None, again: bool
    ) -> Layout | None:
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
        self._carry("conv", node, source, inputs, again)
        return Layout(1, tuple(parts), None)


def _holds_output(node: fx.Node) -> bool:
    """Does ``node`` make the object (a dataclass, a named tuple) that the forward returns?"""
    made = node.op == "call_function" and isinstance(node.target, type)
    return made and all(user.op == "output" or _holds_output(user) for user in node.users)


def _reads_no_channels(node: fx.Node) -> bool:
    """Does ``node`` ask for something else than values and sizes?"""
    if node.op == "call_method":
        return node.target in sizes.NO_SIZE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in sizes.NO_SIZES
