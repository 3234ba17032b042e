"""Run one contestant of one stage; print the bytes that it took at its peak beyond the weights.

`python -m benchmarks.processes.peak_memory prefill-300 ours --model shape:2b`
"""

import argparse
import ctypes
from pathlib import Path

import torch

from benchmarks.models import Models
from benchmarks.processes import memory_in_status
from benchmarks.settings import add_arguments, settings_from
from benchmarks.stage import Contestant
from benchmarks.stages.catalogue import make_stage


def peak_on_cuda(contestant: Contestant) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contestant.run()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(contestant: Contestant) -> int:
    # Memory that earlier runs have freed goes back to the system, where the C library can do that.
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here (man 5 proc)
    before = memory_in_status("VmRSS")
    contestant.run()
    return memory_in_status("VmHWM") - before


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("contestant")
    add_arguments(parser)
    args = parser.parse_args()

    models = Models(settings_from(args), empty=True)
    stage = make_stage(args.stage, models)
    contestant = next(c for c in stage.contestants if c.name == args.contestant)
    models.of_contestant(contestant.name)
    if stage.warm_up:
        contestant.run()  # what is compiled or cached the first time is not the stage's
    peak = peak_on_cuda(contestant) if models.device.type == "cuda" else peak_on_cpu(contestant)
    print(peak)


if __name__ == "__main__":
    main()
