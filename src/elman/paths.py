"""Which path the calls of a package take: counted, and insisted on where that is asked for."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager


class Paths:
    """The paths of one package, by name.

    Attributes
    ----------
    counts : layers run by each path since the program began, or since ``counts.clear()``.
    required : what :meth:`require` insists on, if anything.

    >>> paths = Paths("kernel", "scan")
    >>> with paths.require("kernel"):
    ...     paths.take("kernel", "GRU", layers=2)
    >>> paths.counts
    Counter({'kernel': 2})
    """

    def __init__(self, *names: str) -> None:
        self.counts: Counter[str] = Counter()
        self._names = names
        self.required: list[str] = []  # the last one holds; several threads may come and go

    def check(self, path: str, layer: str) -> None:
        """Raise if a call of the class named `layer` takes this path though another is required."""
        if self.required and self.required[-1] != path:
            raise RuntimeError(
                f"{layer}: path {self.required[-1]!r} is required, but this call takes {path!r}"
            )

    def take(self, path: str, layer: str, layers: int = 1) -> None:
        """Check a call, and count it."""
        self.check(path, layer)
        self.counts[path] += layers

    @contextmanager
    def require(self, path: str) -> Generator[None, None, None]:
        """Within it, a call that would take another path than this one raises RuntimeError.

        It holds for all threads. Raises ValueError for a path that the package does not have.
        """
        if path not in self._names:
            expected = ", ".join(map(repr, self._names))
            raise ValueError(f"require: expected one of {expected}, got {path!r}")
        self.required.append(path)
        try:
            yield
        finally:
            del self.required[-1 - self.required[::-1].index(path)]
