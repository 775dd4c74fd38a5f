"""Exercises of the chapters: `check(name, answer)` says at once whether an answer is right, and if not, why.

One module a topic defines `EXERCISES`, from the name of an exercise to its `Exercise`; imported when asked for.
"""

import difflib
import importlib
import pkgutil
from typing import Any

from companion.exercises.checking import Exercise, Verdict, verdict

__all__ = ["Exercise", "Verdict", "check", "find", "names", "topics", "verdict"]


def topics() -> list[str]:
    """The names of the topic modules, sorted."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - {"checking", "homework"})


def names(topic: str) -> list[str]:
    """The names of the exercises of a topic, in the order of its chapter."""
    return list(importlib.import_module(f"{__name__}.{topic}").EXERCISES)


def find(name: str) -> Exercise:
    """The exercise of this name, whichever topic it belongs to."""
    known: list[str] = []
    for topic in topics():
        exercises = importlib.import_module(f"{__name__}.{topic}").EXERCISES
        if name in exercises:
            return exercises[name]
        known += exercises
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"check: received the name {name!r}; rule: the name of an exercise{hint}")


def check(name: str, *answer: Any) -> None:
    """Print the verdict on an answer.

    Args:
        name: the exercise, as its cell is named.
        answer: your function or value; several, where the exercise asks for several.
    """
    if not answer:
        raise ValueError(f"check: received no answer for {name!r}; rule: check(name, answer)")
    print(find(name).check(answer[0] if len(answer) == 1 else answer))
