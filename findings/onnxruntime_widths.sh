#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: which widths of a convolution keep its fast layout.
#
# Seen: on x86-64 a convolution is computed in blocks of channels (the operators of com.microsoft.nchwc) where the number
# of channels that it reads is a multiple of 4, else in the plain layout. Of three convolutions in a row, through 64 or 68
# channels, all three are blocked; through 65, 66 or 67 only the first one, which reads the image. Three channels more in
# the middle take two convolutions out of it; one more brings them back. There is no message, also with all optimisations
# on.
#
# Contradicts: the guess that a block of 8 or 16 channels is padded where it is not full, which is what happens to what a
# convolution writes (63 to 68 channels make no difference to the first one), or that multiples of 8 or 16 are needed.
#
# Reason, as far as the optimised graphs show it: the width that counts is that of the input, and 4 is what it is asked for,
# whatever the processor's block.
#
# Output seen:
#   blocked convolutions of 3, by width: 63: 1, 64: 3, 65: 1, 66: 1, 67: 1, 68: 3, 72: 3
#
# Exits 0 while this is so, 1 when it has changed (on another processor than x86-64 there may be no blocks at all).
# FINDINGS_PYTHON may name a Python that has the pinned packages.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
  python=$folder/venv/bin/python
fi

cd "$folder"
"$python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

assert onnxruntime.__version__ == "1.32.0", onnxruntime.__version__
generator = np.random.default_rng(0)


def network(width):
    nodes, weights, channels, name = [], [], [3, width, width, 16], "x0"
    for layer, (fan_in, fan_out) in enumerate(zip(channels, channels[1:], strict=False)):
        weight = generator.standard_normal((fan_out, fan_in, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [f"x{layer + 1}"], pads=[1, 1, 1, 1]))
        name = f"x{layer + 1}"
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, count, 16, 16])
        for end, count in (("x0", 3), (name, 16))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def blocked(width):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = f"{width}.onnx"
    options.log_severity_level = 4
    model = network(width).SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(f"{width}.onnx").graph.node
    return sum(node.op_type == "Conv" and node.domain == "com.microsoft.nchwc" for node in nodes)


counts = {width: blocked(width) for width in (63, 64, 65, 66, 67, 68, 72)}
print("blocked convolutions of 3, by width: " + ", ".join(f"{width}: {count}" for width, count in counts.items()))
same = counts == {63: 1, 64: 3, 65: 1, 66: 1, 67: 1, 68: 3, 72: 3}
print("as described" if same else "it has changed")
sys.exit(0 if same else 1)
PYTHON
