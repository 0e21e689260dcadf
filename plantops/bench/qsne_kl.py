"""The objective of q-SNE and its gradient, beside full matrices in plain PyTorch and scikit-learn's t-SNE.

Variants: our implementations (value and gradient), ``eager`` (autograd through full [points, points] matrices: the
baseline), ``compiled`` (torch.compile of it) and, at q = 2 on a CPU, ``sklearn`` (the exact objective of its t-SNE, a
private function of that package). Work is counted for what all have in common: a kernel value and a force per pair of
points, and P read once.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

import torch
from torch import Tensor

from plantops.bench.case import BASELINE, BOTH, OURS, PEER, Case, Problem, Values, Variant, differentiated
from plantops.bench.live import implementations
from plantops.bench.record import dtype_name
from plantops.bench.runner import Settings
from plantops.bench.work import Work
from plantops.functional import qsne_kl, qsne_kl_value_and_grad

SHAPE_HELP = "POINTS,Q with 1 <= Q < 3, as in 2000,2.5"
DIMENSIONS = 2
TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 2e-2, "float16": 5e-3}
QUICK = [(500, 2.0), (500, 1.5)]
FULL = [(points, q) for points in (1797, 5000) for q in (1.0, 1.5, 2.0, 2.5)]


def cases(settings: Settings) -> list[Case]:
    """Numbers of points and q."""
    sizes = {"quick": QUICK, "small": [(17, 2.0), (33, 1.0)], "full": FULL}[settings.size]
    if settings.shapes:
        sizes = [_own(text) for text in settings.shapes]
    return [_case(settings, points, q) for points, q in sizes]


def _own(text: str) -> tuple[int, float]:
    found = re.fullmatch(r"(\d+),(\d+(?:\.\d+)?)", text)
    if not found or int(found[1]) < 2 or not 1 <= float(found[2]) < 3:
        raise ValueError(f"--shape of qsne_kl must be {SHAPE_HELP}, got {text!r}")
    return int(found[1]), float(found[2])


def _case(settings: Settings, points: int, q: float) -> Case:
    dtype = settings.dtype or torch.float32
    columns = {"op": "qsne_kl", "group": "dense", "points": points, "q": q, "dtype": dtype_name(dtype)}
    return Case(columns, lambda: prepare(settings, points, q, dtype), dtype_name(dtype))


def prepare(settings: Settings, points: int, q: float, dtype: torch.dtype) -> Problem:
    """Similarities, an embedding, and everything that computes the objective of both."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(points, points, generator=generator, dtype=torch.float64).square()
    p = (p + p.T).fill_diagonal_(0.0)
    p = (p / p.sum()).to(settings.device, dtype)
    y = torch.randn(points, DIMENSIONS, generator=generator, dtype=torch.float64)
    embedding = (10 * y).to(settings.device, dtype).requires_grad_()
    work = [Work(0.0, float(p.nbytes))]
    live, refused = implementations("qsne_kl", settings)
    variants = [_ours(impl, embedding, p, q, work) for impl in live]
    formula = _formula(p, q)

    def plain(name: str, role: str, forward: Callable[[Tensor], Tensor]) -> Variant:
        return differentiated(name, role, forward, embedding, [embedding], passes={BOTH: work}, parameters=[p])

    variants.append(plain("eager", BASELINE, formula))
    if settings.compiled:
        variants.append(plain("compiled", PEER, torch.compile(formula)))
    if q == 2.0 and settings.device.type == "cpu":
        if importlib.util.find_spec("sklearn") is None:
            refused["sklearn"] = "scikit-learn is not installed"
        else:
            variants.append(_sklearn(embedding, p, work))

    def exact() -> Values:
        wide = embedding.detach().double().requires_grad_()
        value = _formula(p.double(), q)(wide)
        return value.detach(), *torch.autograd.grad(value, wide)

    return Problem(variants, exact, TOLERANCES[dtype_name(dtype)], refused=refused)


def _formula(p: Tensor, q: float) -> Callable[[Tensor], Tensor]:
    """KL(P || Q) through full matrices, as the formula stands."""
    entropy = torch.xlogy(p, p).sum()
    off_diagonal = 1.0 - torch.eye(len(p), dtype=p.dtype, device=p.device)

    def forward(y: Tensor) -> Tensor:
        difference = y.unsqueeze(1) - y.unsqueeze(0)
        squared = difference.square().sum(-1)
        if q == 1.0:
            surprise = squared / 2.0
        else:
            surprise = torch.log1p(squared * ((q - 1.0) / (3.0 - q))) / (q - 1.0)
        partition = (torch.exp(-surprise) * off_diagonal).sum()
        return entropy + (p * surprise).sum() + p.sum() * partition.log()

    return forward


def _ours(impl: str, embedding: Tensor, p: Tensor, q: float, work: list[Work]) -> Variant:
    """Value and gradient in one pass; what autograd would keep is counted on the differentiable function."""
    detached = embedding.detach()

    def call() -> Values:
        return qsne_kl_value_and_grad(detached, p, q, impl=impl)

    def forward(source: Tensor) -> Tensor:
        return qsne_kl(source, p, q, impl=impl)

    return Variant(impl, OURS, call, call, {BOTH: work}, None, forward, embedding, [p])


def _sklearn(embedding: Tensor, p: Tensor, work: list[Work]) -> Variant:
    """Value and gradient of scikit-learn's exact t-SNE; it wants P's upper triangle, in float64."""
    from sklearn.manifold import _t_sne

    points = len(p)
    rows, columns = torch.triu_indices(points, points, 1)
    condensed = p.double()[rows, columns].numpy()
    flat = embedding.detach().double().numpy().ravel()

    def call() -> Values:
        value, gradient = _t_sne._kl_divergence(flat, condensed, 1.0, points, DIMENSIONS)
        return torch.tensor(value), torch.from_numpy(gradient).reshape(points, DIMENSIONS)

    return Variant("sklearn", PEER, call, call, {BOTH: work})
