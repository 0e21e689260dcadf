#!/usr/bin/env bash
# torch 2.14.1, timm 1.0.31, pytorch_optimizer 4.1.0: a deep copy (or a pickle) of an optimizer cannot make a step.
#
# Seen: copy.deepcopy(optimizer) gives an object without a word, whose next step ends in AttributeError: torch's own
# LBFGS, timm's Lookahead (its inner optimizer is gone, and with it all momentum), and nearly all
# optimizers of pytorch_optimizer. Adam and SGD, on which people try it, are copied as expected.
#
# Contradicts: that copy and pickle keep an object, and the documentation of Optimizer, which says nothing of it.
#
# Reason: torch.optim.Optimizer.__getstate__ gives three entries, defaults, state and param_groups, whatever else an
# object has; __setstate__ of subclasses restores defaults of groups, not attributes. Whoever keeps an option or another
# optimizer in an attribute loses it. state_dict() and load_state_dict() into a newly constructed optimizer work.
#
# Output seen:
#   torch SGD: the copy steps as the original
#   torch Adam: the copy steps as the original
#   torch LBFGS: AttributeError: 'LBFGS' object has no attribute '_params'
#   timm Lookahead: AttributeError: 'Lookahead' object has no attribute '_base_optimizer'
#   pytorch_optimizer: 106 of 111 copies end in AttributeError
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
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31
  python=$folder/venv/bin/python
fi

cd "$folder"
"$python" - <<'PYTHON'
import copy
import inspect
import sys
import warnings
from importlib.metadata import version

import pytorch_optimizer
import torch
from timm.optim import Lookahead

warnings.simplefilter("ignore")
for package, expected in (("torch", "2.14.1"), ("timm", "1.0.31"), ("pytorch_optimizer", "4.1.0")):
    assert version(package).partition("+")[0] == expected, (package, version(package))


def step(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().mean()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure if isinstance(optimizer, torch.optim.LBFGS) else None)


def what_a_copy_does(make):
    """None where the optimizer does not train this model at all."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5)
    try:
        optimizer = make(model.parameters())
        for _ in range(3):
            step(model, optimizer)
    except Exception:
        return None
    try:
        twin, copied = copy.deepcopy((model, optimizer))
        step(twin, copied)
    except AttributeError as error:
        return f"AttributeError: {error}"
    step(model, optimizer)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    return "the copy steps as the original" if same else "the copy steps otherwise"


results = {
    "torch SGD": what_a_copy_does(lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
    "torch Adam": what_a_copy_does(lambda p: torch.optim.Adam(p, 0.01)),
    "torch LBFGS": what_a_copy_does(lambda p: torch.optim.LBFGS(p, 0.01, max_iter=2)),
    "timm Lookahead": what_a_copy_does(lambda p: Lookahead(torch.optim.SGD(p, 0.01, momentum=0.9))),
}
for name, result in results.items():
    print(f"{name}: {result}")

ran, broken = 0, 0
for name in pytorch_optimizer.get_supported_optimizers():
    kind = pytorch_optimizer.load_optimizer(name)
    required = [one for one in inspect.signature(kind.__init__).parameters.values() if one.default is one.empty]
    if {one.name for one in required} - {"self", "params", "args", "kwargs"}:
        continue
    result = what_a_copy_does(kind)
    ran += result is not None
    broken += result is not None and result.startswith("AttributeError")
print(f"pytorch_optimizer: {broken} of {ran} copies end in AttributeError")

words = list(results.values())
same = words[:2] == ["the copy steps as the original"] * 2 and all(
    word is not None and word.startswith("AttributeError") for word in words[2:]
)
same = same and broken > ran / 2
print("as described" if same else "it has changed")
sys.exit(0 if same else 1)
PYTHON
