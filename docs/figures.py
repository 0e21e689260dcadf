"""Draws the pictures of the companion methods' pages, from short trainings on the embedded digits (about a minute).

python docs/figures.py [group_sparsity] [qsne] [pruning] [adversarial]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

from plantops import prune, trace
from plantops.embed import QSNE
from plantops.models import PlantingNet
from plantops.pruning.samples import draw_samples
from plantops.train.data import load
from plantops.train.loop import EpochResult, Trainer
from plantops.train.recipe import Recipe, Regularizer
from plantops.train.report.style import LAYERS, drawing
from plantops.train.teacher_logits import TeacherLogits

HERE = Path(__file__).parent
INK, GRID = "#333333", "#dddddd"
PARTS = load("digits", None, val_fraction=0.2, seed=0)


def network(width: int, seed: int = 0) -> PlantingNet:
    own = torch.Generator().manual_seed(seed)
    return PlantingNet([width] * 5, 10, in_channels=1, image_size=8, fc_width=32, batch_norm=True, generator=own)


def trained(model: nn.Module, recipe: Recipe, teacher: nn.Module | None = None) -> list[EpochResult]:
    logits = None if teacher is None else TeacherLogits(teacher)
    trainer = Trainer(model, PARTS.train, PARTS.val, recipe, teacher=logits)
    return [trainer.run_epoch() for _ in range(recipe.epochs)]


def group_sparsity() -> Any:
    """Norms of the kernels of one layer, without a regulariser and with two."""
    terms = {
        "no regulariser": None,
        "group lasso, feature-wise": Regularizer("group_lasso", "feature", 3e-3),
        "group lasso, neuron-wise": Regularizer("group_lasso", "neuron", 3e-3),
    }
    with drawing(INK, GRID) as figure:
        page = figure(9, 4)
        for axis, (name, term) in zip(page.subplots(1, 3), terms.items(), strict=True):
            model = network(24)
            last = trained(model, Recipe(15, lr=0.05, batch_size=64, regularizer=term))[-1]
            norms = model.get_submodule("conv3").weight.detach().flatten(2).norm(dim=2)
            axis.imshow(norms, cmap="Greys", vmin=0, vmax=0.5)
            axis.grid(False)
            axis.set(title=name, xlabel="input channel", xticks=[], yticks=[])
            axis.set_xlabel(f"input channel\nheld-out accuracy {100 * (last.val_accuracy or 0):.1f} %")
        page.axes[0].set_ylabel("output channel")
    return page


def qsne() -> Any:
    """The same digits at three q."""
    images, labels = load_digits(return_X_y=True)
    with drawing(INK, GRID) as figure:
        page = figure(9, 3.4)
        for axis, q in zip(page.subplots(1, 3), (1.1, 2.0, 2.8), strict=True):
            estimator = QSNE(q=q, random_state=0, max_iter=600)
            points = estimator.fit_transform(images[:900])
            axis.scatter(*points.T, c=labels[:900], cmap="tab10", s=5, linewidths=0)
            axis.grid(False)
            axis.set(title=f"q = {q:g}", xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            axis.set_xlabel(f"KL {estimator.kl_divergence_:.2f}")
    return page


def pruning() -> Any:
    """Loss on the samples while filters go, nothing retrained."""
    model = network(24)
    trained(model, Recipe(15, lr=0.05, batch_size=64))
    samples = draw_samples(PARTS.train, 512, 0)
    plan = trace(model, samples[0][0][:2], grow_linear=False)
    with drawing(INK, GRID) as figure:
        page = figure(6, 3.6)
        axis = page.subplots()
        for colour, marker, criterion in zip(LAYERS, "os^", ("loss", "loss_per_parameter", "magnitude"), strict=False):
            result = prune(model, plan, samples, max_parameters=3000, criterion=criterion, share=0.08)
            sizes = [result.parameters[0], *(step.parameters for step in result.steps)]
            losses = [result.loss[0], *(step.loss for step in result.steps)]
            axis.plot(sizes, losses, marker=marker, markersize=4, color=colour, label=f"criterion={criterion!r}")
        axis.invert_xaxis()
        axis.set(title="Loss while filters are removed", xlabel="parameters left", ylabel="loss (nats)", yscale="log")
        axis.legend()
    return page


def adversarial() -> Any:
    """Held-out accuracy of the same student in three trainings."""
    teacher = network(24)
    trained(teacher, Recipe(15, lr=0.05, batch_size=64))
    ways = {"ce": "labels alone", "kd": "plain distillation, T = 5", "adversarial": "adversarial"}
    with drawing(INK, GRID) as figure:
        page = figure(6, 3.6)
        axis = page.subplots()
        for colour, (objective, name) in zip(LAYERS, ways.items(), strict=False):
            recipe = Recipe(20, objective=objective, lr=0.05, batch_size=64, temperature=5.0, schedule="tenths")
            results = trained(network(4, 1), recipe, None if objective == "ce" else teacher)
            up = [100 * (result.val_accuracy or 0) for result in results]
            axis.plot(range(1, 21), up, color=colour, label=name)
        axis.set(
            title="A student of width 4, one seed",
            xlabel="epoch",
            ylabel="held-out accuracy (%)",
            xticks=[1, 5, 10, 15, 20],
        )
        axis.legend()
    return page


def main() -> None:
    pages = {"group_sparsity": group_sparsity, "qsne": qsne, "pruning": pruning, "adversarial": adversarial}
    for name in sys.argv[1:] or pages:
        pages[name]().savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")
        print(f"docs/{name}.png", flush=True)


if __name__ == "__main__":
    main()
