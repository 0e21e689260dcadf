"""Initial weights keep the signal, whatever the network, and depend on the generator alone."""

import math

import pytest
import torch
from torch import nn

from plantops.models import PlantingNet, initialise


def network(batch_norm: bool = False) -> PlantingNet:
    return PlantingNet([32] * 5, 10, batch_norm=batch_norm)


def test_variances_are_those_that_keep_the_signal() -> None:
    model = initialise(network(), torch.Generator().manual_seed(0))
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            wanted = 1 / (3 * fan_in) if name == "fc2" else 2 / fan_in
            count = module.weight.numel()
            # The sample variance of a uniform distribution: relative standard error sqrt(0.8 / count).
            assert module.weight.var().item() == pytest.approx(wanted, rel=5 * math.sqrt(0.8 / count))
            assert not module.bias.any()


def test_the_signal_reaches_the_logits() -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = initialise(network(), torch.Generator().manual_seed(0))(images)
        torch.manual_seed(0)
        before = network()(images)
    assert 0.1 < logits.std(0).mean() < 3
    assert before.std(0).mean() < 0.02


def test_weights_are_a_function_of_the_generator_alone() -> None:
    one, other = network(True), network(True)
    with torch.no_grad():
        other.bn1.running_mean.fill_(3.0)
    state = torch.random.get_rng_state()
    made = [initialise(model, torch.Generator().manual_seed(5)).state_dict() for model in (one, other)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_layer_that_cannot_begin_anew_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    with pytest.raises(ValueError, match="Scale has parameters and no reset_parameters"):
        initialise(nn.Sequential(nn.Linear(2, 2), Scale()), torch.Generator())
