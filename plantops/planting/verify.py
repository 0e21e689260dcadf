"""Try a site out: does growing it keep all promises on this very model?"""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plantops.graph import Site
from plantops.graph.inputs import arguments
from plantops.planting.check import PlantingError, evaluate, tensors_of
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.swap import replace
from plantops.planting.trunk import planted_parameters, sites_of, trunk_state

_ROUNDINGS = 1000
_CHANNELS = 8


def verify(
    model: nn.Module,
    sites: Site | Iterable[Site],
    example_inputs: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, str | None]:
    """Grow a copy of ``model`` at each site in turn, and look at what comes out.

    At each site, with 8 new channels (or the next multiple of ``site.multiple``): ``zero_in`` keeps the outputs; after
    one training step every tensor of the trunk has the same bits and a planted block has moved; the merged model gives
    the planted one's outputs and has the trunk's bits at their mapped positions. Outputs are compared in ``eval()``, in
    the model's own dtype: give a ``double()`` copy for a sharp look.

    Args:
        model: the model, as traced.
        sites: a site, some of them, or a whole plan.
        example_inputs, example_kwargs: as for ``trace``, with two samples or more (new batch norms need a variance).

    Returns:
        for each site's name None, or what is wrong with it, in words.
    """
    inputs = arguments(example_inputs, example_kwargs)
    work = copy.deepcopy(model)
    expected = tensors_of(evaluate(work, *inputs))
    found: dict[str, str | None] = {}
    for site in sites_of(sites):
        names = {*site.producers, *(layer.name for layer in site.readers())}
        originals = {name: work.get_submodule(name) for name in names}
        flags = [(module, module.training) for module in work.modules()]
        found[site.name] = None
        try:
            _try(work, site, inputs, expected)
        except (PlantingError, RuntimeError, ValueError, TypeError) as error:
            found[site.name] = f"{type(error).__name__}: {error}".split("\n")[0]
            merge(work, inplace=True, check_trunk=False)
        for name, module in originals.items():
            replace(work, work.get_submodule(name), module)
        for module, mode in flags:
            module.training = mode
    return found


def _try(work: nn.Module, site: Site, inputs: tuple[tuple[Any, ...], dict[str, Any]], expected: list[Tensor]) -> None:
    channels = math.ceil(_CHANNELS / site.multiple) * site.multiple
    plant(work, site, channels, inplace=True)
    _compare(expected, tensors_of(evaluate(work, *inputs)), "planting")
    before = trunk_state(work)  # views: the step below would move them
    before = {key: value.clone() for key, value in before.items()}
    blocks = [parameter.detach().clone() for parameter in planted_parameters(work)]
    work.train()
    outputs = [tensor for tensor in tensors_of(work(*inputs[0], **inputs[1])) if tensor.is_floating_point()]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    # A step of any length would do, but a long one can make a network of what follows in which roundings grow.
    nn.utils.clip_grad_norm_(planted_parameters(work), 1.0)
    torch.optim.SGD(planted_parameters(work), 0.1).step()
    _same_bits(before, trunk_state(work), "a training step")
    if all(torch.equal(a, b) for a, b in zip(blocks, planted_parameters(work), strict=True)):
        raise PlantingError("a training step moves no planted block")
    planted = tensors_of(evaluate(work, *inputs))
    merge(work, inplace=True)
    _compare(planted, tensors_of(evaluate(work, *inputs)), "merging")
    _same_bits(before, trunk_state(work, site, channels), "merging")


def _compare(old: list[Tensor], new: list[Tensor], what: str) -> None:
    for a, b in zip(old, new, strict=True):
        if not a.is_floating_point() or a.numel() == 0:
            continue
        limit = _ROUNDINGS * torch.finfo(a.dtype).eps * float(a.abs().max())
        error = float((a - b).abs().max()) if a.shape == b.shape else float("nan")
        if not error <= limit:
            raise PlantingError(f"{what} changes the outputs by {error:.3g}, more than {limit:.3g}")


def _same_bits(old: dict[str, Tensor], new: dict[str, Tensor], what: str) -> None:
    if old.keys() != new.keys():
        raise PlantingError(f"{what} changes the tensors of the trunk: {sorted(old.keys() ^ new.keys())[:4]}")
    for key, value in old.items():
        if not torch.equal(value, new[key]) and not (value.is_floating_point() and bool(value.isnan().any())):
            raise PlantingError(f"{what} moves {key} of the trunk")
