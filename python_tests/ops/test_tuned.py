"""impl="auto" on a CUDA device follows a measured table; here a CPU stands for the device."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from plantops.functional import kl_div_logits, kl_div_logits_value_and_grad, planted_conv2d
from plantops.ops import _registry, _tuned

GPU = torch.device("cuda", 0)


class Implementations(TorchDispatchMode):
    """Records which implementation of which op is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "plantops":
            self.calls.append((func.overloadpacket.__name__, args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def follow(tmp_path: Path, monkeypatch):
    """Writes a table of the user's own and lets every tensor look as if it were on a GPU."""
    monkeypatch.setenv(_tuned.FOLDER, str(tmp_path))
    monkeypatch.setattr(_tuned, "architecture", lambda index: "sm_00")
    monkeypatch.setattr(_registry, "_device", lambda args: GPU)

    def write(*rows: dict) -> None:
        (tmp_path / "sm_00.json").write_text(json.dumps({"rule": list(rows)}))
        _tuned.forget()

    write()
    yield write
    _tuned.forget()


def row(op, traits, features, impl):
    return {"op": op, "traits": traits, "features": features, "impl": impl}


def called(function) -> list[tuple[str, str]]:
    with Implementations() as seen:
        function()
    return seen.calls


STUDENT, TEACHER = (torch.randn(64, 100, generator=torch.Generator().manual_seed(seed)) for seed in range(2))


def test_the_keys_of_a_linear_layer():
    """Rows, features in and out, planted ones in and out; backward, which part of the input gets a gradient."""
    x, weight, out, into, grad = (torch.ones(*size) for size in ((2, 3, 7), (4, 5), (3, 7), (4, 2), (2, 3, 7)))
    forward = (x, weight, out, into, None, None, 5, None, "relu")
    assert _registry.key("planted_linear", forward) == (("float32",), (6, 7, 7, 2, 3))
    for wanted, kind in ((True, "planted"), (False, "none")):
        backward = (grad, x, weight, out, into, grad, 5, "relu", "planted", (wanted, True, True, True, False))
        assert _registry.key("planted_linear_backward", backward) == (("float32", kind), (6, 7, 7, 2, 3))


def test_without_a_row_aten_computes(follow):
    assert called(lambda: kl_div_logits(STUDENT, TEACHER)) == [("kl_div_logits", "aten")]


def test_a_row_chooses_for_its_op_dtype_and_neighbourhood(follow):
    follow(
        row("kl_div_logits", ["float32"], [64, 100], "reference"),
        row("kl_div_logits_backward", ["float32"], [64, 100], "aten"),
        row("kl_div_logits_value_and_grad", ["bfloat16"], [64, 100], "reference"),
    )
    student = STUDENT.clone().requires_grad_()
    both = called(lambda: kl_div_logits(student, TEACHER).backward())
    assert both == [("kl_div_logits", "reference"), ("kl_div_logits_backward", "aten")]
    assert called(lambda: kl_div_logits_value_and_grad(STUDENT, TEACHER))[0][1] == "aten"
    halves = called(lambda: kl_div_logits_value_and_grad(STUDENT.bfloat16(), TEACHER.bfloat16()))
    assert halves[0][1] == "reference"
    assert called(lambda: kl_div_logits(STUDENT[:20], TEACHER[:20]))[0][1] == "reference"  # within a factor of four
    assert called(lambda: kl_div_logits(STUDENT[:10], TEACHER[:10]))[0][1] == "aten"


def test_the_values_are_those_of_torch(follow):
    follow(row("kl_div_logits", ["float32"], [64, 100], "reference"))
    expected = F.kl_div(F.log_softmax(STUDENT, -1), F.softmax(TEACHER, -1), reduction="batchmean")
    torch.testing.assert_close(kl_div_logits(STUDENT, TEACHER), expected)


def test_an_implementation_that_is_not_live_or_refuses_leaves_it_to_aten(follow, monkeypatch):
    follow(row("kl_div_logits", ["float32"], [64, 100], "native"))
    monkeypatch.setattr(_registry, "live", lambda *a: False)
    assert called(lambda: kl_div_logits(STUDENT, TEACHER)) == [("kl_div_logits", "aten")]

    def refuse(*args):
        raise NotImplementedError("not this shape")

    monkeypatch.setattr(_registry, "live", lambda *a: True)
    forward = _registry._ops["kl_div_logits"].implementations
    monkeypatch.setitem(forward, "reference", refuse)
    follow(row("kl_div_logits", ["float32"], [64, 100], "reference"))
    assert [impl for _, impl in called(lambda: kl_div_logits(STUDENT, TEACHER))] == ["reference", "aten"]


def test_a_convolution_is_known_by_layout_stride_and_what_gets_a_gradient(follow):
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    weight, planted, into = torch.randn(4, 4, 3, 3), torch.randn(2, 6, 3, 3), torch.randn(4, 2, 3, 3)
    for tensor in (planted, into):
        tensor.requires_grad_()

    def run(input, kind="planted", **more):
        return lambda: planted_conv2d(input, weight, planted, into, input_grad=kind, **more).sum().backward()

    features = [2, 6, 6, 2, 2, 9, 8]
    traits = ["float32", "contiguous", "stride 1x1", "groups 1", "pool 1"]
    follow(
        row("planted_conv2d", traits, features, "reference"),
        row("planted_conv2d_backward", [*traits, "planted"], features, "reference"),
    )
    ours = [("planted_conv2d", "reference"), ("planted_conv2d_backward", "reference")]
    assert called(run(x)) == ours
    assert called(run(x, "full"))[1][1] == "aten"
    assert called(run(x, stride=2)) == [(op, "aten") for op, _ in ours]
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert called(run(last))[0][1] == "aten"


def test_the_nearest_row_within_reach_wins():
    rows = [((128, 1000), "native"), ((4096, 1000), "triton"), ((128, 1000, 3), "reference")]
    assert _tuned.nearest(rows, (256, 1000)) == "native"
    assert _tuned.nearest(rows, (1500, 2000)) == "triton"
    assert _tuned.nearest(rows, (4096, 32768)) is None
    assert _tuned.nearest([], (1,)) is None


def test_the_users_rows_take_the_place_of_shipped_ones(tmp_path: Path, monkeypatch, follow):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(_tuned, "SHIPPED", shipped)
    table = {"rule": [row("a", ["float32"], [1, 2], "native"), row("a", ["float32"], [64, 64], "native")]}
    (shipped / "sm_00.json").write_text(json.dumps(table))
    follow(row("a", ["float32"], [1, 2], "triton"))
    assert _tuned.table("sm_00") == {("a", ("float32",)): {(1, 2): "triton", (64, 64): "native"}}


@pytest.mark.parametrize("text", ["{", "[]", '{"rule": [{"op": "a"}]}', '{"rule": [{"op": "a", "traits": [], '
                                  '"features": ["x"], "impl": "aten"}]}'])  # fmt: skip
def test_a_table_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, follow, text: str):
    (tmp_path / "sm_00.json").write_text(text)
    with pytest.warns(UserWarning, match=r"sm_00\.json is no table of measurements"):
        assert _tuned.choose("kl_div_logits", "sm_00", ("float32",), (64, 100)) == "aten"


def test_shipped_tables_name_implementations_that_exist():
    for path in _tuned.SHIPPED.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["machine"]["hardware"], path
        for entry in content["rule"]:
            assert entry["op"] in _registry.stems(), path
            assert entry["impl"] in _registry.IMPLS[1:], path
