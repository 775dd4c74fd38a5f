"""Images in the IDX format of MNIST: two zero bytes, a type, a number of dimensions, the lengths, then the numbers.

Everything is big-endian. Files are looked for in a folder; without one, they are downloaded once, checked and kept.
A file is written under its name only after its checksum agreed, so that nothing half-written stays behind.
Source: LeCun, Cortes and Burges, the MNIST database, section 'file formats'.
"""

import gzip
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data.images import Images, check_split

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
)

# SHA-256 of the decompressed content: a file that was compressed again is as good as the original.
MNIST = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(split: str = "train", folder: str | os.PathLike | None = None, *, mirrors: Sequence[str] = MIRRORS) -> Images:
    """MNIST: 60,000 or 10,000 digits of 28 × 28 pixels, as (n, 1, 28, 28) in float32.

    Args:
        split: "train" or "test".
        folder: where the two .gz files of the split lie. None: `$COMPANION_DATA` if set; else they are downloaded
            once into the user's cache.
        mirrors: addresses to download from, tried in turn.

    Raises:
        ValueError: a file is missing, truncated or corrupted, or no mirror answers; the message says which and why.
    """
    check_split("mnist", split)
    prefix = {"train": "train", "test": "t10k"}[split]
    folder = folder or os.environ.get("COMPANION_DATA")
    images, labels = (
        _parse(name, _verified(name, _locate(name, folder, mirrors)))
        for name in (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
    )
    return Images(images[:, None].float() / 127.5 - 1, labels.long())


def load_idx(path: str | os.PathLike) -> Tensor:
    """The tensor in an IDX file, plain or compressed (`.gz`), in its own type.

    Raises:
        ValueError: the file is missing, cannot be decompressed, is no IDX file, or its length contradicts its header.
    """
    return _parse(str(path), _read(Path(path)))


def _locate(name: str, folder: str | os.PathLike | None, mirrors: Sequence[str]) -> Path:
    if folder is not None:
        return Path(folder) / name
    path = _cache() / name
    return path if path.exists() else _download(name, path, mirrors)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "companion"


def _download(name: str, path: Path, mirrors: Sequence[str]) -> Path:
    reasons = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(f"{mirror}/{name}", timeout=30) as answer:
                content = answer.read()
            _check_sum(name, f"{mirror}/{name}", _decompress(f"{mirror}/{name}", content))
        except (OSError, ValueError) as error:
            reasons.append(f"{mirror}: {error}")
        else:
            _write(path, content)
            return path
    raise ValueError(
        f"mnist: received no good copy of {name} ({'; '.join(reasons) or 'no mirror given'}); connect to the "
        "network, or put the file into a folder and name it in $COMPANION_DATA"
    )


def _write(path: Path, content: bytes) -> None:
    """Write aside, then rename: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _verified(name: str, path: Path) -> bytes:
    content = _read(path)
    _check_sum(name, str(path), content)
    return content


def _check_sum(name: str, where: str, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST[name]:
        raise ValueError(
            f"mnist: received {where} whose content has SHA-256 {found[:12]}…; it must be {MNIST[name][:12]}…: "
            "the file is corrupted, delete it and get it again"
        )


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"load_idx: received {path}; there is no such file")
    content = path.read_bytes()
    return _decompress(str(path), content) if content[:2] == b"\x1f\x8b" or path.suffix == ".gz" else content


def _decompress(where: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"load_idx: received {where}, which does not decompress ({error}); the file is truncated or "
            "corrupted, get it again"
        ) from error


def _parse(where: str, content: bytes) -> Tensor:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise ValueError(
            f"load_idx: received {where}, which starts with {content[:4].hex(' ') or 'nothing'}; an IDX file "
            "starts with two zero bytes and a known type"
        )
    dtype, dims = np.dtype(TYPES[content[2]]), content[3]
    start = 4 + 4 * dims
    shape = tuple(np.frombuffer(content[4:start], dtype=">i4").tolist()) if len(content) >= start else ()
    expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(shape) != dims or len(content) != expected:
        raise ValueError(
            f"load_idx: received {where} of {len(content)} bytes; its header promises shape {shape}, "
            f"{expected} bytes: the file is truncated or damaged"
        )
    numbers = np.frombuffer(content, dtype=dtype, offset=start).reshape(shape)
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("=")))
