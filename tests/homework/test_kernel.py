"""Real kernels in real sandboxes: what they answer, what they may use up, and what a hostile one can forge."""

import base64
import json
import os
import struct
import textwrap
import time
import zlib
from pathlib import Path

import nbformat
import pytest

from course.chapters import CourseError
from course.homework.kernel import Kernel, Outcome, _is_png, _output
from course.homework.sandbox import OURS, Limits, Watchdog

SMALL = Limits(cell_seconds=30, grace_seconds=1, memory_mb=700, disk_mb=32, files=2000, output_mb=100)


@pytest.fixture
def kernel(warm_parent):
    with warm_parent.kernel(limits=SMALL, files={"key.checks.json": b"{}", "data/x.txt": b"\xff"}) as kernel:
        yield kernel


def run(kernel: Kernel, source: str, **options) -> Outcome:
    return kernel.run(textwrap.dedent(source), **options)


def printed(outcome: Outcome, name: str = "stdout") -> str:
    return "".join(output["text"] for output in outcome.outputs if output.get("name") == name)


def alive(kernel: Kernel) -> bool:
    return kernel.lost is None and printed(run(kernel, "print(6 * 7)")) == "42\n"


def living(namespace: str) -> list[str]:
    """All processes of this machine in one PID namespace."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not ended and os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                found.append(pid)
        except OSError:
            continue
    return found


def namespace(kernel: Kernel) -> str:
    return os.readlink(f"/proc/{kernel._sandbox.init}/ns/pid")


# ---------------------------------------------------------------------- honest cells


def test_a_cell_answers_with_its_value_and_its_streams(kernel):
    outcome = run(kernel, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert outcome.state == "ok"
    assert outcome.error is None
    assert outcome.dropped_bytes == 0
    assert printed(outcome) == "out\n"
    assert printed(outcome, "stderr") == "err\n"
    assert outcome.outputs[-1]["data"] == {"text/plain": "42"}
    assert outcome.seconds > 0
    assert kernel.flags == []


def test_memory_is_measured_however_short_it_ran(warm_parent, monkeypatch):
    monkeypatch.setattr(Watchdog, "run", lambda dog: None)  # it has not looked yet when all is over
    with warm_parent.kernel(limits=SMALL) as kernel:
        pass
    assert kernel.peak_mb > 10


def test_a_cell_that_raises_leaves_the_kernel_as_it_is(kernel):
    run(kernel, "x = 3")
    outcome = run(kernel, "1 / 0")
    assert (outcome.state, outcome.error) == ("error", ("ZeroDivisionError", "division by zero"))
    assert outcome.outputs[0]["output_type"] == "error"
    assert outcome.outputs[0]["traceback"]
    assert printed(run(kernel, "print(x)")) == "3\n"
    assert kernel.flags == []


def test_a_figure_is_a_png_and_all_outputs_are_valid_in_a_notebook(kernel):
    outcomes = [
        run(kernel, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('drawn')"),
        run(kernel, "1 / 0"),
        run(kernel, "from IPython.display import HTML\nHTML('<script>alert(1)</script>')"),
    ]
    figure = next(output for output in outcomes[0].outputs if output["output_type"] == "display_data")
    assert _is_png(figure["data"]["image/png"])
    assert "<script" not in json.dumps(outcomes[2].outputs)
    cells = [nbformat.v4.new_code_cell("", outputs=outcome.outputs) for outcome in outcomes]
    nbformat.validate(nbformat.from_dict(nbformat.v4.new_notebook(cells=cells)))


def test_the_companion_and_the_files_are_there(kernel):
    outcome = run(
        kernel,
        """
        import os, torch
        from companion.exercises.checking import Exercise
        print(Exercise(right=lambda: torch.ones(2)).check(lambda: torch.ones(2)))
        print(sorted(os.listdir()), open("data/x.txt", "rb").read())
        """,
    )
    assert printed(outcome) == "Right.\n['data', 'key.checks.json'] b'\\xff'\n"


def test_every_kernel_draws_its_own_random_numbers(warm_parent):
    drawn = set()
    for _ in range(2):
        with warm_parent.kernel(limits=SMALL) as kernel:
            drawn.add(printed(run(kernel, "import random, numpy\nprint(random.random(), numpy.random.rand())")))
    first, second = (line.split() for line in drawn)
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_input_fails_and_is_not_waited_for(kernel):
    assert run(kernel, "input()").error[0] == "StdinNotImplementedError"


@pytest.mark.parametrize("name", ["../x", "/x", "", "a/../../x", "a\0b"])
def test_files_stay_in_their_folder(warm_parent, name):
    with pytest.raises(CourseError, match="relative path"):
        warm_parent.kernel(limits=SMALL, files={name: b""}).__enter__()


# ---------------------------------------------------------------------- time


def test_an_endless_loop_is_interrupted_and_the_next_cell_runs(kernel):
    outcome = run(kernel, "while True: pass", seconds=0.5)
    assert (outcome.state, outcome.error[0]) == ("timeout", "KeyboardInterrupt")
    assert alive(kernel)


IGNORES = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"


@pytest.mark.parametrize(
    "source", [IGNORES, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"], ids=["ignores", "stopped"]
)
def test_a_loop_that_ignores_interrupts_ends_the_kernel(kernel, source):
    outcome = run(kernel, source, seconds=0.3)
    assert outcome.state == "lost"
    assert kernel.lost.startswith("timeout")
    assert run(kernel, "1") == Outcome("lost")
    assert kernel.flags == []


def test_an_interrupt_between_the_code_and_the_reply_costs_one_cell(kernel):
    """The kernel then says that it is idle, and never replies: a student whose cell just ends in time meets this."""
    source = """
    import time
    _kernel = get_ipython().kernel
    def late(*arguments, real=_kernel.finish_metadata):
        _kernel.finish_metadata = real
        time.sleep(100)
    _kernel.finish_metadata = late
    print("done")
    """
    outcome = run(kernel, source, seconds=0.3)
    assert (outcome.state, outcome.error, printed(outcome)) == ("timeout", None, "done\n")
    assert alive(kernel)
    assert kernel.flags == []


def test_all_cells_together_have_a_time(warm_parent):
    with warm_parent.kernel(limits=Limits(submission_seconds=1)) as kernel:
        assert run(kernel, "import time\ntime.sleep(30)").state == "lost"
        assert kernel.lost.startswith("time:")


# ---------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os\nif os.fork(): os._exit(0)",
        "import ctypes\nctypes.string_at(0)",
    ],
    ids=["_exit", "kill", "fork-and-exit", "segfault"],
)
def test_a_dead_kernel_is_lost_at_once(kernel, source):
    assert run(kernel, "print(1)").state == "ok"
    assert run(kernel, source).state == "lost"
    assert kernel.lost == "stopped: the process ended"
    assert run(kernel, "1") == Outcome("lost")


def test_a_kernel_that_is_asked_to_exit_ends_or_goes_on_but_never_hangs(kernel):
    states = {run(kernel, source).state for source in ("exit()", "import time; time.sleep(0.5)", "1")}
    assert states <= {"ok", "lost"}
    assert ("lost" in states) == (kernel.lost is not None)


def test_killing_everything_it_can_ends_only_itself(kernel, warm_parent):
    run(kernel, "import os\nos.kill(-1, 9)")
    with warm_parent.kernel(limits=SMALL) as other:
        assert alive(other)


def test_a_shutdown_request_from_inside_ends_only_itself(kernel, warm_parent):
    run(
        kernel,
        """
        import zmq, asyncio
        from jupyter_client import BlockingKernelClient
        client = BlockingKernelClient(connection_file="/run/kernel/connection.json")
        client.load_connection_file(); client.start_channels(); client.shutdown()
        import time; time.sleep(1)
        """,
    )
    run(kernel, "1")
    with warm_parent.kernel(limits=SMALL) as other:
        assert alive(other)


def test_nothing_is_left_running(warm_parent):
    with warm_parent.kernel(limits=SMALL) as kernel:
        inside = namespace(kernel)
        outcome = run(
            kernel,
            """
            import os, subprocess, time
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1000)
                os._exit(0)
            """,
        )
        assert outcome.state == "ok"
        assert len(living(inside)) >= 3
    assert living(inside) == []


def test_two_kernels_know_nothing_of_each_other(warm_parent):
    look = "import os\nprint(sum(map(str.isdigit, os.listdir('/proc'))), os.listdir('/tmp'), os.listdir('/dev/shm'))"
    with warm_parent.kernel(limits=SMALL) as one, warm_parent.kernel(limits=SMALL) as two:
        assert namespace(one) != namespace(two)
        run(one, "open('/tmp/secret', 'w'); open('/dev/shm/secret', 'w'); open('here', 'w')")
        alone = printed(run(two, look))
        assert "secret" not in alone
        assert "secret" in printed(run(one, look))
        assert int(alone.split()[0]) <= 3
        assert "here" not in printed(run(two, "print(os.listdir())"))


# ---------------------------------------------------------------------- memory, processes, disk


def test_more_memory_than_allowed_is_an_error_of_the_cell(kernel):
    assert run(kernel, "x = bytearray(30 << 30)").error[0] == "MemoryError"
    assert run(kernel, "import torch\nx = torch.ones(30 << 28)").state == "error"
    assert alive(kernel)


CHILDREN = """
import os, time, ctypes, mmap
for _ in range({count}):
    if os.fork() == 0:
        {before}
        x = {memory}
        time.sleep(100)
time.sleep(20)
"""


@pytest.mark.parametrize(
    ("count", "before", "memory"),
    [
        (12, "pass", "bytearray(b'x' * (60 << 20))"),
        (4, "ctypes.CDLL(None).prctl(4, 0)", "bytearray(b'x' * (170 << 20))"),
        (3, "pass", "mmap.mmap(-1, 250 << 20); [x.write(b'x' * (1 << 20)) for _ in range(250)]"),
    ],
    ids=["many", "unreadable", "shared"],
)
def test_memory_is_summed_over_all_processes(kernel, count, before, memory):
    assert run(kernel, CHILDREN.format(count=count, before=before, memory=memory)).state == "lost"
    assert kernel.lost.startswith("memory: ")
    assert kernel.lost.endswith("at most 700")
    assert kernel.peak_mb > SMALL.memory_mb


def test_memory_that_belongs_to_no_process_is_refused(kernel):
    outcome = run(
        kernel,
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        try: print(os.memfd_create("x"))
        except PermissionError: print("no memfd")
        print(libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600))
        """,
    )
    assert printed(outcome) == "no memfd\n-1 -1\n"


def test_many_sockets_count_as_memory(kernel):
    """What they hold is charged to no process."""
    source = """
    import os, socket, time
    kept = [socket.socketpair() for _ in range(15)]
    """
    assert run(kernel, source).state == "ok"
    assert kernel.peak_mb < 300
    flood = """
    for _ in range(4):
        if os.fork() == 0:
            kept += [socket.socketpair() for _ in range(210)]
            time.sleep(100)
    time.sleep(20)
    """
    assert run(kernel, flood).state == "lost"
    assert kernel.lost.startswith("memory: ")


def test_forks_have_a_limit(kernel):
    outcome = run(
        kernel,
        """
        import os, time
        for count in range(200):
            if os.fork() == 0:
                time.sleep(100)
        """,
    )
    assert outcome.error is None or outcome.error[0] == "BlockingIOError"
    assert outcome.state == "error" or kernel.lost.startswith("processes")
    assert kernel.lost is not None or len(living(namespace(kernel))) <= SMALL.processes + OURS


def test_a_fork_bomb_stays_in_its_sandbox(warm_parent):
    with warm_parent.kernel(limits=SMALL) as kernel:
        inside = namespace(kernel)
        run(kernel, "import subprocess\nsubprocess.Popen(['bash', '-c', 'b() { b | b & }; b'])")
        run(kernel, "import time\ntime.sleep(1)")
        assert kernel.lost is None or kernel.lost.startswith("processes: ")
        assert len(living(inside)) <= SMALL.processes + OURS
    assert living(inside) == []


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "/home/student", "/run/kernel"])
def test_no_folder_can_be_filled(kernel, folder):
    outcome = run(
        kernel,
        f"""
        for i in range(100):
            with open(f"{folder}/{{i}}", "wb") as file: file.write(bytes(4 << 20))
        """,
    )
    full = outcome.error is not None and outcome.error[0] == "OSError"
    assert full or (outcome.state == "lost" and kernel.lost.startswith("disk: "))


def test_folders_are_summed(kernel):
    run(
        kernel,
        """
        for folder in ("/tmp", "/dev/shm", "/home/student"):
            with open(f"{folder}/x", "wb") as file: file.write(bytes(20 << 20))
        import time; time.sleep(10)
        """,
    )
    assert kernel.lost.startswith("disk: ")


def test_files_are_counted(kernel):
    run(kernel, "for i in range(1_000_000): open(f'/tmp/{i}', 'w').close()")
    assert kernel.lost.startswith("files: ")


# ---------------------------------------------------------------------- output


def test_a_large_print_is_left_out_and_the_cell_is_right(kernel):
    outcome = run(kernel, "print('x' * 50_000_000)\n7")
    assert outcome.state == "ok"
    assert outcome.dropped_bytes >= 50_000_000
    assert outcome.outputs[-1]["data"] == {"text/plain": "7"}
    assert len(json.dumps(outcome.outputs)) < 2 * 1024 * SMALL.output_kb
    assert f"[{outcome.dropped_bytes:,} bytes of output left out]" in printed(outcome)
    assert alive(kernel)
    assert kernel.flags == []


def test_of_many_lines_the_first_and_the_last_are_kept(kernel):
    outcome = run(kernel, "for i in range(60_000): print(i)")
    text = printed(outcome)
    assert text.startswith("0\n1\n2\n")
    assert text.endswith("\n59998\n59999\n")
    whole = sum(len(f"{i}\n") for i in range(60_000))
    assert len(text) <= 1024 * SMALL.output_kb + 100
    assert outcome.dropped_bytes > whole - len(text) - 200
    assert len(printed(run(kernel, "print('x' * 1_500_000)", keep_kb=4000))) == 1_500_001


def test_an_endless_print_is_stopped(warm_parent):
    with warm_parent.kernel(limits=Limits(output_mb=10)) as kernel:
        assert run(kernel, "while True: print('x' * 10_000)").state == "lost"
        assert kernel.lost == "stopped: more than 10 MB of output"


def test_many_displays_do_not_hide_the_answer(kernel):
    outcome = run(kernel, "from IPython.display import display\nfor i in range(700): display(i)\nprint('end')")
    assert outcome.state == "ok"
    assert outcome.dropped_bytes > 0
    assert 100 < len(outcome.outputs) < 700
    assert printed(outcome).endswith("end\n")
    assert alive(kernel)


def test_an_error_with_a_huge_text_is_an_error(kernel):
    outcome = run(kernel, "raise ValueError('x' * 20_000_000)")
    assert outcome.state == "error"
    assert len(outcome.error[1]) < 10_000
    assert alive(kernel)


# ---------------------------------------------------------------------- forged messages

FORGE = """
import json, os, socket, threading, time, zmq
kernel = get_ipython().kernel
session, iopub = kernel.session, kernel.iopub_socket
real = session.send
def hook(stream, kind, *arguments, **options):
    if kind == "execute_reply":
        globals()["way"] = stream, options.get("ident", arguments[2] if len(arguments) > 2 else None)
    return real(stream, kind, *arguments, **options)
session.send = hook
def tell(kind, **content): real(iopub, kind, content, parent=kernel.get_parent("shell"))
def answer(**content): real(way[0], "execute_reply", content, parent=kernel.get_parent("shell"), ident=way[1])
def raw(number):
    found = None
    for name in os.listdir("/proc/self/fd"):
        try: one = socket.socket(fileno=os.dup(int(name)))
        except OSError: continue
        try:
            if one.family == socket.AF_UNIX and one.getsockname() == f"/run/kernel/k-{number}":
                peer = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                found = found if peer[:4] == os.getpid().to_bytes(4, "little") else one  # a kernel asks itself, too
        except OSError: pass
    found.setblocking(True)
    return found
"""


@pytest.fixture
def forger(kernel):
    assert run(kernel, FORGE).state == "ok"
    assert run(kernel, "print(way[1])").state == "ok"
    assert kernel.flags == []
    return kernel


def kinds(kernel: Kernel) -> set[str]:
    return {flag.kind for flag in kernel.flags}


def test_forged_idle_and_reply_shorten_only_their_own_cell(forger):
    first = run(
        forger,
        """
        answer(status="ok", execution_count=99)
        tell("status", execution_state="idle")
        time.sleep(0.5)
        print("late")
        raise ValueError("the truth")
        """,
    )
    assert first.state == "ok"
    assert "late" not in printed(first)
    second = run(forger, "print('second')")
    assert (second.state, printed(second)) == ("ok", "second\n")
    assert "forged message" in kinds(forger)


def test_of_what_a_forger_says_little_is_kept(forger):
    outcome = run(
        forger,
        """
        for i in range(5):
            tell("status", execution_state="x" * 100_000 + str(i)); tell("status", execution_state={"x": [i]})
            real(way[0], f"{i}" * 50_000, {}, parent=kernel.get_parent("shell"), ident=way[1])
        iopub.send_multipart([b"<IDS|MSG>", b"x" * 1_000_000, b"{}", b"{}", b"{}", b"{}"])
        """,
    )
    assert outcome.state == "ok"
    assert alive(forger)
    assert all(words <= {"execute_reply", "busy", "idle"} for words in forger._seen.values())
    assert kinds(forger) == {"malformed message", "forged message"}
    assert all(len(flag.evidence) <= 1000 for flag in forger.flags)


def test_answers_to_other_names_are_ignored(forger):
    outcome = run(
        forger,
        """
        parent = {"header": {"msg_id": "guessed"}, "parent_header": {}}
        real(way[0], "execute_reply", {"status": "ok"}, parent=parent, ident=way[1])
        real(iopub, "stream", {"name": "stdout", "text": "planted"}, parent=parent)
        raise ValueError("mine")
        """,
    )
    assert outcome.error == ("ValueError", "mine")
    assert "planted" not in printed(outcome)
    assert "forged message" in kinds(forger)


def test_a_thread_that_answers_for_later_cells_breaks_nothing(forger):
    run(
        forger,
        """
        def spam():
            while True:
                tell("stream", name="stdout", text="planted\\n"); tell("status", execution_state="idle")
                time.sleep(0.001)
        threading.Thread(target=spam, daemon=True).start()
        """,
    )
    outcomes = [run(forger, f"print('cell', {i})") for i in range(5)]
    for i, outcome in enumerate(outcomes):
        assert outcome.state == "ok"
        assert not any(f"cell {j}" in printed(outcome) for j in range(5) if j != i)
    assert "forged message" in kinds(forger)


@pytest.mark.parametrize(
    "attack",
    [
        "tell('stream', name='stdout', text={'a': 1}); tell('stream', name='../x', text='x'); tell('stream')",
        "tell('error', ename=3, evalue=None, traceback=[1, None, {}])",
        "tell('execute_result', data={'text/html': '<script>', 'image/png': 'x', 'text/plain': 3}, execution_count='')",
        "tell('display_data', data=[1]); tell('update_display_data', data={}); tell('none'); tell('clear_output')",
        "tell('comm_open', comm_id='x', data={}); tell('status', execution_state=['idle']); tell('status')",
        "real(iopub, 'stream', 'text', parent=kernel.get_parent('shell'))",
    ],
    ids=range(6),
)
def test_strange_contents_are_left_out(forger, attack):
    outcome = run(forger, f"{attack}\nprint('still here')")
    assert outcome.state == "ok"
    assert printed(outcome).endswith("still here\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outcome.outputs)])
    nbformat.validate(nbformat.from_dict(notebook))
    assert "<script" not in json.dumps(outcome.outputs)
    assert alive(forger)


@pytest.mark.parametrize(
    "frames",
    [
        "[b'x']",
        "[b'']",
        "[b'<IDS|MSG>']",
        "[b'<IDS|MSG>', b'bad', b'{}', b'{}', b'{}', b'{}']",
        "sign(b'[' * 100_000, b'{}', b'{}', b'{}')",
        "sign(b'{}', b'[' * 100_000, b'{}', b'{}')",
        "sign(b'[]', b'3', b'null', b'\"x\"')",
        "sign(b'{\"msg_type\": [], \"msg_id\": 1}', b'{\"msg_id\": []}', b'{}', b'{}')",
        "sign(b'\\xff\\xfe', b'{}', b'{}', b'{}')",
        "sign(b'{\"date\": \"9999999-99-99T99\"}', b'{}', b'{}', b'1' * 10_000)",
        "[b'x'] * 200",
    ],
    ids=range(11),
)
def test_malformed_messages_become_a_flag(forger, frames):
    outcome = run(
        forger,
        f"""
        def sign(*parts): return [b"<IDS|MSG>", session.sign(list(parts)), *parts]
        identity = way[1][0] if isinstance(way[1], list) else way[1]
        iopub.send_multipart({frames}); way[0].send_multipart([identity, *{frames}])
        print("still here")
        """,
    )
    assert forger.lost is None
    assert outcome.state in ("ok", "error")
    assert alive(forger)
    assert kinds(forger) <= {"malformed message", "forged message"}


def test_a_message_that_an_interrupt_may_have_cut_is_no_flag(forger):
    assert run(forger, "time.sleep(100)", seconds=1).state == "timeout"
    run(forger, "iopub.send_multipart([b'<IDS|MSG>', b'bad', b'{}', b'{}', b'{}', b'{}'])")
    assert alive(forger)
    assert forger.flags == []


def test_a_giant_message_stops_the_kernel_before_it_is_held(warm_parent):
    with warm_parent.kernel(limits=Limits(output_mb=20)) as kernel:
        before = memory_now()
        run(kernel, FORGE)
        assert run(kernel, "tell('stream', name='stdout', text='x' * (60 << 20))\ntime.sleep(5)").state == "lost"
        assert "20 MB of output" in kernel.lost
        assert memory_now() - before < 20 << 20


ENDS, LINGERS = (
    {("lost", "lost")},
    {(first, second) for first in ("ok", "lost", "timeout") for second in ("ok", "lost", "timeout")},
)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("data", "times", "expected"),
    [
        ("b'\\x01\\x01x' * 100_000", 100, ENDS),
        ("b'\\x03' + (1 << 24).to_bytes(8, 'big') + bytes(1 << 24)", 3, ENDS),
        ("b'\\x02' + b'\\x7f' * 8 + bytes(1000)", 1, {("lost", "lost"), ("ok", "lost")}),
        ("b'\\x02' + (1 << 20).to_bytes(8, 'big') + bytes(1000)", 1, LINGERS),
        ("b'\\xff' * 1000", 1, {("lost", "lost"), ("ok", "lost")}),
        ("b'\\x04\\x05\\x04PING'", 1, {("ok", "ok")}),
    ],
    ids=["endless", "long", "announced", "unfinished", "no frame", "command"],
)
def test_raw_bytes_on_the_sockets_never_raise(warm_parent, number, data, times, expected):
    """Frames without end, which a library would collect until the machine has no memory."""
    with warm_parent.kernel(limits=Limits(output_mb=20, grace_seconds=1)) as kernel:
        before = memory_now()
        run(kernel, FORGE)
        source = f"wire = raw({number})\nfor _ in range({times}): wire.sendall({data})\nprint('sent')"
        first, second = run(kernel, source, seconds=4), run(kernel, "print('second')", seconds=1)
        assert (first.state, second.state) in expected
        assert "sent" not in printed(second)
        assert memory_now() - before < 40 << 20


def memory_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("number", [1, 2])
def test_closing_a_socket_ends_only_itself(forger, number):
    outcome = run(forger, f"import socket as s\nraw({number}).shutdown(s.SHUT_RDWR)\ntime.sleep(0.5)", seconds=3)
    later = run(forger, "1", seconds=1)
    assert later.state == "lost"
    assert outcome.state in ("ok", "lost")
    assert forger.lost == "stopped: the kernel closed its connection"


def test_a_replaced_socket_is_not_followed(forger, tmp_path):
    run(
        forger,
        f"""
        for number in range(1, 6):
            os.remove(f"/run/kernel/k-{{number}}")
            os.symlink({str(tmp_path / "gradebook.db")!r}, f"/run/kernel/k-{{number}}")
        os.remove("/run/kernel/connection.json"); os.symlink("/etc/passwd", "/run/kernel/connection.json")
        """,
    )
    assert alive(forger)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what is kept, without a kernel


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + name + data + struct.pack("!I", zlib.crc32(name + data))


def picture(width: int = 1, height: int = 1, behind: bytes = b"") -> str:
    head = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0))
    raw = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return base64.b64encode(raw + behind).decode()


def test_only_real_pictures_are_pictures():
    assert _is_png(picture())
    assert _is_png(picture() + "\n")
    refused = [picture(behind=b"<script>"), picture(100_000, 100_000), picture(0), "", "é", "iVBORw0KGgo="]
    refused += [picture()[:-8], base64.b64encode(b"<svg onload=alert(1)>").decode(), picture().replace("A", "B", 1)]
    assert not any(map(_is_png, refused))


def test_half_characters_become_readable():
    output = _output("stream", {"name": "stdout", "text": "a\ud800b"})
    assert output["text"].encode() == b"a?b"


def test_the_wait_for_a_cell_ends_on_time_even_when_output_never_does(warm_parent):
    with warm_parent.kernel(limits=Limits(output_mb=10_000, grace_seconds=1)) as kernel:
        start = time.monotonic()
        source = "import threading\ndef spam():\n while True: print('x' * 1000)\n"
        source += "threading.Thread(target=spam, daemon=True).start()"
        run(kernel, source, seconds=1)
        outcome = run(kernel, "while True: pass", seconds=1)
        assert outcome.state in ("timeout", "lost")
        assert time.monotonic() - start < SMALL.cell_seconds
