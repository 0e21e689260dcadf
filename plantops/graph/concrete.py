"""torch.fx with sizes: a tracer whose tensors know their shapes, for forwards that look at them.

An ordinary fx proxy stands for any tensor, so ``if x.shape[1] > 3``, ``len(x)`` or a loop over tokens stop the trace.
Here every proxy carries the fake tensor that its node computes: sizes, dtypes and dimensions are plain numbers, and
only the values of tensors are unknown. The graph then holds for inputs of the example's shapes.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from plantops.graph.inputs import tensors_in

_PLAIN = {
    "shape",
    "dtype",
    "device",
    "ndim",
    "is_cuda",
    "requires_grad",
    "layout",
    "is_sparse",
    "is_quantized",
    "itemsize",
}
_PLAIN_METHODS = {
    "size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "get_device", "element_size", "ndimension",
    "nelement", "is_complex",
}  # fmt: skip


def trace_sizes(model: nn.Module, given: dict[str, Any], tracer: type[fx.Tracer]) -> fx.Graph:
    """The graph of ``model(**given)``, fake tensors under their fake mode; nodes have ``meta["shape"]``. ``tracer``
    takes ``given``, too."""

    class SizeTracer(tracer):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(given)
            self.computing = False

        def proxy(self, node: fx.Node) -> fx.Proxy:
            return SizeProxy(node, self)

        def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
            if kind == "placeholder":
                proxy = fx.Tracer.create_proxy(self, kind, target, args, kwargs, *rest, **options)
                value = given[str(target).lstrip("*")]
                self._know(proxy, value)
                return self.taken_apart(proxy, value)
            proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
            value = self._compute(kind, target, args, kwargs)
            if kind != "output" and not tensors_in(value):
                return value  # a plain number or the like: no part of the graph
            self._know(proxy, value)
            return proxy

        def _know(self, proxy: Any, value: Any) -> None:
            proxy.value = value
            if isinstance(value, torch.Tensor):
                proxy.node.meta["shape"] = tuple(value.shape)

        def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
            def plain(tree: Any) -> Any:
                return pytree.tree_map_only(SizeProxy, lambda proxy: proxy.value, tree)

            args, kwargs = plain(args), plain(kwargs)
            before, self.computing = self.computing, True
            try:
                with torch.no_grad():
                    if kind == "call_function":
                        return target(*args, **kwargs)
                    if kind == "call_method":
                        return getattr(args[0], target)(*args[1:], **kwargs)
                    if kind == "call_module":
                        return self.root.get_submodule(target).forward(*args, **kwargs)
                    if kind == "get_attr":
                        value: Any = self.root
                        for name in str(target).split("."):
                            value = getattr(value, name)
                        return value
                    return args
            finally:
                self.computing = before

        def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
            return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    return SizeTracer().trace(model)


class SizeProxy(fx.Proxy):
    """A proxy with the fake value of its node in ``value``."""

    value: Any = None

    def __getattr__(self, name: str) -> Any:
        if name in _PLAIN:
            return getattr(self.value, name)
        if name in _PLAIN_METHODS:
            return getattr(self.value, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, index) for index in range(len(self.value)))

    def __bool__(self) -> bool:
        return bool(self.value)
