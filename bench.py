"""This project beside `transformers`: the same weights, the same inputs, in turn, in one run.

    python bench.py                                   # the official 2B shape, under ten minutes on two cores
    python bench.py --full --json 2b.json --plot .    # also 4K pictures, clips, long prompts, batches; plots
    python bench.py --model tiny --stages cold,prefill,decode
    python bench.py --model shape:7b --device cuda --full

Shapes get random weights, which cost the same time as trained ones; both models share their storage. Every
stage is run by all contestants in turn, after one run that isn't counted. The table shows medians, with the
least and the most in brackets; how many times faster than the reference's fastest setting that is; its share
of the machine's limit, which is measured between the runs (read bandwidth for decoding, the rate of matrix
products for the rest); and the memory that it takes at its peak, weights aside, in a process of its own.
"""

import argparse
import atexit
import ctypes
import functools
import itertools
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fast
import load
from qwen2vl import IMPLEMENTATIONS, KVCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration

HERE = Path(__file__).parent
FAMILY = {
    "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "hidden_act": "silu",
    "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
    "model_type": "qwen2_vl",
}  # fmt: skip
VISION = {
    "depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "in_chans": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
SHAPES = {  # of the official checkpoints: config.json at huggingface.co/Qwen/Qwen2-VL-2B-Instruct and -7B-
    "shape:2b": FAMILY | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
        "vision_config": VISION | {"hidden_size": 1536},
    },
    "shape:7b": FAMILY | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
        "vision_config": VISION | {"hidden_size": 3584},
    },
}  # fmt: skip
MANY_PATCHES = 4096  # above it two layers are timed, and their time is scaled to all
REFERENCE = "transformers"  # names of its contestants start with this


# --------------------------------------------------------------------------------------------- the two models


class Models:
    """The contestants' models, each made when it is first needed. All share one set of weights.

    With `empty`, for measuring memory, the weights are zeros that take none before they are written.
    """

    def __init__(self, args: argparse.Namespace, empty: bool = False):
        self.name, self.empty = args.model, empty
        self.device, self.dtype = torch.device(args.device), getattr(torch, args.dtype)
        self.attn = fast.pick_attention(args.attn, self.device, self.dtype)
        if self.name in SHAPES:
            self.config = SHAPES[self.name] | {"torch_dtype": args.dtype}
        else:
            self.config = load.read_config(load.find_checkpoint(self.name))

    @functools.cached_property
    def ours(self) -> Qwen2VLForConditionalGeneration:
        if self.name not in SHAPES:
            return Qwen2VLForConditionalGeneration.from_pretrained(
                self.name, self.dtype, self.device, self.attn
            )
        with torch.device("meta"):
            model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(self.config), self.attn)
        block = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        for path, p in list(model.named_parameters()):
            if self.empty:
                values = torch.zeros(p.shape, device=self.device, dtype=self.dtype)
            elif p.ndim == 1:
                values = torch.full(p.shape, float("norm" in path or "ln_q" in path)).to(
                    self.device, self.dtype
                )
            else:
                values = torch.empty(p.shape, device=self.device, dtype=self.dtype)
                for part in values.view(-1).split(len(block)):  # like the reference's own start
                    torch.mul(block[: len(part)], 0.02, out=part)
            place(model, path, values)
        model.tie_weights()
        return model.eval()

    @functools.cached_property
    def int8(self) -> Qwen2VLForConditionalGeneration:
        ours = self.ours  # made out here: within, its weights would have no values
        with torch.device("meta"):
            model = Qwen2VLForConditionalGeneration(ours.config, self.attn)
        for path, p in ours.named_parameters():
            owner = place(model, path, p)
            if path.endswith(".weight"):
                fast.to_int8(owner)
        model.tie_weights()
        return model.eval()

    @functools.cached_property
    def theirs(self):
        import transformers

        transformers.logging.set_verbosity_error()
        flat = json.loads(json.dumps(self.ours.config.to_dict()))  # the reference writes into it
        with transformers.modeling_utils.no_init_weights(), self.device:
            torch.set_default_dtype(self.dtype)
            model = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**flat))
            torch.set_default_dtype(torch.float32)
        state = {
            re.sub("^model\\.", "model.language_model.", re.sub("^visual", "model.visual", name)): p.detach()
            for name, p in self.ours.named_parameters()
        }
        model.load_state_dict(state, strict=not self.ours.config.tie_word_embeddings, assign=True)
        model.tie_weights()
        model.set_attn_implementation("sdpa" if self.attn == "blocks" else self.attn)  # blocks are ours alone
        return model.eval()

    def of(self, who: str):
        """The model that a contestant of this name runs, made now if it is not there yet."""
        return self.theirs if who.startswith(REFERENCE) else self.int8 if "int8" in who else self.ours


# ------------------------------------------------------------------------------------- stages and contestants


@dataclass
class Stage:
    """A job that each contestant does; a run returns its seconds, or None for the time it takes in all."""

    name: str
    runs: dict[str, Callable[[], float | None]]
    # who -> which of the machine's limits, and how much of it the job takes
    limits: dict[str, tuple[str, float]] = field(default_factory=dict)
    note: str = ""
    rounds: int = 3
    warm: bool = True  # once before, uncounted
    memory: bool = True
    peaks: dict[str, list[int]] = field(default_factory=dict)  # bytes, where a stage measures them itself


@dataclass
class Result:
    """One contestant's figures in one stage: seconds, how often faster than the reference, shares, bytes."""

    stage: str
    who: str
    median: float
    least: float
    most: float
    ratio: float | None
    limit: str | None
    share: float | None
    memory: int | None
    note: str


def vision_flops(config: Qwen2VLConfig, patches: int) -> float:
    """Of the matrix products for a picture of so many patches, two for a multiplication and an addition."""
    v = config.vision_config
    D, inner, merged = v.embed_dim, v.embed_dim * v.mlp_ratio, v.embed_dim * v.spatial_merge_size**2
    layer = 2 * patches * (4 * D * D + 2 * D * inner) + 4 * patches**2 * D
    pixels = v.in_chans * v.temporal_patch_size * v.patch_size**2
    tokens = patches // v.spatial_merge_size**2
    return v.depth * layer + 2 * patches * pixels * D + 2 * tokens * merged * (merged + v.hidden_size)


def decoder_weights(config: Qwen2VLConfig) -> tuple[int, int]:
    """How many numbers the matrices of all layers hold, and those of the head."""
    D, width = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = 2 * D * D + 2 * D * width + 3 * D * config.intermediate_size
    return config.num_hidden_layers * layer, D * config.vocab_size


def place(model: torch.nn.Module, path: str, values: torch.Tensor) -> torch.nn.Module:
    """Make a tensor the parameter of that path; returns the module that has it."""
    module, _, leaf = path.rpartition(".")
    owner = model.get_submodule(module)
    setattr(owner, leaf, torch.nn.Parameter(values, requires_grad=False))
    return owner


def grid_of(patches: int) -> torch.Tensor:
    """The most nearly square grid (1, 3) of so many patches whose sides are even."""
    h = next(h for h in range(math.isqrt(patches), 0, -1) if h % 2 == 0 and patches % (2 * h) == 0)
    return torch.tensor([[1, h, patches // h]])


def vision_stage(models: Models, patches: int) -> Stage:
    """Pixels to the decoder's tokens. Above MANY_PATCHES two layers run, and the rest is scaled."""
    v = models.config["vision_config"]
    pixels = torch.randn(patches, v["in_chans"] * v["temporal_patch_size"] * v["patch_size"] ** 2)
    pixels, grid = pixels.to(models.device, models.dtype), grid_of(patches).to(models.device)
    scale = 1 if patches <= MANY_PATCHES else v["depth"] / 2

    def run(who: str) -> float:
        model = models.of(who)
        tower, how = (model.visual, (models.attn,)) if who == "ours" else (model.model.visual, ())
        blocks = tower.blocks
        try:
            if scale != 1:
                tower.blocks = blocks[:2]
            start = time.perf_counter()
            tower(pixels, grid, *how)
            synchronise(models.device)
        finally:
            tower.blocks = blocks
        return (time.perf_counter() - start) * scale

    flops = vision_flops(Qwen2VLConfig.from_dict(models.config), patches)
    large, huge = patches > 1024, patches > 16384  # huge: minutes a layer; once, and without the reference
    runs = {who: functools.partial(run, who) for who in (("ours",) if huge else ("ours", REFERENCE))}
    note = f"2 of {v['depth']} layers timed, scaled" if scale != 1 else ""
    limits = dict.fromkeys(runs, ("matrix products", flops))
    rounds = 1 if huge else 2 if large else 3
    return Stage(f"vision, {patches:,} patches", runs, limits, note, rounds, warm=not large)


def prompt_ids(models: Models, tokens: int, batch: int = 1) -> torch.Tensor:
    """Random text (batch, tokens)."""
    generator = torch.Generator().manual_seed(0)
    most = min(models.config["bos_token_id"], models.config["vocab_size"])
    return torch.randint(0, most, (batch, tokens), generator=generator).to(models.device)


def prefill_stage(models: Models, tokens: int) -> Stage:
    """A prompt of text to the logits of its next token, the cache filled."""
    ids, config = prompt_ids(models, tokens), Qwen2VLConfig.from_dict(models.config)

    def ours() -> None:
        cache = KVCache(config, 1, tokens, models.device, models.dtype)
        models.ours(ids, past_key_values=cache, logits_to_keep=1)
        synchronise(models.device)

    def theirs() -> None:
        models.theirs(input_ids=ids, use_cache=True, logits_to_keep=1)
        synchronise(models.device)

    layers, head = decoder_weights(config)
    attention = 2 * config.num_hidden_layers * tokens**2 * config.hidden_size
    flops = 2 * tokens * layers + attention + 2 * head
    runs = {"ours": ours, REFERENCE: theirs}
    return Stage(
        f"prefill, {tokens:,} tokens", runs, dict.fromkeys(runs, ("matrix products", flops)),
        rounds=3 if tokens < 2000 else 2,
    )  # fmt: skip


def decode_stage(models: Models, batch: int, context: int, memory: bool = True, new: int = 16) -> Stage:
    """Seconds from one token to the next, of `new` tokens behind a prompt; the first three don't count."""
    ids = prompt_ids(models, context, batch)
    mask = torch.ones_like(ids)

    def ours(int8: bool, compile: bool) -> float:
        model, moments = models.int8 if int8 else models.ours, []
        for token in model.stream(ids, mask, new, compile=compile, temperature=0, eos_token_id=-1):
            token.tolist()
            moments.append(time.perf_counter())
        return statistics.median(b - a for a, b in itertools.pairwise(moments[3:]))

    def theirs(compile: bool) -> float:
        import transformers

        moments = []

        class Clock(transformers.generation.streamers.BaseStreamer):
            def put(self, value: torch.Tensor) -> None:
                moments.append(time.perf_counter())

            def end(self) -> None:
                pass

        how = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0, "max_new_tokens": new}
        if compile:
            if models.theirs.model.rope_deltas is None:  # its first prompt must not be a compiled one
                models.theirs.generate(ids, attention_mask=mask, **how | {"max_new_tokens": 1})
            config = transformers.CompileConfig(mode="default", fullgraph=False)
            config._compile_all_devices = True  # else it leaves a CPU alone
            how |= {"cache_implementation": "static", "compile_config": config}
        streamer = Clock() if batch == 1 else None
        if streamer is None:  # its streamers take one row: the time of all tokens less that of one
            start = time.perf_counter()
            models.theirs.generate(ids, attention_mask=mask, **how | {"max_new_tokens": 1})
            middle = time.perf_counter()
            models.theirs.generate(ids, attention_mask=mask, **how)
            return (time.perf_counter() - middle - (middle - start)) / (new - 1)
        models.theirs.generate(ids, attention_mask=mask, streamer=streamer, **how)
        return statistics.median(b - a for a, b in itertools.pairwise(moments[4:]))  # the first is the prompt

    runs = {
        "ours": functools.partial(ours, False, False),
        REFERENCE: functools.partial(theirs, False),
        "ours, int8": functools.partial(ours, True, False),
        "ours, compiled": functools.partial(ours, False, True),
        "ours, int8, compiled": functools.partial(ours, True, True),
        f"{REFERENCE}, static cache, compiled": functools.partial(theirs, True),
    }
    config = Qwen2VLConfig.from_dict(models.config)
    weights = sum(decoder_weights(config))
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * context * batch
    size = models.dtype.itemsize
    limits = {
        who: ("read bandwidth", weights * (1 if "int8" in who else size) + cache * size) for who in runs
    }
    rounds = 2 if batch * context > 300 else 5
    return Stage(f"decode, batch {batch}, {context:,} before", runs, limits, rounds=rounds, memory=memory)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mixed_stage(models: Models, new: int = 8) -> Stage:
    """Four prompts in one padded batch, pictures of three sizes to `new` tokens each: the whole way."""
    import transformers

    from processor import Qwen2VLImageProcessor

    config = Qwen2VLConfig.from_dict(models.config)
    pictures = [[picture(640, 480)], [picture(480, 640), picture(320, 240)], [], [picture(320, 240)]]
    images = [image for row in pictures for image in row]
    mine, reference = Qwen2VLImageProcessor(), transformers.Qwen2VLImageProcessor(max_pixels=1280 * 28 * 28)

    def prompt(grids: torch.Tensor) -> dict[str, torch.Tensor]:
        slots, rows = iter((grids.prod(-1) // 4).tolist()), []
        for row in pictures:
            rows.append([config.bos_token_id - 1 - i for i in range(20)])
            for _ in row:
                picture_ids = [config.image_token_id] * next(slots)
                rows[-1] += [config.vision_start_token_id, *picture_ids, config.vision_end_token_id]
            rows[-1] += range(10)
        T = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[0] * (T - len(row)) + row for row in rows]).to(models.device),
            "attention_mask": torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows]).to(
                models.device
            ),
        }

    def run(who: str) -> None:
        made = mine(images) if who == "ours" else reference(images, return_tensors="pt")
        inputs = prompt(made["image_grid_thw"]) | {
            key: value.to(models.device) for key, value in made.items()
        }
        greedy = {"temperature": 0} if who == "ours" else {"do_sample": False, "pad_token_id": 0}
        models.of(who).generate(**inputs, max_new_tokens=new, eos_token_id=-1, **greedy)
        synchronise(models.device)

    runs = {who: functools.partial(run, who) for who in ("ours", REFERENCE)}
    return Stage("batch of 4, 4 pictures, end to end", runs, note=f"{new} new tokens each", rounds=2)


# ---------------------------------------------------------------- stages around the model: pictures and files


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours under noise, so that no codec and no filter has it too easy."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 224, (9, 16, 3), dtype=np.uint8))
    noise = rng.integers(0, 32, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(
        np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)) // 8 * 7 + noise
    )


def picture_stage(name: str, width: int, height: int, most: int) -> Stage:
    """A decoded picture to patches: with Pillow's resize, and with torch's ("Fast")."""
    import transformers

    from processor import Qwen2VLImageProcessor, Qwen2VLImageProcessorFast

    image, limits = picture(width, height), {"min_pixels": 56 * 56, "max_pixels": most}
    processors = {
        "ours": Qwen2VLImageProcessor(**limits),
        REFERENCE: transformers.Qwen2VLImageProcessor(**limits),
        "ours, Fast": Qwen2VLImageProcessorFast(**limits),
    }
    note = f"max_pixels {most:,}"
    try:
        import torchvision  # noqa: F401

        processors[f"{REFERENCE}, Fast"] = transformers.Qwen2VLImageProcessorFast(**limits)
    except ImportError:
        note += f"; without torchvision {REFERENCE} has no Fast"

    def run(processor) -> None:
        processor(
            images=[image], **({"return_tensors": "pt"} if "transformers" in str(type(processor)) else {})
        )

    runs = {who: functools.partial(run, processor) for who, processor in processors.items()}
    return Stage(f"preprocessing, {name}", runs, note=note, rounds=9)


def write_clip(file: Path, seconds: int, rate: int = 4) -> None:
    """A clip of 1080p in which a picture slowly moves."""
    import av

    still = np.asarray(picture(1920, 1080))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1920, 1080, "yuv420p", 4_000_000
        for i in range(seconds * rate):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 8 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@functools.cache
def scratch() -> Path:
    """A folder for files that are gone when the program ends."""
    folder = tempfile.TemporaryDirectory(prefix="bench")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def clip(seconds: int) -> Path:
    write_clip(scratch() / f"{seconds}.mp4", seconds)
    return scratch() / f"{seconds}.mp4"


def clip_stage(seconds: int, fps: float, theirs: bool = True) -> Stage:
    """A 1080p clip's file to patches, one frame a second."""
    from processor import Qwen2VLImageProcessor, video_patches

    file, mine = clip(seconds), Qwen2VLImageProcessor()
    runs = {"ours": lambda: video_patches(mine, str(file), {"fps": fps}) and None}
    note = f"{fps:g} frame(s) a second"
    try:
        import torchvision  # noqa: F401
        import transformers

        def reference() -> None:
            frames, metadata = transformers.video_utils.load_video(str(file), fps=fps, backend="pyav")
            processor = transformers.Qwen2VLVideoProcessor()
            processor(videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")

        if theirs:
            runs[REFERENCE] = reference
    except ImportError:
        note += f"; without torchvision {REFERENCE} reads no clips"
    return Stage(f"preprocessing, clip of {seconds} s", runs, note=note, rounds=2)


COLD = {
    "ours": [sys.executable, "qwen2vl.py", "--image", "examples/shapes.png", "--max-new-tokens", "1"],
    "import torch": [sys.executable, "-c", "import torch"],
    REFERENCE: [
        sys.executable,
        "-c",
        "from PIL import Image\n"
        "from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor\n"
        "folder = 'tiny/checkpoint'\n"
        "model = Qwen2VLForConditionalGeneration.from_pretrained(folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "pixels = Qwen2VLImageProcessor.from_pretrained(folder)([Image.open('examples/shapes.png')], "
        "return_tensors='pt')\n"
        "n = int(pixels['image_grid_thw'].prod()) // 4\n"
        "text = '<|im_start|>user\\n<|vision_start|>' + '<|image_pad|>' * n + '<|vision_end|>Describe this "
        "image.<|im_end|>\\n<|im_start|>assistant\\n'\n"
        "inputs = tokenizer(text, return_tensors='pt')\n"
        "print(tokenizer.decode(model.generate(**inputs, **pixels, max_new_tokens=1)[0, -1:]))",
    ],
}


def cold_stage() -> Stage:
    """Processor seconds of a whole process, from its start to the first token about a picture."""

    def run(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=HERE, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    runs = {who: functools.partial(run, command) for who, command in COLD.items()}
    return Stage("cold start to first token, tiny", runs, note="processor seconds", rounds=5, memory=False)


LOADING = """
import gc, json, sys, time
from bench import status
who, folder, device, dtype = sys.argv[1:]
if who.startswith("ours"):
    from qwen2vl import Qwen2VLForConditionalGeneration
else:
    from transformers import Qwen2VLForConditionalGeneration
import torch
if device == "cuda":
    torch.zeros(1, device=device)
gc.collect()  # of the import's garbage
before, start = status("VmRSS"), time.perf_counter()
options = {"device_map": device} if who.startswith("ours") else {}  # the reference's needs another package
model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
model.to(device)
if "touched" in who:
    for p in model.parameters():
        p.detach().view(-1)[::1024].sum().item()  # something of every page
seconds = time.perf_counter() - start
weights = sum(p.nbytes for p in model.parameters())
print(json.dumps({"seconds": seconds, "memory": status("VmHWM") - before, "weights": weights}))
"""


def load_stage(models: Models) -> Stage:
    """`from_pretrained` of a sharded checkpoint whose files the system has in its cache.

    On a CPU both map the files and read what is touched, later; so it is timed with that and without.
    """
    folder, dtype = scratch() / "checkpoint", str(models.dtype).removeprefix("torch.")
    config = models.ours.config.to_dict() | {"torch_dtype": dtype}
    load.save_checkpoint(folder, config, dict(models.ours.named_parameters()), max_shard_size="2GB")
    peaks: dict[str, list[int]] = {}

    def run(who: str) -> float:
        command = [sys.executable, "-c", LOADING, who, str(folder), str(models.device), dtype]
        told = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout
        told = json.loads(told.splitlines()[-1])
        peaks.setdefault(who, []).append(told["memory"])
        stage.note = f"weights {told['weights'] / 1e9:.2f} GB; memory is all that came after the import"
        return told["seconds"]

    names = [who + touched for touched in ("", ", every page touched") for who in ("ours", REFERENCE)]
    runs = {who: functools.partial(run, who) for who in names}
    stage = Stage("load, sharded", runs, memory=False, peaks=peaks, rounds=5)  # `run` writes its note
    return stage


# ------------------------------------------------------------------------------------ measuring and reporting


class Limits:
    """What the machine can do, measured again and again: other users of it come and go."""

    def __init__(self, models: Models):
        device = models.device
        long = torch.ones(2**28 if device.type == "cpu" else 2**31, device=device)
        a, b = (torch.randn(shape, device=device).to(models.dtype) for shape in ((4096, 4096), (4096, 8192)))
        flops = 2 * len(a) * b.numel()
        self.device = device
        self.jobs = {"read bandwidth": (long.sum, long.nbytes), "matrix products": (lambda: a @ b, flops)}
        self.rates: dict[str, list[float]] = {name: [] for name in self.jobs}
        for name in [*self.jobs] * 3:
            self.measure(name)

    def measure(self, name: str) -> float:
        """Bytes a second that can be read, or floating-point operations a second of matrix products."""
        job, amount = self.jobs[name]
        start = time.perf_counter()
        job()
        synchronise(self.device)
        self.rates[name].append(amount / (time.perf_counter() - start))
        return self.rates[name][-1]

    def __str__(self) -> str:
        (low, read, high), (least, multiply, most) = (
            (min(rates) / 1e9, statistics.median(rates) / 1e9, max(rates) / 1e9)
            for rates in self.rates.values()
        )
        return (
            f"reads {read:.1f} GB/s ({low:.1f} to {high:.1f}) "
            f"and multiplies at {multiply:,.0f} GFLOP/s ({least:,.0f} to {most:,.0f})"
        )


def all_stages(models: Models, full: bool) -> dict[str, Callable[[], Stage]]:
    """Name -> what makes the stage; `full` adds the ones that take long."""
    official = 12845056  # max_pixels in the official preprocessor_config.json
    some = {
        "cold": cold_stage,
        "load": lambda: load_stage(models),
        "preprocess-1080p": lambda: picture_stage("1080p picture", 1920, 1080, official),
        "vision-256": lambda: vision_stage(models, 256),
        "vision-1024": lambda: vision_stage(models, 1024),
        "vision-4096": lambda: vision_stage(models, 4096),
        "prefill-300": lambda: prefill_stage(models, 300),
        "decode-1-300": lambda: decode_stage(models, 1, 300, memory=full),
    }
    more = {
        "preprocess-4k": lambda: picture_stage("4K picture", 3840, 2160, official),
        "preprocess-clip": lambda: clip_stage(60, 1),
        "preprocess-long-clip": lambda: clip_stage(600, 1, theirs=False),
        "vision-16384": lambda: vision_stage(models, 16384),
        "vision-65536": lambda: vision_stage(models, 65536),
        "prefill-4000": lambda: prefill_stage(models, 4000),
        "decode-8-300": lambda: decode_stage(models, 8, 300, memory=False),
        "decode-1-1000": lambda: decode_stage(models, 1, 1000, memory=False),
        "decode-1-2000": lambda: decode_stage(models, 1, 2000, memory=False),
        "mixed": lambda: mixed_stage(models),
    }
    return some | more if full else some


def kind(who: str) -> tuple[bool, ...]:
    """Contestants of one kind do the same job."""
    return "Fast" in who, "touched" in who


def measure(stage: Stage, limits: Limits) -> list[Result]:
    """Every contestant once uncounted, then `rounds` times in turn, each round from another one on."""
    times: dict[str, list[float]] = {who: [] for who in stage.runs}
    rates: dict[str, list[float]] = {limit: [] for limit, _ in stage.limits.values()}
    order = list(stage.runs)
    for i in range(-1 if stage.warm else 0, stage.rounds):
        for who in order[i % len(order) :] + order[: i % len(order)]:
            for limit, found in rates.items():
                found.append(limits.measure(limit))
            start = time.perf_counter()
            with torch.no_grad():
                told = stage.runs[who]()
            seconds = told if told is not None else time.perf_counter() - start
            if i >= 0:
                times[who].append(seconds)
    medians = {who: statistics.median(seconds) for who, seconds in times.items()}
    results = []
    for who, seconds in times.items():
        rivals = [other for other in medians if other.startswith(REFERENCE) and kind(other) == kind(who)]
        limit, share = None, None
        if who in stage.limits:
            limit, amount = stage.limits[who]
            share = amount / medians[who] / statistics.median(rates[limit])
        results.append(
            Result(
                stage.name, who, medians[who], min(seconds), max(seconds),
                min(medians[rival] for rival in rivals) / medians[who] if rivals else None,
                limit, share, max(stage.peaks.get(who, []), default=None), stage.note,
            )
        )  # fmt: skip
    return results


def peak_alone(args: argparse.Namespace, key: str, who: str) -> int:
    """What a contestant's stage takes at its peak beyond the weights, in bytes, in a process of its own."""
    command = [sys.executable, __file__, "--alone", key, who, "--model", args.model, "--device", args.device]
    told = subprocess.run(
        [*command, "--dtype", args.dtype, "--attn", args.attn], cwd=HERE, capture_output=True, text=True
    )
    if told.returncode:
        raise RuntimeError(f"measuring the memory of {key} by {who} failed:\n{told.stderr}")
    return int(told.stdout.splitlines()[-1])


def run_alone(args: argparse.Namespace, key: str, who: str) -> None:
    """The other side of `peak_alone`: one run, and its peak on stdout."""
    models = Models(args, empty=True)
    stage = all_stages(models, full=True)[key]()
    models.of(who)
    with torch.no_grad():
        if models.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            stage.runs[who]()
            print(torch.cuda.max_memory_allocated() - before)
        else:
            if stage.warm:
                stage.runs[who]()  # what is compiled or cached the first time isn't the stage's
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = status("VmRSS")
            stage.runs[who]()
            print(status("VmHWM") - before)


def status(line: str) -> int:
    """A size in bytes from /proc/self/status."""
    return 1024 * int(re.search(rf"{line}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def errors_of_int8(models: Models) -> str:
    """How far the logits with int8 weights are from those without, after a prompt."""
    ids = prompt_ids(models, 300)
    with torch.no_grad():
        exact, int8 = (model(ids).logits.float() for model in (models.ours, models.int8))
    error = ((int8 - exact).square().mean() / exact.square().mean()).sqrt()
    same = (int8.argmax(-1) == exact.argmax(-1)).float().mean()
    return (
        f"int8 against {str(models.dtype)[6:]}: logits differ by {error:.1%} (RMS); "
        f"at {same:.0%} of {ids.shape[1]} positions the likeliest token is the same"
    )


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = [
        "| stage | who | time | against the reference | of the limit | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        cells = [
            r.stage + (f" ({r.note})" if r.note and r.who == "ours" else ""), r.who,
            f"{duration(r.median)} ({duration(r.least)} to {duration(r.most)})",
            f"{r.ratio:.2f} ×" if r.ratio and not r.who.startswith(REFERENCE) else "",
            f"{r.share:.0%} of {r.limit}" if r.share else "",
            f"{r.memory / 1e6:,.0f} MB" if r.memory is not None else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def machine(models: Models) -> str:
    """The machine in a line."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = re.search(r"model name\s*: (.*)", info.read_text())[1]
    gpu = f"{torch.cuda.get_device_name(models.device)}, " if models.device.type == "cuda" else ""
    return f"{gpu}{os.cpu_count()} cores of {cpu}, torch {torch.__version__}, {str(models.dtype)[6:]}"


def plot(results: list[Result], folder: Path) -> None:
    """Cost against the picture's size, and decoding speed against what stands before: bench.png."""
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    panels = (r"vision, ([\d,]+) patches", 1), (r"decode, batch 1, ([\d,]+)", -1)
    for axes, (pattern, power) in zip(both, panels, strict=True):
        lines: dict[str, list] = {}
        for match, result in ((re.match(pattern, result.stage), result) for result in results):
            if match:
                point = int(match[1].replace(",", "")), result.median**power
                lines.setdefault(result.who, []).append(point)
        for i, (who, points) in enumerate(lines.items()):
            style = {"color": "0.4", "linestyle": "--"} if who.startswith(REFERENCE) else {"color": f"C{i}"}
            axes.plot(*zip(*sorted(points), strict=True), marker="os^vDPX*"[i % 8], label=who, **style)
        where = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(where, [f"{x:,}" for x in where])
        axes.minorticks_off()
        if lines:
            axes.legend(fontsize="small")
    left, right = both
    left.set(title="Vision transformer", xlabel="patches of a picture", ylabel="seconds", yscale="log")
    right.set(title="Decoding", xlabel="tokens before", ylabel="tokens a second", ylim=(0, None))
    figure.savefig(folder / "bench.png", dpi=110)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--model", default="shape:2b", help="shape:2b (default), shape:7b, tiny, a folder or a Hub name")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    about = "ours: auto (default: the fastest) or one of these; the reference: the same, sdpa if it lacks it"
    add("--attn", default="auto", choices=("auto", *IMPLEMENTATIONS), help=about)
    add("--full", action="store_true", help="all stages, not the ten minutes' choice of --quick, the default")
    add("--quick", dest="full", action="store_false", help=argparse.SUPPRESS)
    add("--stages", help="only stages whose name starts with one of these, e.g. decode-1-300,vision")
    add("--json", type=Path, metavar="OUT", help="write every figure there")
    add("--plot", type=Path, metavar="FOLDER", help="draw bench.png there")
    add("--no-memory", action="store_true", help="leave out the peak memory, which takes a process each")
    add("--alone", nargs=2, metavar=("STAGE", "WHO"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return run_alone(args, *args.alone)
    models = Models(args)
    limits, results = Limits(models), []
    print(f"{args.model} on {machine(models)}; {limits}", file=sys.stderr)
    stages = all_stages(models, args.full or bool(args.stages))
    if args.stages:
        stages = {key: make for key, make in stages.items() if key.startswith(tuple(args.stages.split(",")))}
    for key, make in stages.items():
        stage = make()
        found = measure(stage, limits)
        for result in found:
            if stage.memory and not args.no_memory:
                result.memory = peak_alone(args, key, result.who)
        print(table(found).split("\n", 2)[2], file=sys.stderr, flush=True)
        results += found
        if args.json:  # again after each stage: a long run that is broken off has its figures
            figures = {"limits": limits.rates, "results": [asdict(r) for r in results]}
            args.json.write_text(json.dumps(figures, indent=1))
    print(f"`python {' '.join(sys.argv)}` on {machine(models)}, which {limits}:\n\n{table(results)}")
    if any("int8" in r.who for r in results):
        print(f"\n{errors_of_int8(models)}")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
