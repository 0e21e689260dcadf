"""The losses, forward + backward, beside plain torch, torch.compile and liger-kernel.

Variants: our implementations of the function, ``value_and_grad`` of each (loss and gradient in one pass, without
autograd), ``eager`` (the torch formula operation by operation: the baseline), ``compiled`` (torch.compile of it) and
``liger`` (liger-kernel's KL divergence on the log-softmax of the student; needs a CUDA device and liger-kernel).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.bench.case import BASELINE, BOTH, OURS, PEER, Case, Problem, Values, Variant, differentiated
from plantops.bench.live import implementations
from plantops.bench.record import dtype_name
from plantops.bench.runner import Settings
from plantops.bench.work import Work, counted, rows_of_logits
from plantops.functional import distillation_loss, kl_div_logits, kl_div_logits_value_and_grad

SHAPE_HELP = "[kl_div_logits:|distillation_loss:]ROWSxCLASSES"
KL, DISTILLATION = "kl_div_logits", "distillation_loss"
ALPHA, TEMPERATURE, SMOOTHING = 0.9, 4.0, 0.1
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
"""Relative L2 of loss and gradient."""
PEER_TOLERANCES = {**TOLERANCES, "bfloat16": 1e-1, "float16": 2e-2}
"""Eager torch rounds softmax and log-softmax to half before it takes their difference."""

Size = tuple[str, int, int, str]
QUICK: list[Size] = [(op, 128, 100, "float32") for op in (KL, DISTILLATION)] + [(KL, 1024, 1000, "float32")]
SMALL: list[Size] = [
    (op, rows, classes, dtype)
    for op in (KL, DISTILLATION)
    for rows, classes in ((5, 3), (33, 10), (4, 1000), (2, 4099))
    for dtype in ("float32", "bfloat16")
]
ON_CPU: list[Size] = [
    (op, rows, classes, dtype)
    for op in (KL, DISTILLATION)
    for rows, classes, dtype in (
        (128, 10, "float32"),
        (128, 100, "float32"),
        (4096, 1000, "float32"),
        (128, 32768, "float32"),
        (4096, 1000, "bfloat16"),
    )
]
ON_CUDA: list[Size] = [
    *((KL, 16384, classes, dtype) for dtype in ("bfloat16", "float32") for classes in (4096, 32768)),
    (KL, 16384, 131072, "bfloat16"),
    *((KL, rows, classes, "float32") for rows in (128, 1024, 4096) for classes in (10, 100, 1000)),
    (DISTILLATION, 16384, 32768, "bfloat16"),
    *((DISTILLATION, rows, classes, "float32") for rows in (128, 4096) for classes in (10, 100, 1000)),
]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Logits:
    """The tensors of one case."""

    student: Tensor
    teacher: Tensor
    target: Tensor


def cases(settings: Settings) -> list[Case]:
    """The cases of the settings; a dtype that is asked for stands for every case's own."""
    full = ON_CUDA if settings.device.type == "cuda" else ON_CPU
    sizes = {"quick": QUICK, "small": SMALL, "full": full}[settings.size]
    if settings.shapes:
        sizes = [_own(text) for text in settings.shapes]
    if settings.dtype is not None:
        sizes = list(dict.fromkeys((*size[:3], dtype_name(settings.dtype)) for size in sizes))
    return [_case(settings, *size) for size in sizes]


def _own(text: str) -> Size:
    """The size of a `--shape`.

    Raises:
        ValueError: it does not have the form of `SHAPE_HELP`.
    """
    found = re.fullmatch(rf"(?:({KL}|{DISTILLATION}):)?(\d+)x(\d+)", text)
    if not found or int(found[2]) < 1 or int(found[3]) < 2:
        raise ValueError(f"--shape of losses must be {SHAPE_HELP} with at least 2 classes, got {text!r}")
    return found[1] or KL, int(found[2]), int(found[3]), "float32"


def _case(settings: Settings, op: str, rows: int, classes: int, dtype: str) -> Case:
    group = "wide rows" if classes > 1000 else "rows to 1000"
    columns = {"op": op, "group": group, "rows": rows, "classes": classes, "dtype": dtype}
    return Case(columns, lambda: prepare(settings, op, rows, classes, getattr(torch, dtype)), dtype)


def prepare(settings: Settings, op: str, rows: int, classes: int, dtype: torch.dtype) -> Problem:
    """The tensors of one case and everything that computes it."""
    generator = torch.Generator(settings.device).manual_seed(0)
    student, teacher = (
        torch.randn(rows, classes, generator=generator, device=settings.device).to(dtype) for _ in range(2)
    )
    target = torch.randint(classes, (rows,), generator=generator, device=settings.device)
    logits = Logits(student.requires_grad_(), teacher, target)
    formula = torch_kl if op == KL else torch_distillation
    live, refused = implementations(op, settings)
    variants = [_variant(impl, OURS, our_loss(op, impl), logits) for impl in live]
    if op == KL:
        fused, also_refused = implementations("kl_div_logits_value_and_grad", settings)
        variants += [_value_and_grad(impl, logits) for impl in fused]
        refused |= {f"value_and_grad {impl}": why for impl, why in also_refused.items()}
    variants.append(_variant("eager", BASELINE, formula, logits, count=True))
    if settings.compiled:
        variants.append(_variant("compiled", PEER, torch.compile(formula, fullgraph=True), logits))
    if op == KL and settings.device.type == "cuda":
        if importlib.util.find_spec("liger_kernel") is None:
            refused["liger"] = "liger-kernel is not installed"
        else:
            variants.append(_variant("liger", PEER, liger_kl(), logits))
    name = dtype_name(dtype)
    return Problem(variants, lambda: exact(op, logits), TOLERANCES[name], PEER_TOLERANCES[name], refused)


def _variant(name: str, role: str, loss: Loss, logits: Logits, *, count: bool = False) -> Variant:
    """A loss that autograd differentiates.

    Least traffic: the forward reads student and teacher; the backward reads both and writes the gradient. `count`:
    instead, what the loss moves operation by operation.
    """
    student, teacher, target = logits.student, logits.teacher, logits.target

    def forward(source: Tensor) -> Tensor:
        return loss(source, teacher, target)

    if count:
        shapes = [tensor.detach().to("meta") for tensor in (student, teacher, target)]
        source = shapes[0].requires_grad_()
        passes = [counted(lambda: torch.autograd.grad(loss(*shapes), source))]
    else:
        passes = [_passes(logits, 2), _passes(logits, 3)]
    return differentiated(name, role, forward, student, [student], passes={BOTH: passes}, parameters=[teacher, target])


def _value_and_grad(impl: str, logits: Logits) -> Variant:
    detached = logits.student.detach()

    def call() -> Values:
        return kl_div_logits_value_and_grad(detached, logits.teacher, impl=impl)

    return Variant(f"value_and_grad {impl}", OURS, call, call, {BOTH: [_passes(logits, 3)]})


def _passes(logits: Logits, count: int) -> Work:
    rows, classes = logits.student.shape
    return Work(0.0, rows_of_logits(rows, classes, [logits.student.itemsize] * count))


def torch_kl(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """The two-line formula."""
    return F.kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="batchmean")


def torch_distillation(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """The usual mixture of divergence at a temperature and cross entropy."""
    p_t = F.softmax(teacher / TEMPERATURE, -1)
    divergence = F.kl_div(F.log_softmax(student / TEMPERATURE, -1), p_t, reduction="batchmean")
    cross_entropy = F.cross_entropy(student, target, label_smoothing=SMOOTHING)
    return ALPHA * TEMPERATURE**2 * divergence + (1 - ALPHA) * cross_entropy


def our_loss(op: str, impl: str) -> Loss:
    """The function of plantops with one `impl`."""
    if op == KL:
        return lambda student, teacher, target: kl_div_logits(student, teacher, impl=impl)
    return lambda student, teacher, target: distillation_loss(
        student, teacher, target, alpha=ALPHA, temperature=TEMPERATURE, label_smoothing=SMOOTHING, impl=impl
    )


def liger_kl() -> Loss:
    """liger-kernel's loss takes log-probabilities of the student and probabilities of the teacher."""
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean")
    return lambda student, teacher, target: divergence(F.log_softmax(student, -1), F.softmax(teacher, -1))


def exact(op: str, logits: Logits, elements: int = 1 << 26) -> Values:
    """Loss and gradient in float64, in closed form and a block of rows at a time: the widest would not fit at once."""
    rows, classes = logits.student.shape
    blocks = zip(*(t.detach().split(max(1, elements // classes)) for t in vars(logits).values()), strict=True)
    loss = torch.zeros((), dtype=torch.float64, device=logits.student.device)
    gradients = []
    for student, teacher, target in blocks:
        value, gradient = _exact_rows(op, student.double(), teacher.double(), target)
        loss += value / rows
        gradients.append(gradient / rows)
    return loss, torch.cat(gradients)


def _exact_rows(op: str, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the rows' losses and its gradient."""
    temperature = 1.0 if op == KL else TEMPERATURE
    log_p_s, log_p_t = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    divergence = (log_p_t.exp() * (log_p_t - log_p_s)).sum()
    gradient = log_p_s.exp() - log_p_t.exp()
    if op == KL:
        return divergence, gradient
    classes = student.shape[-1]
    wanted = F.one_hot(target, classes).double() * (1 - SMOOTHING) + SMOOTHING / classes
    log_p = student.log_softmax(-1)
    loss = ALPHA * TEMPERATURE**2 * divergence - (1 - ALPHA) * (wanted * log_p).sum()
    return loss, ALPHA * TEMPERATURE * gradient + (1 - ALPHA) * (log_p.exp() - wanted)
