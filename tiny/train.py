"""Train the embedded checkpoint with this repository's own model, processor and loss.

    python -m tiny.train                                      # the whole recipe, eight hours
    python -m tiny.train                                      # again: goes on where it stopped
    python -m tiny.train --minutes 10 --out tiny/runs/ten     # single shapes and their colours
    python -m tiny.train --part drawn --out tiny/runs/drawn --start tiny/runs/plain

The recipe has three parts. The first is the plain world: shapes with edges like a ruler's,
words, several images, videos. The second goes on from its weights with all that people draw
by hand and photograph, six more shapes among it. The third shows more of the first again,
and more words. All are cut into stages of at most two hours; the weights at the end of each
stage stay in a folder of their own (tiny/runs/plain-stage-1 and so on), from which `--start`
can go on if the state file is lost. At the end the mean of the second and the third part's
weights is stored in tiny/runs/checkpoint.

Unlike a large model nothing here is pretrained, so a curriculum does what data does
elsewhere. One shape on a small canvas first, until the vision transformer sees shapes; then
two, boxes and words; then everything. Each image comes with several questions, as turns of
one conversation: they share one pass of the vision transformer.

On a CPU two processes with one thread each, every one with its half of the batch, get
through a third more than one process with two threads: layers this narrow leave a second
thread waiting.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from load import read_json, save_checkpoint
from processor import GROUNDING_TOKENS, BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration, VisionConfig
from tiny.evaluate import answer_questions, random_questions
from tiny.tasks import TASKS, ask, content, show
from tiny.world import ALL_PAIRS, FPS, HELD_OUT, Level, installed_fonts

# The official checkpoints' added tokens, in the official order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *GROUNDING_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 704
# How the official tokenizer cuts text before BPE: contractions, words, single digits,
# signs, lines, spaces.
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# ------------------------------------------------------------------------------- curriculum


@dataclass(frozen=True)
class MixturePart:
    """How often a kind is shown, how hard it is, and with how many questions."""

    share: float
    level: Level
    turns: int


@dataclass(frozen=True)
class Stage:
    """A part of the training: up to which share of it, and what is shown.

    tasks: only these are asked; none for all.
    """

    until: float
    mixture: dict[str, MixturePart]
    tasks: tuple[str, ...] = ()


FONTS = installed_fonts()
SINGLE = Level(things=(1, 1), sides=(56, 69))
UP_TO_TWO = Level(things=(1, 2), sides=(56, 112))
UP_TO_FOUR = Level(things=(1, 4), sides=(56, 168))
UP_TO_SIX = Level(things=(1, 6), sides=(56, 336))
SIGN = Level(things=(1, 1), sides=(56, 150), fonts=FONTS)
SHORT_SIGN = replace(SIGN, letters=(1, 3))
# What the later stages show beside single images.
OTHERS = {
    "words": MixturePart(0.18, SIGN, turns=2),
    "images": MixturePart(0.18, UP_TO_TWO, turns=4),
    "video": MixturePart(0.20, UP_TO_TWO, turns=3),
    "text": MixturePart(0.02, UP_TO_TWO, turns=3),
}
CURRICULUM = (
    Stage(
        until=0.08,
        mixture={"image": MixturePart(1, SINGLE, turns=1)},
        tasks=("describe", "describe", "colour", "shape"),
    ),
    Stage(
        until=0.30,
        mixture={
            "image": MixturePart(0.7, UP_TO_TWO, turns=5),
            "words": MixturePart(0.3, SHORT_SIGN, turns=2),
        },
    ),
    Stage(until=0.65, mixture={"image": MixturePart(0.42, UP_TO_FOUR, turns=5), **OTHERS}),
    Stage(until=1.00, mixture={"image": MixturePart(0.42, UP_TO_SIX, turns=5), **OTHERS}),
)
# The second part: what is drawn by hand or photographed, beside what the first part showed.
SMALL_DRAWING = Level(
    things=(1, 2),
    sides=(56, 126),
    pairs=tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT),
    fonts=FONTS,
    drawn=0.75,
    untidy=0.15,
    smallest=16,
    asking="people",
)
DRAWING = replace(SMALL_DRAWING, things=(1, 6), sides=(56, 336), untidy=0.25, smallest=14)
DRAWN_SIGN = replace(SMALL_DRAWING, things=(1, 1), sides=(56, 168), drawn=0.6)
DRAWN_PAIR = replace(SMALL_DRAWING, drawn=0.5, untidy=0.0)
DRAWN_OTHERS = {
    "words": MixturePart(0.25, DRAWN_SIGN, turns=2),  # small letters have everything to learn
    "images": MixturePart(0.14, DRAWN_PAIR, turns=4),
    "video": MixturePart(0.15, DRAWN_PAIR, turns=3),
    "text": MixturePart(0.01, DRAWN_PAIR, turns=3),
}
DRAWN_CURRICULUM = (
    Stage(until=0.20, mixture={"image": MixturePart(0.45, SMALL_DRAWING, turns=5), **DRAWN_OTHERS}),
    Stage(until=1.00, mixture={"image": MixturePart(0.45, DRAWING, turns=5), **DRAWN_OTHERS}),
)
# The third part: what the second had made worse, the plain world and words, gets more room.
BOTH_CURRICULUM = (
    Stage(
        until=1.00,
        mixture={
            "image": MixturePart(0.45, replace(DRAWING, drawn=0.65), turns=5),
            **DRAWN_OTHERS,
            "words": MixturePart(0.32, DRAWN_SIGN, turns=2),
            "video": MixturePart(0.08, DRAWN_PAIR, turns=3),
        },
    ),
)


@dataclass(frozen=True)
class Part:
    """One of the recipe's parts: minutes on two cores, what is shown, the highest rate."""

    minutes: float
    curriculum: tuple[Stage, ...]
    lr: float


# Together at most eight hours; no stage of them is longer than two.
PARTS = {
    "plain": Part(240, CURRICULUM, lr=3e-3),
    "drawn": Part(150, DRAWN_CURRICULUM, lr=2e-3),
    "both": Part(90, BOTH_CURRICULUM, lr=2e-3),
}
RUNS = Path("tiny/runs")  # git ignores it
# Asked so many times as often as other tasks: places and comparisons are learned slowest.
EMPHASIS = {"where": 2, "find": 3, "relation": 2, "size": 2}
# What the first stage gets at least: a shorter training has no other.
SINGLE_THING_MINUTES = 10
SINGLE_THING_STEPS = 1000
BATCH_TOKENS = 4000  # patches and tokens of text in a batch, about


# ------------------------------------------------------------- a checkpoint before training


def build_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE tokenizer like the official one, its merges learned from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(special)
    return tokenizer


def sample_texts(n: int = 3000) -> list[str]:
    """Questions and answers, and what the chat template adds: what the merges are learned
    from.

    Without what is read off a sign: its letters stay tokens of their own, for the model to
    spell.
    """
    rng = random.Random("tokenizer")
    texts = ["You are a helpful assistant.", "system\n", "user\n", "assistant\n"] * n
    for _ in range(n):
        for kind, part in CURRICULUM[-1].mixture.items():
            shown = show(kind, rng, part.level)
            if kind == "words":
                continue
            for task in TASKS[kind]:
                exchange = ask(task, kind, shown, rng, part.level)
                if exchange:
                    texts += re.split(r"<\|\w+\|>", exchange.question)
                    texts += re.split(r"<\|\w+\|>", exchange.answer)
    return texts


def tiny_config(tokenizer: Tokenizer) -> Qwen2VLConfig:
    """About 3 million parameters; a low rope_theta, since positions end at hundreds."""
    return Qwen2VLConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=100.0,
        mrope_section=[4, 6, 6],
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_config=VisionConfig(
            depth=4,
            embed_dim=128,
            num_heads=4,
            mlp_ratio=4,
            in_chans=3,
            hidden_size=192,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
    )


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    added_tokens = {}
    for token in SPECIAL_TOKENS:
        token_id = tokenizer.token_to_id(token)
        added_tokens[str(token_id)] = {
            "content": token,
            "special": True,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
        }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "bos_token": None,
        "padding_side": "left",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added_tokens,
    }


PREPROCESSOR_CONFIG = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 100 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
VIDEO_PREPROCESSOR_CONFIG = {
    "video_processor_type": "Qwen2VLVideoProcessor",
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 100 * 28 * 28,
    # Limits that only repeat those of images are ignored, unless they come with this one.
    "total_pixels": 24576 * 28 * 28,
    "fps": FPS,
    "min_frames": 4,
    "max_frames": 16,
}


def generation_config(tokenizer: Tokenizer) -> dict:
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    end_of_turn = tokenizer.token_to_id("<|im_end|>")
    return {
        "bos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "eos_token_id": [end_of_turn, end_of_text],
        "do_sample": False,
    }


def write_blank_checkpoint(folder: Path) -> None:
    """Write the files of an untrained model in the official layout, all but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(sample_texts())
    tokenizer.save(str(folder / "tokenizer.json"))
    config = tiny_config(tokenizer).to_dict()
    config["torch_dtype"] = "float32"
    files = {
        "tokenizer_config.json": tokenizer_config(tokenizer),
        "preprocessor_config.json": PREPROCESSOR_CONFIG,
        "video_preprocessor_config.json": VIDEO_PREPROCESSOR_CONFIG,
        "generation_config.json": generation_config(tokenizer),
        "config.json": config,
    }
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Standard deviation 1/sqrt(fan_in), output projections halved.

    The reference's 0.02 suits layers thousands wide; at 128 the image stays unseen for a
    long while.
    """
    output_projections = ("attn.proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif name.endswith("embed_tokens.weight"):
            p.normal_(std=0.05)
        elif p.ndim > 1:
            gain = 0.5 if name.endswith(output_projections) else 1.0
            fan_in = p[0].numel()
            p.normal_(std=gain / math.sqrt(fan_in))


# ---------------------------------------------------------------------------------- batches


def random_conversation(
    rng: random.Random, kind: str, part: MixturePart, canvas: tuple[int, int], only: tuple[str, ...]
) -> list[dict]:
    """A conversation about something random, as chat messages; `only` these tasks, if any."""
    shown = show(kind, rng, part.level, canvas)
    tasks = only or tuple(TASKS[kind])
    weights = [EMPHASIS.get(task, 1) for task in tasks]
    # More than needed: some have no clear answer here, and some come up twice.
    chosen = rng.choices(tasks, weights, k=3 * part.turns)
    exchanges = []
    for task in chosen:
        exchange = ask(task, kind, shown, rng, part.level)
        if exchange and exchange not in exchanges:
            exchanges.append(exchange)
    messages = []
    media = content(shown)
    for i, (question, answer) in enumerate(exchanges[: part.turns]):
        items = [{"type": "text", "text": question}]
        if i == 0:
            items = media + items
        messages.append({"role": "user", "content": items})
        messages.append({"role": "assistant", "content": answer})
    return messages


def make_batch(
    seed: str, rank: int, workers: int, stage: Stage, processor: Qwen2VLProcessor
) -> BatchFeature:
    """Conversations about one kind on canvases of one size, as model inputs and labels (B,
    T).

    All workers draw the same kind and canvas, so that none waits long for another, and fill
    it on their own.
    """
    rng = random.Random(seed)
    shares = [part.share for part in stage.mixture.values()]
    kind = rng.choices(list(stage.mixture), shares)[0]
    part = stage.mixture[kind]
    canvas = part.level.random_canvas(rng)
    add_vision_id = kind == "images" and rng.random() < 0.5

    # From here on each worker draws on its own.
    rng = random.Random(f"{seed}:{rank}")
    rows = rows_of_batch(kind, part, canvas, workers)
    conversations = [random_conversation(rng, kind, part, canvas, stage.tasks) for _ in range(rows)]
    inputs = processor.apply_chat_template(
        # A scene may leave nothing to ask.
        [conversation for conversation in conversations if conversation],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_vision_id=add_vision_id,
    )
    # Padding belongs on the right here: no token sees what comes behind it, so no mask is
    # needed.
    mask = inputs.pop("attention_mask")
    inputs["input_ids"] = padded_on_the_right(inputs["input_ids"], mask)
    inputs["labels"] = answer_labels(inputs["input_ids"], processor)
    inputs["weights"] = answer_weights(inputs["labels"])
    return inputs


def rows_of_batch(kind: str, part: MixturePart, canvas: tuple[int, int], workers: int) -> int:
    """How many conversations make up BATCH_TOKENS, for one of the workers."""
    images = 1
    if kind == "text":
        images = 0
    elif kind == "images":
        images = 3
    elif kind == "video":
        images = 4
    patches = images * min(canvas[0] * canvas[1] / 14**2, 400)
    tokens = 30 * part.turns
    return max(4, round(BATCH_TOKENS / (patches + tokens) * 2 / workers))


def padded_on_the_right(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Rows (B, T) with their padding moved from the left to the right."""
    padding = (attention_mask == 0).sum(1).tolist()
    rows = [row.roll(-count) for row, count in zip(input_ids, padding, strict=True)]
    return torch.stack(rows)


def answer_labels(input_ids: Tensor, processor: Qwen2VLProcessor) -> Tensor:
    """The ids (B, T) of answers, <|im_end|> included, and -100 everywhere else."""
    start = processor.tokenizer.token_to_id("<|im_start|>")
    end = processor.tokenizer.token_to_id("<|im_end|>")
    opening = processor.tokenizer.encode("assistant\n").ids
    labels = torch.full_like(input_ids, -100)
    for row, ids in enumerate(input_ids.tolist()):
        for position, token in enumerate(ids):
            first = position + 1 + len(opening)
            if token == start and ids[position + 1 : first] == opening:
                last = ids.index(end, first) + 1
                labels[row, first:last] = input_ids[row, first:last]
    return labels


def answer_weights(labels: Tensor) -> Tensor:
    """How much each labelled position (B, T) counts: 1/sqrt(n) in an answer of n tokens.

    Otherwise a box of twenty digits would count ten times as much as the word that says a
    colour.
    """
    has_label = labels != -100
    previous_has_label = F.pad(has_label, (1, 0))[:, :-1]
    is_first = has_label & ~previous_has_label
    answer = is_first.flatten().cumsum(0).view_as(labels)  # the number of the answer, from 1
    lengths = torch.bincount(answer[has_label], minlength=1)
    weights = lengths[answer].clamp_min(1).rsqrt()
    return torch.where(has_label, weights, 0.0)


def batch_loss(model: Qwen2VLForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of a batch whose images, or frames, all have one size.

    `model(**inputs)` would send the images through the vision transformer one by one, and
    the hidden states of all tokens through the head. Images of one size are like the frames
    of a video, a batch that doesn't see each other: so they go through as one. And only the
    positions that have a label go through the head.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    image_grid = inputs.get("image_grid_thw")
    video_grid = inputs.get("video_grid_thw")
    embeds = model.embed(
        ids,
        inputs.get("pixel_values"),
        as_one_video(image_grid),
        inputs.get("pixel_values_videos"),
        as_one_video(video_grid),
    )
    positions, _ = model.get_rope_index(ids, image_grid, video_grid, mask)
    hidden = model.model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=mask,
        implementation=model.attn_implementation,
    )

    # Each position predicts the next token.
    labels = inputs["labels"][:, 1:]
    has_label = labels != -100
    logits = model.lm_head(hidden[:, :-1][has_label]).float()
    losses = F.cross_entropy(logits, labels[has_label], reduction="none")
    if "weights" not in inputs:
        return losses.mean()
    weights = inputs["weights"][:, 1:][has_label]
    return (losses * weights).sum() / weights.sum()


def as_one_video(grids: Tensor | None) -> Tensor | None:
    """Grids (images, 3) of one size as the grid (1, 3) of a video with all their frames."""
    if grids is None:
        return None
    assert (grids[:, 1:] == grids[0, 1:]).all()
    frames = grids[:, :1].sum(0, keepdim=True)
    return torch.cat([frames, grids[:1, 1:]], dim=1)


class AttentionInFloat32(TorchFunctionMode):
    """PyTorch's fused attention in float32, whatever the products around it are in.

    On a CPU its way back takes ten times longer in bfloat16.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        with torch.autocast(q.device.type, enabled=False):
            return func(q.float(), k.float(), v.float(), **(kwargs or {})).to(q.dtype)


# -------------------------------------------------------------------------------- optimiser


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for all else; one schedule for both."""

    def __init__(self, model: nn.Module, lr: float = 3e-3) -> None:
        matrices = []
        rest = []
        for name, p in model.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                matrices.append(p)
            else:
                rest.append(p)
        muon = torch.optim.Muon(
            matrices, lr=lr, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts = {"muon": muon, "adam": adam}
        self.lr = lr

    def step(self, share: float) -> float:
        """One step at `share` (0 to 1) of the training; returns its learning rate."""
        lr = self.learning_rate(share)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)
        return lr

    def learning_rate(self, share: float) -> float:
        """Warm-up over the first 1 % of the training, then a cosine down to 2 %."""
        warm_up = min(1.0, share / 0.01 + 0.02)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        return self.lr * warm_up * (0.02 + 0.98 * cosine)

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


# ------------------------------------------------------------------ several workers, as one


def sum_over_workers(values: Tensor, workers: int) -> Tensor:
    if workers > 1:
        dist.all_reduce(values)
    return values


def average_gradients(
    parameters: Iterable[nn.Parameter], numbers: list[float], workers: int
) -> list[float]:
    """Gradients become their mean over the workers; so do the numbers, which are returned."""
    if workers == 1:
        return numbers
    trained = [p for p in parameters if p.requires_grad]
    # One long vector: a single message a step. A parameter that a batch did not need has no
    # gradient.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    vector = torch.cat([*(g.flatten() for g in gradients), torch.tensor(numbers)])
    mean = sum_over_workers(vector, workers) / workers
    # Back into the parameters.
    position = 0
    for p in trained:
        p.grad = mean[position : position + p.numel()].view_as(p)
        position += p.numel()
    return mean[position:].tolist()


# --------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Settings:
    """What a training is: its folder, its budget and how it is computed."""

    out: Path  # the checkpoint's folder; the state lies beside it
    minutes: float = 60.0  # the budget, over as many calls as it takes
    steps: int | None = None  # a budget in steps instead
    stop_at: float = 1.0  # this call ends at such a share of the budget; the next one goes on
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of the matrix products
    workers: int = 1
    part: str = "plain"  # one of PARTS: what is shown, and how fast it learns
    start: Path | None = None  # a checkpoint whose weights it goes on from
    measurements: int = 16  # how often in a training its accuracy is measured

    @property
    def state_file(self) -> Path:
        return self.out.parent / f"{self.out.name}.run.pt"


@dataclass
class Progress:
    """What a training has done so far."""

    seconds: float = 0.0
    steps: int = 0
    scenes: int = 0
    # (seconds, scenes, loss, learning rate) after each step
    log: list[tuple[float, int, float, float]] = field(default_factory=list)
    # (seconds, {task: share of right answers}) of each measurement
    accuracies: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def share(self, settings: Settings) -> float:
        """How much of the budget is used, 0 to 1 or a little more."""
        if settings.steps is not None:
            return self.steps / settings.steps
        return self.seconds / (settings.minutes * 60)

    def to_dict(self) -> dict:
        """As it stands in a state file under "run"."""
        return {
            "seconds": self.seconds,
            "steps": self.steps,
            "scenes": self.scenes,
            "log": self.log,
            "marks": self.accuracies,
        }

    @classmethod
    def from_dict(cls, run: dict) -> "Progress":
        return cls(run["seconds"], run["steps"], run["scenes"], run["log"], run["marks"])


def stages(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a part; in a short training the plain one's first stage is longer."""
    first, *rest = PARTS[settings.part].curriculum
    if settings.part == "plain":
        first = replace(first, until=first_stage_until(settings))
    return (first, *rest)


def stage_at(share: float, settings: Settings) -> Stage:
    """The stage at a share (0 to 1) of a training."""
    return next(stage for stage in stages(settings) if share < stage.until)


def first_stage_until(settings: Settings) -> float:
    """The share of the training that the first stage gets, in a short training all of it."""
    if settings.steps is None:
        budget = settings.minutes
        least = SINGLE_THING_MINUTES
    else:
        budget = settings.steps
        least = SINGLE_THING_STEPS
    if budget < 2 * least:
        return min(1.0, least / budget)
    return CURRICULUM[0].until


def train_all(settings: Settings) -> None:
    """All parts, each from the weights of the one before; then the mean of the last two."""
    start = None
    for name, part in PARTS.items():
        out = RUNS / name
        print(f"{name}: {part.minutes:.0f} minutes, into {out}")
        train(replace(settings, out=out, minutes=part.minutes, part=name, start=start))
        start = out
    store_mean([RUNS / "drawn", RUNS / "both"], RUNS / "checkpoint")


def store_mean(sources: Sequence[Path], target: Path) -> None:
    """Copy the last of some checkpoints, with the mean of all their weights in bfloat16.

    The mean of two points on one way of training sees better than either (model averaging:
    arXiv 1803.05407). Rounding takes half of the bytes; config.json still says float32, in
    which the weights are loaded and computed.
    """
    shutil.copytree(sources[-1], target, dirs_exist_ok=True)
    weights = [load_file(source / "model.safetensors") for source in sources]
    mean = {}
    for name in weights[0]:
        tensors = torch.stack([some[name].float() for some in weights])
        mean[name] = tensors.mean(0).bfloat16()
    save_checkpoint(target, read_json(target, "config.json"), mean)


def train(settings: Settings) -> None:
    """Train up to `stop_at`, from nothing or from where the last call stopped."""
    if not (settings.out / "tokenizer.json").exists():
        if settings.start:
            shutil.copytree(settings.start, settings.out, dirs_exist_ok=True)
        else:
            write_blank_checkpoint(settings.out)
    # Tensors of many megabytes come and go in every step. glibc gives such memory back at
    # once and asks for it anew, page by page, unless it is told to keep it.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "2000000000")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8000000000")
    if settings.workers == 1:
        run_worker(0, "", settings)
        return
    with tempfile.TemporaryDirectory() as folder:
        # The processes find each other through a file.
        init_method = f"file://{folder}/rendezvous"
        torch.multiprocessing.spawn(run_worker, (init_method, settings), nprocs=settings.workers)


def run_worker(rank: int, init_method: str, settings: Settings) -> None:
    """One of the processes that train."""
    if settings.workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method, rank=rank, world_size=settings.workers)
    Worker(rank, settings).train()
    if settings.workers > 1:
        dist.barrier()  # whoever leaves first would take the file along
        dist.destroy_process_group()


class Worker:
    """Draws its share of each batch, and steps as the other workers do."""

    def __init__(self, rank: int, settings: Settings) -> None:
        self.rank = rank
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.processor = Qwen2VLProcessor.from_pretrained(settings.out)
        config = Qwen2VLConfig.from_pretrained(settings.out)
        if settings.start:
            self.model = Qwen2VLForConditionalGeneration.from_pretrained(
                settings.start, torch.float32, settings.device, attn_implementation="sdpa"
            ).requires_grad_()
        else:
            self.model = Qwen2VLForConditionalGeneration(config, "sdpa").to(settings.device)
            self.model.generation_config = read_json(settings.out, "generation_config.json")
            initialise(self.model)
        self.optimizer = Optimizer(self.model, PARTS[settings.part].lr)
        self.progress = Progress()
        if settings.state_file.exists():
            self.restore()
        self.clock = time.time()  # when the last step ended, in the mean over the workers

    def restore(self) -> None:
        """Go on from the state file."""
        state = torch.load(
            self.settings.state_file, weights_only=True, map_location=self.settings.device
        )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress.from_dict(state["run"])

    def save(self) -> None:
        """Write the state file and the checkpoint, the first of the workers for all."""
        if self.rank > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "run": self.progress.to_dict(),
        }
        # A training that is killed here keeps the old state.
        partial = self.settings.state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.settings.state_file)
        self.model.save_pretrained(self.settings.out)

    def keep(self, name: str) -> None:
        """Copy the checkpoint as it is now beside its folder."""
        if self.rank == 0:
            copy = self.settings.out.with_name(f"{self.settings.out.name}-{name}")
            shutil.copytree(self.settings.out, copy, dirs_exist_ok=True)

    def train(self) -> None:
        """Steps until `stop_at`, with measurements and saves on the way."""
        settings = self.settings
        progress = self.progress
        parent = os.getppid()
        saved_at = progress.seconds
        bar = ProgressBar(settings, progress, is_shown=self.rank == 0)
        share = progress.share(settings)
        # A worker ends with the process that started it.
        while share < settings.stop_at and os.getppid() == parent:
            loss = self.step(share)
            bar.show(progress, loss)
            last_share = share
            share = progress.share(settings)

            # Is one more of the measurements due?
            due = int(settings.measurements * share)
            if due > int(settings.measurements * last_share):
                accuracy = self.measure(stage_at(last_share, settings))
                progress.accuracies.append((progress.seconds, accuracy))
                bar.write(progress.seconds, accuracy)

            # The weights that a stage ends with.
            for number, stage in enumerate(stages(settings), 1):
                if last_share < stage.until <= share:
                    self.save()
                    self.keep(f"stage-{number}")

            # Every two minutes, and at the end.
            if progress.seconds - saved_at > 120 or share >= settings.stop_at:
                self.save()
                saved_at = progress.seconds
        bar.close()

    def step(self, share: float) -> float:
        """One step at `share` of the training; returns the loss."""
        settings = self.settings
        progress = self.progress
        batch = make_batch(
            f"{settings.seed}:{progress.steps}",
            self.rank,
            settings.workers,
            stage_at(share, settings),
            self.processor,
        ).to(settings.device)
        device_type = torch.device(settings.device).type
        is_half = settings.dtype == torch.bfloat16
        with torch.autocast(device_type, torch.bfloat16, enabled=is_half), AttentionInFloat32():
            loss = batch_loss(self.model, batch)
        loss.backward()

        # The workers agree on gradients, loss and time.
        seconds = time.time() - self.clock
        numbers = [loss.item(), float(len(batch["input_ids"])), seconds]
        mean_loss, mean_scenes, seconds = average_gradients(
            self.model.parameters(), numbers, settings.workers
        )
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        lr = self.optimizer.step(share)

        self.clock += seconds
        progress.seconds += seconds
        progress.steps += 1
        progress.scenes += round(mean_scenes * settings.workers)
        progress.log.append((progress.seconds, progress.scenes, mean_loss, lr))
        return mean_loss

    @torch.no_grad()
    def measure(self, stage: Stage) -> dict[str, float]:
        """The share of right answers to twenty questions of each task that the stage has."""
        questions = [
            question
            for question in random_questions(20, "progress", stage.mixture)
            if question.task in stage.tasks or not stage.tasks
        ]
        tasks = sorted({question.task for question in questions})
        counts = torch.zeros(len(tasks), 2)  # right answers, questions
        # The workers share the questions.
        mine = questions[self.rank :: self.settings.workers]
        said = answer_questions(self.model, self.processor, mine)
        for question, text in zip(mine, said, strict=True):
            row = tasks.index(question.task)
            counts[row, 0] += question.is_right(text)
            counts[row, 1] += 1
        right, asked = sum_over_workers(counts, self.settings.workers).T.tolist()
        return {task: r / n for task, r, n in zip(tasks, right, asked, strict=True)}


class ProgressBar:
    """The budget used, with the smoothed loss, the speed and the accuracies."""

    def __init__(self, settings: Settings, progress: Progress, is_shown: bool) -> None:
        self.counts_steps = settings.steps is not None
        self.mean_loss: float | None = None
        self.bar = tqdm(
            total=settings.steps if self.counts_steps else round(settings.minutes * 60),
            initial=self.count(progress),
            unit="step" if self.counts_steps else "s",
            dynamic_ncols=True,
            disable=not is_shown,
        )

    def count(self, progress: Progress) -> int:
        return progress.steps if self.counts_steps else round(progress.seconds)

    def show(self, progress: Progress, loss: float) -> None:
        """After a step: move on, and every twenty steps tell loss and speed."""
        if self.mean_loss is None:
            self.mean_loss = loss
        self.mean_loss = 0.98 * self.mean_loss + 0.02 * loss
        self.bar.update(self.count(progress) - self.bar.n)
        if progress.steps % 20 == 0:
            speed = progress.scenes / progress.seconds
            self.bar.set_postfix_str(
                f"loss {self.mean_loss:.3f}, {speed:.0f} scenes/s, {progress.steps} steps"
            )

    def write(self, seconds: float, accuracy: dict[str, float]) -> None:
        """A line above the bar with the share of right answers to each task."""
        if not self.bar.disable:
            shares = ", ".join(f"{task} {share:.0%}" for task, share in accuracy.items())
            self.bar.write(f"{seconds / 60:.0f} min: {shares}")

    def close(self) -> None:
        self.bar.close()


# ----------------------------------------------------------------------------- command line


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The dtype of that name; "auto" is bfloat16 where that is fast, else float32."""
    if name != "auto":
        return getattr(torch, name)
    # CUDA, and CPUs with AVX512-BF16 or AMX, multiply twice as fast in it.
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags
    is_fast = device.startswith("cuda") or has_bfloat16
    return torch.bfloat16 if is_fast else torch.float32


def pick_workers(device: str) -> int:
    """Two processes on a CPU that has two cores, one on another device."""
    has_two_cores = (os.cpu_count() or 1) > 1
    return 2 if device == "cpu" and has_two_cores else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, help="its training time in all (default: the recipe's)")
    add("--steps", type=int, help="a budget in steps instead of minutes")
    add(
        "--out",
        type=Path,
        help="train one part alone, into this folder (default: all of them, into tiny/runs/plain, "
        "tiny/runs/drawn and tiny/runs/both)",
    )
    add("--part", choices=tuple(PARTS), help="which one (default: plain)")
    add("--start", type=Path, help="go on from the weights of this checkpoint")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the matrix products (default: bfloat16 where that is fast, on CUDA and some CPUs)",
    )
    add(
        "--workers",
        type=int,
        help="processes that share each batch, on a CPU each with one thread "
        "(default 2, on another device 1)",
    )
    args = parser.parse_args()
    if args.out is None and (args.minutes or args.steps or args.part or args.start):
        parser.error(
            "--minutes, --steps, --part and --start are of one part: name its folder with --out"
        )
    return args


def main() -> None:
    args = parse_arguments()
    part = args.part or "plain"
    settings = Settings(
        out=args.out or RUNS / part,
        minutes=args.minutes or PARTS[part].minutes,
        steps=args.steps,
        seed=args.seed,
        part=part,
        start=args.start,
        device=args.device,
        dtype=pick_dtype(args.dtype, args.device),
        workers=args.workers or pick_workers(args.device),
    )
    if args.out:
        train(settings)
    else:
        train_all(settings)


if __name__ == "__main__":
    main()
