"""What several tests of homework share: a teaching folder with the toy homework in it, and a warm parent of kernels."""

import os

import pytest

from course.chapters import find_course
from course.homework.folder import TeachingFolder
from course.homework.kernel import WarmParent
from course.homework.sandbox import refusal
from tests.homework import toy
from tests.site.conftest import browser, new_page  # noqa: F401 - fixtures


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A teaching folder whose sources are the toy homework."""
    toy.write(tmp_path / "sources")
    monkeypatch.setenv("COURSE_HOMEWORK", str(tmp_path / "sources"))
    return TeachingFolder(tmp_path / "teaching", find_course())


@pytest.fixture(scope="session")
def warm_parent():
    """One process that forks kernels for all tests; where no sandbox works, its tests are skipped, in CI they fail."""
    reason = refusal()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with WarmParent() as parent:
        yield parent
