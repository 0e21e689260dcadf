"""Without a GPU the Triton kernels run in Triton's interpreter, which must be said before Triton is imported.

It shows that indices, masks and formulas are right, not how a GPU rounds: it cuts a float32 off to a bfloat16 (our
kernels round by hand there, `plantops/ops/_triton_language.py`), multiplies in full float32 where TF32 is asked for,
and adds halves in the order and the type of numpy (`findings/triton_interpreter_rounding.sh`). Where kernels reduce,
store halves or use tensor cores, the machine code is what is checked (`make kernel-report`), and `test_on_gpu.py` on a
card.

Of a product of three parameters or more the default tier runs so many tests that each pair of values meets once; the
others are marked `exhaustive`.
"""

import os

import pytest
import torch

from python_tests.pairs import covering

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    products: dict[tuple, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not skipped(item):
            products.setdefault((item.path, item.originalname), []).append(item)
    for product in products.values():
        kept = covering([item.callspec.params for item in product])
        for place, item in enumerate(product):
            if place not in kept:
                item.add_marker(pytest.mark.exhaustive)


def skipped(item: pytest.Item) -> bool:
    """Whether it cannot run here, so that others have to cover its pairs."""
    marks = [mark for mark in item.iter_markers() if mark.name in ("skip", "skipif")]
    return any(mark.name == "skip" or mark.args[0] is True for mark in marks)
