"""The tables of the README and of the pages are those that the committed results make."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_tables_are_made_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "readme_tables", module)
    spec.loader.exec_module(module)
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    module.main()
    pages = [path.relative_to(tmp_path) for path in (tmp_path / "README.md", *sorted((tmp_path / "docs").glob("*.md")))]
    assert len(pages) > 5
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), f"{page}: run benchmarks/readme_tables.py"
