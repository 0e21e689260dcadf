"""What torch's layers and functions do to channels: the tables behind a trace.

A module is looked up by its exact type: a subclass may compute anything.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

# One value in, one value out, the same function for every channel.
POINTWISE_MODULES: frozenset[type[nn.Module]] = frozenset(
    {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign,
        nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.Identity,
    }
)  # fmt: skip
POINTWISE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.celu, F.gelu, F.silu, F.mish,
        F.sigmoid, F.tanh, F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.softplus, F.softsign, F.tanhshrink,
        F.hardshrink, F.softshrink, F.threshold, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.selu,
        torch.celu, torch.clamp, torch.abs, torch.square, torch.sqrt, torch.sin, torch.exp, torch.neg, torch.mul,
        torch.div, torch.add, torch.sub, torch.pow, torch.maximum, torch.minimum, torch.zeros_like,
        torch.ones_like, torch.full_like, operator.mul, operator.truediv,
        operator.add, operator.sub, operator.neg, operator.pow, operator.iadd, operator.isub, operator.imul,
        operator.itruediv,
    }
)  # fmt: skip
POINTWISE_METHODS = frozenset(
    {
        "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "clamp", "clamp_", "abs", "square", "sqrt", "sin", "exp",
        "neg", "mul", "mul_", "div", "div_", "add", "add_", "sub", "sub_", "pow", "copy_",
        "fill_", "zero_", "contiguous", "clone", "to", "float",
    }
)  # fmt: skip

# Another dtype or device for the same values.
CASTS = frozenset({"to", "float", "contiguous", "clone"})

# They drop values in train() alone, and plant holds them in eval().
DROPOUT_MODULES: frozenset[type[nn.Module]] = frozenset(
    {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout}
)
# The same as functions: where the forward has one of these, no module can switch it off.
DROPOUT_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)
# Over length, height, width: every channel for itself.
POOL_MODULES: frozenset[type[nn.Module]] = frozenset(
    {
        nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, nn.MaxPool2d, nn.AvgPool2d,
        nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d,
        nn.AdaptiveAvgPool3d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad1d, nn.ZeroPad2d,
        nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    }
)  # fmt: skip
POOL_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d, F.max_pool2d, torch.max_pool2d,
        F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d,
        F.adaptive_max_pool3d, F.interpolate,
    }
)  # fmt: skip

NORM_MODULES: frozenset[type[nn.Module]] = frozenset(
    {
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
        nn.GroupNorm,
    }
)  # fmt: skip

FLATTEN_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({torch.flatten})
RESHAPE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({torch.reshape, torch.unflatten})
SOFTMAX: frozenset[Any] = frozenset(
    {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"}
)
CAT_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({torch.cat, torch.concat, torch.concatenate})
REDUCTIONS: frozenset[Any] = frozenset({torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"})
SPLITS: frozenset[Any] = frozenset(
    {torch.split, torch.chunk, torch.unbind, torch.narrow, F.glu, "split", "chunk", "unbind", "narrow"}
)

_JOINS: dict[Any, str] = {
    torch.add: "it is added to",
    operator.add: "it is added to",
    operator.iadd: "it is added to",
    "add": "it is added to",
    "add_": "it is added to",
    torch.mul: "it is multiplied with",
    operator.mul: "it is multiplied with",
    operator.imul: "it is multiplied with",
    "mul": "it is multiplied with",
    "mul_": "it is multiplied with",
}


COUNTED = "its number of channels is read in the forward"


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of the function that ``node`` calls, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def joined(node: fx.Node) -> str:
    """How ``node`` joins tensors entry by entry, to be followed by what they are joined with."""
    return _JOINS.get(node.target, f"it is joined in {step_name(node)} with")


def parametrised(name: str) -> str:
    """Why a parametrised layer cannot grow."""
    return f"{name} is parametrised: remove it with torch.nn.utils.parametrize.remove_parametrizations"


def reason_not_followed(node: fx.Node, module: nn.Module | None) -> str:
    """Why a producer whose channels reach ``node`` cannot grow, in plain words."""
    if module is None:
        if node.target is F.layer_norm:
            return f"{step_name(node)} normalises over its channels, so new ones would change the old"
        return f"its channels go through {step_name(node)}, which trace does not follow"
    kind = type(module).__name__
    if parametrize.is_parametrized(module):
        return parametrised(str(node.target))
    if isinstance(module, (nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)):
        return f"{node.target} ({kind}) normalises over its channels, so new ones would change the old"
    if isinstance(module, (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)):
        return f"{node.target} ({kind}) mixes its channels"
    return f"its channels go through {node.target} ({kind}), which trace does not follow"


def step_name(node: fx.Node) -> str:
    """How a node is called in messages and in ``Site.passes``: a layer's name, else the node's own."""
    return str(node.target) if node.op == "call_module" else node.name


def is_norm_act(module: nn.Module) -> bool:
    """timm's ``BatchNormAct2d``: a batch norm that applies its children ``drop`` and ``act`` to the result."""
    children = isinstance(getattr(module, "drop", None), nn.Module) and isinstance(
        getattr(module, "act", None), nn.Module
    )
    return type(module).__name__ == "BatchNormAct2d" and isinstance(module, nn.BatchNorm2d) and children


def is_norm(module: nn.Module) -> bool:
    """Does the module normalise dimension 1 by channels or by groups of them?"""
    return type(module) in NORM_MODULES or is_norm_act(module)


def is_stochastic_depth(module: nn.Module) -> bool:
    """torchvision's and timm's layers that drop whole samples in ``train()``."""
    return type(module).__name__ in ("StochasticDepth", "DropPath")


def drops_nothing(node: fx.Node) -> bool:
    """Is ``node`` a functional dropout of probability 0, which does nothing in any mode?"""
    if node.op != "call_function" or node.target not in DROPOUT_FUNCTIONS:
        return False
    probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    return isinstance(probability, (int, float)) and probability == 0
