"""Text as whole numbers, one a byte: Python's own manual, which needs no download, and Shakespeare from a file.

    tokens = encode("a bit")  →  [97, 32, 98, 105, 116]          decode(tokens) → "a bit"

A byte is a number below 256, so the vocabulary never depends on the text, and a loss in nats a token becomes bits a
byte when it is divided by log 2. `windows` cuts random stretches to train on, `consecutive` all stretches in order, so
that each byte but the first is predicted once.

The manual ships with Python (`pydoc_data.topics`, what `help("lambda")` prints) and differs a little from release to
release: what is measured on it holds to two digits on another, not to five. A fifth of it is said twice, because a
topic repeats the sections of another; each paragraph is kept once, or the test would hold what was trained on.
Sources: the Python Software Foundation, The Python Language Reference; Karpathy 2015 for the file of Shakespeare.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from companion.data.images import check_split
from companion.numerics._checks import is_whole

VOCABULARY = 256
STRETCH = 4_096  # of consecutive characters that go to one split
TENTH = 10  # every tenth stretch is for testing

SHAKESPEARE = "tinyshakespeare.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def encode(text: str) -> Int[Tensor, " n"]:
    """The bytes of a text in UTF-8, as int64."""
    return torch.tensor(list(text.encode("utf-8")), dtype=torch.int64)


def decode(tokens: Int[Tensor, " n"]) -> str:
    """The text of bytes; what is no UTF-8 (a model may write anything) becomes the sign �."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < VOCABULARY:
        raise ValueError(
            f"decode: received tokens from {int(tokens.min())} to {int(tokens.max())}; rule: bytes, 0 to 255"
        )
    return bytes(tokens.tolist()).decode("utf-8", errors="replace")


def python_manual(split: str = "train") -> Int[Tensor, " n"]:
    """The manual of the running Python, English and code, without repetitions: about 335,000 bytes to train on, 35,000
    to test with. Every tenth stretch of 4,096 characters is for testing.

    Args:
        split: "train" or "test".

    Raises:
        ValueError: this Python came without its manual (some minimal installations do).
    """
    check_split("python_manual", split)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            "python_manual: received a Python without the module pydoc_data; rule: install Python's whole standard "
            "library (on Debian: libpython3-stdlib)"
        ) from error
    return _part(encode(once("\n\n".join(topics[name] for name in sorted(topics)))), split)


def shakespeare(split: str = "train", folder: str | os.PathLike | None = None) -> Int[Tensor, " n"]:
    """Scenes by Shakespeare, 1.1 million bytes ('tiny Shakespeare'), from a file that you have.

    Args:
        split: "train" or "test".
        folder: where `tinyshakespeare.txt` lies. None: `$COMPANION_DATA`.

    Raises:
        ValueError: no folder is named, the file is not there, or its content is another one.
    """
    check_split("shakespeare", split)
    folder = folder or os.environ.get("COMPANION_DATA")
    if not folder:
        raise ValueError(
            f"shakespeare: received no folder; rule: pass one that holds {SHAKESPEARE}, or name it in $COMPANION_DATA"
        )
    path = Path(folder) / SHAKESPEARE
    if not path.is_file():
        raise ValueError(f"shakespeare: received {path}; there is no such file")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise ValueError(
            f"shakespeare: received {path} whose content has SHA-256 {found[:12]}…; it must be "
            f"{SHAKESPEARE_SHA256[:12]}…: the file is corrupted or another one, get it again"
        )
    return _part(encode(content.decode("utf-8")), split)


def windows(
    tokens: Int[Tensor, " n"], *, length: int, size: int, generator: torch.Generator
) -> Iterator[Int[Tensor, "size length_and_one"]]:
    """Endless batches of stretches of `length` + 1 tokens that begin anywhere.

    The first `length` of a row are what a model reads, the last `length` what it must predict.

    Args:
        tokens: the text.
        length: tokens that are predicted, a row.
        size: rows of a batch.
        generator: draws where the rows begin.
    """
    _check_length("windows", tokens, length)
    if not is_whole(size, least=1):
        raise ValueError(f"windows: received size = {size}; rule: a whole number of rows, at least 1")
    return _draw(tokens, torch.arange(length + 1), size, generator)


def consecutive(tokens: Int[Tensor, " n"], *, length: int) -> Int[Tensor, "rows length_and_one"]:
    """All stretches of `length` + 1 tokens in order; each begins with the last token of the one before.

    So every token after the first is predicted exactly once; what does not fill a row at the end is dropped.
    """
    _check_length("consecutive", tokens, length)
    return tokens.unfold(0, length + 1, length)


def once(text: str) -> str:
    """The text with every paragraph kept where it stands first; paragraphs are what blank lines separate."""
    kept: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        kept.setdefault(" ".join(paragraph.split()), paragraph.strip("\n"))
    kept.pop("", None)
    return "\n\n".join(kept.values())


def _draw(tokens: Tensor, within: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """An iterator of its own, so that `windows` checks its arguments when it is called."""
    while True:
        starts = torch.randint(len(tokens) - len(within) + 1, (size, 1), generator=generator)
        yield tokens[(starts + within).to(tokens.device)]


def _part(tokens: Tensor, split: str) -> Tensor:
    stretches = tokens.split(STRETCH)
    wanted = [part for k, part in enumerate(stretches) if (k % TENTH == TENTH - 1) == (split == "test")]
    return torch.cat(wanted)


def _check_length(operation: str, tokens: Tensor, length: int) -> None:
    if not is_whole(length, least=1) or length + 1 > len(tokens):
        raise ValueError(
            f"{operation}: received length = {length} and {len(tokens)} tokens; rule: a whole number from 1, and a "
            "text of at least length + 1"
        )
