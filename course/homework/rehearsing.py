"""The rehearsal: the author's own right and wrong answers, judged in this process in seconds, before anyone sees them.

It goes with every release, and with `course homework prove --rehearse` while an author writes; `proving` does the same
in the sandbox.
"""

import json
from collections.abc import Iterator
from typing import Any

from companion.exercises.homework import PUBLIC_SEED, judge, values
from course.homework.sources import Assignment, Problem, Test, hidden_seed

SECRET = "rehearsal"
KEPT_BY_WRONG = 0.5  # a wrong answer may keep at most this share of its problem's points
MOST_OF_CHECK = 75_000  # bytes of values that one check hands out; `editions` bounds all together


def rehearse(assignment: Assignment, secret: str = SECRET, only: str | None = None) -> list[str]:
    """Says which answers of the catalogue are not judged as they must be, on the inputs of `secret`."""
    found: list[str] = []
    for problem in assignment.graded:
        if only and problem.name != only:
            continue
        for number, variant in enumerate(assignment.variants):
            where = problem.name + (f" (variant {number})" if len(assignment.variants) > 1 else "")
            found += [f"{where}: {text}" for text in _rehearse(problem, variant, secret)]
    return found


def _rehearse(problem: Problem, variant: dict[str, Any], secret: str) -> Iterator[str]:
    exercises = {test.name: problem.exercise(test, variant) for test in problem.tests}
    hidden = {test.name: exercises[test.name].record(hidden_seed(secret, test.name)) for test in problem.tests}
    check = problem.tests[0]
    public = exercises[check.name].record(PUBLIC_SEED)
    yield from _records(problem, check, public, hidden[check.name])
    if public["right"]["kind"] == "error":
        return

    def told(answer: str, test: Test, seed: int, record: dict) -> tuple[bool, str]:
        probe = problem.runner(answer, test, variant)
        verdict = judge(values(probe, seed), record)
        return verdict.passed, verdict.message

    def graded(answer: str) -> tuple[float, str]:
        earned, first = 0.0, ""
        for test in problem.tests:
            passed, message = told(answer, test, hidden_seed(secret, test.name), hidden[test.name])
            earned += test.points if passed else 0
            first = first or ("" if passed else message)
        return earned, first

    for test in problem.tests[1:]:
        if told(problem.solution, test, hidden_seed(f"another {secret}", test.name), hidden[test.name])[0]:
            yield f"{test.name}: the values of another secret pass; rule: let the generator draw what is asked"
    for name, answer in {"Solution": problem.solution, **problem.also_right}.items():
        earned, message = graded(answer)
        if earned < problem.points:
            yield f"the right answer {name!r} gets {earned:g} of {problem.points:g} points and is told: {message}"
        passed, message = told(answer, check, PUBLIC_SEED, public)
        if not passed:
            yield f"the right answer {name!r} fails the public check and is told: {message}"
    for text, answer in problem.wrong.items():
        earned, message = graded(answer)
        if earned > KEPT_BY_WRONG * problem.points:
            yield f"the wrong answer {text!r} keeps {earned:g} of {problem.points:g} points"
        elif message != f"Not yet: {text}":
            yield f"the wrong answer {text!r} is told: {message}"
        elif not check.sealed:
            passed, message = told(answer, check, PUBLIC_SEED, public)
            if not passed and message != f"Not yet: {text}":
                yield f"the wrong answer {text!r} is told by the public check: {message}"
    earned, message = graded(problem.starter)
    if earned:
        yield f"the untouched starter gets {earned:g} points"


def _records(problem: Problem, check: Test, public: dict, hidden: dict) -> Iterator[str]:
    """What is wrong with the values that are handed out."""
    if public["right"]["kind"] in ("error", "unanswered", "other"):
        yield f"the solution gives no values: {public['right'].get('data')}"
    elif judge(public["right"], hidden).passed and not check.sealed:
        yield (
            "the public values pass as hidden ones, so that handing them in would do; rule: let the generator draw the "
            "inputs (of a sampler, the law's parameters too), or say `sealed: true`"
        )
    if not check.sealed and (size := len(json.dumps(public))) > MOST_OF_CHECK:
        yield f"the public values take {size // 1000} kB; rule: at most {MOST_OF_CHECK // 1000}"
