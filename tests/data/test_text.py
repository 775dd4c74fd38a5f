"""Text: nothing is lost on the way to bytes and back, splits share nothing, windows are where they say they are."""

import hashlib
import math
from collections import Counter
from itertools import islice

import pytest
import torch

from companion.data import text
from companion.device import generator


@pytest.fixture(scope="module")
def manual():
    return {split: text.python_manual(split) for split in ("train", "test")}


def test_bytes_come_back_as_the_same_text():
    for sample in ("plain", "Größe – “quoted” …", ""):
        tokens = text.encode(sample)
        assert tokens.dtype == torch.int64
        assert text.decode(tokens) == sample
    assert text.encode("a bit").tolist() == [97, 32, 98, 105, 116]


def test_bytes_that_are_no_text_are_shown_and_not_refused():
    assert text.decode(torch.tensor([0xE2, 0x80])) == "�"


@pytest.mark.parametrize("token", [-1, 256])
def test_a_token_that_is_no_byte_is_refused(token):
    with pytest.raises(ValueError, match="rule: bytes, 0 to 255"):
        text.decode(torch.tensor([65, token]))


def test_the_manual_is_about_as_long_as_promised_on_every_python(manual):
    """330,000 and 35,000 bytes on Python 3.11; other releases differ by a fifth at most."""
    assert 250_000 < len(manual["train"]) < 450_000
    assert 8 < len(manual["train"]) / len(manual["test"]) < 10.5


def test_the_manual_is_mostly_printable_english(manual):
    tokens = manual["train"]
    assert ((tokens >= 32) & (tokens < 127) | (tokens == 10)).double().mean() > 0.99
    counts = Counter(tokens.tolist())
    assert counts.most_common(1)[0][0] == ord(" ")
    assert "exception" in text.decode(tokens)


def test_a_byte_of_the_manual_takes_between_four_and_five_bits_alone(manual):
    """The entropy of single letters, which is what a model without memory reaches."""
    share = manual["train"].bincount(minlength=256) / len(manual["train"])
    entropy = -(share[share > 0] * share[share > 0].log()).sum() / math.log(2)
    assert 4.3 < entropy < 5.0


def test_no_long_paragraph_of_the_test_was_trained_on(manual):
    """The topics as they come repeat a fifth of themselves."""
    train = text.decode(manual["train"])
    long = [p for p in text.decode(manual["test"]).split("\n\n") if len(p) > 60]
    assert len(long) > 50
    assert sum(p in train for p in long) <= 0.02 * len(long)


def test_without_the_cure_the_test_would_have_been_trained_on():
    from pydoc_data.topics import topics

    raw = text.encode("\n\n".join(topics[name] for name in sorted(topics)))
    train, test = (text.decode(text._part(raw, split)) for split in ("train", "test"))
    long = [p for p in test.split("\n\n") if len(p) > 60]
    assert sum(p in train for p in long) > 0.1 * len(long)


def test_a_paragraph_is_kept_where_it_stands_first():
    assert text.once("a b\nc\n\nd\n\n\n\na  b c\n\ne") == "a b\nc\n\nd\n\ne"


def test_the_splits_put_together_are_the_whole():
    tokens = torch.arange(10 * text.STRETCH + 7) % 251
    train, test = text._part(tokens, "train"), text._part(tokens, "test")
    assert len(train) + len(test) == len(tokens)
    assert torch.equal(test, tokens[9 * text.STRETCH : 10 * text.STRETCH])


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="python_manual: received split = 'dev'"):
        text.python_manual("dev")
    with pytest.raises(ValueError, match="shakespeare: received split"):
        text.shakespeare("dev", folder=".")


def test_a_python_without_its_manual_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="install Python's whole standard library"):
        text.python_manual()


def test_windows_are_stretches_of_the_text_and_begin_anywhere():
    """Of numbers that count up, a window is a run, and 4,000 of them begin at each of the 8 places (chi-square)."""
    tokens = torch.arange(12)
    rows = torch.cat(list(islice(text.windows(tokens, length=4, size=40, generator=generator(0)), 100)))
    assert rows.shape == (4000, 5)
    assert torch.equal(rows - rows[:, :1], torch.arange(5).expand(4000, 5))
    counts = rows[:, 0].bincount(minlength=8)
    assert len(counts) == 8
    assert ((counts - 500) ** 2 / 500).sum() < 29.9  # 7 degrees of freedom, false alarm 1e-4


def test_windows_follow_their_generator():
    tokens = torch.arange(1000)
    one, two, other = (next(text.windows(tokens, length=3, size=9, generator=generator(k))) for k in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_consecutive_stretches_predict_every_byte_once():
    rows = text.consecutive(torch.arange(11), length=3)
    assert torch.equal(rows[:, 1:].flatten(), torch.arange(1, 10))
    assert torch.equal(rows[1:, 0], rows[:-1, -1])


@pytest.mark.parametrize("length", [0, -1, True, 5])
def test_a_length_that_does_not_fit_is_refused_at_once(length):
    with pytest.raises(ValueError, match="rule: a whole number from 1"):
        text.windows(torch.arange(5), length=length, size=2, generator=generator(0))
    with pytest.raises(ValueError, match="rule: a whole number from 1"):
        text.consecutive(torch.arange(5), length=length)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_at_least_one_row(size):
    with pytest.raises(ValueError, match="windows: received size"):
        text.windows(torch.arange(5), length=2, size=size, generator=generator(0))


def test_shakespeare_is_read_from_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    content = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 1000
    monkeypatch.setattr(text, "SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    (tmp_path / text.SHAKESPEARE).write_bytes(content)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    train, test = text.shakespeare("train"), text.shakespeare("test")
    assert len(train) + len(test) == len(content)
    assert text.decode(train).startswith("First Citizen")


def test_another_file_of_that_name_is_refused_with_both_sums(tmp_path):
    (tmp_path / text.SHAKESPEARE).write_bytes(b"Second Citizen")
    with pytest.raises(ValueError, match=r"SHA-256 [0-9a-f]{12}…; it must be 86c4e6aa9db7…"):
        text.shakespeare(folder=tmp_path)


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tinyshakespeare\.txt; there is no such file"):
        text.shakespeare(folder=tmp_path)
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    with pytest.raises(ValueError, match=r"name it in \$COMPANION_DATA"):
        text.shakespeare()
