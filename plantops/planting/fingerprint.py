"""Has the trunk moved since ``plant``? A hash of every tensor of it, taken then and compared by ``merge``.

Nothing is kept but 32 bytes a tensor; the tensors are read once, on the host (SHA-256).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from plantops.planting.pins import is_pinned
from plantops.planting.trunk import trunk_state

# What torch's own wrappers of a part of a model put into the names of its tensors.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_ADVICE = (
    "Undo it, or keep it from the trunk (only plantops.planting.planted_parameters(model) may move); "
    "plantops.merge(model, check_trunk=False) takes the trunk as it is now"
)


@dataclass
class Fingerprint:
    """What the trunk was: dtype and hash of each tensor by its key in ``trunk_state``, and which modules are pinned."""

    pinned: tuple[str, ...]
    tensors: dict[str, tuple[torch.dtype, str | None]] = field(default_factory=dict)

    def take(self, model: nn.Module) -> None:
        """Read the tensors of the trunk of ``model`` as they are now."""
        self.tensors = {key: (tensor.dtype, digest(tensor)) for key, tensor in _trunk(model).items()}

    def check(self, model: nn.Module) -> None:
        """Compare with the trunk as it is now.

        A tensor of a wider dtype is compared as what it was before; one of a narrower dtype, which was rounded, is not.

        Raises:
            RuntimeError: a tensor has other bits or is gone, or a module is no longer pinned; names it.
        """
        modules = {_plain(name): module for name, module in model.named_modules()}
        for name in self.pinned:
            if name not in modules or not is_pinned(modules[name]):
                found = f"a {type(modules[name]).__name__}" if name in modules else "nothing"
                raise RuntimeError(
                    f"the trunk has changed since plant: {name or 'the model'} was held in eval(), now there is "
                    f"{found} in its place. {_ADVICE}."
                )
        now = _trunk(model)
        for key, (dtype, before) in self.tensors.items():
            if key not in now:
                raise RuntimeError(f"the trunk has changed since plant: {key} is gone. {_ADVICE}.")
            tensor = now[key]
            if before is not None and not _readable(tensor) and not _empty(tensor):
                raise RuntimeError(
                    f"the trunk has changed since plant: {key} is a {type(tensor).__name__} now. {_ADVICE}."
                )
            if tensor.dtype != dtype and torch.promote_types(tensor.dtype, dtype) != tensor.dtype:
                continue
            after = digest(tensor.to(dtype))
            if before is not None and after is not None and before != after:
                raise RuntimeError(
                    f"the trunk has moved since plant: {key} has other bits than it had. Tools that re-initialise, "
                    f"average, cast or re-estimate everything they find do so. {_ADVICE}."
                )


def watch(model: nn.Module, pinned: tuple[str, ...]) -> None:
    """Remember what the trunk of ``model`` is now, and anew whenever its own ``load_state_dict`` puts a trunk in."""
    fingerprint = Fingerprint(pinned)
    fingerprint.take(model)
    setattr(model, _ATTRIBUTE, fingerprint)
    model.register_load_state_dict_post_hook(_loaded)


def check(model: nn.Module) -> None:
    """See ``Fingerprint.check``, for every planted model in ``model``."""
    for module in model.modules():
        fingerprint: Fingerprint | None = vars(module).get(_ATTRIBUTE)
        if fingerprint is not None:
            fingerprint.check(module)


def forget(model: nn.Module) -> None:
    """Undo ``watch``."""
    vars(model).pop(_ATTRIBUTE, None)
    hooks = model._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is _loaded]:
        del hooks[key]


_ATTRIBUTE = "_plantops_fingerprint"


def _loaded(model: nn.Module, incompatible: Any) -> None:
    vars(model)[_ATTRIBUTE].take(model)


def digest(tensor: Tensor) -> str | None:
    """SHA-256 of the bytes of ``tensor``, whatever its layout; None where it has none to be read."""
    if _empty(tensor) or not _readable(tensor):
        return None
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _readable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided


def _empty(tensor: Tensor) -> bool:
    """It stands for a tensor that is nowhere."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _trunk(model: nn.Module) -> Mapping[str, Tensor]:
    return {_plain(key): value for key, value in trunk_state(model).items() if isinstance(value, Tensor)}


def _plain(name: str) -> str:
    name += "."
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name[:-1]
