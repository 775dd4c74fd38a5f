"""Archives made to harm: each is read without harm, and what was wrong with it is said."""

import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest

from course.homework.archives import MIB, Budget, Common, Refused, open_archive, split_name
from tests.homework.handed_out import tarred, zipped


def look(data: bytes, budget: Budget | None = None) -> tuple[dict[str, bytes], list[str]]:
    """All that can be read from an archive, and the kinds of what was flagged."""
    budget = budget or Budget()
    try:
        members, flags = open_archive(io.BytesIO(data), budget)
    except Refused as refused:
        return {}, [refused.flag.kind]
    contents, kinds = {}, [flag.kind for flag in flags]
    for member in members:
        try:
            contents["/".join(member.path)] = member.read(budget, 20 * MIB)
        except Refused as refused:
            kinds.append(refused.flag.kind)
    return contents, kinds


def zip_of(*infos: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    """A zip with members whose headers are set by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in infos:
            archive.writestr(info, data)
    return buffer.getvalue()


def tar_of(*infos: tarfile.TarInfo, data: bytes = b"x") -> bytes:
    """A tar with members whose headers are set by hand."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: tarred(files, "w:gz")], ids=["zip", "tar", "tar.gz"])
def test_files_are_read(pack):
    files = {"a.ipynb": b"{}", "folder/b.txt": b"text"}
    assert look(pack(files)) == (files, [])


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize("name", ["../up.ipynb", "a/../../up.ipynb", "/etc/passwd", "..\\up.ipynb", "C:\\up.ipynb"])
def test_a_name_that_leaves_its_folder_is_dropped(pack, name):
    assert look(pack({name: b"bad", "good.ipynb": b"good"})) == ({"good.ipynb": b"good"}, ["unsafe name"])


@pytest.mark.parametrize("name", ["a/" * 40 + "b", "a" * 2000, "", "..", "//a"])
def test_a_name_that_no_file_system_takes_has_no_parts(name):
    assert split_name(name) is None


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize("name", ["a\u202egnp.ipynb", "a\x1b[31m.ipynb", "a\nb.ipynb"])
def test_a_name_that_deceives_is_shown_as_escapes(pack, name):
    (contents, kinds) = look(pack({name: b"x"}))
    assert kinds == ["strange name"]
    assert contents == {name: b"x"}
    _, flags = open_archive(io.BytesIO(pack({name: b"x"})), Budget())
    assert flags[0].evidence.isprintable()
    assert "\\" in flags[0].evidence


def test_a_link_in_a_zip_is_dropped():
    link = zipfile.ZipInfo("link.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    pipe = zipfile.ZipInfo("pipe.ipynb")
    pipe.create_system, pipe.external_attr = 3, (stat.S_IFIFO | 0o777) << 16
    assert look(zip_of((link, b"/etc/passwd"), (pipe, b""))) == ({}, ["link", "no regular file"])


def test_links_and_devices_in_a_tar_are_dropped():
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    data = tar_of(*(special(f"{number}.ipynb", kind, "/etc/passwd") for number, kind in enumerate(kinds)))
    assert look(data) == ({}, ["link", "link", *["no regular file"] * 3])


def test_an_encrypted_member_is_dropped():
    data = bytearray(zipped({"a.ipynb": b"secret"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert look(bytes(data)) == ({}, ["encrypted"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_unpacks_without_a_bound_is_dropped(compression):
    assert look(zipped({"a.ipynb": bytes(MIB)}, compression)) == ({}, ["unsupported compression"])


def test_a_wrong_checksum_is_told_and_the_rest_is_read():
    data = bytearray(zipped({"a.ipynb": b"aaaa", "b.ipynb": b"bbbb"}, zipfile.ZIP_STORED))
    data[data.index(b"aaaa")] ^= 1
    assert look(bytes(data)) == ({"b.ipynb": b"bbbb"}, ["unreadable archive"])


def test_a_bomb_stops_before_it_is_unpacked():
    bomb = zipped({"a.ipynb": bytes(60 * MIB), "good.ipynb": b"good"})
    budget = Budget()
    tracemalloc.start()
    contents, kinds = look(bomb, budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (contents, kinds) == ({"good.ipynb": b"good"}, ["bomb"])
    assert peak < 20 * MIB
    assert budget.size > 80 * MIB


def test_a_gzip_bomb_stops_before_it_is_unpacked():
    budget = Budget()
    assert look(gzip.compress(bytes(60 * MIB)), budget) == ({}, ["bomb"])
    assert budget.size > 80 * MIB


def test_sizes_in_headers_are_not_believed():
    data = bytearray(zipped({"a.ipynb": os.urandom(2 * MIB)}))
    place = data.index(b"PK\x01\x02")
    for offset in (22, place + 24):
        data[offset : offset + 4] = struct.pack("<I", 10)
    contents, kinds = look(bytes(data))
    assert (contents, kinds) == ({}, ["unreadable archive"])


def test_the_budget_is_shared_by_all_members():
    files = {f"{number}.ipynb": os.urandom(MIB) for number in range(8)}
    contents, kinds = look(zipped(files), Budget(size=3 * MIB))
    assert len(contents) == 3
    assert set(kinds) == {"too large"}


def test_what_lies_in_one_file_shares_a_budget_and_each_submission_has_its_part():
    common, most = Common(packed=2 * MIB), Budget().size
    common.divide(20)
    total, given = common.left.size, []
    for _ in range(4):
        with common.lend() as budget:
            given.append(budget.size)
            with pytest.raises(Refused, match="too large"):
                budget.spend(200 * MIB)
    share = total // 20
    assert given == [most, total - most + 2 * share, share, share]
    with common.lend() as budget:
        budget.count(1_000)
        assert budget.members == 0


def test_a_file_may_not_be_larger_than_its_reader_takes():
    data = os.urandom(2 * MIB)
    for pack in (zipped, tarred):
        (member,), _ = open_archive(io.BytesIO(pack({"a": data})), Budget())
        assert member.read(Budget(), 2 * MIB) == data
        with pytest.raises(Refused, match="too large"):
            member.read(Budget(), 2 * MIB - 1)


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_members_are_counted(pack):
    files = {f"{number}.txt": b"" for number in range(11)}
    assert look(pack(files), Budget(members=10)) == ({}, ["too many files"])
    assert look(pack(files), Budget(members=11)) == (files, [])


def test_members_that_overlap_are_a_bomb():
    """One block of data, many entries in the directory (after D. Fifield's zip bombs)."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packed.compress(bytes(MIB)) + packed.flush()
    crc, size = zlib.crc32(bytes(MIB)), len(block)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 33, crc, size, MIB, 1, 0) + b"a" + block
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, size, MIB, 1, 0, 0, 0, 0, 0, 0)
    for count, kinds in ((1, []), (90, ["bomb"])):
        directory = (entry + b"a") * count
        end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(local), 0)
        contents, found = look(local + directory + end)
        assert found == kinds
        assert len(contents) == (count == 1)


def test_duplicate_names_are_told():
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zip_of(("a.ipynb", b"1"), ("a.ipynb", b"2"))
    assert look(data) == ({"a.ipynb": b"2"}, ["duplicate name"])
    assert look(tar_of(tarfile.TarInfo("a"), tarfile.TarInfo("a")))[1] == ["duplicate name"]


def test_a_directory_of_a_million_members_is_not_built():
    """47 bytes a member would become more than 500 in memory."""
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 200_000
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 10, 10, len(directory), 0, 0)
    data = directory + end
    tracemalloc.start()
    assert look(data) == ({}, ["unreadable archive"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data) + 20 * MIB


def negative(kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size is -512 in base 256: tarfile steps back to it again and again."""
    info = tarfile.TarInfo("a")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(records: bytes) -> bytes:
    """An extended header with these records, before an empty file."""
    head = tarfile.TarInfo("PaxHeader")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    padded = records + bytes(-len(records) % 512)
    return head.tobuf(tarfile.USTAR_FORMAT) + padded + tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    "data",
    [
        negative() + bytes(2048),
        tarfile.TarInfo("b").tobuf() + negative() + bytes(2048),
        negative(tarfile.XHDTYPE) + bytes(2048),
        negative(tarfile.GNUTYPE_LONGNAME) + bytes(2048),
        pax(b"14 size=-1024\n"),
        pax(b"1" * 2_000_000),
        pax(b"9" * 100_000 + b" a=b\n"),
    ],
    ids=["negative", "second", "pax", "longname", "pax-size", "digits", "length"],
)
def test_a_tar_that_leads_its_reader_in_circles_is_refused(data):
    _, kinds = look(data)
    assert kinds == ["unreadable archive"]


def test_a_sparse_file_is_no_regular_file():
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:482] = bytes(96)
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert look(bytes(header) + bytes(1024)) == ({}, ["no regular file"])


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"PK\5\6" + bytes(18), b"\x1f\x8b", b"Rar!", os.urandom(5000)])
def test_what_is_no_archive_is_told(data):
    contents, kinds = look(data)
    assert contents == {}
    assert kinds in (["unreadable archive"], [])
    assert kinds or data[:4] == b"PK\5\6"  # an empty zip is one


@pytest.mark.parametrize("pack", [zipped, lambda files: tarred(files, "w:gz")], ids=["zip", "tar.gz"])
def test_an_archive_that_was_cut_off_or_damaged_anywhere_gives_nothing_false(pack):
    files = {"a.ipynb": os.urandom(2000), "folder/b.ipynb": b"b" * 3000}
    whole = pack(files)
    for place in range(0, len(whole), 41):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        for data in (whole[:place], bytes(damaged)):
            contents, kinds = look(data)
            assert contents.items() <= files.items()
            assert contents == files or kinds or b"PK\x01\x02" in damaged  # a damaged entry may say: a folder


def test_what_systems_leave_behind_is_not_read():
    files = {"__MACOSX/._a.ipynb": b"", ".DS_Store": b"", "x/.ipynb_checkpoints/a.ipynb": b"", "a.ipynb": b"a"}
    assert look(zipped(files)) == ({"a.ipynb": b"a"}, [])
