"""A grown model is stored as files and comes back bit for bit, by the factory of the model that it once was."""

import copy
import json

import pytest
import torch
from torch import nn

import plantops
from plantops.train.files import RunError
from python_tests.planting.networks import seeded
from python_tests.planting.structures import STRUCTURES, network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)
NAMES = ("residual", "dense", "grouped", "group norm", "slopes", "transposed", "perceptron block", "linear gate",
         "gated in groups", "cross stage", "pixel shuffle")  # fmt: skip


def grown(name):
    net = network(name)
    for producer in STRUCTURES[name][3]:
        site = plantops.trace(net, X, grow_linear=True)[producer]
        net = plantops.merge(plantops.plant(net, site, 2 * site.multiple, "kaiming", generator=seeded()))
    return net.eval()


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name, tmp_path):
    net = grown(name)
    plantops.save(net, tmp_path / "model")
    loaded = plantops.load(tmp_path / "model", lambda: copy.deepcopy(network(name))).eval()
    assert torch.equal(loaded(X), net(X))
    assert repr(loaded) == repr(net)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert list(plantops.trace(loaded, X)) == list(plantops.trace(net, X))


def test_mistakes(tmp_path):
    net = network("residual")
    with pytest.raises(ValueError, match="model must be merged before it is saved"):
        plantops.save(plantops.plant(net, plantops.trace(net, X)["c1"], 2), tmp_path)
    with pytest.raises(RunError, match=r"structure\.json"):
        plantops.load(tmp_path / "nothing", lambda: net)
    plantops.save(net, tmp_path)
    with pytest.raises(ValueError, match=r"factory makes another model: c0 was stored with .* no such layer"):
        plantops.load(tmp_path, lambda: nn.Sequential(nn.Conv2d(2, 4, 3)))
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="damaged, its SHA-256"):
        plantops.load(tmp_path, lambda: net)
    (tmp_path / "structure.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(RunError, match=r"not written by plantops\.save"):
        plantops.load(tmp_path, lambda: net)
