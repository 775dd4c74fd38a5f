"""What lateness costs.

    taken = points · percent/100 · (started days after the grace),  at most all points

A day is 24 hours of real time: neither the time zone of the student nor summer time changes what he pays. The grace
moves the moment from which lateness counts: with 15 minutes of grace, work that comes 24 hours and 10 minutes late has
started one day, not two.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from course.chapters import CourseError

STEPS = {"started day": timedelta(days=1), "hour": timedelta(hours=1)}


@dataclass(frozen=True)
class LatePolicy:
    """How points go with time; the default takes none.

    Attributes:
        percent_per_day: of the points earned, taken for each day; 0 to 100.
        grace_minutes: that cost nothing.
        most_days: later than this (after the grace) everything is taken; None: no such end.
        per: `started day` takes whole days, `hour` a twenty-fourth of a day's percentage for each started hour.
    """

    percent_per_day: float = 0.0
    grace_minutes: float = 0.0
    most_days: float | None = None
    per: str = "started day"

    def __post_init__(self):
        self._require(
            _is_number(self.percent_per_day) and 0 <= self.percent_per_day <= 100, "percent_per_day", "0 to 100"
        )
        grace = _is_number(self.grace_minutes) and 0 <= self.grace_minutes <= 1e6
        self._require(grace, "grace_minutes", "0 or more minutes")
        most = self.most_days is None or (_is_number(self.most_days) and 0 < self.most_days <= 1e5)
        self._require(most, "most_days", "more than 0 days, or none")
        self._require(self.per in STEPS, "per", " or ".join(STEPS))

    def penalty(self, points: float, due: datetime | None, submitted: datetime | None) -> float:
        """Points taken of `points`, between 0 and all of them; none where one of the times is unknown.

        Raises:
            CourseError: A time without a time zone.
        """
        late = lateness(due, submitted) - timedelta(minutes=self.grace_minutes)
        if late <= timedelta(0) or not points > 0 or not math.isfinite(points):
            return 0.0
        if self.most_days is not None and late > timedelta(days=self.most_days):
            return points
        step = STEPS[self.per]
        started = -(-late // step)
        share = started * (step / timedelta(days=1)) * self.percent_per_day / 100
        return min(points, round(points * share, 6))

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise CourseError(f"late policy: received {name} = {getattr(self, name)!r}; rule: {rule}")


def lateness(due: datetime | None, submitted: datetime | None) -> timedelta:
    """Real time from `due` to `submitted`; zero when on time or where one of them is unknown."""
    if due is None or submitted is None:
        return timedelta(0)
    for time in (due, submitted):
        if time.utcoffset() is None:
            raise CourseError(f"late policy: received the time {time.isoformat()}; rule: a time with its time zone")
    # In UTC, because two times of one zone are subtracted by the clock on the wall, which summer time moves.
    return max(timedelta(0), submitted.astimezone(UTC) - due.astimezone(UTC))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
