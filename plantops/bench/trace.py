"""A torch.profiler trace of every variant of a case, for chrome://tracing or Perfetto."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from plantops.bench.case import Case, verified

CALLS = 3


def write_trace(case: Case, device: torch.device, folder: Path) -> Path:
    """Each right variant called three times under its name, after one call that is not recorded."""
    variants, _ = verified(case.prepare())
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for variant in variants:
        variant.call()
    with torch.profiler.profile(activities=activities) as profile:
        for variant in variants:
            for _ in range(CALLS):
                with torch.profiler.record_function(variant.name):
                    variant.call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    path = folder / f"trace_{re.sub(r'[^A-Za-z0-9]+', '_', case.name).strip('_')}_{device.type}.json"
    folder.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(str(path))
    return path
