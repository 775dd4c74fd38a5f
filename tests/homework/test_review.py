"""Grading by hand: the page shows what a person needs, reaches nobody, runs nothing of a student's, keeps scores."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
from nbformat.v4 import new_output
from nbgrader.api import Gradebook

from course.chapters import CourseError
from course.homework import review
from course.homework.gradebook import Book
from course.homework.results import Flag
from course.homework.roster import Roster, Student
from tests.homework import marked

TOKEN = secrets.token_hex(8)
SERVE = """
import sys
from pathlib import Path
from course.homework.review import start
start(Path(sys.argv[1]), sys.argv[2], port=int(sys.argv[3]), browser=False, allow_root=True)
"""
WORDS = "Because of *Itô*: $\\tfrac12 g^2$.\n\n" + "\n\n".join(marked.PAYLOADS.values())
NAMES = {"ada": ("Ada", "Lovelace"), "bob": ("<img src=x onerror=fired()>", "</script><script>fired()</script>")}
FIRED = "window.firings = []; window.fired = () => window.firings.push(document.location.href)"


# ---------------------------------------------------------------------- the notebook


def reviewed(**changes):
    notebook = marked.answered(**changes)
    return review.for_review(
        marked.result(notebook, flags=(Flag("edited", "setup", "- a\n+ ```<script>"),)), marked.assignment()
    )


def sources(notebook):
    return {cell.id: cell.source for cell in notebook.cells}


def test_a_grader_sees_flags_answers_verdicts_and_the_rubric_after_its_answer():
    notebook = reviewed(own=["y = 1"])
    order = [cell.id for cell in notebook.cells]
    shown = sources(notebook)
    assert order[0] == "review-flags"
    assert "edited in setup" in shown["review-flags"]
    assert order.index("why-half-rubric") == order.index("why-half") + 1
    assert marked.RUBRIC in shown["why-half-rubric"]
    assert marked.SOLUTION in shown["why-half-rubric"]
    assert shown["paused-path"] == "def paused_path(x0, x1, t):\n    return x0"
    assert shown["own-1"] == "y = 1"
    told = next(cell.outputs[0].text for cell in notebook.cells if cell.id == "paused-path-hidden")
    assert told == f"0 of 4 points. Not yet: {marked.MISCONCEPTION}\n"


def test_only_cells_of_the_course_have_names_and_the_notebook_is_valid():
    notebook = reviewed(own=["y = 1"])
    named = {cell.id for cell in notebook.cells if "nbgrader" in cell.metadata}
    assert named == {cell.id for cell in marked.release().cells if "nbgrader" in cell.metadata}
    nbformat.validate(notebook)
    assert nbformat.reads(nbformat.writes(notebook), as_version=4) == notebook


def test_outputs_are_text_and_pictures_only():
    outputs = [
        new_output("stream", name="stderr", text="\x1b[31mred\x1b[0m"),
        new_output("display_data", data={"text/html": "<script>fired()</script>", "text/plain": "plain"}),
        new_output("display_data", data={"image/svg+xml": "<svg onload=fired()>"}),
        new_output("display_data", data={"application/javascript": "fired()"}),
        new_output("display_data", data={"image/png": "bm90IGEgcGljdHVyZQ=="}),
        new_output("execute_result", data={"text/markdown": "[x](javascript:fired())"}),
        new_output("error", ename="E", evalue="told", traceback=["<script>fired()</script>"]),
        marked.png_output(),
    ]
    cell = next(cell for cell in reviewed(outputs=outputs).cells if cell.id == "paused-path")
    assert [output.get("text", "picture") for output in cell.outputs] == ["red", "plain", "E: told", "picture"]
    assert set(cell.outputs[-1].data) == {"image/png"}


def test_a_flood_of_text_is_cut():
    outputs = [new_output("stream", name="stdout", text="x" * review.MOST_OUTPUT) for _ in range(3)]
    cell = next(cell for cell in reviewed(outputs=outputs).cells if cell.id == "paused-path")
    assert sum(len(output.text) for output in cell.outputs) == review.MOST_OUTPUT


def test_the_highlighter_gets_no_long_run_of_empty_lines():
    shown = sources(reviewed(code="x" + "\n " * 2_000 + "\n  y", own=["z" + " \n" * 2_000]))
    assert shown["paused-path"] == "x" + "\n" * 101 + "  y"
    assert shown["own-1"].count("\n") == 101


@pytest.mark.parametrize("broken", [{}, {"cells": 3}, {"cells": [1, {"id": 2, "metadata": [], "source": {}}]}])
def test_a_damaged_result_gives_a_page_all_the_same(broken):
    notebook = review.for_review(marked.result(broken), marked.assignment())
    assert notebook.cells[0].id == "review-flags"


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def teaching(tmp_path_factory):
    """A teaching folder in which two students were graded, one of them hostile."""
    root = tmp_path_factory.mktemp("teaching")
    (root / "source" / marked.SLUG).mkdir(parents=True)
    (root / "nbgrader_config.py").write_text("raise SystemExit('settings were read')")
    database = f"sqlite:///{root / 'gradebook.db'}"
    with Book(database) as book:
        book.add_students(Roster([Student(name, *names) for name, names in NAMES.items()]))
        book.add_release(marked.SLUG, marked.release())
        for student in NAMES:
            (root / "submitted" / student / marked.SLUG).mkdir(parents=True)
            notebook = marked.answered(
                words=WORDS, code="</pre><script>fired()</script>\n" + marked.PAYLOADS["event handler"]
            )
            result = marked.result(notebook, student=student, messages=("Right.", "Not yet: <script>fired()</script>"))
            folder = root / "autograded" / student / marked.SLUG
            folder.mkdir(parents=True)
            page = review.for_review(result, marked.assignment())
            shown = json.dumps(page if student == "ada" else notebook)  # of the other one, as it would be without us
            (folder / f"{marked.SLUG}.ipynb").write_text(shown, encoding="ascii")
            book.record(result, notebook)
    return root, database


@pytest.fixture(scope="module")
def address(teaching):
    """The address of the running server."""
    root, database = teaching
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(root), database, str(port)],
        env=os.environ | {"JUPYTER_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def wait_for(process, port):
    """Until the server answers; fails with what it said if it stopped."""
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"the server stopped: {process.stdout.read()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    pytest.fail("the server never answered")


def submission(teaching, student):
    """The id of a student's notebook, which is in its page's address."""
    with Gradebook(teaching[1]) as book:
        return book.find_submission_notebook(marked.SLUG, marked.SLUG, student).id


@pytest.fixture
def page(new_page, address):
    """A page that is logged in, reaches this machine only, and knows what ran."""
    page = new_page()
    page.add_init_script(FIRED)
    page.goto(f"{address}/?token={TOKEN}")
    return page


def open_submission(page, address, teaching, student):
    page.goto(f"{address}/formgrader/submissions/{submission(teaching, student)}/")
    page.wait_for_function("() => typeof formgrader !== 'undefined' && formgrader.loaded && MathJax.loaded")
    page.wait_for_function("() => formgrader.grades.loaded && formgrader.comments.loaded")


def test_the_page_shows_the_answer_the_rubric_and_formulas_without_the_network(page, address, teaching):
    open_submission(page, address, teaching, "ada")
    text = page.inner_text("#notebook-container")
    assert "Because of Itô" in text
    assert marked.RUBRIC in text
    assert "<script>fired()</script>" in text or "< script>fired()</script>" in text
    assert page.locator("math mfrac").count() == 2
    box = page.locator("#notebook-container math").first.locator("xpath=ancestor::div[1]")
    assert box.evaluate("e => getComputedStyle(e).overflow") == "auto hidden"  # so no text is drawn over another one
    assert box.evaluate("e => e.scrollHeight <= e.clientHeight")
    assert page.blocked == []
    assert [error for error in page.errors if "Content Security Policy" not in error] == []


@pytest.mark.parametrize("student", ["ada", "bob"])
def test_nothing_of_a_student_runs_even_if_the_notebook_was_not_sanitised(page, address, teaching, student):
    open_submission(page, address, teaching, student)
    for link in page.locator("#notebook-container a").all():
        assert re.match(r"https?://|mailto:", link.get_attribute("href") or "https://")
    assert page.evaluate("window.firings") == []
    assert page.blocked == []
    assert (
        page.locator("#notebook-container").locator("script, iframe, object, embed, form, svg, style, link").count()
        == 0
    )
    handlers = "[...document.querySelectorAll('#notebook-container *')].flatMap(e => [...e.attributes])"
    assert [name for name in page.evaluate(f"{handlers}.map(a => a.name)") if name.startswith("on")] == []


def test_a_script_that_got_into_the_page_would_not_run(page, address, teaching):
    open_submission(page, address, teaching, "ada")
    page.evaluate(
        """() => {
          const frame = "<iframe srcdoc='<script>parent.fired()</script>'>";
          for (const html of ["<img src=x onerror='fired()'>", "<svg onload='fired()'>", frame]) {
            const box = document.createElement("div");
            document.body.append(box);
            box.innerHTML = html;
          }
          const script = document.createElement("script");
          script.textContent = "fired()";
          document.body.append(script);
        }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.firings") == []
    assert any("Content Security Policy" in error for error in page.errors)


def test_a_score_and_a_comment_reach_the_gradebook(page, address, teaching):
    open_submission(page, address, teaching, "ada")
    with page.expect_response(lambda answer: "/api/grade/" in answer.url):
        page.fill("#why-half", "2.5")
        page.press("#why-half", "Tab")
    with page.expect_response(lambda answer: "/api/comment/" in answer.url):
        page.fill("#why-half-comment", "Well derived.")
        page.press("#why-half-comment", "Tab")
    with Book(teaching[1]) as book:
        row = next(row for row in book.rows(marked.SLUG) if row.student == "ada")
    assert {problem.name: (problem.manual, problem.pending) for problem in row.problems}["why-half"] == (2.5, False)
    with Gradebook(teaching[1]) as book:
        comments = book.find_submission_notebook(marked.SLUG, marked.SLUG, "ada").comments
        assert [comment.manual_comment for comment in comments if comment.name == "why-half"] == ["Well derived."]


def test_a_grader_finds_the_way_from_the_list_to_a_submission_and_on(page, address, teaching):
    assert page.url.startswith(f"{address}/formgrader/gradebook?")
    page.get_by_role("link", name=marked.SLUG).click()
    page.wait_for_url(f"{address}/formgrader/gradebook/{marked.SLUG}*")
    page.get_by_role("link", name=marked.SLUG).last.click()
    page.wait_for_url(f"{address}/formgrader/gradebook/{marked.SLUG}/{marked.SLUG}*")
    page.get_by_role("link", name="Submission #1").wait_for()
    page.get_by_role("button", name="Show All Names").click()
    page.get_by_role("link", name="Lovelace, Ada").wait_for()
    assert page.evaluate("window.firings") == []
    page.get_by_role("link", name="Lovelace, Ada").click()
    page.wait_for_function("() => typeof formgrader !== 'undefined' && formgrader.loaded")
    page.locator(".glyphicon.name-hidden").click()
    assert page.get_by_text("Lovelace, Ada").is_visible()
    page.wait_for_load_state("load")
    assert page.locator(".live-notebook a").count() == 2
    assert page.locator(".live-notebook a[href]").count() == 0
    assert "Open live notebook" not in page.content()
    page.get_by_role("link", name="Next").click()
    page.wait_for_url(lambda url: submission(teaching, "ada") not in url)
    assert re.search("/submissions/|/gradebook/", page.url)
    assert page.evaluate("window.firings") == []
    assert page.blocked == []


# ---------------------------------------------------------------------- the server


def ask(address, path, *, token=TOKEN, method="GET", body=None):
    request = urllib.request.Request(f"{address}{path}", method=method, data=body)
    if token:
        request.add_header("Authorization", f"token {token}")
    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing."""

    def redirect_request(self, *args, **kwargs):
        return None


def test_nobody_gets_in_without_the_token(address, teaching):
    for path in (
        "/formgrader/gradebook",
        "/formgrader/api/assignments",
        f"/formgrader/submissions/{submission(teaching, 'ada')}/",
    ):
        status, headers, _ = ask(address, path, token="")
        assert status in (302, 403)
        if status == 302:
            assert headers["Location"].startswith("/login")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"/formgrader/api/submission/{marked.SLUG}/ada/autograde"),
        ("POST", f"/formgrader/api/assignment/{marked.SLUG}/assign"),
        ("POST", f"/formgrader/api/assignment/{marked.SLUG}/collect"),
        ("GET", "/formgrader/manage_assignments"),
        ("GET", "/formgrader/manage_students"),
        ("GET", "/api/kernels"),
        ("POST", "/api/kernels"),
        ("GET", "/api/terminals"),
        ("GET", "/api/contents"),
        ("GET", "/lab"),
        ("GET", "/tree"),
        ("GET", "/files/gradebook.db"),
        ("GET", "/files/..%2fgradebook.db"),
    ],
)
def test_behind_the_page_is_nothing_that_runs_code_or_reads_files(address, method, path):
    status, _, _ = ask(address, path, method=method, body=b"{}" if method == "POST" else None)
    assert status in (403, 404, 405)


def test_a_link_cannot_make_the_server_read_settings_from_a_submission(address, teaching):
    evil = teaching[0] / "submitted" / "ada" / marked.SLUG
    (evil / "nbgrader_config.py").write_text(f"open({str(evil / 'ran')!r}, 'w').write('x')")
    status, headers, _ = ask(address, f"/formgrader/?path={evil}")
    assert (status, headers["Location"].partition("?")[0]) == (302, "/formgrader/gradebook")
    assert ask(address, "/formgrader/api/assignments")[0] == 200
    assert not (evil / "ran").exists()


def test_the_policy_names_no_other_host_and_the_number_is_new_each_time(address):
    policy = ask(address, "/formgrader/gradebook")[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in re.search(r"script-src ([^;]*)", policy)[1]
    assert "http" not in policy
    assert review.headers("a") != review.headers("b")


def test_it_listens_on_one_address_of_this_machine_only(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(OSError, match=r".+"):  # another address of the same machine, which 0.0.0.0 would answer
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_an_unknown_assignment_is_a_list_of_nothing(address):
    status, _, body = ask(address, "/formgrader/api/submitted_notebooks/no-such/no-such")
    assert (status, json.loads(body)) == (200, [])


def test_no_folder_and_root_are_refused(tmp_path, monkeypatch):
    with pytest.raises(CourseError, match="no folder"):
        review.start(tmp_path / "none", "sqlite://")
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    with pytest.raises(CourseError, match="root as the user; rule: .* --allow-root"):
        review.start(tmp_path, "sqlite://")
