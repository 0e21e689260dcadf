"""Hold the trunk's norms and dropouts in evaluation mode, across ``model.train()``.

A pinned module keeps its identity, tensors, hooks and names: only its class is exchanged for one of its own, whose
``train`` stays in ``eval()`` and remembers the mode that was asked for, so that ``unpin`` can give it back. A pinned
norm of torch is no ``_BatchNorm`` any more: tools that look for norms (``update_bn``, weight averaging, SyncBatchNorm
conversion, fusion) pass it by. A pinned norm of another class stays one of that class, but does not reset itself.
"""

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from plantops.graph.rules import is_stochastic_depth

_MODE = "_plantops_mode"


def pin(model: nn.Module, names: Collection[str] = ()) -> tuple[str, ...]:
    """Pin every module of ``model`` that behaves otherwise in ``train()``: norms with running statistics (they
    normalise with them from now on, and no longer move them), dropouts, randomised activations, and the modules of
    these ``names``, whose own forward asks for the mode. The modules inside of those keep their own.

    Returns:
        the names of the modules that are pinned.
    """
    pinned = []
    for name, module in model.named_modules():
        if name in names or _depends_on_mode(module):
            pinned.append(name)
            if not is_pinned(module):
                mode = module.training
                module.__class__ = _pinned(type(module))
                vars(module)[_MODE], vars(module)["training"] = mode, False
    return tuple(pinned)


def is_pinned(module: nn.Module) -> bool:
    """Whether ``pin`` holds this module."""
    return isinstance(module, _Pinned)


def unpin(model: nn.Module) -> None:
    """Undo ``pin``: every class as before, in the mode that ``train()`` or ``eval()`` last asked for."""
    for module in model.modules():
        if isinstance(module, _Pinned):
            mode = vars(module).pop(_MODE)
            module.__class__ = module._unpinned  # type: ignore[assignment]
            module.training = mode


def _depends_on_mode(module: nn.Module) -> bool:
    if hasattr(module, "running_mean_out"):
        return False  # a planted norm keeps its old channels fixed itself
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    if is_stochastic_depth(module) or isinstance(module, (_DropoutNd, nn.RReLU)):
        return True
    return _has_statistics(module)


def _has_statistics(module: nn.Module) -> bool:
    return module._buffers.get("running_mean") is not None


class _Pinned:
    """Put before a module's class: stays in ``eval()``."""

    _unpinned: type[nn.Module]

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # type: ignore[misc]
        vars(self)[_MODE] = mode
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        # Some tools set the flag itself, not through train().
        super().__setattr__(name, False if name == "training" else value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made on the fly and has no name to be found by; copy and pickle rebuild it from the plain one.
        return (_blank, (self._unpinned,), *super().__reduce_ex__(protocol)[2:])


class _PinnedNorm(_Pinned):
    """The same for a norm: nothing puts its statistics or its weights back to a start either."""

    def reset_running_stats(self) -> None:
        """Nothing: they are the trunk's."""

    def reset_parameters(self) -> None:
        """Nothing: they are the trunk's."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        if local_metadata.get("version") is None and self.num_batches_tracked is not None:  # type: ignore[attr-defined]
            # As in torch's norms: files from before there was a count, and dictionaries that say nothing.
            state_dict.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)  # type: ignore[attr-defined]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)  # type: ignore[misc]


_CLASSES: dict[type, type[nn.Module]] = {}


def _pinned(plain: type[nn.Module]) -> type[nn.Module]:
    if plain not in _CLASSES:
        bases: tuple[type, ...] = (_Pinned, plain)
        own: dict[str, Any] = {"_unpinned": plain, "__module__": __name__}
        if issubclass(plain, _NormBase):
            bases = (_PinnedNorm, plain)
            if plain.__module__.startswith("torch.nn.modules."):
                # What such a norm has beyond a module, without being one of them: none of it asks for super().
                names = {name for name in dir(plain) if not hasattr(_PinnedNorm, name) and not hasattr(nn.Module, name)}
                own |= {name: getattr(plain, name) for name in (*names, "forward", "extra_repr", "_version")}
                bases = (_PinnedNorm, nn.Module)
        _CLASSES[plain] = type(f"Pinned{plain.__name__}", bases, own)
    return _CLASSES[plain]


def _blank(plain: type[nn.Module]) -> nn.Module:
    cls = _pinned(plain)
    return cls.__new__(cls)
