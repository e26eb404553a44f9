"""Pages, pictures and sources of the repository, under their own paths, for mkdocs."""

import re
from pathlib import Path
from posixpath import dirname, join, normpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:]+)")  # but to another site


def on_files(files, config):
    """Add every page of the navigation, and all that these pages link to."""
    waiting, seen = list(_pages(config.nav)), set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():  # of a link that is broken mkdocs tells
            continue
        seen.add(path)
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            links = LINK.findall((ROOT / path).read_text())
            waiting += [normpath(join(dirname(path), link)) for link in links]
    return files


def _pages(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else _pages(value)
