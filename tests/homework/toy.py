"""A small homework with one problem of each kind, for the tests of the tooling."""

from pathlib import Path

SLUG = "01-toys"

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
"""

ASSIGNMENT = (
    HEADER
    + """homework:
  chapter: 01-toys
  minutes: 20
  goals: [scale, sample, decide, explain]
  variants:
    - {scale: 2.0}
    - {scale: 3.0}
---

# Homework 01: toys

Four small problems.

```{code-cell}
:name: setup

import torch
```

## 1. Scale it (4 points)

Return `scale` times x, where x has shape (n,).

```{code-cell}
:name: scale-it
:tags: [answer]
:mistakes: [E1]

def scaled(x):
    ...
```

```{code-cell}
:name: scale-it-check
:tags: [check]
:points: 3

def probe(generator):
    return scaled(torch.randn(5, generator=generator))
```

## 2. Draw it (3 points)

Draw n samples of N(mean, 1).

```{code-cell}
:name: draw-it
:tags: [answer]

def draw(mean, n, generator):
    ...
```

```{code-cell}
:name: draw-it-check
:tags: [check]
:points: 3
:atol: 0.08
:rtol: 0.0
:false_alarm: 1.0e-4

def probe(generator):
    mean = 4 * torch.rand((), generator=generator) + 1
    x = draw(mean, 4000, generator)
    return {"the mean": x.mean() - mean + mean, "the spread": x.std()}
```

## 3. Choose (1 point)

Which is larger, "a" or "b"?

```{code-cell}
:name: choose
:tags: [answer]

choice = ...
```

```{code-cell}
:name: choose-check
:tags: [check]
:points: 1
:sealed: true

def probe(generator):
    return choice
```

## 4. Explain (2 points)

Why?

+++ {"name": "explain", "tags": ["written"], "points": 2}

*Your answer here.*
"""
)


def wrong(function: str, bodies: dict[str, str]) -> str:
    return "".join(f"### Wrong: {told}\n\n```{{code-cell}}\n{function}{body}\n```\n\n" for told, body in bodies.items())


ANSWERS = (
    HEADER
    + """---

# Answers that people give: homework 01

## scale-it

### Solution

```{code-cell}
def scaled(x):
    return scale * x
```

### Right: by adding logarithms of the absolute values

```{code-cell}
def scaled(x):
    return x.sign() * (x.abs().log() + torch.tensor(scale).log()).exp()
```

"""
    + wrong(
        "def scaled(x):\n    return ",
        {
            "the sign is turned.......": "-scale * x",
            "x is divided, not multiplied.": "x / scale",
            "the scale is squared, as a variance would be.": "scale**2 * x",
            "x is left as it is, the scale is missing.": "x.clone()",
            "only the absolute values are scaled.": "scale * x.abs()",
            "the scale is added, not multiplied.": "scale + x",
        },
    )
    + """### Hidden: an empty tensor, and two dimensions

```{code-cell}
:points: 1

def probe(generator):
    return [scaled(torch.zeros(0)), scaled(torch.rand(2, 3, generator=generator) + 1)]
```

## draw-it

### Solution

```{code-cell}
def draw(mean, n, generator):
    return mean + torch.randn(n, generator=generator)
```

### Right: drawn by the distribution's quantiles

```{code-cell}
def draw(mean, n, generator):
    u = torch.rand(n, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return mean + torch.special.ndtri(u)
```

"""
    + wrong(
        "def draw(mean, n, generator):\n    return ",
        {
            "the mean is missing, you drew N(0, 1).": "torch.randn(n, generator=generator)",
            "these are uniform, with the right mean.": "mean - 0.5 + torch.rand(n, generator=generator)",
            "the mean is used as a spread too.": "mean + mean * torch.randn(n, generator=generator)",
            "the spread is 2, not 1.": "mean + 2 * torch.randn(n, generator=generator)",
            "the sign of the mean is turned.": "-mean + torch.randn(n, generator=generator)",
            "nothing is random in what you return.": "mean.repeat(n)",
        },
    )
    + """## choose

### Solution

```{code-cell}
choice = "b"
```

### Right: in another way

```{code-cell}
choice = max("a", "b")
```

"""
    + wrong(
        "choice = ",
        {
            "a is the smaller of the two.": '"a"',
            "c is none of the two letters.": '"c"',
            "both cannot be the larger one.": '"ab"',
            "neither: then they would be equal.": '""',
            "the letter is lower-case, as asked for.": '"B"',
            "quotation marks are no part of the letter.": "'\"b\"'",
        },
    )
    + """## explain

### Solution

Because.

### Rubric

- 2 points: says why.
"""
)


def write(folder: Path, assignment: str = ASSIGNMENT, answers: str = ANSWERS, slug: str = SLUG) -> Path:
    """Writes the toy homework under a folder of sources and returns its folder."""
    place = folder / slug
    place.mkdir(parents=True, exist_ok=True)
    (place / "assignment.md").write_text(assignment, encoding="utf-8")
    (place / "answers.md").write_text(answers, encoding="utf-8")
    return place
