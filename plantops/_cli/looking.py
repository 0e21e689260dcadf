"""The commands that look at what is there: evaluate, report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from plantops._cli import build, running
from plantops._cli.mistakes import Mistake, mistakes
from plantops._cli.options import DataOptions, EvaluateOptions, MachineOptions, ReportOptions
from plantops._cli.parse import parse
from plantops.models import count_macs, count_parameters
from plantops.planting.features import NoFeatures, embed_features
from plantops.planting.networks import Network, find_network
from plantops.train.data import ImageData
from plantops.train.loop import evaluate as score
from plantops.train.report.features import Features
from plantops.train.run import read_run


def evaluate(arguments: list[str]) -> int:
    """``plantops evaluate RUN``."""
    options = parse(EvaluateOptions, "evaluate", arguments)
    network = find_network(options.run, options.network)
    device = build.choose_device(MachineOptions(device=options.device))
    test = _test_part(network, options.data_root, device)
    model = network.build(options.model).to(device)
    result = score(model, test)
    facts = {
        "network": network.name,
        "data": network.data["name"],
        "samples": len(test),
        "parameters": count_parameters(model),
        "macs": count_macs(model, test.shape),
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
    }
    if options.json:
        print(json.dumps(facts))
    else:
        shown = {**facts, "test_accuracy": running.percent(result.accuracy)}
        running.show_table([{name.replace("_", " "): value for name, value in shown.items()}], str(network.folder))
    return 0


def _test_part(network: Network, data_root: str | None, device: torch.device) -> ImageData:
    """The test part of the network's own data, normalised as the network was trained."""
    stored = network.data
    options = DataOptions(data=stored["name"], data_root=data_root, image_size=stored["shape"][1])
    test = build.load_parts(options, 0, device).test
    if (test.num_classes, list(test.shape)) != (stored["num_classes"], stored["shape"]):
        raise Mistake(
            f"{stored['name']} has {test.num_classes} classes and images {list(test.shape)}, the network was trained "
            f"on {stored['num_classes']} classes and {stored['shape']}."
        )
    mean, std = (torch.tensor(stored[name], device=device) for name in ("mean", "std"))
    return dataclasses.replace(test, mean=mean, std=std)


def report(arguments: list[str]) -> int:
    """``plantops report RUN``."""
    options = parse(ReportOptions, "report", arguments)
    read_run(options.run)
    with mistakes(options):
        print(write(Path(options.run), options.data_root, options.model))
    return 0


def write(run: Path, data_root: str | None = None, model: str | None = None) -> Path:
    """The report of a run, with what its networks see.

    Raises:
        Mistake: matplotlib is not installed.
    """
    try:
        from plantops.train.report import write_report
        from plantops.train.report.story import read_story

        read_story(run)  # what is wrong with the records is said before anything is computed for them
        return write_report(run, features=_features(run, data_root, model))
    except ImportError as error:
        raise Mistake(f"the report needs {error.name}: pip install 'plantops[plots]'") from None


def _features(run: Path, data_root: str | None, model: str | None) -> Features | str:
    try:
        return embed_features(run, data_root=data_root, model=model)
    except NoFeatures as reason:
        return str(reason)
