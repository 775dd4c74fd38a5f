"""A warm parent: imports once, then forks one kernel for each submission into a sandbox of its own.

Run as a program, `python -I warm.py SOCKET OWNER IMPORT...`, by `sandbox.Parent`; of the course it imports nothing. It
never sees what a student wrote: source, files and keys go from the owner to the forked kernel through a channel that
this process only passes on, so that no kernel finds another one's data in the memory that it inherits.

    owner -> here, one packet a kernel   JSON {"argv": bwrap's, "uids": [first, count] or null, "limits":
                                         {RLIMIT: most}, "probe": bool}, and the channel
    here -> owner, through the channel   JSON lines: {"init": pid, "kernel": pid}, {"ready": true} or {"error": text}
    owner -> kernel, through the channel eight bytes of length, JSON of that length, the bytes of the files

Three things hold a sandbox alive: bubblewrap's first process, this process, the owner. Whichever ends, ends them all:
the first process takes its PID namespace with it, bubblewrap dies with this process, and this process with the owner.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import platform
import select
import signal
import socket
import struct
import sys
import tempfile

START_SECONDS = 20  # for bubblewrap; it takes 10 ms
INFO, FILTER = 30, 31  # descriptors that bubblewrap writes to and reads from
RUN = "/run/kernel"  # in the sandbox: where the kernel's sockets lie
WORK = "/home/student/hw"

try:
    import resource

    LIBC = ctypes.CDLL(None, use_errno=True)
except (ImportError, TypeError):  # Windows, where no sandbox works, and only `sandbox.refusal` is asked
    LIBC = None

SET_DUMPABLE, SET_SECCOMP, CAPBSET_DROP, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS = 4, 22, 24, 36, 38  # of prctl
CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL = 47, 4
NEW = {"mnt": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000}
NEW |= {"pid": 0x20000000, "net": 0x40000000}

# What no homework needs and what would reach out of the sandbox or past its sums of memory: new namespaces, mounts, the
# kernel's keyrings (shared with the host), tracing, and memory that belongs to no process and to no counted file.
# Number by architecture: x86_64, aarch64.
REFUSED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
CLONE, CLONE3, SOCKET, SETSOCKOPT = (56, 220), (435, 435), (41, 198), (54, 208)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and how seccomp calls it
FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink: they end at the network namespace; AF_VSOCK and others do not
SOL_SOCKET, BUFFERS = 1, (7, 8)  # SO_SNDBUF, SO_RCVBUF: memory of no process; `sandbox` counts sockets of usual size


# ---------------------------------------------------------------------- the parent


def main() -> None:
    """Imports, says so, and forks until the owner is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)  # nor may anything else that is open here reach bubblewrap
    owner = os.pidfd_open(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the owner, who then ends this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries children and, as subreaper, grandchildren
    _prctl(SET_CHILD_SUBREAPER, 1)
    try:
        found = _import(sys.argv[3:])
    except BaseException as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}).encode())
        return
    threads = len(os.listdir("/proc/self/task"))
    gc.collect()
    gc.freeze()  # the collector of a fork must not write to, and so copy, every page
    control.send(json.dumps({"ready": True, "threads": threads, "companion": found}).encode())
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(owner, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if owner in ready:
            return
        packet, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
        if not packet:
            return
        channel = socket.socket(fileno=descriptors[0])
        channel.set_inheritable(False)
        try:
            _start(json.loads(packet), channel)
        except Exception as error:
            _say(channel, error=str(error)[:500])
        channel.close()


def _import(names: list[str]) -> str | None:
    """Imports `names` and says where `companion` lies. What libraries write at import goes to a passing folder."""
    with tempfile.TemporaryDirectory(prefix="warm-") as home:
        os.environ.update(HOME=home, MPLCONFIGDIR=home, IPYTHONDIR=home, JUPYTER_RUNTIME_DIR=home)
        sys.modules["debugpy"] = None  # ipykernel would import it, at half of a kernel's start, and threads with it
        for name in names:
            importlib.import_module(name)
    companion = sys.modules.get("companion")
    return os.path.realpath(companion.__path__[0]) if companion else None


def _start(request: dict, channel: socket.socket) -> None:
    """Opens a sandbox and forks a kernel into it."""
    init = _open_sandbox(request["argv"])
    try:
        # Not the first process itself: without root, bubblewrap keeps that one outside of the innermost user namespace.
        with open(f"/proc/{init}/task/{init}/children") as file:
            sleeper = int(file.read().split()[0])
        inside = os.pidfd_open(sleeper)
        for name, most in request["limits"].items():  # a student without root could make these two work for him
            for process in (init, sleeper):
                resource.prlimit(process, getattr(resource, name), (most, most))
        if os.fork() == 0:
            _enter(request, channel, inside, init)
        os.close(inside)
    except BaseException:
        os.kill(init, signal.SIGKILL)
        raise


def _open_sandbox(argv: list[str]) -> int:
    """Starts bubblewrap, waits until all is mounted, and returns the pid of the sandbox's first process."""
    said, speak = os.pipe()
    told, tell = os.pipe()
    program, write = os.pipe()
    os.write(write, _filter())
    os.close(write)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, speak, 1),
            (os.POSIX_SPAWN_DUP2, speak, 2),
            (os.POSIX_SPAWN_DUP2, tell, INFO),
            (os.POSIX_SPAWN_DUP2, program, FILTER),
        ]
        os.posix_spawn(argv[0], argv, {}, file_actions=actions, setsigdef=[signal.SIGINT, signal.SIGCHLD])
        os.close(speak)
        os.close(tell)
        speak = tell = -1
        answer = _read_until(said, b"ready\n")
        if not answer.endswith(b"ready\n"):
            raise OSError("bwrap: " + answer.decode(errors="replace").strip().replace("bwrap: ", "", 1))
        return int(json.loads(_read_until(told, b"}"))["child-pid"])
    finally:
        for descriptor in (said, told, speak, tell, program):
            if descriptor >= 0:
                os.close(descriptor)


def _read_until(descriptor: int, end: bytes) -> bytes:
    """Reads up to `end`, the end of the pipe, or the end of patience."""
    text = b""
    while end not in text and select.select([descriptor], [], [], START_SECONDS)[0]:
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        text += chunk
    return text


# ---------------------------------------------------------------------- the fork: into the sandbox


def _enter(request: dict, channel: socket.socket, inside: int, init: int) -> None:
    """Joins the sandbox's namespaces; a second fork is needed because a process never changes its own PID namespace."""
    kernel = -1
    try:
        kinds = set(NEW) if request["uids"] is None else set(NEW) - {"user"}
        _check(LIBC.setns(inside, sum(NEW[kind] for kind in kinds)), "setns")
        kernel = os.fork()
        if kernel == 0:
            _shed(request, channel, init)
            _become(request, channel)
        else:
            _say(channel, init=init, kernel=kernel)
    except BaseException as error:
        _say(channel, error=f"{type(error).__name__}: {error}"[:500])
        if kernel < 0:  # nobody else knows of the sandbox yet
            os.kill(init, signal.SIGKILL)
    finally:
        os._exit(0)


def _shed(request: dict, channel: socket.socket, init: int) -> None:
    """Gives up what the parent had: descriptors, user, groups, capabilities, and ways to new ones."""
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.setsid()
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, channel.fileno())
    os.closerange(channel.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")  # where the machine itself runs out, it takes this and not the grader
    with open("/proc/sys/kernel/cap_last_cap") as file:
        capabilities = int(file.read()) + 1
    for capability in range(capabilities):
        _prctl(CAPBSET_DROP, capability)
    if request["uids"] is not None:
        # A user for each sandbox: the system counts processes by user, and no two sandboxes may signal each other.
        first, count = request["uids"]
        user = first + init % count
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _prctl(CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _check(LIBC.capset(header, none), "capset")
    _prctl(SET_NO_NEW_PRIVS, 1)
    _prctl(SET_DUMPABLE, 1)  # lost with the user; without it a process may not look at its own descriptors
    packed = ctypes.create_string_buffer(code := _filter())
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(packed)))
    _prctl(SET_SECCOMP, 2, ctypes.addressof(program))
    if os.geteuid() == 0 or os.getegid() == 0:
        raise PermissionError("sandbox: still root")


def _filter() -> bytes:
    """A seccomp program that makes the system refuse some calls, to a process and to its children for good.

    Bubblewrap's own two processes get it too: without root they have the student's user, who may write to their memory.
    """
    column, architecture = ARCHITECTURES[platform.machine()]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, machine_type = 0, 4  # offsets in struct seccomp_data, on little-endian machines
    argument, second, third = 16, 24, 32
    refuse, unknown, family = 0x50000 | 1, 0x50000 | 38, 0x50000 | 97  # EPERM, ENOSYS, EAFNOSUPPORT
    ignore = 0x50000  # as if done: the system cuts such sizes without a word, too
    namespaces = sum(NEW.values())
    code = [(load, 0, 0, machine_type), (equal, 1, 0, architecture), (give, 0, 0, refuse)]
    code += [(load, 0, 0, number), (at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 calls
    for numbers in REFUSED.values():
        code += [(equal, 0, 1, numbers[column]), (give, 0, 0, refuse)]
    code += [
        (equal, 0, 1, CLONE3[column]),
        (give, 0, 0, unknown),
    ]  # its flags lie in memory; libraries fall back to clone
    code += [(equal, 0, 4, CLONE[column]), (load, 0, 0, argument), (any_bit, 0, 1, namespaces), (give, 0, 0, refuse)]
    code += [(load, 0, 0, number)]
    code += [(equal, 0, 6, SETSOCKOPT[column]), (load, 0, 0, second), (equal, 0, 4, SOL_SOCKET), (load, 0, 0, third)]
    code += [(equal, 1, 0, BUFFERS[0]), (equal, 0, 1, BUFFERS[1]), (give, 0, 0, ignore), (load, 0, 0, number)]
    code += [(equal, 0, len(FAMILIES) + 3, SOCKET[column]), (load, 0, 0, argument)]
    code += [(equal, len(FAMILIES) - i, 0, allowed) for i, allowed in enumerate(FAMILIES)]
    code += [(give, 0, 0, family), (load, 0, 0, number), (give, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


# ---------------------------------------------------------------------- the fork: a kernel


def _become(request: dict, channel: socket.socket) -> None:
    """Receives what the owner has for this kernel alone, and runs it. Never returns to the parent's loop."""
    order = _receive(channel)
    for name, most in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    _refuse_uncounted()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.makedirs(WORK, exist_ok=True)
    os.chdir(WORK)
    for name, data in order["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(data)
    if request["probe"]:
        _say(channel, ready=True)
        return
    app = _kernel(order.pop("key"))
    _say(channel, ready=True)
    channel.close()
    gc.enable()
    app.start()


def _refuse_uncounted() -> None:
    """Goes on only where the system keeps this user's limit of processes: it never does for its superuser, who may be
    called otherwise in a user namespace. A fork bomb outruns whoever counts from outside."""
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise PermissionError("the system does not limit this user's processes")


def _receive(channel: socket.socket) -> dict:
    """Reads the order, with the files' bytes in the place of their lengths."""
    with channel.makefile("rb") as file:
        (length,) = struct.unpack("!Q", file.read(8))
        order = json.loads(file.read(length))
        return order | {"files": {name: file.read(size) for name, size in order["files"].items()}}


def _kernel(key: str):
    """A kernel that listens on sockets in the sandbox's own folder, ready to start."""
    import numpy
    from ipykernel.kernelapp import IPKernelApp

    # Else all kernels would draw the same numbers; `random` sees to itself, and torch starts at a constant anyway.
    numpy.random.seed()  # noqa: NPY002 - the global generator is what is meant
    ports = {f"{name}_port": i for i, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), start=1)}
    connection = {"transport": "ipc", "ip": f"{RUN}/k", "key": key, "signature_scheme": "hmac-sha256", **ports}
    with open(f"{RUN}/connection.json", "w") as file:
        json.dump(connection, file)
    sys.argv = ["ipykernel_launcher"]
    app = IPKernelApp.instance()
    app.initialize(["-f", f"{RUN}/connection.json", "--HistoryManager.enabled=False", "--log-level=CRITICAL"])
    return app


# ---------------------------------------------------------------------- small helpers


def _say(channel: socket.socket, **message) -> None:
    """One line to the owner; an owner who no longer listens will end this process by other means."""
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(message).encode() + b"\n")


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _check(LIBC.prctl(option, *padded), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
    os._exit(0)  # without the libraries' farewells: the sandboxes' first processes die with this one
