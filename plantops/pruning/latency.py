"""What pruning is worth on this machine: cost and time of networks, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from plantops.bench.timing import measure
from plantops.errors import ArgumentError
from plantops.models import count_macs, count_parameters
from plantops.pruning.scores import evaluating


def latency_table(networks: Mapping[str, nn.Module], inputs: Tensor, *, rounds: int = 20) -> list[dict[str, Any]]:
    """Parameters, multiply-accumulates and milliseconds of one forward of ``inputs``, for each network.

    The networks run in turn in ``eval()``, without gradients, with the threads that torch is set to; milliseconds are
    the quantiles of ``rounds`` samples. On a CPU only: the clock is the host's.

    Returns:
        one row a network: ``network``, ``parameters``, ``macs`` (for one sample), ``p20_ms``, ``p50_ms``, ``p80_ms``,
        and ``speedup``, the first network's median over its own.

    Raises:
        ValueError: ``inputs`` that are not on the CPU.
    """
    if inputs.device.type != "cpu":
        raise ArgumentError(f"inputs must be on the CPU, got {inputs.device}")

    def run(model: nn.Module) -> None:
        with evaluating(model):
            model(inputs)

    timings = measure({name: partial(run, model) for name, model in networks.items()}, rounds=rounds)
    first = next(iter(timings.values())).p50
    return [
        {
            "network": name,
            "parameters": count_parameters(model),
            "macs": count_macs(model, inputs.shape[1:]),
            **timings[name].milliseconds(),
            "speedup": round(first / timings[name].p50, 3),
        }
        for name, model in networks.items()
    ]
