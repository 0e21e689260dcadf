"""Compiles recorded Triton launches ahead of time, for architectures that are not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from plantops.ops._triton import Launch

DIVISIBILITY = 16


@dataclass(frozen=True)
class Configuration:
    """All that decides the code of one kernel."""

    kernel: Any
    words: str
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, int]


def specialise(launch: Launch) -> Configuration:
    """What Triton's own launcher would compile: an integer 1 is a constant, a multiple of 16 is known as such, and so
    are the addresses of tensors."""
    signature: dict[str, str] = {}
    constants, attributes = dict(launch.constants), {}
    values = {**dict(zip(launch.kernel.arg_names, launch.args, strict=False)), **launch.constants}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr:
            signature[name] = "constexpr"
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        elif isinstance(value, int) and value == 1:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = mangle_type(value, False)
            if isinstance(value, Tensor) or value % DIVISIBILITY == 0:
                attributes[(index,)] = [["tt.divisibility", DIVISIBILITY]]
    return Configuration(launch.kernel, describe(launch), signature, constants, attributes, launch.options)


def describe(launch: Launch) -> str:
    """Dtypes of the tensors, and the constants that choose the code."""
    floats = [a.dtype for a in launch.args if isinstance(a, Tensor) and a.is_floating_point()]
    names = sorted({str(dtype).removeprefix("torch.") for dtype in floats})
    chosen = " ".join(f"{name}={value}" for name, value in launch.constants.items())
    return f"{'+'.join(names)} {chosen} warps={launch.options['num_warps']} stages={launch.options['num_stages']}"


def configurations(launches: Iterable[Launch]) -> Iterator[Configuration]:
    """One for each launch that compiles to other code than those before it."""
    seen = set()
    for launch in launches:
        found = specialise(launch)
        key = (found.kernel.__name__, found.kernel.__module__, repr((found.signature, found.constants,
               found.attributes, found.options)))  # fmt: skip
        if key not in seen:
            seen.add(key)
            yield found


def compile_for(architecture: int, configuration: Configuration) -> tuple[bytes, int]:
    """The cubin that would be loaded, and the shared memory it is started with."""
    source = ASTSource(
        fn=configuration.kernel, signature=configuration.signature, constexprs=configuration.constants,
        attrs=configuration.attributes,
    )  # fmt: skip
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(configuration.options))
    return compiled.asm["cubin"], compiled.metadata.shared
