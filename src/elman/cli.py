"""The command ``elman``: convert files of weights, write C, and say what is installed."""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

import elman
from elman import GRU, LSTM, RNN, engine
from elman.weights import (
    FRAMEWORKS,
    Canonical,
    ConversionError,
    Converted,
    Found,
    find,
    from_canonical,
    models,
    to_canonical,
)
from elman.weights.build import (
    arguments_in,
    build_canonical,
    canonical_of,
    is_elmans,
    is_saved,
    write_arguments,
)
from elman.weights.files import write_safetensors, write_whole
from elman.weights.find import counted, describe, expected, join
from elman.weights.frameworks import Tensors, nonlinearities

if TYPE_CHECKING:
    from elman import onnx
    from elman.export import Model

PACKAGES = ("numpy", "torch", "jax", "keras", "mlx", "oneflow")
FILES = ("safetensors", "onnx", "h5py")
MODELS = {".json": "rtneural", ".nam": "nam"}  # files of whole models
READ = (*models.READERS, ".onnx", *MODELS)
WRITTEN = (".safetensors", ".onnx", *MODELS)
#: Whose weights a file has, where the end of its name says it.
IMPLIED = {
    ".onnx": "onnx",
    ".pt": "torch",
    ".pth": "torch",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    **MODELS,
}

EXAMPLE = """\
examples:
  elman convert gru.safetensors mlx.safetensors --from torch --to mlx
  elman convert model.pt --list
  elman export lstm.safetensors amp.h
  elman info
"""
CONVERT = f"""\
frameworks:
  {", ".join(FRAMEWORKS)}

examples:
  elman convert gru.safetensors mlx.safetensors --from torch --to mlx
  elman convert lstm.safetensors lstm.onnx --from keras
  elman convert model.pt --list
  elman convert model.pt gru.safetensors --to keras --layer encoder.gru
  elman convert amp.nam amp.json

A .json is RTNeural's, a .nam Neural Amp Modeler's: whole models, of which frameworks get the
recurrent layers, and one another all.
Without --layer each layer of a model is written under the prefix that --list shows, and with it one
layer under its own names. With --to elman the file is for elman.load. An RNN's weights do not tell
its nonlinearity: to write a model of one, or a layer of Elman's, say --nonlinearity.
"""
EXPORT = f"""\
frameworks:
  {", ".join(FRAMEWORKS)}

examples:
  elman export lstm.safetensors amp.h
  elman export amp.nam amp.h --name amp --weights amp.bin
  elman export model.pt vad.h --layer encoder.gru

The source is what a layer of Elman's saved, a model of RTNeural's (.json) or of Neural Amp
Modeler's (.nam), or a framework's weights, whose recurrent layers are taken in their order, or the
one that --layer names. A model of a PyTorch module, head and all, is elman.export.from_torch.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 with one line on standard error. Usage errors exit with 2.

    >>> from elman import cli
    >>> cli.main(["convert", "missing.safetensors", "b.safetensors", "--from=torch", "--to=mlx"])
    1
    """
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except ImportError as e:
        return _fail(f"{e}: pip install {e.name}")
    except (ValueError, OSError) as e:
        return _fail(str(e))
    return 0


def _fail(reason: str) -> int:
    _say(f"elman: {' '.join(reason.split())}", sys.stderr)
    return 1


def _say(line: str, file: TextIO | None = None) -> None:
    """Print a line in which names from files stand: what cannot be printed is escaped."""
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=file)


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="elman", description=__doc__, epilog=EXAMPLE, formatter_class=layout
    )
    parser.add_argument("--version", action="version", version=f"elman {elman.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    convert = commands.add_parser(
        "convert",
        help="turn one framework's weights into another's",
        description="Turn one framework's weights into another's.",
        epilog=CONVERT,
        formatter_class=layout,
    )
    convert.set_defaults(run=_convert, error=convert.error)
    _add_source(convert)
    convert.add_argument("target", nargs="?", help=f"file to write: {', '.join(WRITTEN)}")
    _add_framework(convert, "--to", "target")
    convert.add_argument("--list", action="store_true", help="show the source's recurrent layers")
    convert.add_argument(
        "--layer", metavar="PREFIX", help="convert this one, as --list shows it; default: all"
    )
    convert.add_argument(
        "--cell",
        action=argparse.BooleanOptionalAction,
        help="write a cell's names, or a layer's; default: as the source has them",
    )
    convert.add_argument(
        "--nonlinearity",
        choices=("tanh", "relu"),
        help="of an RNN to be written as a model, or as a layer of Elman's",
    )
    convert.add_argument("--force", action="store_true", help="overwrite the target")

    export = commands.add_parser(
        "export",
        help="write layers as one C header",
        description="Write layers as one C header, for C99 and C++11, with the bits of Python's.",
        epilog=EXPORT,
        formatter_class=layout,
    )
    export.set_defaults(run=_export, error=export.error, cell=None)
    _add_source(export)
    export.add_argument("target", help="header to write: .h")
    export.add_argument("--name", help="what its names begin with; default: the file's name")
    export.add_argument(
        "--weights", metavar="FILE", help="write the weights there, for the program to load"
    )
    export.add_argument(
        "--layer",
        metavar="PREFIX",
        help="export this one, as convert --list shows it; default: all",
    )
    export.add_argument("--nonlinearity", choices=("tanh", "relu"), help="of an RNN")
    export.add_argument("--force", action="store_true", help="overwrite what is there")

    info = commands.add_parser(
        "info",
        help="say what is installed",
        description="Say which version this is, how and how fast it computes, and which frameworks "
        "are there: what a bug report needs.",
        epilog="example: elman info",
    )
    info.set_defaults(run=_info)
    return parser


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help=f"file to read: {', '.join(READ)}")
    _add_framework(command, "--from", "source")
    command.add_argument(
        "--reset-after",
        action=argparse.BooleanOptionalAction,
        help="whether a GRU's reset gate comes after the recurrent product, where its tensors do "
        "not tell; default: it does",
    )


def _add_framework(command: argparse.ArgumentParser, option: str, name: str) -> None:
    command.add_argument(
        option,
        dest=f"{name}_framework",
        choices=FRAMEWORKS,
        metavar="FRAMEWORK",
        help=f"whose weights the {name} has; needed where the file does not say it",
    )


def _convert(given: argparse.Namespace) -> None:
    if not (given.target or given.list):
        return given.error("the following arguments are required: target")
    source = _source(given)
    if given.list:
        return _list(given, source)
    target = _framework(given, given.target, given.target_framework, "--to", WRITTEN)
    _check_absent(given, given.target)
    if target in MODELS.values():
        return _write_model(given, _model(given, source), target)
    layers, others = _layers(given.source, source, given.layer or "")
    layers = _choose(given, source, layers, target)
    read = [_read(given, layer) for layer in layers]
    for layer, canonical in zip(layers, read, strict=True):
        _say(f"read   {given.source}: {layer.title}{source} {_describe(canonical)}")
    if others and given.layer is None:
        _say(f"skip   {given.source}: {counted(others, 'tensor')} of no recurrent layer")
    converted = [_convert_one(given, *pair, target) for pair in zip(layers, read, strict=True)]
    bare = given.layer is not None or given.target.endswith(".onnx")
    prefixes = [""] if bare else [_prefix(layer, target) for layer in layers]
    tensors = _together(prefixes, layers, converted, target)
    if target == "elman" and prefixes == [""] and not _is_cell(converted[0]):
        build_canonical(read[0], cell=False).save(given.target)  # for elman.load
    elif target == "elman":
        write_arguments(given.target, tensors, dict(zip(prefixes, converted, strict=True)))
    else:
        _write(given.target, converted[0] if bare else tensors, read[0].nonlinearity)
    how = "biases added up, else exact" if any(one.folded for one in converted) else "exact"
    _say(f"wrote  {given.target}: {target}, {counted(len(tensors), 'tensor')}; {how}")
    for layer, one in zip(layers, converted, strict=True):
        for note in one.notes:
            _say(f"note   {layer.title if len(layers) > 1 else ''}{note}")
    return None


def _export(given: argparse.Namespace) -> None:
    from elman.export import header, weights

    if not given.target.endswith(".h"):
        given.error(f"{given.target!r} must end in .h")
    source = _source(given)
    files = [path for path in (given.target, given.weights) if path]
    for path in files:
        _check_absent(given, path)
    model = _model(given, source)
    name = given.name or os.path.basename(given.target).removesuffix(".h")
    contents = [header(model, name, weights_apart=bool(given.weights)).encode(), weights(model)]
    for path, content in zip(files, contents, strict=False):
        write_whole(path, content)
        _say(f"wrote  {path}: {counted(len(content), 'byte')}")


def _model(given: argparse.Namespace, source: str) -> "Model":
    """The whole model of a file, or one of its recurrent layers alone."""
    from elman import export

    if source in MODELS.values() and given.layer is None:
        model = export.load(given.source)
        _say(f"read   {given.source}: {source} {model!r}")
        return model
    layers, others = _layers(given.source, source, given.layer or "")
    built: list[RNN | GRU | LSTM] = []
    for layer in _choose(given, source, layers, "torch"):
        canonical = _read(given, layer)
        _say(f"read   {given.source}: {layer.title}{source} {_describe(canonical)}")
        if canonical.dtype != "float32":
            raise ConversionError(f"{layer.title}weights must be float32, got {canonical.dtype}")
        options = {"nonlinearity": canonical.nonlinearity}
        built.append(build_canonical(canonical, cell=False, **options))
        for note in canonical.notes:
            _say(f"note   {layer.title}{note}")
    if others and given.layer is None:
        _say(f"skip   {given.source}: {counted(others, 'tensor')} of no recurrent layer")
    return export.Model(built)


def _write_model(given: argparse.Namespace, model: "Model", target: str) -> None:
    from elman import export

    notes = export.write(model, given.target)
    _say(f"wrote  {given.target}: {target} {model!r}")
    for note in notes:
        _say(f"note   {note}")


def _check_absent(given: argparse.Namespace, path: str) -> None:
    if os.path.lexists(path) and not given.force:
        raise FileExistsError(f"{path!r} is there already; --force overwrites it")


def _list(given: argparse.Namespace, source: str) -> None:
    if given.target is not None:
        given.error("--list writes nothing, and takes no target")
    layers, others = _layers(given.source, source)
    for layer in layers:
        try:
            what = _describe(layer.read(given.reset_after))
        except ConversionError as e:
            what = f"cannot be read: {e}"
        _say(f"{layer.title}{what}")
    if others or not layers:
        _say(f"{counted(others, 'tensor')} of no recurrent layer")


def _source(given: argparse.Namespace) -> str:
    """The framework of the source; a file that Elman wrote says so itself."""
    name, path = given.source_framework, given.source
    if name is None and os.path.isfile(path) and is_elmans(models.metadata(path)):
        name = "elman"
    return _framework(given, path, name, "--from", READ)


def _framework(
    given: argparse.Namespace, path: str, name: str | None, option: str, ends: Sequence[str]
) -> str:
    """The framework of a file, from its name or from the option."""
    end = next((end for end in ends if path.endswith(end)), None)
    if end is None:
        return given.error(f"{path!r} must end in {', '.join(ends[:-1])} or {ends[-1]}")
    said = IMPLIED.get(end)
    if said and name not in (None, said):
        given.error(f"{path!r} is of {said}, not of {name}")
    return said or name or given.error(f"{option} is needed: whose weights are in {path!r}?")


@dataclass(frozen=True)
class _Layer:
    """A layer of a file.

    prefix : of its names; separator : between the parts of it.
    read : reads it, a GRU with the reset_after that is asked for where the file tells of none.
    found : its tensors, unless it is a model's node or a file of Elman's.
    """

    prefix: str
    separator: str
    read: Callable[[bool | None], Canonical]
    found: Found | None = None

    @property
    def title(self) -> str:
        """What its line begins with."""
        return f"{self.prefix}: " if self.prefix else ""


def _layers(path: str, source: str, prefix: str = "") -> tuple[list[_Layer], int]:
    """The recurrent layers of a file, and how many tensors are none's.

    With a prefix those alone whose names begin so, if there are any: others may be broken.
    """
    if path.endswith(".onnx"):
        from elman import onnx

        return [_of_model(layer) for layer in onnx.find(path)], 0
    metadata = models.metadata(path)
    saved = canonical_of(elman.load(path)) if is_saved(metadata) else None
    if saved and source == "elman":
        return [_Layer("", ".", lambda _: saved)], 0
    told = arguments_in(metadata)
    before = (saved and saved.resets_before) or any(
        one.get("reset_after") is False for one in told.values()
    )
    if before and source != "elman":
        raise ConversionError(f"{path!r} has Elman's GRU of reset_after=False: say --from elman")
    if source in MODELS.values():
        return _of_whole_model(path)
    tensors = models.read(path)
    tensors = {n: a for n, a in tensors.items() if n.startswith(prefix)} or tensors
    found = find(tensors, source)
    layers = [_of_tensors(one, told.get(one.prefix, {})) for one in found]
    return layers, len(tensors) - sum(len(f.tensors) for f in found)


def _of_model(layer: "onnx.Layer") -> _Layer:
    def read(_: bool | None) -> Canonical:
        model = layer.read()
        canonical = to_canonical(model.tensors, "onnx", model.reset_after)
        canonical.nonlinearity = model.nonlinearity
        canonical.notes += model.notes
        return canonical

    return _Layer(layer.name, "/", read)


def _of_whole_model(path: str) -> tuple[list[_Layer], int]:
    """The recurrent layers of a model, by their numbers, and how many tensors others have."""
    from elman import export

    def of(k: int, layer: RNN | GRU | LSTM) -> _Layer:
        return _Layer(f"layers.{k}", ".", lambda _: canonical_of(layer))

    model = export.load(path)
    recurrent = [
        of(k, layer) for k, layer in enumerate(model.layers) if isinstance(layer, RNN | GRU | LSTM)
    ]
    others = [layer for layer in model.layers if isinstance(layer, export.Linear | export.Conv1d)]
    return recurrent, 2 * len(others)


def _of_tensors(found: Found, told: Mapping[str, Any] | None = None) -> _Layer:
    source, told = found.model.framework, told or {}

    def read(asked: bool | None) -> Canonical:
        kind = found.spec.cell.kind
        reset_after = told.get("reset_after", asked) if kind == "GRU" else None
        canonical = to_canonical(found.tensors, source, reset_after)
        if kind == "RNN":
            canonical.nonlinearity = told.get("nonlinearity", canonical.nonlinearity)
        return canonical

    return _Layer(found.prefix, FRAMEWORKS[source].separator, read, found)


def _choose(
    given: argparse.Namespace, source: str, layers: list[_Layer], target: str
) -> list[_Layer]:
    """The layers to convert: the one that is asked for, or all, in stacks where the target can."""
    prefixes = [layer.prefix for layer in layers]
    if given.layer is not None:
        layers = [layer for layer in layers if layer.prefix == given.layer]
        if not layers:
            raise ConversionError(f"{given.source!r} has no layer {given.layer!r}, but {prefixes}")
    elif FRAMEWORKS[source].numbered and FRAMEWORKS[target].stacks and not given.cell:
        layers = [_of_tensors(found) for found in join([one.found for one in layers if one.found])]
    if not layers:
        raise ConversionError(f"{given.source!r}: {source}: {expected(source)}")
    if given.target.endswith(".onnx") and len(layers) > 1:
        raise ConversionError(f"a model holds one layer; --layer says which, of {prefixes}")
    if len(layers) == 1 and not layers[0].found:
        return [replace(layers[0], prefix="")]  # a node has a name where it is all there is, too
    return layers


def _read(given: argparse.Namespace, layer: _Layer) -> Canonical:
    """The weights of a layer, of the kind that the file or the options say."""
    canonical, after = layer.read(given.reset_after), given.reset_after
    if canonical.spec.cell.kind == "GRU" and after is not None and after == canonical.resets_before:
        raise ConversionError(
            f"{layer.title}the file says reset_after={not after}, the option {after}"
        )
    known, asked, kind = canonical.nonlinearity, given.nonlinearity, canonical.spec.cell.kind
    possible = [known] if known else nonlinearities(kind)
    if asked and asked not in possible:
        raise ConversionError(f"--nonlinearity {asked}: the source is {known or f'of kind {kind}'}")
    canonical.nonlinearity = known or asked or ""
    return canonical


def _convert_one(
    given: argparse.Namespace, layer: _Layer, canonical: Canonical, target: str
) -> Converted:
    try:
        return from_canonical(canonical, target, cell=given.cell)
    except ConversionError as e:
        raise ConversionError(f"{layer.title}{e}") from e


def _prefix(layer: _Layer, target: str) -> str:
    """Its prefix with the target's separators."""
    return layer.prefix.strip(layer.separator).replace(
        layer.separator, FRAMEWORKS[target].separator
    )


def _together(
    prefixes: Sequence[str], layers: Sequence[_Layer], converted: Sequence[Converted], target: str
) -> Tensors:
    """All tensors, each under its layer's prefix."""
    tensors: Tensors = {}
    separator = FRAMEWORKS[target].separator
    for prefix, layer, one in zip(prefixes, layers, converted, strict=True):
        for name, a in one.items():
            full = f"{prefix}{separator}{name}" if prefix else name
            if full in tensors:
                raise ConversionError(f"{layer.title}{full} would be there twice; use --layer")
            tensors[full] = a
    return tensors


def _write(path: str, tensors: Tensors, nonlinearity: str) -> None:
    if path.endswith(".onnx"):
        from elman import onnx

        onnx.write(path, tensors, nonlinearity)
    else:
        write_safetensors(path, tensors)


def _is_cell(converted: Converted) -> bool:
    return converted.arguments["class"].endswith("Cell")


def _describe(canonical: Canonical) -> str:
    return describe(canonical.spec, canonical.cell, canonical.dtype, canonical.nonlinearity)


def _info(given: argparse.Namespace) -> None:
    rows = {
        "elman": elman.__version__,
        "processor": processor(),
        "instruction set": engine.isa,
        "threads": str(elman.get_num_threads()),
        "measured": _speed(),
        **{f"package for {name}": _version(name) for name in PACKAGES},
        **{f"files of {name}": _version(name) for name in FILES},
    }
    for name, value in rows.items():
        print(f"{name:22}{value}")


def _speed() -> str:
    """Multiply-adds a second of a GRU, which are the most of its time, on one thread and on all."""
    layer, x = GRU(256, 256, seed=0), np.zeros((8, 64, 256), np.float32)
    operations = 2 * x.size * 2 * 3 * 256
    threads = elman.get_num_threads()
    rates: dict[int, float] = {}
    try:
        for count in dict.fromkeys((1, threads)):
            elman.set_num_threads(count)
            seconds: list[float] = []
            for _ in range(8):
                start = time.perf_counter()
                layer(x)
                seconds.append(time.perf_counter() - start)
            rates[count] = operations / min(seconds) / 1e9
    finally:
        elman.set_num_threads(threads)
    return ", ".join(f"{rate:.0f} GFLOP/s on {count}" for count, rate in rates.items())


def processor() -> str:
    """The processor; on Linux with its family and model, as one name is said of many."""
    path = pathlib.Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format_map(facts)


def _version(package: str) -> str:
    """The version of a package that is there, which is not imported for that."""
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"
