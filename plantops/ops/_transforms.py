"""Transforms of torch.func (grad, vmap, jvp, jacrev, ...) and forward-mode derivatives.

The ops' kernels know nothing of them: a tangent that reached one would be lost without a word. A call that a transform
or a tangent takes part in is therefore computed by the op's formula in torch's own functions, which all of them know:
`composed.py` of the planted ops, `reference.py` of the others. This is what "auto", "aten" and "reference" are there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def involved(*tensors: Tensor | None) -> bool:
    """Whether a transform is to see what is computed from these tensors, or one of them has a tangent."""
    if torch._C._functorch.get_dynamic_layer_stack_depth():  # which torch.compile knows as a constant
        return torch.compiler.is_compiling() or any(t is not None and _seen(t) for t in tensors)
    if forward_ad._current_level < 0:
        return False
    return torch.compiler.is_compiling() or any(t is not None and has_tangent(t) for t in tensors)


def _seen(tensor: Tensor) -> bool:
    # Inside a transform torch takes no autograd function of ours, whatever the tensors are.
    return tensor.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation takes place along a tangent of this tensor."""
    return isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None


def check_impl(op: str, impl: str) -> None:
    """NotImplementedError for an implementation that is a kernel of our own."""
    if impl in ("native", "triton"):
        raise NotImplementedError(
            f"{op}: impl={impl!r} has no forward-mode derivative and no rule for a torch.func transform; "
            "use impl='auto', 'aten' or 'reference'"
        )


def values(tensor: Tensor) -> Tensor | None:
    """The tensor inside all transforms, to look at its values; None where there are none, while code is traced."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def may_hold(condition: Tensor) -> bool:
    """Whether the condition holds anywhere, or cannot be looked at: in traced code, and without a wait on a GPU."""
    known = values(condition)
    return known is None or known.device.type != "cpu" or bool(known.any())
