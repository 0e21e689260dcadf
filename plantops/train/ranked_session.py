"""A session of several processes: each runs the program, the work is done once, and all know its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from plantops.train.progress import Progress
from plantops.train.ranks import Ranks
from plantops.train.run import Run
from plantops.train.session import Finished, Session
from plantops.train.together import Part, Share, Together


class RankedSession(Session):
    """``Session`` for process ``ranks.rank`` of ``ranks.size``.

    Process 0 has the run: it writes records and checkpoints, and trains what is trained alone. Shares of a sweep are
    trained by their owners at the same time. Every process then has the same finished work, so all take the same way
    through the program. A process that dies takes the others with it; torchrun starts all of them again, and the work
    of the others since the last checkpoint is done again.

    Args:
        run: of process 0; None in the others.
        device: where the tensors of finished work lie.
    """

    def __init__(
        self,
        ranks: Ranks,
        run: Run | None = None,
        *,
        device: torch.device | str = "cpu",
        checkpoint_seconds: float = 30.0,
        progress: Progress | None = None,
        logger: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(run, checkpoint_seconds=checkpoint_seconds, progress=progress, logger=logger)
        self._ranks, self._device = ranks, device
        self._sent: list[dict[str, Any]] | None = None
        for key in ranks.json(list(self._finished), 0):
            self._finished[key] = self._exchanged(self._finished.get(key), 0)

    @property
    def workers(self) -> int:
        return self._ranks.size

    def record(self, kind: str, **fields: Any) -> None:
        """As in ``Session``; what a worker without the run writes while it trains its share, process 0 writes later."""
        if self._sent is not None:
            self._sent.append({"kind": kind, **fields})
        super().record(kind, **fields)

    def fit_together(
        self, parts: Sequence[Part], make_trainer: Callable[[], Together], *, phase: str
    ) -> list[Finished]:
        return self.fit_spread([Share(0, parts, make_trainer)], phase=phase)[0]

    def fit_spread(self, shares: Sequence[Share], *, phase: str) -> list[list[Finished]]:
        done = [all(part.key in self._finished for part in share.parts) for share in shares]
        written: dict[int, list[dict[str, Any]]] = {}
        for place, share in enumerate(shares):
            if done[place] or share.owner == self._ranks.rank:
                self._sent = None if self._ranks.rank == 0 or done[place] else []
                super().fit_together(share.parts, share.make_trainer, phase=phase)
                written[place], self._sent = self._sent or [], None
        for place, share in enumerate(shares):
            if not done[place]:
                self._exchange(share, written.get(place, []))
        return [[self._finished[part.key] for part in share.parts] for share in shares]

    def once(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self._finished:
            value = compute() if self._ranks.rank == 0 else {}
            self._finished[key] = Finished(self._ranks.json(value, 0))
        return self._finished[key].result

    def _exchange(self, share: Share, written: list[dict[str, Any]]) -> None:
        for record in self._ranks.json(written, share.owner):
            if share.owner != self._ranks.rank:
                self.record(**record)
        for part in share.parts:
            self._finished[part.key] = self._exchanged(self._finished.get(part.key), share.owner)

    def _exchanged(self, work: Finished | None, owner: int) -> Finished:
        own = work is not None and self._ranks.rank == owner
        facts = (work.result, work.records, work.epochs) if own and work is not None else None
        result, records, epochs = self._ranks.json(facts, owner)
        tensors = self._ranks.tensors(work.tensors if own and work is not None else {}, owner, self._device)
        return Finished(result, tensors, records, epochs)
