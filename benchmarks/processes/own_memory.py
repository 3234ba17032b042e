"""Load a checkpoint, answer about an image, and sample this process's own memory meanwhile.

Own memory is what the system counts as anonymous (RssAnon): it can't be given up, unlike pages of
files that are mapped. Where cgroups can be made, --limit-gb runs it in one that kills what takes
more, pages of files included.

  python -m benchmarks.processes.own_memory --folder 7b-gptq --int4 --megapixels 1 --limit-gb 8

Prints one JSON object: seconds to load, to the first token and for each later one; and the peaks.
"""

import argparse
import json
import os
import threading
import time
from pathlib import Path

import torch

from benchmarks.processes import memory_in_status
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

INTERVAL = 0.01  # seconds between two samples
CGROUPS = Path("/sys/fs/cgroup")
PATCH = 14  # pixels
SQUARE = 28  # pixels a side of what becomes one token


class MemorySampler:
    """Notes the highest RssAnon and VmRSS of this process while a `with` block lasts."""

    def __init__(self) -> None:
        self.own = 0
        self.resident = 0
        self.done = threading.Event()

    def __enter__(self) -> "MemorySampler":
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def sample(self) -> None:
        while not self.done.wait(INTERVAL):
            self.own = max(self.own, memory_in_status("RssAnon"))
            self.resident = max(self.resident, memory_in_status("VmRSS"))


def memory_cgroup() -> Path:
    """The folder of the cgroup of this process that counts memory, in version 1 or 2."""
    found = CGROUPS
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):  # version 1
            return CGROUPS / "memory" / path.lstrip("/")
        if not controllers:
            found = CGROUPS / path.lstrip("/")
    return found


def join_cgroup(parent: Path, limit_gb: float) -> str | None:
    """Put this process into a new cgroup below its own, with that much memory and no swap.

    Returns the reason where that can't be had here.
    """
    folder = parent / f"own_memory_{os.getpid()}"
    limit = str(int(limit_gb * 1e9))
    limits = {"memory.max": limit, "memory.swap.max": "0"}
    if "memory" in parent.parts:  # version 1, where the second is memory and swap together
        limits = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
    try:
        folder.mkdir()
        for name, value in limits.items():
            (folder / name).write_text(value)
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        return f"no cgroup here: {error}"
    return None


def leave_cgroup(parent: Path) -> None:
    """Go back to the cgroup of before, and remove the one that `join_cgroup` made."""
    folder = parent / f"own_memory_{os.getpid()}"
    if folder.is_dir():
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        folder.rmdir()


def prompt(config: Qwen2VLConfig, megapixels: float) -> dict[str, torch.Tensor]:
    """Ids of one image of about so many pixels and a few words, and its patches."""
    side = max(1, round((megapixels * 1e6) ** 0.5 / SQUARE))
    generator = torch.Generator().manual_seed(0)
    values = config.vision_config.in_chans * config.vision_config.temporal_patch_size * PATCH**2
    words = torch.randint(1000, (40,), generator=generator).clamp(max=config.image_token_id - 10)
    image = torch.full((side * side,), config.image_token_id)
    start = torch.tensor([config.vision_start_token_id])
    end = torch.tensor([config.vision_end_token_id])
    ids = torch.cat((words[:20], start, image, end, words[20:]))
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(4 * side * side, values, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]]),
    }


def measure(args: argparse.Namespace) -> dict:
    """Load, answer and sample; see above for what is returned."""
    start = time.perf_counter()
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        args.folder, args.dtype, "cpu", int8=args.int8, int4=args.int4
    )
    loaded = time.perf_counter()
    inputs = prompt(model.config, args.megapixels)
    moments = []
    for token in model.stream(
        **inputs, max_new_tokens=args.new_tokens, temperature=0, eos_token_id=-1
    ):
        token.tolist()
        moments.append(time.perf_counter())
    between = (moments[-1] - moments[0]) / max(1, len(moments) - 1)
    return {
        "tokens_in_prompt": inputs["input_ids"].shape[1],
        "seconds_to_load": loaded - start,
        "seconds_to_first_token": moments[0] - loaded,
        "seconds_per_token": between,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--int4", action="store_true")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--limit-gb", type=float, help="run in a cgroup with that much memory")
    args = parser.parse_args()

    result: dict = {}
    parent: Path | None = None
    if args.limit_gb is not None:
        parent = memory_cgroup()
        reason = join_cgroup(parent, args.limit_gb)
        result["cgroup"] = reason or f"{args.limit_gb:g} GB"
    with MemorySampler() as sampler:
        result.update(measure(args))
    if parent is not None:
        leave_cgroup(parent)
    result["peak_own_gb"] = sampler.own / 1e9
    result["peak_resident_gb"] = sampler.resident / 1e9
    print(json.dumps(result))


if __name__ == "__main__":
    main()
