"""The fused forward of the paper's networks: values, gradients, who uses it, and where the modules are left to run."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import plantops
from plantops._extension import STATUS
from plantops.models import PlantingNet
from plantops.train import loop, teachers
from plantops.train.data import ImageData
from plantops.train.fused import fused, is_fused
from plantops.train.loop import Trainer, evaluate
from plantops.train.recipe import Recipe
from plantops.train.teacher_logits import TeacherLogits

compiled = pytest.mark.skipif(not STATUS.loaded, reason="needs the compiled CPU kernels")


def network(**options: bool) -> PlantingNet:
    return PlantingNet((5, 7, 4, 9, 3), 10, image_size=16, generator=torch.Generator().manual_seed(0), **options)


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 3, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))


@compiled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_modules(layout: torch.memory_format) -> None:
    model = network().double().to(memory_format=layout)
    twin = copy.deepcopy(model)
    forward = fused(model)
    assert is_fused(forward)
    images = batch().contiguous(memory_format=layout)
    logits, expected = forward(images), twin(images)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.backward(cotangent)
    expected.backward(cotangent)
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-11, atol=1e-11, msg=name)


@compiled
def test_a_frozen_layer_gets_no_gradient() -> None:
    model = network()
    model.conv2.requires_grad_(False)
    fused(model)(batch(torch.float32)).sum().backward()
    assert model.conv2.weight.grad is None
    assert model.conv2.bias.grad is None
    assert model.conv1.weight.grad is not None
    assert model.conv3.weight.grad is not None


def _hooked() -> nn.Module:
    model = network()
    model.conv3.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def _changed(name: str, value: object) -> nn.Module:
    model = network()
    setattr(model, name, value)
    return model


def _planted() -> nn.Module:
    model = network()
    return plantops.plant(model, plantops.trace(model, (batch(torch.float32),))["conv2"], channels=2)


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (lambda: network(batch_norm=True), "float32"),
        (_hooked, "float32"),
        (_planted, "float32"),
        (lambda: _changed("conv3", nn.Conv2d(7, 4, 3, padding=2, dilation=2)), "float32"),
        (lambda: _changed("conv3", nn.Conv2d(7, 4, 3, padding=1, padding_mode="circular")), "float32"),
        (lambda: _changed("conv3", nn.Conv2d(7, 4, 3, padding=1, bias=False)), "float32"),
        (lambda: _changed("relu", nn.LeakyReLU(0.1)), "float32"),
        (lambda: _changed("pool", nn.AvgPool2d(2)), "float32"),
        (lambda: _changed("pool", nn.MaxPool2d(3, 2, 1)), "float32"),
        (lambda: _changed("forward", lambda input: input.flatten(1)[:, :10]), "float32"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "float32"),
        (network, "bf16"),
        (lambda: network().to(torch.bfloat16), "float32"),
        (lambda: network().to("meta"), "float32"),
    ],
    ids=[
        "batch norm",
        "hook",
        "planted",
        "dilation",
        "border",
        "no bias",
        "slope",
        "mean",
        "window",
        "forward",
        "other network",
        "autocast",
        "bfloat16",
        "no CPU",
    ],
)
def test_the_modules_run_where_the_fused_forward_cannot_stand_in(make: Callable[[], nn.Module], precision: str) -> None:
    model = make()
    assert fused(model, precision) is model


def test_the_modules_run_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plantops.train.fused.STATUS", plantops._extension.ExtensionStatus(False))
    model = network()
    assert fused(model) is model


def images() -> ImageData:
    own = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), generator=own, dtype=torch.uint8)
    return ImageData(pixels, torch.arange(40) % 10, torch.full((3,), 127.0), torch.full((3,), 70.0), 10)


@compiled
@pytest.mark.parametrize("channels_last", [False, True])
def test_training_scoring_and_teaching_are_those_of_the_modules(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images()

    def train() -> tuple[list[Tensor], float, float]:
        model, teacher = network(), network()
        with torch.no_grad():
            teacher.fc2.bias += 1 / torch.arange(1, 11)
        recipe = Recipe(epochs=2, objective="kl", batch_size=16, lr=0.05, channels_last=channels_last)
        trainer = Trainer(model, data, data, recipe, teacher=TeacherLogits(teacher, channels_last=channels_last))
        results = [trainer.run_epoch() for _ in range(2)]
        score = evaluate(model, data, channels_last=channels_last)
        return [p.detach() for p in model.parameters()], results[-1].train_loss, score.loss

    weights, train_loss, loss = train()
    for module in (loop, teachers):
        monkeypatch.setattr(module, "fused", lambda model, precision="float32": model)
    plain_weights, plain_train_loss, plain_loss = train()
    assert train_loss == pytest.approx(plain_train_loss, rel=1e-5)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    start = list(network().parameters())
    for fast, plain, first in zip(weights, plain_weights, start, strict=True):
        moved = (plain - first).norm()
        assert moved > 0
        assert (fast - plain).norm() < 1e-3 * moved
