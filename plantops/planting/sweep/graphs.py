"""Steps as CUDA graphs: captured once, then one launch each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

Step = Callable[[], None]
Branches = Sequence[contextlib.AbstractContextManager[Any]]

WARM_UP = 2
"""Steps in front of a capture: kernels are compiled and chosen, workspaces and optimizer state made."""


MOST_BRANCHES = 8
"""Work of more branches follows that of earlier ones: what goes on at the same time holds memory at the same time."""


class Graphs(Protocol):
    """What captures steps. A captured step reads and writes the tensors that it met when it was captured."""

    def warm_up(self, step: Step) -> None:
        """Run ``step``, which leaves no trace, as often as a capture needs."""

    def capture(self, step: Step) -> Step:
        """What does again what ``step`` does, which itself does nothing to any tensor now."""

    def branches(self, count: int) -> contextlib.AbstractContextManager[Branches]:
        """``count`` contexts whose work may go on at the same time, behind what was before and in front of what
        follows."""

    def close(self) -> None:
        """Give everything back."""


class CudaGraphs:
    """Captures into CUDA graphs, which share one pool of memory: nothing but the state of the steps outlives a replay.

    ``branches`` are streams that fork from the current one and join it, under capture and without.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._side: list[torch.cuda.Stream] = []
        self._pool: Any = None
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, step: Step) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.random.fork_rng([self._device]), torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    step()
        finally:  # what a step that failed still does comes before what is done instead
            current.wait_stream(self._stream)

    def capture(self, step: Step) -> Step:
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                step()
        self._pool = graph.pool()
        self._graphs.append(graph)
        return graph.replay

    @contextlib.contextmanager
    def branches(self, count: int) -> Iterator[Branches]:
        current = torch.cuda.current_stream(self._device)
        while len(self._side) < min(count, MOST_BRANCHES):
            self._side.append(torch.cuda.Stream(self._device))
        streams = self._side[: min(count, MOST_BRANCHES)]
        for stream in streams:
            stream.wait_stream(current)
        try:
            yield [torch.cuda.stream(streams[place % len(streams)]) for place in range(count)]
        finally:
            for stream in streams:
                current.wait_stream(stream)

    def close(self) -> None:
        if self._graphs:
            torch.cuda.synchronize(self._device)
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._pool = None
        torch.cuda.empty_cache()  # a graph's pool serves nobody else


class Captured:
    """Steps by name: each is captured when it first comes, and replayed from then on.

    Args:
        rehearsal: a context behind which nothing of what a step did inside it is left.
        refused: told why, when a step cannot be captured; it and all later ones are run instead.
    """

    def __init__(
        self,
        graphs: Graphs,
        rehearsal: Callable[[], contextlib.AbstractContextManager[None]],
        refused: Callable[[str], None],
    ) -> None:
        self._graphs, self._rehearsal, self._refused = graphs, rehearsal, refused
        self._replays: dict[object, Step] = {}
        self._capturing = True

    def run(self, name: object, step: Step) -> None:
        """``step``, which does the same to the same tensors whenever ``name`` is the same."""
        if self._capturing and name not in self._replays:
            try:
                self._graphs.warm_up(lambda: self._rehearse(step))
                self._replays[name] = self._graphs.capture(step)
            except RuntimeError as reason:
                self._capturing = False
                self.forget()
                self._refused(str(reason))
        self._replays.get(name, step)()

    def forget(self) -> None:
        """Drop all graphs, as when the tensors have changed places."""
        self._replays.clear()
        self._graphs.close()

    def _rehearse(self, step: Step) -> None:
        with self._rehearsal():
            step()
