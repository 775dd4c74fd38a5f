r"""What a student wrote, made safe for the pages and terminals that show it to a person.

A page that an instructor opens renders written answers as Markdown, raw HTML included. Where code begins and ends in
Markdown is decided differently by each renderer, so nothing here depends on it: single characters are set apart by a
space, wherever they stand, and no renderer can then read them as a tag, an image or a link that runs. Mathematics
(`$a<b$` becomes `$a< b$`) and code stay readable. The rules, each applied to the whole text:

    <b        ->  < b           no tag, comment or declaration; <https://…> loses its angles instead
    ![        ->  ! [           no image: it would be fetched from another host, or crash nbconvert without attachment
    ](…       ->  ] (…          unless the target begins with http, https, mailto or #
    ]:…       ->  ] :…          likewise for the definition of a reference
    \href     ->  \ href        no command by which MathJax or KaTeX makes links, styles or attributes
    ```xyz    ->  ``` text      unless xyz is a language that students write; nbconvert shows `mermaid` unescaped
"""

import re

LANGUAGES = ("python", "python3", "py", "ipython", "ipython3", "pycon", "text", "latex", "tex", "math", "json", "bash")

_ALLOWED = r"[ \t]*(?:https?://|mailto:|#)"
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)>", re.IGNORECASE)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_IMAGE = re.compile(r"!(?=\[)")
_LINK = re.compile(rf"\](?=\((?!{_ALLOWED}))", re.IGNORECASE)
_DEFINITION = re.compile(rf"\](?=:(?!{_ALLOWED}))", re.IGNORECASE)
_COMMANDS = "href|url|html[A-Za-z]*|style|class|cssId|data|require|mmlToken|bbox|includegraphics|unicode"
_TEX = re.compile(rf"\\(?=(?:{_COMMANDS})(?![A-Za-z]))")
_BLANKS = re.compile(r"[^\S\n]{101,}")
_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_OPENERS = re.compile(r"\\(?=begin\{|\\[(\[])")
MOST_OPENERS = 500  # of mathematics: for each that is never closed, nbconvert searches the whole text
_FENCE = re.compile(r"(`{3,}|~{3,})([^\n]*)")

# What is worth a person's look: `$a<b$`, `f[i](x)` and `a[1]:` are set apart too, but mean no harm.
_HAZARDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"<[/!?]?[a-z][a-z0-9-]*(?:[\s/][^<>]{0,200})?>",
        r"<(?:script|img|svg|iframe|object|embed|math|style|meta|link|base|form|body|video|audio)\b",
        r"<(?!https?:|mailto:)[a-z][a-z0-9.+-]{1,31}:",
        rf"\]\((?!{_ALLOWED})\s{{0,9}}<?(?://|[^\s()]{{0,40}}[:&\\])",
        rf"\]:(?!{_ALLOWED})\s{{0,9}}[^\s:]{{0,40}}(?:script|data|file|&|\\)",
        r"!\[[^\]\n]{0,80}\]",
        rf"\\(?:{_COMMANDS})(?![a-z])",
        r"(?<![`~])[`~]{3,}\s{0,9}mermaid",
    )
)

# Control characters, overrides of the direction of writing, line separators, lone surrogates.
_STRANGE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNWANTED = re.compile(_STRANGE.pattern.replace(r"\x00-\x1f", r"\x00-\x08\x0b\x0e-\x1f"))


def is_strange(text: str) -> bool:
    """Whether a text has characters that deceive whoever reads it, or break what stores it."""
    return _STRANGE.search(text) is not None


def plain(text: str) -> str:
    """Text for a message or a name that is shown: one line, strange characters as escapes."""
    return _STRANGE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def clean_text(text: str) -> str:
    """Text that any file, compiler and renderer can take: one kind of line ends, strange characters replaced."""
    return _UNWANTED.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def few_empty_lines(text: str) -> str:
    """Code for a highlighter, which takes quadratic time for white space: empty lines bare, at most 100 in a row."""
    return _EMPTY_LINES.sub(lambda match: "\n" * min(match[0].count("\n"), 101), text)


def clean_markdown(text: str) -> str:
    """A written answer with raw HTML, images, and links that are not http, https, mailto or # made inert."""
    text = _AUTOLINK.sub(r"\1", clean_text(text).replace("\x0c", "\n"))
    text = _BLANKS.sub(lambda match: match[0][:100], text)  # nbconvert takes quadratic time for long runs
    text = _TAG.sub("< ", text)
    text = _IMAGE.sub("! ", text)
    text = _LINK.sub("] ", text)
    text = _DEFINITION.sub("] ", text)
    text = _TEX.sub(r"\\ ", text)
    if sum(1 for _ in _OPENERS.finditer(text)) > MOST_OPENERS:
        text = _OPENERS.sub(r"\\ ", text)
    return _FENCE.sub(_plain_fence, text)


def hazard(text: str) -> str:
    """The first thing in a written answer that was made inert and that a person should know of; empty if none."""
    found = [match for pattern in _HAZARDS if (match := pattern.search(text))]
    if not found:
        return ""
    first = min(found, key=lambda match: match.start())
    return plain(text[first.start() : first.start() + 80])


def _plain_fence(match: re.Match) -> str:
    fence, info = match.groups()
    word = info.strip().lower()
    inline = fence[0] == "`" and "`" in info  # a code span, whatever the renderer: an info string has no backtick
    return match[0] if inline or not word or word in LANGUAGES else f"{fence} text"
