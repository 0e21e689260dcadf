"""The command line of the benchmarks; ``plantops bench`` and the scripts under ``benchmarks/`` call `main`."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from plantops.bench import host, registry, summary
from plantops.bench.case import OURS, Case, is_bad, verified
from plantops.bench.display import show
from plantops.bench.gpu import GpuTimer
from plantops.bench.plots import draw
from plantops.bench.record import Row, read_csv, table, write_csv
from plantops.bench.runner import Settings, run
from plantops.bench.trace import write_trace
from plantops.bench.tune import tune, write_table
from plantops.ops import _tuned
from plantops.ops._registry import IMPLS

HOST = "host"
DTYPES = ("float32", "bfloat16", "float16", "float64")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See plantops bench --help.")


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = _Parser(prog="plantops bench", description="Measure plantops beside its peers on this machine.")
    p.add_argument(
        "benchmarks", nargs="*", metavar="BENCHMARK",
        help=", ".join(registry.MODULES) + "; default: all of these; host: what a call costs the host",
    )  # fmt: skip
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (the default)")
    p.add_argument("--dtype", choices=DTYPES, help="instead of each case's own")
    p.add_argument("--full", action="store_true", help="every case of the published tables, not a few small ones")
    p.add_argument("--small", action="store_true", help="a few tiny cases, for checkers that slow everything down")
    p.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this text")
    p.add_argument(
        "--shape", action="append", default=[], metavar="SHAPE", help="a case of your own, any number of them"
    )
    p.add_argument("--impls", default="auto,native,triton,aten", help="our implementations, between commas")
    p.add_argument("--rounds", type=_positive, default=15, help="samples of every variant")
    p.add_argument("--threads", type=_positive, help="CPU threads")
    p.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    p.add_argument("--busy", action="store_true", help="for a CPU in use: one thread, its own processor time")
    p.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for CSV, plots and traces")
    p.add_argument("--append", action="store_true", help="add to the CSV files of the folder, do not replace them")
    p.add_argument("--no-plots", action="store_true", help="draw nothing (plots need matplotlib)")
    p.add_argument("--trace", action="store_true", help="write a torch.profiler trace of every case")
    p.add_argument("--check", action="store_true", help="instead: compare every variant with float64, time nothing")
    p.add_argument("--summary", type=Path, metavar="FOLDER", help="instead: table and plots of the CSV files there")
    p.add_argument(
        "--tune",
        nargs="?",
        const=_tuned.own_folder(),
        type=Path,
        metavar="FOLDER",
        help='instead: write the table that impl="auto" follows on this GPU; default folder: ~/.cache/plantops/tuned',
    )
    return p


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Run benchmarks; the exit status is 1 where one of our implementations is wrong or fails.

    Raises:
        ValueError: an option or a shape that does not fit.
    """
    options = parser().parse_args(arguments)
    if options.summary:
        return _summary(options.summary, plots=not options.no_plots)
    if options.busy or options.threads:
        torch.set_num_threads(1 if options.busy else options.threads)
    settings = settings_of(options)
    if HOST in options.benchmarks:
        return _host(settings, options)
    names = options.benchmarks or list(registry.MODULES)
    chosen = {name: registry.benchmark(name).cases(settings) for name in names}
    every = [case for cases in chosen.values() for case in cases if settings.only in case.name]
    if not every:
        raise ValueError(f"--only {settings.only!r} leaves no case.")
    if options.check:
        return _check(every)
    if options.tune:
        return _tune(every, settings, options.tune)
    wrong = [row for name, cases in chosen.items() for row in _one(name, cases, settings, options)]
    return 1 if wrong else 0


def _host(settings: Settings, options: argparse.Namespace) -> int:
    """The host's time of a call: table and CSV."""
    if options.benchmarks != [HOST]:
        raise ValueError(f"{HOST} is measured alone, got {' '.join(options.benchmarks)}.")
    rows = host.rows(settings)
    print(table(rows, host.COLUMNS))
    print(write_csv(options.out / f"{HOST}_{settings.device.type}.csv", rows))
    return 0


def settings_of(options: argparse.Namespace) -> Settings:
    """The options as settings.

    Raises:
        ValueError: an unknown device or implementation.
    """
    impls = tuple(options.impls.split(","))
    if unknown := set(impls) - set(IMPLS):
        raise ValueError(
            f"--impls: expected some of {', '.join(IMPLS)} between commas, got {', '.join(sorted(unknown))}."
        )
    return Settings(
        device=_device(options.device),
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        rounds=options.rounds,
        compiled=not (options.no_compile or options.tune),
        impls=impls,
        processor_time=options.busy,
        size="small" if options.small else "full" if options.full else "quick",
        only=options.only,
        shapes=tuple(options.shape),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are visible. Use --device cpu.")
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device("cpu")


def _one(name: str, cases: Sequence[Case], settings: Settings, options: argparse.Namespace) -> list[Row]:
    """One benchmark: table, CSV, plots, traces. Returns the rows of ours that are wrong or fail."""

    def report(case: Case, block: list[Row]) -> None:
        rows.extend(block)
        show(block, case.name)
        write_csv(path, rows)  # after every case: a run that is stopped keeps what it has

    kind = settings.device.type
    path = options.out / f"{name}_{kind}.csv"
    rows: list[Row] = list(read_csv(path)) if options.append and path.exists() else []
    before = len(rows)
    run(cases, settings, report)
    written = [path] if rows else []
    if rows and not options.no_plots and _can_draw():
        written += draw(rows, options.out, f"{name}_{kind}")
    if options.trace:
        written += [write_trace(case, settings.device, options.out) for case in cases if settings.only in case.name]
    print("\n".join(map(str, written)))
    return [row for row in rows[before:] if is_bad(row["status"]) and row["role"] == OURS]


def _summary(folder: Path, plots: bool) -> int:
    """Prints what the results of a folder say and draws them."""
    print(summary.text(folder))
    if plots and _can_draw():
        for path in sorted(folder.glob("*.csv")):
            draw(summary.results(path), folder, path.stem)
    return 0


def _check(cases: Sequence[Case]) -> int:
    """Prints what each variant's check against float64 says; 1 where one of ours computes something wrong or fails."""
    bad = False
    for case in cases:
        problem = case.prepare()
        good, reasons = verified(problem)
        print(f"{case.name}: right: {', '.join(variant.name for variant in good) or 'none'}")
        for name, why in reasons.items():
            print(f"  {name}: {why}", flush=True)
        ours = {variant.name for variant in problem.variants if variant.role == OURS}
        bad |= any(name in ours and is_bad(why) for name, why in reasons.items())
    return 1 if bad else 0


def _tune(cases: Sequence[Case], settings: Settings, folder: Path) -> int:
    """Writes the table of this GPU."""
    if settings.device.type != "cuda":
        raise ValueError('--tune needs a CUDA device: impl="auto" follows such a table on CUDA alone.')

    path = folder / f"{_tuned.architecture(settings.device.index)}.json"

    def report(name: str, block: Sequence[Row]) -> None:
        write_table(path, block, settings.device)  # a run that is cut off leaves what it has measured
        print(name)
        for row in block:
            times = ", ".join(f"{impl} {milliseconds:g} ms" for impl, milliseconds in row["ms"].items())
            print(f"  {row['op']}: {row['impl']} ({times})", flush=True)

    tune(cases, settings, GpuTimer(settings.device, graph=True), report)
    print(path)
    return 0


def _can_draw() -> bool:
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: they need matplotlib, pip install 'plantops[plots]'")
        return False
    return True
