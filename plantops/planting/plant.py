"""Plant new channels at a site of a trained model, around a trunk that no longer moves."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from plantops._arguments import check_flag, check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.graph import Site, check_plain
from plantops.graph.cost import features as channels_of
from plantops.graph.layers import widths
from plantops.nn.group_sparsity import note_copied
from plantops.planting import recomputed
from plantops.planting.blocks import PLANTED, Blocks, Growth, build
from plantops.planting.compiled import forget_compiled
from plantops.planting.fingerprint import watch
from plantops.planting.gradmax import GradMax, Start
from plantops.planting.initialise import check_init, initialise, layer_init
from plantops.planting.originals import Originals
from plantops.planting.pins import pin
from plantops.planting.swap import replace
from plantops.planting.trunk import planted_parameters, sites_of
from plantops.train import schedule_free
from plantops.train.stale import note_left
from plantops.train.stale_averages import watch_averages

RECORD = "_plantops_record"


@dataclass(frozen=True)
class Record:
    """What is known of a ``plant``; kept on the planted model.

    ``requires_grad``: by parameter name, for ``merge``; ``originals``: the parameters before, for ``carry_state``.
    """

    growths: tuple[Growth, ...]
    requires_grad: dict[str, bool]
    originals: Originals


def plant(
    model: nn.Module,
    site: Site | Iterable[Site],
    channels: int | Mapping[str, int],
    init: str | GradMax = "zero_in",
    *,
    generator: torch.Generator | None = None,
    inplace: bool = False,
    input_grad: str = "full",
) -> nn.Module:
    """Give ``site`` of ``model`` new channels, which alone train from now on.

    The producers gain ``channels`` filters, the norms as many channels, the consumers the input slices that read
    them; these planted blocks are parameters of their own (``planted_parameters``), in planted layers
    (``plantops.nn``) put in the place of torch's, inside the model's own class.
    Everything else is the trunk and stays bit for bit what it was: ``requires_grad`` is switched off (and recorded
    for ``merge``), gradients are dropped, norms use their running statistics in ``train()`` too, dropout is off, also
    after later calls of ``model.train()``. What a tool does to the trunk nevertheless is noticed by ``merge``, which
    compares it with a hash taken here. Hooks, device, dtype, memory format, modes and ``state_dict`` keys of the
    trunk stay. Make the optimizer after planting: ``torch.optim.SGD(planted_parameters(model), ...)``.

    Several sites grow at once: new filters then read the new channels of the other sites, too. A layer that new
    channels reach at different places of its input (two sites behind a concatenation, the parts of a ``chunk``)
    reorders a copy of its input while it is planted, and one whose own channels come in parts a copy of its output.

    Args:
        model: the model that ``site`` was traced from, or a copy of it; not wrapped, not planted already.
        site: a site of ``plantops.trace(model, example_inputs)``, or several of them.
        channels: number of new channels, at least 1 and a multiple of ``site.multiple``; for several sites one number
            for all, or one for each by ``site.name``. Where the producers are not equally wide (``site.outputs``) it
            counts filters of the first.
        init: how they start, see ``plantops.planting.initialise``: "zero_in" (the outputs stay exactly the same),
            "kaiming", "zero_out", "copy", "copy_pairs", or a ``GradMax`` object (for one site).
        generator: source of all randomness; ``None`` is a fresh generator with seed 0. Global generators are not used.
        inplace: change ``model`` itself instead of a deep copy.
        input_grad: "planted" lets the consumer of a chain send a gradient into the new channels alone. The planted
            blocks of this site get the same gradients with less work; a gradient to the model's input would be wrong.
            At other sites, where old channels lie between planted blocks, it does nothing.

    Returns:
        the planted model.

    Raises:
        TypeError: ``site`` is neither a ``Site`` nor several, ``channels`` no integer.
        ValueError: ``channels`` below 1 or no multiple of ``site.multiple``, or a mapping that does not name every
            site; no site, or one twice; a site of another model (a layer is missing, widths differ); a model that is
            planted already, or wrapped; an ``init`` that is unknown or cannot start this site.
    """
    check_plain(model)
    check_flag("inplace", inplace)
    if generator is not None:
        check_type("generator", generator, torch.Generator, "a torch.Generator")
    if not isinstance(init, GradMax):
        check_type("init", init, str, "a name or a GradMax object")
    if not isinstance(input_grad, str) or input_grad not in ("full", "planted"):
        raise ArgumentError(f"input_grad must be 'full' or 'planted', got {input_grad!r}")
    growths = _growths(model, site, channels)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start: Start | None = None
    if isinstance(init, GradMax):
        start = _solve(init, model, growths)
    else:
        for one, count in growths:
            check_init(init, one, count)

    before = dict(model.named_parameters(remove_duplicate=False))
    if not inplace:
        note_copied(model, "plantops.plant")
    model = model if inplace else copy.deepcopy(model)
    layers_start = "zero_in" if isinstance(init, GradMax) else layer_init(init)
    planted = build(model, growths, layers_start, generator, input_grad)
    for blocks in planted:
        if start is not None:
            start.fill(blocks)
        elif isinstance(init, str):
            initialise(blocks, init, generator)
    _swap_in(model, planted, Originals(before))
    note_left(before, model, "plantops.plant", inplace)
    schedule_free.watch()
    watch_averages()
    forget_compiled(model)
    return model


def _growths(model: nn.Module, site: Site | Iterable[Site], channels: int | Mapping[str, int]) -> list[Growth]:
    """Every site with its number of channels, all of them checked."""
    if isinstance(site, torch.Tensor):
        raise ArgumentTypeError("site must be a site of plantops.trace, or several, got Tensor")
    sites = sites_of(site)
    for one in sites:
        _check_site(model, one)
    names = [one.name for one in sites]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"site must be one or several different sites, got {', '.join(names) or 'none'}")
    if isinstance(channels, Mapping) and set(channels) != set(names):
        raise ArgumentError(
            f"channels must name each site once ({', '.join(names)}), got {', '.join(channels) or 'none'}"
        )
    growths = [(one, channels[one.name] if isinstance(channels, Mapping) else channels) for one in sites]
    for one, count in growths:
        _check_channels(count)
        if count % one.multiple:
            raise ArgumentError(f"channels must be a multiple of {one.multiple} at {one.name}, got {count}")
    return growths


def why_not_started(init: str | GradMax, site: Site, channels: int) -> str | None:
    """Why ``init`` cannot start ``channels`` new channels at ``site``; None where it can."""
    try:
        if isinstance(init, GradMax):
            init.check(site, channels)
        else:
            check_init(init, site, channels)
    except ValueError as reason:
        return str(reason)
    return None


def _solve(init: GradMax, model: nn.Module, growths: list[Growth]) -> Start:
    if len(growths) > 1:
        raise ArgumentError(f"init=GradMax(...) starts one site at a time, got {len(growths)} sites")
    ((site, channels),) = growths
    init.check(site, channels)
    probe = plant(model, site, init.probe_width(model, site), "zero_in", generator=torch.Generator())
    return init.solve(probe, site, channels)


def _check_channels(channels: int) -> None:
    if not isinstance(channels, int) or isinstance(channels, bool):
        raise ArgumentTypeError(f"channels must be an integer, got {type(channels).__name__}")
    if channels < 1:
        raise ArgumentError(f"channels must be at least 1, got {channels}")


def _check_site(model: nn.Module, site: Site) -> None:
    """Does ``site`` describe ``model``?"""
    if not isinstance(site, Site):
        raise ArgumentTypeError(
            f"site must be a Site, such as plan['conv2'] of a plantops.trace, got {type(site).__name__}"
        )
    expected = [(name, "output", site.output(name).width) for name in site.producers]
    expected += [(consumer.name, "input", consumer.features) for consumer in site.consumers]
    expected += [(layer.name, "input", layer.features) for layer in site.channelwise if layer.kind == "conv"]
    names = dict(model.named_modules())
    for name, side, features in expected:
        layer = names.get(name)
        if not isinstance(layer, (_ConvNd, nn.Linear)):
            found = "no such layer" if layer is None else f"a {type(layer).__name__} there"
            raise ArgumentError(f"site {site.name} is of another model: it needs a layer {name}, the model has {found}")
        actual = widths(layer)[side == "output"]
        if actual != features:
            raise ArgumentError(
                f"site {site.name} is of another model: {name} had {features} {side} channels when it was traced, "
                f"the model's has {actual}; trace the model again"
            )
    for inner in site.channelwise:
        layer = names.get(inner.name)
        if layer is None or (inner.kind != "conv" and channels_of(layer) != inner.features):
            raise ArgumentError(
                f"site {site.name} is of another model: it needs a layer {inner.name} over {inner.features} channels"
            )


def _swap_in(model: nn.Module, planted: list[Blocks], originals: Originals) -> None:
    """Put the planted layers in place and make all else the trunk."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, layer in {name: layer for blocks in planted for name, layer in blocks.all().items()}.items():
        replace(model, model.get_submodule(name), layer)
    pinned = pin(model, {name for blocks in planted for name in blocks.site.pinned})
    mine = {id(parameter) for parameter in planted_parameters(model)}
    for parameter in model.parameters():
        if id(parameter) not in mine:
            parameter.requires_grad_(False)
            # An optimizer moves a parameter that has a gradient, whether or not it requires one.
            parameter.grad = None
    growths = tuple((blocks.site, blocks.channels) for blocks in planted)
    setattr(model, RECORD, Record(growths, flags, originals))
    watch(model, pinned)
    recomputed.watch(model, [module for module in model.modules() if isinstance(module, PLANTED)])
