"""The Sphinx extension of the site: it ties equations and mistakes to their tests, and numbers by the chapter's slug.

When it is loaded it reads the ledger, refuses to build on a gap, and writes the generated pages. While Sphinx reads a
chapter it puts the number of the slug before the title, in equations, figures and exercises, prints the budget that the
chapter declares, and adds the links `checked by` and `refuted by`.
"""

import importlib
import os
import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from course.chapters import SLUG
from course.site import families
from course.site.building import DRAFT
from course.site.docstrings import to_rst
from course.site.evidence import Evidence, Ledger, read_ledger
from course.site.homework import homework_page
from course.site.pages import box_label, index_label, write_pages

logger = logging.getLogger(__name__)
FOLDER = "notebooks/"
OPENING = re.compile(r"[(\[“‘]+$")
CLOSING = re.compile(r"^[-–]?[.,;:!?)\]’”]+|^-\w+")  # a comma, a closing bracket, the rest of "$n$-th"
SHOWN = 2  # tests named under an equation; more are counted, with a link to the index
REPOSITORY_OPTIONS = ("launch_buttons", "repository_url", "repository_branch", "path_to_docs")


def setup(app: Sphinx) -> dict[str, bool]:
    """Reads the evidence, writes the generated pages and connects the rest."""
    root = Path(app.srcdir)
    ledger = read_ledger(root)
    refuse_gaps(ledger)
    write_pages(root, ledger, {"homework.md": homework_page(root)})
    app.add_transform(chapter_transform(ledger))
    app.connect("config-inited", offer_launch_buttons)
    app.connect("env-get-updated", number_by_chapter, priority=900)  # after Sphinx has counted
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon
    app.connect("missing-reference", follow_export)
    app.connect("html-page-context", describe_page)
    families.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def refuse_gaps(ledger: Ledger) -> None:
    """Stops the build where something is not proved; a draft only says so."""
    problems = ledger.problems()
    if problems and not os.environ.get(DRAFT):
        raise ExtensionError("the evidence of the course has gaps:\n  " + "\n  ".join(problems))


def slug_of(docname: str) -> str | None:
    """The slug of a chapter's page, None for any other page."""
    slug = docname.removeprefix(FOLDER)
    return slug if docname.startswith(FOLDER) and SLUG.fullmatch(slug) else None


def chapter_transform(ledger: Ledger) -> type[SphinxTransform]:
    """Returns the transform that dresses the chapters with the evidence of `ledger`."""

    class ChapterTransform(SphinxTransform):
        """Numbers, budget and links of one chapter; runs before Sphinx collects titles and labels."""

        default_priority = 700

        def apply(self, **_: object) -> None:
            keep_punctuation(self.document)
            slug = slug_of(self.env.docname)
            if slug is None:
                return
            number_title(self.document, slug)
            number_equations(self.document, self.env, slug)
            print_budget(self.document, self.env, Path(self.env.srcdir) / FOLDER / f"{slug}.md")
            link_homework(self.document, self.env.docname, slug, Path(self.env.srcdir))
            link_equations(self.document, self.env.docname, ledger)
            link_mistakes(self.document, self.env.docname, slug, ledger)

    return ChapterTransform


def keep_punctuation(document: nodes.document) -> None:
    """Ties a formula to the punctuation around it: browsers would break the line between the two."""
    for math in list(document.findall(nodes.math)):
        group = nodes.inline(classes=["keep"])
        before, after = math.previous_sibling(), math.next_node(descend=False, siblings=True)
        opening = OPENING.search(before) if isinstance(before, nodes.Text) else None
        closing = CLOSING.match(after) if isinstance(after, nodes.Text) else None
        if not opening and not closing:
            continue
        math.replace_self(group)
        group += math
        if opening:
            group.insert(0, nodes.Text(opening[0]))
            before.parent.replace(before, nodes.Text(before[: opening.start()]))
        if closing:
            group += nodes.Text(closing[0])
            after.parent.replace(after, nodes.Text(after[closing.end() :]))


def number_title(document: nodes.document, slug: str) -> None:
    """Puts the number of the slug before the chapter's title, on the page and in the navigation."""
    title = next(document.findall(nodes.title), None)
    if title is not None:
        title.insert(0, [nodes.inline("", slug[:2], classes=["chapter-number"]), nodes.Text(" ")])


def number_equations(document: nodes.document, env: BuildEnvironment, slug: str) -> None:
    """Numbers the labelled equations (12.1), (12.2) … by the slug, for the page and for every reference."""
    equations = env.get_domain("math").equations  # type: ignore[attr-defined]
    labelled = (node for node in document.findall(nodes.math_block) if node.get("label") in equations)
    for count, node in enumerate(labelled, 1):
        node["number"] = f"{int(slug[:2])}.{count}"
        equations[node["label"]] = (env.docname, node["number"])


def print_budget(document: nodes.document, env: BuildEnvironment, source: Path) -> None:
    """Prints under the title what the front matter declares: time, memory, what the reader needs."""
    if not source.is_file():
        return
    env.note_dependency(str(source))
    budget = front_matter(source.read_text(encoding="utf-8")).get("companion") or {}
    facts = []
    if "minutes" in budget:
        facts.append(("reading", f"{budget['minutes']} minutes to read and do"))
    if "seconds" in budget:
        memory = f" and {budget['memory_gb']:g} GB" if "memory_gb" in budget else ""
        facts.append(("running", f"runs in {budget['seconds']} s{memory} on two cores"))
    if budget.get("needs"):
        facts.append(("needs", f"needs {', '.join(map(str, budget['needs']))}"))
    title = next(document.findall(nodes.title), None)
    if facts and title is not None:
        line = nodes.paragraph(classes=["budget"])
        for kind, fact in facts:
            line += [nodes.inline("", fact, classes=[f"budget-{kind}"]), nodes.Text(" ")]
        title.parent.insert(title.parent.index(title) + 1, line)


def link_homework(document: nodes.document, docname: str, slug: str, root: Path) -> None:
    """Ends the budget's line with a link to the chapter's homework, where there is one."""
    line = next((line for line in document.findall(nodes.paragraph) if "budget" in line["classes"]), None)
    if line is not None and (root / "homework" / slug / "assignment.md").is_file():
        line += nodes.inline("", "", reference("homework", f"homework-{slug}", docname), classes=["budget-homework"])


def front_matter(text: str) -> dict:
    """The YAML block at the head of a chapter; empty where there is none."""
    parts = text.split("---\n", 2)
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0].strip() else {}


def link_equations(document: nodes.document, docname: str, ledger: Ledger) -> None:
    """Adds `checked by …` under every labelled equation that has a test."""
    for node in list(document.findall(nodes.math_block)):
        tests = ledger.checks.get(node.get("label") or "", ())
        if tests:
            line = evidence_line("Checked by", tests, docname, index_label(node["label"]))
            node.parent.insert(node.parent.index(node) + 1, line)


def link_mistakes(document: nodes.document, docname: str, slug: str, ledger: Ledger) -> None:
    """Gives every mistake box a label and ends it with `refuted by …`."""
    numbers = {mistake.number.lower(): mistake.number for mistake in ledger.mistakes}
    for box in document.findall(nodes.Admonition):
        if "mistake" not in box.get("classes", []):
            continue
        for number in [numbers[name] for name in box["classes"] if name in numbers]:
            box["names"].append(box_label(number, slug))
            document.note_explicit_target(box)
            tests = ledger.checks.get(number, ())
            if tests:
                box += evidence_line("Refuted by", tests, docname, f"mistake-{number.lower()}")


def evidence_line(verb: str, tests: tuple[Evidence, ...], docname: str, more: str) -> nodes.paragraph:
    """A discreet line of links to tests; beyond `SHOWN` it counts them and links to `more`."""
    line = nodes.paragraph(classes=["evidence"])
    line += nodes.Text(f"{verb} ")
    for index, test in enumerate(tests[:SHOWN]):
        line += [*([nodes.Text("; ")] if index else []), reference(test.title.lower(), test.anchor, docname)]
    if len(tests) > SHOWN:
        line += [nodes.Text("; and "), reference(f"{len(tests) - SHOWN} more", more, docname)]
    return line


def reference(text: str, label: str, docname: str) -> addnodes.pending_xref:
    """A link with the words `text` to a label of any page."""
    attributes = {"refdomain": "std", "reftype": "ref", "reftarget": label, "refdoc": docname}
    return addnodes.pending_xref("", nodes.inline("", text), refexplicit=True, refwarn=True, **attributes)


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Numbers figures, tables and exercises by chapter: Fig. 12.3, Exercise 12.1."""
    for docname, kinds in env.toc_fignumbers.items():
        slug = slug_of(docname)
        if slug is not None:
            for kind, numbers in kinds.items():
                kinds[kind] = {name: (int(slug[:2]), count) for count, name in enumerate(numbers, 1)}
    return []


def offer_launch_buttons(app: Sphinx, config: Config) -> None:
    """Binder, Colab and repository buttons appear with the address of the repository, and only then."""
    options = config.html_theme_options
    known = bool(options.get("repository_url"))
    options.update(use_repository_button=known, use_issues_button=known)
    if not known:
        for name in REPOSITORY_OPTIONS:
            options.pop(name, None)


def plain_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Makes reStructuredText of the plain docstrings of `companion`."""
    lines[:] = to_rst(lines)


def follow_export(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Resolves a name by which a package exports a class to the module that defines it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("companion."):
        return None
    module, _, name = target.rpartition(".")
    try:
        exported = getattr(importlib.import_module(module), name)
        home = f"{exported.__module__}.{exported.__qualname__}"
    except (ImportError, AttributeError):
        return None
    if home == target:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, contnode)


def describe_page(app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Gives each page a description: the first paragraph of its text."""
    if doctree is not None and "description" not in (context.get("meta") or {}):
        paragraphs = (p for p in doctree.findall(nodes.paragraph) if "budget" not in p["classes"])
        text = " ".join(next((p.astext() for p in paragraphs), "").split())
        if text:
            words = text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"
            tag = f'<meta name="description" content="{attribute(words)}" />\n'
            context["metatags"] = context.get("metatags", "") + tag


def attribute(text: str) -> str:
    """Text as the value of an HTML attribute."""
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
