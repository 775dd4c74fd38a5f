"""Build the site: vendor, check the evidence, run Jupyter Book with warnings as errors, swap the result in.

Jupyter Book writes into a folder of its own beside the site; only a build without a single warning takes the place of
the last good site. A fingerprint of everything that goes in makes a second build free.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from course.chapters import CourseError, find_course
from course.files import write_atomic
from course.site import families
from course.site.evidence import read_ledger
from course.site.vendor import vendor

DRAFT = "COURSE_SITE_DRAFT"  # set: gaps and warnings are printed, not fatal (for authors in the middle of a chapter)
INPUTS = ("book", "notebooks", "homework", "companion", "course/site", "course/homework", "tests")
LEFT_OUT = {"_build", "_generated", "vendor", "node_modules", "__pycache__", ".ipynb_checkpoints"}
WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def site_folder(root: Path) -> Path:
    """Where the finished site of the checkout `root` stands."""
    return root / "book" / "_build" / "html"


def fingerprint(root: Path) -> str:
    """A checksum of every file that goes into the site, and of the mode of the build."""
    digest = hashlib.sha256(f"{os.environ.get(DRAFT, '')} {sys.version_info}".encode())
    files = (path for name in INPUTS for path in (root / name).rglob("*") if path.is_file())
    for path in sorted(files):
        relative = path.relative_to(root)
        if not LEFT_OUT.intersection(relative.parts):
            digest.update(f"{relative.as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(root: Path) -> bool:
    """Whether the built site is the one that today's files give."""
    mark = site_folder(root) / ".fingerprint.json"
    try:
        return json.loads(mark.read_text(encoding="utf-8"))["inputs"] == fingerprint(root)
    except (OSError, ValueError, KeyError):
        return False


def build(root: Path | None = None, *, force: bool = False) -> Path:
    """Builds the site of the checkout `root` (the current one by default) unless it is up to date.

    Returns:
        The folder of the site.

    Raises:
        CourseError: npm or the network is missing, an equation or a mistake has no test, the file of the families is
            broken, or Jupyter Book warned. The site built before stays as it was.
    """
    root = find_course(root).root
    vendor(root)
    check_evidence(root)
    if (root / families.FILE).is_file():
        families.read(root)
    if not force and is_current(root):
        print("The site is up to date.", flush=True)
        return site_folder(root)
    check_homework(root)
    print("Building the site (Jupyter Book, about half a minute) …", flush=True)
    before = fingerprint(root)
    (root / "book" / "_build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root / "book" / "_build", prefix="work-") as work:
        run_jupyter_book(root, Path(work))
        made = Path(work) / "_build" / "html"
        write_atomic(made / ".fingerprint.json", json.dumps({"inputs": before}) + "\n")
        swap(made, site_folder(root), Path(work) / "old")
    return site_folder(root)


def swap(new: Path, target: Path, aside: Path) -> None:
    """Renames `new` into the place of `target`; the old folder goes aside, and comes back if the rename fails."""
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise


def check_evidence(root: Path) -> None:
    """Stops on a labelled equation or a listed mistake without a test, before anything slow begins."""
    problems = read_ledger(root).problems()
    if not problems:
        return
    listing = "\n  ".join(problems)
    if os.environ.get(DRAFT):
        print(f"Draft of the site: {len(problems)} gaps in the evidence\n  {listing}", flush=True)
        return
    raise CourseError(f"site: the evidence has {len(problems)} gaps:\n  {listing}")


def check_homework(root: Path) -> None:
    """Stops on a homework that breaks a rule, before anything slow begins."""
    from course.homework.sources import load, slugs  # with jupytext, which a site that is up to date does not need

    for slug in slugs(root / "homework"):
        load(root / "homework" / slug)


def run_jupyter_book(root: Path, work: Path) -> None:
    """Runs `jupyter-book build` on `root` into `work`, nitpicking, warnings as errors."""
    call = "from jupyter_book.cli.main import main; main()"
    arguments = ["build", ".", "--config", "book/_config.yml", "--toc", "book/_toc.yml", "-W", "-n", "--keep-going"]
    made = subprocess.run(
        [sys.executable, "-P", "-c", call, *arguments, "--path-output", str(work)],
        cwd=root,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    lines = COLOR.sub("", made.stdout).splitlines()
    warnings = [line for line in dict.fromkeys(lines) if WARNING.search(line)]
    if made.returncode == 0 and not warnings:
        return
    log = root / "book" / "_build" / "site.log"
    write_atomic(log, "\n".join(lines) + "\n")
    shown = [line.replace(f"{root}{os.sep}", "") for line in warnings or before_the_cli(lines)[-25:]]
    if os.environ.get(DRAFT) and (work / "_build" / "html" / "index.html").is_file():
        print(f"Draft of the site: {len(shown)} warnings\n  " + "\n  ".join(shown), flush=True)
        return
    raise CourseError(
        f"site: Jupyter Book gave {len(warnings)} warnings (exit code {made.returncode}); rule: none. The site built "
        f"before, if any, is untouched. All it said: {log.relative_to(root)}\n  " + "\n  ".join(shown)
    )


def before_the_cli(lines: list[str]) -> list[str]:
    """What was said before the traceback of Jupyter Book's own command, which explains nothing."""
    ends = [i for i, line in enumerate(lines) if "The above exception was the direct cause" in line]
    return lines[: ends[0]] if ends else lines
