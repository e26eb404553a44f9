"""The example that scores files on Dask's workers: the same bytes, whatever the parts."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dask.distributed", reason="dask is not installed; the example runs on it")
from examples.scoring import detector
from examples.scoring.recordings import fails, recording

ROOT = Path(__file__).parents[1]


def test_a_worker_is_killed_and_nothing_is_lost(tmp_path):
    command = [sys.executable, "-m", "examples.scoring", "--files=20", "--together=3"]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = re.findall(r"^(?:one process|and on workers) +(\w{16})", done.stdout, re.MULTILINE)
    assert len(found) == 2
    assert found[0] == found[1]
    assert "100.0% judged rightly" in done.stdout
    assert (tmp_path / "scoring.png").stat().st_size > 1000
    scores = [np.load(file) for file in sorted((tmp_path / "scores").iterdir())]
    alone = [detector.score([recording(n)], tmp_path / "model")[0] for n in range(20)]
    np.testing.assert_array_equal(scores, alone)
    assert [s > 0 for s in scores] == [fails(n) for n in range(20)]
