"""The discriminator of logits, and its losses against gradients derived by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.nn import LogitDiscriminator, adversarial_student_loss, adversarial_terms, discriminator_loss

N, C = 6, 4


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()


def one_hot(position: int | Tensor, size: int) -> Tensor:
    positions = torch.full((N,), position) if isinstance(position, int) else position
    return F.one_hot(positions, size).double()


@pytest.fixture
def values() -> tuple[Tensor, ...]:
    labels = torch.arange(N) % C
    return draw(N, C, seed=0), draw(N, C, seed=1), labels, draw(N, C + 2, seed=2), draw(N, C + 2, seed=3)


def by_hand(output: Tensor, labels: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """d L_DS / d output and d L_A / d output: (one-hot - softmax) / N, in the class and in the fake / real columns."""
    classes, telling = torch.zeros_like(output), torch.zeros_like(output)
    classes[:, :C] = (one_hot(labels, C) - output[:, :C].softmax(1)) / N
    telling[:, C:] = (one_hot(kind, 2) - output[:, C:].softmax(1)) / N
    return classes.detach(), telling.detach()


def test_terms_by_hand(values: tuple[Tensor, ...]) -> None:
    _, _, labels, teacher, student = values
    telling, classes = adversarial_terms(teacher, student, labels)
    rows = range(N)
    expected = sum(teacher[i, C:].softmax(0)[1].log() + student[i, C:].softmax(0)[0].log() for i in rows) / N
    known = sum(out[i, :C].softmax(0)[labels[i]].log() for out in (teacher, student) for i in rows) / N
    torch.testing.assert_close((telling, classes), (expected, known), rtol=1e-12, atol=0)


def test_gradients_of_the_discriminator_loss(values: tuple[Tensor, ...]) -> None:
    _, _, labels, teacher, student = values
    grads = torch.autograd.grad(discriminator_loss(teacher, student, labels), (teacher, student))
    for grad, output, kind in zip(grads, (teacher, student), (1, 0), strict=True):
        classes, telling = by_hand(output, labels, kind)
        torch.testing.assert_close(grad, -(classes + telling) / 2, rtol=1e-12, atol=1e-15)


def test_gradients_of_the_student_loss(values: tuple[Tensor, ...]) -> None:
    logits, target, labels, teacher, student = values
    loss = adversarial_student_loss(logits, target, labels, teacher, student)
    telling, classes = adversarial_terms(teacher, student, labels)
    plain = F.cross_entropy(logits, labels) + (logits - target).abs().sum() / N + (telling - classes) / 2
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    own, through = torch.autograd.grad(loss, (logits, student))
    direct = (logits.softmax(1) - one_hot(labels, C) + (logits - target).sign()) / N
    torch.testing.assert_close(own, direct.detach(), rtol=1e-12, atol=1e-15)
    known, told = by_hand(student, labels, 0)
    torch.testing.assert_close(through, (told - known) / 2, rtol=1e-12, atol=1e-15)


def test_discriminator_by_the_formula_and_its_gradient() -> None:
    own = torch.Generator().manual_seed(4)
    net = LogitDiscriminator(C, layers=2, dropout=0.0, generator=own).double()
    x = draw(N, C, seed=5)

    def norm(a: Tensor) -> Tensor:
        return (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()

    a = norm(x)
    for linear in net.linears:
        a = (a + norm(F.linear(a, linear.weight, linear.bias))).relu()
    torch.testing.assert_close(net(x), net.head(a), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(net, (x,))
    alone = net(x[:1])  # no statistics from one row: the running ones
    assert torch.equal(alone, net.eval()(x[:1]))


def test_dropout_drops_its_share_and_all_randomness_is_its_own() -> None:
    state = torch.get_rng_state()
    nets = [LogitDiscriminator(50, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    x = torch.randn(400, 50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(nets[0](x), nets[1](x))
    assert not torch.equal(nets[0](x), nets[1].eval()(x))
    dropped = nets[0]._dropped(torch.ones(400, 50))
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert dropped.max().item() == pytest.approx(1 / 0.7)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(p.numel() for p in nets[0].parameters()) == 3 * (50 * 51 + 100) + 100 + 52 * 51


def test_errors() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 3 and 0"):
        LogitDiscriminator(3, layers=0)
    with pytest.raises(ValueError, match="dropout must be from 0 to below 1, got 1"):
        LogitDiscriminator(3, dropout=1.0)
