"""What the common tests do not reach in Triton: many tiles, split pixels, 64-bit offsets, what is started at all."""

import pytest
import torch
from conv_cases import Case, Problem
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._precision import of_convolutions
from plantops.ops.planted_conv2d import reference
from plantops.ops.planted_conv2d.triton_config import PROGRAMS, STEPS, Config, splits, tile

pytest.importorskip("triton")
if _triton.why_not("cpu"):
    pytest.skip(_triton.why_not("cpu"), allow_module_level=True)

from plantops.ops.planted_conv2d import triton as ours

F64 = torch.float64
# Two tiles and a rest of pixels, filters and input channels.
MANY = Case(fi=17, pi=3, fo=14, po=5, start=6, kernel=(1, 2), batch=1, size=(5, 6))
SMALL = Config(block_m=16, block_n=16, block_k=16, num_warps=4, num_stages=1, split=1)


def arguments(case: Case, dtype: torch.dtype = F64) -> tuple:
    """Of forward and of backward; the latter without mask and what comes from the former."""
    problem = Problem.of(case, dtype)
    t = {name: tensor.detach() for name, tensor in problem.trained.items()}
    geometry = ((case.stride,) * 2, (case.padding,) * 2, (case.dilation,) * 2, case.groups, problem.start)
    forward = (
        t["input"], problem.weight, t["weight_out"], t["weight_in"], problem.bias, t["bias_out"], *geometry,
        t.get("addend"), case.activation, case.max_pool, case.max_pool > 1,
    )  # fmt: skip
    return problem, forward, geometry


def backward(module, case: Case, problem: Problem, forward: tuple, mask: list[bool], **config) -> tuple[Tensor, ...]:
    output, positions = reference.forward(*forward)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(output.dtype)
    size = tuple(problem.joined(before="addend").shape[2:])
    mode = config.pop("input_grad", "full")
    return module.backward(
        upstream, forward[0], *forward[1:4], output if case.activation == "relu" else None,
        positions if case.max_pool > 1 else None, case.size, size, *forward[6:11], case.pi, case.activation,
        case.max_pool, mode, mask, **config,
    )  # fmt: skip


@pytest.mark.parametrize("epilogue", [{}, {"activation": "relu", "max_pool": 2}], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last slice"])
def test_many_tiles(layout: str, epilogue: dict):
    case = Case(**{**vars(MANY), **epilogue, "layout": layout})
    problem, forward, _ = arguments(case)
    (y, positions), (exact, wanted) = ours.forward(*forward, config=SMALL), reference.forward(*forward)
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-13)
    if positions.numel():
        above = exact > 0  # where all of a window are below zero, no position is looked at
        assert torch.equal(positions[above], wanted[above])
    everything = [True] * 5
    wanted = backward(reference, case, problem, forward, everything)
    for a, b in zip(backward(ours, case, problem, forward, everything, config=SMALL), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("split", [2, 3, 50])
def test_split_pixels(split: int):
    """Shares of the pixels, the last one uneven, added in a fixed order; more shares than pixels make fewer."""
    weights = [False, True, True, True, False]
    config = Config(**{**vars(SMALL), "split": split})
    case = Case(**{**vars(MANY), "size": (7, 8), "activation": "relu"})
    problem, forward, _ = arguments(case)
    with _triton.recording() as launches:
        backward(ours, case, problem, forward, weights, config=config)
    steps = -(-9 * 9 // SMALL.block_k)
    parts = {launch.grid[1] for launch in launches if launch.kernel.__name__ == "weight_kernel"}
    assert parts == {min(split, steps)}
    exact = backward(reference, case, problem, forward, weights)
    first = backward(ours, case, problem, forward, weights, config=config)
    second = backward(ours, case, problem, forward, weights, config=config)
    for a, b, again in zip(first, exact, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert torch.equal(a, again)


@pytest.mark.usefixtures("few_tiles")
def test_offsets_of_64_bits_give_the_same(monkeypatch):
    case = Case(activation="relu", max_pool=2, addend=True, layout="channels_last")
    problem, forward, _ = arguments(case, torch.float32)

    def everything() -> list[Tensor]:
        return [*ours.forward(*forward), *backward(ours, case, problem, forward, [True] * 5)]

    narrow = everything()
    monkeypatch.setattr(_triton, "INT32_ELEMENTS", 8)
    with _triton.recording() as launches:
        everything()
    assert {str(launch.constants["INDEX"]) for launch in launches if "INDEX" in launch.constants} == {"int64"}
    assert all(torch.equal(a, b) for a, b in zip(narrow, everything(), strict=True))


@pytest.mark.parametrize(
    ("mask", "mode", "started"),
    [
        ([False, True, False, True, False], "full", ["weight", "reduce"]),
        ([False, False, False, True, False], "full", ["weight", "reduce"]),
        ([False, False, True, False, False], "full", ["weight", "reduce"]),
        ([True, False, False, False, False], "planted", ["pack", "input"]),
        ([False, False, False, False, True], "full", ["addend"]),
        ([True, True, True, True, False], "planted", ["weight", "reduce", "weight", "reduce", "pack", "input"]),
    ],
)
def test_only_what_is_asked_for_is_started(mask: list[bool], mode: str, started: list[str]):
    case = Case(activation="relu", max_pool=2)
    problem, forward, _ = arguments(case)
    with _triton.recording() as launches:
        backward(ours, case, problem, forward, mask, input_grad=mode)
    assert [launch.kernel.__name__.removesuffix("_kernel") for launch in launches] == started
    for launch in launches:
        if launch.kernel.__name__ == "input_kernel":
            assert launch.args[4].shape[1] == case.pi  # the planted channels, and no others
        if launch.kernel.__name__ == "weight_kernel":
            assert launch.constants["WEIGHT"] == (mask[1] or mask[2])


def test_tiles_follow_the_shape():
    half = tile(torch.bfloat16, "ieee", 10_000, 64, 64)
    assert (half.block_m, half.block_n, half.block_k) == (128, 64, 32)
    widths = {8: 16, 20: 32, 72: 128, 136: 64, 288: 128}  # filters: all in one tile, or few left over
    assert {n: tile(torch.bfloat16, "ieee", 10_000, n, 64, vector=8).block_n for n in widths} == widths
    assert tile(torch.bfloat16, "ieee", 10_000, 72, 64, vector=1).block_n == 64
    assert tile(torch.bfloat16, "ieee", 10_000, 4, 8).block_n == 16
    gathered = tile(torch.bfloat16, "ieee", 10_000, 72, 64, gathered=True)
    assert gathered.block_m < half.block_m
    exact = tile(torch.float32, "ieee", 10_000, 64, 64)
    assert exact.block_m * exact.block_n < half.block_m * half.block_n
    pixels = 512 * 32 * 32
    parts = splits(half, 576, 8, pixels)
    assert parts == PROGRAMS // 5
    assert splits(half, 576, 8, half.block_k * STEPS) == 1
    assert splits(Config(**{**vars(half), "split": 7}), 576, 8, pixels) == 7


def test_float32_follows_torchs_flag(monkeypatch):
    assert of_convolutions(torch.bfloat16) == "ieee"  # it has no choice
    flags = torch.backends.cudnn.conv
    before = flags.fp32_precision
    try:
        for value in ("tf32", "ieee"):
            flags.fp32_precision = value
            assert of_convolutions(torch.float32) == value
    finally:
        flags.fp32_precision = before


def test_groups_are_refused_with_the_reason():
    problem = Problem.of(Case(fi=6, fo=4, groups=2, pi=3, po=2, start=None), torch.float32)
    with pytest.raises(NotImplementedError, match=r"groups=2.*impl='auto'"):
        problem.planted("triton")
