"""Lateness costs what the policy says, never more than there is, whatever the clocks on the walls show."""

import itertools
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from course.chapters import CourseError
from course.homework.late import LatePolicy, lateness

DUE = datetime(2025, 10, 25, 23, 59, tzinfo=ZoneInfo("Europe/Berlin"))  # summer time ends in the night that follows
POLICIES = [
    LatePolicy(percent, grace, most, per)
    for percent, grace, most, per in itertools.product(
        (0, 7, 10, 33.3, 100), (0, 15, 90.5), (None, 0.5, 2, 3), ("started day", "hour")
    )
]
STEPS = sorted({timedelta(minutes=m) for m in (-10_000, -1, 0, 1, 14, 15, 16, 59, 60, 61, 90, 91)}) + [
    timedelta(hours=hours, seconds=seconds) for hours in range(2, 130, 3) for seconds in (-1, 0, 1)
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_penalty_is_none_in_time_grows_with_lateness_and_never_passes_the_points(policy):
    for points in (0.0, 1 / 3, 4, 10.5):
        taken = [policy.penalty(points, DUE, DUE.astimezone(UTC) + step) for step in STEPS]
        assert taken == sorted(taken)
        assert all(0 <= penalty <= points for penalty in taken)
        grace = timedelta(minutes=policy.grace_minutes)
        assert not any(penalty for penalty, step in zip(taken, STEPS, strict=True) if step <= grace)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_penalty_scales_with_the_points_and_grows_with_the_percentage(policy):
    harder = LatePolicy(min(100, policy.percent_per_day + 1), policy.grace_minutes, policy.most_days, policy.per)
    for step in STEPS:
        submitted = DUE.astimezone(UTC) + step
        one, two = (policy.penalty(points, DUE, submitted) for points in (3.0, 6.0))
        assert two == pytest.approx(2 * one, abs=1e-5)
        assert harder.penalty(3.0, DUE, submitted) >= one


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_same_moment_costs_the_same_in_every_time_zone(policy):
    zones = [UTC, timezone(timedelta(hours=-11, minutes=-30)), ZoneInfo("Pacific/Auckland"), DUE.tzinfo]
    for step in STEPS:
        moment = DUE.astimezone(UTC) + step
        assert (
            len(
                {
                    policy.penalty(10, due, moment.astimezone(zone))
                    for zone in zones
                    for due in (DUE, DUE.astimezone(UTC))
                }
            )
            == 1
        )


def test_the_night_when_summer_time_ends_has_its_hour_more():
    submitted = DUE.replace(day=26)  # the same time on the next day's clock
    assert submitted - DUE == timedelta(days=1)  # what the clocks show
    assert lateness(DUE, submitted) == timedelta(hours=25)
    policy = LatePolicy(percent_per_day=10)
    assert policy.penalty(10, DUE, submitted) == 2 * policy.penalty(10, DUE, submitted - timedelta(hours=2))


def test_a_day_counts_when_it_has_started_and_after_the_grace():
    policy = LatePolicy(percent_per_day=10, grace_minutes=15)
    due = DUE.astimezone(UTC)
    late = {
        minutes: policy.penalty(10, due, due + timedelta(minutes=minutes))
        for minutes in (15, 16, 24 * 60 + 15, 24 * 60 + 16)
    }
    assert list(late.values()) == [0, 1, 1, 2]


def test_by_the_hour_a_day_costs_as_much_as_by_the_day():
    daily, hourly = LatePolicy(12), LatePolicy(12, per="hour")
    assert hourly.penalty(10, DUE, DUE.astimezone(UTC) + timedelta(days=2)) == daily.penalty(
        10, DUE, DUE.astimezone(UTC) + timedelta(days=2)
    )
    assert hourly.penalty(24, DUE, DUE.astimezone(UTC) + timedelta(minutes=61)) == pytest.approx(2 * 24 * 0.12 / 24)


def test_after_most_days_everything_is_taken():
    policy, due = LatePolicy(percent_per_day=1, most_days=2), DUE.astimezone(UTC)
    assert policy.penalty(10, due, due + timedelta(days=2)) == pytest.approx(0.2)
    assert policy.penalty(10, due, due + timedelta(days=2, seconds=1)) == 10


@pytest.mark.parametrize(("due", "submitted"), [(None, DUE), (DUE, None), (None, None)])
def test_an_unknown_time_costs_nothing(due, submitted):
    assert LatePolicy(percent_per_day=100).penalty(10, due, submitted) == 0
    assert lateness(due, submitted) == timedelta(0)


@pytest.mark.parametrize("points", [0, -3, float("nan"), float("inf")])
def test_points_that_are_none_stay_as_they_are(points):
    assert LatePolicy(percent_per_day=100).penalty(points, DUE, DUE.replace(year=2026)) == 0


def test_nobody_is_late_by_less_than_nothing():
    assert lateness(DUE, DUE - timedelta(days=1)) == timedelta(0)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(CourseError, match="rule: a time with its time zone"):
        LatePolicy(percent_per_day=1).penalty(1, DUE, datetime(2025, 10, 27, 12, 0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("percent_per_day", -1),
        ("percent_per_day", 101),
        ("percent_per_day", float("nan")),
        ("percent_per_day", "10"),
        ("percent_per_day", True),
        ("grace_minutes", -1),
        ("grace_minutes", float("inf")),
        ("most_days", 0),
        ("most_days", "two"),
        ("per", "week"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(CourseError, match=f"late policy: received {name}"):
        LatePolicy(**{name: value})
