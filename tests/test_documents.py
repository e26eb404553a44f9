"""The examples of the README and of docs/ run, and their paths are there."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    failures, _ = doctest.testfile(str(document), module_relative=False, optionflags=OPTIONS)
    assert failures == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)", document.read_text())
    missing = [to for to in links if "://" not in to and not (document.parent / to).exists()]
    assert not missing


def test_the_readme_has_examples():
    examples = doctest.DocTestParser().get_examples((ROOT / "README.md").read_text())
    assert len(examples) > 10


@pytest.mark.parametrize("document", ["docs/pytorch.md", "tests/README.md"])
def test_the_tests_that_a_table_names_are_there(document):
    text = (ROOT / document).read_text()
    sources = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    named = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", text)
    assert len(named) > 30
    everywhere = "".join(sources.values())
    missing = [t for file, t in named if f"def {t}(" not in (sources[file] if file else everywhere)]
    assert not missing
