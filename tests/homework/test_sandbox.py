"""The room and its limits, without a student's code in it; and what is said where no room can be made."""

import shutil
import sys
import time
from pathlib import Path

import pytest

from course.chapters import CourseError
from course.homework import sandbox, warm
from course.homework.sandbox import Limits, Parent, Usage, Watchdog, command, refusal, remedy


@pytest.fixture
def tried():
    """`refusal` remembers its answer: forget it before and after."""
    refusal.cache_clear()
    yield
    refusal.cache_clear()


# ---------------------------------------------------------------------- refusal


def test_without_bubblewrap_it_is_said_how_to_install_it(monkeypatch, tried):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "\n" not in refusal()
    assert "sudo apt-get install bubblewrap" in refusal()


def test_on_other_systems_it_is_said_where_to_go(monkeypatch, tried):
    monkeypatch.setattr(sys, "platform", "win32")
    assert "WSL 2" in refusal()


def test_a_bubblewrap_that_fails_is_quoted_with_a_remedy(monkeypatch, tried, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    assert "setting up uid map: Permission denied" in refusal()
    assert refusal().endswith("remedy: " + remedy())
    assert "\n" not in refusal()


SETTINGS = {
    "proc/sys/user/max_user_namespaces": ("0", "user.max_user_namespaces=10000"),
    "proc/sys/kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
    "proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", "apparmor_restrict_unprivileged_userns=0"),
    ".dockerenv": ("", "--cap-add SYS_ADMIN"),
    "run/.containerenv": ("", "--cap-add SYS_ADMIN"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_setting_that_forbids_is_named(tmp_path, name):
    value, expected = SETTINGS[name]
    assert expected not in remedy(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(value)
    assert expected in remedy(tmp_path)


# ---------------------------------------------------------------------- the room


def test_only_prefixes_and_the_package_are_bound(tmp_path):
    package = tmp_path / "checkout" / "companion"
    argv = command(Limits(), str(package), root=True)
    bound = {argv[i + 1] for i, word in enumerate(argv) if word in ("--ro-bind", "--ro-bind-try", "--bind")}
    system = {"/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts"}
    assert bound - system - {"/sys/devices/system/cpu"} <= {sys.prefix, sys.base_prefix, str(package)}
    assert str(package) in bound
    assert "--bind" not in argv
    assert str(tmp_path / "checkout") not in bound


def test_the_superuser_needs_no_user_namespace_and_others_get_one_without_children():
    assert "--unshare-user" not in command(Limits(), root=True)
    assert {"--unshare-user", "--disable-userns"} <= set(command(Limits(), root=False))


def test_a_prefix_within_another_is_bound_once():
    assert sandbox._outermost({"/a", "/a/b", "/usr/local", "/usr"}) == ["/a"]


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        (Usage(3412.4, 41, 0, 0), "memory: 3,412 MB in 41 processes; at most 3,000"),
        (Usage(1, 65, 0, 0), "processes: 65; at most 64"),
        (Usage(1, 1, 256.5, 0), "disk: 256 MB; at most 256"),
        (Usage(1, 1, 1, 20_001), "files: 20,001; at most 20,000"),
        (Usage(3000, 64, 256, 20_000), None),
    ],
)
def test_what_is_too_much_is_said(usage, reason):
    assert usage.excess(Limits()) == reason


def test_memory_is_the_share_of_the_pages_and_the_page_tables(tmp_path):
    (tmp_path / "smaps_rollup").write_text("00-ff ---p\nRss: 900 kB\nPss: 100 kB\nPss_Anon: 50 kB\n")
    (tmp_path / "status").write_text("Name: x\nVmPTE: 24 kB\n")
    assert sandbox._memory(str(tmp_path)) == 124 * 1024


def test_a_process_that_cannot_be_read_counts_with_all_it_maps(tmp_path, monkeypatch):
    def refuse(path, name):
        raise PermissionError

    monkeypatch.setattr(sandbox, "_field", refuse)
    (tmp_path / "statm").write_text("900 100 3 4 5 6 7")
    assert sandbox._memory(str(tmp_path)) == 100 * 4096


def test_sockets_beyond_a_usual_number_count_as_if_they_were_full(tmp_path):
    def write(used, tcp, tcp6):
        (tmp_path / "sockstat").write_text(f"sockets: used {used}\nTCP: inuse {tcp} orphan 0 tw 0\nFRAG: inuse 9 x 0\n")
        (tmp_path / "sockstat6").write_text(f"TCP6: inuse {tcp6}\nUDP6: inuse 90\n")
        return sandbox._sockets_mb(str(tmp_path))

    assert write(40, 6, 2) == 0
    assert write(164, 6, 2) == 50
    assert write(40, 6, 4) == 72
    assert sandbox._sockets_mb(str(tmp_path / "gone")) == 0


class Fake:
    """A sandbox of which only the processes can be counted quickly."""

    def __init__(self, usage):
        self.use, self.killed = usage, False

    def usage(self, most):
        return self.use

    def kill(self):
        self.killed = True


@pytest.mark.parametrize(("usage", "killed"), [(Usage(1, 1, 1, 1), False), (Usage(9999, 1, 1, 1), True), (None, False)])
def test_the_watchdog_kills_what_uses_too_much(usage, killed):
    fake, reasons = Fake(usage), []
    dog = Watchdog(fake, Limits(), reasons.append)
    assert dog.look() == (usage is not None and not killed)
    assert fake.killed == killed == bool(reasons)
    assert dog.peak_mb == (usage.memory_mb if usage else 0)


@pytest.mark.parametrize(
    ("cost", "pause", "killed"), [(0.003, 0.1, False), (0.1, 0.3, False), (1.9, 0.5, False), (2.1, None, True)]
)
def test_a_look_is_followed_by_a_bounded_pause_and_a_costly_one_is_the_last(monkeypatch, cost, pause, killed):
    """By processor time: on a busy machine every look is long."""
    fake, reasons, pauses, clock = Fake(Usage(1, 1, 1, 1)), [], [], iter([5.0, 5.0 + cost])
    dog = Watchdog(fake, Limits(), reasons.append)
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(dog._stop_now, "wait", lambda seconds: pauses.append(round(seconds, 6)) or True)
    dog.run()
    assert pauses == ([pause] if pause else [])
    assert fake.killed == killed
    assert reasons == (["memory: 2.1 s of processor time to count it; at most 2"] if killed else [])


def test_the_watchdog_ends_with_the_time():
    fake, reasons = Fake(Usage(1, 1, 1, 1)), []
    dog = Watchdog(fake, Limits(submission_seconds=0), reasons.append)
    time.sleep(0.01)
    dog.run()
    assert fake.killed
    assert reasons == ["time: more than 0 s in all"]


# ---------------------------------------------------------------------- real ones


def test_an_empty_sandbox_opens_counts_and_goes(warm_parent):
    files = {"a/b.txt": bytes(20 << 20)}
    with warm_parent.start(limits=Limits(), files=files, probe=True) as room:
        usage, folder = room.usage(), Path(f"/proc/{room.init}/root{warm.WORK}")
        assert (folder / "a/b.txt").read_bytes() == files["a/b.txt"]
        assert 20 <= usage.disk_mb < 21
        assert usage.memory_mb > usage.disk_mb  # which is memory, too
        assert room.usage(most=-1).memory_mb == 0
    assert room.usage() is None


def test_files_beyond_the_room_are_refused(warm_parent):
    with pytest.raises(CourseError, match="at most half of 1 MB"):
        warm_parent.start(limits=Limits(disk_mb=1), files={"x": bytes(1 << 20)})


def test_a_parent_that_has_ended_says_so():
    with Parent() as parent:
        parent._process.kill()
        parent._process.wait()
        with pytest.raises(CourseError, match="warm parent|no answer"):
            parent.start(limits=Limits(), probe=True)


@pytest.mark.parametrize("place", ["/tmp", "/home/student", "/dev/shm"])
def test_a_checkout_below_a_folder_in_memory_is_seen(place):
    argv = command(Limits(), companion=f"{place}/checkout/companion")
    mounted = [index for index in range(len(argv) - 1) if argv[index : index + 2] == ["--tmpfs", place]]
    shown = [i for i in range(len(argv) - 1) if argv[i : i + 2] == ["--ro-bind", f"{place}/checkout/companion"]]
    assert len(mounted) == len(shown) == 1
    assert mounted < shown  # what is mounted later hides what was there
