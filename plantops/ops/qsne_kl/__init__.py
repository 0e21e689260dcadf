"""The objective of q-SNE, KL(P || Q) between points and their embedding, with its exact gradient."""

from plantops.ops.qsne_kl import reference
from plantops.ops.qsne_kl.autograd import QSNEKL, objective
from plantops.ops.qsne_kl.checks import check_arguments, check_q, parts_of
from plantops.ops.qsne_kl.reference import negative_entropy
from plantops.ops.qsne_kl.schema import MOST_DIMENSIONS, qsne_kl_op

__all__ = [
    "MOST_DIMENSIONS",
    "QSNEKL",
    "check_arguments",
    "check_q",
    "negative_entropy",
    "objective",
    "parts_of",
    "qsne_kl_op",
    "reference",
]
