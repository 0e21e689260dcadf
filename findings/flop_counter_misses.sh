#!/usr/bin/env bash
# torch 2.14.1, torch.utils.flop_counter.FlopCounterMode: layers whose work it counts wrongly, without a word.
#
# Seen: the backward of a grouped convolution is counted as if its weight gradient had no groups: 5 times the forward for
# 4 groups and 33 times for a depthwise convolution of 32 channels, where it is 2 times for every number of groups. On a
# CPU an nn.LSTM counts 0 (an nn.GRU does not), and so does an nn.TransformerEncoderLayer in eval() without gradients,
# although both compute what they compute elsewhere.
#
# Contradicts: what the counter is for. A sum over a network looks plausible: MobileNets come out several times too dear to
# train, networks with an LSTM too cheap.
#
# Reason: the formula of the weight gradient takes a plain convolution of input and gradient, all channels with all; the
# number of groups is an argument that it does not use. mkldnn_rnn_layer and the fused encoder layer are single operators
# that have no formula, and operators without one count 0.
#
# Output seen:
#   backward over forward: 1 group 2.0, 4 groups 5.0, 32 groups (depthwise) 33.0
#   nn.LSTM: 0, nn.GRU: 138240
#   nn.TransformerEncoderLayer in eval(): 1996800 with gradients, 0 without
#
# Exits 0 while this is so, 1 when it has changed. FINDINGS_PYTHON may name a Python that has the pinned packages.
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
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

assert torch.__version__.split("+")[0] == "2.14.1", torch.__version__


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


ratios = {}
for groups in (1, 4, 32):
    layer = nn.Conv2d(32, 32, 3, padding=1, groups=groups, bias=False)
    image = torch.randn(2, 32, 8, 8, requires_grad=True)
    forward = counted(lambda: layer(image))
    assert forward == 2 * 2 * 64 * 32 * 9 * 32 // groups
    ratios[groups] = counted(lambda: layer(image).sum().backward()) / forward - 1
print(
    f"backward over forward: 1 group {ratios[1]:.1f}, 4 groups {ratios[4]:.1f}, "
    f"32 groups (depthwise) {ratios[32]:.1f}"
)

steps = torch.randn(5, 3, 16)
lstm, gru = (counted(lambda: kind(16, 32)(steps)) for kind in (nn.LSTM, nn.GRU))
print(f"nn.LSTM: {lstm}, nn.GRU: {gru}")
encoder = nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
with_gradients = counted(lambda: encoder(steps))
with torch.no_grad():
    without = counted(lambda: encoder(steps))
print(f"nn.TransformerEncoderLayer in eval(): {with_gradients} with gradients, {without} without")

same = ratios == {1: 2.0, 4: 5.0, 32: 33.0} and lstm == 0 < gru and without == 0 < with_gradients
print("as described" if same else "it has changed")
sys.exit(0 if same else 1)
PYTHON
