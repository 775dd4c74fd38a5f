"""IDX files: real ones, made here, and every way in which one can be broken."""

import gzip
import hashlib
import os
import struct

import pytest
import torch

from companion.data import idx, load_idx, mnist

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def idx_bytes(kind: int, shape: tuple[int, ...], payload: bytes) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}i", *shape) + payload


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with a 'test split' of two images of 2 × 2 pixels, whose checksums are the known ones."""
    contents = {
        IMAGES: idx_bytes(0x08, (2, 2, 2), bytes([0, 255, 127, 128, 1, 2, 3, 4])),
        LABELS: idx_bytes(0x08, (2,), bytes([7, 3])),
    }
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content))
        monkeypatch.setitem(idx.MNIST, name, hashlib.sha256(content).hexdigest())
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "companion"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "code", "dtype", "numbers"),
    [
        (0x08, "B", torch.uint8, [0, 1, 255, 4, 5, 6]),
        (0x09, "b", torch.int8, [-128, 1, 127, 4, 5, 6]),
        (0x0B, "h", torch.int16, [-300, 1, 2, 3, 4, 30_000]),
        (0x0C, "i", torch.int32, [-70_000, 1, 2, 3, 4, 5]),
        (0x0D, "f", torch.float32, [0.5, -1.5, 2, 3, 4, 5]),
        (0x0E, "d", torch.float64, [0.1, -1.5, 2, 3, 4, 5]),
    ],
)
def test_every_type_of_number_is_read(tmp_path, kind, code, dtype, numbers, packed):
    content = idx_bytes(kind, (2, 3), struct.pack(f">6{code}", *numbers))
    path = tmp_path / ("numbers.gz" if packed else "numbers")
    path.write_bytes(gzip.compress(content) if packed else content)
    read = load_idx(path)
    assert read.dtype == dtype
    assert torch.equal(read, torch.tensor(numbers, dtype=dtype).reshape(2, 3))


def test_a_folder_serves_as_mirror(tiny):
    data = mnist("test", folder=tiny)
    assert data.images.shape == (2, 1, 2, 2)
    assert data.images[0].flatten().tolist() == pytest.approx([-1, 1, -1 / 255, 1 / 255], abs=1e-6)
    assert data.labels.tolist() == [7, 3]


def test_the_environment_names_the_folder(tiny, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tiny))
    assert len(mnist("test", mirrors=())) == 2


def test_a_file_that_was_compressed_again_is_as_good(tiny):
    path = tiny / IMAGES
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert len(mnist("test", folder=tiny)) == 2


def test_a_download_is_kept_and_not_repeated(tiny, cache):
    assert len(mnist("test", mirrors=[tiny.as_uri()])) == 2
    assert sorted(os.listdir(cache)) == [IMAGES, LABELS]
    assert len(mnist("test", mirrors=["file:///nowhere"])) == 2


def test_the_next_mirror_is_tried(tiny):
    assert len(mnist("test", mirrors=["file:///nowhere", tiny.as_uri()])) == 2


def test_without_any_mirror_the_error_says_how_to_go_on(tiny, cache):
    with pytest.raises(ValueError, match=rf"no good copy of {IMAGES}.*\$COMPANION_DATA"):
        mnist("test", mirrors=["file:///nowhere"])
    assert not cache.exists() or not os.listdir(cache)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "page of html"])
def test_a_bad_download_is_refused_and_leaves_nothing(tiny, cache, damage):
    path = tiny / IMAGES
    good = gzip.decompress(path.read_bytes())
    bad = {
        "flipped": gzip.compress(good[:-1] + b"\xff"),
        "truncated": path.read_bytes()[:-12],
        "page of html": b"<html>not found</html>",
    }[damage]
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="no good copy"):
        mnist("test", mirrors=[tiny.as_uri()])
    assert not cache.exists() or not os.listdir(cache)


def test_nothing_half_written_stays_when_the_disk_fails(tiny, cache, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        mnist("test", mirrors=[tiny.as_uri()])
    assert os.listdir(cache) == []


def test_a_missing_file_is_named(tiny):
    (tiny / LABELS).unlink()
    with pytest.raises(ValueError, match=rf"received .*{LABELS}; there is no such file"):
        mnist("test", folder=tiny)


def test_a_wrong_checksum_is_told_with_both_sums(tiny):
    content = gzip.decompress((tiny / LABELS).read_bytes())
    (tiny / LABELS).write_bytes(gzip.compress(content[:-1] + b"\x09"))
    found = hashlib.sha256(content[:-1] + b"\x09").hexdigest()[:12]
    with pytest.raises(ValueError, match=rf"SHA-256 {found}….*corrupted, delete it"):
        mnist("test", folder=tiny)


def test_a_truncated_gzip_file_is_refused(tiny):
    path = tiny / LABELS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"does not decompress.*truncated or\s+corrupted"):
        load_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0\x08", "starts with 00 00 08"),
        (b"PK\x03\x04" + b"\0" * 20, "starts with 50 4b 03 04"),
        (b"\0\0\x07\x01\0\0\0\1\1", "starts with 00 00 07 01"),
        (idx_bytes(0x08, (2, 2), b"\1\2\3"), r"15 bytes; its header promises shape \(2, 2\), 16 bytes"),
        (idx_bytes(0x08, (2, 2), b"\1\2\3\4\5"), "17 bytes"),
        (b"\0\0\x08\x02\0\0\0\1", "its header promises"),
        (idx_bytes(0x08, (-1,), b""), "its header promises"),
    ],
)
def test_a_file_that_is_no_idx_file_is_refused(tmp_path, content, message):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_idx(path)


def test_an_unknown_split_is_refused(tiny):
    with pytest.raises(ValueError, match="'train' or 'test'"):
        mnist("validation", folder=tiny)
