"""The networks of the channel planting paper, and wide residual networks. This package imports torch alone."""

from plantops.models.count import count_call_macs, count_macs, count_parameters
from plantops.models.initialise import initialise
from plantops.models.planting_net import PlantingNet, planting_net
from plantops.models.wide_resnet import WideResNet, wide_resnet

__all__ = [
    "PlantingNet",
    "WideResNet",
    "count_call_macs",
    "count_macs",
    "count_parameters",
    "initialise",
    "planting_net",
    "wide_resnet",
]
