"""One of two processes that train a planted model together, for test_distributed.py: python two_processes.py RANK DIR.

Writes what it saw to DIR/RANK.json.
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from plantops.models import PlantingNet
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash
from python_tests.planting.networks import images, planned, seeded

SENT = [0]


class Within(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def planted_net(seed: int = 0) -> nn.Module:
    sizes = {"num_classes": 4, "in_channels": 2, "image_size": 8, "fc_width": 6}
    net = PlantingNet((8, 8, 8, 8, 8), **sizes, batch_norm=True, generator=seeded(seed)).train()
    return plant(net, planned(net)["conv2"], 2, "kaiming", generator=seeded(1)).train()


def count_broadcasts() -> None:
    broadcast = dist._broadcast_coalesced

    def counted(group, tensors, *args):
        SENT[0] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return broadcast(group, tensors, *args)

    dist._broadcast_coalesced = counted


def steps(model: nn.Module, blocks: list[nn.Parameter], rank: int) -> None:
    optimizer = torch.optim.SGD(blocks, 0.05, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        model(images(10 * step + rank)).square().mean().backward()
        optimizer.step()


def data_parallel(rank: int) -> dict:
    planted = planted_net()
    before = trunk_hash(planted)
    wrapped = DistributedDataParallel(Within(planted))
    SENT[0] = 0
    steps(wrapped, planted_parameters(planted), rank)
    sent = SENT[0]
    merge(planted)
    other = planted_net(rank)
    DistributedDataParallel(other)
    return {
        "sent": sent,
        "kept": trunk_hash(planted) == before,
        "trunk": trunk_hash(planted),
        "blocks": [block.detach().double().sum().item() for block in planted_parameters(planted)],
        "buffers": sum(buffer.numel() * buffer.element_size() for buffer in planted.buffers()),
        "weights": sum(
            parameter.numel() * parameter.element_size()
            for parameter in planted.parameters()
            if not parameter.requires_grad
        ),
        "synchronised": trunk_hash(other),
    }


def sharded(rank: int) -> dict:
    planted = planted_net()
    before, whole = trunk_hash(planted), sum(parameter.numel() for parameter in planted.parameters())
    twin, plain = copy.deepcopy(planted), copy.deepcopy(planted)
    fully_shard(planted, mesh=init_device_mesh("cpu", (2,)))
    local = sum(parameter.to_local().numel() for parameter in planted.parameters())
    steps(planted, planted_parameters(planted), 0)  # the same images on both: the mean of the gradients is each one's
    steps(twin, planted_parameters(twin), 0)
    try:
        merge(planted)
        refused = ""
    except (RuntimeError, ValueError) as error:
        refused = str(error)
    plain.load_state_dict(get_model_state_dict(planted, options=StateDictOptions(full_state_dict=True)))
    merged, expected = merge(plain).eval(), merge(twin).eval()
    return {
        "share": local / whole,
        "refused": refused,
        "kept": trunk_hash(plain) == before,
        "error": float((merged(images()) - expected(images())).abs().max()),
    }


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    count_broadcasts()
    seen = {"ddp": data_parallel(rank), "fsdp": sharded(rank)}
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
