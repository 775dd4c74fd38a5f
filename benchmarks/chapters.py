"""What it costs to execute each chapter in a fresh kernel, over the budget that it declares: seconds and peak memory.

The chapter is copied aside first: measuring changes no committed notebook.
"""

import functools
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Case
from course.chapters import Chapter, Course, find_course
from course.running import Report, run_chapter


@functools.cache
def reports() -> list[Report]:
    """Every chapter, executed once."""
    return [_executed(chapter) for chapter in find_course().chapters()]


def _executed(chapter: Chapter) -> Report:
    with tempfile.TemporaryDirectory(prefix="bench-chapters-") as folder:
        course = Course(Path(folder))
        course.notebooks.mkdir()
        course.live.mkdir(parents=True)
        copy = Path(shutil.copy(chapter.source, course.notebooks))
        report = run_chapter(course, Chapter(copy))
    print(f"  {report}".splitlines()[0], file=sys.stderr, flush=True)
    return report


def seconds() -> list[Case]:
    """Processor seconds of each chapter over its budget: what a machine that does nothing else takes, on one thread."""
    return [
        Case(
            r.chapter.slug,
            (r.processor_seconds,),
            (r.allowed_seconds,),
            "budget",
            1.0,
            unit="s",
            clock="CPU time of the kernel, 1 thread",
        )
        for r in reports()
    ]


def memory() -> list[Case]:
    """Peak resident memory of each chapter's kernel over its budget."""
    return [Case(r.chapter.slug, (r.memory_gb,), (r.allowed_memory_gb,), "budget", 1.0, unit="GB") for r in reports()]


MEASURES = {"chapter-seconds": seconds, "chapter-memory": memory}
