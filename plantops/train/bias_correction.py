"""Which averages of an optimizer are divided by ``1 - beta^step``, found by trying.

A block that was trained for a few steps joins a parameter that was trained for many, whose count goes on. An average
that is divided by ``1 - beta^step`` then has to come along with a factor. Which ones are, and by which beta, differs
between optimizers that give their averages the same names; so every choice is tried on a small parameter: after few
steps, put into the place of a parameter after many, it has to make the step that it would have made.

RAdam multiplies its step by a rectification that grows with the count, and does not divide by the second moment at all
before the sixth step. Both are made good in the second moment, which relaxes over as many steps as the
rectification grows.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from plantops.train.optimizer_state import Path, State, Twin, combine

_FEW, _MANY, _AVERAGES, _EXACT, _NEAR, _BETTER = 8, 40, 5, 1e-9, 0.2, 0.8
Settings = dict[str, Any]


def count(state: State, group: Settings) -> float | None:
    """The number of steps made, kept with the parameter or with its group."""
    for place, key in ((state, "step"), (group, "step"), (group, "k")):
        value = place.get(key)
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            return float(value)
    return None


class Corrections:
    """How an average of ``optimizer`` (one that wraps no other) is made to fit the count of another parameter."""

    def __init__(self, optimizer: Optimizer, group: int) -> None:
        self._optimizer, self._group = optimizer, group
        self._found: dict[tuple[int, torch.dtype], dict[Path, _Divisor]] = {}

    def adjusted(
        self,
        average: Tensor,
        path: Path,
        like: Tensor,
        block: tuple[State, Settings],
        old: tuple[State, Settings],
        trained: bool,
    ) -> Tensor:
        """The ``average`` at ``path`` of ``block``, made to be counted by the steps of ``old``; ``trained``: whether
        gradients went into it."""
        if not _divisors(*old) or count(*block) == count(*old):
            return average
        key = (like.dim(), like.dtype)
        if key not in self._found:
            self._found[key] = self._find(like)
        divisor = self._found[key].get(path)
        if divisor is None:
            return average
        if isinstance(divisor, _Power) and divisor.rectified and (not trained or divisor(*block) is None):
            state, group = old
            beta, steps = divisor.beta(group), count(state, group) or 0.0
            rectification = _rectification(beta, steps + 1)
            if rectification is None:
                return average
            return torch.full_like(average, rectification**2 * (1 - beta ** (steps + 1)) / beta)
        return average * _ratio(divisor, block, old)

    def _find(self, like: Tensor) -> dict[Path, _Divisor]:
        try:
            return self._try(like)
        except Exception:  # a step that needs more than a gradient: its averages stay as they are
            return {}

    def _try(self, like: Tensor) -> dict[Path, _Divisor]:
        start = torch.ones([2] * like.dim(), dtype=torch.float64, device=like.device)
        gradient = torch.linspace(0.5, 1.0, start.numel(), dtype=start.dtype, device=like.device).view_as(start)
        gradient.view(-1)[::2] *= -1
        few = _Run(self._optimizer, self._group, start, gradient, _FEW)
        many = _Run(self._optimizer, self._group, start, gradient, _MANY)
        state, group, at = few.snapshot()
        later, later_group, _ = many.snapshot()
        expected = few.next_step(at)
        along = _along(later, start)
        maxima = {path: ((str(path[0])[4:], *path[1:])) for path in along if str(path[0]).startswith("max_")}
        averages = [path for path in along if path not in maxima][:_AVERAGES]
        divisors = _divisors(later, later_group)
        best: dict[Path, _Divisor] = {}
        smallest = float("inf")
        choices = itertools.product(*(_offered(_at(state, path), divisors) for path in averages))
        for choice in sorted(choices, key=_complexity):
            chosen = {path: divisor for path, divisor in zip(averages, choice, strict=True) if divisor is not None}
            chosen.update({path: chosen[of] for path, of in maxima.items() if of in chosen})

            def put(path: Path, values: dict[str, Any], first: Any, chosen: dict[Path, _Divisor] = chosen) -> Any:
                if not isinstance(values["few"], Tensor) or values["few"].shape != start.shape:
                    return copy.deepcopy(values["many"])
                divisor = chosen.get(path)
                return values["few"] * (
                    1.0 if divisor is None else _ratio(divisor, (state, group), (later, later_group))
                )

            many.restore({key: combine((key,), {"many": later[key], "few": state.get(key)}, put) for key in later})
            error = float((many.next_step(at) - expected).norm() / expected.norm())
            if error < _EXACT:
                return chosen
            if error < smallest * _BETTER and all(divisor.usual for divisor in chosen.values()):
                smallest, best = error, chosen
        return best if smallest < _NEAR else {}


class _Run:
    """A small parameter under an optimizer after some steps along one gradient."""

    def __init__(self, optimizer: Optimizer, group: int, start: Tensor, gradient: Tensor, steps: int) -> None:
        self._start, self._gradient = start, gradient
        self._twin = Twin(optimizer, {group: [start]})
        for _ in range(steps):
            self._twin.step({id(start): gradient})
        self._kept = copy.deepcopy(self._scalars())

    def snapshot(self) -> tuple[State, Settings, Tensor]:
        parameter = self._twin.parameters[id(self._start)]
        return copy.deepcopy(self._state()), self._kept, parameter.detach().clone()

    def restore(self, state: State) -> None:
        self._twin.optimizer.state[self._twin.parameters[id(self._start)]] = state
        self._twin.optimizer.param_groups[0].update(copy.deepcopy(self._kept))

    def next_step(self, at: Tensor) -> Tensor:
        """What the next step adds to a parameter that lies ``at``."""
        parameter = self._twin.parameters[id(self._start)]
        parameter.data.copy_(at)
        self._twin.step({id(self._start): self._gradient})
        return parameter.detach() - at

    def _state(self) -> State:
        return self._twin.states()[0][id(self._start)]

    def _scalars(self) -> Settings:
        return {key: value for key, value in self._twin.optimizer.param_groups[0].items() if key != "params"}


def _at(state: State, path: Path) -> Tensor:
    value: Any = state
    for key in path:
        value = value[key]
    assert isinstance(value, Tensor)
    return value


def _offered(average: Tensor, divisors: list[_Divisor]) -> list[_Divisor | None]:
    """What may divide an average: by itself any power of any beta, and rectified it if it is one of squares. Where no
    choice is exact, as the first beta belongs to averages of gradients and the last to those of squares."""
    square = bool((average >= 0).all())
    last = max((divisor.at for divisor in divisors if isinstance(divisor, _Power)), default=0)
    product = any(isinstance(divisor, _Product) for divisor in divisors)
    offered: list[_Divisor | None] = [None]
    for divisor in divisors:
        if isinstance(divisor, _Product):
            offered.append(divisor)
        elif square or not divisor.rectified:
            offered.append(replace(divisor, usual=divisor.at == last if square else divisor.at == 0 and not product))
    return offered


def _along(state: State, like: Tensor) -> list[Path]:
    """Where averages lie in a state."""
    found: list[Path] = []

    def look(path: Path, values: dict[str, Any], first: Any) -> None:
        if isinstance(first, Tensor) and first.shape == like.shape and first.is_floating_point():
            found.append(path)

    for key, value in state.items():
        combine((key,), {"": value}, look)
    return found


def _rectification(beta: float, steps: float) -> float | None:
    """RAdam's factor after so many steps; None where it does not divide by the second moment yet."""
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * steps * beta**steps / (1 - beta**steps) if steps else 0.0
    if length <= 5:
        return None
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))


@dataclass(frozen=True)
class _Power:
    """``1 - beta^step``, times the square of the rectification where there is one."""

    key: str
    at: int
    rectified: bool
    usual: bool = True

    def beta(self, group: Settings) -> float:
        value = group[self.key]
        return float(value[self.at] if isinstance(value, (tuple, list)) else value)

    def __call__(self, state: State, group: Settings) -> float | None:
        steps = count(state, group)
        if steps is None or self.key not in group:
            return None
        beta = self.beta(group)
        if not self.rectified:
            return 1 - beta**steps
        rectification = _rectification(beta, steps)
        return None if rectification is None else (1 - beta**steps) * rectification**2


@dataclass(frozen=True)
class _Product:
    """NAdam's ``1 - mu_1 mu_2 ...``"""

    rectified, usual = False, True

    def __call__(self, state: State, group: Settings) -> float | None:
        return 1 - float(state["mu_product"]) if "mu_product" in state else None


_Divisor = _Power | _Product


def _ratio(divisor: _Divisor, block: tuple[State, Settings], old: tuple[State, Settings]) -> float:
    of_block, of_old = divisor(*block), divisor(*old)
    return of_old / of_block if of_block and of_old else 1.0


def _complexity(choice: tuple[_Divisor | None, ...]) -> int:
    return sum(1 + 10 * divisor.rectified for divisor in choice if divisor is not None)


def _divisors(state: State, group: Settings) -> list[_Divisor]:
    """By what averages may be divided."""
    if count(state, group) is None:
        return []
    names = [(key, at) for key, value in group.items() if key.startswith("beta") for at in range(_length(value))]
    found: list[_Divisor] = [_Power(key, at, rectified) for rectified in (False, True) for key, at in names]
    return [*found, _Product()] if "mu_product" in state else found


def _length(value: Any) -> int:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return len(values) if all(isinstance(one, (float, Tensor)) for one in values) else 0
