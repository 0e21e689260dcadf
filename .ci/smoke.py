"""Smoke test of an installed plantops: ops against torch, a planted layer in a training step, the command line."""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import plantops
import plantops.functional as PF
from plantops._extension import STATUS


def check_ops() -> None:
    """Values of each op against the torch formula."""
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    expected = F.kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="batchmean")
    torch.testing.assert_close(PF.kl_div_logits(student, teacher), expected)
    target = torch.randint(10, (8,))
    loss = PF.distillation_loss(student, teacher, target, alpha=0.0, temperature=2.0)
    torch.testing.assert_close(loss, F.cross_entropy(student, target))
    images, weight, planted = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(2, 3, 3, 3)
    output = PF.planted_conv2d(images, weight, planted, padding=1)
    torch.testing.assert_close(output, F.conv2d(images, torch.cat([weight, planted]), padding=1))


def check_layer() -> None:
    """One optimizer step moves the planted block and nothing else."""
    layer = plantops.nn.PlantedConv2d.from_conv(torch.nn.Conv2d(3, 4, 3), new_out=2)
    before = layer.weight.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    layer(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert layer.merge().weight.shape == (6, 3, 3, 3)


def check_command_line(out: Path) -> None:
    """A small search from the command line ends in a report."""
    command = Path(sys.executable).with_name("plantops")
    subprocess.run([command, "info"], check=True)
    flags = ["--epochs", "1", "--teacher-epochs", "1", "--initial-epochs", "1", "--max-rounds", "1"]
    subprocess.run([command, "plant", "--data", "digits", "--out", out, *flags], check=True)
    assert (out / "report.html").stat().st_size > 10_000
    few = ["--shape", "64x10", "--rounds", "2", "--no-compile", "--device", "cpu"]
    subprocess.run([command, "bench", "losses", *few, "--out", out / "bench"], check=True)
    assert (out / "bench" / "losses_cpu_both_eager.svg").stat().st_size > 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", choices=("yes", "no"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    assert STATUS.loaded == (arguments.compiled == "yes"), STATUS
    check_ops()
    check_layer()
    check_command_line(arguments.out)
    print(f"smoke test passed: plantops {plantops.__version__} from {plantops.__file__}, compiled: {STATUS.loaded}")
