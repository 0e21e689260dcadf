"""Which function serves which command."""

from __future__ import annotations

import difflib
import importlib

from plantops._cli.mistakes import Mistake
from plantops._cli.options import COMMANDS as OPTIONS

COMMANDS = {
    "plant": "training",
    "train": "training",
    "teacher": "training",
    "prune": "pruning",
    "evaluate": "looking",
    "report": "looking",
    "bench": "commands",
    "info": "commands",
}
"""The module of ``plantops._cli`` that holds the function of that name; only the one that is called is imported."""


def run_command(name: str, arguments: list[str]) -> int:
    """Run the command ``name``; returns the exit status.

    Raises:
        Mistake: no such command.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Mistake(f"no such command; the commands are {', '.join(COMMANDS)}.{hint}")
    if name in OPTIONS and any(argument in ("-h", "--help") for argument in arguments):
        from plantops._cli.help import help_of

        print(help_of(name, arguments), end="")
        return 0
    module = importlib.import_module(f"plantops._cli.{COMMANDS[name]}")
    status: int = getattr(module, name)(arguments)
    return status
