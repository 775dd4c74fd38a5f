"""Hostile submissions against the judge, each in a real sandbox: what they earn, and what a person is told.

The toy homework has three graded problems of 4, 3 and 1 points. Most attacks sit in the second one: the first shows
that what was earned before is kept, the third that the notebook goes on, where it can.
"""

import json
import time
from dataclasses import dataclass
from importlib.util import find_spec

import nbformat
import psutil
import pytest

from companion.exercises import checking
from companion.exercises.homework import judge
from course.cli import main
from course.homework import grading
from course.homework.cleaning import is_strange
from course.homework.editions import blank, notebook_text
from course.homework.judging import IMPORTS, MOST_MESSAGE, grade, paper
from course.homework.kernel import WarmParent
from course.homework.proving import Answer, filled
from course.homework.review import for_review
from course.homework.sandbox import Limits, refusal
from course.homework.sources import load
from course.homework.transplanting import transplant
from tests.homework import toy

pytestmark = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))

LIMITS = Limits(cell_seconds=4, submission_seconds=30, grace_seconds=1, memory_mb=900, processes=32, disk_mb=64)
RIGHT = "def draw(mean, n, generator):\n    return mean + torch.randn(n, generator=generator)\n"


@dataclass(frozen=True)
class Attack:
    """The code in the second problem, the points of the three problems, and a word of the flag (none: no flag)."""

    code: str
    earned: tuple[float, float, float]
    flag: str = ""


ALL, ONLY_FIRST, WITHOUT = (4, 3, 1), (4, 0, 0), (4, 0, 1)
ATTACKS = {
    # --- ending and blocking
    "an endless loop costs its own problem": Attack(
        "def draw(mean, n, generator):\n    while True: pass", WITHOUT, "interrupted in draw-it-"
    ),
    "an endless loop while the cell is read": Attack("while True: pass", WITHOUT, "interrupted in draw-it:"),
    "a loop that ignores interrupts ends the notebook": Attack(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", ONLY_FIRST, "kernel lost"
    ),
    "the process ends itself": Attack("import os\nos._exit(0)", ONLY_FIRST, "kernel lost"),
    "the process kills itself": Attack("import os\nos.kill(os.getpid(), 9)", ONLY_FIRST, "kernel lost"),
    "the kernel is asked to stop": Attack(
        "import asyncio\nget_ipython().kernel.do_shutdown(False)\nexit()\nawait asyncio.sleep(1.5)",
        ONLY_FIRST,
        "kernel lost",
    ),
    "all threads are stopped": Attack(
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", ONLY_FIRST, "kernel lost"
    ),
    # --- resources
    "one large allocation is refused": Attack(
        "def draw(mean, n, generator):\n    torch.ones(30 * 2**28)\n    return mean", WITHOUT
    ),
    "many children of medium memory together": Attack(
        "import os, time\nfor _ in range(8):\n    if not os.fork():\n        x = bytearray(200 * 2**20)\n"
        "        time.sleep(60)\ntime.sleep(60)",
        ONLY_FIRST,
        "memory",
    ),
    "two hundred forks": Attack(
        "import os, time\nfor _ in range(200):\n    if not os.fork(): time.sleep(60)\n" + RIGHT, WITHOUT, None
    ),
    "a daemon is left behind": Attack(
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork(): time.sleep(1000)\n    os._exit(0)\n"
        + RIGHT,
        ALL,
    ),
    "shared memory is filled": Attack(
        "try:\n    with open('/dev/shm/x', 'wb') as f:\n        for _ in range(4000): f.write(bytes(2**20))\n"
        "except OSError: pass\nimport time\ntime.sleep(2)\n" + RIGHT,
        ONLY_FIRST,
        "kernel lost",
    ),
    "fifty megabytes are printed": Attack("print('x' * 50_000_000)\n" + RIGHT, ALL),
    "fifty megabytes are printed while values are computed": Attack(
        RIGHT.replace("    return", "    print('x' * 50_000_000)\n    return"), ALL
    ),
    "a warning on stderr is no failure": Attack("import sys, warnings\nwarnings.warn('careful')\n" + RIGHT, ALL),
    # --- forging points
    "an object that equals everything": Attack(
        "class Same:\n    def __eq__(self, other): return True\n"
        "    def __getattr__(self, name): return lambda *a: self\n"
        "    def __sub__(self, other): return self\n    __add__ = __radd__ = __sub__\n"
        "def draw(mean, n, generator): return Same()",
        WITHOUT,
    ),
    "a number shown as a score": Attack(
        "import sys\ndef draw(mean, n, generator):\n    sys.displayhook(3.0)\n    raise ValueError", WITHOUT
    ),
    "a score above the maximum is printed": Attack(
        'print(\'{"earned": 1000, "points": 1000}\')\ndef draw(mean, n, generator): return 1000 * mean', WITHOUT
    ),
    "cells are no longer run": Attack(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "async def nothing(self, *a, **k): return False\nInteractiveShell.run_code = nothing",
        ONLY_FIRST,
        "tampering",
    ),
    "errors are swallowed": Attack(
        "from IPython.core.interactiveshell import ExecutionResult\n"
        "ExecutionResult.success = property(lambda self: True)\nExecutionResult.error_in_exec = None\n"
        "get_ipython()._run_cell = lambda *a, **k: ExecutionResult(None)\n",
        ONLY_FIRST,
        "tampering",
    ),
    "every error is called another": Attack(
        "from IPython.core.interactiveshell import ExecutionResult\n"
        "ExecutionResult.error_in_exec = property(\n"
        "    lambda self: ValueError('no') if vars(self).get('error') else None,\n"
        "    lambda self, error: vars(self).update(error=error))\n"
        "def draw(mean, n, generator): return mean + torch.randn(n, generator=generator)",
        ONLY_FIRST,
        "tampering",
    ),
    "builtins are patched to agree": Attack(
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.all = lambda x: True\nbuiltins.float = lambda x: 0.0\n"
        "torch.allclose = lambda *a, **k: True\ndef draw(mean, n, generator): return mean.repeat(n)",
        WITHOUT,
    ),
    "json says what the catalogue's right answer was": Attack(
        "import json\nright = json.load(open('01-toys.checks.json'))['checks']['draw-it']['right']\n"
        "json.dumps = lambda *a, **k: json.JSONEncoder().encode(right)\ndef draw(mean, n, generator): return mean",
        ONLY_FIRST,
        "kernel lost",
    ),
    "the values of the checks are patched": Attack(
        "import companion.exercises.homework as h, json\n"
        "right = json.load(open('01-toys.checks.json'))['checks']['draw-it']['right']\n"
        "h.values = lambda probe, seed: right\ndef draw(mean, n, generator): return mean",
        ONLY_FIRST,
    ),
    "every seed is made the public one": Attack(
        "manual = torch.Generator.manual_seed\n"
        "class G(torch.Generator):\n    def manual_seed(self, seed): return manual(self, 0)\n"
        "torch.Generator = G\nimport companion.exercises.checking as c\nc.torch.Generator = G\n"
        "def draw(mean, n, generator): return mean + torch.randn(n, generator=generator)",
        WITHOUT,
    ),
    "the nonce is read and printed with values of one's own": Attack(
        "import json, re, sys\nout = sys.stdout\n"
        "right = json.load(open('01-toys.checks.json'))['checks']['draw-it']['right']\n"
        "def draw(mean, n, generator):\n"
        "    nonce = re.search('[0-9a-f]{32}', In[-1])[0]\n"
        "    out.write(nonce + json.dumps(right) + nonce)\n"
        "    return mean + torch.randn(n, generator=generator)",
        WITHOUT,
        "tampering",
    ),
    "a nonce is replayed": Attack(
        "import json, re, sys\nout, heard = sys.stdout, []\n"
        "def draw(mean, n, generator): return mean\n"
        "def again():\n"
        "    heard.extend(re.findall('[0-9a-f]{32}', In[-1]))\n"
        "    out.write(heard[0] + json.dumps({'kind': 'text', 'data': 'b'}) + heard[0])\n"
        "get_ipython().events.register('post_run_cell', lambda *a: again() if 'probe' in In[-1] else None)\n",
        WITHOUT,
        "tampering",
    ),
    "values are nan": Attack("def draw(mean, n, generator): return torch.full((n,), float('nan'))", WITHOUT),
    "values are infinite": Attack("def draw(mean, n, generator): return torch.full((n,), torch.inf)", WITHOUT),
    "values are no numbers of JSON": Attack(
        "import companion.exercises.homework as h\n"
        "nan = {'kind': 'tensor', 'dtype': 'float32', 'shape': [1e999], 'data': [float('nan')]}\n"
        "h.values = lambda probe, seed: nan",
        ONLY_FIRST,
    ),
    "values are nested without end": Attack(
        "import json\nmany = lambda *a, **k: '[' * 200_000 + ']' * 200_000\n"
        "import companion.exercises.homework as h\nh.values = lambda *a: setattr(json, 'dumps', many)\n" + RIGHT,
        ONLY_FIRST,
        "malformed",
    ),
    "values are of a shape too large to be": Attack(
        "import companion.exercises.homework as h\n"
        "h.values = lambda probe, seed: {'kind': 'tensor', 'shape': [0, 10**18, 10**18], 'data': [], 'dtype': 'x'}",
        ONLY_FIRST,
    ),
    "values hold halves of characters": Attack(
        "import companion.exercises.homework as h\nh.values = lambda probe, seed: {'kind': 'text', 'data': '\\ud800'}",
        ONLY_FIRST,
    ),
    "values would clear the terminal": Attack(
        "import companion.exercises.homework as h\n"
        "h.values = lambda probe, seed: {'kind': 'text', 'data': '\\x1b[2J\\x1b]0;passed\\x07\\0'}",
        ONLY_FIRST,
    ),
    "values are a dictionary with keys of megabytes": Attack(
        "import companion.exercises.homework as h\n"
        "h.values = lambda probe, seed: {'kind': 'map', 'data': {'k' * 2_000_000: {'kind': 'text', 'data': ''}}}",
        ONLY_FIRST,
    ),
    "what is printed as values would clear the terminal": Attack(
        "import sys\nout = sys.stdout\n"
        "def draw(mean, n, generator):\n"
        "    import re\n"
        "    nonce = re.search('[0-9a-f]{32}', In[-1])[0]\n"
        "    out.write(nonce + '\\x1b[2J\\x1b]0;passed\\x07' + nonce)\n"
        "    out.flush()\n"
        "    raise KeyboardInterrupt",
        WITHOUT,
        "tampering",
    ),
    "a forged message would clear the terminal": Attack(
        "kernel = get_ipython().kernel\n"
        "for _ in range(2):\n"
        "    kernel.session.send(kernel.iopub_socket, 'status', {'execution_state': '\\x1b[2J'},\n"
        "                        parent=kernel.get_parent('shell'))\n" + RIGHT,
        ALL,
        "forged message",
    ),
    "values are a shape without data": Attack(
        "import companion.exercises.homework as h\n"
        "h.values = lambda probe, seed: {'kind': 'map', 'data': {'the mean': {'kind': 'tensor', 'shape': [-1, 10**12],"
        " 'data': [], 'dtype': 'x'}}}",
        ONLY_FIRST,
    ),
    # --- looking around
    "nothing of the course can be read": Attack(
        "import os\nfound = []\n"
        "for place, folders, files in os.walk('/'):\n"
        "    folders[:] = [f for f in folders if f not in ('proc', 'sys', 'usr', 'lib', 'site-packages')]\n"
        "    found += [f for f in files if f in ('answers.md', 'gradebook.db', 'roster.csv', 'judging.py', 'toy.py')]\n"
        "assert found == [], found\n" + RIGHT,
        ALL,
    ),
    "no network": Attack(
        "import socket\n"
        "def reach(address):\n"
        "    try: socket.create_connection(address, timeout=1)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "assert not reach(('127.0.0.1', 22)) and not reach(('10.0.0.1', 80))\n" + RIGHT,
        ALL,
    ),
}


# What an honest student may do to his kernel, and still be right.
HONEST = {
    "another loop leaves its own number behind": "for scale in (1.0, 5.0):\n    pass\n",
    "errors open a debugger": "%pdb on\n",
    "float64 is the default": "torch.set_default_dtype(torch.float64)\n",
    "tensors are made elsewhere": "torch.set_default_device('meta')\n",
    "no gradients": "torch.set_grad_enabled(False)\ndef scaled(x):\n    x = x.clone().requires_grad_()\n"
    "    return torch.autograd.grad((scale * x**2 / 2).sum(), x)[0]\n",
    "names of the tests are used otherwise": "check = probe = json = print = open = list = sum = max = 1\n",
    "a cell is timed": "%%time\n",
    "waiting at the top": "import asyncio\nawait asyncio.sleep(0.01)\n",
    "warnings are errors": "import warnings\nwarnings.simplefilter('error')\n",
    "several processes": "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p:\n    p.map(abs, [1])\n",
    "Windows ends its lines otherwise": "import os\r\nx = 1\r\n",
    "arrays of NumPy": "def scaled(x):\n    return scale * x.numpy()\n",
}


@pytest.fixture(scope="module")
def assignment(tmp_path_factory):
    return load(toy.write(tmp_path_factory.mktemp("sources")))


@pytest.fixture(scope="module")
def warm():
    with WarmParent(imports=IMPORTS) as parent:
        yield parent


@pytest.fixture(scope="module")
def judged(assignment, warm):
    """Grades a submission whose second problem holds `code`."""
    exam = paper(assignment, "a secret", limits=LIMITS)

    def run(code, change=lambda notebook: None):
        answers = {problem.name: Answer("right", "", problem.solution) for problem in assignment.graded}
        notebook = json.loads(filled(blank(assignment), answers | {"draw-it": Answer("attack", "", code)}))
        change(notebook)
        collected, flags = transplant(blank(assignment), json.dumps(notebook).encode())
        return grade(exam, collected, "student", warm, flags)

    return run


def earned(result):
    return tuple(sum(s.earned for s in result.tests if s.problem == p) for p in ("scale-it", "draw-it", "choose"))


def test_an_honest_submission_earns_everything_unflagged(judged):
    result = judged(RIGHT)
    assert earned(result) == ALL
    assert result.flags == ()


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_student_loses_nothing_by_his_habits(judged, name):
    solution = "" if "def scaled" in HONEST[name] else "def scaled(x):\n    return scale * x\n"
    result = judged(RIGHT, lambda notebook: cell(notebook, "scale-it").update(source=HONEST[name] + solution))
    assert earned(result) == ALL, result.tests
    assert result.flags == ()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import a_package_of_his\n" + RIGHT, "ModuleNotFoundError: No module named 'a_package_of_his'"),
        ("def draw(mean, n, generator)\n    return mean", "SyntaxError"),
        ("import time\ntime.sleep(60)\n" + RIGHT, f"took longer than {LIMITS.cell_seconds:g} seconds"),
    ],
)
def test_an_answer_that_did_not_run_through_is_told_why(judged, code, told):
    result = judged(code)
    assert earned(result) == WITHOUT
    (message,) = (score.message for score in result.tests if score.problem == "draw-it")
    assert told in message
    assert "not defined" not in message
    assert [flag.kind for flag in result.flags] == (["interrupted"] if "sleep" in code else [])


def test_only_the_grader_itself_reaches_its_workers():
    with grading._client(1, None) as client:
        assert client.scheduler.address.startswith(
            "tls://127.0.0.1:" if find_spec("cryptography") else "tcp://127.0.0.1:"
        )
        ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {c.laddr.ip for process in ours for c in process.net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_a_student_who_is_taken_off_the_roster_stops_nobody(folder, assignment, monkeypatch):
    monkeypatch.setenv("COURSE_TEACHING", str(folder.root))
    folder.root.mkdir()

    def roster(*students):
        folder.roster.write_text("\n".join(["student", *students]) + "\n", encoding="utf-8")

    roster("ada")
    assert main(["homework", "release", "1", "--same-for-all"]) == 0
    roster("ada", "bob", "cyd")
    for student in ("ada", "bob", "cyd"):
        place = folder.inbox(toy.SLUG) / student
        place.mkdir(parents=True)
        answers = {problem.name: Answer("", "", problem.solution) for problem in assignment.graded}
        (place / "01-toys.ipynb").write_text(filled(blank(assignment), answers), encoding="utf-8")
    assert main(["homework", "collect", "1"]) == 0
    roster("ada", "cyd")
    assert main(["homework", "grade", "1", "--workers", "1"]) == 0
    results = {student: grading.read_result(folder, toy.SLUG, student) for student in ("ada", "bob", "cyd")}
    assert {student: result.earned for student, result in results.items() if result} == dict.fromkeys(results, 8)


def texts(result):
    """All of a result that a person reads and that student code has a say in."""
    return [score.message for score in result.tests] + [str(flag) for flag in result.flags]


def test_nothing_is_computed_from_a_shape_that_cannot_be(monkeypatch):
    def hours(lengths):
        raise AssertionError(f"multiplies {len(lengths)} lengths, which can take hours")

    monkeypatch.setattr(checking.math, "prod", hours)
    key = {"right": {"kind": "text", "data": "b"}, "wrong": {}, "atol": 0, "rtol": 0}
    for shape in ([1] * 100_000, [10**300] * 10):
        verdict = judge({"kind": "tensor", "dtype": "x", "shape": shape, "data": [1]}, key)
        assert verdict.message == "Not yet: what your answer returned could not be read."


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_earns_nothing_and_costs_no_other_problem(judged, assignment, name):
    attack = ATTACKS[name]
    result = judged(attack.code)
    assert earned(result) == attack.earned, (result.tests, result.flags)
    assert [text for text in texts(result) if len(text) > MOST_MESSAGE or is_strange(text)] == []
    assert result.to_json().encode()  # it can be kept, and shown to a person
    assert notebook_text(for_review(result, assignment)).encode()
    if attack.flag is not None:
        flags = "; ".join(map(str, result.flags))
        assert attack.flag in flags if attack.flag else flags == ""


def test_the_executed_notebook_stays_small(judged):
    result = judged("print('x' * 50_000_000)\nfor _ in range(100): display('y' * 100_000)")
    assert len(json.dumps(result.notebook)) < 1_000_000


def test_hidden_inputs_do_not_leave_through_outputs(judged, assignment):
    seen = "def draw(mean, n, generator):\n    print('SEEN', mean)\n    raise ValueError(f'SEEN {mean}')"
    result = judged(seen)
    tests = {cell["id"]: cell for cell in result.notebook["cells"] if cell["id"].endswith(("-check", "-hidden"))}
    assert [name for name, cell in tests.items() if cell["outputs"]] == []


def test_outputs_that_tests_came_with_are_not_kept(assignment, warm):
    released = blank(assignment)
    cell(released, "draw-it-check").outputs = [nbformat.v4.new_output("stream", text="Right.")]
    result = grade(paper(assignment, "a secret", limits=LIMITS), released, "student", warm)
    assert cell(result.notebook, "draw-it-check")["outputs"] == []


def cell(notebook, name):
    return next(c for c in notebook["cells"] if c["id"] == name)


def test_edited_tests_and_points_change_nothing_and_are_flagged(judged):
    def change(notebook):
        cell(notebook, "draw-it-check")["source"] = "print('passed')"
        cell(notebook, "draw-it-check")["metadata"]["nbgrader"]["points"] = 1000

    result = judged(RIGHT, change)
    assert earned(result) == ALL
    assert "edited in draw-it-check" in "; ".join(map(str, result.flags))


def test_deleted_tests_are_run_all_the_same_and_flagged(judged):
    def change(notebook):
        notebook["cells"] = [c for c in notebook["cells"] if not c["id"].endswith(("-check", "-hidden"))]

    result = judged("def draw(mean, n, generator): return -mean", change)
    assert earned(result) == WITHOUT
    assert "missing in draw-it-check" in "; ".join(map(str, result.flags))


def test_a_duplicated_answer_counts_once(judged):
    def change(notebook):
        notebook["cells"].append(json.loads(json.dumps(cell(notebook, "draw-it"))))

    result = judged(RIGHT, change)
    assert earned(result) == ALL
    assert "duplicated" in "; ".join(flag.kind for flag in result.flags)


def test_anothers_numbers_do_not_pass(judged):
    def change(notebook):
        cell(notebook, "variant")["source"] = "scale = 1.0"
        cell(notebook, "scale-it")["source"] = "def scaled(x):\n    return x"

    assert earned(judged(RIGHT, change))[0] == 0


def test_a_students_own_cell_runs_but_decides_nothing(judged):
    def change(notebook):
        own = nbformat.v4.new_code_cell("helper = 1\ndef probe(generator): return 'mine'\ncheck = print")
        notebook["cells"].insert(5, json.loads(json.dumps(own)))

    result = judged(RIGHT.replace("return mean", "return helper * mean"), change)
    assert earned(result) == ALL


def test_time_of_a_whole_submission_is_bounded(judged):
    begun = time.monotonic()
    result = judged("import time\n" + "\n".join("pass" for _ in range(3)) + "\ntime.sleep(1000)")
    assert earned(result) == WITHOUT
    assert time.monotonic() - begun < LIMITS.submission_seconds + 10
