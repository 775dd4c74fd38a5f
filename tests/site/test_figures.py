"""The live figures of every chapter's built page: no kernel, no other host, each control by keyboard, torch's numbers.

A figure's numbers on the page come from ONNX Runtime Web. They are compared with torch's answers that were written when
the chapter was executed (reference.json), and, where the figure needs no trained network, with torch asked afresh.
"""

import importlib
import inspect
import json
import math
import pathlib
import pkgutil
import re

import pytest

import companion.live

ROOT = pathlib.Path(__file__).parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]-*.md"))
OTHER_HOSTS = re.compile(r"^(https?|wss?)://(?!127\.0\.0\.1[:/])")
TOLERANCE = 1e-3  # of an output's size, at the end of a whole repetition in float32; one call agrees to 1e-5
PATIENCE = 60_000  # ms, for the first load of the engine on a busy machine

OUTPUTS = """view => Object.fromEntries(Object.entries(view.liveFigure.outputs).map(
    ([name, { shape, data }]) => [name, { shape, data: [...data].map((v) => Number.isFinite(v) ? v : String(v)) }]))"""
PICTURE = """view => [...view.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL()).join('|')
    + [...view.querySelectorAll('dd')].map((cell) => cell.textContent).join('|')
    + [...view.querySelectorAll('.live-handle')].map((handle) => handle.getAttribute('style')).join('|')"""
SETTLE = """async view => {
    await view.liveFigure.settle();
    for (let i = 0; i < 3; i++) await new Promise((done) => requestAnimationFrame(done));
}"""


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request, browser, site_url):
    """One chapter's page with all its figures computed; `blocked` and `errors` list what should not have happened."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.blocked, page.errors = [], []
    context.route(OTHER_HOSTS, lambda route: (page.blocked.append(route.request.url), route.abort()))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda problem: page.errors.append(str(problem)))
    address = f"{site_url}notebooks/{request.param}.html"
    assert page.goto(address).ok, address
    page.locator(".live-figure").first.wait_for(state="attached", timeout=PATIENCE)
    for view in page.locator(".live-figure").all():
        computed(view)
    yield page
    context.close()


@pytest.fixture
def figures(chapter):
    """All live figures of the page, at their first values."""
    views = chapter.locator(".live-figure").all()
    for view in views:
        view.locator(".live-reset").press("Enter")
        view.evaluate(SETTLE)
    return views


def test_each_figure_computes_without_a_kernel(figures, chapter):
    """Every figure of the page is computed by ONNX Runtime from the site's own files, without a word in the console."""
    assert figures
    for view in figures:
        assert view.evaluate("view => view.liveFigure.failed") is None
        assert "ONNX Runtime" in view.evaluate("view => view.liveFigure.engine")
    assert chapter.blocked == []
    assert chapter.errors == []


def test_each_control_moves_its_figure_by_keyboard(figures):
    """Each control is reached by focus alone, answers a key, changes the picture or a number, and can be reset."""
    for view in figures:
        first = view.evaluate(PICTURE)
        for control in view.locator("[data-control], [data-scrub]").all():
            name = control.get_attribute("data-control") or "shown step"
            for target, key in keyboard(control):
                before = view.evaluate(PICTURE)
                target.press(key)
                view.evaluate(SETTLE)
                where = (view.get_attribute("data-figure"), name, key)
                assert view.evaluate("view => view.liveFigure.failed") is None, where
                assert view.evaluate(PICTURE) != before, where
            view.locator(".live-reset").press("Enter")
            view.evaluate(SETTLE)
        assert view.evaluate(PICTURE) == first


def test_each_handle_moves_its_point_by_arrow_keys(figures):
    """A point that can be dragged can be moved by the arrow keys on its handle, too."""
    for view in figures:
        for handle in view.locator(".live-handle").all():
            before = view.evaluate(PICTURE)
            handle.press("Shift+ArrowLeft")
            handle.press("Shift+ArrowUp")
            view.evaluate(SETTLE)
            assert view.evaluate(PICTURE) != before, handle.get_attribute("data-handle")


def test_the_pages_numbers_are_those_torch_wrote(figures):
    """At every setting of reference.json the page's last outputs are torch's, within 1e-3 of each output's size."""
    for view in figures:
        reference = json.loads(
            (ROOT / "book" / "_static" / "live" / view.get_attribute("data-figure") / "reference.json").read_text()
        )
        for case in reference["cases"]:
            outputs = outputs_at(view, case["values"])
            for name, expected in case["outputs"].items():
                assert outputs[name]["shape"] == expected["shape"]
                thinned = outputs[name]["data"][:: expected["stride"]]
                assert_close(thinned, expected["data"], (reference["figure"], name, case["values"]))


def test_closed_form_numbers_are_those_of_torch_now(figures):
    """Figures without a trained network are built here and asked anew, at a setting that no file holds."""
    definitions = closed_forms()
    for view in figures:
        figure = definitions.get(view.get_attribute("data-figure"))
        if figure is None:
            continue
        drawn = view.evaluate("view => view.liveFigure.spec")
        assert drawn == json.loads(json.dumps(figure.spec)), (
            f"{figure.name}: older than its definition; run the chapter"
        )
        values = off_default(figure)
        outputs = outputs_at(view, values)
        for name, expected in figure.compute(**values).items():
            assert outputs[name]["shape"] == list(expected.shape)
            assert_close(outputs[name]["data"], expected.flatten().tolist(), (figure.name, name, values))


def test_the_text_alternative_follows_the_controls(figures):
    """The description that screen readers are given is complete and is rewritten when a value changes."""
    for view in figures:
        words = view.locator("p.live-unseen")
        before = words.text_content()
        assert "{" not in before
        assert "undefined" not in before
        control = view.locator("[data-control]").first
        target, key = keyboard(control)[0]
        target.press(key)
        view.evaluate(SETTLE)
        assert words.text_content() != before


def test_no_figure_is_wider_than_a_phone(figures, chapter):
    """At 390 pixels neither the page nor a figure scrolls sideways."""
    chapter.set_viewport_size({"width": 390, "height": 844})
    for view in figures:
        view.scroll_into_view_if_needed()
        view.evaluate(SETTLE)
        assert view.evaluate("view => view.scrollWidth - view.clientWidth") <= 0, view.get_attribute("data-figure")
        assert view.evaluate("view => view.getBoundingClientRect().right") <= 390
    assert chapter.evaluate("document.documentElement.scrollWidth") <= 390
    chapter.set_viewport_size({"width": 1280, "height": 900})


def computed(view):
    """Scroll to a figure and wait for its first picture."""
    view.scroll_into_view_if_needed()
    wait = """view => Promise.race([view.liveFigure.ready, new Promise((_, fail) =>
        setTimeout(() => fail(new Error(view.liveFigure.failed ?? 'no picture')), PATIENCE))])"""
    view.evaluate(wait.replace("PATIENCE", str(PATIENCE)))
    view.evaluate(SETTLE)


def keyboard(control):
    """The inputs of one control and the keys that must change something: [(input, key)]."""
    mask = f'[data-paint="{control.get_attribute("data-control")}"]'
    if "live-paint" in control.get_attribute("class"):
        return [(control.locator("xpath=ancestor::section").locator(mask), "Space")]
    ranges = control.locator("input[type=range]").all()
    if ranges:
        lowest = [box.evaluate("box => box.value === box.min") for box in ranges]
        orders = [("End", "Home") if low else ("Home", "End") for low in lowest]
        return [(box, key) for box, keys in zip(ranges, orders, strict=True) for key in keys]
    if control.locator("select").count():
        select = control.locator("select")
        last = select.evaluate("box => box.selectedIndex === box.options.length - 1")
        return [(select, "ArrowUp" if last else "ArrowDown")]
    if control.locator("input[type=radio]").count():
        return [(control.locator("input[type=radio]:checked"), "ArrowRight")]
    return [(control.locator("input[type=checkbox]"), "Space")]


def outputs_at(view, values):
    """Set every control at once and return the last outputs."""
    view.evaluate(
        "(view, values) => { for (const [name, value] of Object.entries(values)) view.liveFigure.set(name, value); }",
        values,
    )
    view.evaluate(SETTLE)
    assert view.evaluate("view => view.liveFigure.failed") is None
    return view.evaluate(OUTPUTS)


def assert_close(numbers, expected, where):
    """Equal within TOLERANCE of the expected numbers' size; what is not finite stands in the same places."""
    finite = [value for value in expected if value is not None and math.isfinite(value)]
    size = 1 + max(map(abs, finite), default=0.0)
    for number, truth in zip(numbers, expected, strict=True):
        if truth is None or not math.isfinite(truth):
            assert isinstance(number, str), where
        else:
            assert abs(number - truth) <= TOLERANCE * size, (*where, number, truth)


def closed_forms():
    """name -> figure, for each public function of companion.live that returns a LiveFigure and needs no argument."""
    figures = {}
    for found in pkgutil.iter_modules(companion.live.__path__):
        module = importlib.import_module(f"companion.live.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            signature = inspect.signature(function)
            needed = [p for p in signature.parameters.values() if p.default is inspect.Parameter.empty]
            returns = signature.return_annotation in (companion.live.LiveFigure, "LiveFigure")
            if function.__module__ == module.__name__ and returns and not needed and not name.startswith("_"):
                figure = function()
                figures[figure.name] = figure
    return figures


def off_default(figure):
    """Values between the references: sliders at about two thirds, points off center, the last option of each choice,
    every third cell of a mask."""
    values = {}
    for name, control in figure.controls.items():
        if hasattr(control, "low"):
            steps = math.floor(0.66 * (control.high - control.low) / control.step)
            values[name] = round(control.low + steps * control.step, 9)
        elif hasattr(control, "options"):
            values[name] = list(control.options)[-1]
        elif isinstance(control.value, bool):
            values[name] = control.value
        elif hasattr(control, "rows"):
            values[name] = [
                "".join(".#"[(2 * i + j) % 3 == 0] for j in range(control.columns)) for i in range(control.rows)
            ]
        else:
            (x0, x1), (y0, y1) = figure.panels[control.panel].x, figure.panels[control.panel].y
            values[name] = [x0 + 0.4 * (x1 - x0), y0 + 0.7 * (y1 - y0)]
    return values
