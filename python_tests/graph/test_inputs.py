"""Models that take several, nested or keyword inputs and give any outputs: the same sites as with one tensor."""

import dataclasses
from collections import namedtuple

import pytest
import torch
from torch import nn

from plantops.graph import trace
from plantops.planting.check import check_function_preserving
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.verify import verify
from python_tests.planting.networks import seeded

X = torch.randn(3, 2, 6, 6, generator=seeded(1), dtype=torch.float64)
Y = torch.randn(3, 2, 6, 6, generator=seeded(2), dtype=torch.float64)
Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    rest: dict
    scale: float = 2.0


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    features: tuple


class Net(nn.Module):
    """Two convolutions, each with its reader; ``take`` finds their inputs, ``give`` makes the output."""

    def __init__(self, give=None):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 5, 3)
        self.c, self.d = nn.Conv2d(4, 3, 1), nn.Conv2d(5, 3, 1)
        self.give = give

    def both(self, x, y):
        p, q = self.c(self.a(x).relu()), self.d(self.b(y))
        return p + q if self.give is None else self.give(p, q)


class Plain(Net):
    def forward(self, x, y):
        return self.both(x, y)


class Keyword(Net):
    def forward(self, x, *, y=None, flag=False, mask=None):
        return self.both(x, y) if flag and mask is None else self.both(x, x)


class Dictionary(Net):
    def forward(self, batch):
        return self.both(batch["x"], batch["more"][0])


class Record(Net):
    def forward(self, batch, factor=1):
        return self.both(batch.image * batch.scale, batch.rest["y"] * factor)


class Named(Net):
    def forward(self, pair):
        left, right = pair
        return self.both(left, right) + self.both(pair.left, pair.right).mean() * 0


class Variadic(Net):
    def forward(self, *tensors, **named):
        return self.both(tensors[0], named["y"])


class Looking(Net):
    """Asks for sizes and counts its inputs, so torch.fx alone gives up."""

    def forward(self, batch, y=None):
        total = 0
        for value in batch.values():
            total = total + (value if len(value) > 2 and value.shape[1] == 2 else 2 * value)
        return self.both(total, y)


CALLS = {
    "several": (Plain, ((X, Y), None)),
    "list": (Plain, ([X, Y], None)),
    "keywords alone": (Plain, ({"y": Y, "x": X}, None)),
    "keywords beside": (Keyword, (X, {"y": Y, "flag": True})),
    "dictionary": (Dictionary, (({"x": X, "more": [Y, None]},), None)),
    "record": (Record, ((Batch(X, {"y": Y}), 3), None)),
    "named tuple": (Named, ((Pair(X, Y),), None)),
    "variadic": (Variadic, ((X,), {"y": Y})),
    "looking": (Looking, (({"p": X, "q": X},), {"y": Y})),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_inputs(name):
    kind, (inputs, keywords) = CALLS[name]
    net = kind().double()
    plan = trace(net, inputs, example_kwargs=keywords)
    used = {"a": ("c",), "b": ("d",)}
    assert {s.name: tuple(c.name for c in s.consumers) for s in plan.values()} == used, str(plan)
    # 3x3 over 2 channels with bias at 16 places, and a column of 3 weights there.
    times = 2 if name == "named tuple" else 1
    assert (plan["a"].parameters_per_channel, plan["a"].macs_per_channel) == (22, times * (18 * 16 + 3 * 16))
    assert verify(net, plan, inputs, example_kwargs=keywords) == dict.fromkeys(used)


GIVES = {
    "tuple": lambda p, q: (p, [q, None]),
    "dictionary": lambda p, q: {"logits": p, "features": (q,)},
    "record": lambda p, q: Output(p, (q, 3)),
    "named": lambda p, q: Pair(p, q),
}


@pytest.mark.parametrize("name", GIVES)
def test_any_outputs(name):
    net = Plain(GIVES[name]).double()
    plan = trace(net, (X, Y))
    assert list(plan) == ["a", "b"]
    assert plan.refusals == dict.fromkeys(["c", "d"], "its channels are the model's output")
    assert verify(net, plan, (X, Y)) == {"a": None, "b": None}
    planted = plant(net, plan, 2, "kaiming", generator=seeded())
    check_function_preserving(planted, merge(planted), X, keywords={"y": Y})
    with pytest.raises(AssertionError, match="outputs differ by"):
        check_function_preserving(net, planted, X, Y)


def test_wrong_inputs_are_named():
    net = Plain()
    with pytest.raises(ValueError, match=r"does not accept them \(missing a required argument: 'y'\)"):
        trace(net, X.float())
    with pytest.raises(ValueError, match=r"does not accept them \(got an unexpected keyword argument 'z'\)"):
        trace(net, X.float(), example_kwargs={"y": Y, "z": Y})
    with pytest.raises(ValueError, match="at least one sample"):
        trace(net, {"x": None})
