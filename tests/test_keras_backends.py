"""The tests of the Keras package once more, on each backend that this process has not.

On JAX, which compiles each layer for seconds, a part of them; all run there by
``KERAS_BACKEND=jax python -m pytest tests/test_keras_*.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from keras_backends import BACKEND

FILES = [f"test_keras_{name}.py" for name in ("layers", "masks", "models", "saving")]
#: What is run on JAX: what its module says and does, each of Keras's mask rules, a model.
BRIEF = (
    "test_options and GRU or test_dropout and options0-GRU or other_activations and options1"
    " or reset_before or relu or bits or any_mask and (True-True or False-False)"
    " or fit and functional or half and LSTM-mixed_bfloat16 or without_elman or other_kinds"
)


@pytest.mark.parametrize("backend", ["jax", "numpy", "torch"])
def test_on(backend):
    if backend == BACKEND:
        pytest.skip("the tests themselves are on it")
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES]
    if backend == "jax":
        command += ["-k", BRIEF]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
