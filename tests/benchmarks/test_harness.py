"""The bookkeeping of the benchmarks: ratios, spreads, goals and the file of results. Nothing is timed here."""

import json
import math

import pytest

import benchmarks.__main__ as command
from benchmarks.harness import Case, interleaved, records, worst

FIELDS = [
    "measure", "case", "ours", "peer", "peer_name", "ratio", "low", "high", "goal", "met", "unit", "clock",
]  # fmt: skip


def case(name="a", ours=(2.0, 4.0, 3.0), peer=(1.0, 2.0, 2.0), goal=1.5, better="lower"):
    return Case(name, ours, peer, "peer", goal, "s", "clock", better)


def test_the_ratio_is_that_of_the_medians_and_the_spread_that_of_the_pairs():
    assert (case().ratio, case().low, case().high) == (1.5, 1.5, 2.0)


def test_without_pairs_the_spread_is_ours_over_the_peers_median():
    unpaired = case(ours=(1.0, 2.0, 3.0), peer=(2.0,))
    assert (unpaired.ratio, unpaired.low, unpaired.high) == (1.0, 0.5, 1.5)


@pytest.mark.parametrize(("better", "goal", "met"), [("lower", 1.5, True), ("lower", 1.4, False), ("higher", 1.5, True),
                                                    ("higher", 1.6, False)])  # fmt: skip
def test_a_goal_is_met_from_the_side_that_counts(better, goal, met):
    assert case(better=better, goal=goal).met is met


@pytest.mark.parametrize(("better", "name"), [("lower", "slow"), ("higher", "quick")])
def test_the_worst_case_is_the_one_furthest_from_its_goal(better, name):
    slow, quick = (
        case("slow", ours=(9.0,), peer=(1.0,), better=better),
        case("quick", ours=(1.0,), peer=(1.0,), better=better),
    )
    assert worst([quick, slow]).case == name


def test_a_missed_share_is_worse_than_a_met_distance():
    """Cases of one measure may point both ways: 0.899 of 0.9 is missed, 1.3 of at most 1.5 is met."""
    distance = case("distance", ours=(1.3,), peer=(1.0,), goal=1.5)
    share = case("share", ours=(0.899,), peer=(1.0,), goal=0.9, better="higher")
    assert worst([distance, share]).case == "share"
    assert (distance.met, share.met) == (True, False)


def test_one_case_stands_under_the_bare_measure():
    (record,) = records("measure", [case("only")])
    assert list(record) == FIELDS
    assert record["case"] is None
    assert record["ratio"] == 1.5


def test_several_cases_are_headed_by_the_worst():
    found = records("measure", [case("good", ours=(1.0,), peer=(1.0,)), case("bad", ours=(9.0,), peer=(1.0,))])
    assert [(r["case"], r["ratio"]) for r in found] == [(None, 9), ("good", 1), ("bad", 9)]


def test_what_is_not_finite_is_null_in_json():
    (record,) = records("measure", [case(ours=(math.nan,), peer=(1.0,))])
    assert record["ratio"] is None
    assert record["met"] is False
    json.dumps(record, allow_nan=False)


def test_ours_and_the_peer_take_turns():
    order = []
    ours, peer = interleaved(lambda: order.append("ours"), lambda: order.append("peer"), repetitions=3, warmup=1)
    assert order == ["ours", "peer"] * 4
    assert len(ours) == len(peer) == 3


def test_a_measure_is_replaced_and_the_others_are_kept(tmp_path, capsys):
    results = tmp_path / "results.json"
    assert command.measure("b", lambda: [case()], results)
    assert command.measure("a", lambda: [case(goal=1.0)], results) is False
    assert command.measure("b", lambda: [case("x"), case("y", goal=2.0)], results)
    written = json.loads(results.read_text())
    assert [(r["measure"], r["case"]) for r in written] == [("a", None), ("b", None), ("b", "x"), ("b", "y")]
    out = capsys.readouterr().out
    assert "1.5 (1.5 to 2), goal ≤ 1 MISSED" in out
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_only_the_chosen_measures_run(tmp_path, monkeypatch):
    ran = []
    measures = {name: lambda name=name: ran.append(name) or [case()] for name in ("fm2d-w2", "fm2d-nfe", "ode-nfe")}
    monkeypatch.setattr(command, "collect", lambda: measures)
    assert command.main(["fm2d", "--results", str(tmp_path / "r.json")]) == 0
    assert ran == ["fm2d-w2", "fm2d-nfe"]


def test_a_missed_goal_is_told_by_the_exit_status(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "collect", lambda: {"x": lambda: [case(goal=1.0)]})
    assert command.main(["--results", str(tmp_path / "r.json")]) == 1


def test_an_unknown_measure_is_refused_with_the_known_ones(capsys):
    assert command.main(["fm3d"]) == 2
    assert "received fm3d; the measures are" in capsys.readouterr().err


def test_every_measure_of_the_plan_exists():
    assert set(command.collect()) >= {
        "fm2d-steps-independent", "fm2d-steps-ot", "fm2d-w2-independent", "fm2d-w2-ot", "fm2d-path-energy",
        "fm2d-nfe-ot", "fm2d-euler10", "ode-nfe", "ode-time", "import-time", "chapter-seconds", "chapter-memory",
    }  # fmt: skip
