"""Folding batch norm keeps the function, and leaves alone what it cannot fold."""

import doctest

import pytest
import torch
from torch import nn

import plantops
from plantops.models import PlantingNet, count_parameters
from plantops.planting import fold
from plantops.train.fused import fused, is_fused


def settled(model: nn.Module, *shape: int) -> nn.Module:
    """In float64, with statistics and affines that are not those of a new norm, in ``eval()``."""
    own = torch.Generator().manual_seed(3)
    model = model.double().train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 2.0, generator=own)
                module.bias.normal_(generator=own)
        for _ in range(3):
            model(torch.randn(*shape, dtype=torch.float64, generator=own) * 2 + 1)
    return model.eval()


class Shared(nn.Module):
    """The second layer's output is read by the norm and by the sum: it cannot be folded; the first can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.norm_a(self.a(x)).relu())
        return x + self.norm_b(x)


MODELS = {
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (5, 2, 6, 6)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), (5, 4, 6, 6)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, affine=False)), (5, 2, 6)),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (5, 6)),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (5, 2, 6, 6),
    ),
    "read twice": (Shared, (5, 2, 6, 6)),
}
LEFT = {"no statistics": 1, "read twice": 1}


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_stay_and_norms_go(kind: str) -> None:
    make, shape = MODELS[kind]
    model = settled(make(), *shape)
    folded = plantops.fold_batch_norm(model, torch.zeros(shape, dtype=torch.float64))
    images = torch.randn(*shape, dtype=torch.float64)
    assert (folded(images) - model(images)).abs().max() < 1e-12 * model(images).abs().max()
    norms = [module for module in folded.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == LEFT.get(kind, 0)
    assert folded is not model


def test_a_norm_with_a_hook_and_a_layer_called_twice_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.norm(self.a(x)))

    model = settled(Twice(), 5, 2, 6, 6)
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    assert torch.equal(plantops.fold_batch_norm(model, images)(images), model(images))
    hooked = settled(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)), 5, 2, 6, 6)
    hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    kept = plantops.fold_batch_norm(hooked, images)
    assert isinstance(kept[1], nn.BatchNorm2d)
    assert torch.equal(kept(images), hooked(images))


def test_a_grown_network_of_the_paper_folds_to_the_plain_one() -> None:
    own = torch.Generator().manual_seed(0)
    model = PlantingNet([3] * 5, 4, 1, image_size=8, fc_width=8, batch_norm=True, generator=own)
    images = torch.randn(6, 1, 8, 8, generator=own)
    plan = plantops.trace(model, images)
    grown = plantops.merge(plantops.plant(model, [plan["conv2"], plan["conv5"]], {"conv2": 2, "conv5": 1}, "kaiming"))
    grown = settled(grown, 6, 1, 8, 8)
    folded = plantops.fold_batch_norm(grown, images.double())
    plain = PlantingNet([3, 5, 3, 3, 4], 4, 1, image_size=8, fc_width=8).double()
    assert not folded.batch_norm
    assert count_parameters(folded) == count_parameters(plain)
    plain.load_state_dict(folded.state_dict())
    wanted = grown(images.double())
    assert (plain.eval()(images.double()) - wanted).abs().max() < 1e-12 * wanted.abs().max()
    assert is_fused(fused(folded)) == is_fused(fused(plain))


def test_a_planted_model_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    images = torch.zeros(2, 2, 8, 8)
    planted = plantops.plant(model, plantops.trace(model, images)["0"], 2)
    with pytest.raises(ValueError, match="plant"):
        plantops.fold_batch_norm(planted, images)


def test_the_example_runs() -> None:
    assert doctest.testmod(fold, extraglobs={"torch": torch, "nn": nn}).failed == 0
