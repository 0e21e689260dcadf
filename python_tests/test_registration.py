"""Every op of torch.ops.plantops passes opcheck, over dtypes, layouts and options."""

import pytest
import torch

import plantops.functional  # noqa: F401  (defines the ops)
from plantops.ops import _registry

FLOATS = (torch.float32, torch.float64, torch.bfloat16)


def logits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def kl_samples(dtype: torch.dtype):
    s, t = logits(dtype, 5, 3, 2).transpose(0, 2), logits(dtype, 2, 5, 3).transpose(1, 2)
    for temperature, reduction in ((1.0, "batchmean"), (2.5, "none"), (1.0, "sum")):
        yield "kl_div_logits", (s, t, temperature, reduction)
        yield "kl_div_logits_value_and_grad", (s, t, temperature, reduction)
        loss, lse_s, lse_t = torch.ops.plantops.kl_div_logits(s, t, temperature, reduction, "reference")
        yield "kl_div_logits_backward", (torch.ones_like(loss), s, t, lse_s, lse_t, temperature, reduction)


def distillation_samples(dtype: torch.dtype):
    s, t = logits(dtype, 5, 3, 2).transpose(0, 2), logits(dtype, 2, 3, 5)
    target = torch.randint(5, (3, 2)).T
    for temperature, reduction in ((1.0, "mean"), (2.5, "none"), (4.0, "sum")):
        config = (0.7, temperature, 0.1, reduction)
        yield "distillation_loss", (s, t, target, *config)
        loss, *sums = torch.ops.plantops.distillation_loss(s, t, target, *config, "reference")
        yield "distillation_loss_backward", (torch.ones_like(loss), s, t, target, *sums, *config)


def conv_samples(dtype: torch.dtype):
    layouts = (torch.contiguous_format, torch.channels_last)
    for layout in layouts:
        x = logits(dtype, 2, 5, 6, 7).contiguous(memory_format=layout)
        w, w_out, w_in = logits(dtype, 4, 3, 3, 3), logits(dtype, 2, 5, 3, 3), logits(dtype, 4, 2, 3, 3)
        b, b_out = logits(dtype, 4), logits(dtype, 2)
        for pool, activation in ((1, "none"), (1, "relu"), (2, "relu")):
            geometry = ([1, 1], [1, 1], [1, 1], 1, 3)
            addend = logits(dtype, 2, 6, 6, 7)
            forward = (x, w, w_out, w_in, b, b_out, *geometry, addend, activation, pool, pool > 1)
            yield "planted_conv2d", forward
            output, indices = torch.ops.plantops.planted_conv2d(*forward, "reference")
            yield (
                "planted_conv2d_backward",
                (torch.randn_like(output), x, w, w_out, w_in, output if activation == "relu" else None,
                 indices if pool > 1 else None, [6, 7], [6, 7], *geometry, 2, activation, pool, "full", [True] * 5),
            )  # fmt: skip


def linear_samples(dtype: torch.dtype):
    x, w, w_out, w_in = logits(dtype, 3, 5), logits(dtype, 4, 3), logits(dtype, 2, 5), logits(dtype, 4, 2)
    b, b_out = logits(dtype, 4), logits(dtype, 2)
    for activation in ("none", "relu"):
        forward = (x, w, w_out, w_in, b, b_out, 3, logits(dtype, 3, 6), activation)
        yield "planted_linear", forward
        output = torch.ops.plantops.planted_linear(*forward, "reference")
        saved = output if activation == "relu" else None
        grad = torch.randn_like(output)
        yield "planted_linear_backward", (grad, x, w, w_out, w_in, saved, 3, activation, "full", [True] * 5)


def sparsity_samples(dtype: torch.dtype):
    last = logits(dtype, 3, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    weights = [logits(dtype, 5, 3, 3, 3), last, logits(dtype, 4, 6)]
    for penalty in ("group_lasso", "hierarchical_squared_exclusive_sparsity"):
        for groups in ("feature", "neuron"):
            yield "group_sparsity", (weights, penalty, groups, 0.5, 0.1)
            yield "group_sparsity_value_and_grad", (weights, penalty, groups, 0.5, 0.1)
        value, coefficients = torch.ops.plantops.group_sparsity(weights, penalty, "feature", 0.5, 0.1, "reference")
        yield "group_sparsity_backward", (torch.ones_like(value), weights, coefficients, penalty, 0.1)


def qsne_samples(dtype: torch.dtype):
    p = torch.rand(7, 7).to(dtype)
    crow, col = torch.tensor([0, 2, 2, 3, 4, 4, 6, 7]), torch.tensor([1, 3, 0, 6, 2, 5, 1])
    for dimensions, q, value in ((1, 1.0, True), (2, 2.0, False), (3, 2.5, True)):
        y = logits(dtype, 7, dimensions)
        yield "qsne_kl", (y, p, None, None, q, 1.0, value)
        yield "qsne_kl", (y, p.flatten()[:7].contiguous(), crow, col, q, 12.0, value)


def samples(dtype: torch.dtype):
    for make in (kl_samples, distillation_samples, conv_samples, linear_samples, sparsity_samples, qsne_samples):
        yield from make(dtype)


@pytest.mark.parametrize("impl", ["reference", "aten", "native", "triton"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("stem", list(_registry.stems()))
def test_opcheck(stem: str, dtype: torch.dtype, impl: str):
    if not _registry.live(stem, impl, "cpu"):
        pytest.skip(f"{stem}: {impl} is not live here: {_registry.why_not(stem, impl, 'cpu')}")
    torch.manual_seed(0)
    ours = [arguments for name, arguments in samples(dtype) if name == stem]
    assert ours, f"{stem} has no sample"
    for arguments in ours:
        try:
            getattr(torch.ops.plantops, stem).default(*arguments, impl)
        except NotImplementedError as error:
            pytest.skip(str(error))
        torch.library.opcheck(getattr(torch.ops.plantops, stem).default, (*arguments, impl))


def test_every_op_is_registered_through_the_registry():
    schemas = torch._C._jit_get_all_schemas()
    named = {s.name.removeprefix("plantops::") for s in schemas if s.name.startswith("plantops::")}
    assert named == set(_registry.stems())
