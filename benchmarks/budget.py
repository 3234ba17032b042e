"""How long each stage may take, so that the whole ends in time on a slow machine as well."""

from benchmarks.stages.catalogue import TYPICAL_SECONDS

QUICK_MINUTES = 9.0


class Budget:
    """Divides the time among the stages, in proportion to what each typically takes.

    Each stage has a deadline; what an earlier one leaves over goes to the later ones. A stage ends
    its rounds when one more would not end before its deadline. Times are in seconds of
    `time.monotonic()`.
    """

    def __init__(self, names: list[str], seconds: float, start: float) -> None:
        self.seconds = seconds
        self.start = start
        self.shares: dict[str, float] = {}
        self.deadlines: dict[str, float] = {}
        total = sum(TYPICAL_SECONDS[name] for name in names)
        deadline = start
        for name in names:
            self.shares[name] = seconds * TYPICAL_SECONDS[name] / total
            deadline += self.shares[name]
            self.deadlines[name] = deadline

    def has_time_for(self, name: str, now: float, least: float = 0) -> bool:
        """Whether the `least` seconds that a stage takes are left, and at least half of its share.

        If not, the stage is left out.
        """
        needed = max(least, self.shares[name] / 2)
        return self.deadlines[name] - now >= needed
