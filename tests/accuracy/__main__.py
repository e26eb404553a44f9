"""Every float32 through exp, tanh and sigmoid, and layers beside torch's: ``make accuracy``.

An argument of n looks at every n-th float only. Fails where instruction sets differ, or an error is
larger than ``test_accuracy.py`` has it.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from test_accuracy import CASES, LONG, MEDIAN, MOST, WORST, ratios  # noqa: E402
from test_isa import missing  # noqa: E402

SIMD = HERE.parent.parent / "src" / "elman" / "kernels" / "cpu"
FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
]
ISAS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "portable": [],
}


def sweep(isa, every):
    """The lines that ``sweep.cpp`` prints, of one instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "sweep")
        source = [
            str(HERE / "sweep.cpp"),
            f"-I{SIMD}",
            f"-DELMAN_ISA={isa}",
            "-pthread",
            "-o",
            program,
        ]
        subprocess.run(
            [os.environ.get("CXX", "c++"), *FLAGS, *ISAS[isa], *source, "-o", program], check=True
        )
        done = subprocess.run([program, every], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def functions(every):
    """Print the worst of each function; returns whether all is as it was."""
    found, good = set(), True
    for isa in ISAS:
        if missing(isa) or (isa != "portable" and platform.machine() != "x86_64"):
            print(f"{isa}: not on this processor")
            continue
        lines = sweep(isa, every)
        found.add(tuple(lines))
        for line in lines:
            name, ulps, at, beyond, nan_stays, digest = line.split()
            print(f"{isa:9} {name:8} {ulps} ulp at {at}, {beyond} below; digest {digest}")
            good = good and float(ulps) <= WORST.get(name, (1.05,))[0] + 1e-6 and nan_stays == "1"
    return good and len(found) == 1


def layers():
    """Print Elman's error over torch's, case by case; returns whether they are small enough."""
    found = ratios(CASES | LONG)
    for name, ratio in found.items():
        print(f"{name:48} {ratio:.2f}")
    median, most = np.median(list(found.values())), max(found.values())
    print(f"{'median':48} {median:.2f}\n{'most':48} {most:.2f}")
    return median <= MEDIAN and most <= MOST


if __name__ == "__main__":
    good = functions(sys.argv[1] if len(sys.argv) > 1 else "1")
    sys.exit(0 if layers() and good else 1)
