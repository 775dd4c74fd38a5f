"""Where the course lives, and how a chapter is named.

A chapter has one slug, `NN-name` (`12-flow-matching`). The text `notebooks/NN-name.md` is the truth; the executed
`notebooks/NN-name.ipynb` stands beside it. On the command line a chapter may be called by its slug, its number,
or any prefix that fits only one.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

SLUG = re.compile(r"\d{2}(-[a-z0-9]+)+")


class CourseError(ValueError):
    """A mistake of the user or a broken file: printed as one message, never as a traceback."""


@dataclass(frozen=True)
class Chapter:
    """One chapter: the text, its executed notebook, and the number that its slug carries."""

    source: Path

    @property
    def slug(self) -> str:
        """`12-flow-matching`."""
        return self.source.stem

    @property
    def number(self) -> int:
        """12."""
        return int(self.slug[:2])

    @property
    def topic(self) -> str:
        """`flow-matching`: the slug without its number, as the label `ch-flow-matching` has it."""
        return self.slug[3:]

    @property
    def notebook(self) -> Path:
        """The executed notebook beside the text."""
        return self.source.with_suffix(".ipynb")


@dataclass(frozen=True)
class Course:
    """The folders of one checkout of the course."""

    root: Path

    @property
    def notebooks(self) -> Path:
        """The folder of the chapters."""
        return self.root / "notebooks"

    @property
    def live(self) -> Path:
        """The folder of the committed graphs of the live figures."""
        return self.root / "book" / "_static" / "live"

    @property
    def workspace(self) -> Path:
        """The student's own copies: `$COURSE_WORKSPACE`, else `my-course` in the checkout."""
        return Path(os.environ.get("COURSE_WORKSPACE") or self.root / "my-course").expanduser().absolute()

    def chapters(self) -> list[Chapter]:
        """All chapters, in order of their number."""
        sources = (path for path in self.notebooks.glob("*.md") if SLUG.fullmatch(path.stem))
        return [Chapter(path) for path in sorted(sources)]

    def find(self, name: str) -> Chapter:
        """Returns the chapter that is called `name`: a number, a slug, a prefix of either, or a file.

        Raises:
            CourseError: No chapter, or more than one, is called so.
        """
        known = self.chapters()
        plain = Path(name).stem if name.endswith((".md", ".ipynb")) else name
        found = called(plain, [chapter.slug for chapter in known])
        if len(found) == 1:
            return next(chapter for chapter in known if chapter.slug == found[0])
        problem = "fits more than one chapter" if found else "is the name of no chapter"
        listing = ", ".join(found or [chapter.slug for chapter in known]) or f"none in {self.notebooks}"
        raise CourseError(
            f"chapter: received '{name}', which {problem}; rule: a number, a slug or a prefix of {listing}"
        )

    def select(self, names: list[str]) -> list[Chapter]:
        """Returns the chapters called by `names`, each once, in order; all of them where `names` is empty."""
        if not names:
            return self.chapters()
        return sorted({self.find(name) for name in names}, key=lambda chapter: chapter.slug)


def called(name: str, slugs: list[str]) -> list[str]:
    """Those of the slugs that `name` may mean: a number, a slug, a topic, else a prefix of the latter two."""
    exact = [slug for slug in slugs if name in (slug, slug[3:]) or (name.isdigit() and int(name) == int(slug[:2]))]
    return exact or [slug for slug in slugs if name and (slug.startswith(name) or slug[3:].startswith(name))]


def find_course(start: Path | None = None) -> Course:
    """Returns the checkout that holds `start` (the working directory), else the one this file belongs to.

    Raises:
        CourseError: Neither is a checkout of the course (the package was installed without its chapters).
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[1]):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir() and (folder / "book").is_dir():
            return Course(folder)
    raise CourseError(
        f"course: received the folder {start}; rule: run inside a checkout of the course "
        "(a folder with pyproject.toml, notebooks/ and book/), installed with `pip install -e`"
    )
