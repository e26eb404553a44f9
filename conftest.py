"""A framework's package is looked at only where the framework is."""

from importlib.util import find_spec

PACKAGES = ("mlx", "oneflow", "torch")
collect_ignore = [f"src/elman/{name}" for name in PACKAGES if find_spec(name) is None]
