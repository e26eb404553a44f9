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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from elman.spec import Cell, Shape, Spec
from elman.weights.build import build_canonical
from elman.weights.convert import Converted, to_canonical
from elman.weights.files import Path, require_regular, write_whole
from elman.weights.frameworks import KINDS, Array, ConversionError, Tensors, nonlinearities

__all__ = ["Layer", "Model", "find", "load", "read", "write"]

OPSET, IR = 17, 8  # of 2022, for older runtimes too
#: What may stand between two layers: operators that only lay values out.
MOVES = {"Dropout", "Identity", "Reshape", "Squeeze", "Transpose"}
#: What may stand between a weight and where it is stored: no more is computed of any model.
LAYS_OUT = (MOVES - {"Dropout"}) | {
    *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand"),
    *("Flatten", "Gather", "Shape", "Slice", "Split", "Unsqueeze"),
}
#: The oldest that onnx's evaluator knows, where there are older ones, which mean the same.
FIRST = {"DequantizeLinear": 19}
#: How often such nodes may have what is stored: no model has the same many times over.
MOST_TIMES = 16
#: A node's inputs, as far as it has them. No other framework has peepholes, P.
INPUTS = ("x", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
#: For each kind of node, the functions that a direction may have.
ACTIVATIONS = {
    "RNN": [["tanh"], ["relu"]],
    "GRU": [["sigmoid", "tanh"]],
    "LSTM": [["sigmoid", "tanh", "tanh"]],
}


def attributes(cell: Cell) -> dict[str, int]:
    """What a cell's node has to be told, beside sizes and activations; all are 0 by default."""
    own = {
        "GRU": {"linear_before_reset": int(cell.gated is None)},
        "LSTM": {"input_forget": 0},  # or its forget gate is 1 - i
    }
    return own.get(cell.kind, {})


class Model(NamedTuple):
    """What :func:`read` finds: tensors under ONNX's names, and what tensors do not tell.

    nonlinearity is an RNN's, "tanh" or "relu", and "" for another kind; notes are sentences;
    reset_after is a GRU's, as ``convert`` takes it, and None for another kind; reverse, whether a
    node of one direction runs from the last step to the first.
    """

    tensors: Tensors
    nonlinearity: str
    notes: list[str]
    reset_after: bool | None = None
    reverse: bool = False


@dataclass(frozen=True)
class Layer:
    """One layer of a model, or layers that feed one another, as :func:`find` gives them.

    Attributes
    ----------
    name : of its node, or of the first one; another where that is taken or empty.
    """

    name: str
    _nodes: Sequence["_Node"]
    _stored: "_Stored"

    def read(self) -> Model:
        """Its weights; raises ConversionError as :func:`read` does."""
        kinds = {(n.proto.op_type, *_attributes(n)) for n in self._nodes}
        if len(kinds) > 1:
            raise ConversionError(f"onnx: layers of one model must be alike, got {sorted(kinds)}")
        tensors = {
            f"{name}_l{k}" if len(self._nodes) > 1 else name: a
            for k, n in enumerate(self._nodes)
            for name, a in _weights(n, self._stored).items()
        }
        ((_, nonlinearity, reverse, reset_after),) = kinds
        notes: list[str] = []
        if reverse:
            notes.append("the node runs from the last step to the first, which weights do not tell")
        if any(a.name == "layout" and a.i for n in self._nodes for a in n.proto.attribute):
            notes.append("the node has layout=1: rows come before steps, as with batch_first=True")
        return Model(tensors, nonlinearity, notes, reset_after, reverse)


def find(path: Path) -> list[Layer]:
    """Find the recurrent layers of a model, those in branches and functions too.

    Nothing is read of them yet, so that one that cannot be read does not hide the others. Raises
    ConversionError where the file is no model, OSError where it cannot be read.

    >>> import elman, elman.onnx, elman.weights, os, tempfile
    >>> weights = elman.GRU(3, 4, num_layers=2, seed=0).state_dict()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gru.onnx")
    ...     elman.onnx.write(path, elman.weights.convert(weights, "torch", "onnx"))
    ...     for layer in elman.onnx.find(path):
    ...         print(layer.name, list(layer.read().tensors))
    layer_0 ['W_l0', 'R_l0', 'B_l0', 'W_l1', 'R_l1', 'B_l1']
    """
    nodes, stored = _open(path)
    layers: dict[str, Layer] = {}
    for chain in _chains(nodes):
        name = chain[0].name
        if name in layers:
            name = next(n for k in itertools.count(2) if (n := f"{name}#{k}") not in layers)
        layers[name] = Layer(name, chain, stored)
    return list(layers.values())


def read(path: Path, node: str | None = None) -> Model:
    """Read the RNN, GRU or LSTM of a model: one node, or several that feed one another.

    Parameters
    ----------
    path : of the model. No more of it is computed than what lays out the weights.
    node : the name of the one node to read. Default: the model's only one, or its layers in turn.

    Raises
    ------
    ConversionError : no model; no such node, or several that are not one layer's; weights that are
        not stored in the model; a node that no other framework has the like of, such as an LSTM
        with peepholes that are not zero or with input_forget, or any with clip.
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
    nodes, stored = _open(path)
    chains = _chains([n for n in nodes if node in (None, n.name)])
    if not chains:
        named = "" if node is None else f" named {node!r}"
        raise ConversionError(f"onnx: the model has no {' or '.join(KINDS)} node{named}")
    if len(chains) > 1:
        names = [n.name for chain in chains for n in chain]
        raise ConversionError(f"onnx: nodes {names} are not layers of one another; name one")
    return Layer(chains[0][0].name, chains[0], stored).read()


def load(path: Path, node: str | None = None, **options: Any) -> Any:
    """Make the NumPy package's layer of the RNN, GRU or LSTM of a model, time first as ONNX has it.

    `path` and `node` are those of :func:`read`, and so are the errors; `options` those of
    ``elman.weights.build``. A node that runs from the last step to the first alone is refused.

    >>> import elman, elman.onnx, elman.weights, os, tempfile
    >>> gru = elman.GRU(3, 4, num_layers=2, reset_after=False, seed=0)
    >>> weights = elman.weights.convert(gru.state_dict(), "elman", "onnx", reset_after=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gru.onnx")
    ...     elman.onnx.write(path, weights)
    ...     print(elman.onnx.load(path))
    GRU(3, 4, num_layers=2, reset_after=False)
    """
    model = read(path, node)
    canonical = to_canonical(model.tensors, "onnx", model.reset_after)
    if model.reverse:
        raise ConversionError(
            f"onnx: {canonical.spec} of {os.fspath(path)!r} runs from the last step to the first, "
            "and Elman's layers of one direction from the first to the last: build it of "
            "elman.onnx.read's tensors, and give it x the other way round"
        )
    canonical.nonlinearity = model.nonlinearity
    return build_canonical(canonical, **options)


# Graphs and their nodes


@dataclass(frozen=True)
class _Graph:
    """What the names in a graph stand for; those of the graphs around it hold there too."""

    tensors: Mapping[str, Any]  # that are stored
    makers: Mapping[str, Any]  # nodes by their outputs


@dataclass(frozen=True)
class _Node:
    """A node that is a layer, and the graph that it is in."""

    proto: Any
    graph: _Graph

    @property
    def name(self) -> str:
        """Its own, or for want of one its output's."""
        return self.proto.name or next(filter(None, self.proto.output), "")

    @property
    def title(self) -> str:
        return f"onnx: {self.proto.op_type} node {self.name!r}"


def _open(path: Path) -> tuple[list[_Node], "_Stored"]:
    """The recurrent nodes of a model."""
    model = _load(path)
    opset = max((entry.version for entry in model.opset_import if _own(entry)), default=1)
    stored = _Stored(os.path.dirname(os.fsdecode(path)), opset)
    return list(_nodes(model.graph, _Graph({}, {}))), stored


def _load(path: Path) -> Any:
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError

    require_regular(path)
    name = os.fsdecode(path)
    text = name.encode(errors="replace").decode() == name
    try:
        model = onnx.load(name, format="protobuf", load_external_data=False)
        # By its name, which has to be text, since other files may be named from there.
        onnx.checker.check_model(name if text else model)
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except (DecodeError, ValueError, RuntimeError, onnx.checker.ValidationError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise ConversionError(f"onnx: {os.fspath(path)!r} is not an ONNX model: {reason}") from e


def _nodes(proto: Any, around: _Graph) -> Iterator[_Node]:
    """The recurrent nodes of a graph, and of those within its nodes, such as an If's branches."""
    tensors = {tensor.name: tensor for tensor in proto.initializer}
    makers = {output: node for node in proto.node for output in node.output}
    graph = _Graph({**around.tensors, **tensors}, {**around.makers, **makers})
    for node in proto.node:
        if _own(node) and node.op_type in KINDS:
            yield _Node(node, graph)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner, graph) if inner.node else ()


def _own(node: Any) -> bool:
    """Whether it is ONNX's own: what others mean by such names is theirs."""
    return node.domain in ("", "ai.onnx")


def _chains(nodes: Sequence[_Node]) -> list[list[_Node]]:
    """Nodes that feed one another, each for a layer."""
    chains: list[list[_Node]] = []
    for node in nodes:
        if chains and _source(node) is chains[-1][-1].proto:
            chains[-1].append(node)
        else:
            chains.append([node])
    return chains


def _source(node: _Node) -> Any:
    """The node whose output, laid out otherwise, is this one's x."""
    makers = node.graph.makers
    maker = makers.get(node.proto.input[0])
    while maker is not None and maker.op_type in MOVES and _own(maker):
        maker = makers.get(maker.input[0])
    return maker


def _attributes(node: _Node) -> tuple[str, bool, bool | None]:
    """A node's nonlinearity, whether it runs in reverse, and its reset_after, as in :class:`Model`.

    Raises for what no other framework has the like of.
    """
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}
    kind, title = node.proto.op_type, node.title
    if "clip" in given:
        raise ConversionError(f"{title}: has clip, which no other framework has")
    if kind == "LSTM" and given.get("input_forget"):
        raise ConversionError(
            f"{title}: has input_forget={given['input_forget']}, so that its forget gate is 1 - i, "
            "whatever its weights say"
        )
    direction = given.get("direction", b"forward").decode(errors="replace")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ConversionError(f"{title}: has direction {direction!r}, which ONNX does not know")
    directions, usual = 2 if direction == "bidirectional" else 1, ACTIVATIONS[kind]
    activations = usual[0] * directions
    if "activations" in given:
        activations = [a.decode(errors="replace").lower() for a in given["activations"]]
    if activations not in [one * directions for one in usual]:
        raise ConversionError(f"{title}: has activations {activations}, expected {usual}")
    reset_after = bool(given.get("linear_before_reset")) if kind == "GRU" else None
    return activations[0] if len(usual) > 1 else "", direction == "reverse", reset_after


# Weights


def _weights(node: _Node, stored: "_Stored") -> Tensors:
    """A node's W, R and, where it has one, B. Raises for peepholes."""
    tensors: Tensors = {}
    for name, given in zip(INPUTS, node.proto.input, strict=False):
        if not given or name not in ("W", "R", "B", "P"):
            continue
        try:
            tensors[name] = stored.value(node.graph, given)
        except _NotStored as e:
            raise ConversionError(
                f"{node.title}: {name} is {given!r}, which the model does not store: {e}"
            ) from e
        except (KeyError, RecursionError, RuntimeError, TypeError, ValueError) as e:
            # What the checker does not look at.
            raise ConversionError(f"{node.title}: {name} cannot be read: {e!r}") from e
    if tensors.pop("P", np.zeros(0)).any():
        raise ConversionError(
            f"{node.title}: has peepholes, by which gates read c; no other framework has"
        )
    if "R" in tensors:
        _check_sizes(node, tensors["R"].shape)
    return tensors


def _check_sizes(node: _Node, shape: Shape) -> None:
    """Raise unless R has the rows that its node's kind and hidden_size take."""
    if len(shape) != 3:
        return  # which is said where all shapes are looked at
    hidden = [a.i for a in node.proto.attribute if a.name == "hidden_size"]
    if hidden and hidden[0] != shape[-1]:
        raise ConversionError(f"{node.title}: has hidden_size {hidden[0]}, but R has shape {shape}")
    kinds = [kind for kind, cell in KINDS.items() if shape[1:-1] == (len(cell.gates) * shape[-1],)]
    if kinds and node.proto.op_type not in kinds:
        raise ConversionError(f"{node.title}: has {kinds[0]} weights, R of shape {shape}")


class _NotStored(Exception):
    """A value that comes from elsewhere than from what the model stores."""


@dataclass(frozen=True)
class _Stored:
    """The values that a model stores, or makes of such by laying them out otherwise.

    Attributes
    ----------
    folder : of the model, where other files of its tensors lie; opset : the model's.
    """

    folder: str
    opset: int
    _known: dict[tuple[int, str], Array] = field(default_factory=lambda: {})
    _sizes: list[int] = field(default_factory=lambda: [])  # of what is stored itself

    def value(self, graph: _Graph, name: str) -> Array:
        """The value that goes by the name in the graph; raises _NotStored where there is none."""
        key = id(graph), name
        if key not in self._known:
            made = self._read(graph, name)
            self._known.update({(key[0], output): a for output, a in made.items()})
        return self._known[key]

    def _read(self, graph: _Graph, name: str) -> Tensors:
        import onnx

        if name in graph.tensors:
            _load_external(graph.tensors[name], self.folder)
            a = onnx.numpy_helper.to_array(graph.tensors[name])
            self._sizes.append(a.size)
            return {name: a}
        maker = graph.makers.get(name)
        if maker is None:
            raise _NotStored(f"{name!r} is an input")
        if maker.op_type not in LAYS_OUT or not _own(maker):
            raise _NotStored(f"{name!r} is computed, by {maker.op_type}")
        return self._run(maker, {given: self.value(graph, given) for given in maker.input if given})

    def _run(self, node: Any, inputs: Tensors) -> Tensors:
        """The outputs of a node, which are no larger than what it lays out, or some times so."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        opset = max(self.opset, FIRST.get(node.op_type, 1))
        opsets = [onnx.helper.make_opsetid("", opset)]  # a node alone would be of the newest
        alone = onnx.helper.make_function("elman", "alone", [*inputs], node.output, [node], opsets)
        try:
            size = _size(node, [inputs[name] for name in node.input if name])
            if size > MOST_TIMES * sum(self._sizes):
                raise ValueError(f"it makes {size} values of few")
            outputs: Any = ReferenceEvaluator(alone).run(None, inputs, {})
        except Exception as e:  # for it raises whatever comes
            raise ValueError(f"{node.op_type} node {node.name!r} fails: {e!r}") from e
        if not inputs:
            self._sizes.extend(map(np.size, outputs))
        return dict(zip(node.output, map(np.asarray, outputs), strict=False))


def _size(node: Any, inputs: Sequence[Array]) -> int:
    """How many values a node makes at most."""
    if node.op_type == "ConstantOfShape":
        return math.prod(inputs[0].tolist())
    if node.op_type == "Expand":
        return math.prod(np.broadcast_shapes(inputs[0].shape, tuple(inputs[1].tolist())))
    if node.op_type == "Gather":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return inputs[0].size // max(1, inputs[0].shape[axis]) * inputs[1].size
    return sum(a.size for a in inputs)


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


def write(
    path: Path,
    tensors: Mapping[str, Any],
    nonlinearity: str = "",
    reset_after: bool | None = None,
) -> None:
    """Write a layer, or layers, as a model that computes what Elman's does.

    Parameters
    ----------
    path : of the model, which appears whole or not at all.
    tensors : W, R and B under the names that ``convert(..., target="onnx")`` gives them.
    nonlinearity : "tanh" or "relu" for an RNN, whose weights do not tell; "" for another kind.
    reset_after : whether a GRU applies its reset gate after the recurrent product. Default: as the
        layer that ``convert`` was given; for other tensors, yes.

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

    if reset_after is None:
        reset_after = tensors.arguments.get("reset_after") if type(tensors) is Converted else None
    canonical = to_canonical(tensors, "onnx", reset_after)
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
    own: dict[str, Any] = {**attributes(spec.cell)}
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
