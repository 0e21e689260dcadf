"""The ops as functions, with the names and the argument order of `torch.nn.functional`.

Forward-mode derivatives (`torch.func.jvp`, `torch.autograd.forward_ad`) and the transforms of `torch.func` (`grad`,
`vmap`, `jacrev`, `hessian`, ...) go through all of them, nested in any order: there "auto", "aten" and "reference" are
the op's formula in torch's own functions, and "native" and "triton" raise NotImplementedError. In plain autograd a
second derivative raises NotImplementedError naming the op. A number such as a temperature may change between compiled
calls: torch.compile compiles once more, not once a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops import _autocast, _checks, _eager, _numbers, _transforms
from plantops.ops import distillation_loss as _distillation
from plantops.ops import group_sparsity as _sparsity
from plantops.ops import kl_div_logits as _kl
from plantops.ops import planted_conv2d as _conv
from plantops.ops import planted_linear as _linear
from plantops.ops import qsne_kl as _qsne
from plantops.ops._registry import check_impl


def kl_div_logits(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    *,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Kullback-Leibler divergence of the student's class distribution from the teacher's, from logits.

    For each row ``sum_c p_T,c (log p_T,c - log p_S,c)`` with ``p_T = softmax(teacher / T)`` and
    ``p_S = softmax(student / T)``; the same as
    ``F.kl_div(F.log_softmax(student / T, -1), F.softmax(teacher / T, -1), reduction=reduction)``. There is no
    hidden factor T^2: the gradient to the student is ``(p_S - p_T) / T`` times the reduction's factor.
    A class at minus infinity in both adds 0 (the torch formula gives NaN).

    Args:
        student: logits ``[*, C]``, C from 2 to 262,144; float64, float32, bfloat16 or float16, any strides.
        teacher: logits of the same shape and device, without gradient; its dtype and layout may differ.
        temperature: T > 0.
        reduction: as in `torch.nn.functional.kl_div`: "none" (the pointwise terms ``[*, C]``), "sum", "mean" (over
            all elements), "batchmean" (the sum divided by ``shape[0]``).
        mask: bool ``[*]``, True where a row counts, as in `torch.masked`; default: every row does. The loss is that of
            ``student[mask], teacher[mask]``: another row adds nothing and gets no gradient, whatever its logits, "none"
            gives zeros there, "mean" and "batchmean" divide by the elements and rows that count (NaN where none does).
            Costs a copy of both.
        impl: "auto", "reference", "aten", "native" or "triton".

    Returns:
        The loss in float32 (float64 for a float64 student); computed in that dtype. The gradient has the student's
        dtype. Double backward raises NotImplementedError.

    Raises:
        ValueError: shapes, devices, class count, temperature, reduction, impl, or a teacher that requires grad.
        TypeError: an input that is no floating tensor.
        NotImplementedError: an `impl` asked for by name that cannot compute here.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531; as the loss of planting: Mitsuno et al., arXiv 2011.02390.
    """
    if mask is None and (loss := _eager.kl_div_logits(student, teacher, temperature, reduction, impl)) is not None:
        return loss
    _checks.check_logits(student, teacher, temperature)
    _checks.check_choice("reduction", reduction, _kl.REDUCTIONS)
    check_impl(impl)
    if mask is not None:
        _checks.check_mask(mask, student)
        # Two rows of zeros are one distribution: their terms and gradients are 0.
        student, teacher = (torch.where(mask.unsqueeze(-1), logits, 0) for logits in (student, teacher))
        if reduction == "none":
            return kl_div_logits(student, teacher, temperature, "none", impl=impl)
        loss = kl_div_logits(student, teacher, temperature, "sum", impl=impl)
        if reduction == "sum":
            return loss
        return loss / (mask.sum() * (student.shape[-1] if reduction == "mean" else 1))
    if _transforms.involved(student, teacher):
        _transforms.check_impl("kl_div_logits", impl)
        return _kl.reference.forward(student, teacher, temperature, reduction)[0]
    factors = _numbers.settled(temperature)
    if torch.is_grad_enabled() and student.requires_grad:
        return _kl.KLDivLogits.apply(student, teacher, *factors, reduction, impl)
    return _kl.forward_op(student, teacher, *factors, reduction, impl)[0]


def kl_div_logits_value_and_grad(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: str = "batchmean", *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The value of `kl_div_logits` and its gradient to the student in one pass, without autograd.

    For training loops that call ``logits.backward(gradient)`` themselves. Arguments, formula and errors are those of
    `kl_div_logits` without a mask; the gradient is for an upstream gradient of one (of ones with ``reduction="none"``).

    Returns:
        ``(loss, gradient)``: the loss as in `kl_div_logits`, the gradient with the student's shape and dtype. Neither
        is attached to a graph.
    """
    both = _eager.kl_div_logits_value_and_grad(student, teacher, temperature, reduction, impl)
    if both is not None:
        return both
    with torch.no_grad():
        _checks.check_logits(student, teacher, temperature)
        _checks.check_choice("reduction", reduction, _kl.REDUCTIONS)
        check_impl(impl)
        if _transforms.involved(student, teacher):
            _transforms.check_impl("kl_div_logits_value_and_grad", impl)
            return _kl.reference.value_and_grad(student, teacher, temperature, reduction)
        return _kl.value_and_grad_op(student, teacher, *_numbers.settled(temperature), reduction, impl)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float,
    temperature: float,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Knowledge distillation with hard labels: ``alpha T^2 KL + (1 - alpha) CE``, from logits.

    For each row ``alpha T^2 sum_c p_T,c (log p_T,c - log p_S,c) + (1 - alpha) CE(student, target)``, where the first
    term uses ``softmax(. / T)`` as in `kl_div_logits` and the second is `torch.nn.functional.cross_entropy` at
    temperature 1. Every factor is explicit: with ``alpha=1, temperature=1`` it is ``kl_div_logits`` with "batchmean"
    for a two-dimensional student.

    Args:
        student: logits ``[*, C]``, C from 2 to 262,144; float64, float32, bfloat16 or float16, any strides.
        teacher: logits of the same shape and device, without gradient; its dtype and layout may differ.
        target: class indices ``[*]`` of any integer type, in ``[0, C)`` or `ignore_index`; checked on the CPU, by a
            device assert on a GPU.
        alpha: the share of distillation, in [0, 1].
        temperature: T > 0.
        label_smoothing: in [0, 1], as in `torch.nn.functional.cross_entropy`.
        ignore_index: a row with this target adds to neither term and gets no gradient, as in
            `torch.nn.functional.cross_entropy`: "none" gives 0 there, "mean" divides by the rows that are left (NaN
            with a gradient of 0 where none is, as in torch). None: no target is one, which saves a few small kernels
            on a GPU and in compiled code, where targets are not looked at beforehand.
        reduction: "mean" or "sum" over the rows, or "none" for one value a row ``[*]``.
        impl: "auto", "reference", "aten", "native" or "triton".

    Returns:
        The loss in float32 (float64 for a float64 student); computed in that dtype. The gradient has the student's
        dtype. Double backward raises NotImplementedError.

    Raises:
        ValueError: shapes, devices, class count, a target out of range, alpha, temperature, label_smoothing,
            reduction, impl, or a teacher that requires grad.
        TypeError: logits that are no floating tensor, a target that is no tensor of integers.
        NotImplementedError: an `impl` asked for by name that cannot compute here.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    loss = _eager.distillation_loss(
        student, teacher, target, alpha, temperature, label_smoothing, ignore_index, reduction, impl
    )
    if loss is not None:
        return loss
    _checks.check_logits(student, teacher, temperature)
    target = _checks.class_indices(target, student)
    _checks.check_unit("alpha", alpha)
    _checks.check_unit("label_smoothing", label_smoothing)
    _checks.check_choice("reduction", reduction, _distillation.REDUCTIONS)
    check_impl(impl)
    if ignore_index is not None:
        _checks.check_integer("ignore_index", ignore_index)
        ignored = target == ignore_index
        if _transforms.may_hold(ignored):
            rows = distillation_loss(
                student, teacher, target.masked_fill(ignored, 0), alpha=alpha, temperature=temperature,
                label_smoothing=label_smoothing, ignore_index=None, reduction="none", impl=impl,
            ).masked_fill(ignored, 0.0)  # fmt: skip
            if reduction == "none":
                return rows
            return rows.sum() if reduction == "sum" else rows.sum() / (~ignored).sum()
    if _transforms.involved(student, teacher):
        _transforms.check_impl("distillation_loss", impl)
        return _distillation.reference.forward(
            student, teacher, target, alpha, temperature, label_smoothing, reduction
        )[0]
    config = (*_numbers.settled(alpha, temperature, label_smoothing), reduction, impl)
    if torch.is_grad_enabled() and student.requires_grad:
        return _distillation.DistillationLoss.apply(student, teacher, target, *config)
    return _distillation.forward_op(student, teacher, target, *config)[0]


def planted_conv2d(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None = None,
    weight_in: Tensor | None = None,
    bias: Tensor | None = None,
    bias_out: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    in_start: int | None = None,
    addend: Tensor | None = None,
    activation: str = "none",
    max_pool: int = 1,
    input_grad: str = "full",
    impl: str = "auto",
) -> Tensor:
    """A convolution of a frozen trunk with planted filters and planted input slices that train.

    With the input's channels split into trunk and planted ones, ``x = (x_trunk, x_planted)``,

        old filters: ``conv(x_trunk, weight) + conv(x_planted, weight_in) + bias``
        new filters: ``conv(x, weight_out) + bias_out``

    and the output is ``max_pool(activation(concatenation of both + addend))``. It equals `F.conv2d` with all blocks
    concatenated, and so do the gradients, of which only those to what trains are computed.

    Args:
        input: ``[N, F_in + P_in, H, W]``; contiguous, channels_last or a slice of either. float64, float32, bfloat16
            or float16; all tensors share one dtype and device.
        weight: ``[F_out, F_in / groups, kH, kW]``, frozen. F_in = 0 and F_out = 0 are legal.
        weight_out: new filters ``[P_out, F_in + P_in, kH, kW]``, over the input's channels in the input's order.
        weight_in: new input slices of the old filters, ``[F_out, P_in, kH, kW]``.
        bias: ``[F_out]``, frozen.
        bias_out: ``[P_out]``.
        stride, padding, dilation: an integer or a pair; padding also "valid" or "same", as in `F.conv2d`.
        groups: the trunk's groups. With more than one, k new groups are planted: ``P_out = k F_out / groups``,
            ``P_in = k F_in / groups``, ``weight_out [P_out, F_in / groups, kH, kW]``, no ``weight_in``.
        in_start: the planted input channels are ``[in_start, in_start + P_in)``; default F_in, behind the trunk's.
        addend: added before the activation, ``[N, F_out + P_out, H', W']`` (before pooling); differentiable.
        activation: "none" or "relu" (relu'(0) = 0).
        max_pool: m from 1 to 15: kernel and stride m, floor, no padding. The first maximum of a window in row-major
            order gets the gradient; NaN propagates.
        input_grad: "full"; "planted": only the planted input channels get a gradient, the others' is zero by
            definition; "none".
        impl: "auto", "reference", "aten", "native" or "triton".

    Returns:
        ``[N, F_out + P_out, H' // m, W' // m]``, in channels_last when the input is; rounded once to its dtype.
        Under autocast everything is cast as `F.conv2d` does. Double backward raises NotImplementedError.

    Raises:
        ValueError: a shape, a device, a range, or a weight or bias that requires a gradient.
        TypeError: dtypes that differ or are no floating ones.
        NotImplementedError: an `impl` asked for by name that cannot compute here.

    Source: the candidates of channel planting, Mitsuno et al., arXiv 2011.02390, section III.
    """
    output = _eager.planted_conv2d(
        input, weight, weight_out, weight_in, bias, bias_out, stride, padding, dilation, groups, in_start, addend,
        activation, max_pool, input_grad, impl,
    )  # fmt: skip
    if output is not None:
        return output
    _checks.check_float_tensor("input", input)
    device = input.device.type
    if _autocast.active(device):
        cast, frozen = _autocast.cast, _autocast.cast_frozen
        with _autocast.disabled(device):
            return planted_conv2d(
                cast(input, device), frozen(weight, device), cast(weight_out, device), cast(weight_in, device),
                frozen(bias, device), cast(bias_out, device), stride, padding, dilation, groups, in_start=in_start,
                addend=cast(addend, device), activation=activation, max_pool=max_pool, input_grad=input_grad, impl=impl,
            )  # fmt: skip
    _checks.check_alike(
        {"input": input, "weight": weight}, weight_out=weight_out, weight_in=weight_in, bias=bias, bias_out=bias_out,
        addend=addend,
    )  # fmt: skip
    _checks.check_frozen("weight", weight)
    _checks.check_frozen("bias", bias)
    _checks.check_choice("activation", activation, _conv.ACTIVATIONS)
    _checks.check_choice("input_grad", input_grad, _conv.INPUT_GRADS)
    check_impl(impl)
    stride, dilation = _conv.pair("stride", stride), _conv.pair("dilation", dilation)
    _conv.check_geometry(stride, dilation, groups, max_pool)
    start = _conv.check_blocks(input, weight, weight_out, weight_in, bias, bias_out, groups, in_start)
    input, padding = _conv.resolve_padding(input, padding, weight.shape[2:], stride, dilation)
    _conv.check_result(input, weight, weight_out, stride, padding, dilation, addend, max_pool)
    geometry = (stride, padding, dilation, groups)
    if _transforms.involved(input, weight, weight_out, weight_in, bias, bias_out, addend):
        _transforms.check_impl("planted_conv2d", impl)
        return _conv.composed(
            input, weight, weight_out, weight_in, bias, bias_out, *geometry, start, addend, activation, max_pool,
            input_grad,
        )  # fmt: skip
    if torch.is_grad_enabled():
        wants_input = input.requires_grad and input_grad != "none"
        needs = (wants_input, *(t is not None and t.requires_grad for t in (weight_out, weight_in, bias_out, addend)))
        if any(needs):
            return _conv.PlantedConv2d.apply(
                input, weight, weight_out, weight_in, bias, bias_out, addend, needs, *geometry, start, activation,
                max_pool, input_grad, impl,
            )  # fmt: skip
        if input.requires_grad:  # a gradient that nobody wants
            input = input.detach()
    return _conv.forward_op(
        input, weight, weight_out, weight_in, bias, bias_out, *geometry, start, addend, activation, max_pool, False,
        impl,
    )[0]  # fmt: skip


def planted_linear(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None = None,
    weight_in: Tensor | None = None,
    bias: Tensor | None = None,
    bias_out: Tensor | None = None,
    *,
    in_start: int | None = None,
    addend: Tensor | None = None,
    activation: str = "none",
    input_grad: str = "full",
    impl: str = "auto",
) -> Tensor:
    """A linear layer of a frozen trunk with planted rows and planted input slices that train.

    With the input's features split into trunk and planted ones, ``x = (x_trunk, x_planted)``,

        old rows: ``x_trunk weight^T + x_planted weight_in^T + bias``
        new rows: ``x weight_out^T + bias_out``

    and the output is ``activation(concatenation of both + addend)``.

    Args:
        input: ``[*, F_in + P_in]``, any leading dimensions and strides. float64, float32, bfloat16 or float16; all
            tensors share one dtype and device.
        weight: ``[F_out, F_in]``, frozen. F_in = 0 and F_out = 0 are legal.
        weight_out: new rows ``[P_out, F_in + P_in]``, over the input's features in the input's order.
        weight_in: new input slices of the old rows, ``[F_out, P_in]``.
        bias: ``[F_out]``, frozen.
        bias_out: ``[P_out]``.
        in_start: the planted input features are ``[in_start, in_start + P_in)``; default F_in, behind the trunk's.
        addend: added before the activation, ``[*, F_out + P_out]``; differentiable.
        activation: "none" or "relu" (relu'(0) = 0).
        input_grad: "full"; "planted": only the planted input features get a gradient, the others' is zero by
            definition; "none".
        impl: "auto", "reference", "aten", "native" or "triton".

    Returns:
        ``[*, F_out + P_out]``, contiguous, rounded once to its dtype. Under autocast everything is cast as `F.linear`
        does. Double backward raises NotImplementedError.

    Raises:
        ValueError: a shape, a device, a range, or a weight or bias that requires a gradient.
        TypeError: dtypes that differ or are no floating ones.
        NotImplementedError: an `impl` asked for by name that cannot compute here.

    Source: the candidates of channel planting, Mitsuno et al., arXiv 2011.02390, section III.
    """
    output = _eager.planted_linear(
        input, weight, weight_out, weight_in, bias, bias_out, in_start, addend, activation, input_grad, impl
    )
    if output is not None:
        return output
    _checks.check_float_tensor("input", input)
    device = input.device.type
    if _autocast.active(device):
        cast, frozen = _autocast.cast, _autocast.cast_frozen
        with _autocast.disabled(device):
            return planted_linear(
                cast(input, device), frozen(weight, device), cast(weight_out, device), cast(weight_in, device),
                frozen(bias, device), cast(bias_out, device), in_start=in_start,
                addend=cast(addend, device), activation=activation, input_grad=input_grad, impl=impl,
            )  # fmt: skip
    _checks.check_alike(
        {"input": input, "weight": weight}, weight_out=weight_out, weight_in=weight_in, bias=bias, bias_out=bias_out,
        addend=addend,
    )  # fmt: skip
    _checks.check_frozen("weight", weight)
    _checks.check_frozen("bias", bias)
    _checks.check_choice("activation", activation, _linear.ACTIVATIONS)
    _checks.check_choice("input_grad", input_grad, _linear.INPUT_GRADS)
    check_impl(impl)
    start = _linear.check_blocks(input, weight, weight_out, weight_in, bias, bias_out, in_start, addend)
    if _transforms.involved(input, weight, weight_out, weight_in, bias, bias_out, addend):
        _transforms.check_impl("planted_linear", impl)
        return _linear.composed(
            input, weight, weight_out, weight_in, bias, bias_out, start, addend, activation, input_grad
        )
    if torch.is_grad_enabled():
        wants_input = input.requires_grad and input_grad != "none"
        needs = (wants_input, *(t is not None and t.requires_grad for t in (weight_out, weight_in, bias_out, addend)))
        if any(needs):
            return _linear.PlantedLinear.apply(
                input, weight, weight_out, weight_in, bias, bias_out, addend, needs, start, activation, input_grad,
                impl,
            )  # fmt: skip
        if input.requires_grad:  # a gradient that nobody wants
            input = input.detach()
    return _linear.forward_op(
        input, weight, weight_out, weight_in, bias, bias_out, start, addend, activation, impl
    )  # fmt: skip


def group_sparsity(
    weights: Sequence[Tensor],
    penalty: str,
    groups: str = "feature",
    *,
    strength: float = 1.0,
    l1: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Hierarchical group sparse regulariser of convolution weights: ``strength R + l1 sum |W|``, summed over layers.

    For a weight ``W[o, i, k]`` let ``a = sum_k |W|`` and ``b = (sum_k W^2)^(1/2)``. With ``groups="feature"`` the outer
    sum runs over input channels i and the inner over o, as written here; with "neuron" o and i change places.

    =============================================== ============================ ======
    penalty                                         R                            degree
    =============================================== ============================ ======
    "l1"                                            sum abs W                    1
    "group_lasso"                                   sum_i (sum_o b^2)^(1/2)      1
    "hierarchical_square_rooted_group_lasso"        sum_i (sum_o b)^(1/2)        1/2
    "hierarchical_squared_group_lasso"              sum_i (sum_o b)^2            2
    "exclusive_sparsity"                            sum_i (sum_o a)^2            2
    "hierarchical_square_rooted_exclusive_sparsity" sum_i (sum_o a^2)^(1/2)      1
    "hierarchical_squared_exclusive_sparsity"       sum_i (sum_o a^2)^2          4
    "group_l1_2"                                    sum_i (sum_o a)^(1/2)        1/2
    "hierarchical_square_rooted_group_l1_2"         sum_i (sum_o a^(1/2))^(1/2)  1/4
    "hierarchical_squared_group_l1_2"               sum_i (sum_o a^(1/2))^2      1
    =============================================== ============================ ======

    There is no factor for the size of a group. Where a kernel or a group is all zero (or its norm underflows) the slope
    of a root is infinite; its gradient there is 0.

    Args:
        weights: one tensor ``[out, in, *kernel]`` a layer, of one dtype (float64, float32, bfloat16, float16) and
            device; contiguous or channels_last in place, other layouts through a copy. A grouped convolution's weight
            is taken as it stands (``in`` = input channels of one group).
        penalty: a name of the table.
        groups: "feature" (input channels) or "neuron" (output channels).
        strength, l1: factors >= 0 of R and of the sum of absolute values; both terms share one pass over the weights.
        impl: "auto", "reference", "aten", "native" or "triton".

    Returns:
        A number, float32 (float64 for float64 weights); computed in that dtype. Between forward and backward one number
        a kernel (``[out, in]`` of each layer) is kept. Double backward raises NotImplementedError.

    Raises:
        ValueError: no weights, fewer than two dimensions, devices, penalty, groups, strength, l1, impl.
        TypeError: a weight that is no floating tensor, or of another dtype than the first.
        NotImplementedError: an `impl` asked for by name that cannot compute here.

    Source: Mitsuno, Miyao, Kurita, "Hierarchical Group Sparse Regularization for Deep Convolutional Neural Networks",
    arXiv 2004.04394.
    """
    _sparsity.check_arguments(weights, penalty, groups, strength, l1)
    check_impl(impl)
    if _transforms.involved(*weights):
        _transforms.check_impl("group_sparsity", impl)
        return _sparsity.reference.forward(weights, penalty, groups, strength, l1)[0]
    config = (penalty, groups, *_numbers.settled(strength, l1), impl)
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return _sparsity.GroupSparsity.apply(*config, *weights)
    return _sparsity.forward_op(list(weights), *config)[0]


def group_sparsity_value_and_grad(
    weights: Sequence[Tensor],
    penalty: str,
    groups: str = "feature",
    *,
    strength: float = 1.0,
    l1: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, list[Tensor]]:
    """The value of `group_sparsity` and its gradients in one pass over the weights, without autograd.

    Arguments, formula and errors are those of `group_sparsity`; the gradients are for an upstream gradient of one.

    Returns:
        ``(value, gradients)``: the value as in `group_sparsity`, the gradients with the shapes, dtypes and layouts of
        the weights. None is attached to a graph.
    """
    with torch.no_grad():
        _sparsity.check_arguments(weights, penalty, groups, strength, l1)
        check_impl(impl)
        if _transforms.involved(*weights):
            _transforms.check_impl("group_sparsity_value_and_grad", impl)
            return _sparsity.reference.value_and_grad(weights, penalty, groups, strength, l1)
        return _sparsity.value_and_grad_op(list(weights), penalty, groups, *_numbers.settled(strength, l1), impl)


def qsne_kl(embedding: Tensor, p: Tensor, q: float = 2.0, *, exaggeration: float = 1.0, impl: str = "auto") -> Tensor:
    """The objective of q-SNE: ``KL(P || Q)`` between given similarities P and those Q of an embedding.

    With the distance ``d`` of two embedded points and ``1 <= q < 3``, ``s = 1 + (q-1)/(3-q) d^2`` and ``Q`` is
    proportional to ``s^(-1/(q-1))`` over all pairs of different points. q = 2 is t-SNE; q = 1 is the Gaussian
    ``exp(-d^2/2)`` (SNE), computed as such. The gradient is exact:
    ``4/(3-q) sum_j (p_ij - q_ij) (y_i - y_j) / s_ij``.

    Args:
        embedding: ``[points, dimensions]``, 1 to 3 dimensions; float64 or float32 (bfloat16 and float16 are computed
            in float32, through ATen).
        p: ``[points, points]``, dense or sparse CSR, symmetric, not negative, sum 1; the dtype and device of
            `embedding`, without gradient. Its diagonal adds nothing.
        q: the kernel, in [1, 3). It is the Student kernel with ``(3-q)/(q-1)`` degrees of freedom.
        exaggeration: factor ``a`` on the attraction: the value is ``a sum p log(p/u) + log sum u``, u the kernel before
            it is normalised; KL(P || Q) at 1.
        impl: "auto", "reference", "aten", "native" or "triton".

    Returns:
        A number in the embedding's dtype. Memory beyond P is O(points) ("reference": O(points^2)). The forward computes
        the gradient too and keeps it for backward. Double backward raises NotImplementedError. Points so far apart that
        every kernel value underflows do not repel each other.

    Raises:
        ValueError: shapes, layout, device, q, exaggeration, impl, or a `p` that requires grad.
        TypeError: an input that is no floating tensor, or dtypes that differ.
        NotImplementedError: an `impl` asked for by name that cannot compute here.

    Source: Abe, Miyao, Kurita, "q-SNE: Visualizing Data using q-Gaussian Distributed Stochastic Neighbor Embedding",
    arXiv 2012.00999.
    """
    _qsne.check_arguments(embedding, p, q, exaggeration)
    check_impl(impl)
    values, crow, col = _qsne.parts_of(p)
    if _transforms.involved(embedding, values):
        _transforms.check_impl("qsne_kl", impl)
        cross, log_z, _ = _qsne.reference.forward(embedding, values, crow, col, q, exaggeration, True)
        return _qsne.objective(values, cross, log_z, exaggeration, embedding.dtype)
    kernel, factor = _numbers.settled(q, exaggeration)
    if torch.is_grad_enabled() and embedding.requires_grad:
        return _qsne.QSNEKL.apply(embedding, values, crow, col, kernel, factor, impl)
    cross, log_z, _ = _qsne.qsne_kl_op(embedding, values, crow, col, kernel, factor, True, impl)
    return _qsne.objective(values, cross, log_z, exaggeration, embedding.dtype)


def qsne_kl_value_and_grad(
    embedding: Tensor, p: Tensor, q: float = 2.0, *, exaggeration: float = 1.0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The value of `qsne_kl` and its gradient to the embedding, without autograd.

    Arguments, formula and errors are those of `qsne_kl`. Returns ``(value, gradient)``, the gradient with the
    embedding's shape and dtype; neither is attached to a graph.
    """
    with torch.no_grad():
        _qsne.check_arguments(embedding, p, q, exaggeration)
        check_impl(impl)
        values, crow, col = _qsne.parts_of(p)
        if _transforms.involved(embedding, values):
            _transforms.check_impl("qsne_kl_value_and_grad", impl)
            cross, log_z, grad = _qsne.reference.forward(embedding, values, crow, col, q, exaggeration, True)
        else:
            factors = _numbers.settled(q, exaggeration)
            cross, log_z, grad = _qsne.qsne_kl_op(embedding, values, crow, col, *factors, True, impl)
        return _qsne.objective(values, cross, log_z, exaggeration, embedding.dtype), grad
