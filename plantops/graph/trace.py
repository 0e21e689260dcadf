"""Which layers of a model can grow, who reads them, and what a channel costs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from plantops._arguments import check_flag, check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.graph import rules
from plantops.graph.capture import Capture, Untraceable, capture
from plantops.graph.cost import Use, at_zero, cost, features
from plantops.graph.flow import Event, follow
from plantops.graph.groups import Group, group_list, with_groups
from plantops.graph.inputs import arguments
from plantops.graph.layers import Layers, widths
from plantops.graph.layout import Refused
from plantops.graph.partition import Partition
from plantops.graph.plan import Channelwise, Consumer, Output, Plan, Site
from plantops.graph.rules import argument


def trace(
    model: nn.Module,
    example_inputs: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    grow_linear: bool = True,
    groups: Iterable[Group] = (),
) -> Plan:
    """Find the sites of ``model`` that can grow.

    A site is a set of layers whose channels grow together, and everything that reads these channels. In a chain it is
    one convolution or linear layer whose output passes through norms, pointwise activations,
    pooling, dropout and flatten to one convolution or linear layer. Layers that meet in a residual sum or a gate
    (squeeze and excitation) form one site; after a concatenation the channels lie in the middle of what reads them;
    depthwise convolutions, PReLU, batch and instance norms grow along, grouped convolutions and group norms by whole
    groups (``site.multiple``). The hidden layer of a perceptron block is a site of linear layers.

    Channels that are split into equal parts (``chunk``, ``glu``, slices and splits at sizes that were computed from the
    tensor's own, channel shuffles, also by hand) grow in every part, and those in front of a ``PixelShuffle`` by whole
    pixels: ``site.outputs`` says where a producer's new filters come.

    Every other convolution and linear layer is refused, with the reason in ``plan.refusals``: a reshape or a split to
    literal sizes, norms over the channels, raw parameters along them, parts that are not made alike,
    parametrised or shared weights, the layer whose channels are the model's output. A forward is followed by torch.fx,
    or, where that gives up, by torch.export with the sizes of the example. A model whose forward cannot be
    followed, or that itself behaves otherwise in ``train()`` (``F.dropout``), has every layer refused; where a
    submodule does so, it is held in ``eval()`` while new channels train (``site.pinned``).

    The forward runs once on tensors without data: the model, its hooks, its statistics and the random generators
    stay untouched. Forward hooks of the model are taken to observe, not to change, what passes.

    Args:
        model: the plain module, on any device, in any mode.
        example_inputs: a tensor, a tuple of the positional arguments of ``forward``, or a mapping of its keyword
            arguments. An argument may be a tensor or anything that holds some in tuples, lists, mappings and
            dataclasses; other values are constants of the trace. Of tensors only shapes, dtypes and devices are used;
            the first dimension of the first one counts the samples. Costs are for one sample of this shape.
        example_kwargs: keyword arguments beside positional ones, or alone.
        grow_linear: offer hidden linear layers, as in perceptrons and transformer blocks; False: convolutions alone.
        groups: sites named by hand, each in the place of the traced sites of its producers. Nothing is proved of them
            here: ``plantops.trace`` verifies them.

    Returns:
        the plan, in execution order. It holds names, so it applies to any deep copy of ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the model is wrapped (DataParallel, DistributedDataParallel, FSDP, torch.compile, torch.jit),
            contains planted layers, or does not accept ``example_inputs``; a group does not fit the model.
    """
    check_plain(model)
    check_flag("grow_linear", grow_linear)
    if example_kwargs is not None:
        check_type("example_kwargs", example_kwargs, Mapping, "a mapping of keyword arguments")
    groups = group_list(groups)
    positional, keywords = arguments(example_inputs, example_kwargs)
    try:
        captured = capture(model, positional, keywords)
        _check_forward(captured.graph)
    except Untraceable as error:
        names = Layers(fx.Graph(), dict(model.named_modules())).growable_names()
        plan = Plan([], dict.fromkeys(names, str(error)))
    else:
        plan = _plan(model, captured, grow_linear)
    return with_groups(plan, groups, model, positional, keywords) if groups else plan


def check_plain(model: nn.Module) -> None:
    """Raise unless ``model`` is a module that can be looked into and changed."""
    check_unwrapped(model, "planted")
    for name, module in model.named_modules():
        if hasattr(module, "planted_out") or hasattr(module, "weight_out"):
            where = f"model.{name}" if name else "model"
            raise ArgumentError(
                f"{where} is a planted layer ({type(module).__name__}): call plantops.merge(model) first"
            )


_GATHER = (
    "keep a copy of the planted model from before it was sharded, load into it the full state dict that "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict gathers (full_state_dict=True), and merge the copy"
)


def check_unwrapped(model: nn.Module, result: str) -> None:
    """Raise where ``model`` is no module, or is wrapped in another; ``result``: what it is to be, "planted" or
    "merged"."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = f"model.{name}" if name else "model"
        sharded = "plant the module before it is sharded" if result == "planted" else _GATHER
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ArgumentError(f"{where} is wrapped in {kind}: use {where}.module, and wrap the {result} model again")
        if kind == "OptimizedModule" and hasattr(module, "_orig_mod"):
            raise ArgumentError(f"{where} is compiled: use {where}._orig_mod, and compile the {result} model again")
        if kind.startswith("FullyShardedDataParallel"):
            raise ArgumentError(f"{where} is wrapped in {kind}: {sharded}")
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):
            raise ArgumentError(f"{where} is sharded by fully_shard: {sharded}")
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(f"{where} is a TorchScript module: use the Python module that it was made from")


def _check_forward(graph: fx.Graph) -> None:
    """Refuse functional dropout and norms that are on in every mode; those that follow the mode are found earlier."""
    for node in graph.nodes:
        if node.op != "call_function" or rules.drops_nothing(node):
            continue
        on = node.target in rules.DROPOUT_FUNCTIONS and argument(node, 2, "training", node.kwargs.get("train", True))
        if on or (node.target is F.batch_norm and argument(node, 5, "training", False)):
            raise Untraceable(
                f"the model's forward calls {node.target.__name__} as a function that is on in eval() too, so the "
                "trunk could not be held fixed while new channels train: use a module for it"
            )


def _plan(model: nn.Module, captured: Capture, grow_linear: bool) -> Plan:
    layers = Layers(captured.graph, captured.modules)
    flow = follow(captured, layers)
    together: dict[int, list[Event]] = {}
    for event in flow.events:
        together.setdefault(flow.groups.find(event.group), []).append(event)
    sites: dict[str, Site] = {}
    refusals = dict(flow.refusals)
    for group, events in together.items():
        names = [str(event.node.target) for event in events if event.kind in ("producer", "conv")]
        try:
            reason = flow.groups.reason(group)
            if reason is not None:
                raise Refused(reason)
            site = _site(model, events, flow.groups.multiple(group), captured, grow_linear, flow.partition)
            sites[site.name] = site
        except Refused as reason:
            refusals.update((name, str(reason)) for name in names if name not in refusals)
    plan = Plan(sites.values())
    for name in layers.growable_names():
        if name not in plan and name not in refusals:
            refusals[name] = "the forward does not call it as a module"
    return Plan(sites.values(), {name: reason for name, reason in refusals.items() if name not in plan})


def _site(
    model: nn.Module,
    events: list[Event],
    multiple: int,
    captured: Capture,
    grow_linear: bool,
    partition: Partition,
) -> Site:
    once = [event for event in events if not event.again]
    producers = [event for event in once if event.kind == "producer"]
    consumers = [event for event in once if event.kind == "consumer"]
    channelwise = [event for event in once if event.kind in ("norm", "conv", "activation")]
    modules = captured.modules
    if consumers and not any(_reaches_output(event.node) for event in consumers):
        raise Refused("what reads its channels has no part in the model's output")
    if not consumers:
        used = any(event.node.users for event in producers)
        raise Refused("no layer reads its channels" if used else "its output is not used")
    readers = [str(event.node.target) for event in consumers]
    if not grow_linear and all(isinstance(modules[str(event.node.target)], nn.Linear) for event in producers):
        raise Refused("a hidden linear layer, and trace(..., grow_linear=False) leaves those out")
    names = [str(event.node.target) for event in producers]
    outputs = tuple(Output(widths(modules[name])[1], *partition.shape(name)) for name in names)
    step = outputs[0].step()
    multiple *= step
    uses = [_use(event, partition) for event in events if event.kind != "pass"]
    chain = len(producers) == len(consumers) == 1 and all(event.kind == "norm" for event in channelwise)
    path = consumers[0].path
    chain = chain and len(once) == len(events) and multiple == 1 and path is not None and not consumers[0].start
    value, slope = at_zero(model, path) if chain and path is not None else (0.0, 0.0)
    parameters, macs = cost(uses, modules, captured.samples, step)
    passes = dict.fromkeys(rules.step_name(event.node) for event in events if event.kind == "pass")
    behind = all(output.step() == 1 and output.width == outputs[0].width for output in outputs)
    return Site(
        name=names[0],
        producers=tuple(names),
        norms=tuple(str(event.node.target) for event in channelwise if event.kind == "norm"),
        passes=tuple(passes),
        consumers=tuple(
            Consumer(name, event.start, event.repeat, widths(modules[name])[0])
            for event, name in zip(consumers, readers, strict=True)
        ),
        width=outputs[0].width,
        parameters_per_channel=parameters,
        macs_per_channel=macs,
        value_at_zero=value,
        slope_at_zero=slope,
        channelwise=tuple(_channelwise(event, modules) for event in channelwise),
        multiple=multiple,
        chain=chain,
        pinned=captured.pinned,
        outputs=() if behind else outputs,
    )


def _reaches_output(node: fx.Node) -> bool:
    """Does the model's output depend on ``node``?"""
    reached, open_nodes = {node}, [node]
    while open_nodes:
        for user in open_nodes.pop().users:
            if user.op == "output":
                return True
            if user not in reached:
                reached.add(user)
                open_nodes.append(user)
    return False


def _use(event: Event, partition: Partition) -> Use:
    source = event.node.args[0] if event.node.args else None
    reads = source.meta.get("shape") if isinstance(source, fx.Node) else None
    name = str(event.node.target)
    step = math.prod(partition.shape(name)) if event.kind == "producer" else 1
    return Use(event.kind, name, event.repeat, reads, event.node.meta.get("shape"), event.again, step)


def _channelwise(event: Event, modules: dict[str, nn.Module]) -> Channelwise:
    name = str(event.node.target)
    size = widths(modules[name])[0] if event.kind == "conv" else features(modules[name])
    return Channelwise(name, event.kind, event.start, event.repeat, size)
