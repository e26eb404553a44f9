"""A framework's package is looked at only where the framework is."""

import os
from importlib.util import find_spec

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras's own default is TensorFlow
PACKAGES = ("jax", "keras", "mlx", "oneflow", "torch")
MODULES = {"jax/nnx.py": "flax", "jax/linen.py": "flax", "jax/equinox.py": "equinox"}
collect_ignore = [f"src/elman/{name}" for name in PACKAGES if find_spec(name) is None]
collect_ignore += [f"src/elman/{path}" for path, name in MODULES.items() if find_spec(name) is None]
