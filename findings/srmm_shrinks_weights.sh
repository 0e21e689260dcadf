#!/usr/bin/env bash
# pytorch_optimizer 4.1.0, SRMM: its first step multiplies every weight by 2^-beta, 0.71 at its defaults.
#
# Seen: a parameter of ones holds 0.7071 after one step along a gradient of 0 (no weight decay; 0.5359 with beta=0.9),
# and stays there: what a network has learnt before is scaled away once, at the start. Of the other optimizers of the
# package that make this step, FTRL sets what has no gradient to 0, as its formula says, Nero scales as it says, Gravity
# begins with random velocities; none else moves it by more than 0.0001.
#
# Contradicts: the method (stochastic regularized majorization-minimization, weights as averages over the iterates),
# whose first average is the first iterate.
#
# Reason: the average of the weights starts at zeros, moves towards the weights by w = (1 + step)^-beta, which is 2^-beta
# and not 1 in the first step, and becomes the weights. Later averages begin where the weights are, so it happens once.
#
# Output seen:
#   SRMM(beta=0.5): ones become 0.7071, then 0.7071
#   SRMM(beta=0.9): ones become 0.5359, then 0.5359
#   moved along a gradient of 0: ftrl, gravity, nero, srmm
#
# Exits 0 while this is so, 1 when it has changed. FINDINGS_PYTHON may name a Python that has the pinned packages.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pytorch_optimizer==4.1.0
  python=$folder/venv/bin/python
fi

cd "$folder"
"$python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import pytorch_optimizer
import torch

warnings.simplefilter("ignore")
assert version("pytorch_optimizer") == "4.1.0", version("pytorch_optimizer")


def ones_after(kind, steps, **options):
    """Ones after steps along a gradient of 0, without weight decay."""
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = kind([parameter], **options)
    for group in optimizer.param_groups:
        group.update({key: 0.0 for key in group if "weight_decay" in key})
    for _ in range(steps):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return parameter.detach()


same = True
for beta in (0.5, 0.9):
    first, sixth = (ones_after(pytorch_optimizer.SRMM, steps, beta=beta) for steps in (1, 6))
    print(f"SRMM(beta={beta}): ones become {first[0, 0]:.4f}, then {sixth[0, 0]:.4f}")
    same &= torch.allclose(first, torch.tensor(2.0**-beta)) and torch.allclose(sixth, first)

moved = []
for name in pytorch_optimizer.get_supported_optimizers():
    try:
        change = (ones_after(pytorch_optimizer.load_optimizer(name), 1) - 1).abs().max()
    except Exception:  # needs other arguments, or a closure
        continue
    if change > 1e-4:
        moved.append(name)
print("moved along a gradient of 0:", ", ".join(moved))
same &= "srmm" in moved and len(moved) < 8
print("as described" if same else "it has changed")
sys.exit(0 if same else 1)
PYTHON
