"""The set-up: done once, repeated only when something changed, repaired when broken, clear when it cannot."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course import bootstrap
from course.bootstrap import SetupError

SOURCE = Path(bootstrap.__file__)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the two files that decide, and a record of what would be created and installed."""
    (tmp_path / "pyproject.toml").write_text('[tool.course]\nwithout-dependencies = ["torchcfm"]\n')
    (tmp_path / "constraints.txt").write_text("numpy==2\n")
    done = []

    def create(venv):
        done.append("create")
        python = Path(bootstrap.python_of(venv))
        python.parent.mkdir(parents=True)
        python.touch()

    monkeypatch.setattr(bootstrap, "create", create)
    monkeypatch.setattr(bootstrap, "works", lambda python: os.path.exists(python))
    monkeypatch.setattr(bootstrap, "pip", lambda root, python, arguments: done.append(arguments))
    return tmp_path, done


def test_the_first_call_creates_and_installs_and_the_second_does_nothing(checkout):
    root, done = checkout
    bootstrap.prepare(str(root), ["site"])
    assert done == ["create", ["-e", ".[site]"]]
    bootstrap.prepare(str(root), ["site"])
    assert len(done) == 2


def test_another_extra_is_added_to_those_that_are_there(checkout):
    root, done = checkout
    bootstrap.prepare(str(root), ["site"])
    bootstrap.prepare(str(root), ["test"])
    assert done[2:] == [["-e", ".[site,test]"], ["--no-deps", "torchcfm"]]
    bootstrap.prepare(str(root), ["site"])
    assert len(done) == 4


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_either_file_installs_again(checkout, name):
    root, done = checkout
    bootstrap.prepare(str(root), ["site"])
    with (root / name).open("a") as file:
        file.write("# changed\n")
    bootstrap.prepare(str(root), ["site"])
    assert done == ["create", ["-e", ".[site]"], ["-e", ".[site]"]]


def test_a_moved_checkout_is_installed_again(checkout, tmp_path_factory):
    root, done = checkout
    bootstrap.prepare(str(root), ["site"])
    moved = tmp_path_factory.mktemp("moved") / "course"
    root.rename(moved)
    bootstrap.prepare(str(moved), ["site"])
    assert len(done) == 3


def test_an_installation_that_failed_is_taken_up_again(checkout, monkeypatch):
    root, done = checkout

    def fail(*_):
        raise SetupError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "pip", fail)
        with pytest.raises(SetupError, match="no network"):
            bootstrap.prepare(str(root), ["site"])
    bootstrap.prepare(str(root), ["site"])
    assert done == ["create", ["-e", ".[site]"]]


def test_a_half_made_environment_is_made_anew(checkout, capsys):
    root, done = checkout
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "pyvenv.cfg").touch()
    bootstrap.prepare(str(root), ["site"])
    assert done == ["create", ["-e", ".[site]"]]
    assert "broken or half-made: making it anew" in capsys.readouterr().out


def test_a_folder_that_holds_something_of_the_users_is_never_deleted(checkout):
    root, done = checkout
    (root / ".venv").mkdir()
    (root / ".venv" / "thesis.tex").write_text("mine")
    with pytest.raises(SetupError, match="holds thesis.tex; rule: move your files out"):
        bootstrap.prepare(str(root), ["site"])
    assert (root / ".venv" / "thesis.tex").read_text() == "mine"
    assert done == []


def test_something_else_of_that_name_is_never_deleted(checkout):
    root, _ = checkout
    (root / ".venv").write_text("mine")
    with pytest.raises(SetupError, match="rule: remove it"):
        bootstrap.prepare(str(root), ["site"])
    assert (root / ".venv").read_text() == "mine"


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 10, 13)])
def test_an_old_python_is_told_which_ones_work(version):
    with pytest.raises(SetupError, match=r"rule: Python 3\.11 to 3\.13.*PYTHON="):
        bootstrap.check_python(version)


def test_a_newer_python_is_tried(capsys):
    bootstrap.check_python((3, 99, 0))
    assert "newer than those tested" in capsys.readouterr().out


def test_an_old_python_can_read_the_file():
    source = SOURCE.read_text(encoding="utf-8")
    assert source.isascii()
    ast.parse(source, feature_version=(3, 5))


def test_it_needs_nothing_but_the_standard_library():
    names = {
        alias.name
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names <= sys.stdlib_module_names


def test_a_full_disk_is_told_before_anything_is_made(checkout, monkeypatch):
    root, done = checkout
    usage = type("Usage", (), {"free": int(1.5e9)})
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SetupError, match=r"received a disk with 1\.5 GB free; rule: at least 4 GB"):
        bootstrap.prepare(str(root), ["site"])
    assert done == []
    assert not (root / ".venv").exists()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "NewConnectionError: Failed to establish a new connection: [Errno -2] Name or service not known",
            "cannot be reached",
        ),
        ("error: subprocess-exited-with-error", "its last lines above say why"),
    ],
)
def test_a_failure_of_pip_is_explained(tmp_path, capsys, output, said):
    (tmp_path / "pip.py").write_text(f"import sys\nprint({output!r})\nsys.exit(1)\n")
    with pytest.raises(SetupError, match=said):
        bootstrap.pip(str(tmp_path), sys.executable, ["-e", "."])
    assert output in capsys.readouterr().out


def test_an_environment_that_cannot_be_made_leaves_nothing_and_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "venv.py").write_text("import os, sys\nos.mkdir(sys.argv[1])\nprint('no ensurepip')\nsys.exit(1)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match="apt install python3-venv"):
        bootstrap.create(str(tmp_path / ".venv"))
    assert not (tmp_path / ".venv").exists()


def test_without_a_command_it_prints_how_it_is_called():
    result = subprocess.run([sys.executable, str(SOURCE)], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "EXTRA[,EXTRA...] -- COMMAND" in result.stdout
