"""Writes the measured tables of README.md and docs/search.md from the CSV files under benchmarks/results/.

    python benchmarks/readme_tables.py

Everything between ``<!-- results -->`` and ``<!-- /results -->`` is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import adversarial_cifar10
import controls
import paper
import study
from harness import RESULTS

from plantops.bench.case import BACKWARD, BOTH
from plantops.bench.record import read_csv
from plantops.bench.runner import GREEN
from plantops.bench.summary import results, summarise

CACHED = ("loop, cached logits", "split + cat, cached")
WAYS = ("", ", captured", ", compiled", ", compiled, captured")
LOOPS = ("shared, run", "loop, teacher each", *(f"{loop}{way}" for way in WAYS for loop in CACHED))
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
Row = dict[str, str]
Cases = dict[tuple[str, ...], dict[tuple[str, str], Row]]
REDUCED = (
    "CIFAR-10, trainings shortened to what a CPU can do (`epochs`; teacher w = 64), medians over seeds, beside the "
    "published figures, which come from longer trainings under a teacher of w = 128."
)
DIGITS = (
    "The digits (`python benchmarks/controls.py --resume DIR`): the planted network beside what one would train "
    "instead, under the same teacher, for as many epochs; medians over seeds, accuracy in per cent of 359 test images."
)
SMALL = "The same on a tenth of the training images (loss in nats): who overfits, and by how much."
ON_GPU = (
    "`planted_conv2d`, bf16 channels_last: 32x32x64, 16x16x128, 8x8x256 at batch 512; growth 1/16, 1/8, 1/4",
    "`planted_conv2d`, bf16 channels_last: the 3x3 stages of ResNet-50 at batch 64; growth 1/16, 1/8, 1/4",
    "`planted_conv2d`, bf16 channels_last: the paper's widths 8, 16, 32 with 4 and 8 channels at batch 128",
    "`kl_div_logits`, 16384 rows of 4,096, 32,768, 131,072, and its value and gradient in one pass",
    "`kl_div_logits`, `distillation_loss`, 128 to 4,096 rows of 10, 100, 1,000",
    "the host's side of a call, `native` (asked: 4 us forward, 12 us with the backward, over an empty function)",
    "the sweep over candidates",
)


def read(name: str) -> list[Row]:
    return read_csv(RESULTS / f"{name}.csv")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def provenance(row: Row) -> str:
    where = f"{row.get('hardware') or row['cpu']}, {row['threads']} thread{'' if row['threads'] == '1' else 's'}"
    if row.get("clock") == "processor":
        where += " and its processor time"
    return f"{where}, torch {row['torch']}, commit {row['commit'][:7]}, {row['date'][:10]}"


def by_case(rows: Iterable[Row], names: tuple[str, ...]) -> Cases:
    """The timed rows of every case by direction and variant."""
    cases: Cases = {}
    for row in rows:
        if row["status"] == GREEN:
            cases.setdefault(tuple(row[name] for name in names), {})[row["direction"], row["variant"]] = row
    return cases


def milliseconds(row: Row | None) -> str:
    return "-" if row is None else f"{float(row['p50_ms']):.4g}"


def ratio(row: Row, name: str) -> str:
    return f"{float(row[name]):.2f}x"


def compiled(found: dict[tuple[str, str], Row]) -> Row | None:
    """The fastest compiled peer, forward + backward."""
    rows = [row for (direction, name), row in found.items() if direction == BOTH and name.endswith("compiled")]
    return min(rows, key=lambda row: float(row["p50_ms"]), default=None)


BESIDE = ["best peer / plantops", "masked / plantops (by counted work)", "best peer / plantops, backward alone"]


def beside_peers(found: dict[tuple[str, str], Row], peers: Sequence[str]) -> list[str]:
    """Our time, that of each peer and of the fastest compiled one, and the ratios that `BESIDE` names."""
    ours, alone = found[BOTH, "auto"], found[BACKWARD, "auto"]
    times = [milliseconds(found.get((BOTH, name))) for name in peers]
    masked = f"{ratio(ours, 'baseline_over_this')} ({ratio(ours, 'baseline_over_this_by_count')})"
    ratios = [ratio(ours, "best_peer_over_this"), masked, ratio(alone, "best_peer_over_this")]
    return [milliseconds(ours), *times, milliseconds(compiled(found)), *ratios]


def convolution() -> str:
    """planted_conv2d beside its peers: the ratio to the fastest of them all, and to masking, with the one by count."""
    rows, peers = read("planted_conv2d_cpu"), ["split + cat", "ATen slice", "masked"]
    cases = by_case(rows, ("shape", "input_grad"))
    body = [[shape, grad, *beside_peers(found, peers)] for (shape, grad), found in cases.items()]
    return (
        "`planted_conv2d` on a CPU, forward + backward, float32, `out` and `in` blocks, milliseconds (medians); above "
        f"1x plantops is faster. {provenance(rows[0])}. Raw: `benchmarks/results/planted_conv2d_cpu.csv`.\n\n"
        + markdown(["shape, batch 128", "input_grad", "plantops", *peers, "fastest compiled", *BESIDE], body)
    )


def linear() -> str:
    """planted_linear beside its peers."""
    rows, peers = read("planted_linear_cpu"), ["split + cat", "masked"]
    cases = by_case(rows, ("batch", "shape", "input_grad"))
    body = [[f"{n} x {shape}", grad, *beside_peers(found, peers)] for (n, shape, grad), found in cases.items()]
    return (
        f"`planted_linear` on a CPU, the same. {provenance(rows[0])}. "
        "Raw: `benchmarks/results/planted_linear_cpu.csv`.\n\n"
        + markdown(["rows x features", "input_grad", "plantops", *peers, "fastest compiled", *BESIDE], body)
    )


def losses() -> str:
    """The losses beside eager torch and torch.compile, and the share of the copy bandwidth that is reached."""
    rows = read("losses_cpu")
    body = []
    for (op, count, classes, dtype), found in by_case(rows, ("op", "rows", "classes", "dtype")).items():
        ours, fused = found[BOTH, "auto"], found.get((BOTH, "value_and_grad auto"))
        eager, fast = found[BOTH, "eager"], found.get((BOTH, "compiled"))
        ratios = [f"{float(peer['p50_ms']) / float(ours['p50_ms']):.2f}x" if peer else "-" for peer in (eager, fast)]
        body.append(
            [f"`{op}`", f"{count} x {classes}", dtype, milliseconds(ours), milliseconds(fused), milliseconds(eager),
             milliseconds(fast), *ratios, f"{100 * float(ours['of_copy']):.0f} %"]
        )  # fmt: skip
    header = ["op", "rows x classes", "dtype", "plantops", "value and gradient", "eager", "torch.compile"]
    header += ["eager / plantops", "compile / plantops", "of copy bandwidth"]
    return (
        f"Losses on a CPU, forward + backward, milliseconds (medians). {provenance(rows[0])}. "
        "Raw: `benchmarks/results/losses_cpu.csv`.\n\n" + markdown(header, body)
    )


def host() -> str:
    rows = read("host_cpu")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        found.setdefault((row["op"], row["direction"]), {})[row["variant"]] = f"{float(row['p50_us']):.1f}"
    ways = ("empty function", "auto", "aten", "masked", "ATen slices", "split + cat", "eager")
    header = ["op", "direction", "empty function", "plantops", "through ATen", *ways[3:]]
    return (
        f"What a call on tensors of a few elements takes on a CPU, microseconds (medians), beside an empty autograd "
        f"function with the same arguments. {provenance(rows[0])}. Raw: `benchmarks/results/host_cpu.csv`.\n\n"
        + markdown(header, [[f"`{op}`", way, *(times.get(w, "-") for w in ways)] for (op, way), times in found.items()])
    )


def gpu() -> str:
    """The summary of the results on CUDA, or that there are none."""
    rows = [row for row in results(RESULTS) if row["device"] == "cuda"]
    if not rows:
        body = [[work, "not measured"] for work in ON_GPU]
        return "On a GPU (`benchmarks/gpu.sh`):\n\n" + markdown(["work", "against its peers"], body)
    lines = summarise(rows)
    body = [[str(line[name]) for name in line] for line in lines]
    return f"On a GPU, geometric means. {provenance(rows[0])}.\n\n" + markdown(list(lines[0]), body)


def sweep() -> str:
    """The sweep on every device that it was measured on."""
    names = [name for name in ("sweep_cpu", "sweep_cuda") if (RESULTS / f"{name}.csv").exists()]
    return "\n".join(_sweep(read(name), name) for name in names)


def _sweep(rows: list[Row], name: str) -> str:
    """One step of a round beside the loops over candidates, with crops, and a small search."""
    steps = [row for row in rows if row.get("part", "steps") in ("steps", "compiled") and row["p50_ms"]]
    loops = [name for name in LOOPS if any(row["variant"] == name for row in steps)]
    body = []
    for case, found in _cases(steps).items():
        shared = found["shared"]
        times = [f"{float(found[name]['ratio']):.1f}x" if name in found else "-" for name in loops]
        body.append([*case, f"{float(shared['p50_ms']):.2f}", *times, f"{100 * float(shared['share_of_peak']):.0f} %"])
    header = ["width", "channels", "batch", "sites", "shared sweep, ms", *loops, "of peak arithmetic"]
    return (
        "One optimizer step of all candidates of a round, the paper's network under a teacher of w = 128, without "
        "augmentation; loops over candidates as multiples of the shared sweep's time in the same run (medians). "
        f"{provenance(rows[0])}. Raw: `benchmarks/results/{name}.csv`.\n\n"
        + markdown(header, body)
        + _sweep_parts(rows)
    )


def _sweep_parts(rows: list[Row]) -> str:
    """The step with crops and flips, and the searches."""
    text = ""
    crops = [row for row in rows if row.get("part") == "crops"]
    if crops:
        body = [[row["variant"], f"{float(row['p50_ms']):.1f}", f"{float(row['ratio']):.2f}x"] for row in crops]
        text += (
            f"\nThe step with crops and flips, w={crops[0]['width']}, {crops[0]['channels']} channels, "
            f"batch {crops[0]['batch']}:\n\n" + markdown(["variant", "ms", "to the shared sweep"], body)
        )
    searches = [row for row in rows if row.get("part", "").startswith("search")]
    if searches:
        body = [
            [
                row["variant"],
                row["rounds"],
                f"{float(row['seconds']):.2f}",
                f"{float(row['ratio']):.1f}x",
                megabytes(row["peak_bytes"]),
            ]
            for row in searches
        ]
        first = searches[0]
        text += (
            f"\nA whole search on {first['images']} images, {first['epochs']} epochs a round, held-out scores and "
            f"compilation included, w={first['width']}, {first['channels']} channels:\n\n"
            + markdown(["variant", "rounds", "s", "to the shared sweep", "memory beyond that before, MB"], body)
        )
    return text


def megabytes(count: str) -> str:
    return f"{int(count) / 1e6:.0f}" if count else "-"


def _cases(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        case = tuple(row[name] for name in ("width", "channels", "batch", "sites"))
        # A case that is there twice has its shared sweep from the first part, whose loops it is compared with.
        cases.setdefault(case, {}).setdefault(row["variant"], row)
    return cases


def search() -> str:
    """The networks of one CIFAR-10 search."""
    rows = [row for row in read("cifar10_sweep") if row["kind"] == "network"]
    body = [
        [row["name"], row["widths"], f"{int(row['parameters']):,}", row["loss"], row["epochs"],
         f"{float(row['train_loss']):.3f}", f"{float(row['test_loss']):.3f}",
         f"{100 * float(row['test_accuracy']):.2f} %"]
        for row in rows
    ]  # fmt: skip
    header = ["network", "widths", "parameters", "loss", "epochs", "training loss", "test loss", "test accuracy"]
    first = rows[0]
    return (
        f"CIFAR-10, one seed, flips, few epochs. {provenance(first)}. "
        "Raw: `benchmarks/results/cifar10_sweep.csv`.\n\n" + markdown(header, body)
    )


def training() -> str:
    """One training step of the paper's networks, fused and as modules."""
    rows = read("training_cpu")
    names = list(dict.fromkeys(row["variant"] for row in rows))
    body = []
    for width in dict.fromkeys(row["width"] for row in rows):
        own = {row["variant"]: row for row in rows if row["width"] == width}
        ratios = [f"{milliseconds(own[name])} ({own[name]['over_fused']}x)" for name in names[1:]]
        body.append([width, milliseconds(own[names[0]]), *ratios])
    return (
        f"One training step of the paper's network on a CPU, batch {rows[0]['batch']}, milliseconds (medians); in "
        f"brackets the time over that of the fused kernels. {provenance(rows[0])}. "
        "Raw: `benchmarks/results/training_cpu.csv`.\n\n" + markdown(["width", *names], body)
    )


def published(name: str, what: str) -> str:
    """The table of the publication with our networks in it."""
    rows = read(name)
    lines = paper.summary([{**row, **paper.numbers(row)} for row in rows])
    if not any(line["published parameters"] for line in lines):
        lines = [{name: value for name, value in line.items() if not name.startswith("published")} for line in lines]
    for line in lines:
        line["parameters"] = f"{line['parameters']:,}"
        if line.get("published parameters"):
            line["published parameters"] = f"{line['published parameters']:,}"
    header = list(lines[0])
    return f"{what} {provenance(rows[0])}. Raw: `benchmarks/results/{name}.csv`.\n\n" + markdown(
        header, [[str(line[name]) for name in header] for line in lines]
    )


def beside_controls(name: str, what: str) -> str:
    """Medians of a planted network and its controls, and every seed's test accuracy."""
    rows = read(name)
    numbers = ("parameters", "val_loss", "test_loss", "test_accuracy")
    lines = controls.summary([{**row, **{key: float(row[key]) for key in numbers}} for row in rows])
    for line in lines:
        line["parameters"] = f"{line['parameters']:,}"
        own = [float(row["test_accuracy"]) for row in rows if row["row"] == line["network"]]
        line["each seed"] = ", ".join(f"{100 * accuracy:.2f}" for accuracy in own)
    header = list(lines[0])
    return f"{what} {provenance(rows[0])}. Raw: `benchmarks/results/{name}.csv`.\n\n" + markdown(
        header, [[str(line[name]) for name in header] for line in lines]
    )


def factors() -> str:
    """What each factor of the search changes."""
    rows = read("study_cifar10")
    lines = study.summary([{**row, **study.numbers(row)} for row in rows])
    header = list(lines[0])
    return (
        "The held-out loss at the end, and its difference to the base of the same seeds. "
        f"{provenance(rows[0])}. Raw: `benchmarks/results/study_cifar10.csv`.\n\n"
        + markdown(header, [[str(line[name]) for name in header] for line in lines])
    )


def coverage() -> str:
    """Networks grown at all their sites at once, beside the same networks pruned once by Torch-Pruning."""
    rows = read("coverage_compared")
    lines = []
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in rows if row["library"] == library]
        sites, grown = (sum(int(row[name] or 0) for row in own) for name in ("sites", "grown_layers"))
        lines.append(
            [
                f"{library} {own[0]['library_version']}",
                str(len(own)),
                f"{sum(int(row['sites'] or 0) > 0 for row in own)}",
                f"{sum(not row['plantops_failure'] for row in own)}",
                f"{sites:,} ({grown:,} layers)",
                f"{sum(not row['prune_failure'] for row in own)}",
                f"{sum(int(row['pruned_layers'] or 0) for row in own):,}",
            ]
        )
    header = [
        "library",
        "models",
        "with sites",
        "grown, no site fails",
        "sites",
        "Torch-Pruning survives",
        "layers pruned",
    ]
    made = dict.fromkeys(f"torch {row['torch']}, {row['date']}" for row in rows)
    failed = [f"{row['model']} ({row['prune_failure'].split(':')[0]})" for row in rows if row["prune_failure"]]
    without = [row["model"] for row in rows if int(row["sites"] or 0) == 0]
    text = (
        f"{len(rows)} models changed once as a whole, float32, random weights: plantops grows all sites together "
        "(`plantops.trace` keeps a site only if the outputs stay and the merged model equals the planted one), "
        f"Torch-Pruning {rows[0]['torch_pruning']} prunes half of the channels at its defaults (layers of 10 outputs, "
        "as the classifier, left out; two minutes of processor time at most), after which the forward has to run. "
        f"Layers that plantops refuses are in its plan, with the reason. {' and '.join(made)}. "
        "Raw: `benchmarks/results/coverage_compared.csv`.\n\n"
    )
    behind = f"\nplantops refuses every layer of {', '.join(without)}.\n" if without else ""
    behind += f"\nTorch-Pruning fails on {', '.join(failed)}.\n" if failed else ""
    return "### Which models grow\n\n" + text + markdown(header, lines) + behind


def write(path: Path, tables: Iterable[str]) -> None:
    """Put the tables between the marks of ``path``."""
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(before + BEGIN + "\n".join(["", *tables, ""]) + END + after)


def measured(name: str) -> list[Row]:
    """The rows of a file that may not be there yet."""
    return read(name) if (RESULTS / f"{name}.csv").exists() else []


def regulariser() -> str:
    """All ten penalties on ResNet-18's convolutions beside the plain formulas."""
    rows = read("regulariser_cpu")
    body = []
    for penalty, groups in dict.fromkeys((row["penalty"], row["groups"]) for row in rows):
        found = {row["variant"]: row for row in rows if (row["penalty"], row["groups"]) == (penalty, groups)}
        ratios = [f"{float(found[name]['over_eager']):.2f}x" for name in ("native", "value_and_grad")]
        times = [milliseconds(found[name]) for name in ("native", "value_and_grad", "eager")]
        body.append([f"`{penalty}`", groups, *times, *ratios])
    header = ["penalty", "groups", "plantops", "value and gradient in one pass", "plain formulas"]
    header += ["plain / plantops", "plain / one pass"]
    return (
        "The regulariser and its gradient on ResNet-18's 17 convolutions (11.0 million weights, float32), milliseconds "
        "(medians): through autograd, in one pass without it, and the formulas in plain PyTorch. "
        f"{provenance(rows[0])}. On a GPU: not measured. Raw: `benchmarks/results/regulariser_cpu.csv`.\n\n"
        + markdown(header, body)
    )


def embedding() -> str:
    """A step of q-SNE beside scikit-learn's exact method, and the memory of a large fit."""
    rows, memory = measured("qsne_cpu"), measured("qsne_memory")
    if not rows:
        return "A step beside scikit-learn's (`benchmarks/bench_qsne.py`): not measured.\n"
    body = [
        [f"{int(row['points']):,}", row["variant"], milliseconds(row), f"{float(row['over_sklearn']):.1f}x"]
        for row in rows
    ]
    text = (
        "One step (gradient over all pairs, update) in two dimensions, milliseconds (medians); `sklearn` is the exact "
        "gradient of its t-SNE in float64, `qsne` float32 with P dense, `neighbours` with P over 90 neighbours. "
        f"{provenance(rows[0])}. On a GPU: not measured. Raw: `benchmarks/results/qsne_cpu.csv`.\n\n"
        + markdown(["points", "variant", "step", "sklearn / this"], body)
    )
    for row in memory:
        text += (
            f"\nA fit of {int(row['points']):,} points in 50 dimensions over nearest neighbours takes "
            f"{float(row['peak_rss_growth_mib']):,.0f} MiB beyond the data's {float(row['data_mib']):.0f} MiB (peak "
            f"resident memory); a dense P alone would take {4 * int(row['points']) ** 2 / 2**30:.1f} GiB. "
            f"{provenance(row)}. Raw: `benchmarks/results/qsne_memory.csv`.\n"
        )
    return text


def pruned() -> str:
    """Pruning on CIFAR-10, by the loss and by magnitude."""
    rows = measured("pruning_cifar10_cpu")
    if not rows:
        return "Pruning on CIFAR-10 (`benchmarks/pruning_cifar10.py`): not measured.\n"
    first = rows[0]
    accuracy, parameters = float(first["test_accuracy"]), int(first["parameters"])
    body = [
        [row["network"], f"{int(row['parameters']):,}", f"{100 - 100 * int(row['parameters']) / parameters:.0f} %",
         f"{int(row['macs']):,}", f"{float(row['test_loss']):.3f}", f"{100 * float(row['test_accuracy']):.2f} %",
         f"{100 * (accuracy - float(row['test_accuracy'])):+.2f}"]
        for row in rows
    ]  # fmt: skip
    header = ["network", "parameters", "removed", "MACs", "test loss", "test accuracy", "points lost"]
    return (
        f"CIFAR-10, WRN-10-1, one seed, {int(first['images']):,} of the training images, {first['epochs']} epochs with "
        f"`{first['penalty']}` (strength {first['strength']}), filters chosen on {first['samples']} images, "
        f"{first['finetune_epochs']} epochs of fine-tuning under the unpruned network; 10,000 official test images. "
        "The publication removes more than 50 % of a larger ResNet's parameters for 0.3 points after 100 epochs on all "
        "images: not the same experiment. At most a fifth of the filters goes at once, to save time. "
        f"{provenance(first)}. Raw: `benchmarks/results/pruning_cifar10_cpu.csv`.\n\n" + markdown(header, body)
    )


def distilled() -> str:
    """Adversarial beside plain distillation."""
    rows = measured("adversarial_cifar10_cpu")
    if not rows:
        return "On CIFAR-10 at reduced size (`benchmarks/adversarial_cifar10.py`): not measured.\n"
    lines = adversarial_cifar10.summary([
        {**row, **{name: float(row[name]) for name in ("test_loss", "test_accuracy")}} for row in rows
    ])  # fmt: skip
    student, teacher = (next(row for row in rows if row["row"] == name) for name in ("ce", "teacher"))
    images = 100 * json.loads(student["config"])["train_fraction"]
    return (
        f"CIFAR-10 at reduced size: {images:.0f} % of the images, students {student['widths']} ({student['epochs']} "
        "epochs) from teachers "
        f"{teacher['widths']} ({teacher['epochs']} epochs), batch norm, no augmentation, lr 0.1, `--schedule tenths`; "
        f"means over {lines[0]['seeds']} seeds with the smallest and the largest, test accuracy in percent, beside the "
        f"published figures of other networks after 200 epochs. {provenance(student)}. "
        "Raw: `benchmarks/results/adversarial_cifar10_cpu.csv`.\n\n"
        + markdown(list(lines[0]), [[str(value) for value in line.values()] for line in lines])
    )


def main() -> None:
    for page, tables in (
        ("group_sparsity", regulariser), ("qsne", embedding), ("pruning", pruned), ("adversarial", distilled)
    ):  # fmt: skip
        write(ROOT / "docs" / f"{page}.md", (tables(),))
    reduced = published("paper_cifar10_reduced", REDUCED)
    digits = beside_controls("controls_digits", DIGITS)
    write(
        ROOT / "README.md",
        (convolution(), linear(), losses(), host(), training(), sweep(), gpu(), digits, search(), reduced, coverage()),
    )
    write(ROOT / "docs" / "search.md", (digits, factors(), reduced, published("paper_cifar10_0.1_reduced", SMALL)))


if __name__ == "__main__":
    main()
