"""The small convolutional networks on which channel planting was published.

Source: Mitsuno, Nomura, Kurita, "Channel Planting for Deep Neural Networks using Knowledge Distillation", ICPR 2020,
arXiv 2011.02390, section IV.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from plantops._arguments import check_flag, check_minimum
from plantops.errors import ArgumentError

_DATA_SETS = {"cifar10": (10, 32), "cifar100": (100, 32), "stl10": (10, 96)}


class PlantingNet(nn.Module):
    """Five 3x3 convolutions with ReLU, then fc1 and fc2, every width of its own.

    ``conv1`` to ``conv5``: 3x3, padding 1, with bias, each followed by (``bn1`` to ``bn5``,) ``relu`` and, after the
    layers in ``pool_after``, a 2x2 max pool. The image is then flattened into ``fc1`` (``fc_width`` units, ReLU) and
    ``fc2`` (the logits). Without batch norm, as in the paper, and with ``s`` positions left after the last pool::

        parameters = (9 C + 1) c1 + sum_{l=2..5} (9 c_{l-1} c_l + c_l) + (s c5 fc + fc) + (K fc + K)

    Args:
        widths: channels of the five convolutions.
        num_classes: number K of logits.
        in_channels: channels C of the input image.
        image_size: height and width of the (square) input image.
        fc_width: units of ``fc1``.
        pool_after: layers (1 to 5) that a 2x2 max pool follows; ``None`` is the paper's choice, (1, 2, 5) for images
            under 96 pixels and (1, 2, 3, 5) from there on.
        batch_norm: put a batch norm between each convolution and its ReLU (not in the paper).
        generator: draws the initial weights; ``None`` draws them from torch's global generator, as ``torch.nn`` does.

    Shapes: ``[N, C, image_size, image_size]`` to ``[N, K]``.

    Raises:
        ValueError: a width, class count or size below 1, other than five widths, an unknown layer in ``pool_after``,
            or so many pools that no pixel is left.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        fc_width: int = 128,
        pool_after: Sequence[int] | None = None,
        batch_norm: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.widths = _checked_widths(widths)
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size, "fc_width": fc_width}
        for name, value in sizes.items():
            check_minimum(name, value, 1)
        check_flag("batch_norm", batch_norm)
        self.pool_after = _checked_pools(pool_after, image_size)

        # On the meta device torch's own initialisation draws nothing from the global generator.
        device = None if generator is None else torch.device("meta")
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        channels = in_channels
        for layer, width in enumerate(self.widths, start=1):
            self.add_module(f"conv{layer}", nn.Conv2d(channels, width, 3, padding=1, device=device))
            if batch_norm:
                self.add_module(f"bn{layer}", nn.BatchNorm2d(width, device=device))
            channels = width
        side = image_size >> len(self.pool_after)
        self.fc1 = nn.Linear(channels * side * side, fc_width, device=device)
        self.fc2 = nn.Linear(fc_width, num_classes, device=device)
        if generator is not None:
            self.to_empty(device="cpu")
            _reset(self, generator)

    @property
    def batch_norm(self) -> bool:
        """Whether norms follow the convolutions; no longer once they are folded (``plantops.fold_batch_norm``)."""
        norm = self._modules.get("bn1")
        return norm is not None and not isinstance(norm, nn.Identity)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, num_classes]`` of the images ``input [N, in_channels, image_size, image_size]``."""
        x = input
        for layer in range(1, 6):
            x = getattr(self, f"conv{layer}")(x)
            if self.batch_norm:
                x = getattr(self, f"bn{layer}")(x)
            x = self.relu(x)
            if layer in self.pool_after:
                x = self.pool(x)
        x = torch.flatten(x, 1)
        return self.fc2(self.relu(self.fc1(x)))


def planting_net(
    name: str, width: int | Sequence[int], *, batch_norm: bool = False, generator: torch.Generator | None = None
) -> PlantingNet:
    """The paper's network for ``name`` ("cifar10", "cifar100" or "stl10"), all five layers ``width`` channels wide.

    ``width`` may also be the five widths. Raises ``ValueError`` for another name or a width below 1.
    """
    if name not in _DATA_SETS:
        raise ArgumentError(f"name must be one of {', '.join(_DATA_SETS)}, got {name!r}")
    classes, size = _DATA_SETS[name]
    widths = [width] * 5 if isinstance(width, int) else width
    return PlantingNet(widths, classes, image_size=size, batch_norm=batch_norm, generator=generator)


def _checked_widths(widths: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(widths, Sequence) or isinstance(widths, (str, bytes)):
        raise ArgumentError(f"widths must be five numbers of channels, got {widths!r}")
    if len(widths) != 5 or not all(type(width) is int and width >= 1 for width in widths):
        raise ArgumentError(f"widths must be five numbers of channels, each at least 1, got {list(widths)}")
    return tuple(widths)


def _checked_pools(pool_after: Sequence[int] | None, image_size: int) -> tuple[int, ...]:
    if pool_after is None:
        pool_after = (1, 2, 5) if image_size < 96 else (1, 2, 3, 5)
    pools = tuple(sorted(set(pool_after)))
    if any(layer not in range(1, 6) for layer in pools):
        raise ArgumentError(f"pool_after must name layers from 1 to 5, got {list(pool_after)}")
    if image_size >> len(pools) < 1:
        raise ArgumentError(
            f"image_size {image_size} is too small for {len(pools)} 2x2 pools: pass fewer in pool_after"
        )
    return pools


def _reset(model: PlantingNet, generator: torch.Generator) -> None:
    """torch's default initialisation, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, from ``generator``."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
