"""Filter pruning of a small wide residual network on CIFAR-10, by the loss and by magnitude, in one run.

    python benchmarks/pruning_cifar10.py --data-root FOLDER [--images N] [--epochs N] [--share X] [--out FILE]

WRN-10-1 is trained with the group sparse regulariser; then more than half of its parameters are removed, once by the
loss increase of switching filters off (as published), once by the size of the filters, and both are fine-tuned alike
with the unpruned network as teacher. Test accuracy is over the official 10,000 test images, at every stage; the paper
reports 0.3 points lost for more than 50 % of a (larger) ResNet's parameters.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, environment, table, write_csv
from torch import nn

from plantops import prune, trace
from plantops.graph import trace as sites_of
from plantops.models import count_macs, count_parameters, wide_resnet
from plantops.pruning.samples import draw_samples
from plantops.train.batches import Augment
from plantops.train.data import ImageData, load
from plantops.train.loop import Trainer, evaluate
from plantops.train.recipe import Recipe, Regularizer
from plantops.train.seeds import generator
from plantops.train.teacher_logits import TeacherLogits

COLUMNS = ("network", "parameters", "macs", "test_loss", "test_accuracy", "cpu_seconds")
ABOUT = ("images", "epochs", "finetune_epochs", "share", "penalty", "strength", "samples", "seed")


def train(model: nn.Module, data: ImageData, recipe: Recipe, seed: int, teacher: nn.Module | None = None) -> float:
    """Trains in place; the processor seconds that it took (the machine may do other things beside it)."""
    began = time.process_time()
    logits = None if teacher is None else TeacherLogits(teacher)
    trainer = Trainer(model, data, None, recipe, teacher=logits, seed=seed)
    while not trainer.finished:
        epoch = trainer.run_epoch()
        print(f"  epoch {epoch.epoch}/{epoch.epochs}: training loss {epoch.train_loss:.3f}", flush=True)
    return time.process_time() - began


def row(name: str, model: nn.Module, test: ImageData, seconds: float) -> dict[str, Any]:
    score = evaluate(model, test)
    return {
        "network": name,
        "parameters": count_parameters(model),
        "macs": count_macs(model, test.shape),
        "test_loss": round(score.loss, 4),
        "test_accuracy": round(score.accuracy, 4),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--images", type=int, default=5000, help="of the 50,000 training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--finetune-epochs", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.55, help="of the parameters to remove")
    parser.add_argument("--penalty", default="group_lasso")
    parser.add_argument("--strength", type=float, default=1e-3)
    parser.add_argument("--samples", type=int, default=128, help="images that filters are scored on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "pruning_cifar10_cpu.csv")
    options = parser.parse_args()
    about = {name: getattr(options, name) for name in ABOUT} | environment()
    parts = load("cifar10", options.data_root, seed=options.seed)
    drawn = torch.randperm(len(parts.train), generator=generator(options.seed, "images"))[: options.images]
    data, test = parts.train.subset(drawn.tolist()), parts.test
    common: dict[str, Any] = {"batch_size": 128, "augment": Augment(4, True)}
    torch.manual_seed(options.seed)
    network = wide_resnet(10, 1)
    term = Regularizer(options.penalty, "feature", options.strength)
    seconds = train(network, data, Recipe(options.epochs, lr=0.1, regularizer=term, **common), options.seed)
    rows = [row("trained", network, test, seconds)]
    limit = int((1 - options.share) * count_parameters(network))
    samples = draw_samples(data, options.samples, options.seed)
    plan = trace(network, samples[0][0][:2], grow_linear=False)
    for criterion in ("loss", "magnitude"):
        began = time.process_time()
        pruned = prune(network, plan, samples, max_parameters=limit, criterion=criterion, share=0.2).model
        rows.append(row(f"pruned by {criterion}", pruned, test, time.process_time() - began))
        print(f"  widths {[site.width for site in sites_of(pruned, samples[0][0][:2]).values()]}", flush=True)
        recipe = Recipe(options.finetune_epochs, objective="kd", lr=0.02, alpha=0.9, temperature=2.0, **common)
        seconds = train(pruned, data, recipe, options.seed, network)
        rows.append(row(f"pruned by {criterion}, fine-tuned", pruned, test, seconds))
    print(table(rows, COLUMNS), flush=True)
    print(write_csv(options.out, [{**one, **about} for one in rows]))


if __name__ == "__main__":
    main()
