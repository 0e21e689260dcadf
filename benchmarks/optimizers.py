"""What growing a network does under every optimizer of torch.optim, timm, pytorch_optimizer and schedulefree.

    pip install plantops timm==1.0.31 pytorch_optimizer==4.1.0 schedulefree==1.4.1
    python benchmarks/optimizers.py                # every optimizer; writes the CSV file and the table of the page
    python benchmarks/optimizers.py --only torch   # one library, printed

In float64, for each optimizer at the library's own settings: a small network is trained for twelve steps, channels are
planted, the planted blocks are trained alone for eight, the network is merged, ``plantops.carry_state`` brings the
optimizer over, and the grown network makes its next step. Looked at:

- ``trunk_bits``: whether training the blocks left every bit of the trunk as it was;
- ``old_rows``: after a growth that keeps the function, the largest difference between the next step of the old slices
  and that of the same network that did not grow; where the optimizer itself couples the entries of a tensor (norms over
  it, orthogonalisation), a new optimizer differs as well: ``couples``;
- ``still_rows``: how far new filters move (relative to their norm) where their gradient is 0, without weight decay,
  minus what a new optimizer moves them: copies of weights that begin at the wrong place show here;
- ``new_rows``: the next step of slices that a second optimizer trained, over the step that this one would have made.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from harness import RESULTS
from torch import Tensor, nn

import plantops
from plantops.bench.record import read_csv, write_csv

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
PACKAGES = {"torch": "torch", "timm": "timm", "pytorch_optimizer": "pytorch_optimizer", "schedulefree": "schedulefree"}
BEFORE, BLOCKS, CHANNELS = 12, 8, 4
EXACT, STILL = 1e-12, 0.01  # a wrong copy moves rows by a tenth and more; a sign of rounding by the rate
COLUMNS = (
    "library", "version", "optimizer", "outcome", "trunk_bits", "next_step", "old_rows", "couples", "still_rows",
    "new_rows", "reason", "torch",
)  # fmt: skip


# -- which optimizers -----------------------------------------------------------------------------------------------


def torch_optimizers() -> Iterator[tuple[str, Make]]:
    names = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam"
    for name in names.split():
        settings = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}}.get(name, {})
        yield name, lambda p, name=name, settings=settings: getattr(torch.optim, name)(p, lr=1e-2, **settings)
    yield "Adam (amsgrad)", lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True)
    yield "ZeroRedundancyOptimizer(AdamW)", _sharded


def _sharded(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=1e-2)


def timm_optimizers() -> Iterator[tuple[str, Make]]:
    import timm.optim

    for name in timm.optim.list_optimizers():
        yield name, lambda p, name=name: timm.optim.create_optimizer_v2(p, opt=name, lr=1e-2, weight_decay=1e-2)
    for name in ("adamw", "momentum", "adagrad"):
        yield (
            f"lookahead_{name}",
            lambda p, name=name: timm.optim.create_optimizer_v2(p, opt=f"lookahead_{name}", lr=1e-2),
        )


def pytorch_optimizers() -> Iterator[tuple[str, Make]]:
    import pytorch_optimizer as library

    for name in library.get_supported_optimizers():
        yield name, lambda p, name=name: _with_defaults(library.load_optimizer(name), p)
    adamw = torch.optim.AdamW
    yield "Lookahead(AdamW)", lambda p: library.Lookahead(adamw(p, lr=1e-2))
    yield (
        "Lookahead(SGD), pullback",
        lambda p: library.Lookahead(torch.optim.SGD(p, lr=1e-2, momentum=0.9), pullback_momentum="pullback"),
    )
    yield "ScheduleFreeWrapper(AdamW)", lambda p: library.ScheduleFreeWrapper(adamw(p, lr=1e-2))
    yield "TRAC(AdamW)", lambda p: library.TRAC(adamw(p, lr=1e-2))
    yield "OrthoGrad(AdamW)", lambda p: library.OrthoGrad(adamw(p, lr=1e-2))
    for name in ("SAM", "LookSAM", "FriendlySAM"):
        yield f"{name}(SGD)", lambda p, name=name: _sam(getattr(library, name), p)


def _sam(kind: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    made = kind(parameters, base_optimizer=torch.optim.SGD, lr=1e-2)
    assert isinstance(made, torch.optim.Optimizer)
    return made


def _with_defaults(kind: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if "use_muon" in (kind.__doc__ or ""):
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        rest = [parameter for parameter in parameters if parameter.dim() < 2]
        groups = [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}]
        return kind([group for group in groups if group["params"]])  # type: ignore[no-any-return]
    needed = {
        name: {"num_data": 100, "num_iterations": 100}.get(name)
        for name, one in inspect.signature(kind.__init__).parameters.items()
        if one.default is one.empty and name not in ("self", "params", "args", "kwargs")
    }
    if None in needed.values():
        raise NotImplementedError(f"needs {', '.join(needed)}, not parameters")
    made = kind(parameters, **needed)
    assert isinstance(made, torch.optim.Optimizer)
    return made


def schedulefree_optimizers() -> Iterator[tuple[str, Make]]:
    import schedulefree

    for name in ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"):
        yield name, lambda p, name=name: getattr(schedulefree, name)(p, lr=1e-2)
    yield (
        "ScheduleFreeWrapper(SGD)",
        lambda p: schedulefree.ScheduleFreeWrapper(torch.optim.SGD(p, lr=1e-2), momentum=0.9),
    )


LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Make]]]] = {
    "torch": torch_optimizers,
    "timm": timm_optimizers,
    "pytorch_optimizer": pytorch_optimizers,
    "schedulefree": schedulefree_optimizers,
}


# -- one optimizer ---------------------------------------------------------------------------------------------------


class Unfit(Exception):
    """The optimizer does not train this network at all."""


def network(flat: bool) -> tuple[nn.Module, Tensor, str]:
    """A small network, its input, and the site that grows; ``flat``: only matrices."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if flat:
        net = nn.Sequential(nn.Linear(12, 7, bias=False), nn.Tanh(), nn.Linear(7, 5, bias=False))
        return net.double(), torch.randn(8, 12, dtype=torch.double, generator=generator), "0"
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3, padding=1))
    return net.double(), torch.randn(4, 3, 8, 8, dtype=torch.double, generator=generator), "0"


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, way: str, seed: int) -> None:
    """One step as the optimizer needs it: after a backward, with a closure, too, or after one that keeps its graph."""
    torch.manual_seed(seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward(create_graph=way == "graph")
        return loss

    closure()
    if way == "closure":
        optimizer.step(closure)
    else:
        optimizer.step()


def ready(make: Make, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = make(list(parameters))
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def without_decay(make: Make) -> Make:
    def made(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        for group in optimizer.param_groups:
            group.update({key: 0.0 for key in group if "weight_decay" in key})
        return optimizer

    return made


def way_of(make: Make) -> tuple[bool, str]:
    """Which network the optimizer takes, and how it is stepped."""
    failure: Exception | None = None
    for flat in (False, True):
        for way in ("backward", "closure", "graph"):
            net, x, _ = network(flat)
            before = [parameter.detach().clone() for parameter in net.parameters()]
            try:
                optimizer = ready(make, net.parameters())
                for seed in range(BLOCKS):
                    step(net, optimizer, x, way, seed)
            except Exception as error:
                failure = failure or error
                continue
            after = [parameter.detach() for parameter in net.parameters()]
            if all(one.isfinite().all() for one in after) and any(
                not torch.equal(a, b) for a, b in zip(after, before, strict=True)
            ):
                return flat, way
            failure = failure or RuntimeError("no parameter moves, or not to finite values")
    raise Unfit(f"{type(failure).__name__}: {failure}")


class Growth:
    """A network that was trained, planted, perhaps trained again, merged, and its optimizers."""

    def __init__(self, make: Make, flat: bool, way: str, blocks: int) -> None:
        self.net, self.x, name = network(flat)
        self.way = way
        self.optimizer = ready(make, self.net.parameters())
        for seed in range(BEFORE):
            step(self.net, self.optimizer, self.x, way, seed)
        site = plantops.trace(self.net, self.x, grow_linear=flat)[name]
        self.planted = plantops.plant(self.net, site, CHANNELS)
        self.trunk = plantops.planting.trunk_hash(self.planted)
        self.blocks: torch.optim.Optimizer | None = None
        if blocks:
            self.blocks = ready(make, plantops.planting.planted_parameters(self.planted))
            for seed in range(blocks):
                step(self.planted, self.blocks, self.x, way, 100 + seed)
        self.trunk_bits = plantops.planting.trunk_hash(self.planted) == self.trunk
        self.merged = plantops.merge(self.planted)
        self.old = {name: parameter.shape for name, parameter in self.net.named_parameters()}

    def parts(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Old slices and planted slices of tensors by name of the merged model, each flat."""
        old, new = [], []
        for name, value in values.items():
            mask = torch.zeros_like(value, dtype=torch.bool)
            mask[tuple(slice(size) for size in self.old[name])] = True
            old.append(value[mask])
            new.append(value[~mask])
        return torch.cat(old), torch.cat(new)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, way: str) -> dict[str, Tensor]:
    """What one step adds to each parameter."""
    before = tensors(model)
    step(model, optimizer, x, way, 200)
    return {name: value - before[name] for name, value in tensors(model).items()}


def preserved(make: Make, flat: bool, way: str, row: dict[str, Any]) -> None:
    """A growth that keeps the function: old slices beside the network that did not grow, filters without gradient."""
    make = without_decay(make)
    growth = Growth(make, flat, way, 0)
    fresh_net, fresh_grown = copy.deepcopy(growth.net), copy.deepcopy(growth.merged)
    alone = moved(fresh_net, ready(make, fresh_net.parameters()), growth.x, way)
    beside = moved(fresh_grown, ready(make, fresh_grown.parameters()), growth.x, way)
    scale = max(float(value.abs().max()) for value in alone.values())
    coupled = difference(growth, beside, alone) > EXACT + 1e-9 * scale
    twin = Growth(make, flat, way, 0)
    expected = moved(twin.net, twin.optimizer, twin.x, way)
    plantops.carry_state(growth.optimizer, growth.planted, growth.merged)
    filters = growth.merged.get_parameter("0.weight").detach()[growth.old["0.weight"][0] :].clone()
    found = moved(growth.merged, growth.optimizer, growth.x, way)
    row["next_step"] = finite(found)
    row["old_rows"] = difference(growth, found, expected)
    row["couples"] = coupled or (row["old_rows"] > EXACT and couples(make, growth, flat))
    still = [float(one["0.weight"][growth.old["0.weight"][0] :].norm() / filters.norm()) for one in (found, beside)]
    row["still_rows"] = max(0.0, still[0] - still[1])


def couples(make: Make, growth: Growth, flat: bool) -> bool:
    """Whether new optimizers over a tensor and over a larger one that contains it part, along given gradients."""
    generator = torch.Generator().manual_seed(1)
    small, large = copy.deepcopy(growth.net), copy.deepcopy(growth.merged)
    both = [(model, ready(make, model.parameters())) for model in (small, large)]
    for _ in range(BEFORE + 1):
        for (name, one), two in zip(small.named_parameters(), large.parameters(), strict=True):
            two.grad = torch.randn(two.shape, dtype=two.dtype, generator=generator)
            one.grad = two.grad[tuple(slice(size) for size in growth.old[name])].clone()
        for _, optimizer in both:
            try:
                torch.manual_seed(0)
                optimizer.step()
            except Exception:
                return False
    return difference(growth, tensors(large), tensors(small)) > EXACT


def difference(growth: Growth, large: dict[str, Tensor], small: dict[str, Tensor]) -> float:
    """The largest difference between old slices and the tensors that did not grow."""
    return max(
        float((value[tuple(slice(size) for size in growth.old[name])] - small[name]).abs().max())
        for name, value in large.items()
    )


def finite(values: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values.values())


def trained(make: Make, flat: bool, way: str, row: dict[str, Any]) -> None:
    """Blocks that a second optimizer trained go on as they would have gone."""
    growth = Growth(make, flat, way, BLOCKS)
    row["trunk_bits"] = growth.trunk_bits
    assert growth.blocks is not None
    own = growth.blocks
    plantops.carry_state(growth.optimizer, growth.planted, growth.merged, own)
    found = moved(growth.merged, growth.optimizer, growth.x, way)
    row["next_step"] = row["next_step"] and finite(found)
    twin = Growth(make, flat, way, BLOCKS)
    assert twin.blocks is not None
    before = tensors(twin.merged)
    step(twin.planted, twin.blocks, twin.x, way, 200)
    after = tensors(plantops.merge(twin.planted))
    expected = growth.parts({name: value - before[name] for name, value in after.items()})[1]
    row["new_rows"] = float(growth.parts(found)[1].norm() / expected.norm())


def look_at(library: str, name: str, make: Make) -> dict[str, Any]:
    """The row of one optimizer; a process group that it needs ends with it."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        return _looked_at(library, name, make)
    finally:
        if not grouped and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _looked_at(library: str, name: str, make: Make) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row.update(library=library, version=importlib.metadata.version(PACKAGES[library]), optimizer=name)
    row["torch"] = torch.__version__.partition("+")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            flat, way = way_of(make)
        except Unfit as error:
            return {**row, "outcome": "not run", "reason": shortened(str(error))}
        try:
            row["trunk_bits"] = Growth(make, flat, way, BLOCKS).trunk_bits
            preserved(make, flat, way, row)
            trained(make, flat, way, row)
        except plantops.PlantopsError as error:
            return {**row, "outcome": "refused", "reason": shortened(str(error))}
        except Exception as error:
            if "double backward" in str(error):
                return {**row, "outcome": "not run", "reason": "needs second derivatives, planted layers have none"}
            return {**row, "outcome": "FAILS", "reason": shortened(f"{type(error).__name__}: {error}")}
    return {**row, "outcome": outcome(row)}


def outcome(row: dict[str, Any]) -> str:
    if not row["trunk_bits"] or not row["next_step"]:
        return "FAILS"
    if row["old_rows"] > EXACT and not row["couples"]:
        return "FAILS"
    return "carried" if row["still_rows"] < STILL else "FAILS"


# -- the page -------------------------------------------------------------------------------------------------------

CARRY = "`carry_state(optimizer, planted, merged, planted_optimizer)`"
NEW = "a new optimizer over `merged.parameters()`"


def page(rows: list[dict[str, str]]) -> str:
    """The table of the page: for each library what holds for which of its optimizers."""
    ran = [row for row in rows if row["trunk_bits"]]
    kept = sum(row["trunk_bits"] == "True" for row in ran)
    lines = [
        f"Of {len(rows)} optimizers {len(ran)} train planted blocks here; under {kept} of them the trunk keeps every "
        "bit. "
        "Each was run as `benchmarks/optimizers.py` says: twelve steps, planted, eight steps of the blocks, merged, "
        "carried, the next step, in float64; the numbers are in `benchmarks/results/optimizers.csv`.",
        "",
        "| tool | optimizers | what holds | what to do |",
        "| --- | --- | --- | --- |",
    ]
    for library in LIBRARIES:
        own = [row for row in rows if row["library"] == library]
        if not own:
            continue
        tool = f"{library} {own[0]['version']}"
        for match, holds, todo in KINDS:
            names = [named(row) for row in own if match(row)]
            if names:
                lines.append(f"| {tool} | {', '.join(names)} | {holds} | {todo} |")
    lines += ["", f"torch {rows[0]['torch']}. {RATIOS}"]
    return "\n".join(lines) + "\n"


RATIOS = (
    "A number in brackets is the next step of trained slices over the one that their own optimizer would have made, "
    "where it is not between 0.5 and 2: rates that an optimizer learns, and norms, belong to the group or tensor that "
    "they join."
)


def named(row: dict[str, str]) -> str:
    kept = row["reason"].partition(" keeps ")[2].partition(" for ")[0].partition(" in ")[0]
    begins = row["reason"].partition(" begins ")[2].partition(" with ")[0]
    if row["outcome"] == "refused":
        key = (kept or begins).partition(",")[0].strip().lstrip("'").partition("'")[0]
        return row["optimizer"] + (f" (`{key}`)" if key else "")
    ratio = float(row["new_rows"] or 1)
    return row["optimizer"] + ("" if 0.5 <= ratio <= 2 else f" ({ratio:.2g})")


def carried(row: dict[str, str], couples: bool) -> bool:
    return row["outcome"] == "carried" and (float(row["old_rows"]) > EXACT) == couples


KINDS: tuple[tuple[Callable[[dict[str, str]], bool], str, str], ...] = (
    (
        lambda row: carried(row, False),
        "old slices step as without the growth (to 1e-12), new ones begin as new parameters do or go on as they were",
        CARRY,
    ),
    (
        lambda row: carried(row, True),
        "the same, but the optimizer computes norms or products over whole tensors: old slices of a larger tensor step "
        "otherwise, under a new optimizer, too",
        CARRY,
    ),
    (
        lambda row: row["outcome"] == "refused" and " begins " not in row["reason"],
        "refused by name: what it keeps does not lie along the parameter, or where nothing can follow it",
        NEW,
    ),
    (
        lambda row: row["outcome"] == "refused" and " begins " in row["reason"],
        "refused by name: a step without gradient does not show what it begins with, or moves the weights",
        f"{CARRY} where the blocks were trained, else {NEW}",
    ),
    (lambda row: row["outcome"] == "FAILS", "does not hold", NEW),
    (lambda row: row["outcome"] == "not run", "not run: needs a GPU, other arguments, or second derivatives", "-"),
)


def write_page(rows: list[dict[str, str]]) -> None:
    path = RESULTS.parents[1] / "docs" / "other_tools.md"
    before, begin, rest = path.read_text().partition("<!-- optimizers -->\n")
    _, end, after = rest.partition("<!-- /optimizers -->\n")
    path.write_text(before + begin + page(rows) + end + after)


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 200 else line[:197] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=LIBRARIES, help="one library, printed")
    parser.add_argument("--names", nargs="*", help="these of it")
    options = parser.parse_args()
    torch.compile = lambda function, **_: function  # type: ignore[assignment]  # the same arithmetic, without the wait
    rows = []
    for library in [options.only] if options.only else LIBRARIES:
        for name, make in LIBRARIES[library]():
            if options.names and name not in options.names:
                continue
            row = look_at(library, name, make)
            rows.append(row)
            print(
                " | ".join(
                    f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in COLUMNS[2:-1]
                ),
                flush=True,
            )
    if not options.only:
        write_page(read_csv(write_csv(RESULTS / "optimizers.csv", rows)))


if __name__ == "__main__":
    main()
