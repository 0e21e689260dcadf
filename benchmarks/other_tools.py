"""Planted and merged models under tools that know nothing of them: rows for docs/other_tools.md.

    pip install plantops lightning==2.6.6 timm==1.0.31 accelerate==1.15.0
    pip install torchao==0.18.0 peft==0.21.2 openvino==2026.4.1
    python benchmarks/other_tools.py                # every tool that is installed; writes the tables of the page
    python benchmarks/other_tools.py --only update_bn timm   # some of them, printed

A row says what was run and what was seen: whether every tensor of the trunk has its bits, what ``merge`` does, and what
the tool made of the model. Tools that are not installed are left out, and the page keeps nothing of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

import plantops
from plantops.planting import planted_parameters, trunk_hash

PAGE = Path(__file__).parents[1] / "docs" / "other_tools.md"
HEADER = ("tool", "version", "what was run", "what was seen", "what to do")
LOADER = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
X = LOADER[0]

Row = tuple[str, str, str, str]
SECTIONS: dict[str, list[tuple[str, str, str, Callable[[], str], str]]] = {
    "walkers": [],
    "distributed": [],
    "converters": [],
}


def row(section: str, package: str, tool: str, what: str, do: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Adds a probe, which returns what it saw."""

    def add(probe: Callable[[], str]) -> Callable[[], str]:
        SECTIONS[section].append((package, tool, what, probe, do))
        return probe

    return add


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10),
    ).train()  # fmt: skip
    model(X)
    return model


def planted() -> nn.Module:
    """One planted norm (1), one pinned (4), planted convolutions and linear layers, and a plain linear one (12)."""
    model = net()
    plan = plantops.trace(model, X, grow_linear=True)
    return plantops.plant(model, [plan["0"], plan["8"]], {"0": 4, "8": 8}, "kaiming")


def seen(model: nn.Module, before: str) -> str:
    """What became of the trunk, and what ``merge`` says."""
    bits = "trunk bits kept" if trunk_hash(model) == before else "trunk moved"
    try:
        plantops.merge(model)
    except (RuntimeError, ValueError) as error:
        return f'{bits}; `merge` raises: "{str(error).split(". ")[0]}"'
    return f"{bits}; `merge` works"


def walked(walk: Callable[[nn.Module], nn.Module | None]) -> str:
    model = planted()
    before = trunk_hash(model)
    result = walk(model)
    return seen(model if result is None else result, before)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(planted_parameters(model), 0.05, momentum=0.9, weight_decay=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model(LOADER[step % len(LOADER)]).square().mean().backward()
        optimizer.step()


# -- tools that walk modules ----------------------------------------------------------------------------------------


@row("walkers", "torch", "`torch.optim.swa_utils.update_bn`", "on a planted model", "nothing")
def _() -> str:
    model = planted()
    before, statistics = trunk_hash(model), model[1].running_mean_out.clone()
    update_bn(LOADER, model)
    anew = "new channels estimated anew" if not torch.equal(statistics, model[1].running_mean_out) else "no estimate"
    return f"{seen(model, before)}; {anew}"


def averaged(**options: Any) -> Callable[[nn.Module], nn.Module]:
    def walk(model: nn.Module) -> nn.Module:
        average = AveragedModel(model, **options)
        for _ in range(4):
            train(model, 1)
            average.update_parameters(model)
        update_bn(LOADER, average)
        return average.module

    return walk


@row("walkers", "torch", "`AveragedModel` (SWA)", "4 averages, `update_bn`, `merge(average.module)`", "nothing")
def _() -> str:
    return walked(averaged())


@row("walkers", "torch", "`AveragedModel`, `get_ema_multi_avg_fn`", "the same", "nothing")
def _() -> str:
    return walked(averaged(multi_avg_fn=get_ema_multi_avg_fn(0.9)))


@row(
    "walkers", "torch", "`AveragedModel`, `get_ema_avg_fn`", "the same",
    "take `get_ema_multi_avg_fn`, or `carry_state`, which puts the trunk's own bits back",
)  # fmt: skip
def _() -> str:
    return walked(averaged(avg_fn=get_ema_avg_fn(0.9)))


@row("walkers", "torch", "`SyncBatchNorm.convert_sync_batchnorm`", "on a planted model, 3 steps", "nothing")
def _() -> str:
    model = planted()
    before = trunk_hash(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    train(model)
    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, nn.SyncBatchNorm)}
    return f"{seen(model, before)}; converted: {'the new channels of planted norms' if kinds else 'nothing'}"


@row("walkers", "torch", "`nn.utils.fusion.fuse_conv_bn_eval`", "result put into the planted model", "merge first")
def _() -> str:
    def walk(model: nn.Module) -> None:
        model.eval()
        model[3] = nn.utils.fusion.fuse_conv_bn_eval(model[3], model[4])
        model[4] = nn.Identity()

    return walked(walk)


@row("walkers", "torch", "`Module.apply`", "`reset_parameters` of every module", "initialise before `plant`")
def _() -> str:
    return walked(lambda model: model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None))


@row("walkers", "torch", "`model.half().float()`", "on a planted model", "cast the merged model")
def _() -> str:
    return walked(lambda model: model.half().float())


@row("walkers", "torch", "`model.double()`", "on a planted model", "nothing")
def _() -> str:
    model = planted().double()
    plantops.merge(model)
    return "`merge` works: a wider dtype is compared as what it was"


@row("walkers", "timm", "`timm.utils.ModelEmaV3`", "4 updates, `merge(ema.module)`", "nothing")
def _() -> str:
    def walk(model: nn.Module) -> nn.Module:
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(model, decay=0.9)
        for _ in range(4):
            train(model, 1)
            average.update(model)
        return average.module

    return walked(walk)


@row("walkers", "timm", "`timm.utils.ModelEmaV2`", "4 updates, `merge(ema.module)`", "`ModelEmaV3`, or `carry_state`")
def _() -> str:
    def walk(model: nn.Module) -> nn.Module:
        from timm.utils import ModelEmaV2

        average = ModelEmaV2(model, decay=0.9)
        for _ in range(4):
            train(model, 1)
            average.update(model)
        return average.module

    return walked(walk)


def lightning_fit(model: nn.Module, callback: Any) -> nn.Module:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(planted_parameters(self.net), 0.05)

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Task(), torch.utils.data.DataLoader(torch.cat(LOADER), batch_size=8))
    return model


@row("walkers", "lightning", "`StochasticWeightAveraging`", "4 epochs, averages from the second on", "nothing")
def _() -> str:
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    return walked(lambda model: lightning_fit(model, StochasticWeightAveraging(1e-2, swa_epoch_start=1)))


@row("walkers", "lightning", "`WeightAveraging`", "4 epochs, SWA of every step", "nothing")
def _() -> str:
    from lightning.pytorch.callbacks import WeightAveraging

    return walked(lambda model: lightning_fit(model, WeightAveraging()))


@row("walkers", "lightning", "`WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9))`", "4 epochs", "nothing")
def _() -> str:
    from lightning.pytorch.callbacks import WeightAveraging

    return walked(lambda model: lightning_fit(model, WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9))))


@row(
    "walkers", "lightning", "`EMAWeightAveraging`", "4 epochs",
    "the row above: this one averages by `get_ema_avg_fn` and writes the drifted trunk back",
)  # fmt: skip
def _() -> str:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    return walked(lambda model: lightning_fit(model, EMAWeightAveraging(decay=0.9)))


# -- distributed training -------------------------------------------------------------------------------------------


def two_processes(name: str) -> str:
    """What the first of two gloo processes printed that ran the function of this name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank", name, folder]
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        outputs = [rank.communicate(timeout=300) for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(outputs[0][1][-2000:])
    return outputs[0][0].strip()


def as_buffers(model: nn.Module) -> nn.Module:
    """The other choice, to compare: the trunk's weights as buffers."""
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if hasattr(module, "check_called") and parameter is not None and not parameter.requires_grad:
                del module._parameters[key]
                module.register_buffer(key, parameter.detach())
    return model


def ddp(make: Callable[[], nn.Module], ignore: bool = False) -> str:
    import torch.distributed as dist

    sent = [0]
    broadcast = dist._broadcast_coalesced

    def counted(group: Any, tensors: list[Tensor], *args: Any) -> Any:
        sent[0] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return broadcast(group, tensors, *args)

    dist._broadcast_coalesced = counted
    model = make()
    if ignore:
        model._ddp_params_and_buffers_to_ignore = [n for n, _ in model.named_buffers() if not n.endswith("_out")]
    wrapped = nn.parallel.DistributedDataParallel(model)
    first, sent[0] = sent[0], 0
    wrapped(X).sum().backward()
    return f"{first} bytes broadcast at the start, {sent[0]} at each step"


def of_ddp() -> str:
    return ddp(planted)


def of_ddp_buffers() -> str:
    return ddp(lambda: as_buffers(planted()))


def of_ddp_ignored() -> str:
    return ddp(lambda: as_buffers(planted()), ignore=True)


def fsdp(make: Callable[[], nn.Module]) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make()
    total = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    train(model)
    own = sum(p.to_local().numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    try:
        plantops.merge(model)
        merged = "works"
    except ValueError:
        merged = "says how the state is gathered"
    return f"{own} of {total} numbers on a process; `merge` {merged}"


def of_fsdp() -> str:
    return fsdp(planted)


def of_fsdp_buffers() -> str:
    return fsdp(lambda: as_buffers(planted()))


def of_dcp() -> str:
    import torch.distributed as dist
    from torch.distributed import checkpoint

    model = planted()
    train(model)
    with tempfile.TemporaryDirectory() as folder:
        names = [folder]
        dist.broadcast_object_list(names)
        checkpoint.save({"model": model.state_dict()}, checkpoint_id=names[0])
        other = planted()
        state = {"model": other.state_dict()}
        checkpoint.load(state, checkpoint_id=names[0])
        other.load_state_dict(state["model"])
        pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        equal = all(torch.equal(a, b) for a, b in pairs)
        plantops.merge(other)
        dist.barrier()
    return f"state read back {'bit for bit' if equal else 'changed'}; `merge` works"


DDP, FSDP = "`DistributedDataParallel`", "`fully_shard` (FSDP2)"
row("distributed", "torch", DDP, "2 processes (gloo), a step", "nothing")(lambda: two_processes("of_ddp"))
row("distributed", "torch", DDP, "the trunk's weights as buffers instead", "not chosen: sent at each step")(
    lambda: two_processes("of_ddp_buffers")
)
row(
    "distributed", "torch", DDP, "as buffers that `_ddp_params_and_buffers_to_ignore` names",
    "not chosen: no first synchronisation, and the list is not read where the planted model lies in another",
)(lambda: two_processes("of_ddp_ignored"))  # fmt: skip
row("distributed", "torch", FSDP, "2 processes (gloo), 3 steps", "gather, merge a copy that is whole")(
    lambda: two_processes("of_fsdp")
)
row("distributed", "torch", FSDP, "the trunk's weights as buffers instead", "not chosen: the trunk stays whole")(
    lambda: two_processes("of_fsdp_buffers")
)
row("distributed", "torch", "`torch.distributed.checkpoint`", "`save`, `load`, 2 processes", "nothing")(
    lambda: two_processes("of_dcp")
)


@row("distributed", "accelerate", "`Accelerator.prepare`", "4 steps of the prepared model, `unwrap_model`", "nothing")
def _() -> str:
    from accelerate import Accelerator

    def walk(model: nn.Module) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.SGD(planted_parameters(model), 0.05)
        loader = torch.utils.data.DataLoader(torch.cat(LOADER), batch_size=8)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for x in loader:
            optimizer.zero_grad()
            accelerator.backward(wrapped(x).square().mean())
            optimizer.step()
        return accelerator.unwrap_model(wrapped)

    return walked(walk)


# -- converters, counters, adapters ---------------------------------------------------------------------------------


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        lines = [line for line in str(error).split("\n") if "merge" in line] or [str(error).split("\n")[0]]
        return f'raises: "{lines[0][:160]}"'
    return "passes"


def quantised(model: nn.Module) -> int:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return sum(type(p).__name__ != "Parameter" for p in model.parameters())


@row("converters", "torchao", "`quantize_`, int8 weights", "on a planted and on a merged model", "merge first")
def _() -> str:
    model = planted().eval()
    linear = sum("Linear" in type(m).__name__ for m in model.modules())
    count = quantised(model)
    whole = quantised(plantops.merge(planted().eval()))
    try:
        plantops.merge(model)
        merged = "works"
    except (RuntimeError, ValueError) as error:
        merged = f'raises: "{str(error).split(". ")[0]}"'
    return f"planted: {count} of {linear} linear layers quantised, unsaid; `merge` {merged}; merged first: {whole}"


@row("converters", "torchao", "PT2E: `prepare_pt2e`, `convert_pt2e`", "on a planted and a merged model", "merge first")
def _() -> str:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    def count(model: nn.Module) -> int:
        exported = torch.export.export(model, (X,)).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        prepared(X)
        return sum("quantize" in str(node.target) for node in convert_pt2e(prepared).graph.nodes)

    model = planted().eval()
    return f"planted: {count(model)} quantisation nodes, unsaid; merged: {count(plantops.merge(model))}"


@row("converters", "torch", "`torch.jit.trace`, `torch.jit.script`, `torch.fx`", "on a planted model", "merge first")
def _() -> str:
    model = planted().eval()
    calls = (lambda: torch.jit.trace(model, X), lambda: torch.jit.script(model), lambda: torch.fx.symbolic_trace(model))
    errors = [error_of(call) for call in calls]
    return f"{'each' if all('merge' in error for error in errors) else 'not each'} {errors[0]}"


@row("converters", "torch", "`torch.export`", "on a planted model", "merge first, to run it without plantops")
def _() -> str:
    program = torch.export.export(planted().eval(), (X,))
    return f"{sum('plantops' in str(node.target) for node in program.graph.nodes)} nodes of plantops' ops in the graph"


@row("converters", "openvino", "`convert_model`", "on a planted and on a merged model", "merge first")
def _() -> str:
    import openvino

    model = planted().eval()
    merged = plantops.merge(model)
    compiled = openvino.compile_model(openvino.convert_model(merged, example_input=X), "CPU")
    expected = merged(X).detach()
    error = float((torch.from_numpy(compiled(X.numpy())[0]) - expected).abs().max() / expected.abs().max())
    refused = error_of(lambda: openvino.convert_model(model, example_input=X))
    return f"planted: {refused}; merged: relative error {error:.1e}"


@row("converters", "peft", "`get_peft_model`", "LoRA on a planted layer", "merge first, or name another layer")
def _() -> str:
    from peft import LoraConfig, get_peft_model

    return error_of(lambda: get_peft_model(planted(), LoraConfig(target_modules=["8"])))


@row(
    "converters", "peft", "`get_peft_model`", "LoRA on a plain layer of a planted model",
    "`requires_grad_(True)` on the planted blocks if they are to train as well",
)  # fmt: skip
def _() -> str:
    from peft import LoraConfig, get_peft_model

    model = planted()
    blocks = planted_parameters(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["12"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        planted_parameters(adapted)
    warned = any("do not require a gradient" in str(one.message) for one in caught)
    still = sum(block.requires_grad for block in blocks)
    said = "warns" if warned else "is silent"
    return f"{still} of {len(blocks)} planted blocks still train; `planted_parameters` {said}"


@row("converters", "timm", "`param_groups_weight_decay`", "on a planted model", "nothing")
def _() -> str:
    from timm.optim import param_groups_weight_decay

    model = planted()
    groups = param_groups_weight_decay(model, 1e-2)
    found = {id(p) for group in groups for p in group["params"]}
    exact = found == {id(p) for p in planted_parameters(model)}
    return f"the groups hold {'exactly the planted blocks' if exact else 'others'}"


@row("converters", "torch", "`sum(p.numel() for p in model.parameters())`", "planted and merged", "nothing")
def _() -> str:
    model = planted()
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, plantops.merge(model))]
    return f"{counts[0]} and {counts[1]}"


# -- the page -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="print the rows whose tool or package has these words")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if args.rank:
        name, folder, rank = args.rank
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=2)
        print(globals()[name]())
        torch.distributed.destroy_process_group()
        return
    text = PAGE.read_text(encoding="utf-8")
    for section, probes in SECTIONS.items():
        lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
        for package, tool, what, probe, do in probes:
            if args.only is not None and not any(word in f"{package} {tool}" for word in args.only):
                continue
            try:
                version = importlib.metadata.version(package).split("+")[0]
            except importlib.metadata.PackageNotFoundError:
                continue
            lines.append(f"| {tool} | {package} {version} | {what} | {probe()} | {do} |")
            print(lines[-1], flush=True)
        if args.only is None:
            begin, end = f"<!-- {section} -->\n", f"<!-- /{section} -->"
            head, _, rest = text.partition(begin)
            text = head + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.partition(end)[2]
    if args.only is None:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
