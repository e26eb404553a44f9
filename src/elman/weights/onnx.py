"""ONNX models: the weights of their recurrent nodes read, and a layer written as a model.

Tensors have ONNX's names, which ``elman.weights.convert`` knows as "onnx": W, R and B, and with
several layers W_l0, W_l1 and so on. Needs the package onnx.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of onnx are not typed)

import itertools
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from elman.spec import Spec
from elman.weights.convert import to_canonical
from elman.weights.files import Path, require_regular, write_whole
from elman.weights.frameworks import KINDS, ConversionError, Tensors, nonlinearities

__all__ = ["Model", "read", "write"]

OPSET, IR = 17, 8  # of 2022, for older runtimes too
#: What may stand between two layers: operators that only lay values out.
MOVES = {"Dropout", "Identity", "Reshape", "Squeeze", "Transpose"}
#: A node's inputs, as far as it has them. No other framework has peepholes, P.
INPUTS = ("x", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
#: For each kind of node, attributes that must have a value, and what it means where they have not.
#: Their default is 0.
ATTRIBUTES = {
    "GRU": {
        "linear_before_reset": (
            1,
            "it applies its reset gate before the recurrent product, W_hn (r * h), and PyTorch "
            "after it, r * (W_hn h + b_hn)",
        )
    },
    "LSTM": {"input_forget": (0, "its forget gate is 1 - i, whatever its weights say")},
}
#: For each kind of node, the functions that a direction may have.
ACTIVATIONS = {
    "RNN": [["tanh"], ["relu"]],
    "GRU": [["sigmoid", "tanh"]],
    "LSTM": [["sigmoid", "tanh", "tanh"]],
}


class Model(NamedTuple):
    """What :func:`read` finds: tensors under ONNX's names, and what tensors do not tell.

    nonlinearity is an RNN's, "tanh" or "relu", and "" for another kind; notes are sentences.
    """

    tensors: Tensors
    nonlinearity: str
    notes: list[str]


def read(path: Path, node: str | None = None) -> Model:
    """Read the RNN, GRU or LSTM of a model: one node, or several that feed one another.

    Parameters
    ----------
    path : of the model. Nothing in it is run.
    node : the name of the one node to read. Default: the model's only one, or its layers in turn.

    Raises
    ------
    ConversionError : no model; no such node, or several that are not one layer's; weights that are
        not stored in the model; a node that no other framework has the like of, such as a GRU with
        linear_before_reset=0, which is ONNX's default, an LSTM with peepholes that are not zero or
        with input_forget, or any with clip.
    OSError : the file cannot be read.

    >>> import elman, elman.onnx, elman.weights, os, tempfile
    >>> weights = elman.GRU(3, 4, num_layers=2, seed=0).state_dict()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gru.onnx")
    ...     elman.onnx.write(path, elman.weights.convert(weights, "torch", "onnx"))
    ...     model = elman.onnx.read(path)
    >>> {name: a.shape for name, a in model.tensors.items()}
    {'W_l0': (1, 12, 3), 'R_l0': (1, 12, 4), 'B_l0': (1, 24),
     'W_l1': (1, 12, 4), 'R_l1': (1, 12, 4), 'B_l1': (1, 24)}
    """
    graph, folder = _load(path).graph, os.path.dirname(os.fsdecode(path))
    nodes = _choose(graph, node)
    kinds = {(n.op_type, *_attributes(n)) for n in nodes}
    if len(kinds) > 1:
        raise ConversionError(f"onnx: layers of one model must be alike, got {sorted(kinds)}")
    tensors = {
        f"{name}_l{k}" if len(nodes) > 1 else name: a
        for k, n in enumerate(nodes)
        for name, a in _initialisers(graph, n, folder).items()
    }
    ((_, nonlinearity, reverse),) = kinds
    notes = ["the node runs from the last step to the first, which weights do not tell"]
    return Model(tensors, nonlinearity, notes if reverse else [])


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    require_regular(path)
    name = os.fsdecode(path)
    text = name.encode(errors="replace").decode() == name
    try:
        model = onnx.load(name, format="protobuf", load_external_data=False)
        # By its name, which has to be text, since other files may be named from there.
        onnx.checker.check_model(name if text else model)
    except (DecodeError, ValueError, RuntimeError, onnx.checker.ValidationError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise ConversionError(f"onnx: {os.fspath(path)!r} is not an ONNX model: {reason}") from e
    return model


def _choose(graph: Any, name: str | None) -> list[Any]:
    """The nodes of one layer after another."""
    # ONNX's own: what others mean by such names is theirs.
    own = [n for n in graph.node if n.domain in ("", "ai.onnx")]
    nodes = [n for n in own if n.op_type in KINDS and name in (None, n.name)]
    if not nodes:
        named = "" if name is None else f" named {name!r}"
        raise ConversionError(f"onnx: the model has no {' or '.join(KINDS)} node{named}")
    makers = {output: n for n in own for output in n.output}
    for below, above in itertools.pairwise(nodes):
        if _source(makers, above) != below:
            names = [n.name for n in nodes]
            raise ConversionError(f"onnx: nodes {names} are not layers of one another; name one")
    return nodes


def _source(makers: Mapping[str, Any], node: Any) -> Any:
    """The node whose output, laid out otherwise, is this one's x."""
    node = makers.get(node.input[0])
    while node is not None and node.op_type in MOVES:
        node = makers.get(node.input[0])
    return node


def _attributes(node: Any) -> tuple[str, bool]:
    """A node's nonlinearity, "" where its kind leaves no choice, and whether it runs in reverse.

    Raises for what no other framework has the like of.
    """
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind, title = node.op_type, f"onnx: {node.op_type} node {node.name!r}"
    if "clip" in given:
        raise ConversionError(f"{title}: has clip, which no other framework has")
    for name, (value, otherwise) in ATTRIBUTES.get(kind, {}).items():
        has = given.get(name, 0)
        if bool(has) != value:
            raise ConversionError(f"{title}: has {name}={has}, so that {otherwise}")
    direction = given.get("direction", b"forward").decode(errors="replace")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ConversionError(f"{title}: has direction {direction!r}, which ONNX does not know")
    directions, usual = 2 if direction == "bidirectional" else 1, ACTIVATIONS[kind]
    activations = usual[0] * directions
    if "activations" in given:
        activations = [a.decode(errors="replace").lower() for a in given["activations"]]
    if activations not in [one * directions for one in usual]:
        raise ConversionError(f"{title}: has activations {activations}, expected {usual}")
    return activations[0] if len(usual) > 1 else "", direction == "reverse"


def _initialisers(graph: Any, node: Any, folder: str) -> Tensors:
    """A node's W, R and, where it has one, B; files beside the model lie in the folder.

    Raises for peepholes.
    """
    import onnx

    stored = {tensor.name: tensor for tensor in graph.initializer}
    tensors: Tensors = {}
    title = f"onnx: {node.op_type} node {node.name!r}"
    for name, given in zip(INPUTS, node.input, strict=False):
        if not given or name not in ("W", "R", "B", "P"):
            continue
        if given not in stored:
            raise ConversionError(f"{title}: {name} is {given!r}, which the model does not store")
        try:
            _load_external(stored[given], folder)
            tensors[name] = onnx.numpy_helper.to_array(stored[given])
        except (KeyError, TypeError, ValueError) as e:  # what the checker does not look at
            raise ConversionError(f"{title}: {name} cannot be read: {e!r}") from e
    if tensors.pop("P", np.zeros(0)).any():
        raise ConversionError(
            f"{title}: has peepholes, by which gates read c; no other framework has"
        )
    hidden = [a.i for a in node.attribute if a.name == "hidden_size"]
    if hidden and hidden[0] != tensors["R"].shape[-1]:
        shape = tensors["R"].shape
        raise ConversionError(f"{title}: has hidden_size {hidden[0]}, but R has shape {shape}")
    return tensors


def _load_external(tensor: Any, folder: str) -> None:
    """Read a tensor that lies in a file of its own; of that no more than the shape takes."""
    import onnx
    from onnx import external_data_helper

    if not external_data_helper.uses_external_data(tensor):
        return
    size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    length = external_data_helper.ExternalDataInfo(tensor).length
    if length not in (None, size):
        raise ValueError(f"its shape takes {size} bytes, and {length} are stored")
    tensor.external_data.add(key="length", value=str(size))
    external_data_helper.load_external_data_for_tensor(tensor, folder)


def write(path: Path, tensors: Mapping[str, Any], nonlinearity: str = "") -> None:
    """Write a layer, or layers, as a model that computes what Elman's does.

    Parameters
    ----------
    path : of the model, which appears whole or not at all.
    tensors : W, R and B under the names that ``convert(..., target="onnx")`` gives them.
    nonlinearity : "tanh" or "relu" for an RNN, whose weights do not tell; "" for another kind.

    The model's inputs are x (L, N, D) and, where they are given, h_0 (K, N, H), zeros by default,
    an LSTM's c_0, the same, and lengths, int32 (N,), L by default; its outputs are output
    (L, N, directions*H), h_n (K, N, H), and an LSTM's c_n. L and N are free. All mean what they
    mean to ``elman.GRU``: output past a row's length is 0, and h_n of a row of length 0 is its h_0.

    Raises ConversionError for tensors that are no layer's or of a dtype that ONNX's nodes do not
    take, and for a nonlinearity that is missing, unknown, or of a kind that leaves no choice.

    >>> import elman, elman.onnx, elman.weights, os, tempfile
    >>> weights = elman.weights.convert(elman.RNN(3, 4).state_dict(), "torch", "onnx")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "rnn.onnx")
    ...     elman.onnx.write(path, weights, nonlinearity="tanh")
    ...     elman.onnx.read(path).nonlinearity
    'tanh'
    """
    import onnx

    canonical = to_canonical(tensors, "onnx")
    spec, dtype = canonical.spec, canonical.dtype.newbyteorder("=")
    if dtype.name not in ("float16", "float32", "float64"):
        raise ConversionError(f"onnx {spec}: has no weights of {dtype}")
    possible = nonlinearities(spec.cell.kind)
    if nonlinearity not in possible:
        raise ConversionError(
            f"onnx {spec}: nonlinearity, which weights do not tell, must be in {possible}, "
            f"got {nonlinearity!r}"
        )
    model = onnx.helper.make_model(
        _graph(spec, {name: np.asarray(a, dtype) for name, a in tensors.items()}, nonlinearity),
        producer_name="elman",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    onnx.checker.check_model(model, full_check=True)
    write_whole(path, model.SerializeToString())


def _graph(spec: Spec, tensors: Tensors, nonlinearity: str) -> Any:
    from onnx import TensorProto
    from onnx.helper import make_graph, make_tensor_value_info, np_dtype_to_tensor_dtype
    from onnx.numpy_helper import from_array

    dtype = next(iter(tensors.values())).dtype
    constants = tensors | _constants(spec, dtype)
    element, K = np_dtype_to_tensor_dtype(dtype), spec.num_layers * spec.directions
    layers = [n for k in range(spec.num_layers) for n in _layer(spec, tensors, nonlinearity, k)]
    firsts = [n for state in spec.cell.states for n in _first(spec, state)]
    finals = [n for state in spec.cell.states for n in _final(spec, state)]

    def states(when: str, rows: str) -> list[Any]:
        return [
            make_tensor_value_info(f"{state}_{when}", element, [K, rows, size])
            for state, size in spec.state_sizes.items()
        ]

    return make_graph(
        [*_start(), *firsts, *layers, *finals],
        "elman",
        [
            make_tensor_value_info("x", element, ["L", "N", spec.input_size]),
            *states("0", "N or 1"),
            make_tensor_value_info("lengths", TensorProto.INT32, ["N or 1"]),
        ],
        [
            make_tensor_value_info(
                "output", element, ["L", "N", spec.directions * spec.output_size]
            ),
            *states("n", "N"),
        ],
        [from_array(a, name) for name, a in constants.items()],
    )


def _constants(spec: Spec, dtype: Any) -> Tensors:
    """The defaults of the states and lengths, and what the nodes around the layers need."""
    K = spec.num_layers * spec.directions
    return {
        **{f"{s}_0": np.zeros((K, 1, size), dtype) for s, size in spec.state_sizes.items()},
        "lengths": np.array([-1], np.int32),  # no length: stands for all steps
        "all_steps": np.array([-1], np.int32),
        "none": np.array([0], np.int32),
        "one": np.array([1]),
        "layers": np.full(spec.num_layers, spec.directions),
        "features": np.array([0, 0, spec.directions * spec.output_size]),  # 0: as it is
        "around": np.array([0, 2]),
    }


def _start() -> list[Any]:
    """sequence_lens (N,) from lengths, and what the states need."""
    from onnx import TensorProto
    from onnx.helper import make_node

    return [
        make_node("Shape", ["x"], ["L"], start=0, end=1),
        make_node("Shape", ["x"], ["N"], start=1, end=2),
        make_node("Cast", ["L"], ["L32"], to=TensorProto.INT32),
        make_node("Equal", ["lengths", "all_steps"], ["unset"]),
        make_node("Where", ["unset", "L32", "lengths"], ["set"]),
        make_node("Expand", ["set", "N"], ["sequence_lens"]),
        make_node("Equal", ["sequence_lens", "none"], ["no_steps"]),
        make_node("Unsqueeze", ["no_steps", "around"], ["no_steps_of_row"]),
        make_node("Concat", ["one", "N", "one"], ["rows"], axis=0),
    ]


def _first(spec: Spec, state: str) -> list[Any]:
    """Each layer's initial state from the one given."""
    from onnx.helper import make_node

    initial = f"initial_{state}"
    return [
        make_node("Expand", [f"{state}_0", "rows"], [initial]),
        make_node("Split", [initial, "layers"], _each(initial, spec), axis=0),
    ]


def _layer(spec: Spec, tensors: Tensors, nonlinearity: str, k: int) -> list[Any]:
    """One node of the spec's kind, and its Y (L, directions, N, H) as the next one's x."""
    from onnx.helper import make_node

    last, states, kind = k == spec.num_layers - 1, spec.cell.states, spec.cell.kind
    names = [f"{name}_l{k}" if spec.num_layers > 1 else name for name in ("W", "R", "B")]
    x = f"x_l{k}" if k else "x"
    weights = (n if n in tensors else "" for n in names)
    own: dict[str, Any] = {n: value for n, (value, _) in ATTRIBUTES.get(kind, {}).items()}
    if nonlinearity:
        own["activations"] = [nonlinearity.title()] * spec.directions
    return [
        make_node(
            kind,
            [x, *weights, "sequence_lens", *(f"initial_{s}_l{k}" for s in states)],
            [f"Y_l{k}", *(f"Y_{s}_l{k}" for s in states)],
            name=f"layer_{k}",
            hidden_size=spec.hidden_size,
            direction="bidirectional" if spec.bidirectional else "forward",
            **own,
        ),
        make_node("Transpose", [f"Y_l{k}"], [f"by_row_l{k}"], perm=[0, 2, 1, 3]),
        make_node("Reshape", [f"by_row_l{k}", "features"], ["output" if last else f"x_l{k + 1}"]),
    ]


def _final(spec: Spec, state: str) -> list[Any]:
    """A final state from the layers', which ONNX has as 0 for a row without steps."""
    from onnx.helper import make_node

    final = f"final_{state}"
    return [
        make_node("Concat", _each(f"Y_{state}", spec), [final], axis=0),
        make_node("Where", ["no_steps_of_row", f"initial_{state}", final], [f"{state}_n"]),
    ]


def _each(name: str, spec: Spec) -> list[str]:
    return [f"{name}_l{k}" for k in range(spec.num_layers)]
