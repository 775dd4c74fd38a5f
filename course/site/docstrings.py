"""The docstrings of `companion` as reStructuredText.

They are plain text that begins with an equation. Sphinx would read `|x|` as a substitution, `x_` as a link and an
indented equation as a quotation. `to_rst` escapes what is meant literally, shows indented blocks as they stand, makes
code of names in single backticks, and leaves the Google sections (Args, Returns …) to napoleon.
"""

import re
from collections.abc import Iterator
from itertools import groupby

SECTION = re.compile(r"^(Args|Attributes|Examples?|Notes?|Raises|Returns|Yields|References):\s*$")
MARKUP = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`|(?<![\w*])\*\w[^*]*\w\*(?![\w*]))")
ITEM = re.compile(r"^(?:[-*]|\d+\.)\s+")
WIDE = re.compile(r"(?<=\S) {6,}")


def to_rst(lines: list[str]) -> list[str]:
    """Returns the lines of a docstring as reStructuredText that says exactly what the docstring shows."""
    out: list[str] = []
    for kind, group in groupby(classified(lines), key=lambda pair: pair[0]):
        block = [line for _, line in group]
        if kind == "equation":
            out += ["", ".. code-block:: text", "", *(WIDE.sub("    ", line) for line in block), ""]
        else:
            out += [line if SECTION.match(line) else escape(line) for line in block]
    return out


def classified(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yields each line with what it belongs to: text, an item of a list, an indented equation, a Google section."""
    kind = "text"
    for line in lines:
        flush = bool(line.strip()) and not line.startswith(" ")
        if flush:
            kind = "section" if SECTION.match(line) else "item" if ITEM.match(line) else "text"
        elif kind == "text" and line.startswith("    "):
            kind = "equation"
        yield ("text" if kind == "equation" and flush else kind), line


def escape(line: str) -> str:
    """Escapes the markup of reStructuredText outside code and emphasis."""
    item = ITEM.match(line)
    head = item[0] if item else ""
    parts = [markup(part) if i % 2 else plain(part) for i, part in enumerate(MARKUP.split(line[len(head) :]))]
    for i in range(1, len(parts), 2):  # markup ends at a word's edge: part it from letters that touch it
        if parts[i - 1][-1:].isalnum():
            parts[i] = "\\ " + parts[i]
        if parts[i + 1][:1].isalnum():
            parts[i] += "\\ "
    return head + "".join(parts)


def markup(text: str) -> str:
    """A span that keeps its meaning: a name in single backticks is code, a role and emphasis stay what they are."""
    return f"`{text}`" if text.startswith("`") and not text.startswith("``") else text


def plain(text: str) -> str:
    """A span of plain text: none of its characters is markup."""
    return re.sub(r"_(?=\W|$)", r"\\_", re.sub(r"([\\*|`])", r"\\\1", text))
