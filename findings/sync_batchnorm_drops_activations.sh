#!/usr/bin/env bash
# torch 2.14.1, torch.nn.SyncBatchNorm.convert_sync_batchnorm: what becomes of norms that do more than normalise.
#
# Seen: every norm whose class derives from BatchNorm is replaced by a plain SyncBatchNorm, whatever its own forward
# computes. All 49 activations of timm's efficientnet_b0 lie in such norms (BatchNormAct2d): converted, the network has none
# of them left and gives other outputs, in eval() and on one device, too. Hooks of the norms are gone as well. Nothing is
# raised or warned of.
#
# Contradicts: what the function says of itself, that it gives the module with its BatchNorm layers converted; the
# parameters and statistics that are carried over make it look so.
#
# Reason: the walk asks isinstance(module, _BatchNorm) and copies sizes, weights and statistics, neither forward nor hooks.
# timm has a converter of its own (timm.layers.convert_sync_batchnorm), which keeps the activations; shown beside it.
#
# Output seen:
#   norms with an activation: 49, after torch's conversion 0, after timm's 49
#   outputs after torch's conversion: other by 8.0e+05 of the largest one; after timm's: by 0.0e+00
#   a hook of a converted norm is called 0 times
#
# Exits 0 while this is so, 1 when it has changed. FINDINGS_PYTHON may name a Python that has the pinned packages.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31
  python=$folder/venv/bin/python
fi

cd "$folder"
"$python" - <<'PYTHON'
import copy
import sys

import timm
import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

assert torch.__version__.split("+")[0] == "2.14.1" and timm.__version__ == "1.0.31", (torch.__version__, timm.__version__)
torch.manual_seed(0)
model = timm.create_model("efficientnet_b0", pretrained=False).eval()
images = torch.randn(2, 3, 64, 64)


def active(network):
    return sum(isinstance(module, (BatchNormAct2d, SyncBatchNormAct)) for module in network.modules())


torchs = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
timms = convert_sync_batchnorm(copy.deepcopy(model)).eval()
with torch.no_grad():
    expected = model(images)
    errors = [float((network(images) - expected).abs().max() / expected.abs().max()) for network in (torchs, timms)]
counts = [active(network) for network in (model, torchs, timms)]
print(f"norms with an activation: {counts[0]}, after torch's conversion {counts[1]}, after timm's {counts[2]}")
print(f"outputs after torch's conversion: other by {errors[0]:.1e} of the largest one; after timm's: by {errors[1]:.1e}")

calls = []
hooked = nn.Sequential(nn.BatchNorm2d(3)).eval()
hooked[0].register_forward_hook(lambda *_: calls.append(1))
nn.SyncBatchNorm.convert_sync_batchnorm(hooked)(images)
print(f"a hook of a converted norm is called {len(calls)} times")

same = counts[1] == 0 < counts[0] == counts[2] and errors[0] > 0.1 and errors[1] < 1e-3 and not calls
print("as described" if same else "it has changed")
sys.exit(0 if same else 1)
PYTHON
