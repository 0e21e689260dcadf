"""What each channel of a network is worth: the loss without it, or the size of its filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from plantops.errors import ArgumentError
from plantops.graph import Consumer, Plan, Site
from plantops.graph.capture import Untraceable
from plantops.graph.forward import Forward, Run, Step, Values, apply_layer

Samples = Sequence[tuple[Tensor, Tensor]]
"""Batches of (inputs, labels)."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, labels)``: the mean over the batch, as ``torch.nn.functional.cross_entropy``."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in ``eval()`` and without gradients; the modes are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def mean_loss(model: nn.Module, samples: Samples, loss: Loss = F.cross_entropy) -> float:
    """The mean loss of ``model`` over all samples, in ``eval()``."""
    with evaluating(model):
        sums = [loss(model(inputs), labels).double() * len(labels) for inputs, labels in samples]
    return float(torch.stack(sums).sum()) / sum(len(labels) for _, labels in samples)


def loss_increases(
    model: nn.Module, plan: Plan, samples: Samples, *, loss: Loss = F.cross_entropy, at_once: int = 16
) -> dict[str, Tensor]:
    """How much the mean loss over ``samples`` grows when a channel is switched off, for every channel of every site.

    Switched off is 0 wherever the channel is read, which is what its removal gives. The network's forward runs once a
    batch; every value of it is kept. What lies behind a site's readers is then computed for ``at_once`` channels
    together (``torch.vmap``), from the kept values.

    Args:
        model: the model of ``plan``; unchanged.
        plan: the sites to score.
        samples: batches of (inputs, labels).
        loss: mean over a batch, from the model's output and the labels.
        at_once: channels that are switched off in one pass; memory grows with it.

    Returns:
        by site name: float64 ``[width / multiple]``, one entry for each block of ``site.multiple`` channels; negative
        where the loss falls.

    Raises:
        ValueError: the model's forward cannot be run step by step; says why.

    Source: Mitsuno, Kurita, "Filter Pruning using Hierarchical Group Sparse Regularization for Deep Convolutional
    Neural Networks", arXiv 2011.02389.
    """
    try:
        forward = Forward.of(model, (samples[0][0][:2],))
    except Untraceable as error:
        raise ArgumentError(f"model: its channels cannot be switched off one by one ({error})") from error
    count = sum(len(labels) for _, labels in samples)
    device = samples[0][0].device
    sums = {name: torch.zeros(site.blocks(), dtype=torch.float64, device=device) for name, site in plan.items()}
    with evaluating(model):
        for inputs, labels in samples:
            values = _all_values(forward, inputs)
            of_output = partial(_loss_of, loss, labels)
            base = loss(values[forward.output], labels).double()
            for name, site in plan.items():
                without = _losses_without(forward, site, values, of_output, at_once)
                sums[name] += (without - base) * len(labels)
    return {name: total / count for name, total in sums.items()}


def _loss_of(loss: Loss, labels: Tensor, output: Tensor) -> Tensor:
    return loss(output, labels)


def _all_values(forward: Forward, inputs: Tensor) -> Values:
    values: Values = {forward.input: inputs}
    for step in forward.steps:
        values[step.name] = forward.run_of(step)(values)
    return values


def _losses_without(
    forward: Forward, site: Site, values: Values, loss: Callable[[Tensor], Tensor], at_once: int
) -> Tensor:
    """The batch's loss without each block of channels, float64."""
    readers: dict[str, list[Consumer]] = {}
    for consumer in site.consumers:
        for step in forward.all_calls(consumer.name):
            readers.setdefault(step.name, []).append(consumer)
    touched = {*readers, *(step.name for step in forward.behind(list(readers)))}
    steps = [step for step in forward.steps if step.name in touched]
    width = site.blocks()

    def run(kept: Tensor) -> Tensor:
        own = dict(values)
        for step in steps:
            reads = readers.get(step.name)
            run_step = forward.run_of(step) if reads is None else _masked(forward, step, site, reads, kept)
            own[step.name] = run_step(own)
        return loss(own[forward.output])

    sample = values[forward.output]
    masks = 1 - torch.eye(width, dtype=sample.dtype, device=sample.device)
    return torch.vmap(run, chunk_size=at_once)(masks).double()


def _masked(forward: Forward, step: Step, site: Site, reads: Sequence[Consumer], kept: Tensor) -> Run:
    """``step`` with the blocks of channels that are 0 in ``kept`` switched off wherever it reads them."""
    layer = forward.model.get_submodule(reads[0].name)
    features = kept.new_ones(reads[0].features)
    for reader in reads:
        own = kept.repeat_interleave(len(site.read_block(0, reader)))
        rest = reader.features - reader.start - len(own)
        features = features * torch.cat([own.new_ones(reader.start), own, own.new_ones(rest)])
    if not isinstance(layer, nn.Linear):
        features = features.reshape(-1, *(1,) * (layer.get_parameter("weight").dim() - 2))
    return apply_layer(step, lambda value: layer(value * features))


def magnitudes(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Root mean square of the weights that make a channel, for every block of channels of every site: the usual yard
    stick, which needs no data. Shapes as ``loss_increases``."""
    found = {}
    for name, site in plan.items():
        squares = torch.zeros(site.blocks(), dtype=torch.float64)
        weights = 0
        for producer in site.producers:
            layer = model.get_submodule(producer)
            weight = layer.get_parameter("weight").detach().double().cpu()
            filters = weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight
            own = torch.tensor([site.block(number, producer) for number in range(site.blocks())])
            squares += filters.flatten(1).square().sum(1)[own].sum(1)
            weights += filters[0].numel() * own.shape[1]
        found[name] = (squares / weights).sqrt()
    return found
