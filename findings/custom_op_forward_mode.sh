#!/usr/bin/env bash
# torch 2.14.1, torch.library.custom_op, forward-mode derivatives.
#
# Seen: an operator defined by torch.library.custom_op (with a formula for reverse mode, or with none) drops the tangent
# of its input without a word: torch.func.jvp gives 0 for the operator x * x at x = 3 (right: 6), and a dual tensor comes
# out without a tangent. With torch.func.jacfwd the whole Jacobian is 0. Reverse mode is right.
#
# Contradicts: what torch does elsewhere where a derivative is missing. An autograd.Function without `jvp` raises
# NotImplementedError, and so does an operator of torch's own that has no forward-mode formula.
#
# Reason: the autograd kernel that torch makes for such an operator runs it below autograd and looks at requires_grad
# alone; nothing there reads or sets a tangent (torch/_library/autograd.py, make_autograd_impl).
#
# Output seen:
#   reverse mode: 6.0
#   torch.func.jvp: 0.0 with a formula, 0.0 without (right: 6.0)
#   torch.func.jacfwd: 0.0
#   forward_ad: tangent None
#   autograd.Function without jvp: NotImplementedError
#
# Exits 0 while this is so, 1 when it has changed. FINDINGS_PYTHON may name a Python that has the pinned package.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1
  python=$folder/venv/bin/python
fi

cd "$folder"
"$python" - <<'PYTHON'
import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad


@torch.library.custom_op("findings::square", mutates_args=())
def square(x: Tensor) -> Tensor:
    return x * x


@torch.library.custom_op("findings::bare", mutates_args=())
def bare(x: Tensor) -> Tensor:
    return x * x


square.register_autograd(
    lambda ctx, grad: 2 * ctx.saved_tensors[0] * grad,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


three, one = torch.tensor(3.0), torch.tensor(1.0)
leaf = three.clone().requires_grad_()
reverse = torch.autograd.grad(square(leaf), leaf)[0].item()
pushed = [torch.func.jvp(op, (three,), (one,))[1].item() for op in (square, bare)]
jacobian = torch.func.jacfwd(square)(three).item()
with forward_ad.dual_level():
    tangent = forward_ad.unpack_dual(square(forward_ad.make_dual(three, one))).tangent
try:
    torch.func.jvp(Square.apply, (three,), (one,))
    refused = "nothing raised"
except Exception as error:
    refused = type(error).__name__
print(f"reverse mode: {reverse}")
print(f"torch.func.jvp: {pushed[0]} with a formula, {pushed[1]} without (right: 6.0)")
print(f"torch.func.jacfwd: {jacobian}")
print(f"forward_ad: tangent {tangent}")
print(f"autograd.Function without jvp: {refused}")
sys.exit(not (reverse == 6 and pushed == [0, 0] and jacobian == 0 and tangent is None and refused != "nothing raised"))
PYTHON
