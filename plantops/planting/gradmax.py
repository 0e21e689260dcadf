"""GradMax: start new channels where the gradient of their filters is largest.

Source: Evci, van Merrienboer, Unterthiner, Pedregosa, Vladymyrov, "GradMax: Growing Neural Networks using Gradient
Information", ICLR 2022, arXiv 2201.05125, section 3: filters of 0, and outgoing weights that maximise the norm of the
filters' gradient, found by a singular value decomposition.

The new channels add ``sum_p v_p phi(w_p * x + b_p)`` to the layer that reads them. With all filters ``w_p = 0`` and all
biases ``b_p = b`` every new channel is the same constant map, and the gradient of (w_p, b_p) is linear in its ``in``
block: ``g_p = A v_p``, with one matrix ``A`` for all p. We take

    V = [v_1 .. v_P] = argmax sum_p |A v_p|^2   over V of the form  c U Q,   U with n orthonormal columns,

that is ``U`` = the right singular vectors of ``A`` for its n largest singular values, and

- ``phi(0) = 0, phi'(0) != 0`` (no activation, LeakyReLU, GELU, tanh): ``b = 0``, n = P, ``Q = I``; the paper's case.
  The outputs stay exactly the same.
- otherwise the channels give a constant other than 0, and the outputs stay (to rounding) only if the ``in`` blocks sum
  to 0: n = P - 1, and ``Q [n, P]`` has orthonormal rows of sum 0 (Helmert's); for two channels ``v_2 = -v_1``. Where
  ``phi'(0) = 0`` (ReLU: at 0 no gradient would ever flow) all biases are ``b > 0``. Needs P >= 2. (The paper takes 1 as
  the derivative of ReLU at 0 instead.)

The scale ``c`` makes the root mean square of ``|v_p|`` equal to that of the old slices of the reading layer.
``A`` is the exact gradient at the start: n columns are probed at a time, by backward passes through the model itself,
so pooling, strides and flatten are accounted for. ``|.|`` is the Euclidean norm over all weights of a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.graph import Consumer, Site
from plantops.nn import PlantedConv2d, PlantedLinear
from plantops.planting.blocks import Blocks, PlantedLayer, present

_PROBES = 64


@dataclass(frozen=True)
class Start:
    """What GradMax found: the common bias of the new channels and their ``in`` block."""

    bias: float
    weight_in: Tensor

    @torch.no_grad()
    def fill(self, blocks: Blocks) -> None:
        for layer in blocks.producers.values():
            present(layer.weight_out).zero_()
            if layer.bias_out is not None:
                layer.bias_out.fill_(self.bias)
        for layer in blocks.consumers.values():
            present(layer.weight_in).copy_(self.weight_in)


class GradMax:
    """Initialiser for ``plant`` (and ``Planter``) that starts channels where the gradient is largest; needs data.

    Args:
        inputs: one batch: a tensor, or a tuple of the positional arguments of the model's forward.
        loss_fn: from the model's output to the scalar loss, e.g. ``lambda logits: F.cross_entropy(logits, labels)``.
        scale: norm ``c`` of the ``in`` block of one channel; ``None`` takes that of the old channels.
        bias: the bias b > 0 of new channels behind an activation with slope 0 at 0.

    Deterministic: uses no random number. The formula is in the text of ``plantops.planting.gradmax``.
    """

    def __init__(
        self, inputs: Any, loss_fn: Callable[[Any], Tensor], *, scale: float | None = None, bias: float = 0.1
    ) -> None:
        if scale is not None and not 0 < scale < math.inf:
            raise ArgumentError(f"scale must be a positive number or None, got {scale}")
        if not 0 < bias < math.inf:
            raise ArgumentError(f"bias must be a positive number, got {bias}")
        self.inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        self.loss_fn = loss_fn
        self.scale = scale
        self.bias = bias

    def check(self, site: Site, channels: int) -> None:
        """Raise ``ValueError`` where GradMax does not apply to ``channels`` new channels at ``site``."""
        if site.norms:
            raise ArgumentError(
                f"GradMax cannot start {site.name}: the norm {site.norms[0]} would rescale filters of 0; use 'zero_in'"
            )
        if not site.chain:
            raise ArgumentError(f"GradMax cannot start {site.name}: it is no chain of one producer and one consumer")
        if self._centred(site) and channels < 2:
            raise ArgumentError(
                f"GradMax needs at least 2 channels at {site.name}, got {channels}: what follows has value "
                f"{site.value_at_zero:g} and slope {site.slope_at_zero:g} at 0, so they must cancel each other"
            )

    def probe_width(self, model: nn.Module, site: Site) -> int:
        """Channels of the planted copy on which ``solve`` measures."""
        weight = model.get_submodule(site.consumers[0].name).weight
        assert isinstance(weight, Tensor)
        return min(_PROBES, _columns(weight, site.consumers[0]))

    def solve(self, probe: nn.Module, site: Site, channels: int) -> Start:
        """Find the start of ``channels`` channels, with the help of ``probe``: the model planted at ``site``."""
        reader = site.consumers[0]
        consumer = _layer(probe, reader.name)
        gradients = self._gradients(probe.eval(), site)
        directions = channels - self._centred(site)
        if directions > min(gradients.shape):
            most = min(gradients.shape) + self._centred(site)
            raise ArgumentError(f"GradMax can start at most {most} channels at {site.name}, got {channels}")
        _, values, vectors = torch.linalg.svd(gradients, full_matrices=False)
        if not values[0] > 0:
            raise ArgumentError(f"GradMax finds no gradient for new channels at {site.name}")
        mixing = _helmert(channels) if self._centred(site) else torch.eye(channels, dtype=torch.float64)
        scale = self.scale or _slice_norm(consumer.weight, site)
        rows = mixing.to(vectors).T @ vectors[:directions] * (math.sqrt(channels / directions) * scale)
        return Start(self._start_bias(site), _as_block(rows, consumer.weight, reader))

    def _start_bias(self, site: Site) -> float:
        return self.bias if site.slope_at_zero == 0 else 0.0

    def _centred(self, site: Site) -> bool:
        return site.slope_at_zero == 0 or site.value_at_zero != 0

    def _gradients(self, probe: nn.Module, site: Site) -> Tensor:
        """The matrix A, ``[weights and bias of one filter, columns]``, in float64."""
        producer, consumer = _layer(probe, site.producers[0]), _layer(probe, site.consumers[0].name)
        parts = [part for part in (producer.weight_out, producer.bias_out) if part is not None]
        with torch.no_grad():
            parts[0].zero_()
            if len(parts) == 2:
                parts[1].fill_(self._start_bias(site))
            elif self._start_bias(site):
                raise ArgumentError(f"GradMax needs a bias in {site.name}, behind which a filter of 0 gets no gradient")
        width = len(parts[0])
        columns = _columns(consumer.weight, site.consumers[0])
        rows = []
        for first in range(0, columns, width):
            with torch.enable_grad():
                hook = consumer.register_forward_hook(_Probe(site, first, width))
                try:
                    found = torch.autograd.grad(self.loss_fn(probe(*self.inputs)), parts)
                finally:
                    hook.remove()
            rows.append(torch.cat([gradient.reshape(width, -1).double() for gradient in found], dim=1))
        return torch.cat(rows)[:columns].T


class _Probe:
    """Forward hook of the reading layer: adds what new channel p would add with a unit ``in`` block, a 1 in column
    ``first + p``, and takes its value away again, so that the gradient flows at unchanged outputs."""

    def __init__(self, site: Site, first: int, width: int) -> None:
        self.reader = site.consumers[0]
        self.start = site.planted_start(self.reader)
        self.first = first
        self.width = width

    def __call__(self, layer: PlantedLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        columns = _columns(layer.weight, self.reader)
        unit = torch.zeros(self.width, columns, dtype=layer.weight.dtype, device=layer.weight.device)
        used = torch.arange(min(self.width, columns - self.first), device=unit.device)
        unit[used, self.first + used] = 1
        block = _as_block(unit, layer.weight, self.reader)
        end = self.start + block.shape[1]
        if isinstance(layer, PlantedConv2d):
            added = _convolve(layer, args[0][:, self.start : end], block)
        else:
            added = F.linear(args[0][..., self.start : end], block)
        return output + (added - added.detach())


def _convolve(layer: PlantedConv2d, input: Tensor, weight: Tensor) -> Tensor:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    options: dict[str, Any] = {name: getattr(layer, name) for name in names}
    plain = nn.Conv2d(weight.shape[1], weight.shape[0], **options, bias=False, device="meta")
    return torch.func.functional_call(plain, {"weight": weight}, input)


def _layer(model: nn.Module, name: str) -> PlantedLayer:
    layer = model.get_submodule(name)
    assert isinstance(layer, (PlantedConv2d, PlantedLinear))
    return layer


def _columns(weight: Tensor, reader: Consumer) -> int:
    """Numbers in the ``in`` block of one channel."""
    return weight.shape[0] * reader.per_channel * math.prod(weight.shape[2:])


def _as_block(rows: Tensor, weight: Tensor, reader: Consumer) -> Tensor:
    """One row for each new channel, ``[P, columns]``, as an ``in`` block of ``weight``, ``[F_out, P s, kH, kW]``."""
    shape = (len(rows), weight.shape[0], reader.per_channel, *weight.shape[2:])
    return rows.reshape(shape).transpose(0, 1).flatten(1, 2).contiguous()


def _slice_norm(weight: Tensor, site: Site) -> float:
    """Root mean square, over the old channels of ``site``, of the norm of what reads one of them."""
    reader = site.consumers[0]
    old = weight[:, reader.start : site.planted_start(reader)]
    return math.sqrt(float(old.double().square().sum()) / site.width)


def _helmert(count: int) -> Tensor:
    """``[count - 1, count]``: orthonormal rows of sum 0."""
    rows = torch.zeros(count - 1, count, dtype=torch.float64)
    for k in range(1, count):
        rows[k - 1, :k] = 1 / math.sqrt(k * (k + 1))
        rows[k - 1, k] = -k / math.sqrt(k * (k + 1))
    return rows
