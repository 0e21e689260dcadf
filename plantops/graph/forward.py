"""The forward of a model as a list of steps that can be run one by one, and from any place on.

What a trace follows for its shapes is here followed to be run: a step takes the values of earlier steps by name, so a
prefix can be computed once and kept, and what lies behind a changed layer can be computed alone.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from plantops.graph import following
from plantops.graph.capture import Untraceable, capture, parameter_name
from plantops.graph.inputs import bind

Values = dict[str, Any]
Run = Callable[[Mapping[str, Any]], Any]

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(frozen=True)
class Step:
    """One step of a forward.

    Attributes:
        name: unique; the key of its value.
        module: qualified name of the layer that it calls, or None for a function.
        function: the function that it calls, or None; a method of a tensor is a string.
        reads: names of the steps whose values it takes.
        shape: of its value for the example inputs, None where that is no tensor.
        node: the step in the traced graph.
    """

    name: str
    module: str | None
    function: Any
    reads: tuple[str, ...]
    shape: tuple[int, ...] | None
    node: fx.Node


class Forward:
    """The steps of ``model``'s forward in ``eval()``, in execution order.

    Steps never change a value in place (in-place activations and sums are run as their out-of-place counterparts), so
    values may be kept.

    Attributes:
        steps: every step that computes something.
    """

    def __init__(self, model: nn.Module, steps: list[Step], graph: fx.Graph) -> None:
        self.model = model
        self.steps = steps
        self._graph = graph
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._output = next(iter(reversed(graph.nodes))).args[0]
        self._by_name = {step.name: step for step in steps}
        self._runs: dict[str, Run] = {}

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: tuple[Any, ...],
        keywords: Mapping[str, Any] | None = None,
        *,
        gradients: bool = True,
    ) -> Forward:
        """Follow ``model(*inputs, **keywords)``.

        Args:
            gradients: a backward goes through the steps, and must give what one through the model gives.

        Raises:
            Untraceable: the forward cannot be followed, does not give what a call of the model gives (hooks, parts
                under ``torch.no_grad``, see ``plantops.graph.following``), or cannot be run for batches of another
                size; the text says why.
        """
        problem = following.call_problem(model, gradients)
        captured = None if problem else capture(model, inputs, keywords)
        if captured is not None and captured.concrete:
            problem = "its forward can be followed for the sizes of the example inputs only"
        elif captured is not None:
            problem = captured.changed or following.graph_problem(captured.graph, gradients)
        if problem is not None or captured is None:
            raise Untraceable(str(problem))
        nodes = list(captured.graph.nodes)
        places = {node: place for place, node in enumerate(nodes)}
        for node in nodes:
            _check_in_place(node, places, model)
        steps = [_step(node, model) for node in nodes if node.op not in ("placeholder", "output")]
        return cls(model, steps, captured.graph)

    @property
    def input(self) -> str:
        """Name of the value that is the model's one input. Raises ``Untraceable`` where it has others."""
        used = [node for node in self._placeholders if node.users]
        if len(used) != 1:
            raise Untraceable(f"its forward takes {len(used)} tensors, where one is expected")
        return used[0].name

    @property
    def output(self) -> str:
        """Name of the value that is the model's output. Raises ``Untraceable`` where that is no single tensor."""
        if not isinstance(self._output, fx.Node) or self._output.meta.get("shape") is None:
            raise Untraceable("its forward gives something else than one tensor")
        return self._output.name

    def given(self, inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> Values:
        """The values that a call with these arguments begins with."""
        bound = bind(self.model, inputs, keywords or {})
        return {node.name: bound[parameter_name(node.target)] for node in self._placeholders}

    def result(self, values: Mapping[str, Any]) -> Any:
        """What the model gives, from the values of all steps."""
        return self._graph.process_outputs(fx.map_arg(self._output, lambda node: values[node.name]))

    def __getitem__(self, name: str) -> Step:
        return self._by_name[name]

    def calls(self, module: str) -> Step:
        """The one step that calls layer ``module``. Raises ``Untraceable`` when there is none, or more than one."""
        found = self.all_calls(module)
        if len(found) != 1:
            raise Untraceable(f"{module} is called {len(found)} times")
        return found[0]

    def all_calls(self, module: str) -> list[Step]:
        """The steps that call layer ``module``."""
        return [step for step in self.steps if step.module == module]

    def users(self, name: str) -> list[Step]:
        """The steps that read the value ``name``."""
        return [step for step in self.steps if name in step.reads]

    def behind(self, names: Collection[str]) -> list[Step]:
        """The steps whose values depend on those of ``names``, without these, in execution order."""
        reached = set(names)
        found = []
        for step in self.steps:
            if step.name not in reached and reached.intersection(step.reads):
                reached.add(step.name)
                found.append(step)
        return found

    def before(self, names: Collection[str]) -> list[Step]:
        """The steps that the values ``names`` depend on, and these, in execution order."""
        wanted = set(names)
        found = []
        for step in reversed(self.steps):
            if step.name in wanted:
                wanted.update(step.reads)
                found.append(step)
        return found[::-1]

    def run_of(self, step: Step) -> Run:
        """What computes ``step`` from the values of earlier ones, with the model's own layers."""
        if step.name not in self._runs:
            self._runs[step.name] = _bind(self.model, step)
        return self._runs[step.name]


def apply_layer(step: Step, layer: Callable[..., Any]) -> Run:
    """``step`` with ``layer`` in the place of the layer that it calls."""
    args, kwargs = step.node.args, step.node.kwargs
    if len(step.reads) == 1 and len(args) == 1 and not kwargs and isinstance(args[0], fx.Node):
        name = step.reads[0]
        return lambda values: layer(values[name])

    def run(values: Mapping[str, Any]) -> Any:
        def value(node: fx.Node) -> Any:
            return values[node.name]

        return layer(*fx.map_arg(args, value), **fx.map_arg(kwargs, value))

    return run


def _step(node: fx.Node, model: nn.Module) -> Step:
    if node.op == "get_attr":
        _attribute(model, str(node.target))
    if node.kwargs.get("out") is not None:
        raise Untraceable(f"step {node.name} of its forward writes into a tensor (out=...)")
    function = None if node.op in ("call_module", "get_attr") else _out_of_place(node)
    return Step(
        node.name,
        str(node.target) if node.op == "call_module" else None,
        function,
        tuple(dict.fromkeys(read.name for read in node.all_input_nodes)),
        node.meta.get("shape"),
        node,
    )


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for part in target.split("."):
        if not hasattr(value, part):
            raise Untraceable(f"its forward makes a tensor of its own ({target})")
        value = getattr(value, part)
    return value


def _check_in_place(node: fx.Node, places: Mapping[fx.Node, int], model: nn.Module) -> None:
    """Refuse a step that changes a value which a later one reads again: that one sees the change."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or not _works_in_place(node, model):
        return
    later = next((user for user in changed.users if places[user] > places[node]), None)
    if later is not None:
        raise Untraceable(f"step {node.name} of its forward changes a tensor in place that {later.name} reads again")


def _works_in_place(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.target in _OUT_OF_PLACE or (name.endswith("_") and not name.endswith("__")):
        return True
    place = _place_of_inplace(node.target) if node.op == "call_function" else None
    positional = place is not None and len(node.args) > place and bool(node.args[place])
    return positional or bool(node.kwargs.get("inplace", False))


def _out_of_place(node: fx.Node) -> Any:
    """The function or method of a step that leaves its arguments as they are."""
    target: Any = node.target
    method = node.op == "call_method"
    name = str(target) if method else getattr(target, "__name__", "")
    plain: Any = target
    if target in (operator.setitem, setattr):
        plain = None
    elif name.endswith("_") and not name.endswith("__"):
        bare = name.rstrip("_")
        homes = (Tensor,) if method else (torch, nn.functional)
        plain = next((bare if method else getattr(home, bare) for home in homes if _callable(home, bare)), None)
    if plain is None:
        raise Untraceable(f"step {node.name} of its forward changes a tensor in place ({name})")
    return plain if method else _OUT_OF_PLACE.get(plain, plain)


def _callable(home: Any, name: str) -> bool:
    return callable(getattr(home, name, None))


def _bind(model: nn.Module, step: Step) -> Run:
    node = step.node
    if node.op == "get_attr":
        target = str(node.target)
        return lambda values: _attribute(model, target)
    if step.module is not None:
        layer = model.get_submodule(step.module)
        if getattr(layer, "inplace", False):
            layer = copy.copy(layer)
            layer.inplace = False  # type: ignore[assignment]
        return apply_layer(step, layer)
    function, place = step.function, _place_of_inplace(step.function)

    def call(*args: Any, **kwargs: Any) -> Any:
        if place is not None:
            kwargs.pop("inplace", None)
            args = (*args[:place], False, *args[place + 1 :]) if len(args) > place else args
        if isinstance(function, str):
            return getattr(args[0], function)(*args[1:], **kwargs)
        return function(*args, **kwargs)

    return apply_layer(step, call)


def _place_of_inplace(function: Any) -> int | None:
    """Where a function takes ``inplace`` among its arguments; None when it does not."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a method's name, or a builtin
        return None
    return names.index("inplace") if "inplace" in names else None
