"""What of a model is trunk and what is planted, and a hash to tell whether the trunk has moved."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from plantops._arguments import check_type
from plantops.errors import ArgumentError
from plantops.graph import Site
from plantops.planting.blocks import PLANTED, Growth


def planted_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the planted blocks, the only ones that train: what to give to the optimizer.

    Warns where one of them does not require a gradient, since a tool has switched it off (``peft.get_peft_model`` does
    so with all parameters but its own).
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    blocks = {
        f"{name}.{key}": parameter
        for name, layer in model.named_modules()
        if isinstance(layer, PLANTED)
        for key, parameter in layer.named_parameters(recurse=False)
        if key.endswith(("_out", "_in"))
    }
    frozen = [name for name, parameter in blocks.items() if not parameter.requires_grad]
    if frozen:
        warnings.warn(
            f"{len(frozen)} of {len(blocks)} planted blocks do not require a gradient ({frozen[0]} is the first): they "
            "will not train. A tool that freezes what it finds was called after plant; switch them on with "
            "requires_grad_(True)",
            stacklevel=2,
        )
    return list(blocks.values())


def trunk_state(
    model: nn.Module,
    site: Site | Iterable[Site] | None = None,
    channels: int | Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """The trunk's part of ``model.state_dict()``, by the keys it had before planting.

    Args:
        model: a planted model (then without ``site`` and ``channels``), or the merged one.
        site: for a merged model the site, or sites, that were planted, as traced before.
        channels: for a merged model the number of channels that were planted, as given to ``plant``.

    Returns:
        detached tensors (views where possible): of a merged model the old channels at their mapped positions, so
        that the result equals, bit for bit, that of the planted model, if the trunk has not moved.
    """
    if (site is None) != (channels is None):
        raise ArgumentError("site and channels must be given together (of a merged model) or not at all")
    state = dict(model.state_dict())
    if site is not None and channels is not None:
        growths = [(one, channels[one.name] if isinstance(channels, Mapping) else channels) for one in sites_of(site)]
        transposed = [name for name, module in model.named_modules() if isinstance(module, _ConvTransposeNd)]
        return {**state, **_cut_out(state, growths, transposed)}
    planted = [f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, PLANTED)]
    return {
        key: value
        for key, value in state.items()
        if not (key.endswith(("_out", "_in")) and key.rpartition(".")[0] + "." in planted)
    }


def sites_of(site: Site | Iterable[Site]) -> list[Site]:
    """One site or several (a whole plan, too) as a list."""
    if isinstance(site, Mapping):
        return list(site.values())
    return list(site) if isinstance(site, Iterable) and not isinstance(site, str) else [site]


Cut = tuple[int, int, int]
"""Dimension, first entry to leave out (counted without the other cuts), and how many."""


def _cut_out(state: dict[str, Tensor], growths: Sequence[Growth], transposed: Collection[str]) -> dict[str, Tensor]:
    """The changed entries of a merged model's state without the planted channels. ``transposed``: layers whose filters
    are dimension 1 of their weight."""
    cuts: dict[str, list[Cut]] = defaultdict(list)
    for site, channels in growths:
        for name in site.producers:
            for start, count in site.planted_outputs(name, channels):
                cuts[f"{name}.weight"].append((1 if name in transposed else 0, start, count))
                cuts[f"{name}.bias"].append((0, start, count))
        for consumer in site.consumers:
            columns = 0 if consumer.name in transposed else 1
            count = site.planted_count(consumer, channels)
            cuts[f"{consumer.name}.weight"].append((columns, site.planted_start(consumer), count))
    grown: dict[str, int] = defaultdict(int)  # new input features of the layers on the way, from all sites
    for site, channels in growths:
        for layer in site.channelwise:
            grown[layer.name] += site.planted_count(layer, channels)
    for site, channels in growths:
        for layer in site.channelwise:
            for key in ("weight", "bias", "running_mean", "running_var"):
                value = state.get(f"{layer.name}.{key}")
                if value is not None:
                    # Entries for one input feature: as many as the outputs of a group over its inputs.
                    per_feature = value.shape[0] / (layer.features + grown[layer.name])
                    start, count = site.planted_start(layer), site.planted_count(layer, channels)
                    cuts[f"{layer.name}.{key}"].append((0, round(start * per_feature), round(count * per_feature)))
    return {key: _without(state[key], cuts[key]) for key in cuts if key in state}


def _without(tensor: Tensor, cuts: list[Cut]) -> Tensor:
    for dim, start, count in sorted(cuts):
        end = start + count
        before, behind = tensor.narrow(dim, 0, start), tensor.narrow(dim, end, tensor.shape[dim] - end)
        tensor = torch.cat([before, behind], dim) if behind.shape[dim] else before
    return tensor


def trunk_hash(
    model: nn.Module,
    site: Site | Iterable[Site] | None = None,
    channels: int | Mapping[str, int] | None = None,
) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of ``trunk_state``, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trunk_state(model, site, channels).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
