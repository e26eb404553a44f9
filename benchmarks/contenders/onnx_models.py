"""ONNX Runtime and OpenVINO on one model: GRU, LSTM or RNN nodes, weights as initialisers."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from elman.weights import convert

from ..grid import Case, Inputs
from . import Arrays, answer

#: What a node has to be told, so that it computes what torch does.
ATTRIBUTES = {"GRU": {"linear_before_reset": 1}}


def model(case: Case, inputs: Inputs) -> bytes:
    """The case as a model of fixed sizes: x, states (and lengths) in, output and final states out.

    Of one direction, output stays as the node has it, (L, 1, N, H), so that nothing is moved.
    """
    weights = convert(inputs.weights, source="torch", target="onnx")  # of either GRU the same
    constants = dict(weights)
    nodes, x = [], "x"
    finals: dict[str, list[str]] = {name: [] for name in case.states}
    several = case.num_layers > 1
    for k in range(case.num_layers):
        names = [f"{name}_l{k}" if several else name for name in ("W", "R", "B")]
        rows = slice(k * case.directions, (k + 1) * case.directions)
        starts = [f"{name}_0_l{k}" if several else f"{name}_0" for name in case.states]
        if several:
            constants |= {f"from_{k}": np.array([rows.start]), f"to_{k}": np.array([rows.stop])}
            for name, start in zip(case.states, starts, strict=True):
                part = [f"{name}_0", f"from_{k}", f"to_{k}"]
                nodes.append(helper.make_node("Slice", part, [start]))
        for name, of_layers in finals.items():
            of_layers.append(f"{name}_n_l{k}" if several else f"{name}_n")
        last = k == case.num_layers - 1
        moved = "output" if last else f"x_l{k + 1}"
        y = moved if case.directions == 1 and last else f"y_l{k}"
        direction = "bidirectional" if case.bidirectional else "forward"
        nodes.append(
            helper.make_node(
                case.kind,
                [x, *names, "lengths" if case.lengths else "", *starts],
                [y, *(of_layers[-1] for of_layers in finals.values())],
                hidden_size=case.H,
                direction=direction,
                **ATTRIBUTES.get(case.cell, {}),  # 0, their default, is the GRU that resets before
            )
        )
        if y != moved:
            constants["features"] = np.array([case.L, case.N, case.directions * case.H])
            nodes.append(helper.make_node("Transpose", [y], [f"{y}_t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{y}_t", "features"], [moved]))
        x = moved
    if several:
        for name, of_layers in finals.items():
            nodes.append(helper.make_node("Concat", of_layers, [f"{name}_n"], axis=0))
    graph = helper.make_graph(
        nodes,
        "case",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in feeds(inputs).items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("output", *(f"{name}_n" for name in case.states))
        ],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def feeds(inputs: Inputs) -> Arrays:
    arrays = {"x": inputs.x} | {f"{name}_0": a for name, a in inputs.states.items()}
    if inputs.lengths is not None:
        arrays["lengths"] = inputs.lengths.astype(np.int32)
    return arrays


class _Runtime:
    """What both share: they infer only."""

    can_train = False
    compiles = False

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        self.names = ["output", *(f"{name}_n" for name in case.states)]
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
        return self.session.run(self.names, self.feeds)

    def answer(self, result: Any) -> Arrays:
        output, *finals = result
        return answer(output.reshape(self.output_shape), finals)


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
        output, *finals = (np.array(result[name]) for name in self.names)
        return answer(output.reshape(self.output_shape), finals)
