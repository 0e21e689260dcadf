"""What stands in for CUDA graphs on a machine without a GPU: a step's operations are recorded and done again.

As under a capture nothing that the step did remains, Python runs once only, and what waits for the device is an error.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], None]
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Recorder(TorchDispatchMode):
    """Every operation with the tensors that it met."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []
        self.written: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for place, argument in enumerate(function._schema.arguments):
            # A batch norm writes its running statistics, which its schema does not say.
            said = argument.alias_info is not None and argument.alias_info.is_write
            if said or argument.name.startswith("running_"):
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                self.written += [(one, one.clone()) for one in tree_leaves(value) if isinstance(one, Tensor)]
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, tree_leaves(result)))
        return result

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, before in reversed(self.written):
                tensor.copy_(before)
        self.written.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, results in self.operations:
                for old, new in zip(results, tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class RecordedGraphs:
    """``Graphs`` by ``Recorder``; counts what happens."""

    def __init__(self) -> None:
        self.captures = self.replays = self.closed = 0
        self.branched: list[int] = []

    def warm_up(self, step: Step) -> None:
        for _ in range(2):
            step()

    def capture(self, step: Step) -> Step:
        recorder = Recorder()
        try:
            with recorder:
                step()
        finally:
            recorder.undo()
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return replay

    @contextlib.contextmanager
    def branches(self, count: int) -> Iterator[list[Any]]:
        self.branched.append(count)
        yield [contextlib.nullcontext()] * count

    def close(self) -> None:
        self.closed += 1
