"""The command ``elman``: convert files of weights, and say what is installed."""

import argparse
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import elman
from elman import engine
from elman.weights import (
    FRAMEWORKS,
    Canonical,
    ConversionError,
    Converted,
    from_canonical,
    to_canonical,
)
from elman.weights.files import read_safetensors, write_safetensors
from elman.weights.frameworks import nonlinearities

PACKAGES = ("numpy", "torch", "mlx", "oneflow")
FILES = ("safetensors", "onnx")

EXAMPLE = f"""\
frameworks:
  {", ".join(FRAMEWORKS)}

examples:
  elman convert gru.safetensors mlx.safetensors --from torch --to mlx
  elman convert lstm.safetensors lstm.onnx --from keras

An RNN's weights do not tell its nonlinearity: to write a model of one, say --nonlinearity.
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
    parser = argparse.ArgumentParser(prog="elman", description=__doc__)
    parser.add_argument("--version", action="version", version=f"elman {elman.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    convert = commands.add_parser(
        "convert",
        help="turn one framework's weights into another's",
        description="Turn one framework's weights into another's.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.set_defaults(run=_convert, error=convert.error)
    convert.add_argument("source", help="file to read, .safetensors or .onnx")
    convert.add_argument("target", help="file to write, .safetensors or .onnx")
    for option, name in (("--from", "source"), ("--to", "target")):
        convert.add_argument(
            option,
            dest=f"{name}_framework",
            choices=FRAMEWORKS,
            metavar="FRAMEWORK",
            help=f"whose weights the {name} has; a name that ends in .onnx says it",
        )
    shape = convert.add_mutually_exclusive_group()
    shape.add_argument("--cell", action="store_true", default=None, help="write a cell's names")
    shape.add_argument(
        "--layer", action="store_false", dest="cell", help="write a layer's names, not a cell's"
    )
    convert.add_argument("--node", help="name of the one node of a model to read")
    convert.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), help="of an RNN to be written as a model"
    )
    convert.add_argument("--force", action="store_true", help="overwrite the target")

    info = commands.add_parser(
        "info",
        help="say what is installed",
        description="Say which version this is, how it computes, and which frameworks are there.",
    )
    info.set_defaults(run=_info)
    return parser


def _convert(given: argparse.Namespace) -> None:
    source = _framework(given, given.source, given.source_framework, "--from")
    target = _framework(given, given.target, given.target_framework, "--to")
    if given.node and not given.source.endswith(".onnx"):
        given.error("--node is of a model, and the source is none")
    if os.path.lexists(given.target) and not given.force:
        raise FileExistsError(f"{given.target!r} is there already; --force overwrites it")
    canonical = _read(given, source)
    _say(f"read   {given.source}: {_describe(canonical, source)}")
    converted = from_canonical(canonical, target, cell=given.cell)
    _write(given.target, converted, canonical.nonlinearity)
    how = "biases added up, else exact" if converted.folded else "exact"
    _say(f"wrote  {given.target}: {target}, {_count(len(converted), 'tensor')}; {how}")
    for note in converted.notes:
        _say(f"note   {note}")


def _framework(given: argparse.Namespace, path: str, name: str | None, option: str) -> str:
    """The framework of a file, from its name or from the option."""
    if not path.endswith((".onnx", ".safetensors")):
        given.error(f"{path!r} must end in .safetensors or .onnx")
    if path.endswith(".onnx") and name not in (None, "onnx"):
        given.error(f"{path!r} is an ONNX model, not of {name}")
    if path.endswith(".onnx"):
        return "onnx"
    return name or given.error(f"{option} is needed: whose weights are in {path!r}?")


def _read(given: argparse.Namespace, source: str) -> Canonical:
    """The weights of the file, with the nonlinearity that the file or the option says."""
    if given.source.endswith(".onnx"):
        from elman import onnx

        model = onnx.read(given.source, given.node)
        canonical = to_canonical(model.tensors, source)
        canonical.nonlinearity = model.nonlinearity
        canonical.notes += model.notes
    else:
        tensors, _ = read_safetensors("convert", given.source)
        canonical = to_canonical(tensors, source)
    known, asked, kind = canonical.nonlinearity, given.nonlinearity, canonical.spec.cell.kind
    possible = [known] if known else nonlinearities(kind)
    if asked and asked not in possible:
        raise ConversionError(f"--nonlinearity {asked}: the source is {known or f'of kind {kind}'}")
    canonical.nonlinearity = known or asked or ""
    return canonical


def _write(path: str, tensors: Converted, nonlinearity: str) -> None:
    if path.endswith(".onnx"):
        from elman import onnx

        onnx.write(path, tensors, nonlinearity)
    else:
        write_safetensors(path, tensors)


def _describe(canonical: Canonical, framework: str) -> str:
    spec = canonical.spec
    parts = [
        f"{framework} {spec}{'Cell' if canonical.cell else ''}",
        canonical.nonlinearity,
        _count(spec.num_layers, "layer"),
        _count(spec.directions, "direction"),
        f"input size {spec.input_size}",
        f"hidden size {spec.hidden_size}",
        f"projection size {spec.proj_size}" if spec.proj_size else "",
        "" if spec.bias else "no biases",
        str(canonical.dtype),
    ]
    return ", ".join(part for part in parts if part)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _info(given: argparse.Namespace) -> None:
    rows = {
        "elman": elman.__version__,
        "instruction set": engine.isa,
        "threads": str(elman.get_num_threads()),
        **{f"package for {name}": _version(name) for name in PACKAGES},
        **{f"files of {name}": _version(name) for name in FILES},
    }
    for name, value in rows.items():
        print(f"{name:22}{value}")


def _version(package: str) -> str:
    """The version of a package that is there, which is not imported for that."""
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"
