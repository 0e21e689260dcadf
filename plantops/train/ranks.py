"""Several processes under torchrun that run one program and share its work out."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WAIT = datetime.timedelta(days=7)
"""A process waits for the others' training, which may take long; a process that dies ends the waiting at once."""


class Ranks:
    """This process among the others. What is exchanged are JSON values and tensors, never pickled objects.

    Args:
        group: a process group whose backend moves CPU tensors (gloo).
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def json(self, value: Any, owner: int) -> Any:
        """The JSON value that process ``owner`` gives."""
        text = json.dumps(value).encode() if self.rank == owner else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, owner, self._group)
        content = (
            torch.frombuffer(bytearray(text), dtype=torch.uint8)
            if text
            else torch.empty(int(length), dtype=torch.uint8)
        )
        dist.broadcast(content, owner, self._group)
        return json.loads(content.numpy().tobytes())

    def tensors(
        self, tensors: Mapping[str, Tensor], owner: int, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """The tensors that process ``owner`` gives, bit for bit; here they lie on ``device``."""
        own = self.rank == owner
        facts = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}
        received = {}
        for name, (dtype, shape) in self.json(facts if own else None, owner).items():
            kind = getattr(torch, dtype)
            content = tensors[name].detach().cpu().contiguous() if own else torch.empty(shape, dtype=kind)
            if content.numel():
                dist.broadcast(content.view(-1).view(torch.uint8), owner, self._group)
            received[name] = tensors[name] if own else content.to(device)
        return received


@cache
def ranks_of_environment() -> Ranks | None:
    """The processes that torchrun started together with this one; None where it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    if not dist.is_initialized():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store, _, _ = next(dist.rendezvous("env://", rank, size))
        # torchrun may give a restarted program the store of its former life, with addresses where nobody is any more.
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"plantops/{life}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=WAIT)
    group = dist.new_group(backend="gloo", timeout=WAIT)
    assert isinstance(group, dist.ProcessGroup)
    return Ranks(group)


def local_rank() -> int:
    """The number of this process on its machine, 0 where it is alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def spread(costs: Sequence[float], workers: int) -> list[int]:
    """Which worker does each piece of work: the dearest first, each to whoever has least to do so far.

    At most 4/3 of the shortest possible time (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl.
    Math. 17, 1969, theorem 2). Ties go to the first.
    """
    owners, load = [0] * len(costs), [0.0] * workers
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        owners[place] = min(range(workers), key=load.__getitem__)
        load[owners[place]] += costs[place]
    assert math.isclose(sum(load), sum(costs))
    return owners
