"""The `course` command: one subcommand for each thing a person does with the course.

Exit status: 0 done; 1 a check failed; 2 a mistake in the call or a broken file, said in one message.
"""

import argparse
import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

from course.chapters import Course, CourseError, find_course
from course.homework.commands import add_parser as add_homework

REFUSED = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS)  # the disk is full, or not ours to write
CHAPTERS = {"nargs": "*", "metavar": "CHAPTER", "help": "number, slug or prefix; all chapters if none is given"}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "action"):
        parser.print_help()
        return 0
    try:
        status = arguments.action(arguments)
        sys.stdout.flush()
        return status
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        print(f"course: {error.filename or 'a file'}: {error.strerror}; nothing half-written was left", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("course", "companion", "benchmarks"):
            raise
        rule = "`pip install -e '.[all]' -c constraints.txt`, or the same command by way of make"
        print(f"course: received an environment without {error.name}; rule: {rule}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncourse: stopped; nothing half-written was left", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Describes all subcommands."""
    parser = argparse.ArgumentParser(prog="course", description="Build, run, test and read the course.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(action=action)
        return sub

    site = command("site", _site, "Build the site and serve it.")
    site.add_argument("--port", type=int, default=8000, help="port of the server on this machine (default: 8000)")
    site.add_argument("--no-serve", action="store_true", help="only build")

    test = command("test", _test, "Run every check: texts against notebooks, the site, all tests, all notebooks.")
    test.add_argument(
        "pytest", nargs="*", metavar="-- ARGUMENT", help="handed to pytest, for example: course test -- -k ode"
    )

    lab = command("lab", _lab, "Open JupyterLab on your own copies of the chapters; newer chapters are merged in.")
    lab.add_argument("chapter", nargs="?", metavar="CHAPTER", help="open this one")
    lab.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    lab.add_argument("--no-start", action="store_true", help="only bring the copies up to date")

    author = command("author", _author, "Open JupyterLab on the truth; text and notebook are saved together.")
    author.add_argument("chapter", nargs="?", metavar="CHAPTER", help="open this one")
    author.add_argument("--no-browser", action="store_true", help="do not open a browser window")

    run = command("run", _run, "Execute chapters afresh and report what changed.")
    run.add_argument("chapters", **CHAPTERS)
    run.add_argument("--strict", action="store_true", help="exit with 1 where a chapter exceeds its declared budget")

    check = command("check", _check, "Compare texts and notebooks without executing them.")
    check.add_argument("chapters", **CHAPTERS)

    add_homework(commands)

    bench = command("bench", _bench, "Measure against the peers and write benchmarks/results.json.")
    bench.add_argument("only", nargs="*", metavar="MEASURE", help="only these measures")

    compare = command("compare", _compare, "Train the families of models side by side and write book/families.json.")
    compare.add_argument("--only", nargs="+", metavar="FAMILY", help="only these; the others keep their numbers")
    compare.add_argument("--seconds", type=float, metavar="S", help="CPU seconds of training a family (default: 60)")

    command("help", lambda _: parser.print_help() or 0, "Print this list.")
    return parser


def _site(arguments: argparse.Namespace) -> int:
    _need("jupyter_book", "site")
    from course.site import build, make_server, serve

    if not arguments.no_serve:
        make_server(find_course().root, arguments.port).server_close()  # a port in use is said before the long build
    print(f"built {build()}", flush=True)
    if not arguments.no_serve:
        serve(arguments.port)
    return 0


def _test(arguments: argparse.Namespace) -> int:
    _need("nbval", "test")
    course = find_course()
    _install_peers(course)
    if _check(argparse.Namespace(chapters=[])):
        return 1
    _site(argparse.Namespace(no_serve=True))
    return _call(course, ["pytest", *pytest_arguments(arguments.pytest)], OMP_NUM_THREADS="1")


def pytest_arguments(extra: list[str]) -> list[str]:
    """The one call of pytest: all tests and all notebooks, a notebook never split between workers."""
    workers = str(min(4, os.cpu_count() or 1))
    return ["--nbval", "-n", workers, "--dist", "loadscope", *(extra or []), "notebooks", "tests"]


def _lab(arguments: argparse.Namespace) -> int:
    from course.workspace import update

    course = find_course()
    chapter = course.find(arguments.chapter) if arguments.chapter else None
    folder = course.workspace
    updates = update(course, folder)
    for one in updates:
        print(one, file=sys.stderr if one.problem else sys.stdout)
    print(f"your copies are in {folder}", flush=True)
    if arguments.no_start:
        return int(any(one.problem for one in updates))
    _need("jupyterlab", "lab")
    opened = [str(folder / f"{chapter.slug}.ipynb")] if chapter else []
    return _jupyterlab(course, [f"--ServerApp.root_dir={folder}", *opened], arguments.no_browser)


def _author(arguments: argparse.Namespace) -> int:
    _need("jupytext", "author")
    course = find_course()
    opened = [str(course.find(arguments.chapter).notebook)] if arguments.chapter else []
    print("saving a notebook here writes its text too; run `course run` before you commit", flush=True)
    return _jupyterlab(
        course, [f"--ServerApp.root_dir={course.root}", *(opened or [str(course.notebooks)])], arguments.no_browser
    )


def _jupyterlab(course: Course, arguments: list[str], no_browser: bool) -> int:
    quiet = ["--no-browser"] if no_browser or os.environ.get("CI") else []
    return _call(course, ["jupyterlab", *quiet, *arguments])


def _run(arguments: argparse.Namespace) -> int:
    _need("nbclient", "author")
    from course.running import run_chapter

    course, failed, exceeded = find_course(), 0, 0
    for chapter in course.select(arguments.chapters):
        try:
            report = run_chapter(course, chapter)
        except CourseError as error:
            failed += 1
            print(f"{chapter.slug}: FAILED, nothing was written\n{error}", file=sys.stderr, flush=True)
            continue
        exceeded += bool(report.exceeded)
        print(report, flush=True)
    return 1 if failed or (arguments.strict and exceeded) else 0


def _check(arguments: argparse.Namespace) -> int:
    _need("jupytext", "author")
    from course.notebooks import check

    course = find_course()
    chosen = course.select(arguments.chapters) if arguments.chapters else None
    problems = check(course, chosen)
    for problem in problems:
        print(problem, file=sys.stderr)
    count = len(course.chapters() if chosen is None else chosen)
    print(
        f"{count} chapter{'s' * (count != 1)} checked: "
        + (f"{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "texts and notebooks agree"),
        flush=True,
    )
    return 1 if problems else 0


def _bench(arguments: argparse.Namespace) -> int:
    course = find_course()
    _need("torchdiffeq", "peers")
    _install_peers(course)
    return _call(course, ["benchmarks", *arguments.only])


def _compare(arguments: argparse.Namespace) -> int:
    only = ["--only", *arguments.only] if arguments.only else []
    seconds = [f"--seconds={arguments.seconds}"] if arguments.seconds is not None else []
    return _call(find_course(), ["benchmarks.compare", *only, *seconds], OMP_NUM_THREADS="1")


def _call(course: Course, module: list[str], **environment: str) -> int:
    """Runs `python -m module …` at the root of the course and hands on its exit status."""
    try:
        return subprocess.call([sys.executable, "-m", *module], cwd=course.root, env={**os.environ, **environment})
    except KeyboardInterrupt:
        return 130


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise CourseError(
            f"received an environment without {module}; rule: `pip install -e '.[{extra}]' -c constraints.txt`"
        )


def _install_peers(course: Course) -> None:
    """Installs the packages that come without their dependencies, which no extra of pip can say."""
    from course.bootstrap import SetupError, pip, without_dependencies

    root = str(course.root)
    if missing := [name for name in without_dependencies(root) if importlib.util.find_spec(name) is None]:
        try:
            pip(root, sys.executable, ["--no-deps", *missing])
        except SetupError as error:
            raise CourseError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
