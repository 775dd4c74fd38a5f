"""The command: clear errors for mistakes in the call, one exit status for each kind of end."""

import socket
import subprocess
import sys

import pytest

from course import cli
from course.cli import main, pytest_arguments
from tests.course.test_notebooks import BODY, committed
from tests.course.toy import code

COMMANDS = ["site", "test", "lab", "author", "run", "check", "bench", "compare", "help"]


@pytest.fixture
def inside(toy, monkeypatch):
    """The toy course, with the shell in it."""
    monkeypatch.chdir(toy.root)
    return toy


def test_help_lists_every_command(capsys):
    assert main(["help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {name} " in printed for name in COMMANDS)
    assert main([]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage: course " + name in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["biuld"])
    assert ended.value.code == 2
    assert "biuld" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "check", "lab", "author"])
def test_an_unknown_chapter_is_told_with_the_known_ones(inside, capsys, command):
    inside.write("03-change-of-variables", BODY)
    assert main([command, "99-nothing"]) == 2
    said = capsys.readouterr().err
    assert "chapter: received '99-nothing', which is the name of no chapter; rule: " in said
    assert "03-change-of-variables" in said
    assert not inside.workspace.exists()


def test_check_finds_a_stale_notebook(inside, capsys):
    chapter = inside.write("01-try", BODY)
    committed(chapter)
    assert main(["check"]) == 0
    assert "1 chapter checked: texts and notebooks agree" in capsys.readouterr().out
    chapter.source.write_text(chapter.source.read_text().replace("print(1)", "print(2)"))
    assert main(["check", "1"]) == 1
    assert "01-try.ipynb: stale: cell one was changed in the text" in capsys.readouterr().err


def test_run_goes_on_after_a_chapter_that_fails_and_says_so_at_the_end(inside, capsys):
    bad = inside.write("01-bad", code("bad", "1 / 0"))
    good = inside.write("02-good", code("good", "print(1)"))
    assert main(["run"]) == 1
    printed = capsys.readouterr()
    assert "01-bad: FAILED, nothing was written" in printed.err
    assert "ZeroDivisionError" in printed.err
    assert "02-good" in printed.out
    assert (bad.notebook.exists(), good.notebook.exists()) == (False, True)


@pytest.mark.parametrize(("strict", "status"), [([], 0), (["--strict"], 1)])
def test_an_exceeded_budget_warns_and_fails_only_when_strict(inside, capsys, strict, status):
    chapter = inside.write("01-slow", code("one", "print(1)"))
    chapter.source.write_text(chapter.source.read_text().replace("seconds: 60", "seconds: 0.001"))
    assert main(["run", *strict]) == status
    assert "warning: " in capsys.readouterr().out


def test_lab_brings_the_copies_up_to_date_and_reports_a_broken_one(inside, capsys):
    committed(inside.write("01-try", BODY))
    assert main(["lab", "--no-start"]) == 0
    assert "copied" in capsys.readouterr().out
    (inside.workspace / "01-try.ipynb").write_text("{")
    committed(inside.write("01-try", BODY.replace("Between", "Amid")))
    assert main(["lab", "--no-start"]) == 1
    assert "left untouched" in capsys.readouterr().err


def test_lab_starts_on_the_copies_and_opens_no_browser_where_none_is_wanted(inside, monkeypatch):
    committed(inside.write("01-try", BODY))
    calls = []
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(cli.subprocess, "call", lambda command, **_: calls.append(command) or 0)
    assert main(["lab", "1"]) == 0
    copies = inside.workspace
    expected = ["-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={copies}", str(copies / "01-try.ipynb")]
    assert calls[0][1:] == expected


def test_a_port_in_use_is_told_before_anything_is_built(inside, capsys, monkeypatch):
    monkeypatch.setattr("course.site.build", lambda: pytest.fail("built first"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["site", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"received the port {port}, which is in use" in said
    assert "rule: a free port" in said


def test_a_port_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["site", "--port", "eighty"])
    assert "invalid int value: 'eighty'" in capsys.readouterr().err


def test_a_missing_extra_is_told_with_the_command_that_installs_it(inside, capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda _: None)
    assert main(["run"]) == 2
    assert "pip install -e '.[author]' -c constraints.txt" in capsys.readouterr().err


def test_a_package_that_is_not_there_is_told_too(inside, capsys, monkeypatch):
    def fails(name):
        def action(arguments):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return action

    monkeypatch.setattr(cli, "_check", fails("alembic"))
    assert main(["check"]) == 2
    said = capsys.readouterr().err
    assert "received an environment without alembic; rule: `pip install -e '.[all]' -c constraints.txt`" in said
    monkeypatch.setattr(cli, "_check", fails("course.misspelt"))
    with pytest.raises(ModuleNotFoundError):
        main(["check"])


def test_a_reader_who_has_had_enough_is_no_error():
    script = f"set -o pipefail; '{sys.executable}' -m course.cli help | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_told_without_a_traceback(inside, capsys, monkeypatch):
    committed(inside.write("01-try", BODY))

    def full(*_):
        raise OSError(28, "No space left on device", "01-try.ipynb")

    monkeypatch.setattr("course.files.os.replace", full)
    assert main(["lab", "--no-start"]) == 2
    assert "01-try.ipynb: No space left on device; nothing half-written was left" in capsys.readouterr().err


def test_test_stops_at_a_stale_notebook_and_runs_pytest_once_otherwise(inside, monkeypatch):
    chapter = inside.write("01-try", BODY)
    calls = []
    monkeypatch.setattr(cli, "_install_peers", lambda course: None)
    monkeypatch.setattr(cli, "_site", lambda arguments: calls.append("site"))
    monkeypatch.setattr(cli, "_call", lambda course, command, **environment: calls.append((command, environment)) or 3)
    assert main(["test"]) == 1
    assert calls == []
    committed(chapter)
    assert main(["test", "--", "-k", "ode"]) == 3
    site, (command, environment) = calls
    assert site == "site"
    assert command == ["pytest", *pytest_arguments(["-k", "ode"])]
    assert environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("arguments", "handed_on"),
    [
        ([], []),
        (["--only", "vae", "ddpm", "--seconds", "5"], ["--only", "vae", "ddpm", "--seconds=5.0"]),
    ],
)
def test_compare_runs_the_comparison_on_one_thread_and_hands_on_its_status(inside, monkeypatch, arguments, handed_on):
    calls = []
    monkeypatch.setattr(cli, "_call", lambda course, command, **environment: calls.append((command, environment)) or 2)
    assert main(["compare", *arguments]) == 2
    assert calls == [(["benchmarks.compare", *handed_on], {"OMP_NUM_THREADS": "1"})]


def test_seconds_that_are_no_number_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--seconds", "sixty"])
    assert "invalid float value: 'sixty'" in capsys.readouterr().err


def test_pytest_gets_all_tests_and_all_notebooks_and_never_splits_a_notebook():
    arguments = pytest_arguments(["-x"])
    assert arguments[-2:] == ["notebooks", "tests"]
    assert "--nbval" in arguments
    assert arguments[arguments.index("--dist") + 1] == "loadscope"
    assert "-x" in arguments


def test_outside_a_checkout_the_installed_one_is_used_and_the_command_is_installed(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "course.cli", "check", "99"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "99" in result.stderr
