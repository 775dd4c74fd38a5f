"""The page that compares families of models: `book/families.json`, checked and drawn as tables and small pictures.

`course compare` measures and writes the file; nothing is measured here. The directives are

    {families-table} plane        one row a family, the best value of a column marked by a star and bold type
    {families-table} digits
    {families-table} cost
    {families-figure}             a scatter plot and a strip of digits for each family

A file that does not fit stops the build with the place and the rule. Tables and pictures are HTML and SVG: they follow
the theme and need no script; `families.js` adds the sorting.
"""

import base64
import html
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from course.chapters import CourseError

FILE = "book/families.json"
TASKS = ("plane", "digits")
LIKELIHOODS = {"exact": "", "bound": "≤ ", "none": ""}
LETTERS = "0123456789abcdefg"  # the gray levels 0 … 16
SIDE = 8  # pixels of a digit
EDGE = 3.0  # the picture of the plane is [−3, 3]²


# --- the columns ------------------------------------------------------------------------------------------------------


def fixed(decimals: int) -> Callable[[float], str]:
    """Writes a number with so many decimals."""
    return lambda value: f"{value:.{decimals}f}".replace("-", "−")


def significant(value: float) -> str:
    """Writes a number with two significant digits, without an exponent."""
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, digits)}f}" if digits >= 0 else f"{round(value, digits):,.0f}"


@dataclass(frozen=True)
class Column:
    """A number of the table.

    Attributes:
        task: "plane" or "digits".
        key: its name in the file.
        title: the head of the column.
        unit: the second line of the head.
        write: number -> text.
        better: "low", "high" or "one" (as close to 1 as can be); None where no value is the best.
    """

    task: str
    key: str
    title: str
    unit: str
    write: Callable[[float], str]
    better: str | None = None

    def value(self, row: dict) -> float | None:
        """The number of one row, None where it has none."""
        return row[self.task]["scores"].get(self.key) if row[self.task] else None

    def distance(self, value: float) -> float:
        """How far a value, as the reader sees it, is from the best that one could have: smaller is better."""
        seen = float(self.write(value).replace(",", "").replace("−", "-").removesuffix("%"))
        return {"low": seen, "high": -seen, "one": abs(seen - 1)}[self.better or "low"]


def percent(value: float) -> str:
    """Writes a share."""
    return f"{100 * value:.1f}%" if value < 0.1 else f"{100 * value:.0f}%"


def whole(value: float) -> str:
    """Writes a count."""
    return f"{value:,.0f}"


def quality(task: str) -> tuple[Column, ...]:
    """The columns that both tasks have."""
    return (
        Column(task, "precision", "Precision", "share", fixed(2), "high"),
        Column(task, "recall", "Recall", "share", fixed(2), "high"),
        Column(task, "copying", "Copying", "1 is none", fixed(2), "one"),
    )


TABLES = {
    "plane": (
        Column("plane", "nats", "−log p", "nats a point", fixed(2), "low"),
        Column("plane", "outside", "Off the board", "share", percent, "low"),
        Column("plane", "energy", "Energy", "distance", fixed(3), "low"),
        Column("plane", "frechet", "Fréchet", "distance", fixed(4), "low"),
        *quality("plane"),
    ),
    "digits": (
        Column("digits", "bits", "−log P", "bits a pixel", fixed(2), "low"),
        Column("digits", "frechet", "Fréchet", "training data = 1", fixed(1), "low"),
        *quality("digits"),
    ),
    "cost": (
        *(Column(task, "evaluations", "Evaluations", task, whole, "low") for task in TASKS),
        Column("plane", "milliseconds", "CPU µs", "plane", lambda value: significant(1_000 * value), "low"),
        Column("digits", "milliseconds", "CPU ms", "digits", significant, "low"),
        *(Column(task, "weights", "Weights", task, whole) for task in TASKS),
        *(Column(task, "seconds", "Training, s", task, whole) for task in TASKS),
    ),
}
COLUMNS = {task: [column for table in TABLES.values() for column in table if column.task == task] for task in TASKS}
CAPTIONS = {
    "plane": "The plane: a checkerboard of entropy {entropy:.2f} nats, {points:,} points to train on, as many to judge",
    "digits": "The digits: {train:,} to train on, {test:,} to judge",
    "cost": "The cost of one sample, and of the training",
}
OPTIONAL = {"nats", "bits"}  # None where a family has no likelihood
NOT_FOR_DATA = OPTIONAL | {column.key for column in TABLES["cost"]}


# --- the file ---------------------------------------------------------------------------------------------------------


def read(root: Path) -> dict:
    """The file of the checkout `root`, checked.

    Raises:
        CourseError: there is no such file, or something in it does not fit; the message says where.
    """
    path = root / FILE
    if not path.is_file():
        raise CourseError(f"families: received no {FILE}; rule: `course compare` writes it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CourseError(f"families: {FILE} is no JSON ({error}); rule: `course compare` writes it") from error
    for place, received, rule in problems(found):
        raise CourseError(f"families: {FILE}, {place}: received {shortened(received)}; rule: {rule}")
    return found


def shortened(value: object) -> str:
    """A value as a few letters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


Problem = tuple[str, object, str]


def problems(found: object) -> Iterator[Problem]:
    """Where the content of a file does not fit: (place, what was received, the rule)."""
    about, rows = (found.get("about"), found.get("rows")) if isinstance(found, dict) else (None, None)
    numbers = ("entropy", "points", "train", "test", "judged")
    if not isinstance(about, dict) or not all(is_number(about.get(key)) for key in numbers):
        yield "about", about, f"the numbers {', '.join(numbers)}"
        return
    if not isinstance(about.get("board"), list) or not all(is_pair(corner) for corner in about["board"]):
        yield "about.board", about.get("board"), "the corners of the squares of the density, [x, y]"
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not families(rows):
        yield "rows", rows, "a list of rows, at least one of a family"
        return
    keys = [row.get("key") for row in rows]
    if len(set(keys)) < len(keys):
        yield "rows", keys, "every key once"
    for row in rows:
        yield from problems_of_row(row)


def problems_of_row(row: dict) -> Iterator[Problem]:
    """What does not fit in one row."""
    key = row.get("key")
    for name in ("key", "name", "about"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            yield f"row {key!r}, {name}", row.get(name), "some text"
    if not isinstance(row.get("chapter"), str | None):
        yield f"row {key!r}, chapter", row.get("chapter"), "the slug of a chapter, or null"
    if not isinstance(row.get("reference"), bool):
        yield f"row {key!r}, reference", row.get("reference"), "true for data, false for a family"
    if all(row.get(task) is None for task in TASKS):
        yield f"row {key!r}", None, "scores in the plane or on the digits"
    for task in TASKS:
        part = row.get(task)
        place = f"row {key!r}, {task}"
        if task not in row:
            yield place, "nothing", "scores, or null"
        if part is not None:
            if isinstance(part, dict) and isinstance(part.get("scores"), dict):
                yield from problems_of_scores(part["scores"], task, place, reference=bool(row.get("reference")))
                yield from problems_of_picture(part, task, place)
            else:
                yield place, part, "an object with scores, or null"


def problems_of_scores(scores: dict, task: str, place: str, *, reference: bool) -> Iterator[Problem]:
    """What does not fit in the numbers of one row."""
    for column in COLUMNS[task]:
        value = scores.get(column.key)
        may_lack = column.key in (NOT_FOR_DATA if reference else OPTIONAL)
        if not (is_number(value) or (value is None and may_lack)):
            yield f"{place}, {column.key}", value, "a finite number" + (" or null" if may_lack else "")
    if not reference and scores.get("likelihood") not in LIKELIHOODS:
        yield f"{place}, likelihood", scores.get("likelihood"), f"one of {', '.join(LIKELIHOODS)}"


def problems_of_picture(part: dict, task: str, place: str) -> Iterator[Problem]:
    """What does not fit in the samples of one row."""
    if task == "plane":
        points = part.get("points")
        fits = isinstance(points, list) and len(points) % 2 == 0 and points and all(is_number(p) for p in points)
        if not fits or max(map(abs, points)) > EDGE:
            yield f"{place}, points", points, f"x and y in turn, from −{EDGE:g} to {EDGE:g}"
        return
    images = part.get("images")
    whole = isinstance(images, list) and images and all(isinstance(image, str) for image in images)
    if not whole or not all(len(image) == SIDE**2 and set(image) <= set(LETTERS) for image in images):
        yield f"{place}, images", images, f"digits of {SIDE**2} letters, 0 … 9 and a … g"


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_pair(value: object) -> bool:
    """Whether a value is a point."""
    return isinstance(value, list) and len(value) == 2 and all(is_number(part) for part in value)


def families(rows: list[dict]) -> list[dict]:
    """The rows of trained families; the rest are data."""
    return [row for row in rows if row.get("reference") is not True]


# --- the tables -------------------------------------------------------------------------------------------------------


def table(found: dict, name: str) -> str:
    """One table in HTML: families above, data below."""
    columns = TABLES[name]
    rows = [row for row in found["rows"] if any(column.value(row) is not None for column in columns)]
    best = best_values(rows, columns)
    groups = (("", families(rows)), (' class="families-data"', [row for row in rows if row["reference"]]))
    bodies = "".join(
        f"<tbody{marked}>{''.join(table_row(row, columns, best) for row in group)}</tbody>"
        for marked, group in groups
        if group
    )
    caption = html.escape(CAPTIONS[name].format(**found["about"]))
    return (
        f'<div class="pst-scrollable-table-container"><table class="table families">'
        f"<caption><span>{caption}</span></caption>"
        f'<thead><tr><th scope="col">Family</th>{"".join(map(heading, columns))}</tr></thead>{bodies}</table></div>'
    )


def heading(column: Column) -> str:
    """The head of one column, with what is better in it."""
    arrow, words = {
        "low": ("↓", "lower is better"),
        "high": ("↑", "higher is better"),
        "one": ("→1", "closest to 1 is best"),
        None: ("", ""),
    }[column.better]
    note = f' <span aria-hidden="true">{arrow}</span><span class="families-unseen">, {words}</span>' if arrow else ""
    unit = f'<span class="families-unit">{html.escape(column.unit)}</span>'
    return f'<th scope="col"><span class="families-title">{html.escape(column.title)}{note}</span> {unit}</th>'


def best_values(rows: list[dict], columns: tuple[Column, ...]) -> dict[Column, float]:
    """For each column the smallest distance from the best, among the families; nothing where there is but one value."""
    best = {}
    for column in columns:
        reached = [column.distance(value) for row in families(rows) if (value := column.value(row)) is not None]
        if column.better and len(reached) > 1:
            best[column] = min(reached)
    return best


def table_row(row: dict, columns: tuple[Column, ...], best: dict[Column, float]) -> str:
    """One row."""
    cells = "".join(cell(column, row, best) for column in columns)
    return f'<tr><th scope="row">{html.escape(row["name"])}</th>{cells}</tr>'


def cell(column: Column, row: dict, best: dict[Column, float]) -> str:
    """One number; the best is bold and has a star, and says so to those who do not see it."""
    value = column.value(row)
    if value is None:
        return '<td><span aria-hidden="true">–</span><span class="families-unseen">none</span></td>'
    bound = LIKELIHOODS[row[column.task]["scores"]["likelihood"]] if column.key in OPTIONAL else ""
    text = html.escape(f"{bound}{column.write(value)}")
    if not row["reference"] and column in best and column.distance(value) <= best[column]:
        star = '<span class="families-star" aria-hidden="true">★</span><span class="families-unseen"> (best)</span>'
        text = f"<strong>{text}</strong>{star}"
    return f'<td data-value="{value:g}">{text}</td>'


# --- the pictures -----------------------------------------------------------------------------------------------------


def scatter(points: list[float], board: list[list[float]], words: str) -> str:
    """Points over the squares of the density, as an SVG picture in hundredths."""
    squares = "".join(f"M{round(100 * x)} {round(-100 * (y + 1))}h100v100h-100z" for x, y in board)
    dots = "".join(
        f"M{round(100 * x)} {round(-100 * y)}h0" for x, y in zip(points[::2], points[1::2], strict=True)
    ).replace(" -", "-")
    reach = round(100 * EDGE)
    return (
        f'<svg class="families-plane" viewBox="-{reach} -{reach} {2 * reach} {2 * reach}" role="img" '
        f'aria-label="{html.escape(words)}"><path class="families-board" d="{squares}"/>'
        f'<path class="families-points" d="{dots}"/></svg>'
    )


def strip(images: list[str], words: str, *, columns: int = 8, scale: int = 4) -> str:
    """Digits side by side, as a PNG picture in the page: ink on paper, level 0 is white."""
    step = SIDE + 1
    rows = math.ceil(len(images) / columns)
    width, height = columns * step - 1, rows * step - 1
    sheet = [[(0, 0)] * width for _ in range(height)]  # gray and opacity: the gaps let the page through
    for k, image in enumerate(images):
        top, left = step * (k // columns), step * (k % columns)
        for i, letter in enumerate(image):
            sheet[top + i // SIDE][left + i % SIDE] = (round(255 * (16 - LETTERS.index(letter)) / 16), 255)
    lines = [bytes([0]) + b"".join(bytes(pixel) * scale for pixel in line) for line in sheet]
    content = png(width * scale, height * scale, b"".join(line * scale for line in lines))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    size = f'width="{width * scale}" height="{height * scale}"'
    return f'<img class="families-strip" {size} alt="{html.escape(words)}" src="{source}">'


def png(width: int, height: int, lines: bytes) -> bytes:
    """A PNG file of gray and opacity, 8 bits each, from its lines, each led by the filter type 0."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")


def words_of_plane(row: dict) -> str:
    """The scatter plot in words."""
    part = row["plane"]
    outside, recall = percent(part["scores"]["outside"]), percent(part["scores"]["recall"])
    return (
        f"{row['name']}: {len(part['points']) // 2} samples over the black squares of the board; "
        f"{outside} of all samples lie off the squares, and {recall} of the data have samples near them."
    )


def words_of_digits(row: dict) -> str:
    """The strip of digits in words."""
    part = row["digits"]
    like = percent(part["scores"]["precision"])
    return f"{row['name']}: {len(part['images'])} digits of 8 by 8 pixels, not selected; {like} of all pass for real."


def pictures(row: dict, board: list[list[float]]) -> str:
    """What one family draws, in HTML."""
    drawn = [scatter(row["plane"]["points"], board, words_of_plane(row))] if row["plane"] else []
    drawn += [strip(row["digits"]["images"], words_of_digits(row))] if row["digits"] else []
    return "".join(drawn)


# --- on the page ------------------------------------------------------------------------------------------------------


class FromFile(SphinxDirective):
    """What the directives share: the file, read anew when it changes."""

    def found(self) -> dict:
        """The checked content; what is wrong with it becomes an error at this place of the page."""
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / FILE))
        try:
            return read(root)
        except CourseError as error:
            raise self.error(str(error)) from error


class FamiliesTable(FromFile):
    """One of the tables."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"families-table: received {name!r}; rule: one of {', '.join(TABLES)}")
        return [nodes.raw("", table(self.found(), name), format="html")]


class FamiliesFigure(FromFile):
    """A card a family: its name, its chapter, how it was made, what it draws."""

    def run(self) -> list[nodes.Node]:
        found = self.found()
        grid = nodes.container(classes=["families-grid"])
        grid += [self.card(row, found["about"]["board"]) for row in found["rows"]]
        return [grid]

    def card(self, row: dict, board: list[list[float]]) -> nodes.container:
        """One family."""
        title = nodes.paragraph("", "", nodes.strong("", row["name"]), classes=["families-name"])
        if row["chapter"] and f"notebooks/{row['chapter']}" in self.env.found_docs:
            title += [nodes.Text(" "), self.link(row["chapter"])]
        about = nodes.paragraph("", row["about"], classes=["families-about"])
        drawing = nodes.raw("", pictures(row, board), format="html")
        return nodes.container("", title, drawing, about, classes=["families-card"])

    def link(self, slug: str) -> addnodes.pending_xref:
        """The chapter that teaches it."""
        text = nodes.inline("", f"chapter {slug[:2]}")
        target = {"refdomain": "std", "reftype": "doc", "reftarget": f"/notebooks/{slug}", "refdoc": self.env.docname}
        return addnodes.pending_xref("", text, refexplicit=True, refwarn=True, **target)


def dress_page(app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Style and script go to the pages that need them, and to no other."""
    if doctree is not None and any("families" in raw.astext() for raw in doctree.findall(nodes.raw)):
        app.add_css_file("families.css")
        app.add_js_file("families.js", loading_method="defer")


def setup(app: Sphinx) -> None:
    """Adds the directives."""
    app.add_directive("families-table", FamiliesTable)
    app.add_directive("families-figure", FamiliesFigure)
    app.connect("html-page-context", dress_page)
