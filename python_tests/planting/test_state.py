"""A grown model is stored as files and comes back bit for bit, by the factory of the model that it once was."""

import copy
import hashlib
import json

import pytest
import safetensors.torch
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
        site = plantops.trace(net, X)[producer]
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


# Files that anyone may have written


def foreign(folder, layers=None, tensors=None):
    """A stored ``net()`` with other content, and the right checksum over it."""
    plantops.save(net(), folder)
    structure = json.loads((folder / "structure.json").read_text())
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    content = safetensors.torch.save({**stored, **(tensors or {})})
    (folder / "model.safetensors").write_bytes(content)
    structure["sha256"] = hashlib.sha256(content).hexdigest()
    structure["layers"] = layers(structure["layers"]) if callable(layers) else structure["layers"]
    (folder / "structure.json").write_text(json.dumps(structure))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.GroupNorm(4, 8), nn.ConvTranspose2d(8, 6, 2, groups=2),
        nn.Conv2d(6, 6, 3, groups=3), nn.InstanceNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def unchanged(model):
    """Not half-loaded: widths, shapes and bits are those of the factory."""
    fresh = net()
    return repr(model) == repr(fresh) and all(
        torch.equal(value, model.state_dict()[key]) and value.dtype == model.state_dict()[key].dtype
        for key, value in fresh.state_dict().items()
    )


VALUES = (7, 10**30, -3, 0, True, 2.0, "3", [], None, {}, [3])
ENTRIES = [(name, key) for name, widths in plantops.planting.state.layer_widths(net()).items() for key in widths]


@pytest.mark.parametrize(("name", "key"), ENTRIES)
def test_a_width_is_believed_only_where_the_tensors_say_the_same(name, key, tmp_path):
    for value in VALUES:
        if (name, key) == ("6", "num_features") and value == 7:
            continue  # a norm without tensors: nothing that contradicts it
        foreign(tmp_path, lambda layers, value=value: {**layers, name: {**layers[name], key: value}})
        model = net()
        with pytest.raises(RunError, match=rf"structure\.json: damaged, layers\['{name}'\]") as caught:
            plantops.load(tmp_path, lambda model=model: model)
        assert str(value)[:3] in str(caught.value)
        assert unchanged(model)


@pytest.mark.parametrize("value", [None, [], "x", 3, {"0": None}, {"0": []}, {"0": 3}, {"0": {"kernel_size": 5}}])
def test_layers_of_another_form_are_named(value, tmp_path):
    foreign(tmp_path, lambda layers: value)
    model = net()
    with pytest.raises(RunError, match=r"structure\.json: damaged, layers"):
        plantops.load(tmp_path, lambda: model)
    assert unchanged(model)


WEIGHTS = {
    "another width": ("0.weight", torch.zeros(9, 3, 3, 3), RunError, "must be .8, 3, 3, 3.; it is .9, 3, 3, 3."),
    "another window": ("0.weight", torch.zeros(8, 3, 5, 5), RunError, "0.weight must be .8, 3, 3, 3."),
    "fewer dimensions": ("0.weight", torch.zeros(8), RunError, "0.weight must be"),
    "a scalar": ("9.weight", torch.tensor(1.0), RunError, "9.weight must be .5, 6.; it is .."),
    "a norm's": ("1.running_mean", torch.zeros(6), RunError, "1.running_mean must be .8."),
    "a counter's": ("1.num_batches_tracked", torch.zeros(2).long(), RunError, "num_batches_tracked must be .."),
    "integers": ("0.weight", torch.zeros(8, 3, 3, 3, dtype=torch.int8), RunError, "stored as torch.int8, .*32"),
    "booleans": ("0.bias", torch.zeros(8, dtype=torch.bool), RunError, "stored as torch.bool, .*32"),
    "complex": ("0.bias", torch.zeros(8, dtype=torch.complex64), RunError, "stored as torch.complex64, .*32"),
    "a float counter": ("1.num_batches_tracked", torch.tensor(1.5), RunError, "stored as torch.float32, .*int64"),
    "one more": ("0.scale", torch.zeros(8), ValueError, "its 0.scale was stored, and it has no such tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_do_not_fit_are_named(kind, tmp_path):
    name, tensor, error, message = WEIGHTS[kind]
    foreign(tmp_path, tensors={name: tensor})
    model = net()
    with pytest.raises(error, match=message) as caught:
        plantops.load(tmp_path, lambda: model)
    assert isinstance(caught.value, plantops.PlantopsError)
    assert unchanged(model)


def test_floating_point_becomes_the_factorys(tmp_path):
    half = net().half()
    plantops.save(half, tmp_path)
    loaded = plantops.load(tmp_path, net).state_dict()
    for key, value in half.state_dict().items():
        assert loaded[key].dtype == net().state_dict()[key].dtype
        assert torch.equal(loaded[key], value.to(loaded[key].dtype))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (net(), r"got a Sequential: pass lambda: Sequential\(\.\.\.\)"),
        (None, "got None"),
        ("torchvision:resnet18", "got 'torchvision:resnet18'"),
        (lambda: None, "factory must make a torch.nn.Module, got NoneType"),
        (lambda: net, "factory must make a torch.nn.Module, got function"),
    ],
)
def test_a_factory_is_a_function_that_makes_the_model(factory, message, tmp_path):
    plantops.save(net(), tmp_path)
    with pytest.raises(plantops.PlantopsError, match=message) as caught:
        plantops.load(tmp_path, factory)
    assert isinstance(caught.value, TypeError)
    assert unchanged(plantops.load(str(tmp_path), net))


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "[" * 200_000, '{"format": "plantops-model", "version": 1}'])
def test_a_description_of_another_form(text, tmp_path):
    plantops.save(net(), tmp_path)
    (tmp_path / "structure.json").write_text(text)
    with pytest.raises(RunError, match=r"structure\.json: (damaged|not written by plantops\.save)"):
        plantops.load(tmp_path, net)
