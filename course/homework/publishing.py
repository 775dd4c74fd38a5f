"""The course as students may see it: what launch buttons open, and what a public repository can hold.

Everything that git tracks, without the sources of the homework (solutions, hidden tests, catalogues), the tests and the
machinery of the repository; in the place of the sources stand the student editions.
"""

import subprocess
import tempfile
from pathlib import Path

from course.chapters import Course, CourseError
from course.files import replace_folder, write_atomic
from course.homework.editions import edition
from course.homework.sources import load, slugs

LEFT_OUT = ("homework/", "tests/", "benchmarks/", ".ci/", ".github/")


def publish(course: Course, sources: Path, target: Path) -> list[str]:
    """Writes the student edition of the whole course into the folder `target`; says which files changed.

    Raises:
        CourseError: The checkout is no git repository, or the target is a place that must not be replaced.
    """
    target = target.expanduser().absolute()
    if target == course.root or target in course.root.parents or target.is_relative_to(sources):
        raise CourseError(f"homework publish: received {target}, which holds the course; rule: a folder of its own")
    if target.exists() and any(target.iterdir()) and not (target / ".student-edition").is_file():
        raise CourseError(
            f"homework publish: received {target}, which is not empty; rule: a new folder, or its last edition"
        )
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch) / "course"
        for name in tracked(course.root):
            if not name.startswith(LEFT_OUT):
                write_atomic(new / name, (course.root / name).read_bytes())
        for slug in slugs(sources):
            for name, data in edition(load(sources / slug)).files.items():
                write_atomic(new / "homework" / slug / name, data)
        write_atomic(new / ".student-edition", "Written by `course homework publish`.\n")
        return replace_folder(new, target)


def tracked(root: Path) -> list[str]:
    """The files that git tracks and that exist."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CourseError(
            f"homework publish: received {root}, where git lists no files; rule: a git checkout"
        ) from error
    return [name for name in listed.split("\0") if name and (root / name).is_file()]
