#!/usr/bin/env bash
# lightning 2.6.6 EMAWeightAveraging on torch 2.14.1: what a moving average does to weights that are frozen.
#
# Seen: a network of which only the last layer trains (requires_grad is False elsewhere, the optimizer holds the last layer
# alone) comes out of trainer.fit with other bits in its frozen layers. torch has two functions for the same average:
# get_ema_avg_fn, which the callback takes, moves a weight that never changes; get_ema_multi_avg_fn does not.
#
# Contradicts: "frozen". The average of a constant is this constant, by the formula that both functions are documented with.
#
# Reason: decay * a + (1 - decay) * a, with both products rounded, is not a; the other function adds a multiple of the
# difference, which is 0. All parameters are averaged, and at the end of the training the averages are written back.
#
# Output seen:
#   after 20 averages: get_ema_avg_fn moved 15 % of the entries of a constant weight, get_ema_multi_avg_fn 0 %
#   after trainer.fit with EMAWeightAveraging: bits of the frozen layer changed; without it: kept
#
# Exits 0 while this is so, 1 when it has changed. FINDINGS_PYTHON may name a Python that has the pinned packages.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 lightning==2.6.6
  python=$folder/venv/bin/python
fi

cd "$folder"
"$python" - <<'PYTHON'
import logging
import sys
import warnings

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

assert torch.__version__.split("+")[0] == "2.14.1" and lightning.__version__ == "2.6.6"


def moved(**options):
    torch.manual_seed(0)
    layer = nn.Linear(100, 100).requires_grad_(False)
    average = AveragedModel(layer, **options)
    for _ in range(20):
        average.update_parameters(layer)
    return float((average.module.weight != layer.weight).float().mean())


shares = moved(avg_fn=get_ema_avg_fn(0.999)), moved(multi_avg_fn=get_ema_multi_avg_fn(0.999))
print(
    f"after 20 averages: get_ema_avg_fn moved {shares[0]:.0%} of the entries of a constant weight, "
    f"get_ema_multi_avg_fn {shares[1]:.0%}".replace("%", " %")
)


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.head = nn.Linear(8, 16).requires_grad_(False), nn.Linear(16, 1)

    def training_step(self, batch, _):
        return self.head(self.frozen(batch).relu()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.01)


def kept(*callbacks):
    task = Task()
    before = task.frozen.weight.clone()
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(task, torch.utils.data.DataLoader(torch.randn(32, 8), batch_size=8))
    return torch.equal(before, task.frozen.weight)


averaged, plain = kept(EMAWeightAveraging(decay=0.999)), kept()
words = {True: "kept", False: "changed"}
print(f"after trainer.fit with EMAWeightAveraging: bits of the frozen layer {words[averaged]}; without it: {words[plain]}")

same = shares[0] > 0.1 and shares[1] == 0 and not averaged and plain
print("as described" if same else "it has changed")
sys.exit(0 if same else 1)
PYTHON
