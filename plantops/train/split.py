"""Which images train and which are held out."""

from __future__ import annotations

import torch
from torch import Tensor

from plantops._arguments import check_number, check_type
from plantops.errors import ArgumentError
from plantops.train.seeds import generator


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out ``fraction`` of every class; the result is a function of (labels, fraction, seed) alone.

    ``round(fraction * N)`` samples are held out in all: each class gives the whole part of its share, and the classes
    with the largest remainders one more (ties: the lower class first). Every class keeps at least one sample.

    Args:
        labels: int64 ``[N]``.
        fraction: 0 < fraction < 1.

    Returns:
        ``(kept, held)``: int64 indices in ascending order, disjoint, together 0 .. N - 1.

    Raises:
        ValueError: a fraction outside (0, 1), or so few samples that one of the two sides would be empty.
    """
    check_type("labels", labels, Tensor, "a tensor")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ArgumentError(f"labels must be whole numbers [N], got {labels.dtype} {list(labels.shape)}")
    check_number("fraction", fraction, "between 0 and 1")
    if not 0.0 < fraction < 1.0:
        raise ArgumentError(f"fraction must lie between 0 and 1 (both excluded), got {fraction}")
    labels = labels.cpu()
    total = round(fraction * len(labels))
    classes, counts = labels.unique(return_counts=True)
    shares = [fraction * count for count in counts.tolist()]
    held_counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: (held_counts[place] - shares[place], place))
    for place in by_remainder[: max(0, total - sum(held_counts))]:
        held_counts[place] += 1
    held_counts = [min(held, count - 1) for held, count in zip(held_counts, counts.tolist(), strict=True)]
    if sum(held_counts) == 0:
        raise ArgumentError(f"fraction {fraction} of {len(labels)} samples in {len(classes)} classes holds out none")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in zip(classes.tolist(), held_counts, strict=True):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        held[members[order[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
