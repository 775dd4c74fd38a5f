"""What code in a sandbox sees, reaches and may do: nothing that is not its own. Also without privileges."""

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import companion
from course.chapters import CourseError, find_course
from course.homework import warm
from course.homework.kernel import WarmParent
from course.homework.sandbox import FOLDERS, Limits, Parent, environment

ROOT = find_course(Path(__file__).parent).root
LIMITS = Limits(cell_seconds=60)


@pytest.fixture(scope="module")
def kernel(warm_parent):
    """One kernel for all: these tests look around, and break nothing."""
    with warm_parent.kernel(limits=LIMITS) as kernel:
        yield kernel
        assert kernel.lost is None


def told(kernel, source: str):
    """What `source` prints, as JSON."""
    outcome = kernel.run(textwrap.dedent(source))
    assert outcome.state == "ok", outcome
    return json.loads("".join(output["text"] for output in outcome.outputs if output.get("name") == "stdout"))


# ---------------------------------------------------------------------- what is seen


def test_of_the_checkout_only_the_package_is_seen(kernel):
    seen = told(kernel, f"import json, os\nprint(json.dumps(os.listdir({str(ROOT)!r})))")
    package = Path(companion.__path__[0])
    allowed = {path.relative_to(ROOT).parts[0] for path in (package, Path(sys.prefix)) if ROOT in path.parents}
    assert set(seen) <= allowed | {"companion"}
    assert {"course", "homework", "tests", ".git"}.isdisjoint(seen)


def test_no_file_of_the_machine_is_seen(kernel, tmp_path):
    (tmp_path / "gradebook.db").write_text("grades")
    secrets = [
        tmp_path / "gradebook.db",
        tmp_path,
        Path.home() / ".bashrc",
        Path.home() / ".ssh",
        "/etc/passwd",
        "/etc/shadow",
    ]
    secrets += [
        ROOT / "pyproject.toml",
        warm.__file__,
        __file__,
        "/var",
        "/run/systemd",
        "/sys/fs",
        "/sys/kernel",
        "/boot",
        "/mnt",
    ]
    seen = told(
        kernel, f"import json, os\nprint(json.dumps([p for p in {list(map(str, secrets))} if os.path.lexists(p)]))"
    )
    assert seen == []


def test_the_packages_of_the_course_cannot_be_imported(kernel):
    source = "import json\ntry:\n import course\n print(1)\nexcept ImportError: print(0)"
    assert told(kernel, source) == (1 if Path(sys.prefix) in Path(warm.__file__).parents else 0)


def test_no_other_process_is_seen(kernel):
    processes = told(
        kernel,
        """
        import json, os
        print(json.dumps({p: open(f"/proc/{p}/comm").read().strip() for p in os.listdir("/proc") if p.isdigit()}))
        """,
    )
    assert sorted(processes.values()) == sorted(["bwrap", "sleep", Path(sys.executable).name])


def test_the_environment_holds_nothing_of_the_owner(monkeypatch, kernel):
    monkeypatch.setenv("GRADER_TOKEN", "secret-of-the-owner")
    with WarmParent(imports=()) as parent, parent.kernel(limits=LIMITS) as fresh:
        source = """
        import json, os
        with open("/proc/self/environ") as file: initial = file.read()
        print(json.dumps([dict(os.environ), initial]))
        """
        present, initial = told(fresh, source)
    assert {name: present.get(name) for name in environment()} == environment()
    added = {
        "PYDEVD_USE_FRAME_EVAL",
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "FORCE_COLOR",
        "PAGER",
        "GIT_PAGER",
        "PYTHONIOENCODING",
    }
    assert set(present) - set(environment()) <= added
    assert "secret" not in initial
    assert str(ROOT / "tests") not in initial


def test_no_descriptor_leads_out(kernel):
    links = told(
        kernel,
        """
        import json, os
        links = {}
        for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
            try: names = os.listdir(f"/proc/{pid}/fd")
            except OSError: continue
            for name in names:
                try: links[f"{pid}:{name}"] = os.readlink(f"/proc/{pid}/fd/{name}")
                except OSError: pass
        print(json.dumps(links))
        """,
    )
    paths = {link for link in links.values() if link.startswith("/")}
    assert {path for path in paths if not path.startswith("/proc/")} == {"/dev/null"}
    own = [link for name, link in links.items() if not name.startswith(("1:", "2:"))]
    assert own
    assert not any("pidfd" in link for link in own)


def test_bubblewraps_own_processes_hold_no_channel(kernel):
    """Looked at from outside, where all can be seen: a channel left open there would reach the owner."""
    init = kernel._sandbox.init
    sleeper = Path(f"/proc/{init}/task/{init}/children").read_text().split()[0]
    for pid in (init, sleeper):
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert links
        assert all(link == "/dev/null" or link.startswith(("pipe:", "anon_inode:")) for link in links), links


# ---------------------------------------------------------------------- what is reached


def test_no_network_is_reached(kernel, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as plain,
    ):
        path, abstract = str(tmp_path / "host.sock"), f"\0host-{os.getpid()}"
        named.bind(abstract)
        named.listen()
        plain.bind(path)
        plain.listen()
        attempts = [
            (socket.AF_INET, ("127.0.0.1", tcp.getsockname()[1])),
            (socket.AF_INET, ("1.1.1.1", 53)),
            (socket.AF_INET6, ("2606:4700:4700::1111", 53)),
            (socket.AF_UNIX, path),
            (socket.AF_UNIX, abstract),
            (40, (2, 1)),  # AF_VSOCK: the hypervisor; no namespace holds it
            (38, ("hash", "sha256")),  # AF_ALG
        ]
        reached = told(
            kernel,
            f"""
            import json, socket
            reached = []
            for family, address in {[(int(family), address) for family, address in attempts]!r}:
                try:
                    with socket.socket(family, socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_STREAM) as one:
                        one.settimeout(5)
                        one.bind(address) if family == 38 else one.connect(address)
                    reached.append(str(address))
                except OSError: pass
            print(json.dumps(reached))
            """,
        )
        assert reached == []


def test_names_are_not_resolved(kernel):
    source = "import socket\ntry:\n socket.gethostbyname('example.org'); print(1)\nexcept OSError: print(0)"
    assert told(kernel, source) == 0


# ---------------------------------------------------------------------- what may be done


def test_no_privilege_is_left(kernel):
    status = told(
        kernel,
        """
        import json
        with open("/proc/self/status") as file: print(json.dumps(dict(line.split(":", 1) for line in file)))
        """,
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert int(status["NoNewPrivs"]) == 1
    assert int(status["Seccomp"]) == 2
    assert 0 not in map(int, status["Uid"].split() + status["Gid"].split())
    if os.geteuid() == 0:
        assert status["Groups"].split() == []


def test_every_sandbox_of_the_superuser_has_a_user_of_its_own(warm_parent):
    users = []
    for _ in range(2):
        with warm_parent.kernel(limits=LIMITS) as one:
            users.append(told(one, "import os\nprint(os.getuid())"))
    assert 0 not in users
    assert len(set(users)) == (2 if os.geteuid() == 0 else 1)


def test_system_calls_that_lead_out_are_refused(kernel):
    numbers = {name: row[warm.ARCHITECTURES[os.uname().machine][0]] for name, row in warm.REFUSED.items()}
    answers = told(
        kernel,
        f"""
        import ctypes, json, os
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *arguments):
            ctypes.set_errno(0)
            return libc.syscall(number, *map(ctypes.c_long, arguments)), ctypes.get_errno()
        answers = {{name: call(number, 0x10000000, 0, 0, 0, 0) for name, number in {numbers}.items()}}
        column = {warm.ARCHITECTURES[os.uname().machine][0]}
        answers |= {{"clone": call({warm.CLONE}[column], 0x10000000 | 17, 0, 0, 0, 0)}}
        answers |= {{"clone3": call({warm.CLONE3}[column], 0, 0)}}
        answers |= {{"x32": call(0x40000000 + 39)}} if column == 0 else {{}}
        print(json.dumps(answers))
        """,
    )
    assert answers.pop("clone3") == [-1, 38]
    assert {name: answer for name, answer in answers.items() if answer != [-1, 1]} == {}


def test_a_sockets_buffer_keeps_its_size_and_other_options_are_set(kernel):
    sizes = told(
        kernel,
        """
        import json, socket
        names = [(socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF)]
        names += [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, 7), (socket.IPPROTO_TCP, 8)]
        with socket.socket() as one:
            before = [one.getsockopt(*name) for name in names]
            for name, value in zip(names, (1 << 17, 1 << 17, 1, 3, 11)): one.setsockopt(*name, value)
            print(json.dumps([before, [one.getsockopt(*name) for name in names]]))
        """,
    )
    before, after = sizes
    assert after[:2] == before[:2]
    assert after[2:] == [1, 3, 11]


def test_nobody_becomes_another(kernel):
    results = told(
        kernel,
        """
        import json, os, subprocess
        done = []
        attempts = [
            lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]),
            lambda: os.chroot("/tmp"), lambda: os.nice(-5),
            lambda: subprocess.run(["unshare", "-Ur", "true"], check=True, capture_output=True),
            lambda: subprocess.run(["mount", "-t", "tmpfs", "none", "/tmp"], check=True, capture_output=True),
        ]
        for i, attempt in enumerate(attempts):
            try:
                attempt()
                done.append(i)
            except (OSError, subprocess.CalledProcessError): pass
        print(json.dumps(done))
        """,
    )
    assert results == []


def test_nothing_is_written_outside_of_the_small_folders(kernel):
    places = ["/", "/usr", "/usr/bin", "/dev", "/etc", "/proc", "/proc/sys/kernel", "/sys", "/run", "/home", "/opt"]
    files = [companion.__file__, "/usr/bin/sh", "/proc/self/exe", "/proc/sys/user/max_user_namespaces"]
    places += [sys.prefix, sys.base_prefix, companion.__path__[0], str(ROOT), str(ROOT.parent), str(Path.home())]
    written = told(
        kernel,
        f"""
        import json, os
        written = []
        mounts = [line.split()[1] for line in open("/proc/mounts")]
        for place in {places} + mounts:
            try:
                with open(os.path.join(place, "planted"), "w") as file: file.write("x")
                os.remove(os.path.join(place, "planted"))
                written.append(place)
            except OSError: pass
        for file in {files}:
            try:
                open(file, "r+b").close()
                written.append(file)
            except OSError: pass
        print(json.dumps(sorted(set(written))))
        """,
    )
    assert set(written) >= set(FOLDERS)
    below = tuple(f"{folder}/" for folder in FOLDERS)  # a checkout below /tmp has its mount points there
    assert [place for place in written if place not in FOLDERS and not place.startswith(below)] == []


def test_bubblewraps_own_processes_are_no_way_out(kernel):
    """Without root they have the student's user, who may write to their memory: so they may do no more than he may."""
    source = """
    import json, os
    def status(pid): return dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    def limits(pid): return open(f"/proc/{pid}/limits").read()
    def writable(pid):
        try: open(f"/proc/{pid}/mem", "r+b").close()
        except OSError: return False
        return True
    print(json.dumps([[status(pid), limits(pid) == limits("self"), writable(pid)] for pid in (1, 2)]))
    """
    for status, same_limits, writable in told(kernel, source):
        assert int(status["Seccomp"]) == 2
        assert int(status["NoNewPrivs"]) == 1
        assert same_limits
        assert not writable or int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert writable == (os.geteuid() != 0)


def test_each_limit_of_the_system_is_set_for_good(kernel):
    limits = told(
        kernel,
        f"""
        import json, resource
        names = {list(LIMITS.resources())}
        print(json.dumps({{name: resource.getrlimit(getattr(resource, name)) for name in names}}))
        """,
    )
    assert limits == {name: [most, most] for name, most in LIMITS.resources().items()}


# ---------------------------------------------------------------------- the parent


def test_what_cannot_be_imported_is_said(tmp_path):
    with pytest.raises(CourseError, match="No module named 'no_such_module'.*rule:"):
        Parent(("no_such_module",)).__enter__()


def test_the_parent_holds_one_thread_and_nothing_of_the_course(warm_parent):
    process = warm_parent._process.pid
    assert os.listdir(f"/proc/{process}/task") == [str(process)]
    source = "import json, sys\nprint(json.dumps([n for n in sys.modules if n.split('.')[0] == 'course']))"
    with warm_parent.kernel(limits=LIMITS) as kernel:
        assert told(kernel, source) == []


OWNER = """
import os, sys, time
from course.homework.kernel import WarmParent
from course.homework.sandbox import Limits
with WarmParent(imports=()) as parent, parent.kernel(limits=Limits()) as kernel:
    kernel.run("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    print(parent._process.pid, kernel._sandbox.init, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("victim", ["owner", "parent"])
def test_whichever_is_killed_takes_the_sandbox_with_it(victim):
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        parent, init = map(int, owner.stdout.readline().split())
        handles = [os.pidfd_open(pid) for pid in (parent, init)]
        os.kill(owner.pid if victim == "owner" else parent, signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], 30)[0], "still running"
            os.close(handle)
        owner.kill()


def test_no_file_is_left_on_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with WarmParent(imports=()) as parent, parent.kernel(limits=LIMITS) as kernel:
        kernel.run("open('/tmp/x', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


FEWER = "endless_loop or left_running or summed or forks or bomb or figure"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="no superuser: all tests here ran without privileges already")


@root_only
@pytest.mark.parametrize(("file", "which"), [("test_warm.py", "not privileges"), ("test_kernel.py", FEWER)])
def test_all_of_this_holds_without_privileges(file, which):
    """The same tests run by a plain user of the machine."""
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(file)), "-k", which]
    done = as_a_plain_user([sys.executable, *tests])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@root_only
def test_a_superuser_without_privileges_is_refused():
    """In a user namespace he may have another name, but the system limits his processes no more than before."""
    source = "from course.homework.sandbox import refusal; print(refusal())"
    disguise = ["unshare", "-U", "--map-user=1000", "--map-group=1000"]
    done = subprocess.run([*disguise, sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert "does not limit this user's processes" in done.stdout
    assert "remedy: run as another user" in done.stdout


def as_a_plain_user(command: list[str]) -> subprocess.CompletedProcess:
    """Runs `command` as a user without any privilege, who may yet read the checkout and Python.

    Where they lie in a folder that is closed to others (a temporary one, the superuser's home), he sees, in mounts of
    his own, that folder with nothing in it but them.
    """
    user, closed = 60_001, {}
    for path in (ROOT, Path(sys.base_prefix)):
        above = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(path)
    lines = ["set -e"]
    for folder, paths in closed.items():
        lines.append("mount -t tmpfs -o mode=755 none /mnt")
        for path in paths:
            place = shlex.quote(f"/mnt/{path.relative_to(folder)}")
            lines.append(f"mkdir -p {place}; mount --bind {shlex.quote(str(path))} {place}")
        lines.append(f"mount --move /mnt {shlex.quote(str(folder))}")
    drop = f"setpriv --reuid {user} --regid {user} --clear-groups --inh-caps=-all --bounding-set=-all"
    lines += [f"cd {shlex.quote(str(ROOT))}", f'exec {drop} "$@"']
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chown(home, user, user)
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *command],
            env=os.environ | {"CI": "1", "HOME": home, "TMPDIR": home},
            capture_output=True,
            text=True,
        )
