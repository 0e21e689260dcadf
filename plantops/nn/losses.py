"""The losses of planting as modules."""

from __future__ import annotations

from torch import Tensor, nn

from plantops import functional


class KLDivLogitsLoss(nn.Module):
    """``sum_c p_T (log p_T - log p_S)`` from logits at a temperature; see `plantops.functional.kl_div_logits`.

    ``loss(student, teacher, mask=None)``: logits ``[*, C]`` and which rows count ``[*]``, a float32 loss (float64 for a
    float64 student).
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "batchmean", impl: str = "auto") -> None:
        super().__init__()
        self.temperature, self.reduction, self.impl = temperature, reduction, impl

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[*, C]`` against the teacher's, over the rows where ``mask [*]`` is True."""
        return functional.kl_div_logits(student, teacher, self.temperature, self.reduction, mask=mask, impl=self.impl)

    def extra_repr(self) -> str:
        """The settings."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}, impl={self.impl!r}"


class DistillationLoss(nn.Module):
    """``alpha T^2 KL + (1 - alpha) CE`` from logits; see `plantops.functional.distillation_loss`.

    ``loss(student, teacher, target)``: logits ``[*, C]`` and class indices ``[*]``.
    """

    def __init__(
        self,
        alpha: float,
        temperature: float,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        impl: str = "auto",
        *,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha, self.temperature, self.label_smoothing = alpha, temperature, label_smoothing
        self.reduction, self.impl, self.ignore_index = reduction, impl, ignore_index

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[*, C]`` against the teacher's and the class indices ``[*]``."""
        return functional.distillation_loss(
            student, teacher, target, alpha=self.alpha, temperature=self.temperature,
            label_smoothing=self.label_smoothing, ignore_index=self.ignore_index, reduction=self.reduction,
            impl=self.impl,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"alpha={self.alpha}, temperature={self.temperature}, label_smoothing={self.label_smoothing}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, impl={self.impl!r}"
        )
