"""What the scripts in this folder share: the package's harness, and where results lie."""

from pathlib import Path

from plantops.bench.record import environment, table, write_csv
from plantops.bench.timing import measure

__all__ = ["RESULTS", "environment", "measure", "table", "write_csv"]

RESULTS = Path(__file__).parent / "results"
