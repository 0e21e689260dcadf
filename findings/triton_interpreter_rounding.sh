#!/usr/bin/env bash
# triton 3.8.0, TRITON_INTERPRET=1: what the interpreter on a CPU computes otherwise than a GPU.
#
# Seen: (1) a float32 converted to bfloat16 is cut off, where the GPU's conversion rounds to nearest even: half of all
# values are one unit too small in the last place, and all of them lean the same way; (2) a product that asks for
# input_precision="tf32" is one of full float32, with 13 bits of each operand that a tensor core never sees.
#
# Contradicts: what the interpreter is for, finding wrong numbers of a kernel without a GPU. Its known limits, as the
# page on debugging lists them, are operations on bfloat16 and loads through pointers to pointers: neither the conversion
# nor the products of float32 are among them.
#
# Reason: the interpreter computes with numpy, which has no bfloat16 (triton/runtime/interpreter.py): there a bfloat16 is
# the upper half of a float32's bits, and a dot product is numpy's of the operands as they are.
#
# Output seen:
#   1.0048828125 to bfloat16: 1.0 (to nearest: 1.0078125)
#   tf32 product: 1.0000009536743164 (operand rounded to TF32: 1.0)
#
# Exits 0 while this is so, 1 when it has changed. FINDINGS_PYTHON may name a Python that has the pinned packages.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 triton==3.8.0 numpy==2.4.6
  python=$folder/venv/bin/python
fi

cd "$folder"
cat > kernels.py <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def store(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at).to(tl.bfloat16))


@triton.jit
def product(a, b, c, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision="tf32"))


x = torch.tensor([1.0 + 2**-8 + 2**-10] * 16)  # nearer to 1 + 2^-7 than to 1
y = torch.empty(16, dtype=torch.bfloat16)
store[(1,)](x, y, 16)
cut = y[0].item()

a = torch.full((16, 16), 1.0 + 2**-20)  # TF32 keeps 10 bits behind the point
c = torch.empty(16, 16)
product[(1,)](a, torch.eye(16), c, 16)
kept = c[0, 0].item()

print(f"{x[0].item()} to bfloat16: {cut} (to nearest: {x[:1].bfloat16().item()})")
print(f"tf32 product: {kept} (operand rounded to TF32: 1.0)")
sys.exit(not (cut == 1.0 and kept != 1.0))
PYTHON
TRITON_INTERPRET=1 "$python" kernels.py
