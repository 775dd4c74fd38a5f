"""Docstrings are plain text: the reference shows what they say, character by character."""

import io

import pytest
from docutils.core import publish_doctree

from course.site.docstrings import to_rst

LITERALS = [
    "log |det J_f(x)| and |x|",
    "x_ and x_1 and p_t(x_t) and alpha_",
    "a * b * c and *args and **kwargs",
    "a backslash \\alpha stays",
    "an odd ` backtick",
]


def parse(text):
    """The document that reStructuredText makes of a docstring; any complaint of docutils is an error."""
    return publish_doctree(
        "\n".join(to_rst(text.splitlines())), settings_overrides={"halt_level": 2, "warning_stream": io.StringIO()}
    )


@pytest.mark.parametrize("text", LITERALS)
def test_plain_text_is_shown_as_written(text):
    assert parse(text).astext() == text


def test_an_indented_equation_stands_as_written():
    tree = parse("Density.\n\n    p(x) = |f'(x)| * q_\n      + r\n\nSymbols: x_1 data.\n")
    kinds = [node.tagname for node in tree]
    assert kinds == ["paragraph", "literal_block", "paragraph"]
    assert tree[1].astext() == "p(x) = |f'(x)| * q_\n  + r"


def test_wide_gaps_before_a_label_are_closed():
    assert "    x = y    (eq-x)" in to_rst(["Text.", "", "    x = y" + " " * 60 + "(eq-x)"])


def test_names_in_single_backticks_are_code_and_roles_stay():
    assert to_rst(["Give `x_t`s to :func:`step` and ``y``."]) == ["Give ``x_t``\\ s to :func:`step` and ``y``."]


def test_lists_and_emphasis_stay():
    tree = parse("Text.\n\n- one |a|\n- *two*\n")
    assert tree[1].tagname == "bullet_list"
    assert tree[1].astext().split() == ["one", "|a|", "two"]


def test_sections_are_left_to_napoleon():
    lines = ["Text.", "", "Args:", "    x: points |x|, `(batch, dim)`.", "", "Returns:", "    y."]
    assert to_rst(lines) == ["Text.", "", "Args:", "    x: points \\|x\\|, ``(batch, dim)``.", "", "Returns:", "    y."]
