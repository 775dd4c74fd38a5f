"""The page of homework: what is asked for, and a student edition to download; never a solution."""

import io
import zipfile

import pytest
from docutils import nodes
from docutils.utils import new_document
from sphinx import addnodes

from course.homework.editions import edition
from course.homework.sources import load
from course.site.extension import link_homework
from course.site.homework import homework_page
from tests.homework import toy


@pytest.fixture
def root(tmp_path):
    toy.write(tmp_path / "homework")
    return tmp_path


def test_the_page_names_points_minutes_goals_and_problems(root):
    page = homework_page(root)
    for words in (
        "## Homework 01: toys",
        "10 points, 2 of them read by a person",
        "about 20 minutes",
        "- sample",
        "2. Draw it (3 points)",
        "{ref}`ch-toys`",
        "{download}`Download homework 01 (zip) <homework/01-toys.zip>`",
    ):
        assert words in page


def test_what_can_be_downloaded_is_the_student_edition(root):
    homework_page(root)
    data = (root / "book/_generated/homework/01-toys.zip").read_bytes()
    assert data == edition(load(root / "homework/01-toys")).archive
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def test_archives_of_homework_that_is_gone_go_too(root):
    homework_page(root)
    toy.write(root / "homework", slug="02-toys", assignment=toy.ASSIGNMENT.replace("chapter: 01", "chapter: 02"))
    homework_page(root)
    archives = root / "book/_generated/homework"
    assert sorted(path.name for path in archives.iterdir()) == ["01-toys.zip", "02-toys.zip"]
    (root / "homework/01-toys/assignment.md").unlink()
    homework_page(root)
    assert [path.name for path in archives.iterdir()] == ["02-toys.zip"]


def test_a_site_without_homework_says_so(tmp_path):
    assert "*This site comes without homework.*" in homework_page(tmp_path)


def test_a_chapter_with_homework_links_to_it_behind_its_budget(root):
    document = new_document("chapter")
    document += nodes.section("", nodes.title("", "Toys"), nodes.paragraph(classes=["budget"]))
    link_homework(document, "notebooks/01-toys", "01-toys", root)
    (link,) = document.findall(addnodes.pending_xref)
    assert (link["reftarget"], link.astext()) == ("homework-01-toys", "homework")
    assert f"({link['reftarget']})=\n## Homework 01: toys" in homework_page(root)
    link_homework(document, "notebooks/02-none", "02-none", root)
    assert len(list(document.findall(addnodes.pending_xref))) == 1
