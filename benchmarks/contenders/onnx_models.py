"""ONNX Runtime and OpenVINO on one model: GRU or RNN nodes, weights as initialisers."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from elman.weights import convert

from ..grid import Case, Inputs
from . import Arrays


def model(case: Case, inputs: Inputs) -> bytes:
    """The case as a model of fixed sizes: x, h_0 (and lengths) in, output and h_n out.

    Of one direction, output stays as the node has it, (L, 1, N, H), so that nothing is moved.
    """
    weights = convert(inputs.weights, source="torch", target="onnx")
    constants = dict(weights)
    nodes, finals, x = [], [], "x"
    several = case.num_layers > 1
    for k in range(case.num_layers):
        names = [f"{name}_l{k}" if several else name for name in ("W", "R", "B")]
        rows = slice(k * case.directions, (k + 1) * case.directions)
        start = "h_0"
        if several:
            start = f"h_0_l{k}"
            constants |= {f"from_{k}": np.array([rows.start]), f"to_{k}": np.array([rows.stop])}
            nodes.append(helper.make_node("Slice", ["h_0", f"from_{k}", f"to_{k}"], [start]))
        finals.append(f"h_n_l{k}" if several else "h_n")
        last = k == case.num_layers - 1
        moved = "output" if last else f"x_l{k + 1}"
        y = moved if case.directions == 1 and last else f"y_l{k}"
        own = {"linear_before_reset": 1} if case.cell == "GRU" else {}
        direction = "bidirectional" if case.bidirectional else "forward"
        nodes.append(
            helper.make_node(
                case.cell,
                [x, *names, "lengths" if case.lengths else "", start],
                [y, finals[-1]],
                hidden_size=case.H,
                direction=direction,
                **own,
            )
        )
        if y != moved:
            constants["features"] = np.array([case.L, case.N, case.directions * case.H])
            nodes.append(helper.make_node("Transpose", [y], [f"{y}_t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{y}_t", "features"], [moved]))
        x = moved
    if several:
        nodes.append(helper.make_node("Concat", finals, ["h_n"], axis=0))
    graph = helper.make_graph(
        nodes,
        "case",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in feeds(inputs).items()
        ],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("h_n", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def feeds(inputs: Inputs) -> Arrays:
    arrays = {"x": inputs.x, "h_0": inputs.h_0}
    if inputs.lengths is not None:
        arrays["lengths"] = inputs.lengths.astype(np.int32)
    return arrays


class _Runtime:
    """What both share: they infer only."""

    can_train = False
    compiles = False

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        self.output_shape = inputs.d_output.shape
        self.feeds = feeds(inputs)
        self.load(model(case, inputs), threads)

    def load(self, model: bytes, threads: int) -> None:
        raise NotImplementedError

    def train(self) -> Any:
        raise NotImplementedError

    def gradients(self, result: Any) -> Arrays:
        raise NotImplementedError


class OnnxRuntime(_Runtime):
    """An inference session. Its threads spin between calls, as is its default."""

    def load(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def infer(self) -> Any:
        return self.session.run(["output", "h_n"], self.feeds)

    def answer(self, result: Any) -> Arrays:
        output, h_n = result
        return {"output": output.reshape(self.output_shape), "h_n": h_n}


class OpenVino(_Runtime):
    """A compiled model, for latency, on arrays that it shares with NumPy both ways.

    In float32: on some processors it would take bfloat16 by itself.
    """

    def load(self, model: bytes, threads: int) -> None:
        import openvino

        core = openvino.Core()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(core.read_model(model), "CPU", options)
        self.request = compiled.create_infer_request()

    def infer(self) -> Any:
        return self.request.infer(self.feeds, share_inputs=True, share_outputs=True)

    def answer(self, result: Any) -> Arrays:
        return {
            "output": np.array(result["output"]).reshape(self.output_shape),
            "h_n": np.array(result["h_n"]),
        }
