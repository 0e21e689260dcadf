"""Channels planted inside a block that is recomputed in the backward, after a trunk that needs no gradient."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import plantops
from plantops import PlantopsError
from plantops.planting import planted_parameters
from python_tests.planting.networks import seeded

X = torch.randn(4, 3, 8, 8, generator=seeded(3), dtype=torch.float64)


class Net(nn.Module):
    """The middle is recomputed, ``reentrant`` or not; None: it is called."""

    reentrant: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
        self.out, self.calls = nn.Linear(6, 5), 0

    def forward(self, x, scale=None):
        x = F.relu(self.a(x))
        if self.reentrant is None:
            x = x + self.block(x)
        else:
            x = x + checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.out(x.mean((2, 3)))


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().double()


def gradients(planted: nn.Module, reentrant: bool | None) -> list[torch.Tensor]:
    planted.reentrant = reentrant
    planted.zero_grad()
    planted(X).square().sum().backward()
    return [parameter.grad.clone() for parameter in planted_parameters(planted)]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("site", ["block.0", "a"])
def test_gradients_are_those_without_it(site: str) -> None:
    model = made()
    plan = plantops.trace(model, X)
    planted = plantops.plant(model, plan[site], 4, "kaiming")
    for same in (planted, copy.deepcopy(planted), pickle.loads(pickle.dumps(planted))):
        expected = gradients(same, None)
        assert all(gradient.norm() > 0 for gradient in expected)
        for reentrant in (True, True, False):
            torch.testing.assert_close(gradients(same, reentrant), expected)
        same.reentrant = True
        with torch.no_grad():
            assert not same(X).requires_grad
        merged = plantops.merge(same)
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in merged.modules())
        assert all(not m._forward_pre_hooks_with_kwargs for m in merged.modules())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_a_model_of_token_ids_is_told_what_to_do() -> None:
    class Ids(Net):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 3 * 64)

        def forward(self, x):
            return super().forward(self.table(x).reshape(-1, 3, 8, 8))

    model, ids = Ids().double(), torch.arange(4)
    planted = plantops.plant(model, plantops.trace(model, ids)["block.0"], 4)
    planted.reentrant = True
    for _ in range(2):
        with pytest.raises(PlantopsError, match=r"whose inputs need no gradient.* use use_reentrant=False"):
            planted(ids)
    planted.reentrant = False
    planted(ids).sum().backward()
    assert all(parameter.grad is not None for parameter in planted_parameters(planted))
