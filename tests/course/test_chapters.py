"""A chapter is called by its slug, its number, or a prefix that fits only one."""

import pytest

from course.chapters import CourseError, find_course


@pytest.fixture
def shelf(toy):
    for slug in ("03-change-of-variables", "08-flows", "12-flow-matching", "13-guidance"):
        (toy.notebooks / f"{slug}.md").touch()
    return toy


@pytest.mark.parametrize(
    "name",
    [
        "12",
        "12-flow-matching",
        "12-fl",
        "flow-matching",
        "flow-m",
        "12-flow-matching.md",
        "notebooks/12-flow-matching.ipynb",
    ],
)
def test_a_chapter_is_found_by_each_of_its_names(shelf, name):
    assert shelf.find(name).slug == "12-flow-matching"


def test_a_number_needs_no_leading_zero_and_an_exact_name_beats_a_prefix(shelf):
    assert shelf.find("3").slug == shelf.find("03").slug == "03-change-of-variables"
    assert shelf.find("flows").slug == "08-flows"


@pytest.mark.parametrize("name", ["99", "flwo", "", "../secret", "12-flow-matching-2"])
def test_an_unknown_name_is_refused_with_the_list_of_the_known(shelf, name):
    with pytest.raises(CourseError, match="is the name of no chapter") as refusal:
        shelf.find(name)
    assert all(chapter.slug in str(refusal.value) for chapter in shelf.chapters())


def test_an_ambiguous_name_is_refused_with_those_that_it_fits(shelf):
    with pytest.raises(CourseError, match="fits more than one chapter.*08-flows, 12-flow-matching"):
        shelf.find("flow")
    with pytest.raises(CourseError, match="fits more than one chapter.*12-flow-matching, 13-guidance"):
        shelf.find("1")


def test_several_names_give_each_chapter_once_in_order(shelf):
    assert [chapter.number for chapter in shelf.select(["12", "3", "flow-matching"])] == [3, 12]
    assert len(shelf.select([])) == 4


def test_the_parts_of_a_slug(shelf):
    chapter = shelf.find("3")
    assert (chapter.number, chapter.topic, chapter.notebook.name) == (
        3,
        "change-of-variables",
        "03-change-of-variables.ipynb",
    )


def test_the_course_is_found_from_within_and_the_workspace_is_configurable(shelf, monkeypatch, tmp_path):
    assert find_course(shelf.notebooks).root == shelf.root.resolve()
    assert shelf.workspace == shelf.root / "my-course"
    monkeypatch.setenv("COURSE_WORKSPACE", str(tmp_path / "elsewhere"))
    assert shelf.workspace == tmp_path / "elsewhere"
