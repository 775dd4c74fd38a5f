"""Printed outputs: floats within the tolerance, everything else exactly."""

import math

import pytest

from course.tolerance import Tolerance, compare, largest_change

LOOSE = Tolerance(rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("reference", "new"),
    [
        ("loss 0.500", "loss 0.504"),
        ("tensor([ 1.00, -2.00])", "tensor([1.009, -2.01])"),
        ("0.0000", "-0.0009"),
        (" 0.001 end", "-0.000 end"),  # the sign takes the place of a blank
        ("| 9.99  |", "| 10.0 |"),
        ("x = 1", "x = 1.001"),  # {:g} prints a float as an integer
        ("1.5e-05", "2.5e-05"),
        ("nan and inf", "nan and inf"),
        ("[nan, 1.0]", "[nan, 1.001]"),
        ("1,234.5 points", "1,235.5 points"),
        ("<td>0.500</td>", "<td>0.501</td>"),
        ("−0.50", "-0.501"),
        ("steps 3\nloss 0.10", "steps 3\nloss 0.1004"),
        ("took 0.50s", "took 0.501s"),
    ],
)
def test_numbers_within_the_tolerance_agree(reference, new):
    assert compare(reference, new, LOOSE) is None


@pytest.mark.parametrize(
    ("reference", "new", "said"),
    [
        ("loss 0.500", "loss 0.520", "0.500 became 0.520: it moved by 0.02, allowed is 0.006"),
        ("loss 0.500", "lost 0.500", "the text changed"),
        ("12 steps", "13 steps", "integers must be equal"),
        ("W2 0.5", "W3 0.5", "the text changed"),
        ("torch.Size([640, 480])", "torch.Size([640, 481])", "integers must be equal"),
        ("640x480", "641x480", "the text changed"),
        ("nan", "0.5", "nan became 0.5"),
        ("0.5", "nan", "0.5 became nan"),
        ("inf", "-inf", "inf became -inf"),
        ("[0.1, 0.2]", "[0.1, 0.2, 0.3]", "the text changed"),
        ("0.1 0.2", "0.1", "the number 0.2 stands in only one of them"),
        ("0.1\n", "0.1\n\n", "the text changed"),
        ("version 1.2.3", "version 1.2.4", "the text changed"),
        ("a-1.0", "a+1.0", "the text changed"),
        ("ab cd", "abcd", "the text changed"),
    ],
)
def test_everything_else_is_told(reference, new, said):
    difference = compare(reference, new, LOOSE)
    assert difference is not None
    assert said in str(difference)


def test_the_line_of_the_difference_is_told():
    assert str(compare("a\nb\n0.5\n", "a\nb\n0.9\n", LOOSE)).startswith("line 3:")


def test_without_a_tolerance_only_equal_texts_agree():
    assert compare("0.50", "0.50", Tolerance()) is None
    assert "this cell states no tolerance" in str(compare("0.50", "0.500", Tolerance()))


def test_integers_move_only_where_the_tolerance_says_so():
    assert compare("100 calls", "101 calls", LOOSE)
    assert compare("100 calls", "101 calls", Tolerance(rtol=1e-2, integers=True)) is None
    assert compare("100 calls", "102 calls", Tolerance(rtol=1e-2, integers=True))


def test_the_tolerance_of_a_cell_wins_over_that_of_the_chapter_name_by_name():
    assert Tolerance.read({"rtol": 1e-3, "atol": 1e-4}, {"rtol": 0.1}) == Tolerance(rtol=0.1, atol=1e-4)
    assert Tolerance.read(None, None) == Tolerance()


@pytest.mark.parametrize(
    "stated",
    [{"rtoll": 1}, {"rtol": -1}, {"rtol": "1e-3"}, {"atol": math.inf}, {"atol": True}, {"integers": 1}, [1e-3]],
)
def test_a_tolerance_that_cannot_be_meant_is_refused(stated):
    with pytest.raises(ValueError, match="tolerance: received .*; rule: "):
        Tolerance.read(stated)


def test_the_largest_change_is_measured():
    absolute, relative = largest_change("a 1.0 b 200.0", "a 1.5 b 201.0")
    assert absolute == pytest.approx(1.0)
    assert relative == pytest.approx(0.5)
    assert largest_change("a 1.0", "b 1.0") is None
    assert largest_change("a nan", "a 1.0") == (math.inf, math.inf)
