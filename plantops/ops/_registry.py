"""Where ops are defined: one schema, one fake and one resolver of `impl` for each.

An op is defined in Python, so it exists without the compiled module. Its Python kernel serves every device; the
compiled module adds kernels for the CPU, and in a CUDA build for GPUs, to `plantops::<stem>` that compute
`impl="native"` and hand everything else back to the same Python kernel, reachable for them as
`plantops_python::<stem>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from plantops._extension import REBUILD_CUDA, STATUS
from plantops.errors import ArgumentError
from plantops.ops import _flops, _triton, _tuned

IMPLS = ("auto", "reference", "aten", "native", "triton")

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}

_public = torch.library.Library("plantops", "DEF")
_private = torch.library.Library("plantops_python", "DEF")


@dataclass(frozen=True)
class Op:
    """One defined op: `implementations` are its Python ones, `choose` names the one that `auto` stands for on a CPU,
    `key` gives the traits and features by which a measured table knows a call on CUDA. `native`: whether the compiled
    module has kernels of its own for it, beside ATen calls."""

    stem: str
    implementations: Mapping[str, Callable[..., Any]]
    choose: Callable[..., str]
    key: Callable[..., _tuned.Key] | None
    native: bool


_ops: dict[str, Op] = {}


def _aten(*args: Any) -> str:
    return "aten"


def define(
    stem: str,
    schema: str,
    *,
    implementations: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    choose: Callable[..., str] = _aten,
    key: Callable[..., _tuned.Key] | None = None,
    native: bool = True,
    check: Callable[..., None] | None = None,
    flops: Callable[..., int] | None = None,
) -> Callable[..., Any]:
    """Defines `plantops::<stem><schema>` and returns a function that calls it.

    The last argument of the schema is `str impl`. `implementations`, `choose` and `key` are called with the other
    arguments. On a CPU `choose` returns the name of an implementation that can compute them; without `choose`, "auto"
    is for the compiled kernel to take, and ATen where there is none. On CUDA "auto" is what the measured table
    (`_tuned`) says of the call's `key`, and ATen without a row, without a key, or where that implementation refuses.

    `check` is called with the arguments of every call that no compiled kernel takes, and of a fake one, without `impl`.
    `flops` counts the work of a call, from the arguments with shapes for tensors (`_flops`).
    An op with factors of type float has a second overload, `plantops::<stem>.tensors`, that takes a tensor for each:
    for factors that change between compiled calls (`_numbers`).

    The op resolves "auto" inside itself, at run time. The returned function resolves it before the call where nothing
    is being compiled: the same choice without the way through C++, Python and C++ again (20 us a call).
    """
    op = Op(stem, implementations, choose, key, native)

    def measured(*rest: Any) -> Any:
        impl = choice(stem, *rest)
        if impl != "aten":
            try:
                return overload(*rest, impl)
            except NotImplementedError:  # the row is a neighbour's: ATen computes every shape
                pass
        return overload(*rest, "aten")

    def kernel(*args: Any) -> Any:
        *rest, impl = args
        if check is not None:
            check(*rest)
        if impl == "auto":
            if _device_type(rest) == "cuda":
                return measured(*rest)
            impl = choose(*rest)
            if impl == "native":
                return overload(*rest, "native")
        function = implementations.get(impl)
        if function is None or (impl == "triton" and _triton.why_not(_device_type(rest))):
            raise unavailable(stem, impl, _device_type(rest))
        if torch.is_grad_enabled():
            with torch.no_grad():  # an op has no graph of its own; its autograd function stands outside
                return function(*rest)
        return function(*rest)

    def resolved(*args: Any) -> Any:
        if floats and isinstance(args[floats[0]], torch.Tensor):
            return with_tensors(*args)
        if args[-1] != "auto" or torch.compiler.is_compiling():
            return overload(*args)
        if _device_type(args) == "cuda":
            return measured(*args[:-1])
        return overload(*args) if choose is _aten else overload(*args[:-1], choose(*args[:-1]))

    def checked_fake(*args: Any) -> Any:
        if check is not None:
            check(*args[:-1])
        return fake(*args)

    def kernel_of_tensors(*args: Any) -> Any:
        return overload(*(float(argument) if at in floats else argument for at, argument in enumerate(args)))

    def add(library: torch.library.Library, name: str, schema: str, function: Callable[..., Any]) -> None:
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{library.ns}::{name}", checked_fake, lib=library)

    for library in (_public, _private):
        add(library, stem, schema, kernel)
    packet = getattr(torch.ops.plantops, stem)
    overload = packet.default
    floats = [at for at, a in enumerate(overload._schema.arguments) if isinstance(a.type, torch._C.FloatType)]
    if floats:
        add(_public, f"{stem}.tensors", schema.replace("float ", "Tensor "), kernel_of_tensors)
        with_tensors = packet.tensors
    if flops is not None:
        _flops.register(packet, flops)
    _ops[stem] = op
    return overload if choose is _aten and key is None and not floats else resolved


def _device(args: Sequence[Any]) -> torch.device:
    """The device of the first tensor, which may be in a list."""
    for argument in args:
        first = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
        if isinstance(first, torch.Tensor):
            return first.device
    return torch.device("cpu")


def _device_type(args: Sequence[Any]) -> str:
    return _device(args).type


def key(stem: str, args: Sequence[Any]) -> _tuned.Key | None:
    """How a measured table knows a call of an op; `args` without `impl`. None for an op that has no key."""
    made = _ops[stem].key
    return None if made is None else made(*args)


def choice(stem: str, *args: Any) -> str:
    """What `impl="auto"` stands for with these arguments, without `impl`. The compiled module asks once a shape."""
    op, device = _ops[stem], _device(args)
    if device.type != "cuda":
        return op.choose(*args)
    if op.key is None:
        return "aten"
    impl = _tuned.choose(stem, _tuned.architecture(device.index), *op.key(*args))
    return impl if live(stem, impl, device.type) else "aten"


def check_impl(impl: str) -> None:
    """Raises ValueError when `impl` is not one of the names that exist."""
    if not isinstance(impl, str) or impl not in IMPLS:
        raise ArgumentError(f"impl: expected one of {', '.join(map(repr, IMPLS))}, got {impl!r}")


@cache
def has_native(stem: str, device_type: str) -> bool:
    """Whether the loaded compiled module computes `stem` on this kind of device."""
    key = _DISPATCH_KEYS.get(device_type)
    if not STATUS.loaded or key is None:
        return False
    if device_type == "cuda" and not STATUS.info["cuda_architectures"]:
        return False  # what is registered there are ATen calls
    if not _ops[stem].native:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"plantops::{stem}", key))


def unavailable(stem: str, impl: str, device_type: str) -> Exception:
    """The error for an implementation that was asked for by name and cannot be had."""
    if not isinstance(impl, str) or impl not in IMPLS:
        return ValueError(f"impl: expected one of {', '.join(map(repr, IMPLS))}, got {impl!r}")
    return NotImplementedError(f"{stem}: impl={impl!r} on {device_type}: {why_not(stem, impl, device_type)}")


def why_not(stem: str, impl: str, device_type: str) -> str:
    """The reason why `impl` is not live for `stem` on this kind of device, and what would change it."""
    if impl == "native" and device_type in _DISPATCH_KEYS and not STATUS.loaded:
        return f"{STATUS.reason}. To build it: {STATUS.remedy}"
    if impl == "triton" and impl in _ops[stem].implementations:
        return _triton.why_not(device_type)
    if impl == "native" and device_type == "cuda" and not STATUS.info["cuda_architectures"]:
        return f"the compiled module was built without CUDA kernels. To build them: {REBUILD_CUDA}"
    return f"this version of plantops has no {impl} kernel for it; use impl='auto' or 'aten'"


def stems() -> Iterator[str]:
    """The names of all defined ops, in the order of definition."""
    return iter(_ops)


def live(stem: str, impl: str, device_type: str) -> bool:
    """Whether `impl` of `stem` computes on this kind of device here."""
    if impl == "native":
        return has_native(stem, device_type)
    return impl in _ops[stem].implementations and not (impl == "triton" and _triton.why_not(device_type))
