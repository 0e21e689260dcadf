"""A convolution whose trunk is frozen and whose planted filters and input slices train."""

from plantops.ops.planted_conv2d.autograd import PlantedConv2d
from plantops.ops.planted_conv2d.checks import (
    ACTIVATIONS,
    INPUT_GRADS,
    check_blocks,
    check_geometry,
    check_result,
    pair,
    resolve_padding,
)
from plantops.ops.planted_conv2d.composed import forward as composed
from plantops.ops.planted_conv2d.schema import forward_op

__all__ = [
    "ACTIVATIONS",
    "INPUT_GRADS",
    "PlantedConv2d",
    "check_blocks",
    "check_geometry",
    "check_result",
    "composed",
    "forward_op",
    "pair",
    "resolve_padding",
]
