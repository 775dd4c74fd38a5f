"""Set up the course's own Python environment, then run a `course` command in it.

    python3 course/bootstrap.py EXTRA[,EXTRA...] -- COMMAND [ARGUMENT...]

Needs nothing but Python's standard library, and is written so that an old Python can read it and say that it is old.
The environment is `.venv` in the checkout. It is made once; packages are installed again only when pyproject.toml or
constraints.txt changed or another extra is asked for. A broken or half-made environment is made anew.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
NEWEST = (3, 13)
FREE_GB = 4
STAMP = "course-setup.json"
PEERS = {"peers", "test", "all"}  # the extras with which the packages under [tool.course] come

NO_NETWORK = (
    "temporary failure in name resolution",
    "name or service not known",
    "getaddrinfo failed",
    "newconnectionerror",
    "network is unreachable",
    "connection refused",
    "connecttimeout",
    "read timed out",
    "proxyerror",
    "max retries exceeded",
    "nodename nor servname",
    "failed to establish a new connection",
    "certificate verify failed",
    "(from versions: none)",
)
NO_DISK = ("no space left on device", "errno 28", "not enough space on the disk", "disk quota exceeded")
SHOWN = ("Collecting", "Downloading", "Building", "Installing")  # the lines of pip that say how far it is


class SetupError(Exception):
    """Something that the user has to mend; printed as one message."""


def main(argv):
    """Sets up the environment with the asked extras and runs the command after `--`; returns the exit status."""
    if "--" not in argv[1:]:
        print(__doc__)
        return 2
    cut = argv.index("--")
    extras, command = [e for a in argv[:cut] for e in a.split(",") if e], argv[cut + 1 :]
    try:
        check_python(sys.version_info)
        python = prepare(ROOT, extras)
    except SetupError as error:
        sys.stderr.write("setup: %s\n" % error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nsetup: stopped; the next call takes up where this one left\n")
        return 130
    return run_course(python, command)


def check_python(version):
    """Raises SetupError where this Python is too old; notes one that is newer than those tested."""
    if tuple(version[:2]) < OLDEST:
        raise SetupError(
            "received Python %d.%d (%s); rule: Python %d.%d to %d.%d. Name one that you have, for example "
            "`make site PYTHON=python3.12`, or install one from python.org, your system or conda"
            % ((version[0], version[1], sys.executable) + OLDEST + NEWEST)
        )
    if tuple(version[:2]) > NEWEST:
        say(
            "Python %d.%d is newer than those tested (%d.%d to %d.%d); trying it"
            % (tuple(version[:2]) + OLDEST + NEWEST)
        )


def prepare(root, extras):
    """Makes sure that `.venv` holds the course with these extras; returns the path of its Python."""
    venv = os.path.join(root, ".venv")
    python = python_of(venv)
    stamp = read_stamp(venv)
    wanted = sorted(set(extras) | set(stamp.get("extras", [])))
    if os.path.lexists(venv) and not works(python):
        say("the environment .venv is broken or half-made: making it anew")
        remove(venv)
        stamp = {}
    if stamp.get("state") == fingerprint(root) and set(extras) <= set(stamp.get("extras", [])):
        return python
    if not stamp:
        check_disk(root)
    if not os.path.exists(python):
        say("making the environment .venv with Python %s" % sys.version.split()[0])
        create(venv)
    install(root, python, wanted)
    write_stamp(venv, {"state": fingerprint(root), "extras": wanted})
    return python


def say(text):
    """Prints what the set-up does, at once."""
    print("setup: " + text)
    sys.stdout.flush()


def python_of(venv):
    """The interpreter of an environment."""
    return os.path.join(venv, "Scripts", "python.exe") if os.name == "nt" else os.path.join(venv, "bin", "python")


def works(python):
    """Whether the interpreter starts, is new enough, and has pip."""
    test = "import pip, sys; sys.exit(sys.version_info < %r)" % (OLDEST,)
    try:
        return subprocess.call([python, "-c", test], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def remove(venv):
    """Deletes a broken environment, and nothing that is not one."""
    if os.path.islink(venv) or not os.path.isdir(venv):
        raise SetupError("received .venv, which is no folder; rule: remove it, then call again")
    known = {
        "bin",
        "Scripts",
        "lib",
        "Lib",
        "lib64",
        "include",
        "Include",
        "share",
        "etc",
        "pyvenv.cfg",
        "doc",
        "man",
        ".gitignore",
        ".lock",
        "CACHEDIR.TAG",
        STAMP,
    }
    strange = sorted(set(os.listdir(venv)) - known)
    if strange:
        raise SetupError(
            "received a .venv that holds %s; rule: move your files out of it, remove it, call again"
            % ", ".join(strange)
        )
    shutil.rmtree(venv)


def fingerprint(root):
    """A digest of all that decides what is installed: the two files, the place of the checkout, this Python."""
    digest = hashlib.sha256(repr((os.path.abspath(root), sys.version_info[:2])).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(root, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp(venv):
    """What the last finished set-up wrote; empty where there was none."""
    try:
        with open(os.path.join(venv, STAMP), encoding="utf-8") as file:
            stamp = json.load(file)
        return stamp if isinstance(stamp, dict) else {}
    except (OSError, ValueError):
        return {}


def write_stamp(venv, stamp):
    """Records a finished set-up, last of all and whole."""
    part = os.path.join(venv, STAMP + ".part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
    os.replace(part, os.path.join(venv, STAMP))


def check_disk(root):
    """Raises SetupError where the disk is too full to begin."""
    free = shutil.disk_usage(root).free / 1e9
    if free < FREE_GB:
        raise SetupError("received a disk with %.1f GB free; rule: at least %d GB for the packages" % (free, FREE_GB))


def create(venv):
    """Makes an empty environment; a failure leaves none behind."""
    result = subprocess.run(
        [sys.executable, "-m", "venv", venv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        hint = explain(result.stdout, "python -m venv failed; on Debian and Ubuntu: `apt install python3-venv`")
        raise SetupError("%s\n%s" % (hint, result.stdout.strip()[-600:]))


def install(root, python, extras):
    """Installs the checkout with its extras, held to constraints.txt."""
    say("installing the packages for: %s (the first time takes minutes)" % ", ".join(extras))
    pip(root, python, ["-e", ".[%s]" % ",".join(extras)])
    if PEERS.intersection(extras):
        pip(root, python, ["--no-deps"] + without_dependencies(root))
    say("done")


def without_dependencies(root):
    """The packages that are installed alone; their other dependencies are not needed here, and large."""
    import tomllib  # not known to the old Pythons that only read this file to be told that they are old

    with open(os.path.join(root, "pyproject.toml"), "rb") as file:
        return tomllib.load(file)["tool"]["course"]["without-dependencies"]


def pip(root, python, arguments):
    """Runs pip under the constraints, shows what it does, and explains a failure."""
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--progress-bar",
        "off",
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
    ]
    process = subprocess.Popen(
        command + arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip().startswith(SHOWN):
            say(line.strip()[:100])
    if process.wait():
        sys.stdout.write("".join(lines[-20:]))
        raise SetupError(explain("".join(lines), "pip failed; its last lines above say why. Calling again is safe"))


def explain(output, otherwise):
    """Turns the output of a failed command into a sentence about its cause."""
    text = output.lower()
    if any(sign in text for sign in NO_DISK):
        return "the disk is full; rule: at least %d GB free for the packages. Calling again is safe" % FREE_GB
    if any(sign in text for sign in NO_NETWORK):
        return (
            "the package index cannot be reached; rule: the first set-up needs the network (behind a proxy set "
            "HTTPS_PROXY, for a mirror set PIP_INDEX_URL). Calling again is safe"
        )
    return otherwise


def run_course(python, command):
    """Runs `course COMMAND` in the environment and hands on its exit status."""
    try:
        return subprocess.call([python, "-m", "course.cli"] + command, cwd=ROOT)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno == errno.ENOENT:
            sys.stderr.write("setup: %s is gone; call again\n" % python)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
