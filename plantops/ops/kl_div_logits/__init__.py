"""KL(softmax(teacher / T) || softmax(student / T)) from logits."""

from plantops.ops.kl_div_logits import reference
from plantops.ops.kl_div_logits.autograd import KLDivLogits
from plantops.ops.kl_div_logits.schema import REDUCTIONS, forward_op, value_and_grad_op

__all__ = ["REDUCTIONS", "KLDivLogits", "forward_op", "value_and_grad_op", "reference"]
