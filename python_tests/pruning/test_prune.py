"""Scores are what removal costs, and pruning meets its budgets."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plantops
from plantops.graph import Plan, trace
from plantops.models import count_macs, count_parameters
from plantops.pruning import latency_table, loss_increases, magnitudes, prune, remove_channels
from plantops.pruning.scores import mean_loss
from python_tests.planting.networks import seeded
from python_tests.planting.structures import STRUCTURES, network

X = torch.randn(7, 2, 8, 8, generator=seeded(3), dtype=torch.float64)
Y = torch.arange(7) % 3
NAMES = [name for name in STRUCTURES if STRUCTURES[name][3]]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_what_removal_costs(name: str):
    net = network(name).train()
    plan = trace(net, X)
    samples = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    scores = loss_increases(net, plan, samples, at_once=2)
    base = mean_loss(net, samples)
    assert base == pytest.approx(F.cross_entropy(network(name).eval()(X), Y).item(), rel=1e-12)
    for site in plan.values():
        count = site.blocks()
        assert (scores[site.name].shape, scores[site.name].dtype) == ((count,), torch.float64)
        if count < 2:
            continue
        costs = [
            mean_loss(remove_channels(net, plan, {site.name: site.block(number)}), samples) - base
            for number in range(count)
        ]
        assert scores[site.name].tolist() == pytest.approx(costs, rel=1e-8, abs=1e-12)
    assert net.training


def test_magnitudes_are_root_mean_squares_of_the_filters():
    net = network("residual")
    found = magnitudes(net, trace(net, X))
    filters = torch.cat([net.c0.weight.flatten(1), net.c2.weight.flatten(1)], 1)
    torch.testing.assert_close(found["c0"], filters.square().mean(1).sqrt())
    net = network("transposed")
    found = magnitudes(net, trace(net, X))
    torch.testing.assert_close(found["c"], net.c.weight.transpose(0, 1).flatten(1).square().mean(1).sqrt())
    net = network("grouped")
    torch.testing.assert_close(
        magnitudes(net, trace(net, X))["a"], net.a.weight.view(3, -1).square().mean(1).sqrt(), check_dtype=True
    )


class Wide(nn.Module):
    """A stem, two residual blocks and a head: wide enough to be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 16, 3, padding=1), nn.Linear(16, 3)
        self.a = nn.ModuleList([nn.Conv2d(16, 24, 3, padding=1, bias=False) for _ in range(2)])
        self.n = nn.ModuleList([nn.BatchNorm2d(24) for _ in range(2)])
        self.b = nn.ModuleList([nn.Conv2d(24, 16, 3, padding=1) for _ in range(2)])

    def forward(self, x):
        x = F.relu(self.stem(x))
        for a, n, b in zip(self.a, self.n, self.b, strict=True):
            x = F.relu(x + b(F.relu(n(a(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Wide().double()
    with torch.no_grad():
        net.head.weight.mul_(30)  # so that channels matter
    return net


def test_budget_of_parameters_takes_the_cheapest_first(wide):
    plan = trace(wide, X)
    before, limit = count_parameters(wide), count_parameters(wide) // 3
    result = prune(wide, plan, (X, Y), max_parameters=limit, share=0.2)
    assert count_parameters(wide) == before == result.parameters[0]
    assert count_parameters(result.model) == result.parameters[1] == result.steps[-1].parameters <= limit
    assert all(step.parameters > limit for step in result.steps[:-1])
    first = loss_increases(wide, plan, [(X, Y)])
    taken = [first[name][number] for name, numbers in result.steps[0].removed.items() for number in numbers]
    left = torch.cat(list(first.values())).sort().values
    assert sorted(taken) == left[: len(taken)].tolist()
    assert len(taken) == int(0.2 * sum(site.width for site in plan.values()))
    assert result.loss[1] == pytest.approx(mean_loss(result.model, [(X, Y)]), rel=1e-12)
    assert {name: site.width for name, site in trace(result.model, X).items()} == {
        name: widths[1] for name, widths in result.widths.items()
    }


def test_budgets_of_macs_and_of_loss(wide):
    plan = trace(wide, X)
    macs = count_macs(wide, X.shape[1:])
    result = prune(wide, plan, (X, Y), max_macs=int(0.6 * macs), criterion="loss_per_mac", share=0.3)
    assert result.macs == (macs, count_macs(result.model, X.shape[1:]))
    assert result.macs[1] <= 0.6 * macs
    own = (X, wide.eval()(X).argmax(1))  # its own answers: whatever goes makes it worse
    few = Plan([plan["stem"], plan["a.0"]])
    careful = prune(wide, few, own, max_loss_increase=0.02, share=0.5)
    assert careful.loss[1] - careful.loss[0] <= 0.02
    assert 0 < careful.parameters[1] < careful.parameters[0]
    assert all(step.loss - careful.loss[0] <= 0.02 for step in careful.steps)
    # The cheapest of all that could go next would be too much.
    current = trace(careful.model, X)
    scores = loss_increases(careful.model, Plan([current["stem"], current["a.0"]]), [own])
    assert max(current[name].width for name in scores) > 1
    cheapest = min(float(score.min()) for name, score in scores.items() if current[name].width > 1)
    assert cheapest > 0.02 - (careful.loss[1] - careful.loss[0])


def test_widths_in_multiples_and_a_least_width(wide):
    result = prune(wide, trace(wide, X), (X, Y), max_parameters=1500, multiple_of=8, min_channels=8, share=0.4)
    assert all(after % 8 == 0 and after >= 8 for _, after in result.widths.values())
    assert result.parameters[1] < 0.5 * result.parameters[0]
    odd = remove_channels(wide, trace(wide, X), {"a.0": [0, 1, 2], "stem": [5]})
    again = prune(odd, trace(odd, X), (X, Y), max_parameters=1, multiple_of=4, share=1.0)
    assert [after for _, after in again.widths.values()] == [4, 4, 4]
    pinned = prune(wide, Plan([trace(wide, X)["a.1"]]), (X, Y), max_parameters=1, criterion="magnitude", share=1.0)
    assert pinned.widths == {"a.1": (24, 1)}


def test_optimizer_goes_on(wide):
    optimizer = torch.optim.SGD(wide.parameters(), lr=1e-2, momentum=0.9)
    F.cross_entropy(wide(X), Y).backward()
    optimizer.step()
    result = prune(wide, trace(wide, X), (X, Y), max_parameters=4000, optimizer=optimizer, share=0.5)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in result.model.parameters()}
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in held)
    before = mean_loss(result.model, [(X, Y)])
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(result.model(X), Y).backward()
        optimizer.step()
    assert mean_loss(result.model, [(X, Y)]) < before


def test_latency_table(wide):
    small = prune(wide, trace(wide, X), (X, Y), max_parameters=3000, criterion="magnitude", share=1.0).model
    rows = latency_table({"before": wide, "after": small}, X, rounds=3)
    assert [row["network"] for row in rows] == ["before", "after"]
    assert [row["parameters"] for row in rows] == [count_parameters(wide), count_parameters(small)]
    assert rows[0]["macs"] == count_macs(wide, (2, 8, 8)) > rows[1]["macs"]
    assert rows[0]["speedup"] == 1.0
    assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows)
    assert rows[1]["speedup"] == pytest.approx(rows[0]["p50_ms"] / rows[1]["p50_ms"], rel=1e-2)
    with pytest.raises(ValueError, match="inputs must be on the CPU, got meta"):
        latency_table({"before": wide}, X.to("meta"))


def test_errors(wide):
    plan = trace(wide, X)
    for options, text in (
        ({}, "max_parameters, max_macs or max_loss_increase must be given"),
        ({"criterion": "size"}, "criterion must be one of loss, .*, got 'size'"),
        ({"share": 0.0}, "share must be above 0 to 1, got 0"),
        ({"share": math.nan}, "share must be finite and above 0 to 1, got nan"),
        ({"multiple_of": 0}, "multiple_of must be an integer of at least 1, got 0"),
    ):
        budget = {"max_parameters": 10} if options else {}
        with pytest.raises(ValueError, match=text):
            prune(wide, plan, (X, Y), **budget, **options)
    with pytest.raises(ValueError, match="samples must hold batches"):
        prune(wide, plan, [], max_parameters=10)
    other = prune(wide, plan, (X, Y), max_parameters=4000, share=1.0).model
    with pytest.raises(ValueError, match="plan is of another model"):
        plantops.prune(other, plan, (X, Y), max_parameters=10)
