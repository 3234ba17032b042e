"""Cold start: a whole process, from its start to the first token about an image, with `tiny`."""

from dataclasses import dataclass

from benchmarks.models import Models
from benchmarks.processes import run_python
from benchmarks.settings import OURS, REFERENCE
from benchmarks.stage import Contestant, Run, Stage


@dataclass
class Process:
    """A command line of Python, timed from outside."""

    arguments: list[str]

    def run(self) -> Run:
        """Processor seconds, of all its threads: other users of the machine hardly change them."""
        import resource  # Windows has no such module: there this stage fails, and only this one

        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python(self.arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        user = after.ru_utime - before.ru_utime
        system = after.ru_stime - before.ru_stime
        return Run(user + system)


def cold_start_stage(models: Models) -> Stage:
    ours = Process(["qwen2vl.py", "--image", "examples/shapes.png", "--max-new-tokens", "1"])
    only_torch = Process(["-m", "benchmarks.processes.import_torch"])
    reference = Process(["-m", "benchmarks.processes.first_token_of_reference"])
    contestants = [Contestant(OURS, ours.run), Contestant("import torch", only_torch.run)]
    if models.has_reference:
        contestants.append(Contestant(REFERENCE, reference.run))
    return Stage(
        "cold start to first token, tiny",
        contestants,
        note="processor seconds",
        rounds=5,
        measure_memory=False,
    )
