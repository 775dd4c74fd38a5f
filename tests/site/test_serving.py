"""The server of the built site: right types, fresh pages, and clear words about ports."""

import socket
import urllib.error
import urllib.request

import pytest

from course.chapters import CourseError
from course.site import make_server
from course.site import serve as serve_site

TYPES = {
    "a.html": "text/html",
    "a.mjs": "text/javascript",
    "a.js": "text/javascript",
    "a.wasm": "application/wasm",
    "a.svg": "image/svg+xml",
    "a.woff2": "font/woff2",
    "a.onnx": "application/octet-stream",
}


@pytest.mark.parametrize("name", TYPES)
def test_files_have_the_types_that_browsers_ask_for(serve, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with urllib.request.urlopen(f"{serve(tmp_path)}{name}") as answer:
        assert answer.headers.get_content_type() == TYPES[name]
        assert answer.headers["Cache-Control"] == "no-cache", "a rebuilt page is shown at once"


def test_a_missing_page_is_404(serve, tmp_path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{serve(tmp_path)}nothing.html")


def test_a_port_in_use_is_named_with_the_way_out(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CourseError, match=rf"the port {port}, which is in use .* PORT="):
            make_server(tmp_path, port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(tmp_path, port):
    with pytest.raises(CourseError, match=rf"received the port {port}; rule"):
        make_server(tmp_path, port)


def test_serving_before_building_says_so(tmp_path):
    with pytest.raises(CourseError, match="holds no site; rule: build it first"):
        serve_site(0, tmp_path)
