"""What a student gets back: complete, readable by anybody, inert, and silent about what is hidden."""

import base64
import json
import re
import struct
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import nbformat
import pytest

from course.homework import feedback, rendering
from course.homework.feedback import Handing, Mark
from course.homework.rendering import code_html, formula_html, markdown_html, png
from course.homework.results import Flag, Score
from tests.homework import marked
from tests.site.test_accessibility import violations

ACTIVE = {
    "script",
    "iframe",
    "frame",
    "object",
    "embed",
    "form",
    "input",
    "button",
    "textarea",
    "select",
    "svg",
    "base",
}
ACTIVE |= {"link", "audio", "video", "source", "template", "details", "dialog", "portal", "applet", "marquee"}
ADDRESSES = {"href", "src", "action", "formaction", "xlink:href", "poster", "srcset", "background", "data", "srcdoc"}


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self.text = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def dangers(page):
    """Whatever in a page could act, or reach another host."""
    found = []
    for tag, attributes in Elements(page).found:
        if tag in ACTIVE:
            found.append(tag)
        for name, value in attributes.items():
            value = value or ""
            if name.startswith("on") or (name == "style" and re.search(r"url|expression|import|\\", value)):
                found.append(f"{tag} {name}={value}")
            fine = re.match(r"https?://|mailto:|#problem-\d+$", value) if name == "href" and tag == "a" else None
            picture = tag == "img" and name == "src" and re.match(r"data:image/png;base64,[A-Za-z0-9+/=]+$", value)
            if name in ADDRESSES and not fine and not picture:
                found.append(f"{tag} {name}={value}")
            if name == "http-equiv" and value != "Content-Security-Policy":
                found.append(f"{tag} {name}={value}")
    return found


DUE = datetime(2027, 1, 1, tzinfo=UTC)


def page(notebook=None, *, name="Ada Lovelace", marks=None, late=timedelta(0), penalty=0.0, **changes):
    return feedback.render(
        marked.result(notebook or marked.answered(), **changes),
        marked.release(),
        name=name,
        marks=marks,
        handing=Handing(DUE + late, DUE, penalty),
        told=[marked.MISCONCEPTION],
    )


def text(html):
    """The words of a page, its style left out."""
    return re.sub(r"\s+", " ", " ".join(Elements(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).text))


# ---------------------------------------------------------------------- what it says


def test_it_says_who_what_and_how_the_total_came():
    said = text(page(marks={"why-half": Mark(2.5)}, late=timedelta(days=1, hours=3), penalty=0.75))
    assert "Paths that pause" in said
    assert "Ada Lovelace" in said
    assert "3.75 of 9 points" in said
    assert "Your answers earned 4.5 of 9 points. You handed in 1 day and 3 hours late, which costs 0.75 points." in said


def test_each_problem_has_its_text_answer_and_points():
    said = text(page(marked.answered(own=["helper = 1"])))
    assert said.index("A path that pauses") < said.index("Write") < said.index("helper") < said.index("return")
    assert "2 of 2 points Right." in said
    assert f"Hidden test 0 of 4 points Not yet: {marked.MISCONCEPTION}" in said
    assert "Because of Itô ." in said
    assert "not read yet, of 3 points" in said
    assert "A person still has to read something" in said


def test_the_grader_s_comment_and_score_are_shown():
    html = page(marks={"why-half": Mark(2.0, "Say **why**: $\\mathbb E[dW] = 0$."), "paused-path": Mark(None, "Nice.")})
    assert "Nice." in html
    assert "From your grader" in html
    assert "<strong>why</strong>" in html
    assert "𝔼" in html
    assert "2 of 3 points" in text(html)


def test_points_that_a_person_set_on_a_test_are_told():
    said = text(page(marks={"paused-path-hidden": Mark(3.0), "paused-path-check": Mark(2.0)}))
    assert f"3 of 4 points Not yet: {marked.MISCONCEPTION} A person set the points." in said
    assert said.count("A person set the points.") == 1
    assert "5 of 6 points" in said


def test_an_answer_that_changed_since_it_was_read_waits_again():
    said = text(page(marks={"why-half": Mark(2.0, pending=True), "paused-path-check": Mark(2.0, pending=True)}))
    assert said.count("not read yet, of") == 2


def test_nobody_waits_for_an_unread_answer_that_is_empty():
    assert "not read yet" not in text(page(marked.release()))


def test_who_handed_in_nothing_reads_so():
    said = text(feedback.render(None, marked.release(), name="Bob"))
    assert "Bob" in said
    assert "0 of 9 points Nothing was handed in" in said


def test_unanswered_problems_say_so():
    said = text(page(marked.release(), earned=(0, 0), messages=("x", "y")))
    assert said.count("Nothing was written here.") == 2
    assert "Not answered." in said


def test_a_penalty_takes_no_more_than_there_is():
    said = text(page(penalty=3.0))
    assert "0 of 9 points" in said
    assert "A total is never below 0." in said


def test_flags_are_told_kindly_once_and_without_evidence():
    flags = [Flag("edited", "setup", "EVIDENCE"), Flag("edited", "x", "EVIDENCE"), Flag("tampering", "x", "EVIDENCE")]
    html = page(flags=flags)
    assert text(html).count("One of the course's own cells had been edited; the original was graded.") == 1
    assert feedback.UNKNOWN_REMARK in html
    assert "EVIDENCE" not in html
    assert "tamper" not in html


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(seconds=5), "1 minute"),
        (timedelta(minutes=61), "1 hour and 1 minute"),
        (timedelta(days=2, minutes=5), "2 days and 5 minutes"),
    ],
)
def test_durations_in_words(span, words):
    assert feedback.duration(span) == words


def test_points_are_written_as_people_do():
    written = [feedback.number(points) for points in (2.0, 2.50, 1 / 3, 1e6, -1, -0.0)]
    assert written == ["2", "2.5", "0.33", "1000000", "\u22121", "0"]


# ---------------------------------------------------------------------- what it does not say


def leak(message, answered=True):
    return feedback.tellable(Score("t", "p", 4, 0, message, answered), [marked.MISCONCEPTION])


def test_nothing_hidden_is_told_not_by_any_output_error_or_value():
    secret = f"{marked.HIDDEN_TEXT} {marked.HIDDEN_INPUT}"
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=secret)]
    for message in (
        f"Not yet: your answer stopped with ValueError: {secret}",
        f"Not yet: the test could not run: NameError: {secret}",
        f"Not yet: '{secret}' is not the answer.",
        f"Not yet: your answer returned a dictionary with the keys {secret}; expected: the number 0.777.",
        "Not yet: value [0] is 1.0000, expected 0.777.",
        f"Not judged: the kernel was gone ({secret}, in x).",
        f"Right. {secret}",
        f"Not yet: {marked.MISCONCEPTION} {secret}",
    ):
        notebook = marked.answered(outputs=outputs)
        notebook.cells[5].outputs = outputs  # the hidden test's own
        notebook.cells[5].source = secret
        html = page(notebook, messages=(message, message), flags=[Flag("edited", "x", secret)])
        for word in ("HIDDENPROBE", "HIDDENINPUT", "0.777", marked.RUBRIC, marked.SOLUTION):
            assert word not in html


def test_of_errors_only_the_names_of_python_s_own_are_told():
    assert leak("Not yet: your answer stopped with ValueError: 0.777") == (
        "Not yet: your answer stopped with an error (ValueError)."
    )
    assert leak("Not yet: your answer stopped with Secret_0_777: x") == "Not yet: your answer stopped with an error."
    assert leak("Not yet: your answer stopped with print: x") == "Not yet: your answer stopped with an error."


def test_what_the_course_wrote_is_told():
    assert leak("Right.") == "Right."
    assert leak(f"Not yet: {marked.MISCONCEPTION}") == f"Not yet: {marked.MISCONCEPTION}"
    assert leak("anything", answered=False) == feedback.UNANSWERED
    assert leak("Not yet: something else") == feedback.OTHERWISE


# ---------------------------------------------------------------------- hostile content


@pytest.mark.parametrize("name", marked.PAYLOADS)
def test_no_payload_is_active_wherever_it_stands(name):
    payload = marked.PAYLOADS[name]
    hostile = marked.answered(code=payload, words=payload, own=[payload])
    marks = {"why-half": Mark(1.0, payload), "paused-path": Mark(None, payload)}
    html = page(hostile, name=payload, marks=marks, messages=(payload, payload))
    html.encode("utf-8")
    assert dangers(html) == []
    assert "Your answers earned" in html


@pytest.mark.parametrize("name", marked.PAYLOADS)
def test_no_payload_is_active_without_the_page_around_it(name):
    for around in ("{}", "# {}\n\n> - {}", "| a |\n|-|\n| {} |", "[{}](https://example.org/{})", "**{}", "${}$", "`{}"):
        assert dangers(str(markdown_html(around.replace("{}", marked.PAYLOADS[name])))) == []


def test_the_search_for_dangers_finds_them():
    for danger in (
        "<script>x</script>",
        "<p onclick=x>",
        '<a href="javascript:x">',
        '<a href=" javascript:x">',
        '<img src="https://example.org/x.png">',
        '<img src="data:image/svg+xml,x">',
        "<p style='background:url(x)'>",
        '<meta http-equiv="refresh">',
    ):
        assert dangers(danger), danger


def test_links_that_are_fine_stay():
    html = str(markdown_html("[a](https://example.org/x?y=1) [b](mailto:a@example.org) <https://example.org>"))
    assert [attributes["href"] for tag, attributes in Elements(html).found if tag == "a"] == [
        "https://example.org/x?y=1",
        "mailto:a@example.org",
        "https://example.org",
    ]
    assert html.count('rel="noopener noreferrer nofollow"') == 3


def test_characters_that_reorder_or_hide_text_are_shown():
    html = page(marked.answered(code="a = 'x\u202e\u2066y\u2069'", words="b\u202ec\x07"))
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x07]", html)
    assert "⟦U+202E⟧" in html


@pytest.mark.parametrize("broken", [{}, {"cells": 3}, {"cells": [1, {"id": 2, "metadata": [], "source": {}}]}])
def test_a_damaged_notebook_gives_a_page_all_the_same(broken):
    assert "Nothing was written here." in feedback.render(marked.result(broken), marked.release())


@pytest.mark.parametrize("unit", ["[", "*a ", "$x$ ", "<", "`a", "![", "> ", "|a", "$(", "&"])
def test_much_of_anything_is_shown(unit):
    longest = unit * (rendering.MOST_MARKDOWN // len(unit))
    assert dangers(str(markdown_html(longest))) == []
    assert str(markdown_html(longest + "x" * len(unit) * 2)).startswith("<pre")


def test_very_long_code_is_shown_without_colors():
    assert "<span" in code_html("x = 1")
    assert "<span" not in code_html("x = 1\n" * rendering.MOST_CODE)


def test_the_highlighter_gets_no_long_run_of_empty_lines():
    """It takes time that is quadratic in their number."""
    assert code_html("x" + "\n \t" * 2_000 + "\n  y").count("\n") == 102  # one is the highlighter's
    assert code_html("def f():\n\n\n    return 1\n").count("\n") == 4


# ---------------------------------------------------------------------- formulas


def test_every_formula_of_the_chapters_becomes_mathml(request):
    found, plain = 0, []
    for path in sorted((request.config.rootpath / "notebooks").glob("*.md")):
        tokens = rendering._parser().parse(path.read_text(encoding="utf-8"))
        for token in [inner for outer in tokens for inner in (outer, *(outer.children or []))]:
            if "math" in token.type:
                found += 1
                html = formula_html(token.content, display=token.type != "math_inline")
                plain += [] if "<math" in html else [f"{path.name}: {token.content}"]
    assert found > 1000
    assert plain == []


def test_text_in_a_formula_is_text():
    html = str(formula_html(r"\text{<img src=x onerror=fired()>} < x", display=False))
    assert [tag for tag, _ in Elements(html).found] == ["math", "mtext", "mo", "mi"]


@pytest.mark.parametrize("source", ["x" * (rendering.MOST_FORMULA + 1), r"\nosuch{x}", r"\def\a{x}\a", r"\frac{", ""])
def test_what_is_no_formula_is_shown_as_it_stands(source):
    html = str(formula_html(source, display=True))
    assert "<math" not in html
    assert "".join(Elements(html).text) == source


def test_a_formula_cannot_be_nested_without_end():
    assert "<math" in formula_html("x^{" * 20 + "x" + "}" * 20, display=True)
    assert "<math" not in formula_html("x^{" * 100 + "x" + "}" * 100, display=True)


HONEST = [
    "[0, 1)",
    "(0, 1]",
    "]0, 1[",
    r"\left[0, 1\right) \cup \left(1, 2\right]",
    r"[0, 1) \cup [1, 2) \cup " + r" \cup ".join(f"({n}, {n + 1}]" for n in range(2, 20)),
    "|x| + |y|",
    r"\lVert x \rVert \le \lvert y \rvert + \lfloor z \rfloor",
    r"\bigl( \Bigl[ x \Bigr] \bigr)",
    "(" * 12 + "x" + ")" * 12,
    "f(" * 12 + "x" + ")" * 12,
    r"\left(" * 12 + "x" + r"\right)" * 12,
    r"\{x : (x_1, x_2) \in \mathbb{R}^2\}",
    r"\mathbb{E}\bigl[\lVert v_\theta((1-t)x_0 + t x_1, t) - (x_1 - x_0) \rVert^2\bigr]",
    r"\begin{aligned} f(x) &= (a + b \\ &\quad + c) \cdot \sin(x) \end{aligned}",
    "(a, b" + "x" * 20,
]


@pytest.mark.parametrize("source", HONEST)
def test_delimiters_of_every_honest_kind_become_mathml(source):
    assert "<math" in formula_html(source, display=True)
    assert "<math" in markdown_html(f"Here ${source}$.")


# For each text: how many formulas math-core was asked for, and what is shown. In a process of its own, to be stopped.
ENDLESS = """
import json, sys
from course.homework import rendering
rendering.MOST_SECONDS = 1
asked, converted = [], rendering._converted
rendering._converted = lambda *formula: asked.append(formula) or converted(*formula)
for text in json.load(sys.stdin):
    asked.clear()
    shown = rendering.markdown_html(text)
    print(json.dumps([len(asked), shown]))
"""
ENDLESS_FORMULAS = [
    "(" * 60,
    "[x" * 60,
    r"\{" * 60,
    r"\lVert x" * 60,
    r"\bigl|" * 60,
    "⟨" * 60,
    "{(}" * 60,
    "(^)" * 60,
]


def test_a_formula_that_takes_for_ever_is_shown_as_it_stands():
    texts = [f"$y$ ${formula}$ " + f"and ${formula}x$ " * 20 + "*end*" for formula in ENDLESS_FORMULAS]
    command = [sys.executable, "-c", ENDLESS]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, timeout=60, check=True)
    for formula, line in zip(ENDLESS_FORMULAS, done.stdout.splitlines(), strict=True):
        asked, html = json.loads(line)
        assert asked == 2  # the honest one, and the first of twenty-one
        assert html.count("<math") == 1
        assert "".join(Elements(html).text).count(formula) == 21
        assert "<em>end</em>" in html


def test_formulas_go_on_after_a_converter_that_has_ended():
    assert "<math" in markdown_html("$x$")
    rendering._idle[-1].kill()
    rendering._idle[-1].wait()
    with pytest.raises(TimeoutError):
        formula_html("x", display=False)
    assert "<math" in markdown_html("$x$")


@pytest.mark.parametrize("source", [r"\raisebox{75em}{x}", r"\genfrac{}{}{90em}{}{a}{b}", r"\genfrac{}{}{9em}{}{a}{b}"])
def test_a_formula_draws_over_nothing_else(source):
    html = str(formula_html(source, display=True))
    assert "<math" in html
    assert not re.search(r"voffset|linethickness|\dem", html)


def test_lines_of_fractions_stay_as_thin_as_they_were_meant():
    assert 'linethickness="0"' in formula_html(r"\binom{n}{k}", display=True)
    assert 'linethickness="0.1em"' in formula_html(r"\genfrac{}{}{0.1em}{}{a}{b}", display=True)


# ---------------------------------------------------------------------- pictures


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(*chunks, signature=b"\x89PNG\r\n\x1a\n"):
    return base64.b64encode(signature + b"".join(chunks)).decode()


def header(width=1, height=1):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


DATA, END = chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b"")


def test_a_picture_is_kept_without_what_hides_in_it():
    hiding = encoded(header(), chunk(b"tEXt", b"Comment\0<script>"), DATA, END)
    raw = base64.b64decode(hiding) + b"<script>fired()</script>"
    assert png(base64.b64encode(raw).decode()) == base64.b64decode(encoded(header(), DATA, END))
    assert png(marked.png_output().data["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "picture",
    [
        None,
        3,
        [],
        "no base64!",
        base64.b64encode(b"<svg onload=fired()>").decode(),
        encoded(header(), DATA, END, signature=b"GIF89a.."),
        encoded(header(), DATA),
        encoded(header(), END),
        encoded(DATA, header(), END),
        encoded(header(), header(), DATA, END),
        encoded(header(100_000, 100_000), DATA, END),
        encoded(header(0, 1), DATA, END),
        encoded(header(), DATA[:-1] + b"\0", END),
        encoded(header(), chunk(b"IDAT", bytes(rendering.MOST_PICTURE)), END),
    ],
)
def test_what_is_no_sound_picture_is_left_out(picture):
    assert png(picture) is None


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def axe(request):
    """The source of axe; the site's tests fetch it."""
    path = request.config.rootpath / "book" / "_build" / "vendor-tests" / "axe.min.js"
    if not path.is_file():
        pytest.skip("axe is not here; `course site` fetches it")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_anybody_can_read_it_without_the_network_or_a_script(new_page, axe, tmp_path, theme, width):
    words = (
        "Long $"
        + "x + " * 60
        + "x$.\n\n$$"
        + "y + " * 60
        + "y$$\n\n# A heading\n\n"
        + "\n\n".join(marked.PAYLOADS.values())
    )
    notebook = marked.answered(code="x = 1  # " + "long " * 60, words=words, own=["y = 2"])
    marks = {"paused-path": Mark(None, "Good: $x$.")}
    html = page(notebook, marks=marks, late=timedelta(days=1), penalty=0.5, flags=[Flag("edited")])
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    shown = new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    requests = []
    shown.on("request", lambda request: requests.append(request.url))
    shown.add_init_script("window.firings = []; window.fired = () => window.firings.push(1)")
    shown.goto((tmp_path / "page.html").as_uri())
    assert requests == [(tmp_path / "page.html").as_uri()]
    assert shown.evaluate("window.firings") == []
    assert shown.errors == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(shown, axe) == []
