"""Layers and losses for planting: drop-in modules with a frozen trunk and planted blocks that train."""

from plantops.nn.adversarial import (
    LogitDiscriminator,
    adversarial_student_loss,
    adversarial_terms,
    discriminator_loss,
)
from plantops.nn.anyconv import PlantedConv
from plantops.nn.channelwise import (
    PlantedBatchNorm3d,
    PlantedBatchNormAct2d,
    PlantedGroupNorm,
    PlantedInstanceNorm,
    PlantedPReLU,
)
from plantops.nn.conv import PlantedConv2d
from plantops.nn.group_sparsity import GroupSparsity
from plantops.nn.linear import PlantedLinear
from plantops.nn.losses import DistillationLoss, KLDivLogitsLoss
from plantops.nn.norm import PlantedBatchNorm1d, PlantedBatchNorm2d

__all__ = [
    "DistillationLoss",
    "GroupSparsity",
    "KLDivLogitsLoss",
    "LogitDiscriminator",
    "PlantedBatchNorm1d",
    "PlantedBatchNorm2d",
    "PlantedBatchNorm3d",
    "PlantedBatchNormAct2d",
    "PlantedConv",
    "PlantedConv2d",
    "PlantedGroupNorm",
    "PlantedInstanceNorm",
    "PlantedLinear",
    "PlantedPReLU",
    "adversarial_student_loss",
    "adversarial_terms",
    "discriminator_loss",
]
