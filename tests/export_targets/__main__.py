"""Compile exported models for every target that there are tools for, run them, and compare bytes.

Each model that tests/exported.py has is compiled by GCC and Clang, as C and as C++, without
optimisation and with, for x86-64 with SSE2, AVX2 and AVX-512, for aarch64, for three Cortex-M and
for WebAssembly. Where no processor of a kind is here QEMU stands in, and node for WebAssembly; code
of AVX-512 is compiled alone where the processor has it not.

Example:
    python tests/export_targets --models lstm gru
"""

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from exported import MODELS, STRICT, bits, draw, source  # noqa: E402

STEPS = 50
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
CPP = ["-xc++", "-std=c++11"]
WASI = ["--target=wasm32-wasi", "-isystem/usr/include/wasm32-wasi", "-L/usr/lib/wasm32-wasi"]


class Target(NamedTuple):
    """A compiler with its options, and what runs its programs: () this machine, None nobody."""

    name: str
    compiler: str
    options: list[str]
    runner: Sequence[str] | None = ()
    files: bool = False  # its input and output are the files `in` and `out`

    @property
    def missing(self) -> list[str]:
        """Commands that are not there."""
        return [c for c in (self.compiler, *(self.runner or [])[:1]) if not shutil.which(c)]


def targets() -> Iterator[Target]:
    """All of them."""
    x86 = {"SSE2": [], "AVX2": ["-mavx2", "-mfma"], "AVX-512": ["-mavx512f", "-mavx512vl", "-mfma"]}
    for compiler, (name, options) in itertools.product(("gcc", "clang"), x86.items()):
        here = name != "AVX-512" or "avx512vl" in CPU
        target = f"x86-64 {name}, {compiler}"
        yield Target(target, compiler, options, [] if here else None)
        yield Target(
            f"{target}, C++", compiler, [*options, "-xc++", "-std=c++11"], [] if here else None
        )
    for language, options in (("", []), (", C++", CPP)):
        gcc = "aarch64-linux-gnu-gcc"
        yield Target(f"aarch64, gcc{language}", gcc, ["-static", *options], ["qemu-aarch64"])
    cores = {
        "cortex-m3": ("mps2-an385", []),
        "cortex-m4": ("mps2-an386", ["-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]),
        "cortex-m7": ("mps2-an500", ["-mfloat-abi=hard", "-mfpu=fpv5-d16"]),
    }
    for core, (board, options) in cores.items():
        linked = [str(HERE / "cortex_m.c"), f"-T{HERE / 'cortex_m.ld'}", "--specs=rdimon.specs"]
        flags = [f"-mcpu={core}", "-mthumb", *options, *linked, "-DFILES"]
        emulator = ["qemu-system-arm", "-M", board, "-nographic", "-semihosting", "-kernel"]
        yield Target(f"{core}, gcc", "arm-none-eabi-gcc", flags, emulator, files=True)
    node = ["node", "--no-warnings", str(HERE / "wasi.mjs")]
    yield Target("WebAssembly, clang", "clang", WASI, node)
    yield Target("WebAssembly with SIMD, clang", "clang", [*WASI, "-msimd128"], node)


def main() -> int:
    """Run all, print a table; 1 where bytes differ or a tool is not there."""
    parser = argparse.ArgumentParser(
        prog="python tests/export_targets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    levels = ("-O0", "-O2", "-O3")
    table = Table("target", *levels)
    fine = True
    for target in track(list(targets()), "targets", console=Console(stderr=True), transient=True):
        row = [results(target, level, given.models) for level in levels]
        fine &= all(cell in ("same bits", "compiles") for cell in row)
        table.add_row(target.name, *row)
    Console().print(table)
    return 0 if fine else 1


def results(target: Target, level: str, models: list[str]) -> str:
    """What came of the models at a level of optimisation."""
    if target.missing:
        return f"no {', '.join(target.missing)}"
    said = {result(target, level, name) for name in models}
    return said.pop() if len(said) == 1 else "; ".join(sorted(said - {"same bits"}))


def result(target: Target, level: str, name: str) -> str:
    """What came of a model."""
    model = MODELS[name]()
    x = draw(model, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        main, made = source(model, Path(folder)), Path(folder) / "main"
        command = [target.compiler, level, *STRICT, *target.options, main, "-o", made]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode:
            return f"{name}: {compiled.stderr.splitlines()[0]}"
        if target.runner is None:
            return "compiles"
        (Path(folder) / "in").write_bytes(bits(x))
        with (Path(folder) / "in").open() as given:
            done = subprocess.run(
                [*target.runner, made], stdin=given, stdout=subprocess.PIPE, cwd=folder, timeout=300
            )
        output = (Path(folder) / "out").read_bytes() if target.files else done.stdout
    return "same bits" if output == bits(model(x)[0]) else f"{name}: other bits"


if __name__ == "__main__":
    sys.exit(main())
