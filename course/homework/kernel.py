"""One kernel in a sandbox, asked cell by cell: whatever runs in it, the answers are plain, bounded data.

    with WarmParent() as parent, parent.kernel(limits=Limits(), files={}) as kernel:
        outcome = kernel.run("1 + 1")
        outcome.state, outcome.outputs, kernel.lost, kernel.flags

The student's code shares a process with the kernel and its signing key, so every message may be forged. What is relied
on: each cell is asked under a fresh name and only answers to that name count, so a forged answer may spoil the cell
that forged it and never another one; what arrives is counted, cut and checked before it is kept; none of it raises.
"""

import base64
import binascii
import math
import secrets
import select
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.session import DELIM, Session

from course.chapters import CourseError
from course.homework.results import Flag
from course.homework.sandbox import MEGABYTE, Limits, Parent, Watchdog
from course.homework.wire import Message, Wire, WireError

KERNEL = (  # what a kernel imports anyway
    "numpy.random",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
)
COURSE = ("torch", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "companion.exercises.checking")
HANDSHAKE_SECONDS = 30
MOST_FLAGS = 20
MOST_PIXELS = 50_000_000  # of one picture
SMALLEST = 200  # bytes that an output counts for, however small
ONCE = ("execute_reply", "busy", "idle")  # what a kernel says of every cell


@dataclass(frozen=True)
class Outcome:
    """What one cell gave.

    Attributes:
        state: `ok`, `error`, `timeout` (interrupted; the kernel lives) or `lost` (the kernel does not).
        outputs: nbformat's: stream, error, execute_result and display_data with text/plain and image/png.
        error: name and text of the exception.
        dropped_bytes: of outputs that were too large or of a kind that is not kept.
        seconds: wall time.
    """

    state: str
    outputs: list[dict[str, Any]] = field(default_factory=list)
    error: tuple[str, str] | None = None
    dropped_bytes: int = 0
    seconds: float = 0.0


class WarmParent(Parent):
    """A process that has imported what homework needs, and forks kernels. One for each worker; a context manager.

    Args:
        imports: modules that a kernel finds imported.
    """

    def __init__(self, imports: Iterable[str] = COURSE):
        super().__init__((*KERNEL, *imports))

    def kernel(self, *, limits: Limits, files: dict[str, bytes] | None = None) -> "Kernel":
        """A kernel in a sandbox of its own, as a context manager; `files` lie in its working folder."""
        return Kernel(self, limits=limits, files=files or {})


class Kernel:
    """One kernel. On leaving the context all its processes are gone.

    Attributes:
        lost: why there is no kernel any more; None while there is one.
        flags: what a person should look at: forged and malformed messages. That the kernel was lost is not among them,
            nor what is malformed after an interrupt, which can cut an honest message in two.
    """

    def __init__(self, parent: Parent, *, limits: Limits, files: dict[str, bytes]):
        self._parent, self._limits, self._files = parent, limits, files
        self._lock = threading.Lock()
        self._seen: dict[str, set[str]] = {}  # what was received about each cell asked so far
        self._interrupted = False
        self._watchdog: Watchdog | None = None
        self.lost: str | None = None
        self.flags: list[Flag] = []

    def __enter__(self) -> "Kernel":
        key = secrets.token_hex(16)
        self._sandbox = self._parent.start(limits=self._limits, key=key, files=self._files)
        try:
            self._session = Session(key=key.encode(), username="", check_pid=False)
            bounds = {"seconds": HANDSHAKE_SECONDS, "most": self._limits.output_mb * MEGABYTE}
            self._shell = Wire(f"{self._sandbox.sockets}-1", "DEALER", **bounds)
            self._iopub = Wire(f"{self._sandbox.sockets}-2", "SUB", **bounds)
            self._wait_until_heard()
            self._watchdog = Watchdog(self._sandbox, self._limits, self._lose)
            self._watchdog.start()
        except BaseException as error:
            self._sandbox.close()
            if isinstance(error, WireError):
                raise CourseError(f"kernel: received '{error}'; rule: a new kernel answers") from error
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._watchdog.stop()
        if self.lost is None:
            self._watchdog.look()  # a short submission may have ended before it was ever looked at
        self._shell.close()
        self._iopub.close()
        self._sandbox.close()

    @property
    def peak_mb(self) -> float:
        """The most memory that was seen in use, summed over all processes."""
        return self._watchdog.peak_mb if self._watchdog else 0.0

    def run(self, source: str, seconds: float | None = None, *, keep_kb: int | None = None) -> Outcome:
        """Runs one cell. Returns, whatever the cell does.

        Args:
            seconds: after which it is interrupted; by default the limits'.
            keep_kb: kept of its outputs; by default the limits'.
        """
        if self.lost is not None:
            return Outcome("lost")
        start = time.monotonic()
        seconds = self._limits.cell_seconds if seconds is None else seconds
        content = {"code": source, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": False}
        request = self._session.msg("execute_request", content | {"user_expressions": {}})
        cell = _Cell(request["header"]["msg_id"], (self._limits.output_kb if keep_kb is None else keep_kb) * 1024)
        self._seen[cell.name] = set()
        try:
            self._shell.send(self._session.serialize(request), seconds=seconds)
            self._follow(cell, start + seconds)
        except WireError as error:
            self._lose(f"stopped: {'the process ended' if self._ended() else error}")
        return cell.outcome(time.monotonic() - start, lost=self.lost is not None and cell.reply is None)

    # ------------------------------------------------------------------ one cell

    def _follow(self, cell: "_Cell", end: float) -> None:
        """Listens until the cell is answered; interrupts it at `end`, and gives up a little later.

        Answered means: the reply on one socket and `idle` on the other. The reply alone will do after a while, for the
        kernel drops messages when it writes faster than it is read. So will `idle` alone after an interrupt: one that
        comes between the end of the code and the reply makes the kernel forget the reply, and go on.
        """
        quiet = self._limits.grace_seconds
        heard = time.monotonic()
        poll = self._poll()
        while not (cell.reply and cell.idle):
            now = time.monotonic()
            half = cell.reply or (cell.idle and cell.interrupted)
            if half and (now > heard + quiet or now > end):
                return
            if now > end and cell.interrupted:
                self._lose("timeout: a cell took too long and ignored the interrupt")
                return
            if now > end:
                cell.interrupted = True
                end = now + self._limits.grace_seconds
                self._interrupted = True
                self._sandbox.interrupt()
            patience = min(end, heard + quiet) if half else end
            ready = {descriptor for descriptor, _ in poll.poll(max(1, 1000 * (patience - now)))}
            for wire in (self._iopub, self._shell):
                if wire.fileno() in ready:
                    heard = time.monotonic()
                    self._hear(wire, cell)
            if ready == {self._sandbox.kernel}:  # it has ended and all that it said was read
                raise WireError("the process ended")

    def _poll(self) -> "select.poll":
        poll = select.poll()
        for source in (self._iopub, self._shell, self._sandbox.kernel):
            poll.register(source, select.POLLIN)
        return poll

    def _ended(self) -> bool:
        poll = select.poll()
        poll.register(self._sandbox.kernel, select.POLLIN)
        return bool(poll.poll(100))

    def _hear(self, wire: Wire, cell: "_Cell") -> None:
        """Reads what has arrived on one socket; what is wrong with it becomes a flag."""
        for message in wire.read():
            try:
                self._understand(wire, message, cell)
            except (Exception, RecursionError) as error:
                if not self._interrupted:
                    self._flag("malformed message", f"{type(error).__name__}: {error}")
        if self._shell.received + self._iopub.received > self._limits.output_mb * MEGABYTE:
            raise WireError(f"more than {self._limits.output_mb:,} MB of output")

    def _understand(self, wire: Wire, message: Message, cell: "_Cell") -> None:
        if not message.whole:
            self._overflow(wire, message, cell)
            return
        _, parts = self._session.feed_identities(list(message.frames))
        received = self._session.deserialize(parts)
        kind, name = received["header"]["msg_type"], received["parent_header"].get("msg_id")
        content = received["content"]
        if not isinstance(content, dict) or not isinstance(kind, str):
            raise ValueError("received content that is no JSON object")
        if wire is self._shell or kind == "status":
            self._note(kind if kind != "status" else content.get("execution_state"), name)
        if name != cell.name:
            return
        if wire is self._shell and kind == "execute_reply":
            cell.reply = cell.reply or content
        elif wire is self._iopub and kind == "status":
            cell.idle = cell.idle or content.get("execution_state") == "idle"
        elif wire is self._iopub:
            cell.add(kind, content, message.size)

    def _note(self, what: Any, name: Any) -> None:
        """The kernel says a few things of a cell, each once; whoever says another, or one again, is not the kernel.

        Only those few are kept: a forger may say any number of others, of any length.
        """
        seen = self._seen.get(name) if isinstance(name, str) else None
        if seen is None and what == "execute_reply":
            self._flag("forged message", "an answer to a cell that was never asked")
        if seen is None:
            return
        if what not in ONCE:
            self._flag("forged message", f"'{_text(what, 40)}' about a cell, which no kernel says")
            return
        if what in seen:
            self._flag("forged message", f"'{what}' a second time for one cell")
        seen.add(what)

    def _overflow(self, wire: Wire, message: Message, cell: "_Cell") -> None:
        """A message too large to be kept: output is left out, and an answer stays an answer."""
        if wire is self._iopub:
            cell.drop(message.size)
        if wire is not self._shell or DELIM not in message.frames:
            return
        at = message.frames.index(DELIM)
        header, parent = (self._session.unpack(frame) for frame in message.frames[at + 2 : at + 4])
        if header["msg_type"] == "execute_reply" and parent["msg_id"] == cell.name:
            text = f"[{message.size:,} bytes left out]"
            cell.reply = cell.reply or {"status": "error", "ename": "Error", "evalue": text}

    # ------------------------------------------------------------------ the kernel

    def _wait_until_heard(self) -> None:
        """Asks until both sockets answer: a subscription takes a moment to arrive."""
        end = time.monotonic() + HANDSHAKE_SECONDS
        poll, answers = self._poll(), set()
        while time.monotonic() < end:
            request = self._session.msg("kernel_info_request")
            self._shell.send(self._session.serialize(request), seconds=HANDSHAKE_SECONDS)
            again = time.monotonic() + 1
            while time.monotonic() < again:
                poll.poll(100)
                for wire in (self._shell, self._iopub):
                    for message in wire.read():
                        _, parts = self._session.feed_identities(list(message.frames))
                        received = self._session.deserialize(parts)
                        if received["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                            answers.add(received["content"].get("execution_state", "reply"))
                if {"reply", "idle"} <= answers:
                    return
        raise WireError("a new kernel does not answer")

    def _lose(self, reason: str) -> None:
        """Ends the kernel; the first reason is the one that counts."""
        with self._lock:
            if self.lost is None:
                self.lost = reason
        self._sandbox.kill()

    def _flag(self, kind: str, evidence: str) -> None:
        """Once for each kind and evidence, and not without end."""
        flag = Flag(kind, evidence=_clean(evidence))
        with self._lock:
            if flag not in self.flags and len(self.flags) < MOST_FLAGS:
                self.flags.append(flag)


# ---------------------------------------------------------------------- what is kept of a cell


class _Cell:
    """The answers to one cell, as they come in: the first outputs and the last ones, and the sizes of the rest."""

    def __init__(self, name: str, room: int):
        self.name = name
        self.reply: dict | None = None
        self.idle = False
        self.interrupted = False
        self.dropped = 0
        self._half = room // 2
        self._first: list[dict] = []
        self._last: deque[dict] = deque()
        self._first_size = self._last_size = 0
        self._gap: int | None = None  # before which output something is left out

    def add(self, kind: str, content: dict, size: int) -> None:
        """Keeps an output of a known kind; anything else is only counted."""
        output = _output(kind, content)
        if output is not None:
            self._keep(output)
        elif kind not in ("execute_input", "clear_output") and not kind.startswith("comm_"):
            self.dropped += size

    def outcome(self, seconds: float, *, lost: bool) -> Outcome:
        reply = self.reply or {}
        error = None
        if reply.get("status") != "ok" and self.reply is not None:
            error = (_text(reply.get("ename"), 200) or "Error", _text(reply.get("evalue"), 4000))
        state = "lost" if lost else "timeout" if self.interrupted else "error" if error else "ok"
        outputs = [*self._first, *self._last]
        if self._gap is not None:
            text = f"\n[{self.dropped:,} bytes of output left out]\n"
            outputs.insert(self._gap, {"output_type": "stream", "name": "stdout", "text": text})
        return Outcome(state, _merged(outputs), error, self.dropped, seconds)

    def drop(self, size: int) -> None:
        """Counts what was too large; the outputs say where the first of it was."""
        self.dropped += size
        if self._gap is None:
            self._gap = len(self._first)

    def _keep(self, output: dict) -> None:
        """First into the first half, and once that is full, into the last half, out of which older outputs fall."""
        room = self._half - self._first_size
        if not self._last and room > 0:
            head, output = _split(output, room)
            if head is not None:
                self._first.append(head)
                self._first_size += _size(head)
            if output is None:
                return
        self._last.append(output)
        self._last_size += _size(output)
        while self._last_size > self._half and self._last:
            oldest = self._last.popleft()
            size = _size(oldest)
            self._last_size -= size
            tail = None
            if oldest["output_type"] == "stream" and self._half - self._last_size > SMALLEST:
                raw = oldest["text"].encode()[-(self._half - self._last_size) :]
                tail = oldest | {"text": raw.decode(errors="ignore")}
            if tail is None or _size(tail) + self._last_size > self._half:
                self.drop(size)
                continue
            self.drop(size - _size(tail))
            self._last.appendleft(tail)
            self._last_size += _size(tail)
            return


def _size(output: dict) -> int:
    """Bytes that an output counts for."""
    texts = [output.get("text", ""), output.get("ename", ""), output.get("evalue", ""), *output.get("traceback", ())]
    return max(SMALLEST, sum(len(text.encode()) for text in (*texts, *output.get("data", {}).values())))


def _split(output: dict, room: int) -> tuple[dict | None, dict | None]:
    """What fits into `room` bytes, and the rest; only text can be cut."""
    if _size(output) <= room:
        return output, None
    if output["output_type"] != "stream" or room < SMALLEST:
        return None, output
    raw = output["text"].encode()
    head = raw[:room].decode(errors="ignore")
    return output | {"text": head}, output | {"text": raw[len(head.encode()) :].decode()}


def _merged(outputs: list[dict]) -> list[dict]:
    """Neighbouring texts of one stream become one output, as notebooks have it."""
    merged: list[dict] = []
    for output in outputs:
        before = merged[-1] if merged else {}
        if output["output_type"] == "stream" and before.get("name") == output["name"]:
            merged[-1] = before | {"text": before["text"] + output["text"]}
        else:
            merged.append(output)
    return merged


def _output(kind: str, content: dict) -> dict | None:
    """The output in nbformat's terms, rebuilt from checked parts; None for what is not kept."""
    if kind == "stream" and content.get("name") in ("stdout", "stderr") and isinstance(content.get("text"), str):
        return {"output_type": kind, "name": content["name"], "text": _clean(content["text"])}
    if kind == "error":
        lines = content.get("traceback")
        lines = [_text(line, 20_000) for line in lines[:100]] if isinstance(lines, list) else []
        names = {name: _text(content.get(name), most) for name, most in (("ename", 200), ("evalue", 4000))}
        return {"output_type": kind, **names, "traceback": lines}
    if kind in ("execute_result", "display_data") and isinstance(content.get("data"), dict):
        data = _bundle(content["data"])
        if data:
            output = {"output_type": kind, "data": data, "metadata": {}}
            count = content.get("execution_count")
            count = count if isinstance(count, int) and 0 <= count < 10**6 else None
            return output | ({"execution_count": count} if kind == "execute_result" else {})
    return None


def _bundle(data: dict) -> dict[str, str]:
    """Plain text and real PNG pictures; nothing that a browser would run."""
    kept = {}
    if isinstance(data.get("text/plain"), str):
        kept["text/plain"] = _clean(data["text/plain"])
    if isinstance(data.get("image/png"), str) and _is_png(data["image/png"]):
        kept["image/png"] = data["image/png"].strip()
    return kept


def _is_png(text: str) -> bool:
    """Whether `text` is the base64 of one PNG picture, from the first chunk to the last, of bearable size."""
    try:
        raw = base64.b64decode(text.strip().encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return False
    if not raw.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"):
        return False
    if len(raw) < 24 or not 0 < math.prod(struct.unpack_from("!II", raw, 16)) <= MOST_PIXELS:
        return False
    at = 8
    while at + 12 <= len(raw):
        length, name = struct.unpack_from("!I4s", raw, at)
        end = at + 12 + length
        if end > len(raw) or zlib.crc32(raw[at + 4 : end - 4]) != struct.unpack_from("!I", raw, end - 4)[0]:
            return False
        if name == b"IEND":
            return end == len(raw)
        at = end
    return False


def _text(value: Any, most: int) -> str:
    return _clean(value[:most]) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """Text that can be written as UTF-8: JSON can hold halves of characters."""
    return text.encode("utf-8", "replace").decode()
