"""No stray file, nothing large, nothing that belongs to one machine, and ruff is content."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECLARED = [  # every file of the repository matches one of these
    r"README\.md|LICENSE|LICENSE-text|Makefile|pyproject\.toml|constraints\.txt|environment\.yml",
    r"\.gitignore|\.gitattributes|\.ci/run|\.github/workflows/[a-z]+\.yml",
    r"companion/([a-z_]+/)?[a-z_]+\.py|companion/live/figure\.(js|css)",
    r"course/(site/|homework/)?[a-z_]+\.py|course/site/[a-z]+\.(yml|css)",
    r"course/homework/templates/(formgrade/)?[a-z]+\.(html\.j2|js)",
    r"homework/\d\d(-[a-z0-9]+)+/(assignment|answers)\.md",
    r"notebooks/(jupytext\.toml|\d\d(-[a-z0-9]+)+\.(md|ipynb))",
    r"book/(_config\.yml|_toc\.yml|[a-z]+\.md|references\.bib|package(-lock)?\.json|\.npmrc|api/[a-z]+\.md)",
    r"book/families\.json",
    r"book/_static/[a-z-]+\.(css|js|svg)|book/_static/live/[a-z0-9-]+/([\w-]+\.onnx|reference\.json)",
    r"tests/([a-z]+/)?([a-z_0-9]+)\.py",
    r"benchmarks/([a-z_0-9]+\.py|results\.json)",
]
LARGEST = {".ipynb": 4 << 20}  # executed notebooks carry pictures; everything else stays below 1 MiB
BINARY = {".onnx", ".png", ".woff2"}
REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch|conda\.anaconda")
# This file and tests of the rule itself name what they forbid.
EXEMPT = {"tests/architecture/test_tree.py", "tests/course/test_notebooks.py", "course/notebooks.py"}


def repository() -> list[str]:
    """The files that git tracks or would track; outside git, all files but those that .gitignore names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        ignored = re.compile(
            r"(^|/)(\.git|\.venv|__pycache__|[^/]+\.egg-info|\.[a-z_]+_cache|node_modules|my-course)/"
            r"|book/(_build|_generated|_static/vendor)/|(^|/)teaching/|homework/proof\.json"
        )
        paths = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
        listed = [path for path in paths if not ignored.search(path)]
    return sorted(path for path in listed if path and (ROOT / path).is_file())


FILES = repository()


def test_every_file_is_declared():
    assert [path for path in FILES if not any(re.fullmatch(pattern, path) for pattern in DECLARED)] == []


def test_every_declaration_is_used():
    assert [pattern for pattern in DECLARED if not any(re.fullmatch(pattern, path) for path in FILES)] == []


def test_no_file_is_large():
    sizes = {path: (ROOT / path).stat().st_size for path in FILES}
    assert {path: size for path, size in sizes.items() if size > LARGEST.get(Path(path).suffix, 1 << 20)} == {}


def text(path: str) -> str:
    """The text of a file, without the base64 pictures of a notebook."""
    content = (ROOT / path).read_text(encoding="utf-8")
    return re.sub(r'"image/png": "[^"]*"', "", content) if path.endswith(".ipynb") else content


READABLE = [path for path in FILES if Path(path).suffix not in BINARY and path not in EXEMPT]


@pytest.mark.parametrize(  # /home/student is the home that a sandbox makes
    "forbidden",
    [
        re.compile(r"(?<![\w./-])/(?!home/student\b)(?:home|Users|root|work)/[\w.-]+/?"),
        re.compile(re.escape(str(ROOT))),
        REGISTRIES,
    ],
    ids=["folders of one machine", "this checkout", "hosts of registries"],
)
def test_no_file_names(forbidden):
    found = {path: match[0] for path in READABLE if (match := forbidden.search(text(path)))}
    assert found == {}


def test_graphs_carry_no_path_of_the_machine_that_exported_them():
    graphs = [path for path in FILES if path.endswith(".onnx")]
    assert [
        path for path in graphs if re.search(rb"/(home|Users|root|work|tmp)/|site-packages", (ROOT / path).read_bytes())
    ] == []


def test_ruff_is_content():
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
