"""A framework's package, or a module for another package, is looked at only where that is."""

import os
from importlib.util import find_spec

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras's own default is TensorFlow
NEEDED = {
    **{name: name for name in ("jax", "keras", "mlx", "oneflow", "torch")},
    "jax/equinox.py": "equinox",
    "jax/linen.py": "flax",
    "jax/nnx.py": "flax",
    "keras/on_jax.py": "jax",
    "keras/on_torch.py": "torch",
    "torch/sb3.py": "sb3_contrib",
    "torch/torchrl.py": "torchrl",
}
collect_ignore = [f"src/elman/{path}" for path, name in NEEDED.items() if find_spec(name) is None]
