"""Where the time of one training step of the paper's networks goes on a CPU, part by part.

    python benchmarks/step_parts.py [--width 8,16,32,64,128] [--batch 128] [--threads 1] [--rounds 31]

A step as ``plantops train`` and the joint trainings of ``plant`` do it: crops and flips, KL to a teacher whose views
are known, SGD with momentum. Processor time where one thread computes, so that other work on the machine counts little;
medians. Convolutions are timed on their own, on the step's shapes, with the pooling that is computed in the same call:
the input gradient is what a backward of both takes longer than one of the weights alone. ``rest`` is what the step
takes beyond its parts: autograd, Python, memory. The last rows are whole steps: with the teacher, and from labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import RESULTS, environment, table, write_csv
from torch import Tensor

from plantops import functional
from plantops.bench.timing import HostTimer, Sampler, interleave, ready
from plantops.models import PlantingNet, planting_net
from plantops.train.batches import Augment
from plantops.train.data import ImageData
from plantops.train.fused import fused
from plantops.train.loop import Feed, Learner, Tally
from plantops.train.objectives import make_objective
from plantops.train.recipe import Recipe
from plantops.train.teacher_logits import TeacherLogits

COLUMNS = ("width", "batch", "part", "p20_ms", "p50_ms", "p80_ms", "share")
EPOCHS = 100_000
Call = Callable[[], Any]


def images(count: int) -> ImageData:
    own = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=own)
    labels = torch.randint(0, 10, (count,), generator=own)
    return ImageData(pixels, labels, torch.full((3,), 120.0), torch.full((3,), 60.0), 10, "random")


def endless(feed: Feed) -> Iterator[tuple[Any, Tensor | None, float]]:
    epoch = 0
    while True:
        yield from feed.epoch(epoch)
        epoch += 1


def whole_step(model: PlantingNet, recipe: Recipe, data: ImageData, teacher: TeacherLogits | None) -> Call:
    learner, tally, forward = Learner(recipe, list(model.parameters())), Tally(data.device), fused(model)
    batches = endless(Feed(data, recipe, teacher, seed=0, keys=(), batch_done=None))

    def run() -> None:
        batch, logits, lr = next(batches)
        learner.step(lambda: forward(batch.images), batch.labels, logits, lr, tally)

    return run


def convolutions(model: PlantingNet, batch: int) -> dict[str, list[Call]]:
    """Forward, backward of everything and backward of the weights alone, of every layer."""
    calls: dict[str, list[Call]] = {"forward": [], "both": [], "weights": []}
    x = torch.randn(batch, 3, 32, 32)
    for layer in range(1, 6):
        conv = model.get_submodule(f"conv{layer}")
        weight, bias = conv.weight.detach().clone().requires_grad_(), conv.bias.detach().clone().requires_grad_()
        pool = 2 if layer in model.pool_after else 1

        def forward(x: Tensor, weight: Tensor = weight, bias: Tensor = bias, pool: int = pool) -> Tensor:
            return functional.planted_conv2d(
                x, weight.detach()[:0], weight, None, None, bias, 1, 1, activation="relu", max_pool=pool
            )

        calls["forward"].append(lambda x=x, forward=forward: forward(x))
        y = forward(x)
        gradient = torch.randn_like(y)
        for name, needs in (("both", layer > 1), ("weights", False)):
            own = x.detach().clone().requires_grad_(needs)
            out = forward(own)
            inputs = (weight, bias, own) if needs else (weight, bias)
            calls[name].append(
                lambda out=out, inputs=inputs, gradient=gradient: torch.autograd.grad(
                    out, inputs, gradient, retain_graph=True
                )
            )
        x = y.detach()
    return calls


def parts_of(width: int, batch: int) -> dict[str, Call]:
    """What a step does, and whole steps."""
    own = torch.Generator().manual_seed(0)
    model = planting_net("cifar10", width, generator=own)
    data = images(8 * batch)
    recipe = Recipe(epochs=EPOCHS, objective="kl", lr=1e-3, batch_size=batch, augment=Augment(4, True, views=2))
    teacher = TeacherLogits(planting_net("cifar10", 4, generator=own))
    views = teacher.views(data, recipe.augment, 0)
    assert views is not None
    views.fill()
    batches = endless(Feed(data, recipe, teacher, seed=0, keys=(), batch_done=None))
    conv = convolutions(model, batch)

    def together(calls: list[Call]) -> Call:
        return lambda: [call() for call in calls]

    flat = torch.randn(batch, model.fc1.in_features, requires_grad=True)
    gradient = torch.randn(batch, 10)
    linear = [*model.fc1.parameters(), *model.fc2.parameters(), flat]
    logits, target = torch.randn(batch, 10), torch.randn(batch, 10)
    labels = torch.randint(0, 10, (batch,))
    objective, tally = make_objective(recipe), Tally(data.device)
    learner = Learner(recipe, list(planting_net("cifar10", width, generator=own).parameters()))
    for parameter in learner._optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn_like(parameter)

    def linear_layers() -> None:
        out = model.fc2(torch.relu(model.fc1(flat)))
        torch.autograd.grad(out, linear, gradient)

    def loss() -> None:
        leaf = logits.clone().requires_grad_()
        value = objective(leaf, labels, target, lambda value: value)
        tally.add(value * batch, leaf.detach(), labels)

    labelled = Recipe(epochs=EPOCHS, objective="ce", lr=1e-3, batch_size=batch, augment=recipe.augment)
    return {
        "batch": lambda: next(batches),
        "convolutions, forward": together(conv["forward"]),
        "convolutions, weight gradient": together(conv["weights"]),
        "convolutions, backward": together(conv["both"]),
        "linear layers": linear_layers,
        "loss": loss,
        "optimizer": learner.update,
        "step": whole_step(planting_net("cifar10", width, generator=own), recipe, data, teacher),
        "step from labels": whole_step(planting_net("cifar10", width, generator=own), labelled, data, None),
    }


def rows_of(width: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    clock = time.process_time if args.threads == 1 else time.perf_counter
    timer = HostTimer(clock)
    samplers: dict[str, Sampler] = {
        name: timer.sampler(ready(call)) for name, call in parts_of(width, args.batch).items()
    }
    found = {name: timing.milliseconds() for name, timing in interleave(samplers, args.rounds).items()}
    backward, weights = found.pop("convolutions, backward"), found["convolutions, weight gradient"]
    step, labels = found.pop("step"), found.pop("step from labels")
    found["convolutions, input gradient"] = {name: max(0.0, backward[name] - weights[name]) for name in backward}
    rest = step["p50_ms"] - sum(part["p50_ms"] for part in found.values())
    found |= {"rest": {"p50_ms": round(rest, 5)}, "step": step, "step from labels": labels}
    common = {"clock": "processor" if args.threads == 1 else "wall", **environment()}
    return [
        {
            "width": width,
            "batch": args.batch,
            "part": name,
            **times,
            "share": f"{times['p50_ms'] / step['p50_ms']:.1%}",
            **common,
        }
        for name, times in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="8,16,32,64,128")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for width in args.width.split(",") for row in rows_of(int(width), args)]
    print(table(rows, COLUMNS))
    print(write_csv(RESULTS / "step_parts_cpu.csv", rows))


if __name__ == "__main__":
    main()
