"""The order of things around a call on a GPU; stand-ins take the device's place."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from plantops.bench import gpu, planted_conv2d
from plantops.bench.runner import Settings


class Device:
    """Writes down what is asked of torch.cuda."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def stream(self, *_):
        return SimpleNamespace(
            device="cuda:0",
            wait_stream=lambda other: self.log.append("wait"),
            synchronize=lambda: self.log.append("synchronize"),
        )

    def event(self, enable_timing: bool):
        assert enable_timing
        return SimpleNamespace(
            record=lambda stream: self.log.append("event"),
            synchronize=lambda: self.log.append("wait for event"),
            elapsed_time=lambda end: 2.5,
        )

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert pool == "pool"
        self.log.append("capture")
        yield
        self.log.append("captured")


@pytest.fixture
def device(monkeypatch):
    found = Device()
    cuda = torch.cuda
    for name, stand_in in {
        "Stream": found.stream,
        "Event": found.event,
        "graph": found.graph,
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: found.log.append("replay")),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device: None,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1000),
    }.items():
        monkeypatch.setattr(cuda, name, stand_in)
    monkeypatch.setattr(gpu.GpuTimer, "_flush", lambda self: found.log.append(f"read {self._buffer.nbytes} bytes"))
    return found


def timed(device: Device, graph: bool) -> tuple[list[str], list[str]]:
    timer = gpu.GpuTimer(torch.device("cpu"), graph, warmup=2)
    sampler = timer.sampler(lambda: lambda: device.log.append("call"))
    before = list(device.log)
    device.log.clear()
    assert sampler.sample() == pytest.approx(2.5e-3)
    return before, device.log


def test_a_graph_is_replayed_behind_the_read_of_a_buffer_larger_than_the_cache(device: Device):
    before, sample = timed(device, graph=True)
    assert before == ["wait", "call", "call", "synchronize", "capture", "call", "captured"]
    assert sample == ["read 4000 bytes", "event", "replay", "event", "wait for event"]


def test_a_call_that_cannot_be_captured_leaves_the_pool_of_others_alone(device: Device, monkeypatch):
    pools = iter(["pool", "another"])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    timer = gpu.GpuTimer(torch.device("cpu"), graph=True, warmup=1)

    def waits() -> None:
        if device.log[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        timer.sampler(lambda: waits)
    assert timer._pool == "another"


def test_an_eager_call_begins_on_an_idle_device(device: Device):
    before, sample = timed(device, graph=False)
    assert before == ["wait", "call", "call", "synchronize"]
    assert sample == ["read 4000 bytes", "synchronize", "event", "call", "event", "wait for event"]


def test_memory_is_the_allocators_delta_without_the_output(monkeypatch):
    sizes = iter([10_000, 16_000])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(sizes))
    kept = gpu.allocated_by(torch.device("cpu"), lambda x: torch.empty(150), torch.zeros(3))
    assert kept == 6000 - 1024  # 600 bytes take two blocks of 512


def test_the_published_cases_on_cuda():
    """The shapes that are asked for: bf16 channels_last, three families, growth 1/16 to 1/4, 4 and 8 channels."""
    cases = planted_conv2d.cases(Settings(torch.device("cuda", 0), size="full"))
    columns = [case.columns for case in cases]
    assert len(cases) == 9 + 12 + 18
    assert {(c["dtype"], c["layout"]) for c in columns} == {("bfloat16", "channels_last")}
    assert {(c["group"], c["shape"], c["batch"]) for c in columns} >= {
        ("cifar growth 1/16", "32x32x64 + 4", 512),
        ("cifar growth 1/4", "8x8x256 + 64", 512),
        ("resnet50 growth 1/8", "7x7x512 + 64", 64),
        ("paper + 4", "16x16x8 + 4", 128),
        ("paper + 8", "32x32x3, 32 + 8 filters", 128),
    }
    assert {c["input_grad"] for c in columns} == {"planted", "none"}
