"""kl_div_logits in Triton: an online log-sum-exp forward, one pass backward, and both in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._checks import compute_dtype
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
from plantops.ops.kl_div_logits.reference import scale


@triton.jit
def _divergence_block(s, t, inverse, at_s, at_t, log_s, log_t):
    """p_T (log p_T - log p_S) for a block of classes, from both maxima and logarithms of sums."""
    log_p_t = (t - at_t[:, None]) * inverse - log_t[:, None]
    log_p_s = (s - at_s[:, None]) * inverse - log_s[:, None]
    p = tl.exp(log_p_t)
    return tl.where(p == 0, 0.0, p * (log_p_t - log_p_s))


@triton.jit
def value_kernel(
    student_ptr, teacher_ptr, loss_ptr, lse_s_ptr, lse_t_ptr, grad_ptr, count, classes, s_row, s_class, t_row, t_class,
    inverse: tl.float64, upstream: tl.float64, POINTWISE: tl.constexpr, GRADIENT: tl.constexpr, COMPUTE: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Divergences of ROWS rows: their sum, or with POINTWISE every term. With GRADIENT the gradient for a constant
    upstream one instead of the two log-sum-exps."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, at = rows < count, tl.minimum(rows, count - 1)
    inverse = tl.full((), inverse, COMPUTE)
    max_s, max_t, sum_s, sum_t, terms = start(ROWS, BLOCK, COMPUTE)
    for first in range(0, classes, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s = load_block(student_ptr, at, s_row, s_class, classes, columns, COMPUTE, WIDE)
        t = load_block(teacher_ptr, at, t_row, t_class, classes, columns, COMPUTE, WIDE)
        max_s, max_t, sum_s, sum_t, terms = add_block(s, t, inverse, max_s, max_t, sum_s, sum_t, terms)
    total_s, total_t = tl.sum(sum_s, 1), tl.sum(sum_t, 1)
    log_s, log_t = tl.log(total_s), tl.log(total_t)
    at_s, at_t = finite(max_s), finite(max_t)
    if not GRADIENT:
        tl.store(lse_s_ptr + rows, max_s * inverse + log_s, mask=live)
        tl.store(lse_t_ptr + rows, max_t * inverse + log_t, mask=live)
    if not POINTWISE:
        loss = tl.sum(terms, 1) / total_t - log_t + log_s
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(live, loss, 0.0), 0))
    if POINTWISE or GRADIENT:
        factor = tl.full((), upstream, COMPUTE) * inverse
        for first in range(0, classes, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            s = load_block(student_ptr, at, s_row, s_class, classes, columns, COMPUTE, WIDE)
            t = load_block(teacher_ptr, at, t_row, t_class, classes, columns, COMPUTE, WIDE)
            out = rows.to(tl.int64)[:, None] * classes + columns[None, :]
            mask = live[:, None] & (columns < classes)[None, :]
            if POINTWISE:
                tl.store(loss_ptr + out, _divergence_block(s, t, inverse, at_s, at_t, log_s, log_t), mask=mask)
            if GRADIENT:
                p_s = tl.exp((s - at_s[:, None]) * inverse) / total_s[:, None]
                p_t = tl.exp((t - at_t[:, None]) * inverse) / total_t[:, None]
                tl.store(grad_ptr + out, rounded(factor * (p_s - p_t), grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _normalisers(
    grad_ptr, student_ptr, teacher_ptr, rows, lse_s, lse_t, g_row, g_class, s_row, s_class, t_row, t_class, classes,
    inverse, POINTWISE: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the classes of exp(z_S - lse_S), of exp(z_T - lse_T), and with POINTWISE of the latter times grad."""
    sum_s, sum_t = tl.zeros((ROWS, BLOCK), COMPUTE), tl.zeros((ROWS, BLOCK), COMPUTE)
    weighted = tl.zeros((ROWS, BLOCK), COMPUTE)
    for first in range(0, classes, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s = load_block(student_ptr, rows, s_row, s_class, classes, columns, COMPUTE, WIDE)
        t = load_block(teacher_ptr, rows, t_row, t_class, classes, columns, COMPUTE, WIDE)
        p_t = tl.exp((t - (lse_t / inverse)[:, None]) * inverse)
        sum_s += tl.exp((s - (lse_s / inverse)[:, None]) * inverse)
        sum_t += p_t
        if POINTWISE:
            grad = load_block(grad_ptr, rows, g_row, g_class, classes, columns, COMPUTE, WIDE)
            weighted += tl.where(columns[None, :] < classes, grad * p_t, 0.0)
    return tl.sum(sum_s, 1), tl.sum(sum_t, 1), tl.sum(weighted, 1)


@triton.jit
def backward_kernel(
    grad_ptr, student_ptr, teacher_ptr, lse_s_ptr, lse_t_ptr, out_ptr, count, classes, g_row, g_class, s_row, s_class,
    t_row, t_class, inverse: tl.float64, scale: tl.float64, POINTWISE: tl.constexpr, NORMALISE: tl.constexpr,
    COMPUTE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient to ROWS rows of the student; see reference.backward.

    Rows that stay in the cache (NORMALISE) are normalised again, others when their log-sum-exp is a large number.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, at = rows < count, tl.minimum(rows, count - 1)
    inverse = tl.full((), inverse, COMPUTE)
    lse_s, lse_t = tl.load(lse_s_ptr + at), tl.load(lse_t_ptr + at)
    norm_s, norm_t = tl.full((ROWS,), 1.0, COMPUTE), tl.full((ROWS,), 1.0, COMPUTE)
    weighted = norm_s
    far = tl.max(tl.maximum(tl.abs(lse_s), tl.abs(lse_t)), 0) > EXACT_LSE
    if POINTWISE or NORMALISE:
        far = far | True
    if far:
        norm_s, norm_t, weighted = _normalisers(
            grad_ptr, student_ptr, teacher_ptr, at, lse_s, lse_t, g_row, g_class, s_row, s_class, t_row, t_class,
            classes, inverse, POINTWISE, COMPUTE, WIDE, ROWS, BLOCK,
        )  # fmt: skip
    factor = tl.full((), scale, COMPUTE) * inverse
    if not POINTWISE:
        factor *= tl.load(grad_ptr)
    for first in range(0, classes, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        s = load_block(student_ptr, at, s_row, s_class, classes, columns, COMPUTE, WIDE)
        t = load_block(teacher_ptr, at, t_row, t_class, classes, columns, COMPUTE, WIDE)
        p_s = tl.exp((s - (lse_s / inverse)[:, None]) * inverse) / norm_s[:, None]
        p_t = tl.exp((t - (lse_t / inverse)[:, None]) * inverse) / norm_t[:, None]
        if POINTWISE:
            grad = load_block(grad_ptr, at, g_row, g_class, classes, columns, COMPUTE, WIDE)
            result = p_s * (weighted / norm_t)[:, None] - grad * p_t
        else:
            result = p_s - p_t
        mask = live[:, None] & (columns < classes)[None, :]
        out = rows.to(tl.int64)[:, None] * classes + columns[None, :]
        tl.store(out_ptr + out, rounded(factor * result, out_ptr.dtype.element_ty), mask=mask)


def _value(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, gradient: bool, config: RowConfig | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, both log-sum-exps (not written when the gradient is wanted), gradient."""
    dtype, pointwise = compute_dtype(student.dtype), reduction == "none"
    s, t = matrix(student), matrix(teacher)
    count, classes = s.shape
    lse_s = student.new_empty(student.shape[:-1], dtype=dtype)
    lse_t = torch.empty_like(lse_s)
    grad = torch.empty(student.shape if gradient else 0, dtype=student.dtype, device=student.device)
    factor = scale(student.shape, reduction)
    config = config or row_config(count, classes, dtype)
    programs = _triton.cdiv(count, config.rows)
    loss = torch.empty(student.shape if pointwise else programs, dtype=dtype, device=student.device)
    _triton.launch(
        value_kernel, (programs,), s, t, loss, lse_s, lse_t, grad, count, classes, *s.stride(), *t.stride(),
        1.0 / temperature, 1.0 if pointwise else factor, POINTWISE=pointwise, GRADIENT=gradient,
        COMPUTE=triton_dtype(dtype), WIDE=_triton.needs_int64(s, t), ROWS=config.rows, BLOCK=config.block,
        num_warps=config.num_warps, max_registers=most_registers(dtype),
    )  # fmt: skip
    if not pointwise:
        loss = fixed_order_sum(loss, factor)
    return loss, lse_s, lse_t, grad


def forward(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, config: RowConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """loss, log-sum-exp of student / T, log-sum-exp of teacher / T."""
    return _value(student, teacher, temperature, reduction, False, config)[:3]


def value_and_grad(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, config: RowConfig | None = None
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient for an upstream gradient of one."""
    loss, _, _, grad = _value(student, teacher, temperature, reduction, True, config)
    return loss, grad


def backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    lse_student: Tensor,
    lse_teacher: Tensor,
    temperature: float,
    reduction: str,
    config: RowConfig | None = None,
) -> Tensor:
    """The gradient to the student's logits (see reference.backward)."""
    dtype, pointwise = compute_dtype(student.dtype), reduction == "none"
    s, t = matrix(student), matrix(teacher)
    g = matrix(grad) if pointwise else grad
    count, classes = s.shape
    config = config or row_config(count, classes, dtype)
    out = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    _triton.launch(
        backward_kernel, (_triton.cdiv(count, config.rows),), g, s, t, lse_student.contiguous(),
        lse_teacher.contiguous(), out, count, classes, *(g.stride() if pointwise else (0, 0)), *s.stride(),
        *t.stride(), 1.0 / temperature, 1.0 if pointwise else scale(student.shape, reduction), POINTWISE=pointwise,
        NORMALISE=config.whole(classes), COMPUTE=triton_dtype(dtype), WIDE=_triton.needs_int64(s, t, g),
        ROWS=config.rows, BLOCK=config.block, num_warps=config.num_warps, max_registers=most_registers(dtype),
    )  # fmt: skip
    return out
