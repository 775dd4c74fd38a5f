"""Each student's submission is found in whatever an instructor drops into a folder, and nothing else is opened."""

import gzip
import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest

from course.chapters import CourseError
from course.homework import archives, collecting
from course.homework.archives import MIB
from course.homework.collecting import Arrival, arrivals, pack
from course.homework.roster import Roster, Student
from tests.homework.handed_out import SLUG, answered, edited, raw, release, tarred, zipped

NOTEBOOK = f"{SLUG}.ipynb"
NOON, LATER = datetime(2027, 1, 1, 12, tzinfo=UTC), datetime(2027, 1, 2, 12, tzinfo=UTC)
STUDENTS = [
    Student("ada", "Ada", "Lovelace", "ada@example.org", {"canvas_id": "1815", "moodle_id": "77"}),
    Student("bob", "Bob", "Doe, Jr", "Bob@example.org", {"canvas_id": "1816", "gradescope_id": "g-2"}),
    Student("zoe", "Zoë", "Ångström", "zoe@example.org", {"canvas_id": "77"}),
]
ROSTER = Roster(STUDENTS)


def work(text: str) -> bytes:
    """A submission that can be told from others."""
    return raw(answered(path=text))


ADA, BOB, ZOE = work("ada's"), work("bob's"), work("zoe's")


def drop(inbox: Path, files: dict[str, bytes]) -> Path:
    """Puts files into the inbox."""
    for name, data in files.items():
        (inbox / name).parent.mkdir(parents=True, exist_ok=True)
        (inbox / name).write_bytes(data)
    return inbox


def collect(inbox: Path, roster: Roster | None = ROSTER, **more) -> dict[str | None, Arrival]:
    """The arrivals by student; the last of those that are set aside under None."""
    found = list(arrivals(inbox, SLUG, roster, **more))
    named = [arrival.student for arrival in found if arrival.student is not None]
    assert len(named) == len(set(named)), "a student came twice"
    assert all(flag.evidence.isprintable() for arrival in found for flag in arrival.flags)
    assert not any(flag.kind == "collecting failed" for arrival in found for flag in arrival.flags)
    return {arrival.student: arrival for arrival in found}


def kinds(arrival: Arrival) -> list[str]:
    return [flag.kind for flag in arrival.flags]


def one(inbox: Path, files: dict[str, bytes], **more) -> Arrival:
    """The one arrival of these files."""
    (arrival,) = collect(drop(inbox, files), **more).values()
    return arrival


@pytest.mark.parametrize(
    "name",
    [
        f"ada/{NOTEBOOK}",
        f"ada@example.org/{NOTEBOOK}",
        f"ADA@example.org/{NOTEBOOK}",
        f"1815/{NOTEBOOK}",
        f"ada/sub/folder/{NOTEBOOK}",
        f"ada_{SLUG}/{NOTEBOOK}",
        f"lovelaceada_1815_99_{NOTEBOOK}",
        f"lovelaceada_1815_99_{SLUG}-3.ipynb",
        f"Ada Lovelace_77_assignsubmission_file_/{NOTEBOOK}",
        f"Ada Lovelace_77_assignsubmission_file_{NOTEBOOK}",
    ],
)
def test_a_student_is_known_by_every_name(tmp_path, name):
    assert one(tmp_path, {name: ADA}) == Arrival("ada", name.split("/")[0], ADA)


@pytest.mark.parametrize("name", ["ada.ipynb", f"ada_{NOTEBOOK}", f"{SLUG}-ada.ipynb", f"{SLUG}_ada@example.org.ipynb"])
def test_loose_notebooks_are_known_by_their_names_and_flagged_as_renamed(tmp_path, name):
    arrival = one(tmp_path, {name: ADA})
    assert (arrival.student, arrival.notebook, kinds(arrival)) == ("ada", ADA, ["renamed"])


@pytest.mark.parametrize("name", ["ada.zip", f"ada_{SLUG}.zip", f"lovelaceada_LATE_1815_99_{SLUG}.zip", "ada/work.zip"])
@pytest.mark.parametrize("inside", [NOTEBOOK, f"ada/{NOTEBOOK}", f"bob/{NOTEBOOK}"])
def test_archives_belong_to_whom_their_names_say_not_to_whom_their_content_says(tmp_path, name, inside):
    arrival = one(tmp_path, {name: zipped({inside: ADA, "data.csv": b"1,2"})})
    assert (arrival.student, arrival.notebook) == ("ada", ADA)
    assert kinds(arrival) == (["marked late"] if "LATE" in name else [])


def test_tar_and_compressed_tar_are_opened(tmp_path):
    drop(tmp_path, {"ada.tar": tarred({NOTEBOOK: ADA}), "bob.tar.gz": tarred({NOTEBOOK: BOB}, "w:gz")})
    found = collect(drop(tmp_path, {"zoe.tgz": tarred({NOTEBOOK: ZOE}, "w:gz")}))
    assert {student: arrival.notebook for student, arrival in found.items()} == {"ada": ADA, "bob": BOB, "zoe": ZOE}


CANVAS = {
    f"lovelaceada_1815_11_{SLUG}-1.ipynb": ADA,
    "lovelaceada_1815_12_data.csv": b"1",
    f"doejrbob_LATE_1816_13_{NOTEBOOK}": BOB,
    f"angstromzoe_77_14_{SLUG}.zip": zipped({NOTEBOOK: ZOE}),
}
MOODLE = {
    f"Ada Lovelace_77_assignsubmission_file_/{NOTEBOOK}": ADA,
    "Ada Lovelace_77_assignsubmission_onlinetext_/onlinetext.html": b"<script>",
    f"Bob Doe, Jr_501_assignsubmission_file_/{SLUG}.zip": zipped({NOTEBOOK: BOB}),
    f"Zoë Ångström_502_assignsubmission_file_/{NOTEBOOK}": ZOE,
}
METADATA = b"""---
submission_1:
  :submitters:
  - :name: Ada Lovelace
    :sid: 'ada'
    :email: ada@example.org
  :created_at: 2027-01-01 12:00:00.000000000 Z
  :score: 0.0
  :results: !ruby/hash:ActiveSupport::HashWithIndifferentAccess {}
submission_2:
  :submitters:
  - &1
    :name: Bob
    :sid: g-2
    :email:
  - :name: Zoe
    :sid:
    :email: zoe@example.org
  :created_at: 2027-01-02 13:00:00.000000000 +01:00
  :history: [*1]
"""
GRADESCOPE = {
    "export/submission_metadata.yml": METADATA,
    f"export/submission_1/{NOTEBOOK}": ADA,
    f"export/submission_2/{NOTEBOOK}": BOB,
}


@pytest.mark.parametrize("wrap", ["loose", "folder", "zip", "zip with a folder", "tar.gz"])
@pytest.mark.parametrize("files", [CANVAS, MOODLE, GRADESCOPE], ids=["canvas", "moodle", "gradescope"])
def test_downloads_of_all_submissions_are_told_apart(tmp_path, files, wrap):
    if wrap == "loose":
        drop(tmp_path, files)
    elif wrap == "folder":
        drop(tmp_path / "download", files)
    else:
        inner = {f"all/{name}": data for name, data in files.items()} if wrap == "zip with a folder" else files
        data = tarred(inner, "w:gz") if wrap == "tar.gz" else zipped(inner)
        drop(tmp_path, {f"download.{wrap.split()[0]}": data})
    found = collect(tmp_path)
    group = files is GRADESCOPE
    assert {s: a.notebook for s, a in found.items()} == {"ada": ADA, "bob": BOB, "zoe": BOB if group else ZOE}
    assert kinds(found["bob"]) == {id(CANVAS): ["marked late"], id(MOODLE): ["recognised by name"]}.get(
        id(files), ["group"]
    )
    assert [found[s].submitted for s in found] == ([NOON, LATER, LATER] if group else [None] * 3)


def test_a_number_of_one_system_is_no_number_of_another(tmp_path):
    """77 is Ada in Moodle and Zoe in Canvas."""
    assert one(tmp_path, {f"x_77_5_{NOTEBOOK}": ZOE}).student == "zoe"
    assert collect(drop(tmp_path, {f"x_77_assignsubmission_file_/{NOTEBOOK}": ADA}))["ada"].notebook == ADA


@pytest.mark.parametrize(
    "name",
    [f"eve/{NOTEBOOK}", "eve.ipynb", NOTEBOOK, f"x_999_5_{NOTEBOOK}", f"Eve_9_assignsubmission_file_/ada/{NOTEBOOK}"],
)
def test_who_is_not_in_the_roster_is_set_aside(tmp_path, name):
    arrival = one(tmp_path, {name: ADA})
    assert (arrival.student, arrival.notebook, arrival.name) == (None, ADA, name.split("/")[0])
    assert kinds(arrival)[0] == "unknown student"


def test_a_stranger_cannot_hand_in_for_somebody_else(tmp_path):
    files = {"homework.zip": zipped({f"ada/{NOTEBOOK}": b"not ada's"}), f"eve/bob/{NOTEBOOK}": b"not bob's"}
    files[f"Eve_9_assignsubmission_file_/ada/{NOTEBOOK}"] = b"not ada's"
    assert set(collect(drop(tmp_path, files))) == {None}


@pytest.mark.parametrize("name", ["a..b", "-rf", "a b", "ä", "x" * 65])
def test_without_a_roster_only_names_that_are_ids_count(tmp_path, name):
    files = {f"{name}.ipynb": ADA, f"carl.d@x.org/{NOTEBOOK}": BOB}
    found = collect(drop(tmp_path, files), roster=None)
    assert found["carl.d@x.org"].notebook == BOB
    assert kinds(found[None])[0] == "unknown student"


def test_the_roster_says_when_it_was_handed_in(tmp_path):
    roster = Roster(STUDENTS, {("ada", SLUG): LATER, ("bob", "10-other"): NOON})
    found = collect(drop(tmp_path, GRADESCOPE | {f"bob/{NOTEBOOK}": BOB}), roster)
    assert found["ada"].submitted == LATER
    os.utime(tmp_path / "bob" / NOTEBOOK, (0, 0))
    assert collect(drop(tmp_path / "2", {f"bob/{NOTEBOOK}": BOB}), roster)["bob"].submitted is None


def test_of_several_arrivals_the_newest_counts(tmp_path):
    early = METADATA.replace(b"2027-01-01", b"2026-12-01")
    drop(tmp_path / "b", {name: work("older") for name in GRADESCOPE} | {"export/submission_metadata.yml": early})
    found = collect(drop(tmp_path / "a", GRADESCOPE).parent)
    assert found["ada"].notebook == ADA
    assert kinds(found["ada"]) == ["found inside", "several arrivals"]
    assert found["ada"].submitted == NOON


def test_of_several_arrivals_without_a_time_the_last_by_name_counts(tmp_path):
    files = {f"ada_{SLUG}-{number}.zip": zipped({NOTEBOOK: work(str(number))}) for number in (2, 10, 9)}
    roster = Roster([Student("ada", identities={f"n{n}_id": str(n) for n in (2, 9, 10)} | {"a_id": "ada"})])
    arrival = one(tmp_path, {f"{n}.zip": files[f"ada_{SLUG}-{n}.zip"] for n in (2, 10, 9)}, roster=roster)
    assert (arrival.student, arrival.notebook, kinds(arrival)) == ("ada", work("10"), ["several arrivals"])


def test_an_empty_arrival_does_not_hide_another(tmp_path):
    arrival = one(tmp_path, {"ada.ipynb": ADA, "ada/notes.txt": b"", "ada@example.org.zip": b"PK\3\4broken"})
    assert arrival.notebook == ADA
    assert "several arrivals" in kinds(arrival)


def test_the_notebook_is_picked_by_name_then_alone_then_by_fit(tmp_path):
    other = raw(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x")]))
    exact = {f"ada/{NOTEBOOK}": ADA, "ada/scratch.ipynb": other}
    fitting = {"bob/a.ipynb": BOB, "bob/b.ipynb": other}
    found = collect(drop(tmp_path, exact | fitting | {"zoe/final.ipynb": ZOE}), released=release())
    assert [(a.notebook, kinds(a)) for a in found.values()] == [
        (ADA, ["several notebooks"]),
        (BOB, ["several notebooks", "renamed"]),
        (ZOE, ["renamed"]),
    ]


def test_of_notebooks_that_fit_equally_the_last_by_number_counts(tmp_path):
    arrival = one(tmp_path, {f"ada/version {n}.ipynb": work(str(n)) for n in (2, 10, 9)}, released=release())
    assert arrival.notebook == work("10")


def test_without_slug_in_the_metadata_the_cells_of_the_release_decide(tmp_path):
    bare = edited(lambda notebook: notebook.metadata.clear())
    other = raw(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x") for _ in range(50)]))
    files = {"ada/a.ipynb": bare, "ada/b.ipynb": other}
    assert one(tmp_path, files, released=release()).notebook == bare
    assert collect(tmp_path)["ada"].notebook == other  # without the release, the last by name


def test_another_assignment_is_flagged(tmp_path):
    wrong = edited(lambda notebook: notebook.metadata.homework.update(slug="10-energy"))
    arrival = one(tmp_path, {f"ada/{NOTEBOOK}": wrong})
    assert arrival.notebook == wrong
    assert [str(flag) for flag in arrival.flags] == [f"another assignment: handed in 10-energy in place of {SLUG}"]


def test_archives_in_archives_are_opened_to_a_depth_of_three(tmp_path):
    data = ADA
    for name in (NOTEBOOK, "c.zip", "b.tar", "ada.zip"):
        inner = data
        data = tarred({NOTEBOOK if inner is ADA else "c.zip": inner}) if name == "b.tar" else data
        data = zipped({{"c.zip": NOTEBOOK, "ada.zip": "b.tar"}[name]: inner}) if name.endswith(".zip") else data
    drop(tmp_path, {"ada.zip": data, "bob.zip": zipped({"d.zip": data})})
    found = collect(tmp_path)
    assert found["ada"].notebook == ADA
    assert (found["bob"].notebook, kinds(found["bob"])) == (None, ["nested too deep", "no notebook"])


def bomb_of(depth: int) -> bytes:
    data = zipped({"zeros.ipynb": bytes(30 * MIB)})
    for level in range(depth):
        data = zipped({f"{level}-{copy}.zip": data for copy in range(8)})
    return data


def test_one_bad_arrival_leaves_the_others_intact(tmp_path):
    link = zipfile.ZipInfo(NOTEBOOK)
    link.create_system, link.external_attr = 3, 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    bad = {
        "bomb": (bomb_of(0), "bomb"),
        "nested": (bomb_of(2), "bomb"),
        "gzip": (gzip.compress(bytes(40 * MIB)), "bomb"),
        "slip": (zipped({f"../../{NOTEBOOK}": ADA}), "unsafe name"),
        "link": (buffer.getvalue(), "link"),
        "broken": (b"PK\3\4" + bytes(50), "unreadable archive"),
        "many": (zipped({f"{number}": b"" for number in range(1001)}), "too many files"),
        "rar": (zipped({"work.rar": b"Rar!"}), "unsupported archive"),
        "empty": (zipped({}), "no notebook"),
        "large": (zipped({NOTEBOOK: os.urandom(21 * MIB)}, zipfile.ZIP_STORED), "too large"),
    }
    roster = Roster([*STUDENTS, *(Student(name) for name in bad)])
    drop(
        tmp_path,
        {f"{name}.zip": data for name, (data, _) in bad.items()} | {f"ada/{NOTEBOOK}": ADA, f"zoe/{NOTEBOOK}": ZOE},
    )
    found = collect(tmp_path, roster)
    assert (found["ada"].notebook, found["zoe"].notebook) == (ADA, ZOE)
    assert found["ada"].flags == found["zoe"].flags == ()
    for name, (_, kind) in bad.items():
        assert found[name].notebook is None, name
        assert kind in kinds(found[name]), name


def test_a_bad_member_does_not_hide_the_notebook(tmp_path):
    data = zipped({"../x": b"", "inner.zip": b"PK\3\4", NOTEBOOK: ADA})
    arrival = one(tmp_path, {"ada.zip": data})
    assert (arrival.notebook, kinds(arrival)) == (ADA, ["unsafe name", "unreadable archive"])


def test_a_bad_download_leaves_the_inbox_intact(tmp_path):
    drop(tmp_path, {"all.zip": zipped(CANVAS | {"../evil.ipynb": b""}), f"bob/{NOTEBOOK}": BOB})
    found = collect(tmp_path)
    assert found["ada"].notebook == ADA
    assert kinds(found[None]) == ["unknown student", "unsafe name", "no notebook"]


def test_links_and_pipes_are_neither_followed_nor_opened(tmp_path):
    inbox, secret = tmp_path / "inbox", tmp_path / "secret"
    drop(secret, {NOTEBOOK: b"secret"})
    (inbox / "bob").mkdir(parents=True)
    (inbox / "ada").symlink_to(secret)
    (inbox / "bob" / NOTEBOOK).symlink_to(secret / NOTEBOOK)
    os.mkfifo(inbox / "zoe.ipynb")
    os.mkfifo(inbox / "bob" / "pipe.zip")
    found = collect(inbox)
    assert [found[name].notebook for name in ("ada", "bob", "zoe")] == [None] * 3
    assert kinds(found["ada"]) == ["link", "no notebook"]
    assert kinds(found["bob"]) == ["link", "no regular file", "no notebook"]
    assert kinds(found["zoe"]) == ["no regular file", "no notebook"]


def test_a_file_that_becomes_a_link_after_it_was_listed_is_not_followed(tmp_path, monkeypatch):
    inbox = drop(tmp_path / "inbox", {f"ada/{NOTEBOOK}": ADA})
    drop(tmp_path, {"secret": b"secret"})
    opened = collecting._open_file

    def swapped(path):
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        return opened(path)

    monkeypatch.setattr(collecting, "_open_file", swapped)
    (arrival,) = arrivals(inbox, SLUG, ROSTER)
    assert arrival.notebook is None
    assert kinds(arrival) == ["unreadable", "no notebook"]


def test_strange_names_are_escaped_in_messages(tmp_path):
    arrival = one(tmp_path, {"eve\u202e\x1b[2J.ipynb": ADA})
    assert arrival.name == "eve\\u202e\\x1b[2J.ipynb"


def test_what_systems_leave_behind_is_no_arrival(tmp_path):
    drop(tmp_path, {".DS_Store": b"", "__MACOSX/ada/._x.ipynb": b"", f"ada/.ipynb_checkpoints/{NOTEBOOK}": b""})
    assert one(tmp_path, {f"ada/{NOTEBOOK}": ADA}).notebook == ADA


@pytest.mark.parametrize("metadata", [b"[", b"- a", b"a: *b", b"[" * 2000, b"\xff\xfe", b"submission_1: 3"])
def test_broken_metadata_sets_aside_and_nothing_more(tmp_path, metadata):
    files = GRADESCOPE | {"export/submission_metadata.yml": metadata, f"zoe/{NOTEBOOK}": ZOE}
    found = collect(drop(tmp_path, files))
    assert set(found) == {"zoe", None}
    assert found["zoe"].notebook == ZOE
    assert found[None].notebook in (ADA, BOB)


def test_metadata_that_refers_to_what_is_not_used_is_read_whole(tmp_path):
    metadata = METADATA.replace(b"  :score: 0.0", b"  :results:\n    who: &9 zoe\n  :score: 0.0")
    metadata = metadata.replace(b"    :sid:\n    :email: zoe@example.org", b"    :sid: *9\n    :email:")
    found = collect(drop(tmp_path, GRADESCOPE | {"export/submission_metadata.yml": metadata}))
    assert found["zoe"].notebook == BOB


def test_the_order_is_that_of_the_ids_then_of_the_names(tmp_path):
    drop(tmp_path, {f"{name}/{NOTEBOOK}": ADA for name in ("zoe", "xena", "ada", "Eve", "bob")})
    first = list(arrivals(tmp_path, SLUG, ROSTER))
    assert [(a.student, a.name) for a in first] == [
        ("ada", "ada"),
        ("bob", "bob"),
        ("zoe", "zoe"),
        (None, "Eve"),
        (None, "xena"),
    ]
    assert list(arrivals(tmp_path, SLUG, ROSTER)) == first


def test_a_missing_inbox_is_told(tmp_path):
    with pytest.raises(CourseError, match="rule: the folder of what came in"):
        list(arrivals(tmp_path / "nowhere", SLUG, ROSTER))


# ---------------------------------------------------------------------- handing in


def test_what_is_packed_comes_back(tmp_path):
    data = pack(drop(tmp_path / "mine", {NOTEBOOK: ADA}), SLUG)
    assert one(tmp_path / "inbox", {"ada.zip": data}) == Arrival("ada", "ada.zip", ADA)


def test_equal_notebooks_give_equal_bytes_with_a_manifest(tmp_path):
    data = pack(drop(tmp_path / "a", {NOTEBOOK: ADA}), SLUG)
    os.utime(drop(tmp_path / "b", {NOTEBOOK: ADA}) / NOTEBOOK, (1e9, 1e9))
    assert pack(tmp_path / "b", SLUG) == data
    assert pack(drop(tmp_path / "b", {NOTEBOOK: BOB}), SLUG) != data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    digest = hashlib.sha256(ADA).hexdigest()
    assert manifest == {"slug": SLUG, "companion": "0.1.0", "release": "abc", "sha256": digest}


@pytest.mark.parametrize(
    ("manifest", "kind"),
    [
        ({"sha256": "0"}, "changed after packing"),
        ({"slug": "10-energy"}, "another assignment"),
        ([], "damaged"),
        (7, "damaged"),
    ],
)
def test_a_manifest_is_compared_and_never_trusted(tmp_path, manifest, kind):
    arrival = one(tmp_path, {"ada.zip": zipped({NOTEBOOK: ADA, "manifest.json": json.dumps(manifest).encode()})})
    assert arrival.notebook == ADA
    assert kind in kinds(arrival)


def test_only_the_right_notebook_is_packed(tmp_path):
    wrong = edited(lambda notebook: notebook.metadata.homework.update(slug="10-energy"))
    for data, rule in ((None, "cannot be read"), (b"{", "no notebook"), (wrong, "answers to 10-energy")):
        if data is not None:
            drop(tmp_path, {NOTEBOOK: data})
        with pytest.raises(CourseError, match=rule):
            pack(tmp_path, SLUG)
    (tmp_path / NOTEBOOK).unlink()
    (tmp_path / NOTEBOOK).symlink_to(__file__)
    with pytest.raises(CourseError, match="cannot be read"):
        pack(tmp_path, SLUG)


def test_what_lies_under_a_students_own_name_is_not_overridden_from_inside_of_something_else(tmp_path):
    for place, mark in (("ada", 1), ("bob", 2), ("zed/ada", 3), ("zed/bob", 4)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"{SLUG}.ipynb").write_text(json.dumps({"cells": [], "mark": mark}))
    roster = Roster([Student("ada"), Student("bob")])
    came = {arrival.student: arrival for arrival in arrivals(tmp_path, SLUG, roster)}
    assert {student: json.loads(arrival.notebook)["mark"] for student, arrival in came.items()} == {"ada": 1, "bob": 2}
    assert all("several arrivals" in [flag.kind for flag in arrival.flags] for arrival in came.values())


def exported(sid: str, created: str, data: bytes) -> dict[str, bytes]:
    """What pretends to be Gradescope's export of one submission."""
    metadata = f"s1:\n  :submitters:\n  - :sid: {sid}\n  :created_at: {created}\n"
    return {"submission_metadata.yml": metadata.encode(), f"s1/{NOTEBOOK}": data}


@pytest.mark.parametrize("roster", [ROSTER, None], ids=["roster", "no roster"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_strangers_export_does_not_replace_what_came_under_the_students_own_name(tmp_path, roster, packed):
    forged = exported("ada", "2099-01-01 00:00:00 Z", work("forged"))
    files = {"mallory.zip": zipped(forged)} if packed else {f"mallory/{name}": data for name, data in forged.items()}
    ada = collect(drop(tmp_path, files | {"ada.ipynb": ADA}), roster)["ada"]
    assert (ada.notebook, ada.submitted, kinds(ada)) == (ADA, None, ["renamed", "several arrivals"])


@pytest.mark.parametrize("forged", [exported("ada", "", ADA), {f"ada/{NOTEBOOK}": ADA, f"bob/{NOTEBOOK}": BOB}])
def test_what_comes_from_inside_of_something_beside_other_arrivals_is_flagged(tmp_path, forged):
    (wrapped := tmp_path / "1").mkdir()
    files = {"homework.zip": zipped({f"wrap/{name}": data for name, data in forged.items()})}
    assert kinds(collect(drop(wrapped, files))["ada"]) == []
    found = collect(drop(tmp_path / "2", files | {f"zoe/{NOTEBOOK}": ZOE}))
    assert [str(flag) for flag in found["ada"].flags] == [
        "found inside: homework.zip, which is not all that came in",
    ]
    assert kinds(found["zoe"]) == []
    inner = {f"zoe/{NOTEBOOK}": ZOE, f"bob/{NOTEBOOK}": BOB, "x.zip": zipped(exported("ada", "", ADA))}
    found = collect(drop(tmp_path / "3", {"download.zip": zipped(inner)}))
    assert {student: kinds(arrival) for student, arrival in found.items()} == {
        "ada": ["found inside"],
        "bob": [],
        "zoe": [],
    }


@pytest.mark.parametrize("beside", [{}, {"zoe.ipynb": ZOE}], ids=["alone", "beside"])
def test_without_a_roster_downloads_are_told_apart_from_a_students_drafts(tmp_path, beside):
    download = {f"a_1_11_{NOTEBOOK}": ADA, f"b_2_12_{NOTEBOOK}": BOB, "c_3_text.html": b""}
    found = collect(drop(tmp_path / "1", {"submissions.zip": zipped(download)} | beside), roster=None)
    assert (found["1"].notebook, found["2"].notebook) == (ADA, BOB)
    assert kinds(found["1"]) == (["found inside"] if beside else [])
    found = collect(drop(tmp_path / "2", {f"ada/{NOTEBOOK}": ADA, "ada/hw_1_2_draft.ipynb": BOB} | beside), roster=None)
    assert set(found) == {"ada"} | {"zoe" for _ in beside}
    assert (found["ada"].notebook, kinds(found["ada"])) == (ADA, ["several notebooks"])
    if beside:
        found = collect(drop(tmp_path / "3", {"ada/hw_1_2_draft.ipynb": ADA} | beside), roster=None)
        assert found["ada"].notebook == ADA


@pytest.mark.parametrize("created", ["0001-01-01 00:00:00 +14:00", "9999-12-31 23:59:59 -14:00", "2027-01-01", "soon"])
def test_a_time_that_is_none_or_at_the_end_of_the_calendar_is_not_taken(tmp_path, created):
    assert one(tmp_path, exported("ada", created, ADA)) == Arrival("ada", "s1", ADA)


def test_numbers_in_metadata_are_taken_as_they_are_written(tmp_path):
    roster = Roster([Student("ada", identities={"gradescope_id": "0077"}), Student("bob", email="1:1")])
    assert one(tmp_path / "1", exported("0077", "", ADA), roster=roster).student == "ada"
    assert one(tmp_path / "2", exported("5", "", ADA), roster=roster).student is None


def nested_aliases() -> bytes:
    lines = ["s1:", "  :submitters:", "  - &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 7)]
    return "\n".join([*lines, "  - :sid: *a6"]).encode()


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        (nested_aliases(), "unknown student"),
        (
            b"s1: &s\n  :submitters: [&a {}" + b", *a" * 250 + b"]" + b"\n".join(b"\n%d: *s" % n for n in range(99)),
            "unreadable",
        ),
        (b"s1:\n  :submitters: {" + b"x," * 450_000 + b"}", "unreadable"),
    ],
    ids=["nested", "many", "long"],
)
def test_metadata_takes_no_more_memory_than_a_submission_may(tmp_path, metadata, kind):
    drop(tmp_path, {"submission_metadata.yml": metadata, f"s1/{NOTEBOOK}": ADA})
    tracemalloc.start()
    arrival = one(tmp_path, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind in kinds(arrival)
    assert peak < 60 * MIB


def test_an_archive_of_archives_pays_for_all_that_stay_open(tmp_path):
    files = tarred({f"a_1_2_{NOTEBOOK}": b"{}", "padding": bytes(30 * MIB)})
    # Some of the zeros are not packed; so the others may be, at a ratio that is allowed.
    inner = gzip.compress(files[: MIB // 4], 0) + gzip.compress(files[MIB // 4 :])
    drop(tmp_path, {"homework.zip": zipped({f"b_3_4_{NOTEBOOK}": b"{}"} | {f"{n}.tar.gz": inner for n in range(9)})})
    tracemalloc.start()
    found = list(arrivals(tmp_path, SLUG, ROSTER))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    opened = {arrival.name.split("/")[1] for arrival in found if arrival.name.endswith("padding")}
    assert opened == {f"{n}.tar.gz" for n in range(2)}
    assert peak < 120 * MIB


def test_submissions_in_one_small_archive_read_little_together_and_each_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_COMMON", 4 * MIB)
    submission = zipped({f"{n}.ipynb": b" " * 900_000 for n in range(4)})
    files = {f"x_{n}_1_y.zip": submission for n in range(20)} | {f"lovelaceada_1815_1_{NOTEBOOK}": ADA}
    sizes = []
    read_submission = collecting.read_submission
    monkeypatch.setattr(collecting, "read_submission", lambda raw: sizes.append(len(raw)) or read_submission(raw))
    found = collect(drop(tmp_path, {"homework.zip": zipped(files)}))
    assert found["ada"] == Arrival("ada", f"homework.zip/lovelaceada_1815_1_{NOTEBOOK}", ADA)
    assert "too large" in kinds(found[None])
    assert 3 * MIB < sum(sizes) < 9 * MIB
