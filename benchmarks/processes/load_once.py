"""Load a checkpoint once, ours or with `transformers`; print seconds and peak memory as JSON.

`python -m benchmarks.processes.load_once ours --folder DIR --dtype bfloat16 --device cpu [--touch]`
"""

import argparse
import gc
import json
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.processes import memory_in_status, status_is_readable


def import_loader(who: str) -> Callable[..., nn.Module]:
    """`from_pretrained` of that project; the other one is not imported."""
    if who == "ours":
        import qwen2vl

        return qwen2vl.Qwen2VLForConditionalGeneration.from_pretrained
    import transformers

    return transformers.Qwen2VLForConditionalGeneration.from_pretrained


def load_model(loader: Callable[..., nn.Module], args: argparse.Namespace) -> nn.Module:
    dtype = getattr(torch, args.dtype)
    if args.who == "ours":
        return loader(
            args.folder, dtype=dtype, device_map=args.device, int8=args.int8, int4=args.int4
        )
    # With device_map the reference needs one more package.
    return loader(args.folder, dtype=dtype).to(args.device)


def touch_every_page(model: nn.Module) -> None:
    """Read one number of every 1,024: at least one in each page of 4 KB."""
    for p in model.parameters():
        p.detach().view(-1)[::1024].sum().item()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=("ours", "transformers"))
    parser.add_argument("--folder", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--int8", action="store_true", help="ours only")
    parser.add_argument("--int4", action="store_true", help="ours only")
    parser.add_argument("--touch", action="store_true", help="read something of every page as well")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    loader = import_loader(args.who)

    # What the imports left behind, and the start of CUDA, are not the loading's.
    if args.device == "cuda":
        torch.zeros(1, device=args.device)
    gc.collect()
    before = memory_in_status("VmRSS") if status_is_readable() else None

    start = time.perf_counter()
    model = load_model(loader, args)
    if args.touch:
        touch_every_page(model)
    seconds = time.perf_counter() - start

    peak_memory = None
    if before is not None:
        peak_memory = memory_in_status("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak_memory": peak_memory}))


if __name__ == "__main__":
    main()
