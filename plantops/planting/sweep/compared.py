"""Is a candidate's program what its planted network computes, and does it give its gradients? Tried on a few images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from plantops.graph.forward import Forward
from plantops.planting.sweep.program import Program
from plantops.planting.sweep.trunk import Trunk
from plantops.planting.trunk import planted_parameters, trunk_state


def program_problem(forward: Forward, program: Program, planted: nn.Module, images: Tensor) -> str | None:
    """How the logits (in ``train()`` and ``eval()``) or gradients of ``program`` differ from those of ``planted`` when
    it is called; None where they do not.

    A graph does not show everything that a forward does: values that are changed through a view of them, functions
    with a backward of their own, numbers drawn in each call. The blocks are random for the comparison, since gradients
    of blocks that begin as 0 say too little; they, and the global random generators, are as before afterwards.
    """
    blocks = planted_parameters(planted)
    devices = [images.device.index] if images.is_cuda else []
    with _lively(planted, blocks), torch.random.fork_rng(devices):
        with _as_before(planted):
            values = Trunk(forward, program.kept, "float32")(images)
            followed = _seen(planted, lambda: program(values), blocks)
        try:
            called = _seen(planted, lambda: planted(images), blocks)
        except (RuntimeError, TypeError) as error:
            return f"a training step of the grown network fails ({str(error).splitlines()[0]})"
    for what, got, expected in zip(("logits", "gradients", "logits in eval()"), followed, called, strict=True):
        limit = min(30 * torch.finfo(expected.dtype).eps ** 0.5, 0.5)
        difference = float((got - expected).norm()) / max(float(expected.norm()), float(got.norm()), 1e-30)
        if not difference <= limit:
            return f"its {what} along the graph are not those of a call (they differ by {difference:.2g} of their norm)"
    return None


def _seen(planted: nn.Module, run: Callable[[], Tensor], blocks: list[nn.Parameter]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in ``train()``, the gradients of their weighted sum, and logits in ``eval()``, each as one row."""
    planted.train()
    with torch.enable_grad():
        logits = run()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
    found: tuple[Tensor | None, ...] = (None,) * len(blocks)
    if logits.requires_grad:
        found = torch.autograd.grad((logits * weights).sum(), blocks, allow_unused=True)
    filled = [torch.zeros_like(block) if one is None else one for block, one in zip(blocks, found, strict=True)]
    planted.eval()
    with torch.no_grad():
        evaluated = run()
    return logits.detach().flatten(), torch.cat([one.flatten() for one in filled]), evaluated.flatten()


@contextlib.contextmanager
def _lively(planted: nn.Module, blocks: list[nn.Parameter]) -> Iterator[None]:
    """Random blocks; they, statistics and mode are put back."""
    training = planted.training
    generator = torch.Generator().manual_seed(0)
    with _as_before(planted):
        with torch.no_grad():
            for block in blocks:
                drawn = torch.randn(block.shape, generator=generator)
                block.copy_(drawn / max(1, block[0].numel()) ** 0.5)
        try:
            yield
        finally:
            planted.train(training)


@contextlib.contextmanager
def _as_before(planted: nn.Module) -> Iterator[None]:
    """Blocks and statistics of new channels are put back."""
    frozen = trunk_state(planted)
    changing = [tensor for name, tensor in planted.state_dict().items() if name not in frozen]
    before = [tensor.clone() for tensor in changing]
    try:
        yield
    finally:
        for tensor, kept in zip(changing, before, strict=True):
            tensor.copy_(kept)
