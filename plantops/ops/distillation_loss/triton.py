"""distillation_loss in Triton: both terms and three log-sum-exps from one pass over the rows, one pass backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._checks import check_target_range, compute_dtype
from plantops.ops._row_kernels import (
    EXACT_LSE,
    RowConfig,
    add_block,
    finite,
    fixed_order_sum,
    load_block,
    matrix,
    most_registers,
    row_config,
    start,
    triton_dtype,
)
from plantops.ops._triton_language import rounded
from plantops.ops.distillation_loss.reference import scale


@triton.jit
def forward_kernel(
    student_ptr, teacher_ptr, target_ptr, loss_ptr, lse_s_t_ptr, lse_t_t_ptr, lse_s_ptr, count, classes, s_row,
    s_class, t_row, t_class, inverse: tl.float64, soft: tl.float64, hard: tl.float64, smoothing: tl.float64,
    SMOOTH: tl.constexpr, ROWWISE: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """soft * KL + hard * cross entropy of ROWS rows: each, or with ROWWISE=False their sum.

    With d = student's logit - its maximum so far, the cross entropy needs sums of exp(d) and, smoothed, of d.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, at = rows < count, tl.minimum(rows, count - 1)
    inverse = tl.full((), inverse, COMPUTE)
    max_s, max_t, sum_s, sum_t, terms = start(ROWS, BLOCK, COMPUTE)
    plain, spread = tl.zeros((ROWS, BLOCK), COMPUTE), tl.zeros((ROWS, BLOCK), COMPUTE)
    for first in range(0, classes, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s = load_block(student_ptr, at, s_row, s_class, classes, columns, COMPUTE, WIDE)
        t = load_block(teacher_ptr, at, t_row, t_class, classes, columns, COMPUTE, WIDE)
        before = max_s
        max_s, max_t, sum_s, sum_t, terms = add_block(s, t, inverse, max_s, max_t, sum_s, sum_t, terms)
        d = s - finite(max_s)[:, None]
        plain = plain * tl.exp(before - finite(max_s))[:, None] + tl.exp(d)
        if SMOOTH:
            seen = first // BLOCK  # classes that a lane has added up so far
            spread += (finite(before) - finite(max_s))[:, None] * seen + tl.where(columns[None, :] < classes, d, 0.0)
    total_s, total_t = tl.sum(sum_s, 1), tl.sum(sum_t, 1)
    log_s, log_t, log_plain = tl.log(total_s), tl.log(total_t), tl.log(tl.sum(plain, 1))
    tl.store(lse_s_t_ptr + rows, max_s * inverse + log_s, mask=live)
    tl.store(lse_t_t_ptr + rows, max_t * inverse + log_t, mask=live)
    tl.store(lse_s_ptr + rows, max_s + log_plain, mask=live)

    target = tl.load(target_ptr + at)
    inside = (target >= 0) & (target < classes)
    wanted = student_ptr + at.to(tl.int64) * s_row + tl.where(inside, target, 0) * s_class
    cross_entropy = log_plain - (tl.load(wanted).to(COMPUTE) - finite(max_s))
    if SMOOTH:
        share = tl.full((), smoothing, COMPUTE)
        mean = tl.sum(spread, 1) / classes
        cross_entropy = (1 - share) * cross_entropy + share * (log_plain - mean)
    divergence = tl.sum(terms, 1) / total_t - log_t + log_s
    loss = tl.full((), soft, COMPUTE) * divergence + tl.full((), hard, COMPUTE) * cross_entropy
    if ROWWISE:
        tl.store(loss_ptr + rows, loss, mask=live)
    else:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(live, loss, 0.0), 0))


@triton.jit
def _normalisers(
    student_ptr, teacher_ptr, rows, lse_s_t, lse_t_t, lse_s, s_row, s_class, t_row, t_class, classes, inverse,
    COMPUTE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the classes of exp(logit - its log-sum-exp): student / T, teacher / T, student."""
    sum_s_t, sum_t_t = tl.zeros((ROWS, BLOCK), COMPUTE), tl.zeros((ROWS, BLOCK), COMPUTE)
    sum_s = tl.zeros((ROWS, BLOCK), COMPUTE)
    for first in range(0, classes, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s = load_block(student_ptr, rows, s_row, s_class, classes, columns, COMPUTE, WIDE)
        t = load_block(teacher_ptr, rows, t_row, t_class, classes, columns, COMPUTE, WIDE)
        sum_s_t += tl.exp((s - (lse_s_t / inverse)[:, None]) * inverse)
        sum_t_t += tl.exp((t - (lse_t_t / inverse)[:, None]) * inverse)
        sum_s += tl.exp(s - lse_s[:, None])
    return tl.sum(sum_s_t, 1), tl.sum(sum_t_t, 1), tl.sum(sum_s, 1)


@triton.jit
def backward_kernel(
    grad_ptr, student_ptr, teacher_ptr, target_ptr, lse_s_t_ptr, lse_t_t_ptr, lse_s_ptr, out_ptr, count, classes,
    g_row, s_row, s_class, t_row, t_class, inverse: tl.float64, scale: tl.float64, soft: tl.float64, hard: tl.float64,
    smoothing: tl.float64, NORMALISE: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """grad scale (soft (p_S(T) - p_T(T)) + hard (p_S - y)) for ROWS rows; y is the smoothed target.

    Rows that stay in the cache (NORMALISE) are normalised again, others when a log-sum-exp is a large number.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, at = rows < count, tl.minimum(rows, count - 1)
    inverse = tl.full((), inverse, COMPUTE)
    lse_s_t, lse_t_t, lse_s = tl.load(lse_s_t_ptr + at), tl.load(lse_t_t_ptr + at), tl.load(lse_s_ptr + at)
    norm_s_t, norm_t_t = tl.full((ROWS,), 1.0, COMPUTE), tl.full((ROWS,), 1.0, COMPUTE)
    norm_s = norm_s_t
    largest = tl.maximum(tl.maximum(tl.abs(lse_s_t), tl.abs(lse_t_t)), tl.abs(lse_s))
    far = tl.max(largest, 0) > EXACT_LSE
    if NORMALISE:
        far = far | True
    if far:
        norm_s_t, norm_t_t, norm_s = _normalisers(
            student_ptr, teacher_ptr, at, lse_s_t, lse_t_t, lse_s, s_row, s_class, t_row, t_class, classes, inverse,
            COMPUTE, WIDE, ROWS, BLOCK,
        )  # fmt: skip
    upstream = tl.load(grad_ptr + at.to(tl.int64) * g_row) * tl.full((), scale, COMPUTE)
    soft, hard = tl.full((), soft, COMPUTE), tl.full((), hard, COMPUTE)
    everywhere, at_target = tl.full((), smoothing, COMPUTE) / classes, 1 - tl.full((), smoothing, COMPUTE)
    target = tl.load(target_ptr + at)
    for first in range(0, classes, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s = load_block(student_ptr, at, s_row, s_class, classes, columns, COMPUTE, WIDE)
        t = load_block(teacher_ptr, at, t_row, t_class, classes, columns, COMPUTE, WIDE)
        p_s_t = tl.exp((s - (lse_s_t / inverse)[:, None]) * inverse) / norm_s_t[:, None]
        p_t_t = tl.exp((t - (lse_t_t / inverse)[:, None]) * inverse) / norm_t_t[:, None]
        p_s = tl.exp(s - lse_s[:, None]) / norm_s[:, None]
        y = everywhere + tl.where(columns[None, :] == target[:, None], at_target, 0.0)
        result = upstream[:, None] * (soft * (p_s_t - p_t_t) + hard * (p_s - y))
        mask = live[:, None] & (columns < classes)[None, :]
        out = rows.to(tl.int64)[:, None] * classes + columns[None, :]
        tl.store(out_ptr + out, rounded(result, out_ptr.dtype.element_ty), mask=mask)


def forward(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    alpha: float,
    temperature: float,
    label_smoothing: float,
    reduction: str,
    config: RowConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, log-sum-exp of student / T, of teacher / T, of the student."""
    check_target_range(target, student.shape[-1])
    dtype, rowwise = compute_dtype(student.dtype), reduction == "none"
    s, t = matrix(student), matrix(teacher)
    count, classes = s.shape
    lse_s_t, lse_t_t, lse_s = (student.new_empty(target.shape, dtype=dtype) for _ in range(3))
    config = config or row_config(count, classes, dtype)
    programs = _triton.cdiv(count, config.rows)
    loss = student.new_empty(target.shape if rowwise else programs, dtype=dtype)
    _triton.launch(
        forward_kernel, (programs,), s, t, target.contiguous(), loss, lse_s_t, lse_t_t, lse_s, count,
        classes, *s.stride(), *t.stride(),
        1.0 / temperature, alpha * temperature**2, 1.0 - alpha, label_smoothing, SMOOTH=label_smoothing != 0,
        ROWWISE=rowwise, COMPUTE=triton_dtype(dtype), WIDE=_triton.needs_int64(s, t), ROWS=config.rows,
        BLOCK=config.block, num_warps=config.num_warps, max_registers=most_registers(dtype),
    )  # fmt: skip
    if not rowwise:
        loss = fixed_order_sum(loss, scale(count, reduction))
    return loss, lse_s_t, lse_t_t, lse_s


def backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    lse_student_t: Tensor,
    lse_teacher_t: Tensor,
    lse_student: Tensor,
    alpha: float,
    temperature: float,
    label_smoothing: float,
    reduction: str,
    config: RowConfig | None = None,
) -> Tensor:
    """The gradient to the student's logits (see reference.backward)."""
    dtype = compute_dtype(student.dtype)
    s, t = matrix(student), matrix(teacher)
    count, classes = s.shape
    g = grad.reshape(-1) if reduction == "none" else grad
    config = config or row_config(count, classes, dtype)
    out = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    _triton.launch(
        backward_kernel, (_triton.cdiv(count, config.rows),), g, s, t, target.contiguous(), lse_student_t.contiguous(),
        lse_teacher_t.contiguous(), lse_student.contiguous(), out, count, classes,
        g.stride(0) if reduction == "none" else 0, *s.stride(), *t.stride(), 1.0 / temperature,
        1.0 if reduction == "none" else scale(count, reduction), alpha * temperature, 1.0 - alpha, label_smoothing,
        NORMALISE=config.whole(classes), COMPUTE=triton_dtype(dtype), WIDE=_triton.needs_int64(s, t), ROWS=config.rows,
        BLOCK=config.block, num_warps=config.num_warps, max_registers=most_registers(dtype),
    )  # fmt: skip
    return out
