"""Look into archives that nobody should trust: by member, in memory, within a budget; nothing is extracted to disk.

`zipfile` and `tarfile` do the parsing. What they leave open is closed here: sizes are counted while reading, whatever
the headers claim; members that overlap, link, leave their folder, are encrypted or use a compression whose output
cannot be bounded are set aside; a file that makes a parser ask for too much at once, or go in circles, is refused.
"""

import gzip
import io
import itertools
import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from course.homework.cleaning import is_strange, plain
from course.homework.results import Flag

MIB = 1 << 20
CHUNK = 1 << 16
MOST_DEPTH = 3  # archives in archives
MOST_PARTS = 32  # folders in folders
MOST_RATIO = 200  # of what comes out to what went in; text of notebooks stays below 50
FREE_RATIO = MIB  # that may come out at any ratio
MOST_TOGETHER, MOST_TOGETHER_MEMBERS = 512 * MIB, 20_000  # of archives, and of their members, that stay open
COMMON_RATIO = 50  # of what all submissions in one file read together to its size: they may be one stranger's making
FREE_COMMON, FREE_TOLD = 64 * MIB, 32 * MIB  # that they, and what says who made them, may read at any ratio
MOST_ZIP_REQUEST = 4 * MIB  # at once: zipfile reads its directory whole, 50 bytes or more a member
MOST_TAR_REQUEST = 4096  # at once: tarfile reads extended headers whole and takes quadratic time for some

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".gz")
OTHER_SUFFIXES = (".rar", ".7z", ".xz", ".bz2", ".tbz2", ".txz", ".zst")
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints", "__pycache__", ".git")


class Refused(Exception):  # noqa: N818 - the reason to leave something unread, not an error of the program
    """Says why something is not read, as a flag."""

    def __init__(self, kind: str, evidence: str = ""):
        super().__init__(kind)
        self.flag = Flag(kind, evidence=plain(evidence))


@dataclass
class Budget:
    """What may still be read: counted down by what was really read, in bytes and members."""

    size: int = 100 * MIB
    members: int = 1_000

    def spend(self, size: int) -> None:
        """Counts bytes that were read or unpacked."""
        self.size -= size
        if self.size < 0:
            raise Refused("too large", "more bytes than one submission may have")

    def count(self, members: int = 1) -> None:
        """Counts files."""
        self.members -= members
        if self.members < 0:
            raise Refused("too many files", "more files than one submission may have")


class Common:
    """What all that lies in one file on disk may read, whoever made it: a small file must not cost much in total.

    Attributes:
        kept: for the archives in it that stay in memory.
        told: for what says who handed in.
    """

    def __init__(self, packed: int):
        more = COMMON_RATIO * packed
        self.kept = Budget(min(MOST_TOGETHER, FREE_COMMON + more), MOST_TOGETHER_MEMBERS)
        self.told = Budget(min(MOST_TOGETHER, FREE_TOLD + more), MOST_TOGETHER_MEMBERS)
        self.left = Budget(FREE_COMMON + more, MOST_TOGETHER_MEMBERS)
        self.divide(1)

    def divide(self, submissions: int) -> None:
        """Gives each submission a share of its own, so that one that takes all that is left starves no other."""
        self.share = Budget(self.left.size // max(1, submissions), self.left.members // max(1, submissions))

    @contextmanager
    def lend(self) -> Iterator[Budget]:
        """One submission's budget: its share first, then what is left for all."""
        most, share, left = Budget(), self.share, self.left
        size, members = min(most.size, share.size + left.size), min(most.members, share.members + left.members)
        budget = Budget(size, members)
        try:
            yield budget
        finally:
            left.size -= max(0, size - max(0, budget.size) - share.size)
            left.members -= max(0, members - max(0, budget.members) - share.members)


@dataclass(frozen=True)
class Member:
    """One regular file of an archive; `read(budget, most)` gives its bytes."""

    path: tuple[str, ...]
    read: Callable[[Budget, int], bytes]


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is left by a system, not by a student."""
    return name in JUNK or name.startswith("._")


def split_name(name: str) -> tuple[str, ...] | None:
    """The parts of a member's name; None for one that is absolute, leaves its folder, or goes too deep."""
    name = name.replace("\\", "/")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    unsafe = name.startswith("/") or re.match(r"[A-Za-z]:/", name) or ".." in parts
    return None if unsafe or not 0 < len(parts) <= MOST_PARTS or len(name) > 1000 else parts


def read_within(stream: BinaryIO, budget: Budget, most: int, packed: int | None = None) -> bytes:
    """Reads to the end, but never more than the budget, `most` bytes, or `MOST_RATIO` times the `packed` size."""
    data = io.BytesIO()
    while chunk := stream.read(CHUNK):
        budget.spend(len(chunk))
        data.write(chunk)
        if data.tell() > most:
            raise Refused("too large", f"a file of more than {most / MIB:.0f} MiB")
        if packed is not None and data.tell() > max(FREE_RATIO, MOST_RATIO * packed):
            raise Refused("bomb", f"{packed} bytes that unpack to more than {MOST_RATIO} times as many")
    return data.getvalue()


def open_archive(file: BinaryIO, budget: Budget) -> tuple[list[Member], list[Flag]]:
    """The regular files of an archive, and what was wrong with the others.

    Args:
        file: zip, tar or gzipped tar, told apart by content; stays open while members are read.
        budget: counts the members, and the bytes where the archive must be unpacked to be listed.

    Raises:
        Refused: It is no archive, a broken one, or an attack.
    """
    head = file.read(262)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        if head[:2] == b"\x1f\x8b":
            unpacked = read_within(gzip.GzipFile(fileobj=file), budget, budget.size, packed=size)
            return _tar(io.BytesIO(unpacked), budget)
        if head[257:262] == b"ustar":
            return _tar(file, budget)
        return _zip(file, budget)
    except Refused:
        raise
    except Exception as error:  # a parser of broken archives raises whatever its parts raise
        raise Refused("unreadable archive", f"{type(error).__name__}: {error}") from error


class _Bounded(io.RawIOBase):
    """A file that refuses to give more than `most` bytes at once."""

    def __init__(self, file: BinaryIO, most: int):
        super().__init__()
        self.file, self.most = file, most

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(self.most + 1 if size is None or size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise Refused("unreadable archive", "a header of unreasonable size")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


# ---------------------------------------------------------------------- zip


def _zip(file: BinaryIO, budget: Budget) -> tuple[list[Member], list[Flag]]:
    archive = zipfile.ZipFile(_Bounded(file, MOST_ZIP_REQUEST))
    infos = archive.infolist()
    budget.count(len(infos))
    members, flags = [], _overlaps(infos)
    if flags:
        return [], flags
    for info in infos:
        if info.is_dir():
            continue
        problem = _zip_problem(info)
        path, named = _path(info.orig_filename)
        flags += [Flag(problem, evidence=plain(info.orig_filename))] if problem else named
        if path and not problem:
            members.append(Member(path, _zip_reader(archive, info)))
    return members, flags + _duplicates(members)


def _zip_problem(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "link" if kind == stat.S_IFLNK else "no regular file"
    if info.flag_bits & 0x1:
        return "encrypted"
    # bz2 and lzma unpack a block whole: 4 kB can become gigabytes before anything can be counted.
    return "" if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else "unsupported compression"


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[Budget, int], bytes]:
    def read(budget: Budget, most: int) -> bytes:
        with archive.open(info) as stream:
            return read_within(stream, budget, most, packed=info.compress_size)

    return lambda budget, most: _guarded(read, info.orig_filename, budget, most)


def _overlaps(infos: list[zipfile.ZipInfo]) -> list[Flag]:
    """Members that share bytes: many of them can unpack one block again and again."""
    infos = sorted(infos, key=lambda info: info.header_offset)
    for info, following in itertools.pairwise(infos):
        if info.header_offset + 30 + info.compress_size > following.header_offset:
            return [Flag("bomb", evidence=f"members that overlap: {plain(following.orig_filename)}")]
    return []


# ---------------------------------------------------------------------- tar


def _tar(file: BinaryIO, budget: Budget) -> tuple[list[Member], list[Flag]]:
    bounded = _Bounded(file, MOST_TAR_REQUEST)
    members, flags = [], []
    archive = tarfile.TarFile(fileobj=bounded, mode="r")
    for info in _tar_infos(archive, budget):
        if info.isdir():
            continue
        path, named = _path(info.name)
        if info.issym() or info.islnk():
            flags.append(Flag("link", evidence=plain(f"{info.name} -> {info.linkname}")))
        elif not info.isreg() or info.issparse():
            flags.append(Flag("no regular file", evidence=plain(info.name)))
        else:
            flags += named
            members += [Member(path, _tar_reader(file, info))] if path else []
    return members, flags + _duplicates(members)


def _tar_infos(archive: tarfile.TarFile, budget: Budget) -> Iterator[tarfile.TarInfo]:
    """The headers, in order. tarfile itself follows a negative size backwards, for ever."""
    before = -1
    while (info := archive.next()) is not None:
        if info.size < 0 or archive.offset <= before:
            raise Refused("unreadable archive", "a member of negative size")
        before = archive.offset
        budget.count()
        yield info


def _tar_reader(file: BinaryIO, info: tarfile.TarInfo) -> Callable[[Budget, int], bytes]:
    def read(budget: Budget, most: int) -> bytes:
        file.seek(info.offset_data)
        data = io.BytesIO()
        while (left := info.size - data.tell()) > 0:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise EOFError("the archive ends within a member")
            budget.spend(len(chunk))
            data.write(chunk)
            if data.tell() > most:
                raise Refused("too large", f"a file of more than {most / MIB:.0f} MiB")
        return data.getvalue()

    return lambda budget, most: _guarded(read, info.name, budget, most)


# ---------------------------------------------------------------------- both


def _guarded(read: Callable[[Budget, int], bytes], name: str, budget: Budget, most: int) -> bytes:
    try:
        return read(budget, most)
    except Refused as refused:
        raise Refused(refused.flag.kind, f"{name}: {refused.flag.evidence}") from refused
    except Exception as error:  # wrong checksums, cut streams, headers that contradict each other
        raise Refused("unreadable archive", f"{name}: {type(error).__name__}: {error}") from error


def _path(name: str) -> tuple[tuple[str, ...] | None, list[Flag]]:
    """A member's place, and flags for a name that means harm; junk has neither."""
    parts = split_name(name)
    if parts is None:
        return None, [Flag("unsafe name", evidence=plain(name))]
    if any(is_junk(part) for part in parts):
        return None, []
    return parts, [Flag("strange name", evidence=plain(name))] if is_strange(name) else []


def _duplicates(members: list[Member]) -> list[Flag]:
    counts = Counter("/".join(member.path) for member in members)
    return [Flag("duplicate name", evidence=plain(name)) for name, count in counts.items() if count > 1]
