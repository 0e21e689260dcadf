"""Which of our implementations a benchmark can run here."""

from __future__ import annotations

from plantops.bench.runner import Settings
from plantops.ops import _registry


def implementations(stem: str, settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The implementations of `settings.impls` that are live for an op, and for the others why they are not."""
    device = settings.device.type
    live = [impl for impl in settings.impls if impl == "auto" or _registry.live(stem, impl, device)]
    refused = {impl: _registry.why_not(stem, impl, device) for impl in settings.impls if impl not in live}
    return live, refused
