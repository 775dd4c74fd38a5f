"""pyproject.toml, constraints.txt, environment.yml, the workflows and the bootstrap say the same."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from course import bootstrap

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
ALONE = PYPROJECT["tool"]["course"]["without-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]


def constraints() -> dict[str, str]:
    """The pinned versions by normalized name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def requirements() -> list[Requirement]:
    """All direct dependencies, those of the extras included, without the course itself."""
    named = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [Requirement(line) for line in named if not line.startswith(PROJECT["name"])]


def needed() -> set[str]:
    """Every installed distribution that the course needs, through all dependencies of dependencies."""
    found: set[tuple[str, frozenset]] = set()

    def follow(requirement: Requirement) -> None:
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            return
        found.add(key)
        for line in importlib.metadata.requires(requirement.name) or []:
            below = Requirement(line)
            if not below.marker or any(below.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                follow(below)

    for requirement in requirements():
        follow(requirement)
    return {name for name, _ in found} | {canonicalize_name(name) for name in ALONE}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_direct_dependency_is_pinned_within_its_range(requirement):
    pins = constraints()
    assert canonicalize_name(requirement.name) in pins
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)], prereleases=True)


def test_exactly_what_is_needed_is_pinned():
    pins, wanted = constraints().keys(), needed()
    assert wanted - pins == set(), "needed, not pinned"
    assert pins - wanted == set(), "pinned, not needed"


def test_the_pinned_versions_are_those_that_these_tests_run_with():
    installed = {name: Version(importlib.metadata.version(name)).public for name in constraints()}
    assert installed == {name: Version(version).public for name, version in constraints().items()}


def test_the_pinned_versions_run_on_every_supported_python():
    stated = {name: importlib.metadata.metadata(name).get("Requires-Python") or "" for name in constraints()}
    refused = {name: rule for name, rule in stated.items() if not all(f"{p}.0" in SpecifierSet(rule) for p in PYTHONS)}
    assert refused == {}


def test_constraints_are_plain_versions():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []


def test_the_extra_all_holds_every_other():
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras == EXTRAS.keys() - {"all"}


def test_conda_gives_python_and_leaves_the_packages_to_the_constraints():
    *conda, pip = ENVIRONMENT["dependencies"]
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]
    assert conda == [f"python >={PYTHONS[0]},<3.{int(PYTHONS[-1].partition('.')[2]) + 1}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[all]"]}


def test_the_supported_pythons_are_the_same_everywhere():
    oldest, newest = (tuple(map(int, python.split("."))) for python in (PYTHONS[0], PYTHONS[-1]))
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert (oldest, newest) == (bootstrap.OLDEST, bootstrap.NEWEST)
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix == {"os": ["ubuntu-latest", "macos-latest", "windows-latest"], "python": [PYTHONS[0], PYTHONS[-1]]}
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_makefile_asks_for_extras_that_exist():
    asked = re.findall(r"\$\(SETUP\) (\w+) --", (ROOT / "Makefile").read_text())
    assert set(asked) <= EXTRAS.keys()
    assert EXTRAS.keys() >= bootstrap.PEERS
