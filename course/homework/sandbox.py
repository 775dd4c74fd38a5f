"""The sandbox of one submission: a kernel in namespaces of its own, watched from outside.

    with Parent(imports) as parent:                      a process that imports once (warm.py)
        with parent.start(limits=…, key=…, files=…) as sandbox:
            sandbox.sockets                              where the kernel listens, as seen from here
            sandbox.usage()                              what all its processes use together

Bubblewrap makes the room: no network, no other processes, a read-only system, the Python that runs this and the package
`companion`, small folders in memory to write to, and nothing else: no checkout, no home, no gradebook. The kernel gives
up users, capabilities and some system calls before it meets a student's code (warm.py). Limits that the system does not
know how to count, such as the memory of all processes together, are kept by a thread here (Watchdog).
"""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from course.chapters import CourseError
from course.homework import warm

MEGABYTE = 1 << 20
FOLDERS = {"/tmp": "1777", "/home/student": "1777", "/dev/shm": "1777", warm.RUN: "1777"}  # what can be written to
SOCKETS_MB = 4  # of the folder with the kernel's sockets
OURS = 2  # processes in every sandbox: bubblewrap's first, and the one that keeps the room open
START_SECONDS, END_SECONDS = 60, 20
# What the system holds in a socket belongs to no process and is not told: each may be full, but for so many of them.
SOCKETS = {"sockets": (64, 0.5), "TCP": (8, 36)}  # MB; a TCP socket's buffers grow by themselves; a kernel has 16 and 1
LOOK_SECONDS, PAUSE_SECONDS = 2, 0.5
INSTALL = "sudo apt-get install bubblewrap"


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Attributes:
        cell_seconds: of one cell, before it is interrupted.
        submission_seconds: of all cells together.
        grace_seconds: between an interrupt and the end of the kernel.
        memory_mb: of all processes together, files in memory and many sockets included.
        processes: threads included; at most this many at once.
        disk_mb, files: of all folders together.
        output_kb: kept of a cell's outputs.
        output_mb: received in all, before the kernel is stopped.
    """

    cell_seconds: float = 30
    submission_seconds: float = 300
    grace_seconds: float = 2
    memory_mb: int = 3000
    processes: int = 64
    disk_mb: int = 256
    files: int = 20_000
    output_kb: int = 100
    output_mb: int = 200

    def resources(self) -> dict[str, int]:
        """What the system itself limits, for each process or for each user, by the name in `resource`."""
        return {
            "RLIMIT_DATA": self.memory_mb * MEGABYTE,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CPU": int(2 * self.submission_seconds) + 10,  # two threads at work count twice
            "RLIMIT_FSIZE": self.disk_mb * MEGABYTE,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 512,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_MEMLOCK": 8 * MEGABYTE,
        }


@dataclass(frozen=True)
class Usage:
    """What a sandbox uses at one moment."""

    memory_mb: float
    processes: int
    disk_mb: float
    files: int

    def excess(self, limits: Limits) -> str | None:
        """What is too much, in words."""
        if self.memory_mb > limits.memory_mb:
            return f"memory: {self.memory_mb:,.0f} MB in {self.processes} processes; at most {limits.memory_mb:,}"
        if self.processes > limits.processes:
            return f"processes: {self.processes}; at most {limits.processes}"
        if self.disk_mb > limits.disk_mb:
            return f"disk: {self.disk_mb:,.0f} MB; at most {limits.disk_mb:,}"
        if self.files > limits.files:
            return f"files: {self.files:,}; at most {limits.files:,}"
        return None


# ---------------------------------------------------------------------- the room


def command(limits: Limits, companion: str | None = None, *, root: bool | None = None) -> list[str]:
    """Bubblewrap's command line: what a sandbox sees, and a process that keeps it open.

    Args:
        companion: the folder of the package, the only one of a checkout that is seen.
        root: whether this is for the superuser, who needs no user namespace; by default, who runs this.
    """
    root = os.geteuid() == 0 if root is None else root
    argv = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--clearenv"]
    argv += ["--info-fd", str(warm.INFO), "--seccomp", str(warm.FILTER)]
    argv += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += ["--hostname", "sandbox", "--proc", "/proc", "--dev", "/dev"]
    if not root:
        argv += ["--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000"]
    argv += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib64"):
        argv += ["--symlink", f"usr{name}", name] if os.path.islink(name) else ["--ro-bind-try", name, name]
    seen = _outermost({sys.prefix, sys.base_prefix, *([companion] if companion else [])})
    shown = [*seen, "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts", "/sys/devices/system/cpu"]
    argv += _dirs(list(FOLDERS))
    for folder, mode in FOLDERS.items():  # first, for a checkout may lie below one of them
        size = SOCKETS_MB if folder == warm.RUN else limits.disk_mb
        argv += ["--perms", mode, "--size", str(size * MEGABYTE), "--tmpfs", folder]
    argv += _dirs(shown)
    for path in shown:
        argv += ["--ro-bind" if path in seen else "--ro-bind-try", path, path]
    argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    seconds = int(limits.submission_seconds + limits.grace_seconds + START_SECONDS + END_SECONDS)
    return [*argv, "--", "/bin/sh", "-c", f"echo ready; exec sleep {seconds}"]


def _outermost(folders: set[str]) -> list[str]:
    """The folders that lie in no other one, nor in /usr."""
    paths = {Path(folder) for folder in folders}
    within = {path for path in paths if any(other in path.parents for other in paths | {Path("/usr")})}
    return sorted(str(path) for path in paths - within - {Path("/usr")})


def _dirs(paths: list[str]) -> list[str]:
    """Makes all folders above `paths`: bubblewrap would make them for the superuser's eyes only."""
    above = {str(parent) for path in paths for parent in Path(path).parents} - {
        "/",
        "/usr",
        "/dev",
        "/tmp",
        "/home/student",
    }
    return [part for folder in sorted(above) for part in ("--perms", "0755", "--dir", folder)]


def environment() -> dict[str, str]:
    """The environment of a kernel, and of what it starts."""
    return {
        "HOME": "/home/student",
        "USER": "student",
        "LOGNAME": "student",
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "xterm-color",
        "IPYTHONDIR": "/home/student/.ipython",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "PYTHONDONTWRITEBYTECODE": "1",
    } | _settings()


def _settings() -> dict[str, str]:
    """What libraries read while they are imported: one thread, no window, no network, no accelerator."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return threads | offline | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


def _uids() -> list[int] | None:
    """For the superuser: the users among which each sandbox gets one of its own, as the first and the count."""
    if os.geteuid() != 0:
        return None
    most = max(first + count for first, _, count in _uid_map())
    first, count = (2_000_000, 1 << 22) if most > 7_000_000 else (60_000, 5_000)  # a pid has 22 bits
    return [first, count]


def _uid_map(system: Path = Path("/")) -> list[list[int]]:
    """The users of this user namespace, in ranges: the first one, who that is outside, and how many."""
    with contextlib.suppress(OSError):
        lines = (system / "proc/self/uid_map").read_text().splitlines()
        return [[int(word) for word in line.split()] for line in lines]
    return []


# ---------------------------------------------------------------------- one sandbox


class Sandbox:
    """One running sandbox with its kernel. A context manager: on leaving, all its processes are dead."""

    def __init__(self, init: int, kernel: int):
        self.init = init  # pid of its first process, whose end ends all the others
        self._init = os.pidfd_open(init)
        self.kernel = os.pidfd_open(kernel)  # readable once the kernel has ended

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def sockets(self) -> str:
        """Where the kernel's sockets lie; for use before any of the student's code runs, who could replace them."""
        return f"/proc/{self.init}/root{warm.RUN}/k"

    def interrupt(self) -> None:
        """What the stop button does."""
        self._signal(self.kernel, signal.SIGINT)

    def kill(self) -> None:
        """Ends every process in it, at once."""
        self._signal(self._init, signal.SIGKILL)

    def close(self) -> None:
        """Ends every process in it and waits until they are gone: the first one goes last."""
        if self._init < 0:
            return
        self.kill()
        gone = _readable(self._init, END_SECONDS)
        for descriptor in (self._init, self.kernel):
            os.close(descriptor)
        self._init = self.kernel = -1
        if not gone:
            raise CourseError(f"sandbox: received a process {self.init} that does not end; rule: SIGKILL ends all")

    def usage(self, most: int = 1 << 30) -> Usage | None:
        """What it uses now; None once it has ended.

        Args:
            most: processes whose memory is summed; of more (a fork bomb) only the number is told, at once.
        """
        root = f"/proc/{self.init}/root"
        try:
            pids = [name for name in os.listdir(f"{root}/proc") if name.isdigit()]
        except OSError:
            return None
        count = max(len(pids) - OURS, 0)
        if count > most:
            return Usage(0.0, count, 0.0, 0)
        folders = [space for folder in FOLDERS if (space := _space(root + folder))]
        disk = sum(size for size, _ in folders) / MEGABYTE
        memory = sum(_memory(f"{root}/proc/{pid}") for pid in pids) / MEGABYTE
        memory += _sockets_mb(f"/proc/{self.init}/net")
        return Usage(memory + disk, count, disk, sum(files for _, files in folders))

    def _signal(self, descriptor: int, number: int) -> None:
        with contextlib.suppress(OSError):  # it has gone
            signal.pidfd_send_signal(descriptor, number)


def _memory(process: str) -> int:
    """Bytes of one process: its share of the pages that it shares, and its page tables."""
    try:
        return _field(f"{process}/smaps_rollup", b"Pss:") + _field(f"{process}/status", b"VmPTE:")
    except FileNotFoundError:
        return 0
    except ProcessLookupError:  # a zombie
        return 0
    except OSError:  # it made itself unreadable: count all that it maps
        try:
            with open(f"{process}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0


def _field(path: str, name: bytes) -> int:
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def _sockets_mb(net: str) -> float:
    """The most that the sockets of one network namespace may hold."""
    counts = dict.fromkeys(SOCKETS, 0)
    for name in ("sockstat", "sockstat6"):
        with contextlib.suppress(OSError), open(f"{net}/{name}") as file:
            for line in file:
                kind, _, count = line.split()[:3]
                kind = kind.removesuffix(":").removesuffix("6")
                if kind in counts:
                    counts[kind] += int(count)
    return sum(max(0, counts[kind] - free) * most for kind, (free, most) in SOCKETS.items())


def _space(folder: str) -> tuple[int, int] | None:
    """Bytes and files in one of the folders in memory."""
    try:
        space = os.statvfs(folder)
    except OSError:
        return None
    return (space.f_blocks - space.f_bfree) * space.f_frsize, space.f_files - space.f_ffree


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Watchdog(threading.Thread):
    """Looks at a sandbox ten times a second, and kills it when it uses too much or takes too long.

    A look takes processor time by what is mapped: 3 ms for a kernel, 0.2 s for nine processes that share a gigabyte. It
    is followed by three times as long a pause, but a short one, and one that takes very long is the last: while nobody
    looks, memory has no limit. Wall time says nothing of this, for the machine may be busy.

    Args:
        lose: called with the reason, before the sandbox is killed.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits, lose: Callable[[str], None]):
        super().__init__(daemon=True, name="watchdog")
        self.sandbox, self.limits, self.lose = sandbox, limits, lose
        self.peak_mb = 0.0
        self._cost = 0.0  # of the last look
        self._stop_now = threading.Event()
        self._end = time.monotonic() + limits.submission_seconds

    def run(self) -> None:
        while True:
            if time.monotonic() > self._end:
                self._kill(f"time: more than {self.limits.submission_seconds:,.0f} s in all")
                return
            if not self.look() or self._stop_now.wait(min(max(0.1, 3 * self._cost), PAUSE_SECONDS)):
                return

    def look(self) -> bool:
        """Looks once; whether the sandbox still lives."""
        begun = time.thread_time()
        usage = self.sandbox.usage(self.limits.processes)
        self._cost = time.thread_time() - begun
        if usage is None:
            return False
        self.peak_mb = max(self.peak_mb, usage.memory_mb)
        excess = usage.excess(self.limits)
        if not excess and self._cost > LOOK_SECONDS:
            excess = f"memory: {self._cost:.1f} s of processor time to count it; at most {LOOK_SECONDS}"
        if excess:
            self._kill(excess)
        return not excess

    def stop(self) -> None:
        """Ends the thread; afterwards the sandbox may be closed."""
        self._stop_now.set()
        self.join()

    def _kill(self, reason: str) -> None:
        self.lose(reason)
        self.sandbox.kill()


# ---------------------------------------------------------------------- the parent


class Parent:
    """The process that imports once and forks kernels (warm.py). A context manager; may be used from several threads.

    Raises:
        CourseError: Something of `imports` cannot be imported.
    """

    def __init__(self, imports: tuple[str, ...] = ()):
        self.imports = tuple(imports)
        self.companion: str | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Parent":
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-I", warm.__file__, str(theirs.fileno()), str(os.getpid()), *self.imports]
        try:
            self._process = subprocess.Popen(
                argv,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"} | _settings(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
            answer = self._first_word()
        except BaseException:
            self.close()
            raise
        self.companion = answer["companion"]
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _first_word(self) -> dict:
        self._control.settimeout(10 * START_SECONDS)  # imports, on a busy machine
        try:
            answer = json.loads(self._control.recv(1 << 16) or b'{"error": "it ended"}')
        except OSError as error:
            answer = {"error": str(error)}
        self._control.settimeout(START_SECONDS)
        if "error" in answer:
            raise CourseError(
                f"sandbox: received {answer['error']} while importing {', '.join(self.imports)}; "
                "rule: what the kernels need is installed (pip install -e '.[all]')"
            )
        if answer["threads"] > 1:
            raise CourseError(
                f"sandbox: received {answer['threads']} threads after importing {', '.join(self.imports)}; "
                "rule: one, a process with more cannot be forked safely"
            )
        return answer

    def close(self) -> None:
        """Ends the process and with it every sandbox that it started."""
        self._control.close()
        if self._process is None:
            return
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def start(
        self, *, limits: Limits, key: str = "", files: dict[str, bytes] | None = None, probe: bool = False
    ) -> Sandbox:
        """Opens a sandbox and starts a kernel in it.

        Args:
            key: signs the kernel's messages.
            files: by relative path, for the kernel's working folder.
            probe: stop before the kernel, when all else is done.

        Raises:
            CourseError: It cannot be started.
        """
        files = files or {}
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise CourseError(f"sandbox: received a file {name!r}; rule: a relative path without '..'")
        room = sum(map(len, files.values())) / MEGABYTE
        if room > limits.disk_mb / 2 or len(files) > limits.files / 2:
            raise CourseError(f"sandbox: received {room:,.0f} MB of files; rule: at most half of {limits.disk_mb} MB")
        request = {"argv": command(limits, self.companion), "uids": _uids(), "probe": probe}
        request |= {"limits": limits.resources()}
        order = {"key": key, "environment": environment()}
        mine, theirs = socket.socketpair()
        with mine:
            mine.settimeout(START_SECONDS)
            with theirs, self._lock:
                self._send(request, theirs)
            return self._await(mine, order, files)

    def _send(self, request: dict, channel: socket.socket) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], [channel.fileno()])
        except OSError as error:
            raise CourseError(f"sandbox: received {error} from the warm parent; rule: it runs") from error

    def _await(self, channel: socket.socket, order: dict, files: dict[str, bytes]) -> Sandbox:
        """Hands the order to the new kernel and waits until it listens."""
        sandbox = None
        try:
            with channel.makefile("rb") as lines:
                pids = self._line(lines)
                sandbox = Sandbox(pids["init"], pids["kernel"])
                header = json.dumps(order | {"files": {name: len(data) for name, data in files.items()}}).encode()
                channel.sendall(struct.pack("!Q", len(header)) + header + b"".join(files.values()))
                self._line(lines)
            return sandbox
        except (OSError, ValueError, KeyError) as error:
            if sandbox is not None:
                sandbox.close()
            if isinstance(error, CourseError):
                raise
            raise CourseError(f"sandbox: received {error!r} while a kernel started; rule: it answers") from error

    @staticmethod
    def _line(lines) -> dict:
        text = lines.readline(1 << 16)
        message = json.loads(text) if text else {"error": "no answer"}
        if "error" in message:
            raise CourseError(f"sandbox: received '{message['error']}' while a kernel started; rule: it starts")
        return message


# ---------------------------------------------------------------------- may it run here?


@functools.cache
def refusal() -> str | None:
    """None if sandboxes work here, tried once; else one line that says why not, and what helps."""
    if sys.platform != "linux":
        return f"sandbox: received {sys.platform}; rule: student code runs on Linux only (on Windows, inside WSL 2)"
    if shutil.which("bwrap") is None:
        return f"sandbox: received no `bwrap`; rule: student code runs in bubblewrap only; install it: {INSTALL}"
    if os.uname().machine not in warm.ARCHITECTURES:
        return f"sandbox: received {os.uname().machine}; rule: one of {', '.join(warm.ARCHITECTURES)}"
    try:
        with Parent() as parent, parent.start(limits=Limits(), probe=True):
            return None
    except CourseError as error:
        reason = " ".join(str(error).removeprefix("sandbox: received ").split())
        return f"sandbox: received {reason}; remedy: {remedy()}"


def remedy(system: Path = Path("/")) -> str:
    """What most likely forbids sandboxes on this machine, and the setting that allows them."""

    def setting(name: str) -> str:
        try:
            return (system / "proc/sys" / name).read_text().strip()
        except OSError:
            return ""

    if os.geteuid() != 0 and any(outside == 0 for _, outside, _ in _uid_map(system)):
        return "run as another user: this one is the superuser under another name, for whom no such limit is kept"
    if setting("user/max_user_namespaces") == "0":
        return "sudo sysctl user.max_user_namespaces=10000"
    if setting("kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl kernel.unprivileged_userns_clone=1"
    if (system / ".dockerenv").exists() or (system / "run/.containerenv").exists():
        options = "--cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        return f"start the container with {options}"
    if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile that allows bwrap)"
    return f"update bubblewrap to 0.8 or newer ({INSTALL}) and run on Linux 5.14 or newer"
