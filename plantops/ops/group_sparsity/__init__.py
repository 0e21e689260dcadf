"""Hierarchical group sparse regularisers of convolution weights: ten penalties, value and gradient."""

from plantops.ops.group_sparsity import reference
from plantops.ops.group_sparsity.autograd import GroupSparsity
from plantops.ops.group_sparsity.checks import check_arguments, check_choices
from plantops.ops.group_sparsity.penalties import GROUPS, PENALTIES
from plantops.ops.group_sparsity.schema import forward_op, value_and_grad_op

__all__ = [
    "GROUPS",
    "PENALTIES",
    "GroupSparsity",
    "check_arguments",
    "check_choices",
    "forward_op",
    "value_and_grad_op",
    "reference",
]
