"""Runs the command line in this process and kills it without warning (SIGKILL) at the N-th event.

Events are the moments between which a run's files and memory change: an optimizer step, a write to metrics.jsonl, a
synced file, a rename, a removed folder. Usage: killed.py N COMMAND [OPTIONS]; N = 0 never kills. Under torchrun it is
process 1 that dies, in its first life.
"""

import os
import shutil
import signal
import sys
from typing import Any

from plantops import cli
from plantops.train import checkpoint, files, loop


def main() -> int:
    left = int(sys.argv[1]) or -1
    if os.environ.get("RANK", "1") != "1" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        left = -1

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    loop.Learner.update = counted(loop.Learner.update)  # type: ignore[method-assign]
    checkpoint.write_synced = counted(checkpoint.write_synced)
    files.write_synced = counted(files.write_synced)
    os.write, os.rename, os.replace = counted(os.write), counted(os.rename), counted(os.replace)
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
