"""What an optimizer keeps: the optimizers inside of it, its state as trees of tensors, and what it makes for a
parameter that is new to it.

Nothing here knows an optimizer by name. How it starts is found by a trial: a twin of the optimizer, without its
parameters and state, is given copies of parameters and makes a step without gradient and without weight decay. What the
step leaves is what this optimizer begins with: zeros, an initial value, or a copy of the weights.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plantops.errors import ArgumentError

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "nothing"})()
"""The place of a value that is not there."""
TRIAL_STEPS = 12
"""How many steps a trial makes until every entry has appeared: weights are copied every five or six steps."""
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
Path = tuple[Any, ...]
State = dict[str, Any]


def levels(optimizer: Optimizer) -> list[Optimizer]:
    """``optimizer`` and those that it wraps, outside first; one whose state is that of an inner one is left out."""
    found: list[Optimizer] = []

    def look(one: Any) -> None:
        if isinstance(one, Optimizer) and not any(one is other for other in found):
            found.append(one)
            for value in vars(one).values():
                look(value)
        elif isinstance(one, (list, tuple)):
            for value in one:
                look(value)

    look(optimizer)
    return [one for at, one in enumerate(found) if not any(one.state is inner.state for inner in found[at + 1 :])]


def kind(optimizer: Optimizer) -> str:
    """The name of its class, with those that it wraps: ``Lookahead(AdamW)``."""
    names = [type(one).__name__ for one in levels(optimizer)]
    return "(".join(names) + ")" * (len(names) - 1)


def groups_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer and of those that it wraps, each once."""
    found: dict[int, dict[str, Any]] = {}
    for one in (optimizer, *levels(optimizer)):
        found.update({id(group): group for group in one.param_groups})
    return list(found.values())


def check_understood(argument: str, optimizer: Optimizer, held: Collection[int]) -> None:
    """ArgumentError if ``optimizer`` keeps parameters (``held``, by identity) or tensors where nothing will follow
    them: in attributes, in its groups, or in its state under another name than a parameter."""
    for one in levels(optimizer):
        places: list[tuple[str, Any]] = [(key, value) for key, value in vars(one).items() if key not in _FOLLOWED]
        for number, group in enumerate(one.param_groups):
            for key, value in group.items():
                if key not in ("params", "param_names"):
                    places.append((f"param_groups[{number}][{key!r}]", value))
        places += [(f"state[{key!r}]", value) for key, value in one.state.items() if not isinstance(key, Tensor)]
        for name, value in places:
            what = _hidden(value, held)
            if what is not None:
                raise ArgumentError(
                    f"{argument}: {type(one).__name__} keeps {what} in {name}, which cannot be carried; make a new "
                    "optimizer"
                )


_FOLLOWED = ("param_groups", "state", "defaults")


def _hidden(value: Any, held: Collection[int], depth: int = 0) -> str | None:
    if isinstance(value, Optimizer) or depth > 8:
        return None
    if isinstance(value, Tensor):
        if id(value) in held:
            return "parameters"
        return f"a tensor of {list(value.shape)}" if value.numel() > 1 else None
    if isinstance(value, nn.Module):
        return "a module" if any(id(parameter) in held for parameter in value.parameters()) else None
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        inner = list(value)
    else:
        return None
    return next((what for one in inner if (what := _hidden(one, held, depth + 1)) is not None), None)


def combine(path: Path, values: dict[str, Any], leaf: Callable[[Path, dict[str, Any], Any], Any]) -> Any:
    """Walk trees of dictionaries and sequences together. ``values``: by source, ``ABSENT`` where one has none.
    ``leaf(path, values, first)`` gives what stands in the result; ``first`` is the first value that is there."""
    present = [value for value in values.values() if value is not ABSENT and value is not None]
    first = present[0] if present else None
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in present if isinstance(value, dict) for key in value)
        inner = {
            key: combine(
                (*path, key),
                {
                    source: value.get(key, ABSENT) if isinstance(value, dict) else ABSENT
                    for source, value in values.items()
                },
                leaf,
            )
            for key in keys
        }
        made = copy.copy(first)
        made.clear()
        made.update(inner)
        return made
    if isinstance(first, (list, tuple, deque)) and not isinstance(first, torch.Size):
        items = [
            combine((*path, at), {source: _item(value, at) for source, value in values.items()}, leaf)
            for at in range(max(len(value) for value in present if isinstance(value, (list, tuple, deque))))
        ]
        if isinstance(first, deque):
            return deque(items, first.maxlen)
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return leaf(path, values, first)


def _item(value: Any, at: int) -> Any:
    return value[at] if isinstance(value, (list, tuple, deque)) and at < len(value) else ABSENT


def spell(path: Path) -> str:
    """``'momentum'[0.9]``"""
    return repr(path[0]) + "".join(f"[{key!r}]" for key in path[1:])


def is_plain(value: Any) -> bool:
    """A number, a word or the like: nothing that has a size."""
    return isinstance(value, _PLAIN)


class Trial:
    """The state that ``optimizer`` makes for parameters it has not seen.

    ``steps``: how many it took; ``moved``: how far the first moved parameters that have no gradient, over their norm;
    ``error``: why there is none.

    Args:
        optimizer: looked at, not changed.
        parameters: by number of its group (of the outermost optimizer), tensors to start from.
        wanted: for each of ``levels(optimizer)`` the paths that should appear, if need be after some more steps.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Mapping[int, Sequence[Tensor]], wanted: Sequence[Collection[str]]
    ) -> None:
        self.error: Exception | None = None
        self.steps, self.moved = 0, 0.0
        self.states: list[dict[int, State]] = [{} for _ in levels(optimizer)]
        for seeded, gradient in ((False, "zeros"), (True, "zeros"), (False, "closure"), (False, "graph")):
            try:
                twin = Twin(optimizer, parameters, seeded)
                for self.steps in range(1, TRIAL_STEPS + 1):
                    twin.step(gradient)
                    if self.steps == 1:
                        self.moved = twin.moved()
                    self.states = twin.states()
                    if all(self._has(level, keys) for level, keys in enumerate(wanted)):
                        break
                self.error = None
                return
            except Exception as error:  # whatever somebody's step raises
                self.error = self.error or error

    def _has(self, level: int, keys: Collection[str]) -> bool:
        return all(key in state for state in self.states[level].values() for key in keys)


class Twin:
    """An optimizer of the same kind and settings over copies of other tensors."""

    def __init__(self, optimizer: Optimizer, parameters: Mapping[int, Sequence[Tensor]], seeded: bool = False) -> None:
        self._levels, memo = _empty_copies(optimizer)
        self.optimizer: Optimizer = memo[id(optimizer)]
        self.parameters: dict[int, nn.Parameter] = {}
        self._start: list[tuple[nn.Parameter, Tensor]] = []
        for number, group in enumerate(optimizer.param_groups):
            if number not in parameters:
                continue
            own = [nn.Parameter(tensor.detach().clone()) for tensor in parameters[number]]
            self._start.extend((one, tensor) for one, tensor in zip(own, parameters[number], strict=True))
            self.parameters.update({id(tensor): one for tensor, one in zip(parameters[number], own, strict=True)})
            settings = _settings(optimizer, group, memo)
            self.optimizer.add_param_group({**settings, "params": own})
            if seeded:  # some make their state when they are constructed
                inner = self._levels[-1]
                known = {key: value for key, value in settings.items() if key in inner.defaults}
                inner.state.update(type(inner)([{**settings, "params": own}], **known).state)

    def step(self, gradient: str | Mapping[int, Tensor] = "zeros") -> None:
        """One step; ``gradient``: no gradient (``zeros``, set before the step or by a ``closure``, or with a ``graph``
        for second derivatives), or one for each tensor by its identity."""
        own = self.parameters

        def zeros() -> Tensor:
            for one in own.values():
                one.grad = torch.zeros_like(one)
            return torch.zeros(())

        with _undisturbed(list(own.values())):
            if not isinstance(gradient, str):
                for key, one in own.items():
                    one.grad = gradient[key].clone()
                self.optimizer.step()
            elif gradient == "closure":
                zeros()
                self.optimizer.step(zeros)  # type: ignore[arg-type]
            elif gradient == "graph":
                with torch.enable_grad():
                    for one in own.values():
                        (one.grad,) = torch.autograd.grad((one * one * 0).sum(), [one], create_graph=True)
                self.optimizer.step()
            else:
                zeros()
                self.optimizer.step()

    def moved(self) -> float:
        """The largest change of a parameter, over its norm."""
        changes = [
            float((one.detach() - start.detach()).norm() / start.detach().norm())
            for one, start in self._start
            if start.any()
        ]
        return max(changes, default=0.0)

    def states(self) -> list[dict[int, State]]:
        """For each level the state of each parameter, by the identity of the tensor that it was copied from."""
        return [{key: level.state.get(one, {}) for key, one in self.parameters.items()} for level in self._levels]


def _empty_copies(optimizer: Optimizer) -> tuple[list[Optimizer], dict[int, Any]]:
    """The levels of ``optimizer`` with all attributes but parameters, state and hooks; the memo of the deep copy."""
    originals: list[Optimizer] = []
    _collect(optimizer, originals)
    memo: dict[int, Any] = {}
    for one in originals:
        memo[id(one)] = object.__new__(type(one))
        memo[id(one.param_groups)] = []
        memo[id(one.state)] = defaultdict(dict)
    for one in originals:
        twin = vars(memo[id(one)])
        for key, value in vars(one).items():
            if callable(value) and hasattr(type(one), key):
                continue  # a scheduler's wrapper of step, bound to the original
            twin[key] = OrderedDict() if key.endswith("_hooks") else copy.deepcopy(value, memo)
    return [memo[id(one)] for one in levels(optimizer)], memo


def _collect(one: Any, found: list[Optimizer]) -> None:
    if isinstance(one, Optimizer) and not any(one is other for other in found):
        found.append(one)
        for value in vars(one).values():
            _collect(value, found)
    elif isinstance(one, (list, tuple)):
        for value in one:
            _collect(value, found)


def _settings(optimizer: Optimizer, group: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """The settings of a group before its first step: what counts and sums began with, without weight decay, in training
    mode."""
    defaults, settings = optimizer.defaults, {}
    for key, value in group.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        counts = number and key not in defaults and ("lr" in defaults or key == "step")
        if key in ("params", "param_names") or counts:
            continue
        kept = not number or key == "lr" or key.startswith("beta") or key not in defaults
        settings[key] = copy.deepcopy(value if kept else defaults[key], memo)
        if number and ("weight_decay" in key or key == "wd"):
            settings[key] = 0.0
        if key == "train_mode":
            settings[key] = True
    return settings


@contextlib.contextmanager
def _undisturbed(parameters: Sequence[Tensor]) -> Iterator[None]:
    """No generator moves, nothing is printed as a warning."""
    devices = {one.device for one in parameters if one.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
