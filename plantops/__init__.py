"""plantops: plant channels into trained networks, with everything trained so far frozen."""

__version__ = "0.1.0"

from plantops import functional, models, nn
from plantops.errors import PlantopsError
from plantops.graph import Group, Plan, Site
from plantops.planting import Planter, PlanterConfig, PlanterResult, carry_state, load, merge, plant, save, trace
from plantops.pruning import PruneResult, prune

__all__ = [
    "Group",
    "Plan",
    "Planter",
    "PlanterConfig",
    "PlanterResult",
    "PlantopsError",
    "PruneResult",
    "Site",
    "carry_state",
    "functional",
    "load",
    "merge",
    "models",
    "nn",
    "plant",
    "prune",
    "save",
    "trace",
]
