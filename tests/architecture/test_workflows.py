"""The workflows are valid, and run what the README says. They cannot be run here: they are linted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> str:
    """All commands of a workflow."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return "\n".join(step.get("run", "") for job in jobs for step in job["steps"])


TESTING = [path for path in WORKFLOWS if path.stem != "student"]


def test_the_workflows_are_there():
    assert [path.stem for path in WORKFLOWS] == ["ci", "gpu", "student", "weekly"]


def test_the_branch_that_students_open_is_the_one_that_is_published():
    config = yaml.safe_load((ROOT / "book/_config.yml").read_text(encoding="utf-8"))
    published = steps(ROOT / ".github/workflows/student.yml")
    assert "homework publish student-edition" in published
    assert published.rstrip().endswith(config["repository"]["branch"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_fits_the_schema_of_github(workflow):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_schema_refuses_a_workflow_that_is_none(tmp_path):
    (tmp_path / "bad.yml").write_text("on: push\njobs: {test: {runs-on: x, stepps: []}}\n")
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(tmp_path / "bad.yml"),
    ]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("workflow", TESTING, ids=lambda path: path.stem)
def test_every_workflow_that_tests_runs_the_whole_test_command(workflow):
    assert re.search(r"make test|\.ci/run|bootstrap\.py test -- test|course test", steps(workflow))


def test_the_gpu_runner_tests_on_the_gpu():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/gpu.yml").read_text())["jobs"].values()
    assert job["env"]["COMPANION_DEVICE"] == "cuda"
    assert job["runs-on"] == ["self-hosted", "gpu"]


def test_the_weekly_job_drops_the_constraints_and_runs_every_week():
    workflow = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
    assert ": > constraints.txt" in steps(ROOT / ".github/workflows/weekly.yml")
    assert workflow[True]["schedule"]  # YAML reads the key `on` as true


def test_ci_run_and_the_readme_name_the_same_command():
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test"
    assert "\nmake test " in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [".ci/run", "Makefile"])
def test_a_script_is_readable_by_its_interpreter(script):
    command = (
        ["bash", "-n", script] if script == ".ci/run" else ["make", "-n", "help", "site", "test", "SERVE=0", "PORT=1"]
    )
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
