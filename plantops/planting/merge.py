"""Turn a planted model into plain ``torch.nn`` again, grown."""

import copy

from torch import nn

from plantops._arguments import check_flag
from plantops.errors import ArgumentError
from plantops.graph.trace import check_unwrapped
from plantops.nn.group_sparsity import note_copied
from plantops.planting import fingerprint, recomputed
from plantops.planting.blocks import PLANTED
from plantops.planting.compiled import forget_compiled
from plantops.planting.pins import unpin
from plantops.planting.plant import RECORD, Record
from plantops.planting.swap import replace
from plantops.planting.trunk import planted_parameters
from plantops.train.schedule_free import warn_in_training_mode
from plantops.train.stale import note_left


def merge(model: nn.Module, inplace: bool = False, *, check_trunk: bool = True) -> nn.Module:
    """Join the planted blocks of ``model`` with the trunk they stand beside.

    Afterwards every layer is torch's own, wider by the planted channels, with equal outputs (to rounding); the
    ``state_dict`` has the keys it had before planting. Old filters come first, so the trunk's bits are found at their
    mapped positions (``trunk_state``). ``requires_grad``, hooks, norms and dropout are as before ``plant``, the mode
    is that of the last ``train()`` or ``eval()``. A model without planted layers is returned unchanged.

    Args:
        model: a model that ``plant`` returned, or any model with planted layers.
        inplace: change ``model`` itself instead of a deep copy.
        check_trunk: compare the trunk with what it was when it was planted, or loaded by ``model.load_state_dict``.
            False takes it as it is.

    Warns:
        UserWarning: a schedule-free optimizer that trained the blocks is in training mode: they are not its average.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: it is wrapped (DataParallel, DistributedDataParallel, FSDP, torch.compile).
        RuntimeError: a tensor of the trunk has moved or is gone, or a norm or dropout is no longer held in ``eval()``;
            names it. Nothing has changed then.
    """
    check_unwrapped(model, "merged")
    check_flag("inplace", inplace)
    if check_trunk:
        fingerprint.check(model)
    planted = any(isinstance(module, PLANTED) for module in model.modules())
    if planted:
        warn_in_training_mode(planted_parameters(model), "plantops.merge")
    before = dict(model.named_parameters())
    if planted and not inplace:
        note_copied(model, "plantops.merge")
    model = model if inplace else copy.deepcopy(model)
    if isinstance(model, PLANTED):
        if inplace:
            raise ArgumentError("inplace must be False for a model that is itself one planted layer")
        merged = model.merge()
        note_left(before, merged, "plantops.merge", inplace)
        return merged
    for module in list(model.modules()):
        if isinstance(module, PLANTED):
            replace(model, module, module.merge())
    unpin(model)
    recomputed.unwatch(model)
    fingerprint.forget(model)
    _restore(model)
    if planted:
        note_left(before, model, "plantops.merge", inplace)
        forget_compiled(model)
    return model


def _restore(model: nn.Module) -> None:
    record: Record | None = vars(model).pop(RECORD, None)
    if record is None:
        return
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(record.requires_grad.get(name, parameter.requires_grad))
