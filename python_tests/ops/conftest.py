"""Fixtures of the op tests."""

import pytest
import torch

from plantops.ops.planted_conv2d import triton_config


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
    large = triton_config.Limits(1024, 128, 128, 1)
    monkeypatch.setattr(triton_config, "GATHERED_M", 1024)
    monkeypatch.setattr(triton_config, "limits", lambda dtype, precision: large)
