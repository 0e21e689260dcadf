"""The graph of a model's forward with the shape of every tensor in it, without touching the model.

Everything happens on a copy whose tensors are fakes: shapes, strides and dtypes without data. So tracing takes no
memory worth naming, calls none of the model's hooks, counts no batch and draws no random number.
"""

import contextlib
import copy
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from plantops.errors import ArgumentError
from plantops.graph import following, rules
from plantops.graph.concrete import trace_sizes
from plantops.graph.exported import Call, trace_exported
from plantops.graph.inputs import bind, is_record, map_tensors, parts, rebuilt, tensors_in

DROPOUT = "(dropout)"
"""Beside the owner of a step: it is a functional dropout, on in one mode and off in the other."""


class Untraceable(Exception):
    """The forward cannot be followed; the text says why, in plain words."""


class Capture:
    """A traced forward.

    Attributes:
        graph: the torch.fx graph of the forward in ``eval()``; every node that gives a tensor has ``meta["shape"]``.
        modules: the copy's modules by qualified name, with fake tensors.
        samples: size of the first dimension of the first input tensor.
        pinned: modules whose own forward does other things in ``train()``; the graph shows what it does in ``eval()``.
        concrete: sizes were numbers while tracing, so a number in the graph may have been read from a tensor.
        changed: what the forward changes of the model each time it runs, unseen by the graph; None where that is
            nothing.
    """

    def __init__(
        self,
        graph: fx.Graph,
        modules: dict[str, nn.Module],
        samples: int,
        pinned: tuple[str, ...],
        concrete: bool,
        changed: str | None,
    ) -> None:
        self.graph = graph
        self.modules = modules
        self.samples = samples
        self.pinned = pinned
        self.concrete = concrete
        self.changed = changed


def capture(model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Capture:
    """Trace ``model(*inputs, **keywords)``.

    Raises:
        Untraceable: control flow that depends on values, another path in ``train()`` than in ``eval()``, ...
        ValueError: the forward does not accept ``inputs``.
    """
    tensors = tensors_in([*inputs, *(keywords or {}).values()])
    if not tensors or tensors[0].dim() == 0 or tensors[0].shape[0] == 0:
        got = f"a tensor of shape {list(tensors[0].shape)}" if tensors else "no tensor"
        raise ArgumentError(f"example_inputs must begin with a tensor that holds at least one sample, got {got}")
    bound = bind(model, tuple(inputs), keywords or {})
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied = _fake_copy(model, mode)
    given = {name: map_tensors(lambda tensor: _fake(tensor, mode), value) for name, value in bound.items()}
    call = tuple(map_tensors(lambda tensor: _fake(tensor, mode), part) for part in (tuple(inputs), keywords or {}))
    before = following.settings(copied)
    with mode, torch.inference_mode(False), torch.enable_grad():
        try:
            graph, pinned = _both_modes(copied, lambda: _trace(copied, given))
            _propagate(copied, graph, given)
            concrete = False
        except _Unfollowed as reason:
            graph, pinned = _with_numbers(copied, given, call, reason)
            concrete = True
    changed = following.settings_problem(before, following.settings(copied))
    return Capture(graph, dict(copied.named_modules()), tensors[0].shape[0], pinned, concrete, changed)


def shapes(
    model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any], names: Collection[str]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of what the named modules of ``model`` read and give in its forward, the first time each is called; those
    that run before the forward asks for values, if it does."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied = _fake_copy(model, mode).eval()
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
                found.setdefault(name, (tuple(args[0].shape), tuple(output.shape)))

        return hook

    for name in names:
        copied.get_submodule(name).register_forward_hook(note(name))
    positional, named = (map_tensors(lambda tensor: _fake(tensor, mode), part) for part in (tuple(inputs), keywords))
    with mode, torch.no_grad(), contextlib.suppress(Exception):
        copied(*positional, **named)
    return found


class _Unfollowed(Untraceable):
    """torch.fx does not get through the forward."""


def _with_numbers(
    model: nn.Module, given: dict[str, Any], call: Call, reason: Untraceable
) -> tuple[fx.Graph, tuple[str, ...]]:
    """Where the forward asks for sizes to decide what to do: trace again, with the sizes of the example. Where it asks
    for tensors, too: let torch.export run it on fake ones."""

    def sizes() -> fx.Graph:
        try:
            return trace_sizes(model, given, Tracer)
        except Exception as error:
            raise _Unfollowed(str(error)) from error

    def exported() -> fx.Graph:
        try:
            return trace_exported(model, call, Tracer(given).is_leaf_module)
        except Exception as error:
            raise Untraceable(f"{reason}, nor can torch.export ({_first_line(error)})") from error

    try:
        return _both_modes(model, sizes)
    except _Unfollowed:
        return _both_modes(model, exported)


class Tracer(fx.Tracer):
    """Keeps torch's own layers as one node each, and timm's batch norm with an activation.

    ``given``: the value of every parameter of the forward. What of it is no tensor is a constant of the graph; tensors
    in nested values are steps that take them out.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        return self.taken_apart(proxy, self.given[parameter_name(target)]) if kind == "placeholder" else proxy

    def taken_apart(self, proxy: fx.Proxy, value: Any) -> Any:
        """``value`` with a proxy for every tensor in it."""
        if isinstance(value, torch.Tensor):
            return proxy
        if not tensors_in(value):
            return value
        take = getattr if is_record(value) else operator.getitem
        new = [
            self.taken_apart(self.create_proxy("call_function", take, (proxy, key), {}), part)
            if tensors_in(part)
            else part
            for key, part in parts(value)
        ]
        return rebuilt(value, new)

    def create_node(self, *args: Any, **options: Any) -> fx.Node:
        node = super().create_node(*args, **options)
        following.note_modes(node)
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = rules.is_norm_act(m) or rules.is_stochastic_depth(m)
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _both_modes(model: nn.Module, trace: Callable[[], fx.Graph]) -> tuple[fx.Graph, tuple[str, ...]]:
    """The graph in ``eval()``, and the modules that must stay in ``eval()`` for ``train()`` to give the same graph.

    A module is found by the first step that differs, all others of its class with it. The model's own forward is held
    back from functional dropout alone: it may give other outputs in ``train()``.
    """
    model.eval()
    evaluation = trace()
    names = {module: name for name, module in model.named_modules()}
    pinned: list[nn.Module] = []
    while True:
        model.train()
        for module in pinned:
            module.training = False
        training = trace()
        model.eval()
        at = _difference(training, evaluation)
        if at is None:
            return evaluation, tuple(names[module] for module in pinned)
        owners = [model.get_submodule(name) for name in at[1] if name != DROPOUT]
        alike = [m for m in model.modules() if any(type(m) is type(o) for o in owners)]
        if DROPOUT not in at[1]:
            alike = [m for m in alike if m is not model]
        if not alike or all(module in pinned for module in alike):
            raise Untraceable(
                f"the model's forward does other things in train() than in eval() (at {at[0]}), so the trunk could not "
                "be held fixed while new channels train: use modules such as nn.Dropout and nn.BatchNorm2d for it"
            )
        pinned += [module for module in alike if module not in pinned]


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A deep copy with fake tensors and without hooks, which could have effects outside the model."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                # All of them require a gradient, so that a forward that switches it off is seen.
                memo[id(tensor)] = nn.Parameter(_fake(tensor.detach(), mode), tensor.is_floating_point())
        for value in (*module._buffers.values(), *vars(module).values()):
            if isinstance(value, torch.Tensor):
                memo[id(value)] = _fake(value.detach(), mode)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                value.clear()
    return copied


def _trace(model: nn.Module, given: dict[str, Any]) -> fx.Graph:
    try:
        return Tracer(given).trace(model)
    except Exception as error:
        raise _Unfollowed(f"torch.fx cannot follow the model's forward ({_first_line(error)})") from error


def parameter_name(target: Any) -> str:
    """The forward's parameter of a placeholder: ``*args`` is ``args``."""
    return str(target).lstrip("*")


def _difference(training: fx.Graph, evaluation: fx.Graph) -> tuple[str, list[str]] | None:
    """The first step that differs, and the modules in whose own forward it is; None for equal graphs."""

    def steps(graph: fx.Graph) -> list[str]:
        return [_step_text(node) for node in graph.nodes]

    def owner(graph: fx.Graph, at: int) -> str:
        stack = list((list(graph.nodes)[at].meta.get("nn_module_stack") or {"": ("", None)}).values())
        return str(stack[-1][0])

    first, second = steps(training), steps(evaluation)
    if first == second:
        return None
    both = min(len(first), len(second))
    at = next((i for i in range(both) if first[i] != second[i]), both)
    if at == both:
        return "the end", []
    owners = [owner(graph, at) for graph in (training, evaluation)]
    # A step that only one mode has shows its owner in the longer graph; the other's is whatever comes next.
    nodes = [list(graph.nodes)[at] for graph in (training, evaluation)]
    if all(node.target in rules.DROPOUT_FUNCTIONS for node in nodes):
        return nodes[0].name, [*owners[:1], DROPOUT]
    return nodes[0].name, owners[:1] if len(first) >= len(second) else owners[1:]


def _step_text(node: fx.Node) -> str:
    """What a node computes, apart from the numbers that fx counts up from trace to trace."""
    what = "dropout of 0" if rules.drops_nothing(node) else f"{node.op} {node.target} {node.args} {node.kwargs}"
    return re.sub(r"_tensor_constant\d+", "_tensor_constant", f"{node.name} {what}")


def _propagate(model: nn.Module, graph: fx.Graph, given: dict[str, Any]) -> None:
    class Shapes(fx.Interpreter):
        def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
            return given[parameter_name(target)]

        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                node.meta["shape"] = tuple(result.shape)
            return result

    try:
        with torch.no_grad():
            Shapes(model, graph=graph).run(enable_io_processing=False)
    except Exception as error:
        reason = _first_line(error.__cause__ or error)
        raise ArgumentError(f"example_inputs: the model's forward does not accept them ({reason})") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
