"""What came from a student, as HTML that does nothing: text, code, Markdown, formulas, pictures.

Text and code are escaped. Markdown is rendered without raw HTML, with links of three kinds only and without pictures.
Formulas become MathML (no script needed to read it), in a process that ends where one takes too long, and it is built
anew from a list of elements and attributes. Pictures are PNG files put together anew from their necessary chunks.
"""

import atexit
import base64
import binascii
import contextlib
import json
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from html import unescape
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from course.homework.cleaning import few_empty_lines

MOST_MARKDOWN = 20_000  # characters that are rendered; longer text is shown as it is
MOST_CODE = 100_000  # characters that are highlighted
MOST_SHOWN = 200_000  # characters of one text
LONG_FORMULA = 40  # characters of TeX that may be wider than a phone
MOST_FORMULA = 2_000  # characters of TeX: math-core recurses in native code
MOST_MATHML = 60_000  # characters of MathML that a formula may become
MOST_DEPTH = 60  # levels of MathML
MOST_SECONDS = 3  # for one formula; those of the course take milliseconds, of a machine that may be busy
MOST_PICTURE = 1_000_000  # bytes
MOST_PIXELS, MOST_SIDE = 16_000_000, 10_000

DEFINES = re.compile(r"\\(let|[a-z]*def|[a-z]*command|Declare[A-Za-z]*)(?![A-Za-z])")  # expansion has no bounds
ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|apos);)\w+;")
LINK = re.compile(r"https?://[^\s/?#]|mailto:[^\s?]+$", re.IGNORECASE)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
UNSEEN = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")
PYTHON = ("python", "python3", "py", "ipython3")

ELEMENTS = """
math mrow mi mn mo mtext mspace msup msub msubsup mfrac msqrt mroot munder mover munderover mtable mtr mtd mpadded
mphantom mstyle mmultiscripts mprescripts none menclose
"""
ATTRIBUTES = """
display displaystyle scriptlevel mathvariant stretchy symmetric form fence separator accent accentunder movablelimits
largeop lspace rspace minsize maxsize width height depth columnspacing rowspacing columnalign rowalign notation
"""
LENGTH = re.compile(r"-?(\d{1,2}(\.\d+)?|\.\d+)(em|ex|px|mu|%)?|100%")
THIN = re.compile(r"0(\.\d+(em|rem|ex))?")  # a fraction's line; a thick one is a bar over what stands above
WORDS = re.compile(r"[a-z-]+( [a-z-]+)*")
STYLE = re.compile(r"(text-align|justify-items|padding-\w+|width|border-(left|right|top|bottom))\s*:\s*[\w. %-]+")


# ---------------------------------------------------------------------- text to HTML


def visible(text: str) -> str:
    """Text in which characters that reorder, hide or break it are shown by their number."""
    text = text[:MOST_SHOWN].replace("\r\n", "\n").replace("\r", "\n")
    return UNSEEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text)


def code_html(source: str, *, label: str = "Code") -> Markup:
    """Python, highlighted; not parsed where it is very long."""
    source = few_empty_lines(visible(source))
    if len(source) > MOST_CODE:
        return plain_html(source, label=label)
    body = Markup(highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)))
    return Markup('<pre class="code" tabindex="0" role="group" aria-label="{}"><code>{}</code></pre>').format(
        label, body
    )


def picture_html(picture: bytes) -> Markup:
    """A picture of `png`, within the page."""
    data = base64.b64encode(picture).decode("ascii")
    return Markup('<img alt="Picture that the code drew" src="data:image/png;base64,{}">').format(data)


def plain_html(text: str, *, label: str = "Text") -> Markup:
    """Text as it stands."""
    return Markup('<pre class="plain" tabindex="0" role="group" aria-label="{}">{}</pre>').format(label, visible(text))


def markdown_html(text: str, *, top: int = 3) -> Markup:
    """Markdown that nobody should trust, as HTML.

    Raw HTML stays text, pictures become their descriptions, links lead to web pages and mail addresses only, formulas
    become MathML. Headings begin at the level `top`. Text that is too long to be parsed is shown as it is.
    """
    text = visible(text)
    if len(text) > MOST_MARKDOWN:
        return plain_html(text)
    try:
        tokens = (parser := _parser()).parse(text)
        levels = sorted({int(token.tag[1]) for token in tokens if token.type == "heading_open"})
        for token in tokens:
            if token.type in ("heading_open", "heading_close"):
                token.tag = f"h{min(6, top + levels.index(int(token.tag[1])))}"
            elif token.type in ("th_open", "td_open"):
                token.attrs = {}
        return Markup(parser.renderer.render(tokens, parser.options, {}))
    except Exception:  # a parser's error on odd text must not take the page with it
        return plain_html(text)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, double_inline=True).use(amsmath_plugin)
    parser.validateLink = lambda link: bool(LINK.match(link))
    for kind, rule in RULES.items():
        parser.add_render_rule(kind, rule)
    return parser


# How our pages show what markdown-it shows otherwise; it passes its renderer first.


def _link(renderer, tokens, index, options, env) -> str:
    tokens[index].attrs = {"href": str(tokens[index].attrs["href"]), "rel": "noopener noreferrer nofollow"}
    return renderer.renderToken(tokens, index, options, env)


def _picture(renderer, tokens, index, options, env) -> str:
    described = renderer.renderInlineAsText(tokens[index].children or [], options, env)
    return str(Markup("<span>[picture: {}]</span>").format(Markup(described).unescape()))


def _block(renderer, tokens, index, options, env) -> str:
    code = tokens[index]
    return str((code_html if code.info.strip().lower() in PYTHON else plain_html)(code.content))


def _raw_html(renderer, tokens, index, options, env) -> str:  # never made, for `html` is off
    return str(escape(tokens[index].content))


def _formula(renderer, tokens, index, options, env) -> str:
    if "late" not in env:
        try:
            return str(formula_html(tokens[index].content, display=tokens[index].type != "math_inline"))
        except TimeoutError:
            env["late"] = True  # a text has room for hundreds of such formulas: it gets no further one
    return str(_tex(tokens[index].content))


RULES = {
    "link_open": _link,
    "image": _picture,
    **dict.fromkeys(("fence", "code_block"), _block),
    **dict.fromkeys(("html_block", "html_inline"), _raw_html),
    **dict.fromkeys(("math_inline", "math_inline_double", "math_block", "math_block_label", "amsmath"), _formula),
}


def formula_html(source: str, *, display: bool) -> Markup:
    """TeX as MathML built anew from a list of elements and attributes; shown as TeX where that is not possible.

    Raises:
        TimeoutError: The formula was given up.
    """
    source = source.strip()
    sound = 0 < len(source) <= MOST_FORMULA and not DEFINES.search(source)
    made = _mathml(source, display) if sound else None
    if made is None:
        return _tex(source)
    if not display and len(source) <= LONG_FORMULA:
        return Markup(made)
    kind = "formula" if display else "formula inline"
    scrolls = Markup(' tabindex="0" role="group" aria-label="Formula"') if len(source) > LONG_FORMULA else ""
    return Markup('<span class="{}"{}>{}</span>').format(kind, scrolls, Markup(made))


def _tex(source: str) -> Markup:
    return Markup('<code class="formula">{}</code>').format(source.strip())


def _mathml(source: str, display: bool) -> str | None:
    made = _converted(source, display)
    if not made or len(made) > MOST_MATHML:
        return None
    try:
        tree = _rebuilt(ElementTree.fromstring(ENTITY.sub(lambda entity: unescape(entity[0]), made)), 0)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return None
    return ElementTree.tostring(tree, encoding="unicode", short_empty_elements=False)


# math-core runs in a process of its own. It is native code that nothing within its process can interrupt, and with
# each delimiter that is opened and never closed its time doubles. What ends it is a clock that needs no Python.
CONVERTER = """
import faulthandler, json, sys
import math_core
mathematics = math_core.LatexToMathML(max_expansions=50, fancy_error=False)
for line in sys.stdin:
    seconds, source, display = json.loads(line)
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        made = mathematics.convert_with_local_state(source, displaystyle=display)
    except (math_core.LatexError, ValueError):
        made = ""
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(made), flush=True)
"""
_idle: list[subprocess.Popen[str]] = []


def _converted(source: str, display: bool) -> str:
    """What math-core makes of TeX; empty where it is none."""
    converter = _idle.pop() if _idle else _converter()
    try:
        print(json.dumps([MOST_SECONDS, source, display]), file=converter.stdin, flush=True)
        answer = converter.stdout.readline()
    except OSError:  # it had ended before it was asked
        answer = ""
    if not answer:
        _end(converter)
        raise TimeoutError(f"formula: received one that took more than {MOST_SECONDS} s; rule: at most so long")
    _idle.append(converter)  # after an answer only: one that was left in the middle would give it to the next formula
    return json.loads(answer)


def _converter() -> subprocess.Popen[str]:
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    command = [sys.executable, "-P", "-c", CONVERTER]  # -P: no module of the folder that one works in
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, encoding="ascii")


def _end(converter: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError), converter:  # closes the pipes, and waits for its end
        pass


@atexit.register
def _end_all() -> None:
    while _idle:
        _end(_idle.pop())


def _rebuilt(element: ElementTree.Element, depth: int) -> ElementTree.Element:
    """A copy that holds nothing but known elements and attributes; the text of others is kept."""
    if depth > MOST_DEPTH:
        raise ValueError(f"formula: received more than {MOST_DEPTH} levels; rule: at most so many")
    known = element.tag in ELEMENTS.split()
    made = ElementTree.Element(element.tag if known else "mrow")
    made.attrib.update({name: value for name, value in element.attrib.items() if _harmless(name, value)})
    made.tail = element.tail
    if known:
        made.text = element.text
    elif element.text:
        ElementTree.SubElement(made, "mtext").text = element.text
    made.extend([_rebuilt(child, depth + 1) for child in element])  # a list: an error within a generator is hidden
    return made


def _harmless(name: str, value: str) -> bool:
    if name == "style":
        return all(STYLE.fullmatch(part.strip()) for part in value.split(";") if part.strip())
    if name == "linethickness":
        return bool(THIN.fullmatch(value))
    return name in ATTRIBUTES.split() and bool(LENGTH.fullmatch(value) or WORDS.fullmatch(value))


# ---------------------------------------------------------------------- outputs and pictures


def cells(notebook: Any) -> list[dict]:
    """The cells of a notebook that may be anything."""
    found = notebook.get("cells") if isinstance(notebook, Mapping) else None
    return [cell for cell in found if isinstance(cell, Mapping)] if isinstance(found, list) else []


def name_of(cell: Mapping[str, Any]) -> str:
    """The name that nbgrader knows a cell by; empty where it has none."""
    metadata = cell.get("metadata")
    about = metadata.get("nbgrader") if isinstance(metadata, Mapping) else None
    name = about.get("grade_id") if isinstance(about, Mapping) else None
    return name if isinstance(name, str) else ""


def source_of(cell: Mapping[str, Any] | None) -> str:
    """A cell's source; empty where it has none."""
    return _text(cell.get("source")) if cell is not None else ""


def outputs(cell: Mapping[str, Any]) -> Iterator[str | bytes]:
    """A cell's outputs: text as `str`, pictures as the bytes of a PNG; nothing else is let through."""
    given = cell.get("outputs", [])
    for output in given if isinstance(given, list) else []:
        if not isinstance(output, Mapping):
            continue
        data = output.get("data") if isinstance(output.get("data"), Mapping) else {}
        if output.get("output_type") == "stream":
            yield ANSI.sub("", _text(output.get("text")))
        elif output.get("output_type") == "error":
            yield ANSI.sub("", f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}")
        elif (picture := png(data.get("image/png"))) is not None:
            yield picture
        else:
            yield ANSI.sub("", _text(data.get("text/plain")))


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = "".join(line for line in value if isinstance(line, str))
    return value[:MOST_SHOWN] if isinstance(value, str) else ""


def png(encoded: Any) -> bytes | None:
    """The picture put together anew from its necessary chunks, or none if it is no sound PNG of at most 1 MB."""
    encoded = "".join(encoded) if isinstance(encoded, list) and all(isinstance(e, str) for e in encoded) else encoded
    if not isinstance(encoded, str) or len(encoded) > MOST_PICTURE * 3 // 2:
        return None
    try:
        raw = base64.b64decode("".join(encoded.split()), validate=True)
        return _rebuilt_png(raw)
    except (binascii.Error, ValueError, struct.error):
        return None


def _rebuilt_png(raw: bytes) -> bytes | None:
    signature = b"\x89PNG\r\n\x1a\n"
    if not raw.startswith(signature) or len(raw) > MOST_PICTURE:
        return None
    chunks, place = [], len(signature)
    while place + 12 <= len(raw):
        length, kind = struct.unpack(">I4s", raw[place : place + 8])
        chunk = raw[place : (place := place + 12 + length)]
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            return None
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            chunks.append((kind, chunk))
        if kind == b"IEND":
            break
    kinds = [kind for kind, _ in chunks]
    if kinds[:1] != [b"IHDR"] or kinds.count(b"IHDR") != 1 or kinds[-1] != b"IEND" or b"IDAT" not in kinds:
        return None
    width, height = struct.unpack(">II", chunks[0][1][8:16])
    if not 0 < width * height <= MOST_PIXELS or max(width, height) > MOST_SIDE:
        return None
    return signature + b"".join(data for _, data in chunks)


# ---------------------------------------------------------------------- the page's style


@cache
def highlighting() -> Markup:
    """The colors of code in both themes, as on the site."""
    light = HtmlFormatter(style="a11y-high-contrast-light").get_token_style_defs("pre.code")
    dark = HtmlFormatter(style="a11y-high-contrast-dark").get_token_style_defs("pre.code")
    return Markup("\n".join([*light, "@media screen and (prefers-color-scheme: dark) {", *dark, "}"]))
