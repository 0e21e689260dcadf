"""The command ``plantops``: typed configuration in, functions called, results out.

Every mistake of the person who calls it becomes one short message on standard error that says what to do, and exit
status 2; Ctrl-C ends with 130 after a checkpoint.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

USAGE = """\
usage: plantops COMMAND [OPTIONS]        (plantops COMMAND --help shows the options)

  plant      grow a network by channel planting: teacher, initial network, search, report
  train      train one network with widths of your own, by cross entropy or from a teacher
  teacher    train a teacher
  prune      remove the filters that a run's network can do without, and fine-tune what is left
  evaluate   test loss, accuracy and cost of a run's network
  report     write a run's report.html again
  bench      measure the ops beside their peers on this machine
  info       which implementations are live, which are not and why

Try: plantops plant --data digits
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if given else 2
    if given[0] == "--version":
        from plantops import __version__

        print(f"plantops {__version__}")
        return 0
    from plantops._cli.mistakes import reported

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files can hold what no encoding has
    with reported(f"plantops {given[0]}", given[1:]) as outcome:
        from plantops._cli.dispatch import run_command

        outcome.status = run_command(given[0], given[1:])
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
