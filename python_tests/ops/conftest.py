"""Fixtures of the op tests."""

import os
from collections.abc import Iterator

import pytest
import torch

from plantops.ops import _registry, _triton
from plantops.ops.planted_conv2d import triton_config

# Before the first product of matrices on a GPU: without it torch refuses them under deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each device that is there, as the one where tensors are made. Skips an implementation that is not live on it.

    A module that uses it names its op in STEM; tests marked `cpu_only` run on the CPU alone. On a GPU, float32 is
    float32 (TF32 has tests of its own) and cuDNN is deterministic.
    """
    name = request.param
    impl = getattr(request.node, "callspec", None) and request.node.callspec.params.get("impl")
    stem = request.module.STEM
    if impl not in (None, "auto") and not _registry.live(stem, impl, name):
        pytest.skip(f"{impl}: {_registry.why_not(stem, impl, name)}")
    if name == "cpu":
        yield name
        return
    if request.node.get_closest_marker("cpu_only"):
        pytest.skip("of the CPU alone")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with torch.device(name):
        yield name


@pytest.fixture
def poisoned():
    """torch.empty gives NaN, in Python and in C++: what a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def few_tiles(monkeypatch):
    """Triton's interpreter takes milliseconds for each tile, whatever its size: planted_conv2d gets large ones."""
    if not _triton.interpreted():
        return
    large = triton_config.Limits(1024, 128, 128, 1)
    monkeypatch.setattr(triton_config, "GATHERED_M", 1024)
    monkeypatch.setattr(triton_config, "limits", lambda dtype, precision: large)
