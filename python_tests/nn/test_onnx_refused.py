"""ONNX export of a planted model says to merge first, whichever exporter of torch is asked."""

import pytest
import torch
from torch import nn

import plantops


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_planted_model_is_to_be_merged_first(dynamo: bool, tmp_path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    layer = plantops.nn.PlantedLinear.from_linear(nn.Linear(3, 4), 2)
    with pytest.raises(Exception, match=r"exported to ONNX.*merge"):
        torch.onnx.export(nn.Sequential(layer), (torch.randn(2, 3),), tmp_path / "planted.onnx", dynamo=dynamo)
    exported = torch.export.export(nn.Sequential(layer), (torch.randn(2, 3),))  # which is not ONNX
    assert any("planted_linear" in str(node.target) for node in exported.graph.nodes)
