"""Adversarial distillation in training: the alternating steps written out, and a training taken up again."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plantops.nn import LogitDiscriminator, adversarial_student_loss, discriminator_loss
from plantops.train.adversarial import Adversarial
from plantops.train.batches import Augment
from plantops.train.loop import Trainer
from plantops.train.objectives import make_objective
from plantops.train.recipe import Recipe
from plantops.train.schedule import learning_rate
from plantops.train.seeds import generator
from plantops.train.teacher_logits import TeacherLogits
from python_tests.train.test_loop import bits, images, network


def rows(seed: int, count: int = 9, classes: int = 3) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_steps_are_those_of_the_schedule_written_out() -> None:
    """Three batches in float64: a step of the discriminator, then the student's gradient, each time."""
    objective, labels, teacher = Adversarial(0.02, seed=7), torch.arange(9) % 3, rows(0)
    own = generator(7, "discriminator")
    plain = LogitDiscriminator(3, generator=own).double()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    for batch in range(3):
        logits = rows(10 + batch).requires_grad_()
        objective.pace(1 / (1 + batch))
        loss = objective(logits, labels, teacher, lambda value: 4 * value)
        optimizer.param_groups[0]["lr"] = 0.02 / (1 + batch)
        optimizer.zero_grad()
        fixed = logits.detach()
        discriminator_loss(plain(teacher), plain(fixed), labels).backward()
        optimizer.step()
        student = fixed.clone().requires_grad_()
        expected = adversarial_student_loss(student, teacher, labels, plain(teacher), plain(student))
        (slope,) = torch.autograd.grad(expected, student)
        assert torch.equal(loss, expected.detach())
        torch.testing.assert_close(logits.grad, 4 * slope, rtol=1e-12, atol=0)


def test_the_discriminator_learns_to_tell() -> None:
    """A teacher that is sure and a student that guesses, and never moves."""
    objective, labels = Adversarial(0.05, seed=0), torch.arange(100) % 10
    teacher, student = 8 * F.one_hot(labels, 10) + rows(0, 100, 10), rows(1, 100, 10)
    for _ in range(150):
        objective(student.clone().requires_grad_(), labels, teacher, lambda value: value)
    net = LogitDiscriminator(10, dropout=0.0).double()
    net.load_state_dict(objective.state()["discriminator"])
    told = [net(part)[:, -2:].argmax(1).double().mean().item() for part in (teacher, student)]
    assert told[0] > 0.9 > 0.2 > told[1]  # 1: the teacher's
    assert (net(teacher)[:, :-2].argmax(1) == labels).double().mean().item() > 0.9


@pytest.mark.parametrize("stop", [1, 3])
def test_stopped_and_taken_up_has_the_same_bits(stop: int) -> None:
    data = images(25)  # the last batch has one image
    recipe = Recipe(epochs=4, objective="adversarial", lr=0.01, batch_size=8, augment=Augment(1, True))

    def trainer(seed: int = 5) -> Trainer:
        return Trainer(network(), data, data, recipe, teacher=TeacherLogits(network(2)), seed=seed)

    whole, first, second = trainer(), trainer(), trainer()
    results = [whole.run_epoch() for _ in range(4)]
    for _ in range(stop):
        first.run_epoch()
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second.load(tensors, copy.deepcopy(first.state()), stop)
    again = [second.run_epoch() for _ in range(4 - stop)]
    assert all(torch.equal(a, b) for a, b in zip(bits(whole.model), bits(second.model), strict=True))
    assert [r.train_loss for r in results[stop:]] == [r.train_loss for r in again]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 10.0])
def test_gradient_of_plain_distillation(temperature: float) -> None:
    """alpha T (softmax(F / T) - softmax(t / T)) + (1 - alpha) (softmax(F) - y), over N: T^2 keeps its size."""
    logits, teacher, labels = rows(3).requires_grad_(), rows(4), torch.arange(9) % 3
    objective = make_objective(Recipe(objective="kd", temperature=temperature, alpha=0.7))
    objective(logits, labels, teacher, lambda value: value)
    with torch.no_grad():
        soft = (logits / temperature).softmax(1) - (teacher / temperature).softmax(1)
        hard = logits.softmax(1) - F.one_hot(labels, 3)
        expected = (0.7 * temperature * soft + 0.3 * hard) / 9
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-14)


def test_tenths_of_the_learning_rate() -> None:
    rates = [learning_rate("tenths", 1.0, epoch, 200) for epoch in range(200)]
    assert rates == pytest.approx([1.0] * 80 + [0.1] * 80 + [0.01] * 40)


def test_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match="teacher must be given for objective 'adversarial', got None"):
        Trainer(network(), images(), None, Recipe(objective="adversarial"))
    with pytest.raises(ValueError, match="discriminator_lr must be above 0, got 0"):
        Recipe(discriminator_lr=0.0)
    assert isinstance(make_objective(Recipe(objective="adversarial")), Adversarial)
