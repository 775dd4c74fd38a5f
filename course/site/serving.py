"""Serve the built site on this machine, with the types that browsers ask of modules and WebAssembly."""

import errno
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from course.chapters import CourseError, find_course
from course.site.building import site_folder

HOST = "127.0.0.1"
TAKEN = {errno.EADDRINUSE, errno.EACCES, 10013, 10048}  # the last two are Windows' names for the same


class Handler(SimpleHTTPRequestHandler):
    """Static files; a rebuilt page is shown at once, and only errors are worth a line."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".wasm": "application/wasm",
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".onnx": "application/octet-stream",
        ".woff": "font/woff",
        ".woff2": "font/woff2",
        ".svg": "image/svg+xml",
    }

    def end_headers(self) -> None:
        """Adds that the browser asks again before it reuses a page."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing about requests that went well."""


class Server(ThreadingHTTPServer):
    """One thread a request; a port that another program uses is refused on every system."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader who closes the page in the middle of a download is no error."""


def make_server(folder: Path, port: int = 0) -> Server:
    """Returns a server for `folder` that listens but does not yet answer; port 0 takes a free one.

    Raises:
        CourseError: The port is no port, or another program uses it.
    """
    if not 0 <= port <= 65535:
        raise CourseError(f"site: received the port {port}; rule: a number from 1024 to 65535 (PORT=8000)")
    try:
        return Server((HOST, port), partial(Handler, directory=str(folder)))
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        raise CourseError(
            f"site: received the port {port}, which is in use by another program or not allowed; "
            f"rule: a free port, for example PORT={port + 1 if 1024 <= port < 65535 else 8000} "
            f"(`make site PORT=…`, `course site --port …`)"
        ) from error


def serve(port: int = 8000, root: Path | None = None) -> None:
    """Serves the built site until Ctrl-C, and prints its address.

    Raises:
        CourseError: There is no built site, or the port cannot be used.
    """
    folder = site_folder(root or find_course().root)
    if not (folder / "index.html").is_file():
        raise CourseError(f"site: received {folder}, which holds no site; rule: build it first (`course site`)")
    with make_server(folder, port) as server:
        print(f"The course is at http://{HOST}:{server.server_port}/ (Ctrl-C stops)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nStopped.")
