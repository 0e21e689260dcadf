"""Embeddings of what the networks of a run make of held-out images, for its report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plantops.planting.networks import NETWORKS, find_network
from plantops.train.data import ImageData, load
from plantops.train.files import RunError
from plantops.train.report.features import Features, Panel
from plantops.train.run import RunRecord, read_run
from plantops.train.seeds import generator
from plantops.train.sources.base import DataError

ROLES = ("teacher", "initial", "pruned", "planted", "finetuned", "retrained")
"""Networks that are shown, in this order; of the last two the one that the run ended with."""
FEWEST, SAMPLE, STEPS, Q, PERPLEXITY = 20, 600, 500, 2.0, 30.0
BATCH = 256


class NoFeatures(Exception):
    """Why there is nothing to show; the text is for the reader of the report."""


def embed_features(
    run_path: str | os.PathLike[str], *, data_root: str | None = None, model: str | None = None
) -> Features:
    """q-SNE of the features (what the last linear layer reads) of held-out images, for each network of a run.

    Images are up to 600 of the held-out part, drawn by the run's seed; each network's embedding starts from the
    principal components of its own features and takes 500 steps. The same run gives the same points on one machine.

    Args:
        data_root: where the official files are, if not where the run found them.
        model: the user's own factory that made the networks (``package.module:factory``), which may be run.

    Raises:
        NoFeatures: the run has no two stored networks, its data are not there or have changed, or a package is missing.
        RunError: no run there.
    """
    record = read_run(run_path)
    names = _names(Path(run_path), record)
    val = _held_out(record, data_root)
    if len(val) < FEWEST:
        raise NoFeatures(f"features are shown of {FEWEST} held-out images or more, the run has {len(val)}")
    seed = record.seed
    chosen = torch.randperm(len(val), generator=generator(seed, "features"))[:SAMPLE]
    images, labels = val.normalise(val.images[chosen]), val.labels[chosen]
    panels = []
    for name in names:
        try:
            network = find_network(run_path, name).build(model)
        except RunError as error:
            raise NoFeatures(f"{name} cannot be built: {error}") from error
        panels.append(_panel(name, penultimate(network, images, name), labels, seed))
    return Features(panels, labels.tolist(), val.class_names, Q, PERPLEXITY)


def _names(run: Path, record: RunRecord) -> list[str]:
    roles = {network["role"]: network["name"] for network in record.of("network")}
    if "retrained" in roles:
        roles.pop("finetuned", None)
    if "retrained" in roles or "finetuned" in roles:
        roles.pop("planted", None)
    names = [roles[role] for role in ROLES if role in roles]
    stored = [name for name in names if (run / NETWORKS / name).is_dir()]
    if len(stored) < 2:
        raise NoFeatures(
            f"features are shown where a run has stored two networks or more to compare, this one has {len(stored)} "
            f"({'it has not come to its end' if not names else ', '.join(stored) or 'none'})"
        )
    return stored


def _held_out(record: RunRecord, data_root: str | None) -> ImageData:
    """The held-out part as the run had it."""
    config: Mapping[str, Any] = record.config
    if "data" not in config:
        raise NoFeatures("the run does not say what its data are: a program of its own made it")
    options = {name: config[name] for name in ("val_fraction", "train_fraction", "image_size") if name in config}
    root = data_root or config.get("data_root")
    try:
        val = load(config["data"], root, seed=record.split_seed, **options).val
    except (DataError, ValueError, TypeError, AttributeError) as error:
        raise NoFeatures(f"the run's data cannot be read: {error}") from error
    written = [part for part in record.of("part") if part["part"] == "val"]
    if written and written[-1]["fingerprint"] != val.fingerprint():
        raise NoFeatures("the held-out part is not the one that the run had: its fingerprint is another")
    return val


def penultimate(model: nn.Module, images: Tensor, name: str = "model") -> Tensor:
    """What the last linear layer of the forward reads, one flat row an image.

    Raises:
        NoFeatures: the model calls no linear layer.
    """
    read: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    rows = []
    try:
        with torch.no_grad():
            for part in images.split(BATCH):
                read.clear()
                model.eval()(part)
                if not read:
                    raise NoFeatures(f"{name} has no linear layer at its end, whose input could be shown")
                rows.append(read[-1].flatten(1).float())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(rows)


def _panel(name: str, features: Tensor, labels: Tensor, seed: int) -> Panel:
    try:
        from plantops.embed import QSNE
    except ImportError as error:
        raise NoFeatures(str(error)) from error
    if not bool(features.isfinite().all()):
        raise NoFeatures(f"the features of {name} are not finite")
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    start = "pca" if features.shape[1] > 1 else "random"
    embedding = QSNE(q=Q, perplexity=perplexity, max_iter=STEPS, init=start, random_state=seed)
    points = embedding.fit_transform(features.numpy())
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    agreement = float((labels[distances.argmin(1)] == labels).float().mean())
    return Panel(name, [(float(x), float(y)) for x, y in points], embedding.kl_divergence_, agreement)
