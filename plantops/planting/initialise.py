"""How planted blocks start: ``zero_in``, ``kaiming``, ``zero_out``, ``copy`` and ``copy_pairs``.

Write the planted part of the network as ``sum_p v_p phi(w_p * x + b_p)``: ``w_p, b_p`` the ``out`` block (filter and
bias of new channel p), ``v_p`` the ``in`` block (the slice of every layer that reads it), ``phi`` what lies between.

=============  ==============================  =============================  ==================
name           out block (w, b)                in block (v)                   outputs unchanged
=============  ==============================  =============================  ==================
"zero_in"      Kaiming                         0                              exactly
"kaiming"      Kaiming                         Kaiming                        no
"zero_out"     0 (behind a norm: see below)    Kaiming                        if phi(0) = 0
"copy"         filters of old channels         0                              exactly
"copy_pairs"   each filter twice               the old slice v_c, and -v_c    to rounding
=============  ==============================  =============================  ==================

- ``zero_out``: with ``w = b = 0`` the gradient of ``w`` has the factor ``phi'(0)`` and that of ``v`` the factor
  ``phi(0)``: where ``phi'(0) = 0`` (ReLU) the filters stay 0 for ever, so it is refused there. A norm would blow a
  filter of 0 up again, so with norms the last norm's new weight and bias are 0 instead, and ``w`` is Kaiming.
- ``copy`` and ``copy_pairs`` draw different old channels; the trunk itself is only read. A norm's weight, bias and
  running statistics are copied along.

Only the Kaiming blocks and the choice of channels are random, and they come from the generator alone.
"""

import torch
from torch import Tensor

from plantops.errors import ArgumentError
from plantops.graph import Site
from plantops.planting.blocks import Blocks, PlantedLayer, features_of, present

INITIALISERS = ("zero_in", "kaiming", "zero_out", "copy", "copy_pairs")


def check_init(init: str, site: Site, channels: int) -> None:
    """Raise ``ValueError`` for an unknown name, or one that cannot start ``channels`` channels at ``site``."""
    if init not in INITIALISERS:
        raise ArgumentError(f"init must be one of {', '.join(INITIALISERS)} or a GradMax object, got {init!r}")
    if init == "zero_out" and not site.chain:
        raise ArgumentError(
            f"init='zero_out' cannot start {site.name}, no chain of one producer and one consumer; use 'zero_in'"
        )
    if init in ("copy", "copy_pairs") and site.outputs:
        raise ArgumentError(
            f"init={init!r} cannot start {site.name}: its channels come in parts or units; use 'zero_in'"
        )
    if init in ("copy", "copy_pairs") and site.multiple > 1:
        raise ArgumentError(f"init={init!r} cannot start {site.name}: its channels come in groups of {site.multiple}")
    if init == "zero_out" and site.slope_at_zero == 0:
        raise ArgumentError(
            f"init='zero_out' cannot start {site.name}: what follows ({', '.join(site.passes)}) has slope 0 at 0, so "
            "the gradients of the new filters would stay 0; use 'zero_in'"
        )
    if init == "copy" and channels > site.width:
        raise ArgumentError(
            f"init='copy' starts at most {site.width} channels at {site.name}, one a copy, got {channels}"
        )
    if init == "copy_pairs" and (channels % 2 or channels > 2 * site.width):
        most = 2 * site.width
        raise ArgumentError(f"init='copy_pairs' starts an even number up to {most} at {site.name}, got {channels}")


@torch.no_grad()
def initialise(blocks: Blocks, init: str, generator: torch.Generator) -> None:
    """Fill ``blocks``, which were built with ``layer_init(init)``, as ``init`` says."""
    if init == "zero_out":
        _zero_out(blocks)
    elif init in ("copy", "copy_pairs"):
        pairs = init == "copy_pairs"
        count = blocks.channels // 2 if pairs else blocks.channels
        sources = torch.randperm(blocks.site.width, generator=generator, device=generator.device)[:count]
        copied = sources.repeat_interleave(2) if pairs else sources
        _copy_out(blocks, copied)
        if pairs:
            _oppose_in(blocks, sources)
        _copy_own_readers(blocks, copied)


def layer_init(init: str) -> str:
    """The initialiser of the single layers on which ``init`` builds."""
    return "kaiming" if init in ("kaiming", "zero_out") else "zero_in"


def _zero_out(blocks: Blocks) -> None:
    for layer in list(blocks.norms.values())[-1:] or blocks.producers.values():
        for parameter in (layer.weight_out, layer.bias_out):
            if parameter is not None:
                parameter.zero_()


def _copy_out(blocks: Blocks, sources: Tensor) -> None:
    for layer in blocks.producers.values():
        weight, new = _filters_first(layer, layer.weight), _filters_first(layer, present(layer.weight_out))
        if new.shape[1] == weight.shape[1]:
            _copy(new, weight, sources)
        else:  # it reads new channels, too: see _copy_own_readers
            end = layer.in_start + layer.planted_in
            _copy(new[:, : layer.in_start], weight[:, : layer.in_start], sources)
            _copy(new[:, end:], weight[:, layer.in_start :], sources)
        _copy(layer.bias_out, layer.bias, sources)
    for inner, layer, offset in blocks.channelwise():
        for name in ("weight", "bias", "running_mean", "running_var"):
            old = getattr(layer, name, None)
            if old is not None:
                per_feature = old.shape[0] // inner.features
                rows = inner.start * per_feature + features_of(sources, inner.per_channel * per_feature)
                new, first = getattr(layer, f"{name}_out"), offset * per_feature
                _copy(None if new is None else new[first : first + len(rows)], old, rows)


def _copy_own_readers(blocks: Blocks, sources: Tensor) -> None:
    """A copied filter reads the new channels as the filter that it copies does."""
    for layer in blocks.producers.values():
        if layer.weight_in is not None:
            end = layer.in_start + layer.planted_in
            new = _filters_first(layer, present(layer.weight_out))[:, layer.in_start : end]
            _copy(new, _filters_first(layer, layer.weight_in), sources)


def _filters_first(layer: PlantedLayer, weight: Tensor) -> Tensor:
    """A weight with its filters along dimension 0, which a transposed convolution has along dimension 1."""
    return weight.transpose(0, 1) if getattr(layer, "transposed", False) else weight


def _copy(target: Tensor | None, source: Tensor | None, rows: Tensor) -> None:
    if target is not None and source is not None:
        target.copy_(source[rows.to(source.device)])


def _oppose_in(blocks: Blocks, sources: Tensor) -> None:
    """``in`` blocks ``v_c, -v_c`` for each pair: what one of the twins adds the other takes away."""
    for consumer, layer, first in blocks.readers():
        columns = consumer.start + features_of(sources, consumer.per_channel).to(layer.weight.device)
        old = _filters_first(layer, layer.weight)[:, columns].unflatten(1, (len(sources), consumer.per_channel))
        twins = torch.stack([old, -old], dim=2).flatten(1, 3)
        _filters_first(layer, present(layer.weight_in))[:, first : first + twins.shape[1]].copy_(twins)
