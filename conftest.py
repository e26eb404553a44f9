"""A framework's package is looked at only where the framework is."""

import os
from importlib.util import find_spec

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras's own default is TensorFlow
PACKAGES = ("keras", "mlx", "oneflow", "torch")
collect_ignore = [f"src/elman/{name}" for name in PACKAGES if find_spec(name) is None]
