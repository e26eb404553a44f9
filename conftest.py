"""A framework's package, or a module for another package, is looked at only where that is."""

from importlib.util import find_spec

NEEDED = {
    "mlx": "mlx",
    "oneflow": "oneflow",
    "torch": "torch",
    "torch/sb3.py": "sb3_contrib",
    "torch/torchrl.py": "torchrl",
}
collect_ignore = [f"src/elman/{path}" for path, name in NEEDED.items() if find_spec(name) is None]
