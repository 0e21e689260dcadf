"""The same work by an older build of the package, interleaved with this one: each build in a process of its own.

    python benchmarks/bench_training.py --against DIR
    python benchmarks/bench_sweep.py --parts steps,crops --against DIR

DIR: a checkout of the older commit with its compiled module. A worker imports a checkout's package and that checkout's
benchmark script, which makes the variants; this process says whose turn it is. While one works the other waits for its
turn. Seconds are counted where the work is done.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OLDER = " (older)"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Build:
    """The variants that ``SOURCES[source]`` finds in a checkout, each a ``sampler`` for ``plantops.bench.timing``.

    Args:
        folder: the checkout.
        source: which script's variants.
        options: of the script, and the case in ``options["case"]``.
    """

    def __init__(self, folder: Path, source: str, options: Mapping[str, Any], clock: str, threads: int) -> None:
        if not (folder / "plantops" / "__init__.py").exists():
            raise SystemExit(
                f"--against {folder}: there is no plantops in this folder. Give a checkout with its build."
            )
        request = {"folder": str(folder), "source": source, "options": options, "clock": clock, "threads": threads}
        command = [sys.executable, str(Path(__file__).resolve()), json.dumps(request)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.names: list[str] = self._answer()

    def sampler(self, name: str) -> Any:
        """Samples of the variant ``name``."""
        from plantops.bench.timing import Sampler

        return Sampler(lambda: float(self._ask(name)), 1)

    def peak_bytes(self, name: str) -> int | str:
        """What the variant holds at most during one call, see ``sweep_memory``."""
        answer: int | str = self._ask(f"peak:{name}")
        return answer

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, text: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("--against: the older build ended, its error stands above.")
        return json.loads(line)


@contextlib.contextmanager
def both_builds(
    older: Path, source: str, options: Mapping[str, Any], clock: str, threads: int
) -> Iterator[dict[str, Build]]:
    """This checkout and the older one, by the mark of their rows. Both work alike in processes of their own."""
    builds = {
        mark: Build(folder, source, options, clock, threads) for mark, folder in (("", HERE.parent), (OLDER, older))
    }
    try:
        yield builds
    finally:
        for build in builds.values():
            build.close()


def samplers_of(builds: Mapping[str, Build]) -> dict[str, Any]:
    """Every variant of both."""
    return {f"{name}{mark}": build.sampler(name) for mark, build in builds.items() for name in build.names}


def training_steps(module: Any, options: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """One training step of each variant of ``bench_training.py``."""
    import torch

    own = torch.Generator().manual_seed(0)
    model = module.planting_net("cifar10", options["width"], generator=own)
    images = torch.randn(options["batch"], 3, 32, 32, generator=own)
    labels = torch.randint(10, (options["batch"],), generator=own)
    found = {}
    for name, (network, forward) in module.variants(model, False).items():
        laid = images.contiguous(memory_format=torch.channels_last) if name == "channels_last" else images
        module.check(model, network, forward, laid, labels)
        found[name] = module.step(network, forward, laid, labels)
    return found


def sweep_steps(module: Any, options: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """One step of each variant of a part of ``bench_sweep.py``."""
    sys.argv = ["bench_sweep.py", *options["arguments"]]
    found: dict[str, Callable[[], Any]] = module.STEPS[options["part"]](
        module.Case(**options["case"]), module.arguments()
    )
    return {name: found[name] for name in options["variants"] if name in found}


SOURCES: dict[str, tuple[str, Callable[..., dict[str, Callable[[], Any]]]]] = {
    "training": ("bench_training", training_steps),
    "sweep": ("bench_sweep", sweep_steps),
}


def ratio_rows(rows: Sequence[dict[str, Any]], other_names: Mapping[str, str] | None = None) -> list[str]:
    """Older build over this one, of every variant that both have, in words.

    ``other_names``: what the older build calls a variant, where it has another name for it.
    """
    middle = {str(row["variant"]): float(row["p50_ms"]) for row in rows}
    lines = []
    for name, mine in middle.items():
        older = middle.get(f"{(other_names or {}).get(name, name)}{OLDER}")
        if older is not None:
            lines.append(f"{name}: {older / mine:.2f}x as fast as the older build")
    return lines


def work() -> None:
    """The worker: answers with the names of the variants, then with the seconds of one of them at a time."""
    request = json.loads(sys.argv[1])
    folder, answers = request["folder"], sys.stdout
    sys.stdout = sys.stderr
    sys.path[0] = str(Path(folder) / "benchmarks")
    sys.path.insert(1, folder)
    import torch

    torch.set_num_threads(request["threads"])
    timing = importlib.import_module("plantops.bench.timing")
    memory = importlib.import_module("sweep_memory")
    loaded = Path(timing.__file__).resolve()
    if Path(folder).resolve() not in loaded.parents:
        raise SystemExit(f"{loaded} was imported, not the package in {folder}: it must not be in PYTHONPATH first.")
    name, make = SOURCES[request["source"]]
    steps = make(importlib.import_module(name), request["options"])
    timer = timing.HostTimer(CLOCKS[request["clock"]], 2e-3, 2)
    samplers: dict[str, Any] = {}

    def say(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    say(list(steps))
    for line in sys.stdin:
        asked = line.rstrip("\n")
        if asked.startswith("peak:"):
            say(memory.peak_bytes(steps[asked.removeprefix("peak:")], "cpu"))
            continue
        if asked not in samplers:
            samplers[asked] = timer.sampler(timing.ready(steps[asked]))
        say(samplers[asked].sample())


if __name__ == "__main__":
    work()
