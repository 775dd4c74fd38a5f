"""The ledger: what is read from tests and chapters, and that every gap is named."""

from dataclasses import replace

import pytest

from course.chapters import Chapter
from course.site.evidence import (
    Box,
    Equation,
    Evidence,
    Ledger,
    Mistake,
    read_boxes,
    read_equations,
    read_ledger,
    read_mistakes,
    read_tests,
)

CHAPTER = """\
---
kernelspec: {name: python3}
---
# Title

Inline $a$ and a labelled one $$ x = 1 $$ (eq-not-displayed)

$$
\\frac{a}{b}
  = c
$$ (eq-first)

$$ d = e $$ (eq-one-line)

$$ f = g $$

```{code-cell}
text = "$$ h = i $$ (eq-in-code)"
```

````{exercise} Nested
```{solution} ex
$$ j = k $$ (eq-nested)
```
````

```{math}
:label: eq-directive
l = m
```

:::{admonition} Mistake: the sign
:class: mistake E19
$$ n = o $$ (eq-in-box)
:::

```{admonition} Other
:class: predict
```

```{admonition} Mistake: nameless
:class: mistake
```
"""

TESTS = '''\
import pytest

pytestmark = pytest.mark.verifies("eq-everywhere")


@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.refutes("E2"))])
@pytest.mark.verifies("eq-a", "eq-b")
def test_a_sentence(a):
    """The fact
    it uses."""
    assert a


class TestGroup:
    @pytest.mark.refutes("E1")
    def test_in_a_class(self):
        """Fact."""

    def helper(self): ...


def helper(): ...
'''


def test_labelled_equations_are_read_where_myst_reads_them():
    equations = {equation.label: equation.latex for equation in read_equations(CHAPTER, "12-flow-matching")}
    assert equations == {
        "eq-first": "\\frac{a}{b}\n= c",
        "eq-one-line": "d = e",
        "eq-nested": "j = k",
        "eq-directive": "l = m",
        "eq-in-box": "n = o",
    }


def test_mistake_boxes_are_read_with_number_title_and_line():
    boxes = list(read_boxes(CHAPTER, "12-flow-matching"))
    assert [(box.number, box.title) for box in boxes] == [("E19", "the sign"), ("", "nameless")]
    assert CHAPTER.splitlines()[boxes[0].line - 1] == ":::{admonition} Mistake: the sign"


def test_markers_are_read_without_importing_the_test(tmp_path):
    folder = tmp_path / "tests" / "numerics"
    folder.mkdir(parents=True)
    (folder / "test_ode.py").write_text("raise SystemExit\n" + TESTS, encoding="utf-8")
    function, method = read_tests(tmp_path / "tests")
    assert function.verifies == ("eq-everywhere", "eq-a", "eq-b")
    assert function.refutes == ("E2",)
    assert function.docstring == "The fact it uses."
    assert function.source.startswith("@pytest.mark.parametrize")
    assert function.title == "A sentence"
    assert function.anchor == "test-numerics-test-ode-a-sentence"
    assert method.place == "tests/numerics/test_ode.py::TestGroup::test_in_a_class"
    assert method.refutes == ("E1",)
    assert method.source.startswith("@pytest"), "a method is shown from the left edge"


@pytest.fixture
def whole(tmp_path):
    """A ledger without a gap: one chapter, one equation, one mistake, one test of both."""
    chapter = Chapter(tmp_path / "12-flow-matching.md")
    test = Evidence("tests/test_a.py", "test_a", 3, "Fact.", "def test_a(): ...", ("eq-a",), ("E19",))
    return Ledger(
        chapters=(chapter,),
        equations=(Equation("eq-a", chapter.slug, "a", 1),),
        boxes=(Box("E19", chapter.slug, "the sign", 2),),
        mistakes=(Mistake("E19", (12,), "Title", "wrong", "right"), Mistake("E1", (3,), "Later", "wrong", "right")),
        tests=(test,),
    )


def test_a_whole_ledger_has_no_problems(whole):
    assert whole.problems() == []
    assert whole.chapter_of(whole.tests[0]) == "12-flow-matching"
    assert [mistake.number for mistake in whole.refuted] == ["E19"], "a planned chapter refutes nothing yet"


GAPS = {
    "an unverified equation": (
        lambda w: replace(w, equations=(*w.equations, Equation("eq-b", "12-flow-matching", "b", 7))),
        "notebooks/12-flow-matching.md:7: no test verifies eq-b",
    ),
    "a label twice": (
        lambda w: replace(w, equations=(*w.equations, Equation("eq-a", "12-flow-matching", "b", 7))),
        "eq-a stands in notebooks/12-flow-matching.md too",
    ),
    "a label without eq-": (
        lambda w: replace(w, equations=(*w.equations, Equation("energy", "12-flow-matching", "b", 7))),
        "'energy' must begin with 'eq-'",
    ),
    "a marker for an unknown label": (
        lambda w: replace(w, tests=(*w.tests, replace(w.tests[0], verifies=("eq-gone",)))),
        "tests/test_a.py:3: test_a verifies eq-gone, which no chapter has",
    ),
    "a marker for an unknown mistake": (
        lambda w: replace(w, tests=(*w.tests, replace(w.tests[0], refutes=("E99",)))),
        "test_a refutes E99",
    ),
    "a marked test without a docstring": (
        lambda w: replace(w, tests=(replace(w.tests[0], docstring=""),)),
        "test_a has no docstring",
    ),
    "a listed mistake without a test": (
        lambda w: replace(w, tests=(replace(w.tests[0], refutes=()),)),
        "mistake E19: no test refutes it",
    ),
    "a listed mistake without a box": (
        lambda w: replace(w, boxes=()),
        "mistake E19: notebooks/12-flow-matching.md has no box of class `mistake E19`",
    ),
    "a box without a number": (
        lambda w: replace(w, boxes=(*w.boxes, Box("", "12-flow-matching", "nameless", 9))),
        "the mistake box 'nameless' has no number",
    ),
    "a box with an unknown number": (
        lambda w: replace(w, boxes=(*w.boxes, Box("E99", "12-flow-matching", "x", 9))),
        "the mistake E99 is not in course/site/mistakes.yml",
    ),
    "a box in the wrong chapter": (
        lambda w: replace(w, boxes=(*w.boxes, Box("E1", "12-flow-matching", "x", 9))),
        "does not give E1 to chapter 12",
    ),
}


@pytest.mark.parametrize("gap", GAPS)
def test_each_gap_is_named(whole, gap):
    change, message = GAPS[gap]
    problems = change(whole).problems()
    assert any(message in problem for problem in problems), problems


def test_the_table_of_mistakes_is_complete():
    mistakes = read_mistakes()
    assert [mistake.number for mistake in mistakes] == [f"E{n}" for n in range(1, 41)]
    assert all(mistake.title and mistake.wrong and mistake.right for mistake in mistakes)
    assert all(1 <= chapter <= 17 for mistake in mistakes for chapter in mistake.chapters)


def test_the_course_proves_what_it_claims(request):
    """The chapters of this checkout: every labelled equation and every listed mistake has its test."""
    ledger = read_ledger(request.config.rootpath)
    assert len({test.anchor for test in ledger.tests}) == len(ledger.tests)
    assert ledger.problems() == []
