"""The built site, served on a free port, and a browser that may talk to nothing else.

The site is built once for all workers unless it is up to date; `$COURSE_SITE` names another folder to test. The
browser is the system's Chromium, Chrome or Edge, else Playwright's own; without any, every test that needs one fails
and says so.
"""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import Error, sync_playwright

from course.site import build, make_server
from course.site.vendor import axe_folder

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
CHANNELS = ("chrome", "msedge")  # where Windows and macOS keep them
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OTHER_HOSTS = re.compile(r"^(https?|wss?)://(?!127\.0\.0\.1[:/])")
PATIENCE = 30_000  # milliseconds; for machines that run other tests at the same time


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    given = os.environ.get("COURSE_SITE")
    if given:
        assert (Path(given) / "index.html").is_file(), f"COURSE_SITE={given} holds no index.html"
        return Path(given)
    lock = ROOT / "book" / "_build" / "site.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        return build(ROOT)


@pytest.fixture(scope="session")
def serve():
    """`serve(folder)` serves it until the tests end, and returns its address with a slash at the end."""
    servers = []

    def start(folder):
        server = make_server(folder)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def site_url(site, serve):
    """The address of the built site, with a slash at the end."""
    return serve(site)


@pytest.fixture(scope="module")
def browser():
    """A headless browser; no longer than a module, for while it lives no other event loop can run in this process."""
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium)
        yield browser
        browser.close()


def launch(chromium):
    """Starts the first browser that can be had."""
    found = (shutil.which(name) for name in COMMANDS)
    ways = [{"executable_path": path} for path in found if path] + [{"channel": name} for name in CHANNELS] + [{}]
    refusals = []
    for way in ways:
        try:
            return chromium.launch(args=FLAGS, **way)
        except Error as error:
            refusals.append(f"{way or 'the browser of Playwright'}: {error.message.splitlines()[0]}")
    pytest.fail(
        "no browser for the tests of the site; rule: Chromium, Chrome or Edge installed, or `python -m playwright "
        "install chromium`. Tried:\n  " + "\n  ".join(refusals)
    )


@pytest.fixture
def new_page(browser):
    """`new_page(**context)` opens a page that reaches this machine only; see `page`."""
    contexts = []

    def make(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.blocked, page.errors = [], []

        def block(route):
            page.blocked.append(route.request.url)
            route.abort()

        context.route(OTHER_HOSTS, block)
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page):
    """A page of 1280 × 900. `page.blocked` lists requests to other hosts, `page.errors` the console's complaints."""
    return new_page()


@pytest.fixture(scope="session")
def axe(site):
    """The source of axe, which finds what bars people with disabilities."""
    path = axe_folder(ROOT) / "axe.min.js"
    assert path.is_file(), f"{path} is missing; `course site` fetches it"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def chapters(site):
    """The addresses of the chapters' pages, relative to the site."""
    return sorted(f"notebooks/{path.name}" for path in (site / "notebooks").glob("*.html"))


@pytest.fixture(scope="session")
def pages(site):
    """The addresses of all pages, relative to the site."""
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts)
