"""Small networks and searches on which sweeps are compared."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantops.models import PlantingNet
from plantops.planting import Planter, PlanterConfig
from plantops.planting.candidate import Candidate, plant_proposal
from plantops.planting.proposals import propose
from plantops.planting.search import wanted_growths
from plantops.train.data import ImageData
from plantops.train.run import Run, read_run
from plantops.train.session import Session

AUGMENTED = [{}, {"flip": True}, {"crop": 1, "flip": True}]


class Residual(nn.Module):
    """A block with a sum around it, a norm inside, and layers that grow together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(4, 5, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, padding_mode="reflect")
        self.short = nn.Conv2d(4, 6, 1, stride=2)
        self.act, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5)
        self.hidden, self.head = nn.Linear(6 * 2 * 2, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        inner = self.act(self.norm1(self.conv1(x)))
        total = self.conv2(inner)
        total += self.short(x)
        y = self.pool(F.relu(total, inplace=True))
        return self.head(self.drop(self.act(self.hidden(y.reshape(y.size(0), -1)))))


class Split(nn.Module):
    """Channels that are split, folded to pixels and grouped, by sizes that the forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.up, self.pixels, self.conv = nn.Conv2d(4, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 6, 3, stride=2)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.norm(self.stem(x)).chunk(2, 1)
        y = self.conv(self.pixels(self.up(p * q.sigmoid())))
        n, c, h, w = y.shape
        return self.head(y.view(n, 2, c // 2, h, w).amax(1).mean((2, 3)))


class Unfollowed(nn.Module):
    """The convolution can be followed for the example's sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        if x.shape[2] > 2:
            x = self.conv2(x)
        return self.head(x.mean((2, 3)))


def network(kind: str, dtype: torch.dtype) -> nn.Module:
    own = torch.Generator().manual_seed(5)
    if kind in ("chain", "normed"):
        model: nn.Module = PlantingNet(
            [4] * 5, 5, image_size=8, fc_width=12, batch_norm=kind == "normed", generator=own
        )
    else:
        model = {"residual": Residual, "split": Split, "unfollowed": Unfollowed}[kind]()
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=own)
                tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn / max(1, tensor[0].numel()) ** 0.5)
    return model.to(dtype)


def images(count: int, seed: int) -> ImageData:
    own = torch.Generator().manual_seed(seed)
    pixels, labels = torch.rand(count, 3, 8, 8, generator=own), torch.randint(0, 5, (count,), generator=own)
    return ImageData(pixels, labels, torch.full((3,), 0.5), torch.full((3,), 0.3), 5)


def planter(
    kind: str, dtype: torch.dtype = torch.float32, run: Run | None = None, device: str = "cpu", **changes: Any
) -> Planter:
    fields = {"channels": 2, "epochs": 2, "batch_size": 12, "lr": 0.05, "init": "kaiming", "grow_linear": True}
    own = torch.Generator().manual_seed(9)
    teacher = PlantingNet([6] * 5, 5, image_size=8, fc_width=12, generator=own).to(dtype)
    session = None if run is None else Session(run)
    config = PlanterConfig(**{**fields, **changes})
    model, teacher = network(kind, dtype).to(device), teacher.to(device)
    return Planter(model, teacher, images(30, 0), images(20, 1), config, session=session)


Trained = tuple[list[Candidate], list[Tensor], list[Tensor]]


def trained(search: Planter, sweep: Any, sites: list[str] | None = None) -> Trained:
    """Candidates of one round, and for each what its blocks were and have become."""
    around, student = search.around, search.initial
    growths = [growth for growth in wanted_growths(2, student.plan) if sites is None or growth.site in sites]
    proposals = propose(student, growths, search.config.compound, None)
    starts = []
    for proposal in proposals:
        state = plant_proposal(around, student, 1, proposal).state_dict()
        starts.append({name: tensor.double().clone() for name, tensor in state.items()})
    candidates = sweep(around, student, 1, proposals)
    ends, begins = [], []
    for candidate, start in zip(candidates, starts, strict=True):
        blocks = around.session.tensors(candidate.key)
        names = sorted(blocks)
        ends.append(torch.cat([blocks[name].double().flatten() for name in names]))
        begins.append(torch.cat([start[name].flatten() for name in names]))
    return candidates, begins, ends


def records(path: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_run(path).metrics if record["kind"] == kind]


def held_after_rounds(search: Planter, sweep: Any, rounds: int) -> list[int]:
    """Bytes of all tensors after each of so many rounds of two candidates."""
    held = []
    for _ in range(rounds):
        candidates, _, _ = trained(search, sweep, ["conv1", "conv3"])
        search.around.session.forget(candidate.key for candidate in candidates)
        search.around.session._finished.clear()
        gc.collect()
        held.append(sum(bytes_of(entry) for entry in gc.get_objects()))
    return held


def bytes_of(entry: Any) -> int:
    return entry.nbytes if type(entry) is Tensor and entry.layout == torch.strided else 0
