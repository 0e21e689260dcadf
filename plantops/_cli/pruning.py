"""The command that prunes."""

from __future__ import annotations

from typing import Any

from plantops._cli import build, running
from plantops._cli.mistakes import Mistake, mistakes
from plantops._cli.options import PruneOptions, TeacherOptions
from plantops._cli.training import carry_out, load_teacher
from plantops.planting.experiment import ExperimentResult
from plantops.planting.prune_run import Pruning, prune_network
from plantops.train.session import Session


def prune(arguments: list[str]) -> int:
    """``plantops prune``."""
    with running.opened(PruneOptions, "prune", arguments) as (options, run):
        if not options.network:
            raise Mistake("give the run whose network is to be pruned, as in --network runs/train-digits-1.")
        device = build.choose_device(options)
        parts = build.load_parts(options, options.seed, device)
        pruning = settings(options)
        network = load_teacher(TeacherOptions(teacher=options.network), parts.train, device, options.model, "--network")
        assert network is not None
        own = TeacherOptions(teacher=options.teacher)
        teacher = load_teacher(own, parts.train, device, options.teacher_model or options.model)

        def work(session: Session) -> ExperimentResult:
            with mistakes(options):
                result, latency = prune_network(network, pruning, parts, session, teacher)
            if latency:
                running.show_table([_shown(row) for row in latency], f"One forward of 64 images, {device}")
            return result

        return carry_out("prune", options, device, run, work)


def settings(options: PruneOptions) -> Pruning:
    """The pruning of the options."""
    if options.max_parameters is None and options.max_macs is None and options.max_loss_increase is None:
        raise Mistake("say how far to prune: --max-parameters, --max-macs or --max-loss-increase.")
    finetune = build.prune_recipe(options) if options.finetune_epochs else None
    return Pruning(
        options.max_parameters,
        options.max_macs,
        options.max_loss_increase,
        options.criterion,
        options.share,
        options.multiple_of,
        options.samples,
        finetune,
        options.seed,
    )


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": row["network"],
        "parameters": row["parameters"],
        "MACs": row["macs"],
        "milliseconds": round(row["p50_ms"], 3),
        "speed-up": round(row["speedup"], 2),
    }
