"""Random networks, each grown, trained, merged and pruned at every site: what holds for all of them.

``-m exhaustive`` takes 200 of them. A failure is shrunk, and shown as the network that still fails.
"""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import plantops
from plantops.graph import trace as trace_graph
from plantops.planting import Planter, PlanterConfig
from plantops.planting.candidate import Proposal, plant_proposal, sweep_loop
from plantops.planting.search import wanted_growths
from plantops.planting.sweep.round import sweep_shared
from plantops.planting.trunk import planted_parameters
from plantops.planting.verify import verify
from plantops.pruning import loss_increases, remove_channels
from plantops.train.data import ImageData
from python_tests.planting.random_graphs import CLASSES, random_choices, random_network, shrunk

FEW, ALL = 10, 200
Y = torch.arange(5) % CLASSES


def problem(choices: list[int]) -> str | None:
    """What does not hold for the network of these choices; None where all does."""
    net, x = random_network(choices)
    try:
        return _problem(net, x)
    except Exception as error:  # whatever it is, it is one
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _problem(net: nn.Module, x: Tensor) -> str | None:
    plan = plantops.trace(net, x)
    offered = trace_graph(net, x)
    if plan != offered:
        return f"verification refuses {[plan.refusals[name] for name in offered if name not in plan]}"
    if not plan:
        return None
    dead = _dead(net, x)
    wrong = {name: reason for name, reason in verify(net, plan, x).items() if reason and name not in dead}
    if wrong:
        return f"verify: {wrong}"
    return _grown_and_pruned_back(net, plan, x) or _scores(net, plan, x) or _sweeps(net, x)


def _dead(net: nn.Module, x: Tensor) -> set[str]:
    """Layers whose weights get no gradient in plain torch: activations after them are 0 for every sample. In either
    mode: the norms of a planted model's trunk have running statistics."""
    layers: set[str] = set()
    for training in (True, False):
        twin = copy.deepcopy(net).train(training)
        outputs = twin(x)
        own = torch.Generator().manual_seed(3)
        (outputs * torch.randn(outputs.shape, generator=own, dtype=outputs.dtype)).sum().backward()
        still = (name for name, p in twin.named_parameters() if p.grad is None or not p.grad.any())
        layers.update(name.removesuffix(".weight") for name in still)
    return layers


def _grown_and_pruned_back(net: nn.Module, plan: plantops.Plan, x: Tensor) -> str | None:
    """All sites at once: the merged network without its new channels is the network."""
    channels = {name: site.multiple for name, site in plan.items()}
    planted = plantops.plant(net, plan.values(), channels)
    own = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in planted_parameters(planted):
            block.add_(torch.randn(block.shape, generator=own, dtype=block.dtype), alpha=0.3)
    merged = plantops.merge(planted).eval()
    with torch.no_grad():
        expected, found = planted.eval()(x), merged(x)
    if not torch.allclose(expected, found, rtol=1e-9, atol=1e-9 * float(expected.abs().max())):
        return f"merging changes the outputs by {float((expected - found).abs().max()):.3g}"
    again = trace_graph(merged, x)
    if set(again) != set(plan):
        return f"the merged network has the sites {list(again)}, not {list(plan)}"
    new = {}
    for name, site in plan.items():
        places, before = [], 0
        for start, count in site.planted_outputs(name, channels[name]):
            places += range(start + before, start + before + count)
            before += count
        new[name] = places
    back = remove_channels(merged, again, new)
    for (key, old), got in zip(net.state_dict().items(), back.state_dict().values(), strict=True):
        if not torch.equal(old, got):
            return f"{key} is another after growing and pruning back"
    return None


def _scores(net: nn.Module, plan: plantops.Plan, x: Tensor) -> str | None:
    """Along the graph they are those of calling the network."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        followed = loss_increases(net, plan, (x, Y), at_once=3)
    hooked = copy.deepcopy(net)
    hooked.register_forward_hook(lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        called = loss_increases(hooked, plan, (x, Y))
    for name in plan:
        if not torch.allclose(followed[name], called[name], rtol=1e-7, atol=1e-10):
            return f"scores of {name} are {followed[name].tolist()}, by calling {called[name].tolist()}"
    said = [str(warning.message) for warning in caught if "called once" in str(warning.message)]
    return f"not followed: {said[0]}" if said and "in place" not in said[0] else None


def _sweeps(net: nn.Module, x: Tensor) -> str | None:
    """One step of every candidate, in one pass and one after the other."""
    found = {}
    for name, sweep in (("shared", sweep_shared), ("loop", sweep_loop)):
        torch.manual_seed(0)
        data = ImageData(x.float(), Y, torch.zeros(x.shape[1]), torch.ones(x.shape[1]), CLASSES)
        config = PlanterConfig(
            channels=1, epochs=1, batch_size=5, lr=0.05, init="kaiming", schedule="constant", objective="ce"
        )
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setattr(ImageData, "normalise", lambda data, images: images.double())
            search = Planter(net, copy.deepcopy(net), data, data, config)
            growths = wanted_growths(1, search.initial.plan)
            proposals = [Proposal.of(growth) for growth in growths]
            starts = [plant_proposal(search.around, search.initial, 1, one).state_dict() for one in proposals]
            candidates = sweep(search.around, search.initial, 1, proposals)
        tensors = [search.around.session.tensors(candidate.key) for candidate in candidates]
        found[name] = [
            torch.cat([(own[key].double() - start[key].double()).flatten() for key in sorted(own)])
            for own, start in zip(tensors, starts, strict=True)
        ]
        found[f"{name} losses"] = [torch.tensor([c.val_loss, c.train_loss]) for c in candidates]
    for what in ("", " losses"):
        for growth, got, expected in zip(growths, found[f"shared{what}"], found[f"loop{what}"], strict=True):
            if not (got - expected).norm() <= 1e-6 * expected.norm() + 1e-9:
                return f"{growth.site}: one pass and the loop differ{what} by {float((got - expected).norm()):.3g}"
    return None


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.exhaustive if seed >= FEW else ()) for seed in range(ALL)]
)
def test_a_random_network(seed: int) -> None:
    choices = random_choices(seed)
    found = problem(choices)
    if found is not None:
        kind = found.split(":")[0][:30]
        least = shrunk(choices, lambda shorter: (problem(shorter) or "")[: len(kind)] == kind)
        pytest.fail(f"{problem(least)}\n{random_network(least)[0]}\nrandom_network({least})")


def test_shrinking_finds_the_shortest() -> None:
    def fails(numbers: list[int]) -> bool:
        return any(number % 7 == 3 for number in numbers) and 5 in [number % 11 for number in numbers]

    start = random_choices(1)
    assert fails(start)
    least = shrunk(start, fails)
    assert fails(least)
    assert len(least) <= 2
    assert max(least) <= 13
