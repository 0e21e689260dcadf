"""Work counted by formula and by looking at what PyTorch does; ceilings; the device's launches."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from plantops.bench.ceilings import measure_ceilings
from plantops.bench.gpu import count_launches
from plantops.bench.work import Ceilings, Convolution, Work, counted, floor_seconds, rows_of_logits, total

SHAPE = Convolution(batch=2, trunk_in=6, planted_in=2, trunk_out=5, planted_out=3, kernel=3, size=7, itemsize=4)


def test_the_masked_convolution_is_what_torch_counts():
    x = torch.randn(2, 8, 7, 7, requires_grad=True)
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = F.conv2d(x, weight, padding=1)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y, [x, weight], torch.ones_like(y))
    assert SHAPE.forward().flops == forward.get_total_flops()
    assert SHAPE.masked_backward("full").flops == backward.get_total_flops()
    assert SHAPE.masked_backward("none").flops == backward.get_total_flops() / 2


@pytest.mark.parametrize(("input_grad", "inputs"), [("full", 8), ("planted", 2), ("none", 0)])
def test_the_planted_backward_by_hand(input_grad: str, inputs: int):
    positions, taps = 2 * 7 * 7, 9
    planted = 3 * 8 + 5 * 2
    work = SHAPE.planted_backward(input_grad)
    assert work.flops == 2 * positions * taps * (planted + inputs * 8)
    maps = 8 + 8 + (8 if inputs else 0)  # input, output's gradient, input's gradient
    assert work.bytes == 4 * (positions * maps + taps * (planted + inputs * 8))


def test_the_share_of_the_weight_gradient_is_that_of_rows_and_columns():
    # growth 1/16, 1/8, 1/4 of 64 channels: the share of a weight gradient that is planted
    for planted, share in ((4, 0.114), (8, 0.210), (16, 0.360)):
        shape = Convolution(1, 64, planted, 64, planted, 3, 8)
        ratio = shape.planted_backward("none").flops / shape.masked_backward("none").flops
        assert ratio == pytest.approx(share, abs=5e-4)


def test_rows_alone_read_only_what_they_need():
    shape = Convolution(batch=1, trunk_in=3, planted_in=0, trunk_out=8, planted_out=2, kernel=3, size=4)
    assert shape.planted_backward("none").bytes == 4 * (16 * (3 + 2) + 9 * 2 * 3)


def test_counted_adds_reads_and_writes_of_every_operation():
    x, y = torch.randn(10, 20), torch.randn(10, 20)
    assert counted(lambda: x + y) == Work(0.0, 3 * 800.0)
    assert counted(lambda: (x.t(), x[:5], x.expand(10, 20), torch.empty(3))) == Work(0.0, 0.0)
    assert counted(lambda: x + y[:1].expand(10, 20)) == Work(0.0, 800.0 + 800.0 + 800.0)
    assert counted(lambda: x @ y.t()) == Work(2.0 * 10 * 10 * 20, 800.0 + 800.0 + 400.0)


def test_counted_sees_the_backward():
    x = torch.randn(10, 20, requires_grad=True)
    forward = counted(lambda: x.exp())
    both = counted(lambda: torch.autograd.grad(x.exp(), x, torch.ones(10, 20)))
    assert forward.bytes == 2 * 800
    assert both.bytes == 2 * 800 + 3 * 800 + 800  # backward: gradient times result; the ones that are its start


def test_the_floor_is_the_slower_of_traffic_and_arithmetic_for_each_pass():
    ceilings = Ceilings(copy=100.0, matmul={"float32": 1000.0})
    passes = [Work(500.0, 10.0), Work(100.0, 90.0)]
    assert [work.seconds(ceilings, "float32") for work in passes] == [0.5, 0.9]
    assert floor_seconds(passes, ceilings, "float32") == pytest.approx(1.4)
    assert total(passes) == Work(600.0, 100.0)


def test_rows_of_logits():
    assert rows_of_logits(16384, 4096, [2] * 5) == 5 * 16384 * 4096 * 2


def test_ceilings_are_rates_of_this_machine():
    torch.manual_seed(0)
    ceilings = measure_ceilings(torch.device("cpu"), ["float32", "float32"], copy_bytes=1 << 22, size=128)
    assert list(ceilings.matmul) == ["float32"]
    assert 1e8 < ceilings.copy < 1e13
    assert 1e7 < ceilings.matmul["float32"] < 1e15
    assert torch.get_float32_matmul_precision() == "highest"


def test_launches_are_the_events_of_the_device():
    host, device = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        SimpleNamespace(device_type=host, name="aten::add"),
        SimpleNamespace(device_type=device, name="kernel", is_user_annotation=False),
        SimpleNamespace(device_type=device, name="Memcpy DtoD"),
        SimpleNamespace(device_type=device, name="my range", is_user_annotation=True),
    ]
    assert count_launches(events) == 2
