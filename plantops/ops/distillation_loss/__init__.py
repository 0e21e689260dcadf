"""alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy, from logits."""

from plantops.ops.distillation_loss import reference
from plantops.ops.distillation_loss.autograd import DistillationLoss
from plantops.ops.distillation_loss.schema import REDUCTIONS, forward_op

__all__ = ["REDUCTIONS", "DistillationLoss", "forward_op", "reference"]
