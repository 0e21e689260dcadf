"""Every published case of the losses: ``plantops bench losses --full``, with the options of that command.

    python benchmarks/bench_losses.py [--device cuda] [--only TEXT] ...

CSV and plots go to benchmarks/results/ unless --out says otherwise.
"""

import sys

from harness import RESULTS

from plantops.bench.command import main

if __name__ == "__main__":
    sys.exit(main(["losses", "--full", "--out", str(RESULTS), *sys.argv[1:]]))
