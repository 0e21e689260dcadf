"""One step of q-SNE beside scikit-learn's exact t-SNE, and the memory of a fit.

    python benchmarks/bench_qsne.py [--threads N] [--rounds N] [--points N ...] [--busy] [--out FILE]
    python benchmarks/bench_qsne.py --memory 60000 [--out FILE]

A step is the gradient of KL(P || Q) over all pairs and the update of a two-dimensional embedding. Variants, all timed
in turn in one run:
    sklearn          sklearn.manifold._t_sne._kl_divergence (method="exact") without the objective; no update
    qsne q=...       plantops.embed's gradient and update, P dense, float32
    qsne_f64 q=2     the same in float64, as scikit-learn computes
    neighbours q=2   the same with P over 90 nearest neighbours
Ratios are to sklearn at the same q where it has one (its degrees of freedom are (3-q)/(q-1); its gradient is right at
q = 2 only, its cost is the same for all others). The gradients are compared at q = 2 before anything is timed.
--memory fits QSNE on so many points of 50 dimensions for two steps and records the growth of the peak resident memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, environment, measure, table, write_csv
from scipy.spatial.distance import squareform
from sklearn.manifold import _t_sne

from plantops.embed import QSNE, similarities
from plantops.embed.optimiser import Objective, Schedule, minimise
from plantops.embed.similarities import Similarities

COLUMNS = ("points", "variant", "p20_ms", "p50_ms", "p80_ms", "over_sklearn")
NEIGHBOURS, PERPLEXITY = 90, 30.0


def data(points: int) -> torch.Tensor:
    """Ten clusters in 50 dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 50, generator=generator) * 3
    return centres[torch.arange(points) % 10] + torch.randn(points, 50, generator=generator)


def dense_similarities(x: torch.Tensor) -> Similarities:
    x = x.double()
    return similarities.dense(lambda rows: torch.cdist(x[rows], x).square_(), len(x), PERPLEXITY, torch.float64)


def neighbour_similarities(x: torch.Tensor) -> Similarities:
    x = x.double()
    nearest = [torch.cdist(block, x).topk(NEIGHBOURS + 1, largest=False) for block in x.split(1000)]
    squared = torch.cat([distances for distances, _ in nearest])[:, 1:].square()
    return similarities.sparse(squared, torch.cat([index for _, index in nearest])[:, 1:], PERPLEXITY, torch.float32)


def sklearn_step(p: np.ndarray, y: np.ndarray, q: float) -> Callable[[], Any]:
    """The gradient as its exact method computes it in most steps, without the objective."""
    degrees = (3 - q) / (q - 1)
    return lambda: _t_sne._kl_divergence(y.ravel(), p, degrees, len(y), 2, compute_error=False)


def our_step(p: Similarities, y: torch.Tensor, q: float) -> Callable[[], Any]:
    objective, schedule = Objective(p, q, "native"), Schedule(max_iter=1, exaggeration_iter=0)
    return lambda: minimise(objective, y, schedule, lambda *_: False)


def check(p: Similarities, condensed: np.ndarray, y: torch.Tensor) -> None:
    """AssertionError when scikit-learn's gradient at q = 2 is another one."""
    _, theirs = _t_sne._kl_divergence(y.numpy().ravel(), condensed, 1.0, len(y), 2)
    ours = Objective(p, 2.0, "native").gradient(y, 1.0).numpy().ravel()
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 1e-6, f"relative difference of the gradients {error:.2e}"


def run(points: int, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    x = data(points)
    wide = dense_similarities(x)
    condensed = squareform(wide.values.numpy(), checks=False)
    y = torch.randn(points, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 10
    check(wide, condensed, y)
    narrow, sparse = Similarities(wide.values.float()), neighbour_similarities(x)
    calls = {f"sklearn q={q:g}": sklearn_step(condensed, y.numpy(), q) for q in (2.0, 1.5)}
    for q in (1.0, 1.5, 2.0, 2.5):
        calls[f"qsne q={q:g}"] = our_step(narrow, y.float(), q)
    calls["qsne_f64 q=2"] = our_step(wide, y, 2.0)
    calls["neighbours q=2"] = our_step(sparse, y.float(), 2.0)
    timings = measure(calls, rounds=rounds, warmup=1, clock=clock)
    rows = []
    for name, timing in timings.items():
        peer = "sklearn q=2" if name.endswith("q=2") else "sklearn q=1.5"
        ratio = round(timings[peer].p50 / timing.p50, 2)
        rows.append({"points": points, "variant": name, **timing.milliseconds(), "over_sklearn": ratio})
    return rows


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(points: int) -> dict[str, Any]:
    x = data(points).numpy()
    QSNE(max_iter=1, random_state=0, method="neighbors").fit(x[:500])  # libraries loaded, pools made
    before = peak_mebibytes()
    QSNE(max_iter=2, random_state=0).fit(x)
    return {
        "points": points,
        "variant": "fit, nearest neighbours",
        "peak_rss_growth_mib": round(peak_mebibytes() - before, 1),
        "data_mib": round(x.nbytes / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--points", type=int, nargs="+", default=[1797, 10_000])
    parser.add_argument("--memory", type=int, default=0, help="measure the memory of a fit of so many points instead")
    parser.add_argument("--busy", action="store_true", help="for a machine in use: one thread, processor time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1 if options.busy else options.threads)
    clock = time.process_time if options.busy else time.perf_counter
    about = {"clock": "processor" if options.busy else "wall", **environment()}
    if options.memory:
        row = memory(options.memory)
        print(table([row], list(row)))
        print(write_csv(options.out or RESULTS / "qsne_memory.csv", [{**row, **about}]))
        return
    rows: list[dict[str, Any]] = []
    for points in options.points:
        block = run(points, options.rounds, clock)
        print(table(block, COLUMNS), flush=True)
        rows += [{**row, **about} for row in block]
    print(write_csv(options.out or RESULTS / "qsne_cpu.csv", rows))


if __name__ == "__main__":
    main()
