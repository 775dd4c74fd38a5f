"""A course of one small chapter in a temporary folder."""

import textwrap

from course.chapters import Chapter, Course

FRONT_MATTER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
companion:
  modules: [numerics.ode]
  seconds: 60
  memory_gb: 2
  minutes: 5
  needs: []
  tolerance: {rtol: 1.0e-3, atol: 1.0e-6}
---
"""


class ToyCourse(Course):
    """A course whose chapters a test writes cell by cell."""

    def write(self, slug: str, body: str, front_matter: str = FRONT_MATTER) -> Chapter:
        """Writes the text of a chapter."""
        path = self.notebooks / f"{slug}.md"
        path.write_text(front_matter + textwrap.dedent(body), encoding="utf-8")
        return Chapter(path)


def code(name: str, *lines: str, **options: str) -> str:
    """The MyST text of one code cell."""
    stated = "".join(f":{key}: {value}\n" for key, value in {"name": name, **options}.items())
    return "```{code-cell}\n" + stated + "\n".join(lines) + "\n```\n\n"
