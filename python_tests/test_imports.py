"""Imports point downwards, `import plantops` needs no extra, and it works without the compiled module."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plantops

PACKAGE = Path(plantops.__file__).parent
FLOORS = {
    "_extension": 0,
    "errors": 0,
    "_arguments": 0,
    "models": 0,
    "ops": 1,
    "functional": 2,
    "embed": 3,
    "nn": 3,
    "graph": 4,
    "train": 5,
    "bench": 6,
    "pruning": 6,
    "planting": 7,
    "_cli": 8,
    "cli": 9,
}
EXTRAS = ("rich", "matplotlib", "sklearn", "torchvision", "tensorboard", "PIL", "triton")


def imported_modules(path: Path) -> set[str]:
    """Absolute names of the plantops modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("plantops.")}


def floor_of(module: str) -> int:
    """The floor of `plantops.<first part>`; names of the package itself (`__version__`) are below all."""
    return FLOORS.get(module.split(".")[1], 0)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return
    assert own in FLOORS, f"{path} stands on no floor"
    above = {name for name in imported_modules(path) if floor_of(name) > FLOORS[own]}
    assert not above, f"{path.relative_to(PACKAGE)} (floor {FLOORS[own]}) imports from above: {above}"


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import plantops, torch",
        "import torch, plantops",
        "import plantops.functional, torch",
        "import plantops.train, torch",
        "from plantops import Planter; import torch",
        "import plantops; plantops.nn; import torch",
    ],
)
def test_ops_are_registered_whatever_is_imported_first(code: str):
    assert run_python(f"{code}; print(torch.ops.plantops.kl_div_logits)").strip() == "plantops.kl_div_logits"


def test_import_alone_imports_no_torch_and_every_name_is_there():
    code = (
        "import sys, plantops; print('torch' in sys.modules)\n"
        "print(all(hasattr(plantops, name) for name in plantops.__all__), 'plant' in dir(plantops))\n"
        "print(plantops.planting.Planter is plantops.Planter, plantops.embed.__name__, hasattr(plantops, 'plnt'))"
    )
    assert run_python(code).split("\n")[:3] == ["False", "True True", "True plantops.embed False"]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_every_part_can_be_imported_first(path: Path):
    run_python(f"import plantops.{path.parent.name}")


def test_import_needs_no_extra():
    block = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"
    assert run_python(block + "import plantops; print(plantops.__version__)").strip() == plantops.__version__


def test_import_is_silent_and_loads_no_extra():
    code = f"import sys, plantops; print([n for n in {EXTRAS} if n in sys.modules])"
    assert run_python(code).strip() == "[]"


WITHOUT_MODULE = """
import sys, torch
sys.modules["plantops._C"] = None
import plantops, plantops.functional as PF
from plantops._extension import STATUS
s, t = torch.randn(4, 5), torch.randn(4, 5)
expected = torch.nn.functional.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")
torch.testing.assert_close(PF.kl_div_logits(s, t), expected)
x, w, p = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(2, 3, 3, 3)
torch.testing.assert_close(PF.planted_conv2d(x, w, p), torch.nn.functional.conv2d(x, torch.cat([w, p])))
try:
    PF.kl_div_logits(s, t, impl="native")
except NotImplementedError as error:
    print(STATUS.loaded, "--no-build-isolation" in str(error))
"""


def test_works_without_the_compiled_module():
    assert run_python(WITHOUT_MODULE).strip() == "False True"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"torch": "1.0"}, "built for torch 1.0"),
        ({"torch": ".".join(torch.__version__.split(".")[:2]), "cuda": "99.1"}, "built with CUDA 99.1"),
    ],
    ids=["torch", "cuda"],
)
def test_a_module_built_for_another_torch_is_not_loaded(record: dict[str, str], expected: str, tmp_path: Path):
    copy = tmp_path / "plantops"
    shutil.copytree(PACKAGE, copy)
    (copy / "_C_build.json").write_text(json.dumps(record))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import plantops\n"
        "from plantops._extension import STATUS\n"
        "print(plantops.__file__, STATUS.loaded, STATUS.reason)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    where, loaded, reason = result.stdout.split(maxsplit=2)
    assert Path(where).is_relative_to(tmp_path)
    assert loaded == "False"
    assert expected in reason
