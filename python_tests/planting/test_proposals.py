"""What a round tries: single sites, pairs, all in proportion, and what fits a budget."""

import pytest
import torch
from torch import nn

import plantops
from plantops.models import PlantingNet, count_macs, count_parameters
from plantops.planting.candidate import Growth, Proposal, Student
from plantops.planting.proposals import propose

WIDTHS = (8, 4, 4, 2, 2)


def student(widths: tuple[int, ...] = WIDTHS) -> Student:
    own = torch.Generator().manual_seed(0)
    model = PlantingNet(widths, 3, in_channels=1, image_size=8, fc_width=8, generator=own)
    plan = plantops.trace(model, torch.zeros(2, 1, 8, 8))
    return Student(model, plan, count_parameters(model), count_macs(model, (1, 8, 8)), (1, 8, 8))


def growths(channels: int = 4) -> list[Growth]:
    return [Growth(f"conv{layer}", channels) for layer in range(1, 6)]


def test_pairs_are_neighbours_and_all_keeps_the_proportions() -> None:
    found = {one.name: one.channels for one in propose(student(), growths(), ("pairs", "all"), None)}
    assert list(found)[:5] == [f"conv{layer}" for layer in range(1, 6)]
    assert found["conv2+conv3"] == {"conv2": 4, "conv3": 4}
    assert [name for name in found if "+" in name] == [f"conv{n}+conv{n + 1}" for n in range(1, 5)]
    assert found["all"] == {"conv1": 8, "conv2": 4, "conv3": 4, "conv4": 2, "conv5": 2}
    assert [one.name for one in propose(student(), growths(), (), None)] == [f"conv{n}" for n in range(1, 6)]


@pytest.mark.parametrize("channels", [{"conv1": 3}, {"conv1": 3, "conv2": 5}, dict.fromkeys(WIDTHS, 0)])
def test_size_after_is_that_of_the_grown_network(channels: dict[str, int]) -> None:
    """Also where new filters of one site read the new channels of another."""
    begin = student()
    channels = channels if "conv1" in channels else {f"conv{n}": n for n in range(1, 6)}
    proposal = Proposal("any", tuple(Growth(site, count) for site, count in channels.items()))
    grown = PlantingNet(
        [width + channels.get(f"conv{n}", 0) for n, width in enumerate(WIDTHS, 1)], 3, 1, image_size=8, fc_width=8
    )
    assert begin.size_after(proposal) == (count_parameters(grown), count_macs(grown, (1, 8, 8)))


@pytest.mark.parametrize("spare", [0, 100, 200, 300, 500, 2000])
def test_a_compound_shrinks_to_the_budget_and_is_left_out_below_a_half(spare: int) -> None:
    begin = student()
    limit = begin.parameters + spare
    for proposal in propose(begin, growths(8), ("pairs", "all"), limit):
        assert begin.size_after(proposal)[0] <= limit
        asked = 40 if proposal.name == "all" else 8 * len(proposal.growths)
        assert asked / 2 - 1 <= sum(proposal.channels.values()) <= asked
    names = {one.name for one in propose(begin, growths(8), ("pairs", "all"), limit)}
    assert ("all" in names) == (spare >= 2000)


def test_branches_that_do_not_read_each_other_are_no_pair() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
            self.c, self.d = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc((self.c(self.a(x).relu()) + self.d(self.b(x).relu())).mean((2, 3)))

    model = Fork()
    plan = plantops.trace(model, torch.zeros(2, 1, 8, 8))
    begin = Student(model, plan, count_parameters(model), 0, (1, 8, 8))
    found = propose(begin, [Growth(name, 2) for name in plan], ("pairs",), None)
    assert {one.name for one in found} == {*plan, "a+c", "c+b"}
