"""What a network costs: parameters, and multiply-accumulates for one sample."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from plantops._arguments import check_minimum, check_type
from plantops.errors import ArgumentError, ArgumentTypeError


def count_parameters(model: nn.Module) -> int:
    """Number of elements over all parameters of ``model``, frozen ones included, shared ones once.

    Buffers (running statistics) are not parameters. A planted model has as many as the merged one.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of the convolutions and linear layers of ``model`` for one sample.

    A convolution costs ``H' W' F_out (F_in / groups) kH kW``, a linear layer ``F_in F_out`` a row; biases, norms,
    activations and pooling are not counted. The forward runs on a copy on the meta device, in ``eval()``: nothing is
    computed, and neither the model nor a random generator changes.

    Args:
        input_shape: shape of one sample without the batch dimension, e.g. ``(3, 32, 32)``.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, (str, bytes)):
        raise ArgumentTypeError(f"input_shape must be the sizes of one sample, got {input_shape!r}")
    for size in input_shape:
        check_minimum("input_shape", size, 1)
    probe = copy.deepcopy(model).to("meta")
    dtype = next((p.dtype for p in probe.parameters() if p.is_floating_point()), torch.float32)
    try:
        # Two samples: some norms refuse a single one.
        return count_call_macs(probe, lambda: probe(torch.empty((2, *input_shape), dtype=dtype, device="meta"))) // 2
    except RuntimeError as error:
        text = str(error).split("\n")[0]
        raise ArgumentError(f"input_shape: model does not take a sample {list(input_shape)} ({text})") from error


def count_call_macs(model: nn.Module, call: Callable[[], Any]) -> int:
    """As ``count_macs``, for all samples that ``call`` calls ``model`` with; in ``eval()``, without gradients."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * _macs_per_output(module)

    modes = [(module, module.training) for module in model.modules()]
    hooks = [module.register_forward_hook(add) for module in model.modules() if _macs_per_output(module)]
    try:
        model.eval()
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return total


def _macs_per_output(module: Any) -> int:
    """Multiply-accumulates behind one output value; 0 for layers that are not counted.

    Read from the attributes that torch's layers have, so planted layers, which keep those names, count as well.
    """
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features)
    if hasattr(module, "in_channels") and hasattr(module, "kernel_size") and not getattr(module, "transposed", False):
        taps = 1
        for size in module.kernel_size:
            taps *= size
        return int(module.in_channels) // int(module.groups) * taps
    return 0
