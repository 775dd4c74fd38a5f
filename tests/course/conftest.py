"""The fixture `toy`: an empty course in a temporary folder."""

from pathlib import Path

import pytest

from tests.course.toy import ToyCourse


@pytest.fixture
def toy(tmp_path: Path) -> ToyCourse:
    """An empty course: the folders and the one module that its chapters may name."""
    for folder in ("notebooks", "book/_static/live", "companion/numerics"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "companion/numerics/ode.py").touch()
    (tmp_path / "pyproject.toml").touch()
    return ToyCourse(tmp_path)
