"""When each frame of a video is shown: which frames lie in a part of it, at which rate.

A header states how many frames a second there are; each frame has a time, too. Where they
agree, the header is taken: frame i is shown at i / rate. Where they don't, times are believed:

* the rate is that of the times, if the header's differs from it by more than RATE_TOLERANCE;
* a part from `start` to `end` is chosen by the frames' own times, if one of them is more than
  half a frame away from i / rate, and its rate is its own number of frames over its own length.

In both cases frames are chosen by number, evenly spread, from those of the part.
"""

import bisect
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

RATE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Timeline:
    """The frames of a video, in the order in which they are shown.

    stated_rate: frames a second by the header, 0 if it says nothing. pts: a time for each frame,
    ascending, in units of `unit` seconds; empty if not every frame has one of its own. keys: the
    numbers of the frames from which decoding can begin, ascending, each with what to seek for.
    """

    total: int
    stated_rate: float = 0.0
    pts: list[int] = field(default_factory=list)
    unit: float = 1.0
    keys: dict[int, int] = field(default_factory=dict)

    def number_of(self) -> dict[int | None, int]:
        """The number of the frame that is shown at a time in units."""
        return {pts: number for number, pts in enumerate(self.pts)}

    def seconds(self, number: int) -> float:
        """When a frame is shown, in seconds from the first; only where pts is known."""
        return (self.pts[number] - self.pts[0]) * self.unit

    @property
    def measured_rate(self) -> float:
        """Frames a second by their times; 0 if these are not known."""
        if len(self.pts) < 2:
            return 0.0
        return (self.total - 1) / self.seconds(self.total - 1)

    @property
    def rate(self) -> float:
        """Frames a second of the whole video."""
        stated, measured = self.stated_rate, self.measured_rate
        if stated == 0 and measured == 0:  # a single image as a video
            return 1.0
        if measured == 0 or abs(stated / measured - 1) <= RATE_TOLERANCE:
            return stated
        return measured

    def is_even(self) -> bool:
        """Whether each frame i is shown at i / rate, to half a frame, as far as it is known."""
        rate = self.rate
        for number in range(len(self.pts)):
            if abs(self.seconds(number) * rate - number) > 0.5:
                return False
        return True

    def part(self, start: float, end: float) -> tuple[int, int, float]:
        """The frames shown from `start` to `end` seconds: the first, the one after the last, and
        their rate.

        The frame at `end` belongs to it. ValueError if there is none.
        """
        rate = self.rate
        if self.is_even():
            first = math.ceil(max(0, start) * rate)
            stop = int(min(self.total, end * rate + 1))
        else:
            first, stop = self.part_by_times(start, end)
            if 0 < stop - first < self.total:
                rate = self.rate_of_part(first, stop)
        if stop <= first:
            seconds = self.total / self.rate
            raise ValueError(f"none of its {seconds:.2f} s lies in {start:g} to {end:g} s")
        return first, stop, rate

    def part_by_times(self, start: float, end: float) -> tuple[int, int]:
        """The same by the frames' own times, which are rounded to some microseconds."""
        times = [self.seconds(number) for number in range(self.total)]
        first = bisect.bisect_left(times, start - 1e-6)
        stop = bisect.bisect_right(times, end + 1e-6)
        # Between two frames the one before is still shown.
        if first == stop and 0 < stop < self.total and start <= end:
            first -= 1
        return first, stop

    def rate_of_part(self, first: int, stop: int) -> float:
        """Frames a second from the first to the one before `stop`, whose end is the next frame."""
        if stop < self.total:
            end = self.seconds(stop)
        else:
            end = self.seconds(stop - 1) + 1 / self.measured_rate
        return (stop - first) / (end - self.seconds(first))

    def only(self, numbers: Collection[int]) -> "Timeline":
        """The timeline of these frames alone, if there are no others after all."""
        kept = sorted(numbers)
        keys = {}
        for new_number, number in enumerate(kept):
            if number in self.keys:
                keys[new_number] = self.keys[number]
        pts = [self.pts[number] for number in kept] if self.pts else []
        return replace(self, total=len(kept), pts=pts, keys=keys)

    def has_gaps_with_only(self, numbers: Collection[int]) -> bool:
        """Whether, with these frames alone, one is shown for twice the time that frames are."""
        pts = self.only(numbers).pts
        steps = sorted(after - before for before, after in itertools.pairwise(pts))
        return bool(steps) and steps[-1] > 1.5 * steps[len(steps) // 2]
