"""What a round tries: every site alone, and several sites together that no single one could replace.

A trunk with a bottleneck gains little where one layer alone grows: what a wide layer makes has to pass the narrow one
after it. So neighbours may grow in pairs, and all sites in proportion to their widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from plantops.graph import Plan
from plantops.planting.candidate import Growth, Proposal, Student

ALL = "all"


def propose(student: Student, growths: Sequence[Growth], compound: Sequence[str], limit: int | None) -> list[Proposal]:
    """Each of ``growths`` alone, then the compounds of them, as far as they fit.

    A candidate that would have more than ``limit`` parameters grows by as many channels as fit, if these are at least
    half of those it was to have; else it is left out. ``all`` grows every site by the same share of its width: as many
    channels together as the sites alone have, and never fewer than one step of each.
    """
    plan = student.plan
    wanted = [Proposal.of(growth) for growth in growths]
    if "pairs" in compound:
        together = itertools.combinations(growths, 2)
        wanted += [Proposal(f"{a.site}+{b.site}", (a, b)) for a, b in together if _are_neighbours(plan, a, b)]
    if "all" in compound and len(growths) > 1:
        wanted.append(in_proportion(plan, growths))
    fitting = [_fitted(student, proposal, limit) for proposal in wanted]
    return [proposal for proposal in fitting if proposal is not None]


def in_proportion(plan: Plan, growths: Sequence[Growth]) -> Proposal:
    """All of ``growths`` together, their channels shared out by the sites' widths."""
    channels, width = sum(g.channels for g in growths), sum(plan[g.site].width for g in growths)
    return Proposal(ALL, tuple(_scaled(plan, g.site, channels * plan[g.site].width / width) for g in growths))


def _are_neighbours(plan: Plan, first: Growth, second: Growth) -> bool:
    """Whether a layer that gains filters in one of the sites reads the other."""
    one, other = plan[first.site], plan[second.site]
    return any({reader.name for reader in a.readers()} & set(b.producers) for a, b in ((one, other), (other, one)))


def _scaled(plan: Plan, site: str, channels: float) -> Growth:
    """About ``channels``, in steps of the site, one step at least."""
    step = plan[site].multiple
    return Growth(site, max(1, round(channels / step)) * step)


def _fitted(student: Student, proposal: Proposal, limit: int | None) -> Proposal | None:
    """``proposal``, or the largest share of it, from a half on, that has at most ``limit`` parameters."""

    def fits(share: float) -> Proposal | None:
        growths = tuple(_scaled(student.plan, g.site, share * g.channels) for g in proposal.growths)
        smaller = Proposal(proposal.name, growths)
        return smaller if limit is None or student.size_after(smaller)[0] <= limit else None

    if limit is None or student.size_after(proposal)[0] <= limit:
        return proposal
    return _largest(fits, [g.channels // student.plan[g.site].multiple for g in proposal.growths])


def _largest(fits: Callable[[float], Proposal | None], steps: Sequence[int]) -> Proposal | None:
    """The largest share, in as many steps as the widest growth has, that fits; None where a half does not."""
    count = max(steps)
    low, high = -(-count // 2), count - 1  # in steps; ``high`` is the first that was not tried
    best: Proposal | None = None
    while low <= high:
        middle = (low + high) // 2
        found = fits(middle / count)
        if found is None:
            high = middle - 1
        else:
            best, low = found, middle + 1
    return best
