"""Initial weights that keep the signal through ReLU networks, for any network of torch's layers."""

import math

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from plantops.errors import ArgumentError


def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """New weights for every layer of ``model``, in place: a function of ``generator`` alone.

    Weights of convolutions and linear layers are uniform with variance ``2 / fan_in``, those of the last one (the
    logits) with ``1 / (3 fan_in)``; their biases are 0. Other layers (norms) begin as their ``reset_parameters`` makes
    them. With torch's own initialisation (``1 / (3 fan_in)`` everywhere) the signal shrinks to a sixth of its variance
    in every layer without a norm, and narrow networks often stay at chance.

    Args:
        model: a plain model, on any device.
        generator: on the CPU.

    Returns:
        ``model``.

    Raises:
        ValueError: a layer with parameters of its own and no ``reset_parameters``.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv 1502.01852.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> model = initialise(model, torch.Generator().manual_seed(0))
    >>> model[0].weight.std().item() * math.sqrt(27 / 2)  # 1, but for chance
    0.9...
    """
    weighted = [module for module in model.modules() if isinstance(module, (_ConvNd, nn.Linear))]
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            slope = math.sqrt(5) if module is weighted[-1] else 0.0
            weight = torch.empty_like(module.weight, device="cpu")
            nn.init.kaiming_uniform_(weight, slope, generator=generator)
            with torch.no_grad():
                module.weight.copy_(weight)
                if module.bias is not None:
                    module.bias.zero_()
        elif module._parameters or module._buffers:
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise ArgumentError(
                    f"model: {type(module).__name__} has parameters and no reset_parameters to begin anew"
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(1 << 31, (), generator=generator)))
                reset()
    return model
