"""Can this convolution, linear layer or norm be given more channels? Answered for the layer alone."""

from collections import Counter, defaultdict

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from plantops.graph import rules

PLANTABLE: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def _names() -> str:
    names = [kind.__name__ for kind in PLANTABLE]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def widths(module: nn.Module) -> tuple[int, int]:
    """Input and output features (channels) of a convolution or linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    assert isinstance(module, _ConvNd)
    return module.in_channels, module.out_channels


class Layers:
    """The modules of a traced model, with what the graph and the other modules do with them."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self._calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self._reads = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        self._owners: dict[int, list[str]] = defaultdict(list)
        for name, module in modules.items():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._owners[id(parameter)].append(name)

    def growable_names(self) -> list[str]:
        """Convolutions and linear layers, the layers on which a plan has to say something."""
        return [name for name, module in self.modules.items() if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear))]

    def weight_problem(self, name: str) -> str | None:
        """Why no block can be planted beside the weight of layer ``name``; None when one can."""
        module = self.modules[name]
        if parametrize.is_parametrized(module):
            return rules.parametrised(name)
        if type(module) not in PLANTABLE:
            return f"{name} is a {type(module).__name__}; only {_names()} (not subclasses) can grow"
        weight = module._parameters.get("weight")
        if weight is None:
            return f"the weight of {name} is computed from other tensors (weight_norm, spectral_norm or pruning)"
        if not weight.is_floating_point():
            return f"the weight of {name} is {weight.dtype}; only real floating-point weights can grow"
        return self.sharing_problem(name)

    def norm_problem(self, name: str) -> str | None:
        """Why norm ``name`` cannot be given more channels; None when it can."""
        module = self.modules[name]
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch and not module.track_running_stats:
            return f"{name} keeps no running statistics, so it cannot be held fixed"
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            return f"{name} is an instance norm with running statistics"
        return self.sharing_problem(name)

    def sharing_problem(self, name: str) -> str | None:
        """Why a layer with tensors of its own cannot be swapped for a wider one; None when it can."""
        if name in self._reads:
            return f"a parameter of {name} is read directly in the forward"
        for key, parameter in self.modules[name]._parameters.items():
            others = [owner for owner in self._owners.get(id(parameter), ()) if owner != name]
            if others:
                return f"{name} shares its {key} with {', '.join(others)}"
        return None

    def calls(self, name: str) -> int:
        return self._calls[name]
