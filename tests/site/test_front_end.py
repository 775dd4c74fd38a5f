"""The front end of live figures on a page of its own: what no chapter's figure can be made to do on purpose."""

import json
import pathlib
import runpy
import shutil

import pytest
import torch
from ipywidgets.embed import embed_data

from companion.live import exporting

ROOT = pathlib.Path(__file__).parents[2]
DEMO = runpy.run_path(str(ROOT / "tests" / "live" / "demo.py"))
FIGURES = ("wave", "sampler", "painter")
SETTLE = """async view => {
    await view.liveFigure.settle();
    for (let i = 0; i < 3; i++) await new Promise((done) => requestAnimationFrame(done));
}"""
TARGETS = "button:visible, input:visible, select:visible, label:has(input:visible), .live-cell"
PICTURE = "view => [...view.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL()).join('|')"
OUTPUTS = "view => Object.fromEntries(Object.entries(view.liveFigure.outputs).map(([k, { data }]) => [k, [...data]]))"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>Demonstration</title><style>
body {{ margin: 0 auto; max-width: 800px; background: #fff; color: #222 }}
html[data-theme=dark] body {{ background: #14181e; color: #ddd }} .space {{ height: {space}px }}</style>
<main><h1>Demonstration</h1><div class="space"></div>{views}</main>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>
<script type="module" src="_static/live-host.js"></script></html>"""


@pytest.fixture(scope="module")
def demo_url(tmp_path_factory, serve, site):
    """The address of a small site: the exported demonstration figures, the host script and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("demo")
    figures = [DEMO[name]() for name in FIGURES]
    for figure in figures:
        exporting.export(figure, folder / "_static" / "live")
    shutil.copy(ROOT / "book" / "_static" / "live-host.js", folder / "_static")
    shutil.copytree(site / "_static" / "vendor" / "onnxruntime-web", folder / "_static" / "vendor" / "onnxruntime-web")
    data = embed_data(views=figures, drop_defaults=False)
    tag = '<script type="application/vnd.jupyter.widget-view+json">{}</script>'
    views = "".join(tag.format(json.dumps(view)) for view in data["view_specs"])
    for name, space in (("index", 0), ("far", 5000)):
        text = PAGE.format(views=views, state=json.dumps(data["manager_state"]), space=space)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return serve(folder)


@pytest.fixture
def open_demo(page, demo_url):
    """`open_demo(path)` opens the demonstration and returns its page; `page.fetched` lists what was asked for."""
    page.fetched = []
    page.on("request", lambda request: page.fetched.append(request.url.removeprefix(demo_url)))

    def visit(path="index.html"):
        page.goto(f"{demo_url}{path}")
        return page

    return visit


def figure(page, name, wait=True):
    """The element of one figure, scrolled into view; with `wait` once it has its first picture."""
    view = page.locator(f'[data-figure="demo-{name}"]')
    view.wait_for(state="attached")
    view.scroll_into_view_if_needed()
    if wait:
        view.evaluate("view => Promise.race([view.liveFigure.ready, new Promise((_, no) => setTimeout(no, 30000))])")
        view.evaluate(SETTLE)
    return view


def test_the_engine_is_loaded_only_when_a_figure_comes_into_view(open_demo):
    """Far below the fold nothing is fetched; scrolling there fetches ONNX Runtime and that figure's graph."""
    page = open_demo("far.html")
    page.locator(".live-figure").first.wait_for(state="attached")
    page.wait_for_timeout(300)
    assert not [path for path in page.fetched if "onnx" in path]
    figure(page, "wave")
    assert {"_static/live/demo-wave/evaluate.onnx"} <= set(page.fetched)
    assert [path for path in page.fetched if path.endswith("ort.wasm.min.mjs")]


@pytest.mark.parametrize("name", FIGURES)
def test_numbers_equal_torchs(open_demo, name):
    """All figures share one page and one WebAssembly instance; their outputs are torch's, trails of steps included."""
    view = figure(open_demo(), name)
    outputs = view.evaluate(OUTPUTS)
    for key, expected in DEMO[name]().compute().items():
        torch.testing.assert_close(torch.tensor(outputs[key]), expected.flatten(), rtol=1e-5, atol=1e-5)


def test_evaluate_answers_any_inputs(open_demo):
    """The handle for tests takes numbers and nested lists, beside the figure's own values."""
    view = figure(open_demo(), "wave")
    peak = view.evaluate(
        "view => view.liveFigure.evaluate('evaluate', {a: -2, p: [0, 0]}).then((o) => [...o.peak.data])"
    )
    assert peak == pytest.approx([DEMO["wave"]().compute(a=-2)["peak"].item()], rel=1e-6)


def test_the_latest_of_many_quick_values_is_shown(open_demo):
    """Forty values in one go: the picture ends at the last one."""
    view = figure(open_demo(), "sampler")
    view.evaluate("view => { for (let n = 1; n <= 40; n++) view.liveFigure.set('steps', n); }")
    view.evaluate(SETTLE)
    assert view.evaluate("view => view.liveFigure.shown.steps") == 40
    expected = DEMO["sampler"]().compute(steps=40)["x"].flatten()
    torch.testing.assert_close(torch.tensor(view.evaluate(OUTPUTS)["x"]), expected, rtol=1e-4, atol=1e-4)


def test_a_toggle_of_a_mark_asks_no_engine(open_demo):
    """Showing trails redraws and computes nothing: the outputs stay the very same arrays."""
    view = figure(open_demo(), "sampler")
    before = view.evaluate(PICTURE)
    view.evaluate("view => { window.kept = view.liveFigure.outputs.x; }")
    view.locator('[data-control="trails"] input').press("Space")
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) != before
    assert view.evaluate("view => window.kept === view.liveFigure.outputs.x")


def test_the_mouse_drags_a_point(open_demo):
    """A press on the picture takes the point along; its value, description and picture follow, inside the axes."""
    page = open_demo()
    view = figure(page, "wave")
    box = view.locator(".live-handle").bounding_box()
    page.mouse.move(box["x"] + 14, box["y"] + 14)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, box["y"] + 40, steps=4)
    page.mouse.up()
    view.evaluate(SETTLE)
    x, y = view.evaluate("view => view.liveFigure.shown.p")
    assert x > 0.6
    assert y < 0.4
    assert f"({x:.2f}," in view.locator(".live-unseen").text_content()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, 5000)
    page.mouse.up()
    view.evaluate(SETTLE)
    assert view.evaluate("view => view.liveFigure.shown.p")[1] == -2


def test_the_scrubber_goes_back_to_the_start(open_demo):
    """At step 0 the drawn state is the noise; Play runs to the end again."""
    page = open_demo()
    view = figure(page, "sampler")
    last = view.evaluate(PICTURE)
    view.locator("[data-scrub] input").press("Home")
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) != last
    assert "0 of 10" in view.locator("[data-scrub]").inner_text()
    view.locator(".live-play").press("Enter")
    page.wait_for_function("!document.querySelector('.live-play').textContent.includes('Pause')")
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) == last


def test_reduced_motion_offers_no_player(open_demo, page):
    """The steps can still be walked with the slider."""
    page.emulate_media(reduced_motion="reduce")
    view = figure(open_demo(), "sampler")
    assert not view.locator(".live-play").is_visible()
    assert view.locator("[data-scrub] input").is_visible()


def test_a_missing_graph_is_told_in_the_figure(open_demo, page):
    """The status names the file, and the other figure of the page lives on."""
    page.route("**/demo-wave/*.onnx", lambda route: route.fulfill(status=404, body=""))
    view = figure(open_demo(), "wave", wait=False)
    view.locator('[role="status"][data-state="error"]').wait_for()
    assert "demo-wave/evaluate.onnx is missing (404)" in view.locator('[role="status"]').inner_text()
    assert figure(page, "sampler").evaluate("view => view.liveFigure.failed") is None


def test_a_browser_without_webassembly_is_told_so(open_demo, page):
    """The figure says what is missing instead of staying blank."""
    page.add_init_script("delete window.WebAssembly")
    view = figure(open_demo(), "wave", wait=False)
    view.locator('[role="status"][data-state="error"]').wait_for()
    assert "no WebAssembly" in view.locator('[role="status"]').inner_text()


def test_the_theme_of_the_page_is_followed(open_demo):
    """Switching to dark redraws with other colors; switching back gives the same picture."""
    page = open_demo()
    view = figure(page, "wave")
    light = view.evaluate(PICTURE)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) != light
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) == light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_demo, axe, theme):
    """WCAG 2.2 AA and axe's best practices, in both themes, with every kind of control on the page."""
    page = open_demo()
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    for name in FIGURES:
        figure(page, name)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document).then((result) => result.violations.map((v) => [v.id, v.nodes[0].html]))")
    assert found == []


def test_every_target_is_large_enough_for_a_finger(open_demo, page):
    """WCAG 2.2, 2.5.8: what is clicked measures at least 24 by 24 pixels, at phone width."""
    page.set_viewport_size({"width": 390, "height": 844})
    open_demo()
    for name in FIGURES:
        for target in figure(page, name).locator(TARGETS).all():
            if target.evaluate("t => t.matches('[type=checkbox], [type=radio]')"):
                continue  # its label is the target
            box = target.bounding_box()
            assert min(box["width"], box["height"]) >= 24, target.evaluate("t => t.outerHTML")


def test_the_picture_is_announced_in_words(open_demo):
    """A canvas has a name and a description; the description holds present values; readouts are said once at rest."""
    page = open_demo()
    view = figure(page, "wave")
    canvas = view.locator("canvas").first
    assert canvas.get_attribute("role") == "img"
    assert canvas.get_attribute("aria-label") == "A wave and a bump: Wave"
    view.locator('[data-control="a"] input').press("Home")
    view.evaluate(SETTLE)
    words = page.locator(f'[id="{canvas.get_attribute("aria-describedby")}"]').text_content()
    assert words.startswith("The sine of amplitude −2.0 reaches 2.00")
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('largest |y|: 2.00')")


def test_reset_restores_the_first_picture(open_demo):
    """Every control goes back, points included."""
    view = figure(open_demo(), "wave")
    first = view.evaluate(PICTURE)
    for name, value in {"a": -1.5, "shape": "step", "fill": False, "p": [-1, 1]}.items():
        view.evaluate("(view, [name, value]) => view.liveFigure.set(name, value)", [name, value])
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) != first
    view.locator(".live-reset").press("Enter")
    view.evaluate(SETTLE)
    assert view.evaluate(PICTURE) == first


# --- the mask ---------------------------------------------------------------------------------------------------------

MASK = "view => view.liveFigure.shown.mask"
SELECTED = """view => [...view.querySelectorAll('[role=row]')].map((row) =>
    [...row.children].map((cell) => cell.getAttribute('aria-selected') === 'true' ? '#' : '.').join(''))"""
FIRST_MASK = ["......", ".##...", ".##...", "......"]


def painted(view):
    """The mask once the picture belongs to it; what the figure computes with is what the grid shows."""
    view.evaluate(SETTLE)
    shown = view.evaluate(MASK)
    assert view.evaluate(SELECTED) == shown
    return shown


def middle(view, row, column):
    """Where a cell's middle lies on the page."""
    box = view.locator("[role=row]").nth(row).locator("[role=gridcell]").nth(column).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_stroke_of_the_mouse_paints_all_cells_that_it_crosses(open_demo):
    """The first cell decides: on a bare one the stroke sets, on a painted one it clears; a quick hand skips none."""
    page = open_demo()
    view = figure(page, "painter")
    assert painted(view) == FIRST_MASK
    page.mouse.move(*middle(view, 0, 0))
    page.mouse.down()
    page.mouse.move(*middle(view, 0, 5))  # in one leap, and back over the painted ones
    page.mouse.move(*middle(view, 0, 2))
    page.mouse.up()
    assert painted(view) == ["######", ".##...", ".##...", "......"]
    page.mouse.move(*middle(view, 2, 2))
    page.mouse.down()
    page.mouse.move(*middle(view, 0, 2))
    page.mouse.up()
    page.mouse.move(*middle(view, 3, 5))  # the button is up: nothing is painted
    assert painted(view) == ["##.###", ".#....", ".#....", "......"]
    assert "7 of 24 cells are painted" in view.locator('[data-control="mask"]').inner_text()
    expected = DEMO["painter"]().compute(mask=["##.###", ".#....", ".#....", "......"])["filled"].flatten()
    torch.testing.assert_close(torch.tensor(view.evaluate(OUTPUTS)["filled"]), expected)


def test_a_stroke_that_leaves_the_picture_paints_nothing_outside(open_demo):
    """Beyond the edge the hand draws on nothing; where it returns it paints again."""
    page = open_demo()
    view = figure(page, "painter")
    page.mouse.move(*middle(view, 1, 5))
    page.mouse.down()
    x, y = middle(view, 1, 5)
    page.mouse.move(x + 200, y)
    page.mouse.move(x + 200, middle(view, 3, 5)[1])
    page.mouse.move(*middle(view, 3, 5))
    page.mouse.up()
    assert painted(view) == ["......", ".##..#", ".##...", ".....#"]


def test_the_right_button_paints_nothing(open_demo):
    """It opens the browser's menu."""
    page = open_demo()
    view = figure(page, "painter")
    page.mouse.click(*middle(view, 0, 0), button="right")
    assert painted(view) == FIRST_MASK


def test_the_keyboard_paints(open_demo):
    """One stop; arrows move a visible cursor that stays inside; space toggles; shift with an arrow paints on."""
    view = figure(open_demo(), "painter")
    grid = view.locator("[data-paint]")
    assert view.locator("[data-paint], [data-paint] [tabindex]").count() == 1
    for key in ("ArrowUp", "ArrowLeft", "Space", "Shift+ArrowDown", "Shift+ArrowRight"):
        grid.press(key)
    assert painted(view) == ["#.....", "###...", ".##...", "......"]
    cursor = view.locator(f'[id="{grid.get_attribute("aria-activedescendant")}"]')
    assert cursor.get_attribute("aria-label") == "row 2, column 2"
    assert cursor.evaluate("cell => getComputedStyle(cell, '::after').borderTopWidth") == "2px"
    grid.press("Space")
    grid.press("Control+End")
    grid.press("Enter")
    assert painted(view) == ["#.....", "#.#...", ".##...", ".....#"]
    grid.press("Home")
    grid.press("ArrowLeft")
    grid.press("Space")
    assert painted(view) == ["#.....", "#.#...", ".##...", "#....#"]


def test_clear_and_reset_of_a_mask(open_demo):
    """Clear leaves nothing painted and Reset brings back the first mask; both are buttons."""
    view = figure(open_demo(), "painter")
    view.get_by_role("button", name="Clear: hide these pixels").press("Enter")
    assert painted(view) == ["......"] * 4
    assert view.locator("p.live-unseen").text_content().startswith("0 of 24 cells are painted: a part 0.0 of")
    view.locator(".live-reset").press("Enter")
    assert painted(view) == FIRST_MASK


def test_a_mask_from_another_view_is_adopted(open_demo):
    """Values set elsewhere appear in the grid, in the picture and in words that say where the cells lie."""
    view = figure(open_demo(), "painter")
    before = view.evaluate(PICTURE)
    view.evaluate("view => view.liveFigure.set('mask', ['......', '......', '....#.', '......'])")
    assert painted(view) == ["......", "......", "....#.", "......"]
    assert view.evaluate(PICTURE) != before
    words = view.locator("p.live-unseen").text_content()
    assert words.startswith("1 of 24 cells is painted, in row 3 and column 5: a part 0.042 of the picture")


def test_a_finger_paints_on_the_picture_and_scrolls_beside_it(new_page, demo_url):
    """A touch on the mask paints and the page stays; a swipe that begins beside it scrolls the page as ever."""
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(f"{demo_url}index.html")
    view = figure(page, "painter")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight - 1200)")
    view.locator("[data-paint]").scroll_into_view_if_needed()
    place = page.evaluate("window.scrollY")
    swipe(page, middle(view, 0, 0), middle(view, 3, 0))
    assert painted(view) == ["#.....", "###...", "###...", "#....."]
    assert page.evaluate("window.scrollY") == place
    title = view.locator(".live-panel-title").first.bounding_box()
    swipe(page, (title["x"] + 20, title["y"] + 8), (title["x"] + 20, title["y"] - 120))
    page.wait_for_function("place => window.scrollY > place + 50", arg=place)
    assert painted(view) == ["#.....", "###...", "###...", "#....."]


def test_two_fingers_take_a_stroke_back(open_demo):
    """Zooming with two fingers cancels the pointer: what the first finger had painted on the way is undone."""
    page = open_demo()
    view = figure(page, "painter")
    page.mouse.move(*middle(view, 0, 0))
    page.mouse.down()
    page.mouse.move(*middle(view, 0, 3))
    view.locator("[data-paint]").dispatch_event("pointercancel")
    page.mouse.move(*middle(view, 3, 3))
    assert painted(view) == FIRST_MASK


def swipe(page, start, end):
    """One finger from start to end, as the screen reports it."""
    session = page.context.new_cdp_session(page)
    touch = lambda kind, *at: session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(at)})  # noqa: E731
    touch("touchStart", {"x": start[0], "y": start[1]})
    for k in range(1, 9):
        touch(
            "touchMove", *[{"x": start[0] + (end[0] - start[0]) * k / 8, "y": start[1] + (end[1] - start[1]) * k / 8}]
        )
    touch("touchEnd")
