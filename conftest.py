"""A door is looked at only where its framework is."""

from importlib.util import find_spec

DOORS = ("mlx", "oneflow", "torch")
collect_ignore_glob = [f"src/elman/{name}*.py" for name in DOORS if find_spec(name) is None]
