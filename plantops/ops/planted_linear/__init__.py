"""A linear layer whose trunk is frozen and whose planted rows and input slices train."""

from plantops.ops.planted_linear.autograd import PlantedLinear
from plantops.ops.planted_linear.checks import ACTIVATIONS, INPUT_GRADS, check_blocks
from plantops.ops.planted_linear.composed import forward as composed
from plantops.ops.planted_linear.schema import forward_op

__all__ = ["ACTIVATIONS", "INPUT_GRADS", "PlantedLinear", "check_blocks", "composed", "forward_op"]
