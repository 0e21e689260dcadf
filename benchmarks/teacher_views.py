"""What a student learns when its teacher sees the same crop, the whole image, or when there are no crops.

    python benchmarks/teacher_views.py --teacher RUN --data-root DIR [--width 16] [--epochs 24] [--seeds 0,1,2]

A uniform network of the paper learns by KL from one teacher, at equal epochs:
    same view      crops and flips; the teacher's logits for the very view that the student sees
    clean image    the same crops and flips; the teacher's logits for the image as it is
    no crops       flips alone; the teacher's logits for the view that the student sees
The held-out part is that of the teacher's own split. Views are kept in --cache DIR, shared by all trainings.

Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022, arXiv 2106.05237,
which finds the same view best, the more so the longer the training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, environment, table, write_csv
from torch import Tensor

from plantops.models import planting_net
from plantops.planting.networks import find_network
from plantops.train.batches import Augment, Batch, epoch_batches
from plantops.train.data import DataParts, ImageData, load
from plantops.train.loop import Trainer, evaluate
from plantops.train.recipe import Recipe
from plantops.train.teacher_logits import TeacherLogits

COLUMNS = ("way", "seed", "epochs", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "processor_seconds")


class Clean(TeacherLogits):
    """Whatever becomes of an image, the teacher has seen it as it is."""

    def batches(self, data: ImageData, batch_size: int, **how: Any) -> Iterator[tuple[Batch, Tensor]]:
        rows = self.table(data, 1)
        for batch in epoch_batches(data, batch_size, **how):
            yield batch, rows[batch.index]


WAYS: dict[str, tuple[type[TeacherLogits], Augment]] = {
    "same view": (TeacherLogits, Augment(4, True)),
    "clean image": (Clean, Augment(4, True)),
    "no crops": (TeacherLogits, Augment(0, True)),
}


def trained(way: str, seed: int, parts: DataParts, args: argparse.Namespace) -> dict[str, Any]:
    """One training's row."""
    kind, augment = WAYS[way]
    teacher = kind(find_network(args.teacher).build(), folder=args.cache)
    model = planting_net(args.data, args.width, generator=torch.Generator().manual_seed(seed))
    recipe = Recipe(epochs=args.epochs, objective="kl", lr=args.lr, augment=augment)
    trainer = Trainer(model, parts.train, parts.val, recipe, teacher=teacher, seed=seed, keys=("views",))
    began = time.process_time()
    while not trainer.finished:
        last = trainer.run_epoch()
    test = evaluate(model, parts.test)
    return {
        "way": way, "seed": seed, "epochs": args.epochs, "width": args.width, "lr": args.lr,
        "images": len(parts.train), "val_loss": last.val_loss, "val_accuracy": last.val_accuracy,
        "test_loss": test.loss, "test_accuracy": test.accuracy,
        "processor_seconds": round(time.process_time() - began, 1), **environment(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="run or network folder of the teacher")
    parser.add_argument("--data", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--split-seed", type=int, default=0, help="that of the teacher")
    parser.add_argument("--train-fraction", type=float, default=1.0)
    parser.add_argument("--cache", type=Path, help="folder for the teacher's logits; default: in memory")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = load(args.data, args.data_root, seed=args.split_seed, train_fraction=args.train_fraction)
    rows = []
    for seed in map(int, args.seeds.split(",")):
        for way in WAYS:
            rows.append(trained(way, seed, parts, args))
            print(table(rows[-1:], COLUMNS), flush=True)
    print(table(rows, COLUMNS))
    print(write_csv(RESULTS / f"teacher_views_{args.data}.csv", rows))


if __name__ == "__main__":
    main()
