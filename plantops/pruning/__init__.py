"""Filter pruning: which channels a trained network can do without, and their removal for real."""

from plantops.pruning.cut import remove_channels
from plantops.pruning.latency import latency_table
from plantops.pruning.prune import PruneResult, PruneStep, prune
from plantops.pruning.scores import loss_increases, magnitudes

__all__ = [
    "PruneResult",
    "PruneStep",
    "latency_table",
    "loss_increases",
    "magnitudes",
    "prune",
    "remove_channels",
]
