"""Learning rates as functions of the step alone: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from plantops.errors import ArgumentError

SCHEDULES = ("constant", "step", "tenths", "cosine", "onecycle")

STEP_FACTOR = 0.2
WARM_SHARE, START_DIVISOR, END_DIVISOR = 0.3, 25.0, 1e4


def learning_rate(schedule: str, lr: float, step: int, total: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``total``.

    With ``t = step / total``:

    * ``constant``: ``lr``.
    * ``step``: ``lr * 0.2 ** floor(3 t)``, a drop after each third.
    * ``tenths``: ``lr``, a tenth of it from 2/5 on, a hundredth from 4/5 on (80 and 160 of 200 epochs).
    * ``cosine``: ``lr (1 + cos(pi t)) / 2``.
    * ``onecycle``: from ``lr / 25`` up to ``lr`` over the first 30 %, then down to ``lr / 25e4``, both as half cosines;
      the values of ``torch.optim.lr_scheduler.OneCycleLR`` (Smith, Topin, arXiv 1708.07120) with its defaults.

    Raises:
        ValueError: an unknown schedule, or a step outside 0 to total - 1.
    """
    if not 0 <= step < total:
        raise ArgumentError(f"step must lie in 0 to {total - 1}, got {step}")
    if schedule == "constant":
        return lr
    if schedule == "step":
        return lr * STEP_FACTOR ** (3 * step // total)
    if schedule == "tenths":
        return lr * 0.1 ** (5 * step // (2 * total))
    if schedule == "cosine":
        return lr * (1.0 + math.cos(math.pi * step / total)) / 2.0
    if schedule == "onecycle":
        return _onecycle(lr, step, total)
    raise ArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")


def _onecycle(lr: float, step: int, total: int) -> float:
    start = lr / START_DIVISOR
    peak = WARM_SHARE * total - 1.0
    if step <= peak:
        return _half_cosine(start, lr, step / peak if peak > 0 else 1.0)
    # With few steps the peak lies before step 0, and the way down begins at once.
    return _half_cosine(lr, start / END_DIVISOR, (step - peak) / (total - 1.0 - peak))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))
