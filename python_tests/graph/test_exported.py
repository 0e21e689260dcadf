"""Forwards that torch.fx cannot follow, and torch.export can: the same sites as if they were written plainly."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plantops
from plantops.graph import capture, trace
from plantops.planting.check import check_function_preserving
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash
from plantops.planting.verify import verify
from python_tests.planting.networks import seeded
from python_tests.planting.structures import network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)


class Base(nn.Module):
    """A stem, a block that runs twice with a norm and dropout, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.block = nn.ModuleDict({"a": nn.Conv2d(4, 6, 1), "n": nn.BatchNorm2d(6), "b": nn.Conv2d(6, 4, 1)})
        self.drop, self.act = nn.Dropout(0.3), nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def body(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = x + self.block.b(self.act(self.block.n(self.block.a(x))))
        return self.drop(x)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Checking(Base):
    """Asks whether its input is a tensor."""

    def forward(self, x, *rest, scale=1.0):
        if not isinstance(x, torch.Tensor) or any(not torch.is_tensor(other) for other in rest):
            raise TypeError("tensors are needed")
        y = self.fc(torch.flatten(F.adaptive_avg_pool2d(self.body(x), 1), 1)) * scale
        return {"logits": y, "rest": [other.sum() for other in rest]}


class Writing(Base):
    """Writes into parts of what its layers make."""

    def forward(self, x):
        y = self.body(x)
        z = torch.zeros_like(y)
        z[:, :, 1::2] = y[:, :, :4]
        z[:, :, 0].add_(1.0)
        return self.fc(F.max_pool2d(z, 2).clamp_(min=-1).mean((2, 3)))


class Splitting(Base):
    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        p, q = self.body(x).chunk(2, 1)
        p, q = F.silu(p), q[..., None].squeeze(-1)
        return self.fc(torch.cat((q, p), dim=1).permute(0, 2, 3, 1).mean(dim=[1, 2]))


class Branching(Base):
    """Decides by values: no graph holds for all inputs."""

    def forward(self, x):
        y = self.body(x)
        return self.fc((y if y.sum() > 0 else -y).mean((2, 3)))


class Selecting(Base):
    """Takes the samples with some value: how many there are shows only when it runs."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        y = self.body(x)
        return self.fc(y[y.sum((1, 2, 3)) > 0].mean((2, 3)))


class Counting(Base):
    """Makes tensors of as many channels as a layer has now."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        y = self.stem(x)
        z = torch.zeros(y.shape, dtype=y.dtype)
        z[:, :, 0] = y[:, :, 1]
        return self.fc((self.block.b(self.block.a(y + z))).view(-1, 4, 64).mean(-1))


class Reading(Base):
    """Uses a layer's weight beside the layer."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        return (
            self.fc(F.conv2d(self.stem(x), self.block.a.weight[:4]).mean((2, 3)))
            + self.block.b(self.block.a(self.stem(x))).mean((2, 3))[:, :3]
        )


class Drawing(Base):
    """Other steps in train()."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        y = F.dropout(self.body(x), 0.2, self.training)
        return self.fc(y.mean((2, 3)))


BOTH = {"stem": ("stem", "block.b"), "block.a": ("block.a",)}


def made(kind):
    generator = torch.Generator().manual_seed(1)
    net = kind().double()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.8 - 0.2).abs_()
    return net


def only_exported(net, x=X):
    """That torch.fx does not get through, with or without sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "trace_exported", lambda *_: (_ for _ in ()).throw(RuntimeError("not now")))
        return all("nor can torch.export" in reason for reason in trace(net, x).refusals.values())


@pytest.mark.parametrize("kind", [Checking, Writing, Splitting, Drawing])
def test_sites_and_promises(kind):
    net = made(kind).train()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    inputs = (X, X + 1) if kind is Checking else X
    assert only_exported(net, inputs)
    plan = plantops.trace(net, inputs)
    assert {site.name: site.producers for site in plan.values()} == BOTH, str(plan)
    assert plan["block.a"].norms == ("block.n",)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    # As if torch.fx had followed the same layers.
    plain = trace(made(Base), X)
    for name in BOTH:
        assert plan[name].parameters_per_channel == plain[name].parameters_per_channel
        assert plan[name].macs_per_channel == plain[name].macs_per_channel
    assert verify(net, plan, inputs) == dict.fromkeys(BOTH)


@pytest.mark.parametrize("kind", [Checking, Writing, Splitting, Drawing])
@pytest.mark.parametrize("name", BOTH)
def test_grown_in_the_users_own_class(kind, name):
    net = made(kind).train()
    site = trace(net, X)[name]
    planted = plant(net, site, 2 * site.multiple, "kaiming", generator=seeded())
    assert isinstance(planted, kind)
    before = trunk_hash(planted)
    optimizer = torch.optim.AdamW(planted_parameters(planted), 1e-2, weight_decay=0.1)
    for _ in range(2):
        output = planted(X)
        (output["logits"] if kind is Checking else output).square().mean().backward()
        optimizer.step()
    assert trunk_hash(planted) == before == trunk_hash(net)
    merged = merge(planted)
    check_function_preserving(planted, merged, X, tolerance=1e-12)
    assert [type(module) for module in merged.modules()] == [type(module) for module in net.modules()]
    assert trace(merged, X)[name].width == site.width + 2 * site.multiple


@pytest.mark.parametrize(
    "name", ["residual", "dense", "depthwise", "linear gate", "perceptron block", "gated in groups", "pixel shuffle"]
)
def test_structures_are_the_same(name, monkeypatch):
    """With torch.fx switched off; sizes that a forward reads are literal then, and refused."""

    def unfollowed(*_):
        raise capture._Unfollowed("torch.fx is switched off")

    net = network(name)
    expected = trace(net, X)
    monkeypatch.setattr(capture, "_trace", unfollowed)
    monkeypatch.setattr(capture, "trace_sizes", unfollowed)
    plan = trace(net, X)
    if name == "linear gate":
        assert list(plan) == ["down"]
        assert "literal sizes (4, 4, 1, 1)" in plan.refusals["up"]
        return
    for site, other in zip(plan.values(), expected.values(), strict=True):
        assert site.producers == other.producers
        assert site.readers() == other.readers()
        assert (site.multiple, site.outputs, site.slope_at_zero) == (other.multiple, other.outputs, other.slope_at_zero)


def test_values_decide():
    found = trace(made(Branching), X)
    assert len(found) == 0
    for reason in found.refusals.values():
        assert reason.startswith("torch.fx cannot follow the model's forward (")
        assert "), nor can torch.export (" in reason


def test_shapes_that_depend_on_values():
    found = trace(made(Selecting), X)
    assert len(found) == 0
    assert all("depends on values" in reason for reason in found.refusals.values())


def test_sizes_are_literal():
    plan = trace(made(Counting), X)
    assert list(plan) == ["block.a"]
    assert plan.refusals["stem"] == "it is joined in copy_ with the output of getitem_1, which cannot grow"
    assert "literal sizes (-1, 4, 64)" in plan.refusals["block.b"]


def test_weights_that_are_read():
    plan = trace(made(Reading), X)
    assert "a parameter of block.a is read directly in the forward" in plan.refusals["block.a"]
    assert "stem" not in plan
