"""Graphs by ``torch.export``, for forwards that only run on tensors: ``isinstance(x, Tensor)``, ``y[:, :, 0] = z``.

The exported graph is of aten operators over lifted parameters. Here it becomes what ``torch.fx`` would have recorded:
one ``call_module`` for all operators of a call of a layer (``nn_module_stack`` says whose they are), torch's functions
and methods for the others, ``get_attr`` for parameters that the forward reads itself. Sizes are those of the example
inputs.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from plantops.errors import ArgumentError
from plantops.graph import rules

Call = tuple[tuple[Any, ...], dict[str, Any]]
IsLeaf = Callable[[nn.Module, str], bool]


def trace_exported(model: nn.Module, call: Call, is_leaf: IsLeaf) -> fx.Graph:
    """The graph of ``model(*call[0], **call[1])``, fake tensors under their fake mode; nodes have ``meta["shape"]``.

    Args:
        is_leaf: of a module and its qualified name: is a call of it one node?

    Raises:
        Exception: of any kind, where torch.export gives up, or shapes depend on values.
    """
    with torch.no_grad():
        program = torch.export.export(model, *call, strict=False)
    return _Lift(model, program, is_leaf).graph


class _Lift:
    """The graph of an exported program, node by node."""

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram, is_leaf: IsLeaf) -> None:
        self.graph = fx.Graph()
        self._names = {module: name for name, module in model.named_modules()}
        self._model = model
        self._is_leaf = is_leaf
        signature = program.graph_signature
        self._tensors = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._new: dict[fx.Node, fx.Node] = {}
        for owner, group in itertools.groupby(list(program.graph.nodes), self._owner):
            nodes = list(group)
            if owner is None:
                for node in nodes:
                    self._single(node)
            else:
                self._layer(owner[1], nodes)

    def _owner(self, node: fx.Node) -> tuple[str, str] | None:
        """The call of a layer that ``node`` is part of: a key of its own for every call, and the layer's name."""
        if node.op in ("placeholder", "output"):
            return None
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            module = self._model.get_submodule(path)
            if self._is_leaf(module, path):
                return key, self._names[module]
        return None

    def _layer(self, name: str, nodes: list[fx.Node]) -> None:
        inside = set(nodes)
        own = {f"{name}.{key}" for key in self._model.get_submodule(name).state_dict(keep_vars=True)}
        outside = dict.fromkeys(
            source
            for node in nodes
            for source in node.all_input_nodes
            if source not in inside and self._tensors.get(source.name) not in own
        )
        results = [node for node in nodes if any(user not in inside for user in node.users)]
        if not results:
            return
        made = self.graph.call_module(name, tuple(self._value(source) for source in outside))
        _describe(made, nodes[-1])
        if len(results) == 1:
            _shape(made, results[0])
            self._new[results[0]] = made
            return
        for at, result in enumerate(results):
            taken = self.graph.call_function(operator.getitem, (made, at))
            _describe(taken, result)
            _shape(taken, result)
            self._new[result] = taken

    def _single(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.name not in self._tensors:
                self._new[node] = self.graph.placeholder(node.name)
                _shape(self._new[node], node)
            return
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        if node.op == "output":
            self.graph.output(args[0])
            return
        if node.op == "get_attr":
            self._new[node] = self.graph.get_attr(str(node.target))
        else:
            self._new[node] = self._function(node.target, args, kwargs)
        _describe(self._new[node], node)
        _shape(self._new[node], node)

    def _value(self, node: fx.Node) -> fx.Node:
        """The new node for ``node``; the first use of a parameter reads it."""
        if node not in self._new:
            self._new[node] = self.graph.get_attr(self._tensors[node.name])
            _shape(self._new[node], node)
        return self._new[node]

    def _function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        name = target.__name__.partition(".")[0]
        if name == "slice":
            return self.graph.call_function(operator.getitem, (args[0], _index(args, slice(*_ends(args[2:])))))
        if name == "select":
            return self.graph.call_function(operator.getitem, (args[0], _index(args, args[2])))
        known = _FUNCTIONS.get(name, _FUNCTIONS.get(name.rstrip("_")))
        if known is not None:
            return self.graph.call_function(known, args, dict(kwargs))
        if name in _METHODS:
            return self.graph.call_method(name, args, dict(kwargs))
        return self.graph.call_function(target, args, dict(kwargs))


def _describe(new: fx.Node, old: fx.Node) -> None:
    new.meta["nn_module_stack"] = old.meta.get("nn_module_stack")


def _shape(new: fx.Node, old: fx.Node) -> None:
    value = old.meta.get("val")
    if isinstance(value, torch.Tensor):
        if not all(isinstance(size, int) for size in value.shape):
            raise ArgumentError(f"the shape of {old.name} depends on values")
        new.meta["shape"] = tuple(value.shape)


def _index(args: Sequence[Any], part: Any) -> tuple[Any, ...]:
    """The index that takes ``part`` of dimension ``args[1]``."""
    dim = args[1] % len(args[0].meta["shape"])
    return (*(slice(None),) * dim, part)


def _ends(ends: Sequence[Any]) -> list[Any]:
    """Start, end and step of a slice as Python writes them."""
    start, end, step = [*ends, None, None, None][:3]
    whole = isinstance(end, int) and end >= 2**62
    return [None if start == 0 else start, None if whole else end, None if step == 1 else step]


def _by_name(functions: Iterable[Any]) -> dict[str, Any]:
    return {function.__name__: function for function in functions if callable(function)}


_FUNCTIONS: dict[str, Any] = {
    **_by_name(rules.POINTWISE_FUNCTIONS),
    **_by_name(rules.POOL_FUNCTIONS),
    **_by_name(rules.DROPOUT_FUNCTIONS),
    **_by_name(rules.REDUCTIONS),
    **_by_name(rules.SPLITS),
    **_by_name(rules.SOFTMAX),
    **_by_name((torch.cat, torch.stack, torch.flatten, torch.unflatten, torch.permute, torch.transpose)),
    **_by_name((torch.unsqueeze, torch.squeeze, torch.pixel_shuffle, torch.pixel_unshuffle, torch.channel_shuffle)),
    **_by_name((F.pad, F.layer_norm, F.linear, F.batch_norm)),
    **_by_name((torch.add, torch.sub, torch.mul, torch.div, torch.pow)),  # and not operator's, which take no alpha
    "log_sigmoid": F.logsigmoid,
    "split_with_sizes": torch.split,
    "upsample_nearest1d": F.interpolate, "upsample_nearest2d": F.interpolate, "upsample_nearest3d": F.interpolate,
    "upsample_bilinear2d": F.interpolate, "upsample_bicubic2d": F.interpolate, "upsample_trilinear3d": F.interpolate,
}  # fmt: skip
_METHODS = frozenset({"view", "reshape", "expand", *rules.POINTWISE_METHODS})
