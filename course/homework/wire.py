"""A strict client of one kernel's socket: what ZeroMQ says on the wire (ZMTP 3.0), read with bounds.

    wire = Wire(path, "SUB", seconds=5, most=200 << 20)
    for message in wire.read(): message.frames, message.size

The kernel's end may be in hostile hands. The library libzmq limits the size of a frame, but collects any number of
frames in memory before it hands out a message, reads ahead in threads of its own, and reconnects. This client reads
when asked, counts every byte, keeps a few frames of a message and skips the rest without holding it, and never connects
again. It needs little: one peer, no security mechanism, the handshake done before any of the student's code runs.
https://rfc.zeromq.org/spec/23/
"""

import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

MOST_KEPT = 4 << 20  # bytes of one message; the values of an exercise take at most half of it
MOST_FRAMES = 1000  # of one message; Jupyter's have seven, and one for each buffer of a widget
CHUNK = 1 << 18  # bytes read at once
MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class WireError(Exception):
    """The connection is over; the text says why."""


@dataclass(frozen=True)
class Message:
    """One message; where it is not `whole`, only its first frames were kept."""

    frames: tuple[bytes, ...]
    size: int
    whole: bool


class Wire:
    """One connection to a kernel's socket.

    Args:
        path: of the socket.
        kind: `DEALER`, to ask and be answered, or `SUB`, to hear everything.
        seconds: for the handshake.
        most: bytes of one frame; the announcement of a larger one ends the connection.

    Raises:
        WireError: There is no such socket, or it does not speak ZMTP 3.
    """

    def __init__(self, path: str, kind: str, *, seconds: float, most: int):
        self._most = most
        self.received = 0  # bytes, ever
        self._buffer = bytearray()
        self._left = -1  # bytes to come of the present frame; -1 between frames
        self._flags = 0
        self._start_message()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
            self._greet(kind, time.monotonic() + seconds)
            self._socket.setblocking(False)
        except (OSError, WireError) as error:
            self.close()
            raise WireError(f"no connection to the kernel ({error})") from error

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def send(self, frames: list[bytes], *, seconds: float) -> None:
        """Sends one message.

        Raises:
            WireError: The kernel does not take it in time, or has gone.
        """
        data = memoryview(b"".join(_frame(frame, MORE if i + 1 < len(frames) else 0) for i, frame in enumerate(frames)))
        end, poll = time.monotonic() + seconds, select.poll()
        poll.register(self, select.POLLOUT)
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                if time.monotonic() > end:
                    raise WireError("the kernel takes no more questions") from None
                poll.poll(100)
            except OSError as error:
                raise WireError(f"the kernel closed its connection ({error.strerror})") from error

    def read(self) -> Iterator[Message]:
        """Reads what has arrived, at most a chunk, and yields the messages that it completes.

        Raises:
            WireError: The kernel has gone, or does not speak ZMTP any more.
        """
        try:
            chunk = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise WireError(f"the kernel closed its connection ({error.strerror})") from error
        if not chunk:
            raise WireError("the kernel closed its connection")
        self.received += len(chunk)
        self._buffer += chunk
        yield from self._messages()

    def _greet(self, kind: str, end: float) -> None:
        ready = b"\x05READY\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind.encode()
        self._socket.sendall(GREETING + _frame(ready, COMMAND))
        greeting = self._exactly(64, end)
        if greeting[0] != 0xFF or greeting[10] < 3 or not greeting.startswith(b"NULL", 12):
            raise WireError("it does not speak ZMTP 3")
        flags, size = self._exactly(2, end)
        command = self._exactly(size, end)
        if flags != COMMAND or not command.startswith(b"\x05READY"):
            raise WireError("it is not ready")
        if kind == "SUB":
            self._socket.sendall(_frame(b"\x01", 0))  # to everything

    def _exactly(self, count: int, end: float) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk or time.monotonic() > end:
                raise WireError("it does not answer")
            data += chunk
        return data

    def _messages(self) -> Iterator[Message]:
        """Takes frames out of the buffer, in parts where they are long."""
        while self._left >= 0 or self._header():
            part = self._buffer[: self._left]
            del self._buffer[: len(part)]
            self._left -= len(part)
            self._take(part)
            if self._left > 0:
                return
            self._left = -1
            if self._flags & COMMAND:
                continue
            self._end_frame()
            if not self._flags & MORE:
                yield Message(tuple(self._frames), self._size, self._whole)
                self._start_message()

    def _header(self) -> bool:
        """Reads the head of the next frame, if it has arrived."""
        if not self._buffer:
            return False
        flags = self._buffer[0]
        if flags & ~(MORE | LONG | COMMAND):
            raise WireError("the kernel sent what is no message")
        length = 9 if flags & LONG else 2
        if len(self._buffer) < length:
            return False
        head = bytes(self._buffer[1:length])
        self._left = struct.unpack("!Q", head)[0] if flags & LONG else head[0]
        if self._left > self._most:
            raise WireError(f"more than {self._most >> 20:,} MB of output")
        self._flags = flags
        del self._buffer[:length]
        return True

    def _start_message(self) -> None:
        self._frames: list[bytes] = []
        self._frame = bytearray()
        self._size = self._count = 0
        self._whole = True

    def _take(self, part: bytes) -> None:
        """Keeps a part of a frame while the message is small."""
        if self._flags & COMMAND:
            return
        self._size += len(part)
        self._whole = self._whole and self._size <= MOST_KEPT
        if self._whole:
            self._frame += part

    def _end_frame(self) -> None:
        self._count += 1
        if self._count > MOST_FRAMES:
            raise WireError("the kernel sent a message without end")
        if self._whole:
            self._frames.append(bytes(self._frame))
        self._frame = bytearray()


def _frame(data: bytes, flags: int) -> bytes:
    if len(data) > 255:
        return struct.pack("!BQ", flags | LONG, len(data)) + data
    return struct.pack("!BB", flags, len(data)) + data
