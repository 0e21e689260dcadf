"""Which well-known models plantops can grow: every torchvision classification family, and 50 timm models.

For each model: whether its forward can be followed, how many sites it has, which reasons refuse the other layers, and
for its sites (all, or some evenly chosen ones with ``--sites``), in float64 with random weights: whether ``zero_in``
planting keeps the outputs, one training step moves planted blocks alone, and the merged model computes the same.

    python benchmarks/coverage_models.py --sites 0 --out benchmarks/results/coverage_models.csv

With ``--compare`` each model is instead changed once as a whole, in float32: by plantops, which grows all its sites
together (``plantops.trace`` refuses what then does not keep the outputs, or does not merge to equal ones), and by
Torch-Pruning 1.6.1 at its defaults (``BasePruner``, half of the channels, magnitudes, the classifier left out), after
which the forward has to run; Torch-Pruning gets two minutes.

    pip install 'plantops[bench]' timm
    python benchmarks/coverage_models.py --compare --out benchmarks/results/coverage_compared.csv

A row is written as soon as its model is done; models that the file has already are left out.
"""

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import plantops
from plantops.graph import trace
from plantops.planting import verify

PRUNE_SECONDS = 120
COMPARED = (
    "library", "model", "input", "layers", "sites", "grown_layers", "trace_seconds", "verified_seconds",
    "plantops_failure", "pruned_layers", "prune_failure", "torch", "library_version", "torch_pruning", "date",
)  # fmt: skip
COLUMNS = (
    "library", "model", "input", "traced", "sites", "grown_layers", "refused_layers", "tried", "failed",
    "trace_seconds", "first_failure", "refusals", "torch", "library_version", "date",
)  # fmt: skip

# The smallest member of each family, with the arguments and the side of the smallest image that it takes.
TORCHVISION: dict[str, tuple[dict[str, Any], int]] = {
    "alexnet": ({}, 64), "convnext_tiny": ({}, 32), "densenet121": ({}, 32), "efficientnet_b0": ({}, 32),
    "efficientnet_v2_s": ({}, 32), "googlenet": ({"aux_logits": False, "init_weights": False}, 32),
    "inception_v3": ({"aux_logits": False, "init_weights": False}, 80), "maxvit_t": ({}, 224), "mnasnet0_5": ({}, 32),
    "mobilenet_v2": ({}, 32), "mobilenet_v3_small": ({}, 32), "regnet_x_400mf": ({}, 32), "regnet_y_400mf": ({}, 32),
    "resnet18": ({}, 32), "resnext50_32x4d": ({}, 32), "shufflenet_v2_x0_5": ({}, 32), "squeezenet1_1": ({}, 32),
    "swin_t": ({}, 32), "swin_v2_t": ({}, 64), "vgg11": ({}, 32), "vgg11_bn": ({}, 32),
    "vit_b_32": ({"image_size": 32}, 32), "wide_resnet50_2": ({}, 32),
}  # fmt: skip

TIMM = (
    "resnet10t", "legacy_seresnet18", "resnext26ts", "skresnet18", "ecaresnet26t", "regnetx_002", "regnety_002",
    "regnetz_005", "densenet121", "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
    "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "efficientnet_b0", "tf_efficientnet_lite0", "fbnetc_100",
    "mnasnet_small", "mixnet_s", "ghostnet_050", "lcnet_035", "tinynet_e", "hardcorenas_a", "rexnet_100",
    "convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224",
    "xcit_nano_12_p16_224", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "poolformer_s12", "pit_ti_224",
    "levit_128s", "efficientformer_l1", "efficientvit_b0", "edgenext_xx_small", "fastvit_t8", "repvgg_a0",
    "repghostnet_050", "vgg11", "hrnet_w18_small", "dla46_c", "selecsls42", "gernet_s", "inception_next_atto",
    "starnet_s1",
)  # fmt: skip


def torchvision_model(name: str) -> tuple[nn.Module, int]:
    import torchvision

    arguments, side = TORCHVISION[name]
    return getattr(torchvision.models, name)(weights=None, num_classes=10, **arguments), side


def timm_model(name: str) -> tuple[nn.Module, int]:
    """The model for images of side 64 where it takes them, else of its own size."""
    import timm

    try:
        model = timm.create_model(name, pretrained=False, num_classes=10, img_size=64)
    except TypeError:
        model = timm.create_model(name, pretrained=False, num_classes=10)
    for side in (64, model.default_cfg["input_size"][1]):
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, side, side))
            return model.train(), side
        except (AssertionError, RuntimeError):
            continue
    raise RuntimeError(f"{name} takes no image")


def disturbed(model: nn.Module) -> nn.Module:
    """Without zeros that only a start has: the last norm of a residual block, where no gradient would get through."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.uniform_(0.1, 0.9)
    return model


def row(library: str, name: str, wanted: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, side = {"torchvision": torchvision_model, "timm": timm_model}[library](name)
    model = disturbed(model.double()).eval()
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    start = time.process_time()
    plan = trace(model, x)
    seconds = time.process_time() - start
    sites = list(plan.values())
    if 0 < wanted < len(sites):
        sites = [sites[round(i * (len(sites) - 1) / max(1, wanted - 1))] for i in range(wanted)]
    wrong = {site: problem for site, problem in verify(model, sites, x).items() if problem is not None}
    grown = {name for site in plan.values() for name in site.producers}
    return {
        "library": library,
        "model": name,
        "input": side,
        "traced": not any("cannot follow" in r or "does other things" in r for r in plan.refusals.values()),
        "sites": len(plan),
        "grown_layers": len(grown),
        "refused_layers": len(plan.refusals),
        "tried": len(sites),
        "failed": len(wrong),
        "trace_seconds": round(seconds, 2),
        "first_failure": next((f"{site}: {problem}" for site, problem in wrong.items()), ""),
        "refusals": "; ".join(
            f"{count} x {reason}" for reason, count in Counter(plan.refusals.values()).most_common(4)
        ),
        "torch": torch.__version__,
        "library_version": importlib.metadata.version(library),
        "date": datetime.date.today().isoformat(),
    }


def compared(library: str, name: str) -> dict[str, Any]:
    """One model grown at all its sites by plantops, and pruned once by Torch-Pruning."""
    torch.manual_seed(0)
    model, side = {"torchvision": torchvision_model, "timm": timm_model}[library](name)
    model = disturbed(model).eval()
    x = torch.randn(2, 3, side, side)
    result: dict[str, Any] = {
        "library": library,
        "model": name,
        "input": side,
        "layers": len(_layers(model)),
        "torch": torch.__version__,
        "library_version": importlib.metadata.version(library),
        "torch_pruning": importlib.metadata.version("torch-pruning"),
        "date": datetime.date.today().isoformat(),
    }
    start = time.process_time()
    plantops.trace(model, x, verify=False)
    traced = time.process_time()
    plan = plantops.trace(model, x)
    result["trace_seconds"] = round(traced - start, 2)
    result["verified_seconds"] = round(time.process_time() - traced, 2)
    grown = {name for site in plan.values() for name in site.producers}
    grown |= {layer.name for site in plan.values() for layer in site.channelwise if layer.kind == "conv"}
    result["sites"], result["grown_layers"] = len(plan), len(grown)
    failed = [f"{layer}: {reason}" for layer, reason in plan.refusals.items() if reason.startswith("verification")]
    failed += [] if plan else [f"no site: {next(iter(plan.refusals.values()))}"]
    result["plantops_failure"] = failed[0] if failed else ""
    try:
        result["pruned_layers"], result["prune_failure"] = _pruned(model, x), ""
    except Exception as error:
        result["pruned_layers"], result["prune_failure"] = 0, f"{type(error).__name__}: {error}".split("\n")[0]
    return result


def _layers(model: nn.Module) -> dict[str, int]:
    """The outputs of every convolution and linear layer."""
    widths = {name: getattr(m, "out_channels", getattr(m, "out_features", None)) for name, m in model.named_modules()}
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {name: widths[name] for name, m in model.named_modules() if isinstance(m, kinds)}


def _pruned(model: nn.Module, x: torch.Tensor) -> int:
    """Layers that are narrower after one prune; raises where it, or the forward behind it, fails or takes too long."""
    import torch_pruning

    before = _layers(model)
    head = [model.get_submodule(name) for name, width in before.items() if width == 10]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    with _at_most(PRUNE_SECONDS):
        torch_pruning.pruner.BasePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=head).step()
    with torch.no_grad():
        output = model(x)
    if output.shape != (2, 10):
        raise RuntimeError(f"the pruned model gives {list(output.shape)}")
    narrower = sum(width < before[name] for name, width in _layers(model).items())
    if not narrower:
        raise RuntimeError("nothing was pruned")
    return narrower


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """TimeoutError behind so much processor time: a search for groups that does not end takes all memory, too."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="*", default=["torchvision", "timm"], choices=["torchvision", "timm"])
    parser.add_argument("--sites", type=int, default=0, help="try so many sites of each model; 0: all")
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--compare", action="store_true", help="grow and prune each model once, side by side")
    parser.add_argument("--out", type=Path, help="default: coverage_models.csv or coverage_compared.csv in results/")
    options = parser.parse_args()
    if options.out is None:
        options.out = Path("benchmarks/results") / f"coverage_{'compared' if options.compare else 'models'}.csv"
    columns = COMPARED if options.compare else COLUMNS
    torch.set_num_threads(1)
    done = set()
    if options.out.exists():
        with options.out.open(newline="") as file:
            done = {(line["library"], line["model"]) for line in csv.DictReader(file)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for library in options.library:
        for name in {"torchvision": list(TORCHVISION), "timm": TIMM}[library]:
            if (library, name) in done or (options.models and name not in options.models):
                continue
            try:
                result = compared(library, name) if options.compare else row(library, name, options.sites)
            except Exception as error:
                message = f"{type(error).__name__}: {error}".split("\n")[0]
                where = "plantops_failure" if options.compare else "first_failure"
                result = {"library": library, "model": name, "sites": 0, where: message}
            new = not options.out.exists()
            with options.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, columns)
                if new:
                    writer.writeheader()
                writer.writerow(result)
            print(" ".join(f"{key}={result.get(key, '')}" for key in columns[1:12]), flush=True)


if __name__ == "__main__":
    main()
