"""The author's two files: what is read, and how each broken rule is said."""

import pytest

from course.chapters import CourseError
from course.homework.sources import find, hidden_seed, load, slugs
from tests.homework import toy


@pytest.fixture
def assignment(tmp_path):
    return load(toy.write(tmp_path))


def test_everything_that_the_author_wrote_is_read(assignment):
    by_name = {problem.name: problem for problem in assignment.problems}
    assert (assignment.title, assignment.minutes, assignment.points) == ("Homework 01: toys", 20, 10)
    assert list(by_name) == ["scale-it", "draw-it", "choose", "explain"]
    assert [test.name for test in by_name["scale-it"].tests] == ["scale-it-check", "scale-it-hidden"]
    assert [(test.points, test.hidden) for test in by_name["scale-it"].tests] == [(3, False), (1, True)]
    assert by_name["scale-it"].mistakes == ("E1",)
    assert by_name["draw-it"].tests[0].settings == {"atol": 0.08, "rtol": 0.0, "false_alarm": 1e-4}
    assert by_name["choose"].tests[0].sealed
    assert by_name["explain"].written
    assert by_name["explain"].rubric == "- 2 points: says why."
    assert by_name["explain"].solution == "Because."
    assert [row["scale"] for row in assignment.variants] == [2.0, 3.0]


def test_right_and_wrong_are_run_with_the_variants_numbers(assignment):
    problem = assignment.problems[0]
    values = [problem.exercise(problem.tests[0], row).record(7)["right"]["data"] for row in assignment.variants]
    ratios = [three / two for two, three in zip(*values, strict=True)]
    assert ratios == pytest.approx([1.5] * 5)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("  chapter: 01-toys\n", "", "rule: homework states chapter"),
        ("  chapter: 01-toys", "  chapter: 02-toys", "rule: the folder's name, 01-toys"),
        ("  minutes: 20", "  minutes: soon", "rule: homework states minutes"),
        ("  minutes: 20", "  minutes: 20\n  hours: 3", "received the unknown ['hours']"),
        ("    - {scale: 3.0}", "    - {size: 3.0}", "rule: a list of rows with the same names"),
        ("    - {scale: 3.0}", "    - {scale: [3]}", "rule: names of Python, numbers or words"),
        (":name: scale-it-check", ":name: scale-check", "rule: after its answer, named PROBLEM-check"),
        (":name: draw-it\n", ":name: Draw It\n", "rule: kebab-case"),
        (":points: 3\n\ndef probe", ":points: 2\n\ndef probe", "rule: together the heading's 4"),
        (":points: 3\n\ndef probe", ":points: -3\n\ndef probe", "rule: a number, 0 or more"),
        ("## 2. Draw it (3 points)", "## Draw it", "rule: `## N. Title (P points)` before each problem"),
        ("def probe(generator):\n    return choice", "choice", "rule: it defines `probe(generator)`"),
    ],
)
def test_a_broken_rule_of_the_public_file_is_named(tmp_path, old, new, rule):
    assert old in toy.ASSIGNMENT
    folder = toy.write(tmp_path, assignment=toy.ASSIGNMENT.replace(old, new))
    with pytest.raises(CourseError) as caught:
        load(folder)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("## choose", "## chose", "'## chose', which is no problem"),
        ('### Right: in another way\n\n```{code-cell}\nchoice = max("a", "b")\n```\n', "", "rule: at least 2"),
        ("### Wrong: the sign is turned.......", "### Wrong: the sign", "rule: a sentence"),
        ("### Wrong: c is none of the two letters.", "### Wronged: c is none.", "rule: under '## PROBLEM'"),
        ("### Rubric", "### Remark", "rule: under '## PROBLEM'"),
        ("Because.\n\n### Rubric", "### Rubric", "rule: both in words"),
        ("### Wrong: both cannot be the larger one.\n", "", "rule: one cell a heading"),
        ('### Solution\n\n```{code-cell}\nchoice = "b"\n```\n', "", "received no '### Solution'"),
        ("# Answers that people give", "```{code-cell}\n1\n```\n\n#", "received code out of place"),
    ],
)
def test_a_broken_rule_of_the_private_file_is_named(tmp_path, old, new, rule):
    assert old in toy.ANSWERS
    folder = toy.write(tmp_path, answers=toy.ANSWERS.replace(old, new, 1))
    with pytest.raises(CourseError) as caught:
        load(folder)
    assert rule in str(caught.value)


def test_a_missing_or_unreadable_file_is_one_message(tmp_path):
    folder = toy.write(tmp_path)
    (folder / "answers.md").unlink()
    with pytest.raises(CourseError, match="received answers.md, which cannot be read"):
        load(folder)
    (folder / "answers.md").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(CourseError, match="received answers.md, which cannot be read"):
        load(folder)


def test_homeworks_are_found_by_number_slug_or_prefix(tmp_path):
    toy.write(tmp_path)
    toy.write(tmp_path, slug="02-more-toys")
    (tmp_path / "notes").mkdir()
    assert slugs(tmp_path) == ["01-toys", "02-more-toys"]
    assert [find(tmp_path, name) for name in ("1", "01", "toys", "02-more-toys", "more")] == [
        "01-toys",
        "01-toys",
        "01-toys",
        "02-more-toys",
        "02-more-toys",
    ]
    for name in ("0", "3", ""):
        with pytest.raises(CourseError, match="rule: a number, a slug or a prefix"):
            find(tmp_path, name)


def test_hidden_seeds_differ_by_test_and_secret_and_are_never_the_public_one():
    seeds = {hidden_seed(secret, test) for secret in ("a", "b") for test in ("x-check", "x-hidden")}
    assert len(seeds) == 4
    assert min(seeds) > 0
