"""What came in: each student's submission, found in whatever an instructor drops into a folder.

    ada/…                                            a folder per student: id, e-mail or a number of the LMS
    ada.ipynb  ada_12-flow-matching.zip              loose notebooks and archives
    lovelaceada_LATE_12345_67890_12-flow-matching-1.ipynb       Canvas: one or more files a student
    Ada Lovelace_1234_assignsubmission_file_/…       Moodle
    submission_123/…  submission_metadata.yml        Gradescope
    submissions.zip                                  any of these in an archive, or in one folder

Only regular files are opened. Archives are read in memory, within a budget (see `archives`). What cannot be told to
belong to a student of the roster is set aside for a person, never guessed; one bad arrival leaves the others intact.
A folder or archive is believed to be the LMS's download where it is all that came in. Beside other arrivals it may be a
student's: then whatever it hands in is flagged, and counts after what came in under the student's own name.
Whether work is late is decided by the roster or the LMS, never by a time that a file or an archive carries.
"""

import hashlib
import io
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import yaml
from nbformat import NotebookNode

from course.chapters import CourseError
from course.files import zipped
from course.homework.archives import (
    MIB,
    MOST_DEPTH,
    MOST_TOGETHER_MEMBERS,
    OTHER_SUFFIXES,
    SUFFIXES,
    Budget,
    Common,
    Member,
    Refused,
    is_junk,
    open_archive,
    read_within,
)
from course.homework.cleaning import clean_markdown, plain
from course.homework.results import Flag
from course.homework.roster import STUDENT, Roster
from course.homework.transplanting import MOST_BYTES, Submission, fit, read_submission, transplant

__all__ = ["Arrival", "arrivals", "clean_markdown", "pack", "transplant"]

MANIFEST, METADATA = "manifest.json", "submission_metadata.yml"
MOST_NOTEBOOKS = 20  # of one arrival that are looked into
MOST_CONTAINERS = 3  # folders or archives around the students' own
YAML_COST = 300  # bytes of memory that parsing takes, at least, for one of YAML
YEARS = range(1970, 2201)  # of a time that is taken: one at the end of the calendar fails in another time zone
NOTEBOOKS = (".ipynb", ".ipynb.json", ".ipynb.txt")  # browsers append

CANVAS = re.compile(r"(?P<name>[^_]*)_(?P<late>LATE_)?(?P<number>\d+)_\d+_(?P<file>.+)", re.DOTALL)
MOODLE = re.compile(r"(?P<name>.+?)_(?P<number>\d+)_assignsubmission_[a-z]+_?(?P<file>.*)", re.DOTALL)
AGAIN = re.compile(r"-\d{1,3}(?=\.)")  # Canvas counts what is handed in again


@dataclass(frozen=True)
class Arrival:
    """One student's submission, or something that is set aside for a person.

    Attributes:
        student: the id in the roster; None for what is set aside.
        name: as it arrived, for messages.
        notebook: the file, unchecked; None if there is none.
        submitted: when, as the roster or the LMS has it.
        flags: what a person should know.
    """

    student: str | None
    name: str
    notebook: bytes | None
    submitted: datetime | None = None
    flags: tuple[Flag, ...] = ()


def arrivals(inbox: Path, slug: str, roster: Roster | None, released: NotebookNode | None = None) -> Iterator[Arrival]:
    """Finds each student's submission in a folder.

    Args:
        inbox: what came in for this assignment.
        slug: the assignment; its notebook is called `<slug>.ipynb`.
        roster: without one, the name of a folder or file is the student's id.
        released: tells which of several notebooks is the one that was released.

    Yields:
        One arrival for each student, in the order of their ids; then what is set aside, in the order of its names.

    Raises:
        CourseError: There is no such folder.
    """
    try:
        places = _folder(inbox, "")
    except OSError as error:
        rule = f"rule: the folder of what came in for {slug}"
        raise CourseError(f"collect: received {inbox}, which cannot be read ({error.strerror}); {rule}") from error
    with ExitStack() as stack:
        parcels = _Sorter(slug, roster, stack).sort(places, _Around())
        by_student: dict[str, list[_Parcel]] = {}
        for parcel in parcels:
            if parcel.student is not None:
                by_student.setdefault(parcel.student, []).append(parcel)
        for student in sorted(by_student):
            yield _chosen(by_student[student], slug, roster, released)
        for parcel in sorted((p for p in parcels if p.student is None), key=lambda p: p.name):
            yield _opened(parcel, slug, released)


def pack(folder: Path, slug: str) -> bytes:
    """A zip of the notebook in `folder`, to hand in: equal notebooks give equal bytes.

    Raises:
        CourseError: There is no such notebook, or it is none of this assignment.
    """
    path, rule = folder / f"{slug}.ipynb", f"rule: the notebook {slug}.ipynb, as it was handed out and answered"
    try:
        with _open_file(path) as file:
            raw = read_within(file, Budget(), MOST_BYTES)
    except OSError as error:
        raise CourseError(f"hand in: received {path}, which cannot be read ({error.strerror}); {rule}") from error
    except Refused as refused:
        raise CourseError(f"hand in: received {path}: {refused.flag}; {rule}") from refused
    submission = read_submission(raw)
    if not submission.readable:
        why = "; ".join(map(str, submission.flags))
        raise CourseError(f"hand in: received {path}, which is no notebook ({why}); {rule}")
    if submission.homework.get("slug", slug) != slug:
        raise CourseError(f"hand in: received answers to {submission.homework['slug']} in {path}; {rule}")
    manifest = {
        "slug": slug,
        "companion": submission.homework.get("companion", ""),
        "release": submission.homework.get("release", ""),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    return zipped({path.name: raw, MANIFEST: json.dumps(manifest, indent=1).encode() + b"\n"})


# ---------------------------------------------------------------------- files and folders, on disk and in archives


@dataclass(frozen=True)
class _Place:
    """A file or folder, wherever it lies; `problem` says why it is neither.

    Attributes:
        read: gives a file's bytes, within a budget and a size.
        open: opens a file, to look into it as an archive.
        children: lists a folder.
    """

    name: str
    trail: str
    read: Callable[[Budget, int], bytes] | None = None
    open: Callable[[ExitStack, Budget], BinaryIO] | None = None
    children: Callable[[], "list[_Place]"] | None = None
    problem: Flag | None = None

    @property
    def is_archive(self) -> bool:
        return self.open is not None and self.name.lower().endswith(SUFFIXES)

    @property
    def is_notebook(self) -> bool:
        return self.read is not None and self.name.lower().endswith(NOTEBOOKS)


def _open_file(path: Path) -> BinaryIO:
    """Opens a regular file; neither follows a link nor waits for a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "no regular file")
    return os.fdopen(handle, "rb")


def _on_disk(path: Path, trail: str) -> _Place:
    name = path.name
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except OSError as error:
        return _Place(name, trail, problem=Flag("unreadable", evidence=plain(f"{trail}: {error.strerror}")))
    if kind == stat.S_IFDIR:
        return _Place(name, trail, children=lambda: _folder(path, f"{trail}/"))
    if kind != stat.S_IFREG:
        what = "link" if kind == stat.S_IFLNK else "no regular file"
        return _Place(name, trail, problem=Flag(what, evidence=plain(trail)))

    def read(budget: Budget, most: int) -> bytes:
        with _open_file(path) as file:
            return read_within(file, budget, most)

    return _Place(name, trail, read=read, open=lambda stack, budget: stack.enter_context(_open_file(path)))


def _folder(path: Path, trail: str) -> list[_Place]:
    return [_on_disk(entry, trail + entry.name) for entry in sorted(path.iterdir())]


def _in_archive(members: Iterable[Member], trail: str) -> list[_Place]:
    """The members of an archive as files and folders."""
    folders: dict[str, list[Member]] = {}
    places = []
    for member in members:
        if len(member.path) > 1:
            folders.setdefault(member.path[0], []).append(Member(member.path[1:], member.read))
            continue
        places.append(
            _Place(
                member.path[0],
                trail + member.path[0],
                read=member.read,
                open=lambda stack, budget, read=member.read: io.BytesIO(read(budget, budget.size)),
            )
        )
    for name, inner in folders.items():
        below = f"{trail}{name}/"
        places.append(_Place(name, trail + name, children=lambda inner=inner, below=below: _in_archive(inner, below)))
    return sorted(places, key=lambda place: place.name)


def _is_hidden(name: str) -> bool:
    return is_junk(name) or name.startswith(".")


# ---------------------------------------------------------------------- whose is it


@dataclass(frozen=True)
class _Around:
    """What lies around places that are sorted.

    Attributes:
        depth: the archives.
        level: the folders and archives.
        doubtful: whether their name may be a student's own, who hands in a folder of his.
        common: what pays for reading them, where they lie in an archive.
    """

    depth: int = 0
    level: int = 0
    doubtful: bool = False
    common: Common | None = None


@dataclass
class _Parcel:
    """What belongs to one arrival, not yet opened; `depth` counts the archives around it, `common` pays for reading.

    `beside` says that it came inside of something that is not all that came in.
    """

    student: str | None
    name: str
    places: list[_Place]
    depth: int = 0
    submitted: datetime | None = None
    flags: list[Flag] = field(default_factory=list)
    common: Common | None = None
    beside: bool = False


class _Sorter:
    """Tells the students' parcels apart."""

    def __init__(self, slug: str, roster: Roster | None, stack: ExitStack):
        self.slug, self.roster, self.stack = slug, roster, stack

    def sort(self, places: list[_Place], around: _Around) -> list[_Parcel]:
        """Sorts the content of the inbox, or of a folder or archive in it that holds several students' work."""
        places = [place for place in places if not _is_hidden(place.name)]
        metadata = next((place for place in places if place.name == METADATA and place.read), None)
        if metadata is not None:
            return self._gradescope(metadata, [place for place in places if place is not metadata], around)
        parcels, shared = [], {}
        for place in places:
            if match := MOODLE.fullmatch(place.name) or CANVAS.fullmatch(place.name):
                system = "moodle_id" if match.re is MOODLE else "canvas_id"
                key = (system, match["name"], match["number"])
                if key not in shared:
                    parcels.append(shared.setdefault(key, self._from_lms(*key, place, around.depth)))
                parcel = shared[key]
                parcel.places.append(place)
                if match.re is CANVAS and match["late"] and not any(f.kind == "marked late" for f in parcel.flags):
                    parcel.flags.append(Flag("marked late", evidence="Canvas marks it as late"))
            else:
                parcels += self._plain(place, around, alone=len(places) == 1)
        return parcels

    def _from_lms(self, system: str, name: str, number: str, place: _Place, depth: int) -> _Parcel:
        """A parcel under a name that Canvas or Moodle gave, so no student chose it."""
        parcel = _Parcel(None, plain(place.trail), [], depth)
        if self.roster is None:
            parcel.student = number
            return parcel
        parcel.student = self.roster.find(number, system)
        if parcel.student is None and (student := self._by_full_name(name)):
            parcel.student = student
            parcel.flags.append(Flag("recognised by name", evidence=plain(f"{name}, number {number}")))
        return parcel

    def _by_full_name(self, name: str) -> str | None:
        """The one student of this name; Canvas writes `lovelaceada`, Moodle `Ada Lovelace`."""
        wanted = _letters(name)
        found = [
            student.id
            for student in self.roster.students.values()
            if wanted
            in (_letters(student.first_name + student.last_name), _letters(student.last_name + student.first_name))
        ]
        return found[0] if wanted and len(found) == 1 else None

    def _plain(self, place: _Place, around: _Around, *, alone: bool) -> list[_Parcel]:
        """A folder or file under a name that a person gave; `alone` where nothing else came with it."""
        student = self._find(place)
        inside = None
        is_container = around.level < MOST_CONTAINERS and (place.children or place.is_archive)
        if is_container and (student is None or not self.roster):
            inside = self._inside(place, replace(around, doubtful=student is not None and not alone))
        if inside is None:
            return [_Parcel(student, plain(place.trail), [place], around.depth)]
        for parcel in inside if not alone else ():
            if parcel.student is not None and not parcel.beside:
                parcel.beside = True
                parcel.flags.append(
                    Flag("found inside", evidence=plain(f"{place.trail}, which is not all that came in"))
                )
        return inside

    def _find(self, place: _Place) -> str | None:
        name = place.name
        if place.children is None:
            suffix = next((s for s in (*NOTEBOOKS, ".tar.gz") if name.lower().endswith(s)), Path(name).suffix)
            name = name[: len(name) - len(suffix)] if suffix else name
        if self.roster is None:
            return name if STUDENT.fullmatch(name) and self.slug not in name else None
        short = name.replace(self.slug, "").strip(" _-.()") if self.slug in name else name
        return self.roster.find(name) or (self.roster.find(short) if short else None)

    def _inside(self, place: _Place, around: _Around) -> list[_Parcel] | None:
        """The parcels in a folder or archive that holds several students' work; None where it holds one's, or no one's.

        An archive that cannot be opened holds no one's.
        """
        flags: list[Flag] = []
        within = replace(around, level=around.level + 1)
        with ExitStack() as stack:  # of files that stay open only if they hold several students' work
            try:
                if place.children:
                    children = place.children()
                else:
                    children, flags, within = _unpacked(place, within, stack)
            except (Refused, OSError):
                return None
            children = [child for child in children if not _is_hidden(child.name)]
            several = self._are_several(children, within.doubtful)
            if not several and len(children) == 1 and children[0].children:
                inside = self._inside(children[0], within) if within.level < MOST_CONTAINERS else None
            else:
                inside = self.sort(children, within) if several else None
            if inside is None:
                return None
            self.stack.push(stack.pop_all())
        if within.common is not around.common:  # the file on disk, with all archives in it
            within.common.divide(len(inside))
            for parcel in inside:
                parcel.common = within.common
        return [*inside, _Parcel(None, plain(place.trail), [], within.depth, flags=flags)] if flags else inside

    def _are_several(self, places: list[_Place], doubtful: bool) -> bool:
        """Whether these belong to several students: an LMS made the names, or two students of the roster have them.

        One name alone may be what a stranger called his file to hand in for somebody else. Without a roster, a name
        like Canvas's may be that of a student's draft; an LMS makes most names, and for more than one student.
        """
        if any(place.name == METADATA for place in places):
            return True
        made = [match for p in places if (match := MOODLE.fullmatch(p.name) or CANVAS.fullmatch(p.name))]
        if self.roster is None:
            return 2 * len(made) > len(places) and (not doubtful or len({match["number"] for match in made}) > 1)
        return bool(made) or len({self._find(place) for place in places} - {None}) > 1

    def _gradescope(self, metadata: _Place, places: list[_Place], around: _Around) -> list[_Parcel]:
        depth = around.depth
        try:
            # For a folder on disk, enough for some thousands of submissions.
            budget = around.common.told if around.common else Budget(256 * MIB, MOST_TOGETHER_MEMBERS)
            told = _read_metadata(metadata, budget)
        except Exception as error:  # YAML's parser, and whatever an export has in unexpected places
            flag = Flag("unreadable", evidence=plain(f"{metadata.trail}: {type(error).__name__}: {error}"))
            return [_Parcel(None, plain(place.trail), [place], depth, flags=[flag]) for place in places]
        parcels = []
        for place in places:
            submitters, created = told.get(place.name, ([], None))
            students = [self._by_identities(identities) for identities in submitters] or [None]
            for student in students:
                flags = [Flag("group", evidence=f"{len(students)} students handed this in")] if students[1:] else []
                parcels.append(_Parcel(student, plain(place.trail), [place], depth, created, flags))
        return parcels

    def _by_identities(self, identities: dict[str, str]) -> str | None:
        sid, email = identities.get("sid", ""), identities.get("email", "")
        if self.roster is None:
            return next((name for name in (sid, email) if STUDENT.fullmatch(name)), None)
        ways = ((sid, "gradescope_id"), (sid, "student"), (email, "email"), (sid, None), (email, None))
        return next((found for name, column in ways if name and (found := self.roster.find(name, column))), None)


def _unpacked(place: _Place, around: _Around, stack: ExitStack) -> tuple[list[_Place], list[Flag], _Around]:
    """What lies in an archive, what was wrong with it, and what is around that; a file on disk pays for all in it."""
    common = around.common
    file = place.open(stack, common.kept if common else Budget())
    if common is None:
        common = Common(file.seek(0, io.SEEK_END))
        file.seek(0)
    members, flags = open_archive(file, common.kept)
    return _in_archive(members, f"{place.trail}/"), flags, replace(around, depth=around.depth + 1, common=common)


def _letters(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", name).casefold() if c.isalnum())


class _Loader(yaml.SafeLoader):
    """Plain data only, whatever tags it has; a mapping is not merged into another (that can grow for ever)."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def _untagged(loader: _Loader, node: yaml.Node) -> object:
    """What a node holds, whatever class its tag asks for."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else loader.construct_scalar(node)


# Numbers stay as they are written: a long one takes quadratic time to compute.
for _tag in (None, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))):
    _Loader.add_constructor(_tag, _untagged)


def _needed(text: str) -> Iterator[str]:
    """The part of Gradescope's metadata that is used: the parser is slow, and the fast one crashes on deep nesting."""
    wanted = True
    for line in re.finditer(r".*\n|.+", text):
        if re.match(r"[^ \r\n]| {2}[^\s-]", line[0]):  # a new folder, or a new key of one
            wanted = line[0].startswith(("  :submitters:", "  :created_at:")) or not line[0].startswith(" ")
        if wanted:
            yield line[0]


def _read_metadata(place: _Place, budget: Budget) -> dict[str, tuple[list[dict[str, str]], datetime | None]]:
    """Who handed in each folder of Gradescope's export, and when."""
    text = place.read(budget, 3 * MOST_BYTES).decode("utf-8-sig")
    try:
        raw = _parsed(_needed(text), budget)
    except yaml.YAMLError:  # it may refer to what was left out
        raw = _parsed([text], budget)
    told = {}
    for folder, about in raw.items():
        about = about if isinstance(about, dict) else {}
        submitters = about.get(":submitters")
        people = [person for person in submitters if isinstance(person, dict)] if isinstance(submitters, list) else []
        budget.count(len(people))  # a few bytes can refer to many
        created = about.get(":created_at")
        created = created if isinstance(created, datetime) and created.year in YEARS else None
        told[str(folder)] = (
            [{name: _text(person.get(f":{name}")) for name in ("sid", "email")} for person in people],
            created.replace(tzinfo=UTC) if created and not created.tzinfo else created,
        )
    return told


def _parsed(lines: Iterable[str], budget: Budget) -> object:
    kept = []
    for line in lines:
        budget.spend(YAML_COST * len(line))
        kept.append(line)
    return yaml.load("".join(kept), Loader=_Loader)


def _text(value: object) -> str:
    """A text; nothing for lists, which can be short to refer to and without end to write."""
    return value if isinstance(value, str) else ""


# ---------------------------------------------------------------------- what is in it


def _chosen(parcels: list[_Parcel], slug: str, roster: Roster | None, released: NotebookNode | None) -> Arrival:
    """The arrival that counts of those of one student, if it has a notebook.

    Not what a stranger may have put inside of something else, while there is another; of the rest the newest; else what
    lies at the top under his own name, before what came in a download; else the last by name.
    """
    student = parcels[0].student
    oldest = datetime.min.replace(tzinfo=UTC)
    parcels = sorted(
        parcels,
        key=lambda p: (not p.beside, p.submitted or oldest, -p.name.count("/"), _natural(p.name)),
        reverse=True,
    )
    arrival = first = _opened(parcels[0], slug, released)
    for parcel in parcels[1:]:
        if arrival.notebook is not None:
            break
        other = _opened(parcel, slug, released)
        arrival = other if other.notebook is not None else arrival
    flags = arrival.flags if arrival.notebook is not None else first.flags
    if len(parcels) > 1:
        names = ", ".join(sorted((p.name for p in parcels), key=_natural))
        flags = (*flags, Flag("several arrivals", evidence=f"{arrival.name} counts, of {names}"))
    submitted = (roster.submitted(student, slug) if roster else None) or arrival.submitted
    return Arrival(student, arrival.name, arrival.notebook, submitted, flags)


def _natural(name: str) -> tuple:
    """Orders `work-10` after `work-9`."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d{1,18}|\D+", name))


@dataclass
class _Found:
    """A notebook or manifest in a parcel, not yet read."""

    path: tuple[str, ...]
    read: Callable[[Budget, int], bytes]


def _opened(parcel: _Parcel, slug: str, released: NotebookNode | None) -> Arrival:
    """Looks into a parcel and picks its notebook. Never raises for what is in it."""
    flags, notebook = list(parcel.flags), None
    if parcel.student is None:
        flags.insert(0, Flag("unknown student", evidence=parcel.name))
    try:
        with ExitStack() as stack:
            budget = stack.enter_context(parcel.common.lend() if parcel.common else nullcontext(Budget()))
            finder = _Finder(stack, budget, flags)
            finder.look(parcel.places, (), parcel.depth)
            notebook = _picked(finder, slug, released)
    except Exception as error:  # the last line of defence: one bad arrival never stops the others
        flags.append(Flag("collecting failed", evidence=plain(f"{type(error).__name__}: {error}")))
    if notebook is None:
        flags.append(Flag("no notebook"))
    return Arrival(parcel.student, parcel.name, notebook, parcel.submitted, tuple(dict.fromkeys(flags)))


class _Finder:
    """Finds the notebooks of one parcel, in its folders and archives."""

    def __init__(self, stack: ExitStack, budget: Budget, flags: list[Flag]):
        self.stack, self.budget, self.flags = stack, budget, flags
        self.notebooks: list[_Found] = []
        self.manifests: dict[tuple[str, ...], _Found] = {}

    def look(self, places: list[_Place], path: tuple[str, ...], depth: int) -> None:
        """Looks through files and folders; what is refused is flagged, and the rest is still found."""
        for place in places:
            if _is_hidden(place.name):
                continue
            try:
                self.budget.count()
                self._one(place, (*path, place.name), depth)
            except Refused as refused:
                self.flags.append(refused.flag)
                if self.budget.members < 0 or self.budget.size < 0:
                    return
            except OSError as error:
                self.flags.append(Flag("unreadable", evidence=plain(f"{place.trail}: {error.strerror}")))

    def _one(self, place: _Place, path: tuple[str, ...], depth: int) -> None:
        if place.problem:
            self.flags.append(place.problem)
        elif place.children:
            if len(path) > 64:
                raise Refused("nested too deep", place.trail)
            self.look(place.children(), path, depth)
        elif place.is_notebook:
            self.notebooks.append(_Found(path, place.read))
        elif place.is_archive:
            if depth >= MOST_DEPTH:
                raise Refused("nested too deep", place.trail)
            members, flags = open_archive(place.open(self.stack, self.budget), self.budget)
            self.flags += flags
            self.budget.members += len(members)  # counted once more below, one by one
            self.look(_in_archive(members, f"{place.trail}/"), path, depth + 1)
        elif place.name.lower().endswith(OTHER_SUFFIXES):
            self.flags.append(Flag("unsupported archive", evidence=plain(place.trail)))
        elif place.name == MANIFEST:
            self.manifests[path[:-1]] = _Found(path, place.read)

    def read(self, found: _Found, most: int = MOST_BYTES) -> bytes | None:
        """The bytes; None where they are refused, which is flagged."""
        try:
            return found.read(self.budget, most)
        except Refused as refused:
            self.flags.append(refused.flag)
        except OSError as error:
            self.flags.append(Flag("unreadable", evidence=plain(f"{found.path[-1]}: {error.strerror}")))
        return None


def _picked(finder: _Finder, slug: str, released: NotebookNode | None) -> bytes | None:
    """The submitted notebook: by its name, else the only one, else the one that fits the release best."""
    notebooks, flags = finder.notebooks, finder.flags
    exact = [found for found in notebooks if f"{slug}.ipynb" in _plain_names(found.path[-1])]
    pool = exact or notebooks
    if len(pool) > MOST_NOTEBOOKS:
        flags.append(Flag("too many files", evidence=f"{len(pool)} notebooks; {MOST_NOTEBOOKS} were looked into"))
    best, best_rank = None, ()
    for found in pool[:MOST_NOTEBOOKS]:
        raw = finder.read(found)
        if raw is None:
            continue
        submission = read_submission(raw)
        says_so = submission.homework.get("slug") == slug
        rank = (says_so, fit(released, submission), -len(found.path), _again(found.path[-1]), _natural(found.path[-1]))
        if best is None or rank >= best_rank:
            best, best_rank = (found, raw, submission), rank
    if best is None:
        return None
    found, raw, submission = best
    name = plain("/".join(found.path))
    if len(notebooks) > 1:
        others = ", ".join(plain("/".join(other.path)) for other in notebooks)
        flags.append(Flag("several notebooks", evidence=f"{name} counts, of {others}"))
    if not exact:
        flags.append(Flag("renamed", evidence=name))
    flags += _about_origin(finder, found, raw, submission, slug)
    return raw


def _plain_names(name: str) -> set[str]:
    """What a file may have been called before an LMS put something before it and after it."""
    match = MOODLE.fullmatch(name) or CANVAS.fullmatch(name)
    return {match["file"], AGAIN.sub("", match["file"])} if match else {name}


def _again(name: str) -> int:
    """How often Canvas says that it was handed in again."""
    match = CANVAS.fullmatch(name) and AGAIN.search(name)
    return int(match[0][1:]) if match else 0


def _about_origin(finder: _Finder, found: _Found, raw: bytes, submission: Submission, slug: str) -> list[Flag]:
    """What the notebook and its manifest say of themselves, where that is not what is expected."""
    says, flags = submission.homework.get("slug", slug), []
    if manifest := finder.manifests.get(found.path[:-1]):
        try:
            told = json.loads(finder.read(manifest, most=100_000) or b"{}")
            says = told.get("slug", says) if says == slug else says
            if told.get("sha256", "") != hashlib.sha256(raw).hexdigest():
                flags.append(Flag("changed after packing", evidence="the notebook is not the one that was packed"))
        except (ValueError, AttributeError, RecursionError):
            flags.append(Flag("damaged", evidence="a manifest that cannot be read"))
    if says != slug:
        flags.append(Flag("another assignment", evidence=plain(f"handed in {str(says)[:60]} in place of {slug}")))
    return flags
