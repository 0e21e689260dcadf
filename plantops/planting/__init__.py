"""plant(), merge(), initialisers, the sweep and the search over rounds."""

from plantops.planting.carry import carry_state
from plantops.planting.check import PlantingError, check_function_preserving
from plantops.planting.config import PlanterConfig
from plantops.planting.fold import fold_batch_norm
from plantops.planting.gradmax import GradMax
from plantops.planting.initialise import INITIALISERS
from plantops.planting.merge import merge
from plantops.planting.networks import Network, find_network, load_network, save_network
from plantops.planting.plant import plant
from plantops.planting.search import Planter, PlanterResult
from plantops.planting.state import load, save
from plantops.planting.tracing import trace
from plantops.planting.trunk import planted_parameters, trunk_hash, trunk_state
from plantops.planting.verify import verify

__all__ = [
    "INITIALISERS",
    "GradMax",
    "Network",
    "Planter",
    "PlanterConfig",
    "PlanterResult",
    "PlantingError",
    "carry_state",
    "check_function_preserving",
    "find_network",
    "fold_batch_norm",
    "load",
    "load_network",
    "merge",
    "plant",
    "planted_parameters",
    "save",
    "save_network",
    "trace",
    "trunk_hash",
    "trunk_state",
    "verify",
]
