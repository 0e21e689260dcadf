"""Planted models compile in one graph; merged ones are plain torch for torch.export, ONNX, torch.compile."""

import pytest
import torch

from plantops.graph import trace
from plantops.models import PlantingNet
from plantops.nn import KLDivLogitsLoss
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash
from python_tests.planting.networks import images, paper_net, planned, seeded
from python_tests.planting.structures import network

WIDE = torch.randn(4, 2, 8, 8, generator=seeded(3))


@pytest.mark.parametrize("name", ["conv2", "conv5"])
def test_a_training_step_compiles_in_one_graph_and_once(name):
    torch.compiler.reset()
    net = paper_net(batch_norm=True).train()
    net.conv3 = torch.nn.Sequential(net.conv3, torch.nn.Dropout(0.5))
    planted = plant(net, planned(net)[name], 2, "kaiming", generator=seeded(1))
    eager = plant(net, planned(net)[name], 2, "kaiming", generator=seeded(1))
    before = trunk_hash(planted)
    loss_fn, teacher = KLDivLogitsLoss(), torch.randn(6, 4, generator=seeded())

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: loss_fn(planted(x), teacher), fullgraph=True, backend=backend)
    optimizers = [torch.optim.SGD(planted_parameters(model), 0.1) for model in (planted, eager)]
    for step in range(3):
        losses = [compiled(images(step)), loss_fn(eager(images(step)), teacher)]
        torch.testing.assert_close(*losses)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        planted.train()
    assert len(graphs) == 1
    assert trunk_hash(planted) == before


def test_a_merged_model_is_a_wider_plain_one():
    net = paper_net(batch_norm=True)
    merged = merge(plant(net, planned(net)["conv5"], 2, "kaiming", generator=seeded(1)))
    wider = PlantingNet((3, 4, 2, 5, 5), 4, in_channels=2, image_size=8, fc_width=6, batch_norm=True)
    wider.load_state_dict(merged.state_dict())
    assert torch.equal(wider.eval()(images()), merged.eval()(images()))


def test_a_merged_model_exports_without_our_ops():
    net = paper_net(batch_norm=True)
    merged = merge(plant(net, planned(net)["conv5"], 2, "kaiming", generator=seeded(1))).eval()
    program = torch.export.export(merged, (images(),))
    assert not any("plantops" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(images()), merged(images()))


GROWN = ("dense", "gate", "grouped in blocks", "volume", "gated in groups", "cross stage", "pixel shuffle")


def grown(name):
    """The structure in float32, grown at all its sites at once, and what it was planted as."""
    net = network(name).float().eval()
    plan = trace(net, WIDE)
    planted = plant(net, plan, {site.name: 2 * site.multiple for site in plan.values()}, "kaiming", generator=seeded(1))
    return merge(planted), planted


@pytest.mark.parametrize("name", GROWN)
def test_grown_structures_are_exported_and_compiled(name):
    merged, planted = grown(name)
    expected = planted(WIDE)
    program = torch.export.export(merged, (WIDE,))
    assert not any("plantops" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(WIDE), expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(merged, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(WIDE), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dense", "grouped in blocks", "gated in groups"])
def test_grown_structures_run_in_onnxruntime(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    merged, planted = grown(name)
    path = tmp_path / "model.onnx"
    torch.onnx.export(merged, (WIDE,), str(path), dynamo=True, verbose=False)
    onnx.checker.check_model(str(path))
    assert {node.domain for node in onnx.load(str(path)).graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: WIDE.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), planted(WIDE).detach(), rtol=1e-4, atol=1e-4)


def test_layers_that_reorder_keep_hooks_modes_and_memory_format():
    net = network("cross stage").to(memory_format=torch.channels_last).train()
    seen = []
    handle = net.a.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    net.f.eval()
    modes = [module.training for module in net.modules()]
    x = WIDE.double().to(memory_format=torch.channels_last)
    planted = plant(net, trace(net, x), {"a": 4, "b": 1, "d": 1, "f": 1}, inplace=True, generator=seeded(1))
    planted(x)
    merged = merge(planted, inplace=True)
    merged(x)
    handle.remove()
    merged(x)
    assert seen == [12, 12]
    assert [module.training for module in merged.modules()] == modes
    assert all(
        layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in (merged.a, merged.c, merged.f)
    )


def test_a_model_compiled_in_place_follows():
    torch.compiler.reset()
    net = network("permuted").float().eval()
    net.compile(backend="eager")
    expected = net(WIDE)
    plan = trace(net, WIDE)
    plant(net, plan["a"], 2, "kaiming", inplace=True, generator=seeded(1))
    planted = net(WIDE)
    assert not torch.equal(planted, expected)
    torch.testing.assert_close(merge(net, inplace=True)(WIDE), planted)


def test_growing_again_and_again_piles_nothing_up_and_stays_compiled():
    torch.compiler.reset()
    net = network("permuted").float().eval()
    attributes = set(vars(net))
    modules = [type(module) for module in net.modules()]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for round in range(6):
        for step in ("planted", "merged"):
            if step == "planted":
                net = plant(net, trace(net, WIDE)["a"], 1, "kaiming", generator=seeded(round))
            else:
                net = merge(net)
            before = len(graphs)
            compiled = torch.compile(net, backend=backend, fullgraph=True)
            torch.testing.assert_close(compiled(WIDE), net(WIDE))
            compiled(WIDE)
            assert len(graphs) == before + 1, f"{step} in round {round} is not compiled once"
    assert [type(module) for module in net.modules()] == modules
    assert net.a.out_channels == 10
    assert set(vars(net)) - {"_is_torch_compile"} == attributes
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
