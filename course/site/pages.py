"""The pages that nobody writes by hand: equations, refuted mistakes, the evidence of each chapter, the reference.

They are MyST text under `book/_generated`, made from the ledger and from the folders of `companion` before Sphinx reads
anything.
"""

import ast
import re
from pathlib import Path

from course.files import write_atomic
from course.site.evidence import Equation, Evidence, Ledger, Mistake


def generated_folder(root: Path) -> Path:
    """Where the generated pages stand; git ignores it."""
    return root / "book" / "_generated"


def write_pages(root: Path, ledger: Ledger, others: dict[str, str] | None = None) -> None:
    """Writes every generated page, `others` too, and removes those that no chapter asks for any more."""
    pages = {"equations.md": equations_page(ledger), "mistakes.md": mistakes_page(ledger)} | (others or {})
    pages |= {f"evidence/{chapter.slug}.md": evidence_page(ledger, chapter.slug) for chapter in ledger.chapters}
    folder = generated_folder(root)
    pages |= reference_pages(root / "companion")
    for name, text in pages.items():
        write_atomic(folder / name, text)
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()


def chapter_title(ledger: Ledger, slug: str) -> str:
    """`12 Flow matching`: the number of the slug and the first heading of the text."""
    source = next(chapter.source for chapter in ledger.chapters if chapter.slug == slug)
    headings = (line[2:] for line in source.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return f"{slug[:2]} {next(headings, slug[3:])}".strip()


def reference_pages(package: Path) -> dict[str, str]:
    """One page for each public module or package of `companion`, by the name of its file."""
    parts = sorted(path for path in package.iterdir() if is_public(path))
    return {f"api/{path.stem}.md": reference_page(path, f"companion.{path.stem}") for path in parts}


def is_public(path: Path) -> bool:
    """Whether `path` is a public module, or a package with something in it."""
    if path.name.startswith(("_", ".")):
        return False
    return path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file())


def reference_page(path: Path, name: str) -> str:
    """The reference of one module, or of a package with its modules."""
    modules = sorted(module for module in path.glob("*.py") if is_public(module)) if path.is_dir() else []
    blocks = [automodule(name, members=not modules)]
    if modules:
        exported = exports(path / "__init__.py")
        if exported:
            blocks.append(f"```{{code-block}} python\n:class: no-copy\nfrom {name} import {', '.join(exported)}\n```")
        blocks += [f"## {name}.{module.stem}\n\n{automodule(f'{name}.{module.stem}')}" for module in modules]
    return document(name, f"api-{name.rpartition('.')[2]}", *blocks)


def automodule(name: str, *, members: bool = True) -> str:
    """The docstring of a module, with those of its public members."""
    options = "\n   :members:" if members else ""
    return f"```{{eval-rst}}\n.. automodule:: {name}{options}\n```"


def exports(path: Path) -> list[str]:
    """The names in `__all__` of a package, read without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)]
    return []


def evidence_label(slug: str) -> str:
    """The label of a chapter's evidence page."""
    return f"evidence-{slug}"


def box_label(number: str, slug: str) -> str:
    """The label of a mistake's box in a chapter."""
    return f"mistake-{number.lower()}-{slug[:2]}"


def index_label(equation: str) -> str:
    """The label of an equation in the index of equations."""
    return f"index-{equation}"


def links(tests: tuple[Evidence, ...]) -> str:
    """One link a test; several make a list."""
    shown = [f"{{ref}}`{test.title} <{test.anchor}>`" for test in tests]
    return "\n".join(f"- {link}" for link in shown) if len(shown) > 1 else "".join(shown) or "*no test yet*"


def document(title: str, label: str, *blocks: str) -> str:
    """A MyST page of `blocks` under a labelled title."""
    return "\n\n".join([f"({label})=\n# {title}", *blocks]) + "\n"


def equations_page(ledger: Ledger) -> str:
    """Every labelled equation, where it stands and what checks it."""
    blocks = [
        "Every displayed equation of the course that claims something has a number, and at least one test that checks "
        "it against an independent fact: a closed form, an automatic derivative, a measured order of convergence, "
        "another library. A page whose equation has no test is not published."
    ]
    for chapter in ledger.chapters:
        mine = [equation for equation in ledger.equations if equation.chapter == chapter.slug]
        if mine:
            blocks += [f"## {chapter_title(ledger, chapter.slug)}", *(equation_entry(e, ledger) for e in mine)]
    return document("Equations and their tests", "equations-and-their-tests", *blocks)


def equation_entry(equation: Equation, ledger: Ledger) -> str:
    """One equation of the index."""
    tests = ledger.checks.get(equation.label, ())
    latex = "\n".join(line for line in equation.latex.splitlines() if line.strip())
    return (
        f"({index_label(equation.label)})=\n:::{{div}} index-entry\n$$\n{latex}\n$$\n\n"
        f"Equation {{eq}}`{equation.label}`, checked by\n\n{links(tests)}\n:::"
    )


def mistakes_page(ledger: Ledger) -> str:
    """Every mistake that a finished chapter refutes."""
    waiting = len(ledger.mistakes) - len(ledger.refuted)
    blocks = [
        "These statements circulate in notes on this material. Each is plausible, and each is wrong. A chapter shows "
        "how one gets there and which number betrays it. A test shows that the wrong form fails and the right one "
        "passes."
    ]
    blocks += [mistake_entry(mistake, ledger) for mistake in ledger.refuted]
    if waiting:
        blocks.append(f"*{waiting} more wait for their chapters.*")
    return document("Refuted mistakes", "refuted-mistakes", *blocks)


def mistake_entry(mistake: Mistake, ledger: Ledger) -> str:
    """One mistake: what is written, what holds, where it is shown, what refutes it."""
    boxes = [box for box in ledger.boxes if box.number == mistake.number]
    shown = ", ".join(
        f"{{ref}}`{chapter_title(ledger, box.chapter)} <{box_label(box.number, box.chapter)}>`" for box in boxes
    )
    return (
        f"(mistake-{mistake.number.lower()})=\n## {mistake.number} {mistake.title}\n\n"
        f"Often written\n: {mistake.wrong}\n\nWhat holds\n: {mistake.right}\n\n"
        f"Shown in\n: {shown or '*no chapter yet*'}\n\n"
        f"Refuted by\n: {indent(links(ledger.checks.get(mistake.number, ())))}"
    )


def indent(text: str) -> str:
    """Continues a definition: every line but the first is moved to the right."""
    return text.replace("\n", "\n  ")


def evidence_page(ledger: Ledger, slug: str) -> str:
    """The marked tests of one chapter: what each checks, the fact it uses, and its source."""
    title = chapter_title(ledger, slug)
    blocks = [
        f"The tests behind the equations and the mistakes of chapter {{ref}}`{title} <ch-{slug[3:]}>`, as they run in "
        "every check of the course. Each is there to fail when its equation does."
    ]
    tests = ledger.tests_of_chapter(slug)
    blocks += [evidence_entry(test, ledger) for test in tests] or ["*No test yet.*"]
    return document(f"Evidence for {title}", evidence_label(slug), *blocks)


def evidence_entry(test: Evidence, ledger: Ledger) -> str:
    """One test."""
    labels = {equation.label for equation in ledger.equations}
    numbers = {mistake.number for mistake in ledger.refuted}
    checked = [f"{{eq}}`{label}`" for label in test.verifies if label in labels]
    refuted = [f"{{ref}}`{number} <mistake-{number.lower()}>`" for number in test.refutes if number in numbers]
    claims = " and ".join(
        f"{verb} {listed(names)}" for verb, names in (("checks", checked), ("refutes", refuted)) if names
    )
    return (
        f"({test.anchor})=\n## {test.title}\n\n{claims[:1].upper()}{claims[1:]}.\n\n"
        f"{escape(test.docstring)}\n\n{{.place}}\n`{test.place}`\n\n`````{{code-block}} python\n{test.source}\n`````"
    )


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def escape(text: str) -> str:
    """Plain text as MyST: nothing in it is markup but code in backticks."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([\\*_|$<>\[\]{}])", r"\\\1", part) for i, part in enumerate(parts))
