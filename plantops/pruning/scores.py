"""What each channel of a network is worth: the loss without it, or the size of its filters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from plantops.errors import ArgumentError
from plantops.graph import Consumer, Plan, Site
from plantops.graph.capture import Untraceable
from plantops.graph.forward import Forward, Run, Step, Values, apply_layer
from plantops.graph.inputs import arguments, tensors_in
from plantops.train.logits import logits_of

Samples = Sequence[tuple[Any, Tensor]]
"""Batches of (inputs, labels); inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments."""
Loss = Callable[[Any, Tensor], Tensor]
"""``loss(outputs, labels)``: the mean over the batch, as ``torch.nn.functional.cross_entropy``."""


def batches_of(samples: tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]] | None) -> Samples:
    """One batch (inputs, labels), or any iterable of such batches (a ``DataLoader``), as a list of batches.

    Raises:
        ArgumentError: something else, or nothing; a batch without a sample.
    """
    if isinstance(samples, (tuple, list)) and len(samples) == 2 and isinstance(samples[1], Tensor):
        samples = [(samples[0], samples[1])]
    if samples is None or isinstance(samples, Tensor) or not isinstance(samples, Iterable):
        raise ArgumentError(f"samples must be (inputs, labels) or batches of such pairs, got {_kind(samples)}")
    batches = list(samples)
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            got = f"a {_kind(batch)}" + (f" of {len(batch)} entries" if isinstance(batch, (tuple, list)) else "")
            raise ArgumentError(f"samples must hold pairs (inputs, labels) with labels in a tensor, got {got}")
    if not batches or any(not tensors_in(inputs) or sample_count(inputs) == 0 for inputs, _ in batches):
        raise ArgumentError("samples must hold batches of at least one sample")
    return [(inputs, labels) for inputs, labels in batches]


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def sample_count(inputs: Any) -> int:
    """Samples in the inputs of a batch: the first dimension of their first tensor."""
    first = tensors_in(arguments(inputs))[0]
    return len(first) if first.dim() else 0


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
    """The mean loss of ``model`` over all labelled positions of the samples, in ``eval()``.

    Positions whose label is the ``ignore_index`` of one of torch's losses count for nothing.

    Raises:
        ArgumentError: no labelled position, or a mean that is NaN.
    """
    counts = _labelled(samples, loss)
    with evaluating(model):
        losses = [
            _loss_of(loss, labels, call(model, inputs)).double()
            for (inputs, labels), count in zip(samples, counts, strict=True)
            if count
        ]
    mean = float(sum(one * count for one, count in zip(losses, filter(None, counts), strict=True)) / sum(counts))
    if math.isnan(mean):
        place = next(place for place, one in enumerate(losses) if bool(one.isnan()))
        raise ArgumentError(f"samples: the model's loss is NaN for labelled batch number {place} of {len(losses)}")
    return mean


def call(model: nn.Module, inputs: Any) -> Any:
    """``model`` of the inputs of a batch."""
    positional, keywords = arguments(inputs)
    return model(*positional, **keywords)


def _labelled(samples: Samples, loss: Loss) -> list[int]:
    """Labelled positions of each batch; samples, where the loss does not say which labels it ignores."""
    ignored = ignore_index(loss)
    counts = [
        sample_count(inputs) if ignored is None or labels.is_floating_point() else int((labels != ignored).sum())
        for inputs, labels in samples
    ]
    if not sum(counts):
        raise ArgumentError(f"samples must hold at least one label that is not ignored ({ignored}), got none")
    return counts


def ignore_index(loss: Loss) -> int | None:
    """The label that ``loss`` leaves out: one of torch's functions or modules, or a partial of one; else None."""
    if isinstance(loss, partial):
        own = loss.keywords.get("ignore_index")
        return own if own is not None else ignore_index(loss.func)
    if loss in (F.cross_entropy, F.nll_loss):
        return -100
    own = getattr(loss, "ignore_index", None)
    return own if isinstance(own, int) else None


def _loss_of(loss: Loss, labels: Tensor, output: Any) -> Tensor:
    """``loss`` of an output; torch's losses get its logits."""
    return loss(output if isinstance(output, Tensor) or ignore_index(loss) is None else logits_of(output), labels)


def loss_increases(
    model: nn.Module,
    plan: Plan,
    samples: tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]],
    *,
    loss: Loss = F.cross_entropy,
    at_once: int = 16,
) -> dict[str, Tensor]:
    """How much the mean loss over ``samples`` grows when a channel is switched off, for every channel of every site.

    Switched off is 0 wherever the channel is read, which is what its removal gives. The network's forward runs once a
    batch, step by step; every value of it is kept. What lies behind a site's readers is then computed for ``at_once``
    channels together (``torch.vmap``), from the kept values. Where that does not give what a call of the model gives
    (hooks, values that decide what to do, layers that ``torch.vmap`` does not take), the model is called once for each
    channel, with that channel switched off where it is read, and a warning says why.

    Args:
        model: the model of ``plan``; unchanged.
        plan: the sites to score.
        samples: (inputs, labels), or batches of such; inputs as for ``plantops.trace``.
        loss: mean over a batch, from the model's output and the labels. Labels that are the ``ignore_index`` of one of
            torch's losses count for nothing.
        at_once: channels that are switched off in one pass; memory grows with it.

    Returns:
        by site name: float64 ``[width / multiple]``, one entry for each block of ``site.multiple`` channels; negative
        where the loss falls.

    Raises:
        ValueError: samples that are no batches, or without a label; a score that is NaN; says where.

    Source: Mitsuno, Kurita, "Filter Pruning using Hierarchical Group Sparse Regularization for Deep Convolutional
    Neural Networks", arXiv 2011.02389.
    """
    batches = batches_of(samples)
    counts = _labelled(batches, loss)
    device = tensors_in(batches[0][0])[0].device
    sums = {name: torch.zeros(site.blocks(), dtype=torch.float64, device=device) for name, site in plan.items()}
    followed: Forward | None = None
    reason: str | None = None
    try:
        positional, keywords = arguments(batches[0][0])
        followed = Forward.of(model, positional, keywords, gradients=False)
    except Untraceable as error:
        reason = str(error)
    with evaluating(model):
        for (inputs, labels), count in zip(batches, counts, strict=True):
            if not count:
                continue
            own_loss = partial(_loss_of, loss, labels)
            output = call(model, inputs)
            without = None
            if followed is not None:
                without, reason = _followed(followed, plan, inputs, output, own_loss, at_once)
                followed = followed if without is not None else None
            if without is None:
                without = {name: _called(model, site, inputs, own_loss) for name, site in plan.items()}
            base = own_loss(output).double()
            for name in plan:
                sums[name] += (without[name] - base) * count
    if reason is not None:
        warnings.warn(f"the model is called once for each channel that is scored: {reason}", UserWarning, stacklevel=2)
    scores = {name: total / sum(counts) for name, total in sums.items()}
    for name, score in scores.items():
        if bool(score.isnan().any()):
            block = int(score.isnan().nonzero()[0])
            raise ArgumentError(f"samples: the loss without channels {plan[name].block(block)} of {name} is NaN")
    return scores


Without = dict[str, Tensor]
"""By site: the loss of a batch without each block of channels, float64."""


def _followed(
    forward: Forward, plan: Plan, inputs: Any, output: Any, loss: Callable[[Any], Tensor], at_once: int
) -> tuple[Without | None, str | None]:
    """The losses of a batch, or why its forward does not give them; ``output``: what a call of the model gives."""
    try:
        values = _all_values(forward, inputs)
        difference = _difference(forward.result(values), output)
        if difference is not None:
            return None, difference
        return {name: _losses_without(forward, site, values, loss, at_once) for name, site in plan.items()}, None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return None, f"its steps cannot be run for several channels at once ({str(error).strip().splitlines()[0]})"


def _difference(followed: Any, called: Any) -> str | None:
    """How what the steps of a forward give differs from what a call gave; None where it does not."""
    pair = tensors_in(followed), tensors_in(called)
    if len(pair[0]) != len(pair[1]):
        return f"its steps give {len(pair[0])} tensors, a call gives {len(pair[1])}"
    for got, expected in zip(*pair, strict=True):
        if not expected.is_floating_point():
            continue
        limit = 30 * torch.finfo(expected.dtype).eps ** 0.5 * float(expected.norm())
        if got.shape != expected.shape or not float((got - expected).norm()) <= limit:
            return "what its steps give is not what a call gives"
    return None


def _all_values(forward: Forward, inputs: Any) -> Values:
    values = forward.given(*arguments(inputs))
    for step in forward.steps:
        values[step.name] = forward.run_of(step)(values)
    return values


def _losses_without(
    forward: Forward, site: Site, values: Values, loss: Callable[[Any], Tensor], at_once: int
) -> Tensor:
    """The batch's loss without each block of channels, float64."""
    readers: dict[str, list[Consumer]] = {}
    for consumer in site.consumers:
        for step in forward.all_calls(consumer.name):
            readers.setdefault(step.name, []).append(consumer)
    touched = {*readers, *(step.name for step in forward.behind(list(readers)))}
    steps = [step for step in forward.steps if step.name in touched]

    def run(kept: Tensor) -> Tensor:
        own = dict(values)
        for step in steps:
            reads = readers.get(step.name)
            run_step = forward.run_of(step) if reads is None else _masked(forward, step, site, reads, kept)
            own[step.name] = run_step(own)
        return loss(forward.result(own))

    return torch.vmap(run, chunk_size=at_once)(_masks(forward.model, site)).double()


def _called(model: nn.Module, site: Site, inputs: Any, loss: Callable[[Any], Tensor]) -> Tensor:
    """The same by calling the model, once for each block."""
    readers: dict[str, list[Consumer]] = {}
    for consumer in site.consumers:
        readers.setdefault(consumer.name, []).append(consumer)
    losses = []
    for kept in _masks(model, site):
        hooks = []
        for name, reads in readers.items():
            layer = model.get_submodule(name)
            factor = _factor(layer, site, reads, kept)
            hooks.append(layer.register_forward_pre_hook(partial(_times, factor)))
        try:
            losses.append(loss(call(model, inputs)))
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(losses).double()


def _times(factor: Tensor, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * factor, *inputs[1:])


def _masks(model: nn.Module, site: Site) -> Tensor:
    """One row for each block of channels: 0 for the block, else 1."""
    like = model.get_submodule(site.name).get_parameter("weight")
    return 1 - torch.eye(site.blocks(), dtype=like.dtype, device=like.device)


def _masked(forward: Forward, step: Step, site: Site, reads: Sequence[Consumer], kept: Tensor) -> Run:
    """``step`` with the blocks of channels that are 0 in ``kept`` switched off wherever it reads them."""
    layer = forward.model.get_submodule(reads[0].name)
    factor = _factor(layer, site, reads, kept)
    return apply_layer(step, lambda value: layer(value * factor))


def _factor(layer: nn.Module, site: Site, reads: Sequence[Consumer], kept: Tensor) -> Tensor:
    """What the input of ``layer`` is to be multiplied with."""
    features = kept.new_ones(reads[0].features)
    for reader in reads:
        own = kept.repeat_interleave(len(site.read_block(0, reader)))
        rest = reader.features - reader.start - len(own)
        features = features * torch.cat([own.new_ones(reader.start), own, own.new_ones(rest)])
    if isinstance(layer, nn.Linear):
        return features
    return features.reshape(-1, *(1,) * (layer.get_parameter("weight").dim() - 2))


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
