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


def test_the_tests_of_the_table_are_there():
    table = (ROOT / "docs/pytorch.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)
    assert len(named) > 30
    sources = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    assert not [(file, test) for file, test in named if f"def {test}(" not in sources[file]]
