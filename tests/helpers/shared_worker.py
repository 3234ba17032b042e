"""What each of several processes runs for test_distributed.py: `python -m ... FOLDER...`.

Each folder holds a checkpoint and inputs.pt. The process loads its part of the model, and leaves
out-N-R.pt there, for process R of N.
"""

import os
import sys
import threading
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qwen2vl import KVCache, Qwen2VLForConditionalGeneration

NEW_TOKENS = 4
NO_EXCHANGES = ("wait_tensor", "_wrap_tensor_autograd")


class Exchanges(TorchDispatchMode):
    """Counts the bytes that this process hands to exchanges with others."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func.name().partition("::")
        if namespace == "_c10d_functional" and name not in NO_EXCHANGES:
            self.nbytes[name] = self.nbytes.get(name, 0) + args[0].nbytes
        return func(*args, **(kwargs or {}))


class AnonymousMemory:
    """The most anonymous memory of this process, in bytes, while the `with` block runs."""

    def __enter__(self) -> "AnonymousMemory":
        self.start = anonymous_bytes()
        self.peak = self.start
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.is_over.wait(0.001):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        self.thread.join()
        self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory that belongs to no file; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


@torch.no_grad()
def run(folder: Path) -> dict[str, object]:
    """Load, then logits, tokens and what else the tests look at."""
    with AnonymousMemory() as memory:
        model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, torch.float32, "cpu", attn_implementation="sdpa", tp_plan="auto"
        )
    inputs = torch.load(folder / "inputs.pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    settings = {"max_new_tokens": NEW_TOKENS, "eos_token_id": -1}
    result: dict[str, object] = {
        "memory": memory.peak - memory.start,
        "tokens": model.generate(**inputs, **settings, do_sample=False),
        # Without a seed: each process has random numbers of its own.
        "drawn": model.generate(**inputs, **settings, temperature=1.0),
    }

    # One step of decoding, with a mask as a batch has it, and what it exchanges.
    cache = KVCache(model.config, len(ids), ids.shape[1] + 1, dtype=torch.float32)
    out = model(**inputs, past_key_values=cache)
    token = out.logits[:, -1:].argmax(-1)
    longer = torch.cat((mask, torch.ones_like(token)), dim=1)
    with Exchanges() as exchanges:
        step = model(token, longer, past_key_values=cache, rope_deltas=out.rope_deltas)
    result["logits"] = out.logits
    result["step"] = step.logits
    result["exchanged"] = exchanges.nbytes
    result["cache heads"] = cache.keys.shape[2]
    # Whether each head of the cache holds something: the last prompt token's keys.
    result["keys"] = cache.keys[:, :, :, ids.shape[1]]
    return result


def main() -> None:
    torch.set_num_threads(1)
    rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for folder in sys.argv[1:]:
        torch.manual_seed(int(rank))
        torch.save(run(Path(folder)), Path(folder) / f"out-{count}-{rank}.pt")


if __name__ == "__main__":
    main()
