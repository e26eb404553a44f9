"""Docstrings as Markdown: sections of definitions, literal blocks, roles and examples."""

import re
from textwrap import dedent

import griffe

SECTION = re.compile(r"^(\w+)\n-{3,}\n((?:.+\n?|\n(?=    ))*)", re.MULTILINE)
DEFINITION = re.compile(r"^(\S.*?) : (.*(?:\n    .*)*)", re.MULTILINE)
LITERAL = re.compile(r"::\n\n((?:(?:    .*)?\n)+(?=\S|\Z))")
EXAMPLE = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
ROLE = re.compile(r":\w+:`~?([^`]+)`")


class Markdown(griffe.Extension):
    """Rewrites every docstring when it is collected."""

    def on_instance(self, *, obj, **_):
        """Called of each object that has a name."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_package(self, *, pkg, **_):
        """Called when all is there: constructors that are shown as another function are."""
        module = pkg["torch.layers"]
        for name in ("RNN", "GRU", "LSTM"):
            init = module[name]["__init__"]
            shown = re.fullmatch(r"_shown_as\((\w+)\)", str(init.decorators[0].value))
            init.parameters = module[shown[1]].parameters


def markdown(text):
    """The docstring's text, which is dedented, as Markdown."""
    text = ROLE.sub(r"`\1`", text + "\n").replace("``", "`")
    text = SECTION.sub(_section, text)
    text = LITERAL.sub(lambda m: f"\n\n```text\n{dedent(m[1]).rstrip()}\n```\n\n", text)
    return EXAMPLE.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text)


def _section(match):
    """A title, and a list of what is defined; what is not a definition stays as it is."""
    body = DEFINITION.sub(lambda m: f"- `{m[1]}`: {_joined(m[2])}", match[2])
    return f"**{match[1]}**\n\n{body}\n"


def _joined(lines):
    return " ".join(line.strip() for line in lines.split("\n"))
