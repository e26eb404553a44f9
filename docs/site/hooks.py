"""Pages, pictures and sources of the repository, under their own paths, for mkdocs."""

import re
from pathlib import Path
from posixpath import dirname, join, normpath

from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

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
        for name, content in _contents(path).items():
            files.append(File.generated(config, name, content=content))
            if name.endswith(".md"):
                links = LINK.findall(content)
                waiting += [normpath(join(dirname(name), link)) for link in links]
    return files


def on_page_markdown(markdown, page, config, files):
    """Have links to a notebook lead to its page."""
    return markdown.replace(".ipynb)", ".md)")


def _contents(path):
    """Return what a file gives, by path: itself, or a notebook's page and its pictures."""
    file = ROOT / path
    if file.suffix == ".ipynb":
        page, resources = MarkdownExporter().from_filename(str(file))
        pictures = {join(dirname(path), name): data for name, data in resources["outputs"].items()}
        return {path.replace(".ipynb", ".md"): page, **pictures}
    return {path: file.read_text() if file.suffix == ".md" else file.read_bytes()}


def _pages(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else _pages(value)
