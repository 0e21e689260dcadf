"""Batch norm of a grown layer: the old channels normalise as they always did, the new ones learn."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.nn import _blocks


def _shared(name: str) -> Any:
    def get(new: _NewChannels) -> Tensor | None:
        return getattr(new._of[0], f"{name}_out")

    def put(new: _NewChannels, value: Tensor | None) -> None:
        setattr(new._of[0], f"{name}_out", value)

    return property(get, put)


class _NewChannels:
    """The new channels of a planted norm as an ordinary norm: put before its class.

    Tools that look for norms find this one and may treat it as any other (``update_bn`` estimates its statistics anew,
    ``convert_sync_batchnorm`` joins its batches). It owns no tensor: all it has is the planted norm's.
    """

    num_features: int
    eps: float
    affine: bool
    track_running_stats: bool
    process_group: Any
    weight, bias = _shared("weight"), _shared("bias")
    running_mean, running_var = _shared("running_mean"), _shared("running_var")
    num_batches_tracked = _shared("num_batches_tracked")

    def __init__(self, norm: PlantedBatchNorm2d, process_group: Any = None) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self._of = (norm,)  # in a tuple: not a child
        self.num_features, self.eps, self.affine = norm.planted_features, norm.eps, norm.affine
        self.track_running_stats, self.process_group = norm.track_running_stats, process_group

    @property
    def momentum(self) -> Any:
        return self._of[0].momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self._of[0].momentum = value

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: it owns no tensor."""

    def extra_repr(self) -> str:
        """How many they are; the planted norm says the rest."""
        return str(self.num_features)


class _New1d(_NewChannels, nn.BatchNorm1d):
    pass


class _New2d(_NewChannels, nn.BatchNorm2d):
    pass


class _New3d(_NewChannels, nn.BatchNorm3d):
    pass


class _NewSync(_NewChannels, nn.SyncBatchNorm):
    pass


_NEW: dict[type[nn.Module], Any] = {nn.BatchNorm1d: _New1d, nn.BatchNorm2d: _New2d, nn.BatchNorm3d: _New3d}


class PlantedBatchNorm2d(_blocks.Planted):
    """Batch norm with a pinned trunk and new channels.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` for each channel. Old channels use the trunk's running mean
    and variance in ``train()`` too, and nothing of theirs moves. New channels are an ordinary batch norm: batch
    statistics in ``train()``, running ones in ``eval()``. They are the child `new`, an `nn.BatchNorm2d` to tools that
    look for norms: `torch.optim.swa_utils.update_bn` estimates their statistics anew, and no others. Made by `from_bn`.

    Without running statistics (``track_running_stats=False``) there is nothing to pin: all channels use the batch's
    statistics, as they did before.

    Attributes:
        weight, bias, running_mean, running_var, num_batches_tracked: the trunk's, parameters that do not train and
            buffers (None as in the source).
        weight_out, bias_out: Parameters ``[P]`` of the new channels, 1 and 0 at the start; None without affine.
        running_mean_out, running_var_out, num_batches_tracked_out: their statistics, buffers.
        num_features: all channels; planted_features of them are new, at ``[start, start + planted_features)``.
        new: the norm of the new channels; its tensors are this module's.
    """

    _plain: type[nn.BatchNorm1d] | type[nn.BatchNorm2d] = nn.BatchNorm2d
    _dims: tuple[int, ...] = (4,)
    running_mean: Tensor | None
    running_var: Tensor | None
    running_mean_out: Tensor | None
    running_var_out: Tensor | None
    num_batches_tracked: Tensor | None
    num_batches_tracked_out: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, bn: nn.BatchNorm1d | nn.BatchNorm2d, new_features: int, *, start: int | None = None) -> None:
        super().__init__()
        if not isinstance(bn, self._plain):
            raise ArgumentTypeError(f"bn: expected an nn.{self._plain.__name__}, got {type(bn).__name__}")
        _blocks.check_count("new_features", new_features)
        self.start = _blocks.check_start("start", start, bn.num_features)
        self.num_features, self.planted_features = bn.num_features + new_features, new_features
        self.eps, self.momentum, self.affine = bn.eps, bn.momentum, bn.affine
        self.track_running_stats = bn.running_mean is not None
        self._trained = _blocks.requires_grad(bn.weight), _blocks.requires_grad(bn.bias)
        weight, bias, mean, var, count = bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked
        self.register_parameter("weight", _blocks.frozen(weight))
        self.register_parameter("bias", _blocks.frozen(bias))
        for name, value in (("running_mean", mean), ("running_var", var), ("num_batches_tracked", count)):
            self.register_buffer(name, value)
        self.weight_out = None if weight is None else nn.Parameter(weight.new_ones(new_features))
        self.bias_out = None if bias is None else nn.Parameter(bias.new_zeros(new_features))
        self.register_buffer("running_mean_out", None if mean is None else mean.new_zeros(new_features))
        self.register_buffer("running_var_out", None if var is None else var.new_ones(new_features))
        self.register_buffer("num_batches_tracked_out", None if count is None else torch.zeros_like(count))
        self.new = _NEW[self._plain](self)
        self.train(bn.training)

    @classmethod
    def from_bn(
        cls, bn: nn.BatchNorm1d | nn.BatchNorm2d, new_features: int, *, start: int | None = None
    ) -> PlantedBatchNorm2d:
        """The norm with `new_features` new channels; a PlantedBatchNorm1d for an `nn.BatchNorm1d`.

        The trunk is the norm's own memory, not a copy. eps, momentum (None: cumulative average), affine and
        track_running_stats are the norm's.

        Args:
            bn: the norm as trained so far.
            start: where the new channels lie; default: behind the old ones.

        Raises:
            TypeError: no nn.BatchNorm1d or nn.BatchNorm2d. ValueError: a count or a position.
        """
        kind = PlantedBatchNorm1d if isinstance(bn, nn.BatchNorm1d) else cls
        return kind(bn, new_features, start=start)

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` (1d: ``[N, C]`` or ``[N, C, L]``) to the same shape."""
        self.check_called(input)
        if input.dim() not in self._dims or input.shape[1] != self.num_features:
            dims = " or ".join(map(str, self._dims))
            raise ArgumentError(
                f"input: expected {dims} dimensions with {self.num_features} channels, got {tuple(input.shape)}"
            )
        if not self._estimates() or self.planted_features == 0:
            return self._all_at_once(input)
        end = self.start + self.planted_features
        parts = [self._old(input[:, : self.start], slice(None, self.start)), self.new(input[:, self.start : end])]
        parts.append(self._old(input[:, end:], slice(self.start, None)))
        return torch.cat([part for part in parts if part.shape[1]], 1)

    def _all_at_once(self, input: Tensor) -> Tensor:
        mean = _blocks.join(self.running_mean, self.running_mean_out, self.start)
        var = _blocks.join(self.running_var, self.running_var_out, self.start)
        weight = _blocks.join(self.weight, self.weight_out, self.start)
        bias = _blocks.join(self.bias, self.bias_out, self.start)
        return F.batch_norm(input, mean, var, weight, bias, mean is None, 0.0, self.eps)

    def _old(self, input: Tensor, part: slice) -> Tensor:
        if input.shape[1] == 0:
            return input
        mean, var, weight, bias = (
            None if t is None else t[part] for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, self.eps)

    def planted_part(self, input: Tensor) -> Tensor:
        """What `forward` gives for the new channels, from these alone: ``[N, P, ...]`` to the same shape."""
        if self._estimates():
            return self.new(input)
        mean, var = self.running_mean_out, self.running_var_out
        return F.batch_norm(input, mean, var, self.weight_out, self.bias_out, mean is None, 0.0, self.eps)

    def _estimates(self) -> bool:
        """Whether the new channels use the batch's statistics and move the running ones."""
        return self.training and self.new.training and self.track_running_stats

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As in `nn.Module`; a `SyncBatchNorm` in the place of `new` is given this module's tensors."""
        if name == "new" and isinstance(module, nn.SyncBatchNorm):
            module = _NewSync(self, module.process_group).train(module.training)
        super().add_module(name, module)

    def merge(self) -> nn.Module:
        """The plain norm with equal outputs in ``eval()``. The batch counter is the trunk's; `requires_grad` is as it
        was in the norm that `from_bn` saw. Parameters and statistics are copies."""
        norm = self._plain(self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats)
        with torch.no_grad():
            norm.register_parameter("weight", _blocks.plain_parameter(self._joined("weight"), self._trained[0]))
            norm.register_parameter("bias", _blocks.plain_parameter(self._joined("bias"), self._trained[1]))
            norm.running_mean = self._joined("running_mean")
            norm.running_var = self._joined("running_var")
            count = self.num_batches_tracked
            norm.num_batches_tracked = None if count is None else count.clone()
        return norm.train(self.training)

    def _joined(self, name: str) -> Tensor | None:
        return _blocks.join(getattr(self, name), getattr(self, f"{name}_out"), self.start)

    def extra_repr(self) -> str:
        """Channels as old + new, then the settings of nn.BatchNorm2d."""
        old = self.num_features - self.planted_features
        where = "" if self.start == old else f", start={self.start}"
        return (
            f"{old} + {self.planted_features}{where}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class PlantedBatchNorm1d(PlantedBatchNorm2d):
    """`PlantedBatchNorm2d` for inputs ``[N, C]`` and ``[N, C, L]``."""

    _plain = nn.BatchNorm1d
    _dims = (2, 3)
