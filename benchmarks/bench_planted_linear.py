"""Every published case of planted_linear: ``plantops bench planted_linear --full``, with the options of that command.

    python benchmarks/bench_planted_linear.py [--device cuda] [--only TEXT] ...

CSV and plots go to benchmarks/results/ unless --out says otherwise.
"""

import sys

from harness import RESULTS

from plantops.bench.command import main

if __name__ == "__main__":
    sys.exit(main(["planted_linear", "--full", "--out", str(RESULTS), *sys.argv[1:]]))
