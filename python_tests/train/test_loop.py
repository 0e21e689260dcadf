"""Schedules, recipes, objectives, the loop and the teacher's cached logits."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantops.nn import GroupSparsity
from plantops.train.batches import Augment, epoch_batches
from plantops.train.data import ImageData
from plantops.train.loop import Trainer, evaluate
from plantops.train.recipe import Recipe, Regularizer
from plantops.train.schedule import SCHEDULES, learning_rate
from plantops.train.teacher_logits import TeacherLogits, content_hash


def images(count: int = 24, classes: int = 3, seed: int = 0) -> ImageData:
    own = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), generator=own, dtype=torch.uint8)
    return ImageData(pixels, torch.arange(count) % classes, torch.tensor([127.0]), torch.tensor([70.0]), classes)


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def bits(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.mark.parametrize(("stride", "kept"), [(1, True), (2, False)])
def test_channels_last_unless_a_narrow_layer_steps(stride: int, kept: bool) -> None:
    """The weight gradient of a strided kernel of one pixel is not asked for in channels_last on a CPU."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 1, stride=stride), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 1, 6, 6))
    trainer = Trainer(model, images(), images(seed=1), Recipe(epochs=1, batch_size=8, channels_last=True))
    seen = []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    trainer.run_epoch()
    assert {x.is_contiguous(memory_format=torch.channels_last) for x in seen} == {kept}


# Schedules


@pytest.mark.parametrize("total", [7, 30, 101])
def test_onecycle_is_that_of_torch(total: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert learning_rate("onecycle", 0.3, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        if step + 1 < total:
            theirs.step()


def test_step_schedule_falls_by_a_fifth_every_third() -> None:
    rates = [learning_rate("step", 1.0, step, 9) for step in range(9)]
    assert rates == pytest.approx([1.0] * 3 + [0.2] * 3 + [0.04] * 3)


def test_constant_and_cosine() -> None:
    assert [learning_rate("constant", 0.5, step, 4) for step in range(4)] == [0.5] * 4
    assert learning_rate("cosine", 1.0, 0, 4) == 1.0
    assert learning_rate("cosine", 1.0, 2, 4) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_trainings_have_finite_positive_rates(schedule: str, total: int) -> None:
    rates = [learning_rate(schedule, 0.1, step, total) for step in range(total)]
    assert all(math.isfinite(rate) and 0 < rate <= 0.1 for rate in rates)


def test_schedule_errors() -> None:
    with pytest.raises(ValueError, match=r"step must lie in 0 to 3, got 4"):
        learning_rate("constant", 0.1, 4, 4)
    with pytest.raises(ValueError, match=r"schedule must be one of .*'linear'"):
        learning_rate("linear", 0.1, 0, 4)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("epochs", 0, "epochs must be an integer of at least 1, got 0"),
        ("objective", "mse", "objective must be one of ce, kl, kd, adversarial, got 'mse'"),
        ("lr", 0.0, "lr must be above 0, got 0.0"),
        ("lr", float("nan"), "lr must be finite and above 0, got nan"),
        ("lr", float("inf"), "lr must be finite and above 0, got inf"),
        ("discriminator_lr", float("inf"), "discriminator_lr must be finite and above 0, got inf"),
        ("weight_decay", float("inf"), "weight_decay must be finite and 0 or more, got inf"),
        ("temperature", float("inf"), "temperature must be finite and above 0, got inf"),
        ("channels_last", "yes", "channels_last must be True or False, got 'yes'"),
        ("momentum", 1.0, "momentum must be from 0 to below 1, got 1.0"),
        ("precision", "fp8", "precision must be one of"),
        ("batch_size", 2.5, "batch_size must be an integer of at least 1, got 2.5"),
    ],
)
def test_recipe_names_field_and_value(field: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Recipe(**{field: value})


# The loop


@pytest.mark.parametrize("objective", ["ce", "kl", "kd"])
def test_a_training_is_the_plain_loop(objective: str) -> None:
    """Two epochs in float64 against a loop written out with torch's own functions."""
    data, recipe = images(), Recipe(epochs=2, objective=objective, lr=0.05, batch_size=10, temperature=2.0, alpha=0.7)
    model, teacher = network(1).double(), network(2).double()
    plain = copy.deepcopy(model)
    trainer = Trainer(Cast(model), data, data, recipe, teacher=TeacherLogits(Cast(teacher)), seed=3, keys=("plain", 0))
    result = [trainer.run_epoch() for _ in range(2)][-1]

    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step, losses = 0, []
    for epoch in range(2):
        losses = []
        for batch in epoch_batches(data, 10, seed=3, keys=("plain", 0, epoch)):
            optimizer.param_groups[0]["lr"] = learning_rate("onecycle", 0.05, step, 6)
            logits = plain(batch.images.double())
            with torch.no_grad():
                target = teacher(batch.images.double())
            loss = reference_loss(objective, logits, target, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item() * len(batch.labels))
    for ours, theirs in zip(bits(model), bits(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert result.train_loss == pytest.approx(sum(losses) / 24, rel=1e-12)


class Cast(nn.Module):
    """float32 images into a float64 network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.double())


def reference_loss(objective: str, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    temperature, alpha = 2.0, 0.7
    ce = F.cross_entropy(logits, labels)
    kl = F.kl_div(F.log_softmax(logits / temperature, 1), F.softmax(teacher / temperature, 1), reduction="batchmean")
    return {"ce": ce, "kl": kl, "kd": alpha * temperature**2 * kl + (1 - alpha) * ce}[objective]


def test_regularizer_adds_its_term_and_gradient() -> None:
    """One step of SGD against autograd of the cross entropy and the plain formula, in float64."""
    data, model = images(), network().double()
    term = Regularizer("hierarchical_squared_exclusive_sparsity", "neuron", strength=0.3, mix=0.4)
    recipe = Recipe(
        epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", batch_size=24, regularizer=term
    )
    logits = model(data.normalise(data.images).double())
    a = model[0].weight.abs().sum((2, 3))
    loss = F.cross_entropy(logits, data.labels) + 0.3 * (0.4 * ((a**2).sum(1) ** 2).sum() + 0.6 * a.sum())
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss, parameters)
    expected = [(p - 0.1 * slope).detach() for p, slope in zip(parameters, slopes, strict=True)]
    result = Trainer(Cast(model), data, None, recipe).run_epoch()
    for ours, theirs in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-10, atol=1e-12)
    assert result.train_loss == pytest.approx(loss.item(), rel=1e-10)


def test_regularizer_makes_weights_sparse_and_needs_convolutions() -> None:
    data = images()
    recipe = Recipe(epochs=20, lr=0.05, batch_size=8, regularizer=Regularizer("l1", strength=0.2))
    share = {}
    for name, used in (("with", recipe), ("without", dataclasses.replace(recipe, regularizer=None))):
        trainer = Trainer(network(), data, data, used)
        while not trainer.finished:
            trainer.run_epoch()
        share[name] = GroupSparsity(trainer.model, "l1").sparsity(2e-2)
    assert share["with"] > 0.7 > 0.4 > share["without"]
    with pytest.raises(ValueError, match="expected at least one convolution to regularise"):
        Trainer(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), data, data, recipe)
    with pytest.raises(ValueError, match="strength must be finite and 0 or more, got nan"):
        Regularizer("l1", strength=math.nan)
    with pytest.raises(ValueError, match=r"penalty must be one of l1, .*got 'l0'"):
        Regularizer("l0")


@pytest.mark.parametrize("regularizer", [None, Regularizer("group_lasso")])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_and_taken_up_has_the_same_bits(optimizer: str, regularizer: Regularizer | None) -> None:
    data = images()
    recipe = Recipe(
        epochs=4, lr=0.01, optimizer=optimizer, batch_size=7, augment=Augment(1, True), regularizer=regularizer
    )

    def trainer() -> Trainer:
        return Trainer(network(), data, data, recipe, seed=5, keys=("x",))

    whole = trainer()
    results = [whole.run_epoch() for _ in range(4)]
    first = trainer()
    for _ in range(2):
        first.run_epoch()
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = trainer()
    second.load(tensors, copy.deepcopy(first.state()), first.epoch)
    again = [second.run_epoch() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(bits(whole.model), bits(second.model), strict=True))
    for before, after in zip(results[2:], again, strict=True):
        assert (before.train_loss, before.val_loss, before.lr) == (after.train_loss, after.val_loss, after.lr)
    assert second.finished


def test_no_global_generator_is_touched() -> None:
    state = torch.get_rng_state()
    data = images()
    trainer = Trainer(network(), data, data, Recipe(epochs=1, augment=Augment(1, True)), seed=0)
    trainer.run_epoch()
    assert torch.equal(state, torch.get_rng_state())


def test_evaluate_is_mean_cross_entropy_and_keeps_the_mode() -> None:
    data, model = images(50), network()
    model.train()
    score = evaluate(model, data)
    logits = copy.deepcopy(model).double().eval()(data.normalise(data.images).double())
    assert score.loss == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-6)  # float32 logits
    assert score.accuracy == (logits.argmax(1) == data.labels).double().mean().item()
    assert model.training


def test_bf16_autocast_trains() -> None:
    data = images()
    trainer = Trainer(network(), data, data, Recipe(epochs=8, lr=0.1, precision="bf16", batch_size=8), seed=0)
    losses = [trainer.run_epoch().train_loss for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_trainer_errors() -> None:
    data = images()
    with pytest.raises(ValueError, match="teacher must be given for objective 'kl', got None"):
        Trainer(network(), data, data, Recipe(objective="kl"))
    with pytest.raises(ValueError, match="model must have a parameter that requires a gradient"):
        Trainer(network().requires_grad_(False), data, data, Recipe())
    with pytest.raises(ValueError, match="train must hold at least one sample"):
        Trainer(network(), data.subset([]), data, Recipe())
    trainer = Trainer(network(), data, data, Recipe())
    with pytest.raises(ValueError, match=r"9\.weight must have the shape \[1\] of what is loaded, got no such entry"):
        trainer.load({"9.weight": torch.zeros(1)}, None, 0)


# The teacher


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.calls = network(2), 0

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.calls += 1
        return self.model(images)


def test_the_teacher_is_asked_once_for_every_image() -> None:
    data, teacher = images(), Counted()
    logits = TeacherLogits(teacher)
    for _ in range(2):
        for batch, rows in logits.batches(data, 10, seed=1, keys=("k", 0), augment=Augment()):
            assert torch.allclose(rows, teacher.model(batch.images).detach(), rtol=1e-5, atol=1e-6)
    assert teacher.calls == 1


def test_rows_that_are_kept_for_good_lie_in_a_folder_between_runs(tmp_path: Path) -> None:
    data, teacher = images(), Counted()
    folder = tmp_path / "logits"

    def rows(of: ImageData = data, flip: bool = True) -> Tensor:
        logits = TeacherLogits(teacher, folder=folder)
        batches = logits.batches(of, 24, seed=1, keys=(), augment=Augment(0, flip))
        return torch.cat([row for _, row in batches])

    first, calls = rows(), teacher.calls
    assert torch.equal(rows(), first)
    assert teacher.calls == calls
    # Other versions, other images, other statistics, another teacher: other rows.
    rows(flip=False)
    rows(images(seed=1))
    rows(dataclasses.replace(data, mean=data.mean + 1))
    with torch.no_grad():
        next(teacher.parameters()).mul_(2)
    assert not torch.equal(rows(), first)
    assert len(list(folder.iterdir())) == 5
    # What is damaged is computed again and mended.
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    calls, second = teacher.calls, rows()
    assert teacher.calls > calls
    calls = teacher.calls
    assert torch.equal(rows(), second)
    assert teacher.calls == calls


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    logits = TeacherLogits(Counted(), folder=tmp_path / "file" / "logits")
    ((_, rows),) = logits.batches(images(), 24, seed=1, keys=(), augment=Augment())
    assert rows.shape == (24, 3)


@pytest.mark.parametrize(("bytes", "calls"), [(24 * 3 * 4, 1), (24 * 3 * 4 - 1, 2)])
def test_where_views_do_not_fit_an_epoch_is_kept_if_it_fits(bytes: int, calls: int) -> None:
    data, teacher = images(), Counted()
    logits = TeacherLogits(teacher, cache_bytes=bytes)
    for _ in range(2):
        for batch, rows in logits.batches(data, 24, seed=1, keys=(), augment=Augment(1)):
            assert torch.equal(rows, teacher.model(batch.images).detach())
    assert teacher.calls == calls
    in_order = logits.epoch(data, 24, seed=1, keys=(), augment=Augment(1))
    assert torch.equal(in_order[batch.index], rows)
    calls = teacher.calls
    logits.forget()
    list(logits.batches(data, 24, seed=1, keys=(), augment=Augment(1)))
    assert teacher.calls == calls + 1


def test_content_hash_sees_every_bit() -> None:
    model = network()
    before = content_hash(model)
    assert content_hash(copy.deepcopy(model)) == before
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-7
    assert content_hash(model) != before
    assert content_hash(lambda x: x) != before
