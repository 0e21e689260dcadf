"""Every published case of planted_conv2d: ``plantops bench planted_conv2d --full``, with the options of that command.

    python benchmarks/bench_planted_conv2d.py [--device cuda] [--only TEXT] ...

CSV and plots go to benchmarks/results/ unless --out says otherwise.
"""

import sys

from harness import RESULTS

from plantops.bench.command import main

if __name__ == "__main__":
    sys.exit(main(["planted_conv2d", "--full", "--out", str(RESULTS), *sys.argv[1:]]))
