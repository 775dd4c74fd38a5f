"""Grading by hand: nbgrader's page, offline, for one teaching folder.

    for_review(result, assignment)     the notebook that the page shows: answers, the judge's words, rubrics, flags
    start(folder)                      serves the page on this machine until it is stopped

The page is nbgrader's formgrader, changed from outside by what it lets one set; nothing in the installed package is
touched. What a student wrote must not run in it, and three walls see to that. The notebook is sanitised when it is
written. Its text is sanitised again when the page is made: Markdown without raw HTML, formulas as MathML (so MathJax is
not needed, and nothing is loaded from elsewhere). And the page's Content-Security-Policy lets only those scripts run
that stand in nbgrader's own templates, by a number that is new at each start, and lets the browser talk to nobody else.

Behind the page is as little as possible: no kernels, no terminals, no files, no extensions, no settings of the user's,
and of the formgrader only what manual grading needs. Its buttons to autograde would run students' code outside of the
sandbox, so they are gone.
"""

import base64
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import BaseLoader, ChoiceLoader, DictLoader, Environment
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from markupsafe import Markup
from nbformat import NotebookNode
from nbgrader.coursedir import CourseDirectory
from nbgrader.server_extensions.formgrader import apihandlers, handlers
from nbgrader.server_extensions.formgrader.formgrader import FormgradeExtension
from tornado import web
from traitlets.config import Config

from course.chapters import CourseError
from course.homework.cleaning import clean_markdown, clean_text, few_empty_lines
from course.homework.gradebook import Book
from course.homework.rendering import cells, markdown_html, name_of, outputs, source_of
from course.homework.results import Flag, Result, Score
from course.homework.sources import Assignment, Problem

TEMPLATES = Path(__file__).parent / "templates"
MARKS = ("schema_version", "grade_id", "grade", "solution", "locked", "task", "points")
MOST_OUTPUT = 20_000  # characters of one cell's text outputs

# ---------------------------------------------------------------------- the notebook that the page shows


def for_review(result: Result, assignment: Assignment) -> NotebookNode:
    """The notebook that a person grades by; everything from the student is made inert.

    Outputs are of two kinds only, text and PNG, and under each test stands what the judge said. Flags stand on top, and
    a rubric with the author's solution after each written answer: these are for graders, so the notebook is never given
    back.
    """
    scores = {score.name: score for score in result.tests}
    problems = {problem.name: problem for problem in assignment.problems}
    shown = [_flags(result.flags)]
    for index, cell in enumerate(cells(result.notebook)):
        copied = _copy(cell, index)
        if (score := scores.get(name_of(cell))) is not None and copied.cell_type == "code":
            copied.outputs = [nbformat.v4.new_output("stream", name="stdout", text=_verdict(score))]
        shown.append(copied)
        if (problem := problems.get(name_of(cell))) is not None and problem.written:
            shown.append(_rubric(problem))
    notebook = nbformat.v4.new_notebook(cells=shown)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    return notebook


def _copy(cell: dict[str, Any], index: int) -> NotebookNode:
    """One cell of a submission: its text, its name, and of its outputs what cannot act."""
    identity, name = str(cell.get("id", "")), name_of(cell)
    identity = identity if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity) else f"cell-{index}"
    if cell.get("cell_type") == "code":
        copied = nbformat.v4.new_code_cell(few_empty_lines(clean_text(source_of(cell))), id=identity)
        copied.outputs = list(_outputs(cell))
    else:
        copied = nbformat.v4.new_markdown_cell(clean_markdown(source_of(cell)), id=identity)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        marks = cell["metadata"]["nbgrader"]
        copied.metadata["nbgrader"] = {
            mark: marks[mark] for mark in MARKS if isinstance(marks.get(mark), int | float | str)
        }
    return copied


def _outputs(cell: dict[str, Any]) -> Iterable[NotebookNode]:
    left = MOST_OUTPUT
    for output in outputs(cell):
        if isinstance(output, bytes):
            picture = {"image/png": base64.b64encode(output).decode("ascii")}
            yield nbformat.v4.new_output("display_data", data=picture)
        elif output and left > 0:
            yield nbformat.v4.new_output("stream", name="stdout", text=clean_text(output[:left]))
            left -= len(output)


def _verdict(score: Score) -> str:
    return clean_text(f"{score.earned:g} of {score.points:g} points. {score.message}\n")


def _flags(flags: tuple[Flag, ...]) -> NotebookNode:
    """What a person should look at, as a block of code: the evidence comes from the student."""
    lines = [clean_text(str(flag)).replace("\n", " ⏎ ") for flag in flags]
    text = "**For graders: what was flagged**\n\n" + "\n".join(f"    {line}" for line in lines)
    return nbformat.v4.new_markdown_cell(text if lines else "**For graders:** nothing was flagged.", id="review-flags")


def _rubric(problem: Problem) -> NotebookNode:
    text = (
        f"**For graders: rubric, {problem.points:g} points**\n\n{problem.rubric}\n\n**Solution**\n\n{problem.solution}"
    )
    return nbformat.v4.new_markdown_cell(text, id=f"{problem.name[:55]}-rubric")


# ---------------------------------------------------------------------- the server


def start(root: Path, database: str, *, port: int = 8888, browser: bool = True, allow_root: bool = False) -> None:
    """Serves the page for the teaching folder `root` on 127.0.0.1, until Ctrl-C.

    Args:
        root: the teaching folder.
        database: the URL of its gradebook.
        port: the first one to try.
        browser: open the page in one.
        allow_root: serve as root too, which Jupyter's server refuses otherwise.

    Raises:
        CourseError: The folder is none, the gradebook cannot be opened, or root serves without `allow_root`.
    """
    if not root.is_dir():
        raise CourseError(f"review: received {root}, which is no folder; rule: a teaching folder")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and not allow_root:
        raise CourseError("review: received root as the user; rule: an ordinary user, or --allow-root in a container")
    with Book(database):  # makes the tables where there are none: nbgrader's way needs a command on PATH
        pass
    with tempfile.TemporaryDirectory(prefix="course-review-") as temporary:
        server = make_server(root, database, Path(temporary), port=port, browser=browser, allow_root=allow_root)
        server.start()


def make_server(root: Path, database: str, work: Path, *, port: int, browser: bool, allow_root: bool) -> "ReviewServer":
    """The server, ready to start; `work` is an empty folder for its own files."""
    empty = work / "files"
    empty.mkdir()
    nonce = secrets.token_urlsafe(18)
    config = Config()
    config.ServerApp.update(
        {
            "ip": "127.0.0.1",
            "port": port,
            "open_browser": browser,
            "use_redirect_file": False,
            "allow_root": allow_root,
            "root_dir": str(empty),
            "default_url": "/formgrader/gradebook",
            "answer_yes": True,
            "log_level": "WARN",
            "terminals_enabled": False,
            "tornado_settings": {"headers": headers(nonce), "course_nonce": nonce},
        }
    )
    config.CourseDirectory.update({"root": str(root.resolve()), "db_url": database})
    server = ReviewServer(config=config, config_dir=str(work), data_dir=str(work), runtime_dir=str(work))
    server.initialize(argv=[], find_extensions=False)
    return server


def headers(nonce: str) -> dict[str, str]:
    """Sent with every page: only nbgrader's own scripts run, and the browser talks to this server only."""
    policy = {
        "default-src": "'none'",
        "script-src": f"'nonce-{nonce}'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data:",
        "font-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{kind} {allowed}" for kind, allowed in policy.items()),
        "Referrer-Policy": "no-referrer",
    }


class ReviewServer(ServerApp):
    """Jupyter's server with nothing but a login and nbgrader's page for manual grading."""

    name = "course-review"
    default_services = ("auth",)

    def load_config_file(self, suppress_errors: bool = True) -> None:
        """Reads no settings of the user's."""

    def load_server_extensions(self) -> None:
        """Adds the formgrader, which is not found by name here, so that no other extension is."""
        formgrader = Formgrader(parent=self)
        formgrader.log = self.log
        formgrader.initialize([])
        formgrader.init_tornado_settings(self.web_app)
        formgrader.init_handlers(self.web_app)


class Formgrader(FormgradeExtension):
    """nbgrader's formgrader, of which only manual grading is left."""

    pages = (
        handlers.GradebookAssignmentsHandler,
        handlers.GradebookNotebooksHandler,
        handlers.GradebookNotebookSubmissionsHandler,
        handlers.SubmissionHandler,
        handlers.SubmissionNavigationHandler,
        apihandlers.StatusHandler,
        apihandlers.AssignmentCollectionHandler,
        apihandlers.NotebookCollectionHandler,
        apihandlers.SubmittedNotebookCollectionHandler,
        apihandlers.FlagSubmissionHandler,
        apihandlers.GradeCollectionHandler,
        apihandlers.GradeHandler,
        apihandlers.CommentCollectionHandler,
        apihandlers.CommentHandler,
    )
    url_prefix = "."

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        """Reads no settings: nbgrader's are Python, and would be run from the folder."""

    def initialize(self, argv: list[str] | None = None, root: str = "") -> None:
        """Sets up for the folder that the server was started with."""
        self.update_config(self.build_extra_config())
        self.coursedir = CourseDirectory(parent=self)

    def build_extra_config(self) -> Config:
        """How the page is made of a notebook."""
        config = super().build_extra_config()
        config.HTMLExporter.extra_template_basedirs = [str(TEMPLATES), handlers.template_path]
        config.HTMLExporter.filters = {"markdown2html": markdown2html}
        config.NbConvertBase.display_data_priority = ["image/png", "text/plain"]
        return config

    def init_tornado_settings(self, webapp: web.Application) -> None:
        """nbgrader's settings, its templates read through `Templates`."""
        super().init_tornado_settings(webapp)
        nonce = webapp.settings["course_nonce"]
        for environment in (webapp.settings["nbgrader_jinja2_env"], webapp.settings["nbgrader_exporter"].environment):
            _wrap(environment, nonce)

    def init_handlers(self, webapp: web.Application) -> None:
        """The addresses that manual grading needs; every other one below /formgrader is none."""
        known = [*handlers.default_handlers, *apihandlers.default_handlers]
        kept = [route for route in known if route[1] in self.pages]
        routes = [
            (r"/formgrader/?", web.RedirectHandler, {"url": "/formgrader/gradebook", "permanent": False}),
            (r"/formgrader/(review\.js)", web.StaticFileHandler, {"path": str(TEMPLATES)}),
            *kept,
            (r"/formgrader/static/(.*)", web.StaticFileHandler, {"path": handlers.static_path}),
            (r"/formgrader/.*", handlers.Template404),
        ]
        base = webapp.settings["base_url"]
        webapp.add_handlers(".*$", [(url_path_join(base, route[0]), *route[1:]) for route in routes])


def markdown2html(source: str) -> str:
    """In place of nbconvert's filter, which lets raw HTML through, and a text be drawn over what stands above it."""
    box = "overflow: auto hidden; padding: 0.4em 0"  # with room for letters that are taller than their line
    return str(Markup('<div style="{}">{}</div>').format(box, markdown_html(source)))


SIDEBAR = """{%- extends 'base.tpl' -%}
{%- block title -%}Manual grading{%- endblock -%}
{%- block sidebar -%}
<li role="presentation" class="active"><a href="{{ base_url }}/formgrader/gradebook">Manual grading</a></li>
{%- endblock -%}
"""


def _wrap(environment: Environment, nonce: str) -> None:
    ours = DictLoader({"gradebook_base.tpl": SIDEBAR})
    environment.loader = Templates(ChoiceLoader([ours, environment.loader]), nonce)


# a submission's name on its page opens it in a server of notebooks; there is none behind this page
NOTEBOOK_LINK = re.compile(r'title="Open live notebook"\s+data-link="[^"]*"')


class Templates(BaseLoader):
    """Templates as another loader finds them, each script that stands in one marked as the page's own.

    Only what stands in a template is marked, for that happens before anything is filled in. No notebook is opened from
    one: a name that would do so is a name only.
    """

    def __init__(self, loader: BaseLoader, nonce: str):
        self.loader, self.nonce = loader, nonce

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Callable[[], bool] | None]:
        """The template's text."""
        source, path, is_current = self.loader.get_source(environment, template)
        if template == "base.tpl":
            script = '<script src="/formgrader/review.js"></script>'
            source = source.replace("{%- block head -%}", script + "\n{%- block head -%}", 1)
        source = NOTEBOOK_LINK.sub("", source)
        return re.sub(r"<script\b", f'<script nonce="{self.nonce}"', source), path, is_current
