"""Train the embedded checkpoint with this repository's own model, processor and loss.

    python -m tiny.train --minutes 10 --out tiny/runs/ten         # names single shapes and their colours
    python -m tiny.train --minutes 100 --out tiny/runs/all        # all that tiny/README.md lists
    python -m tiny.train --minutes 100 --out tiny/runs/all        # the same again goes on where it stopped

Unlike a large model nothing here is pretrained, so a curriculum does what data does elsewhere. One shape on a
small canvas first, until the vision transformer sees shapes; then two, boxes and words; then everything. Each
picture comes with several questions, as turns of one chat: they share one look at it.

On a CPU two processes with one thread each, every one with its half of the batch, get through a third more
than one process with two threads: layers this narrow leave a second thread waiting.
"""

import argparse
import json
import math
import os
import random
import re
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from load import read_json
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration, VisionConfig
from tiny.evaluate import answers, fresh_questions
from tiny.tasks import TASKS, ask, content, show
from tiny.world import FPS, Level, installed_fonts

# The official checkpoints' added tokens, in the official order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCABULARY = 704
# How the official tokenizer cuts text before BPE: contractions, words, single digits, signs, lines, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Diet:
    """How often a kind of thing is shown, how hard it is and how many questions come with it."""

    share: float
    level: Level
    turns: int


@dataclass(frozen=True)
class Stage:
    """A part of the training: up to which share of it; what is shown; with `tasks`, only those are asked."""

    until: float
    diets: dict[str, Diet]
    tasks: tuple[str, ...] = ()


FONTS = installed_fonts()
ONE, PAIR = Level(objects=(1, 1), sides=(56, 69)), Level(objects=(1, 2), sides=(56, 112))
SIGN = Level(objects=(1, 1), sides=(56, 150), fonts=FONTS)
OTHERS = {
    "words": Diet(0.18, SIGN, turns=2),
    "pictures": Diet(0.18, PAIR, turns=4),
    "video": Diet(0.20, PAIR, turns=3),
    "text": Diet(0.02, PAIR, turns=3),
}
CURRICULUM = (
    Stage(0.08, {"picture": Diet(1, ONE, turns=1)}, tasks=("describe", "describe", "colour", "shape")),
    Stage(
        0.30,
        {"picture": Diet(0.7, PAIR, turns=5), "words": Diet(0.3, replace(SIGN, letters=(1, 3)), turns=2)},
    ),
    Stage(0.60, {"picture": Diet(0.42, Level(objects=(1, 4), sides=(56, 168)), turns=5)} | OTHERS),
    Stage(1.00, {"picture": Diet(0.42, Level(objects=(1, 6), sides=(56, 336)), turns=5)} | OTHERS),
)
# Asked so many times as often as other tasks: places and comparisons are learned slowest.
EMPHASIS = {"where": 2, "find": 3, "relation": 2, "size": 2}
SINGLE_OBJECTS = 10  # minutes that the first stage gets at least: a shorter training has no other
MARKS = 16  # how often in a training its accuracy is measured
BUDGET = 4000  # patches and tokens of text in a batch, about


# ------------------------------------------------------------------------------- a checkpoint before training


def build_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE tokenizer built like the official one, with merges learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def sample_texts(n: int = 3000) -> list[str]:
    """Questions and answers, and what the chat template adds: what the merges are learned from.

    Without what is read off a sign: its letters stay tokens of their own, for the model to spell.
    """
    rng = random.Random("tokenizer")
    texts = ["You are a helpful assistant.", "system\n", "user\n", "assistant\n"] * n
    for _ in range(n):
        for kind, diet in CURRICULUM[-1].diets.items():
            level = diet.level
            shown = show(kind, rng, level)
            for task in TASKS[kind] if kind != "words" else ():
                for text in ask(task, kind, shown, rng, level) or ():
                    texts += re.split(r"<\|\w+\|>", text)
    return texts


def write_blank_checkpoint(folder: Path) -> None:
    """Config, tokenizer and preprocessing files of an untrained model in the official layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(sample_texts())
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "im_end")}
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "bos_token": None,
            "padding_side": "left",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token, "special": True, "normalized": False,
                    "lstrip": False, "rstrip": False, "single_word": False,
                }
                for token in SPECIAL_TOKENS
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 4 * 28 * 28,
            "max_pixels": 100 * 28 * 28,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "Qwen2VLVideoProcessor",
            "min_pixels": 4 * 28 * 28,
            "max_pixels": 100 * 28 * 28,
            "fps": FPS,
            "min_frames": 4,
            "max_frames": 16,
        },
        "generation_config.json": {
            "bos_token_id": ids["endoftext"],
            "pad_token_id": ids["endoftext"],
            "eos_token_id": [ids["im_end"], ids["endoftext"]],
            "do_sample": False,
        },
        "config.json": tiny_config(tokenizer).to_dict() | {"torch_dtype": "float32"},
    }  # fmt: skip
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def tiny_config(tokenizer: Tokenizer) -> Qwen2VLConfig:
    """About 3 million parameters. A low rope_theta, since its positions end at hundreds, not at 32,768."""
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
            depth=4, embed_dim=128, num_heads=4, mlp_ratio=4, in_chans=3, hidden_size=192,
            patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
        ),
    )  # fmt: skip


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Standard deviation 1/sqrt(fan_in), output projections halved.

    The reference's 0.02 suits layers thousands wide; at 128 the picture stays unseen for a long while.
    """
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif name.endswith("embed_tokens.weight"):
            p.normal_(std=0.05)
        elif p.ndim > 1:
            halved = name.endswith(("attn.proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight"))
            p.normal_(std=(0.5 if halved else 1.0) / math.sqrt(p[0].numel()))


# --------------------------------------------------------------------------------------------------- batches


def random_talk(
    rng: random.Random, kind: str, diet: Diet, canvas: tuple, only: tuple[str, ...]
) -> list[dict]:
    """A conversation about something fresh, as chat messages."""
    shown = show(kind, rng, diet.level, canvas)
    tasks = only or list(TASKS[kind])
    picks = rng.choices(tasks, [EMPHASIS.get(task, 1) for task in tasks], k=3 * diet.turns)
    asked = [ask(task, kind, shown, rng, diet.level) for task in picks]
    exchanges = list(dict.fromkeys(exchange for exchange in asked if exchange))[: diet.turns]
    messages, media = [], content(shown)
    for question, answer in exchanges:
        asking = [*media, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": asking}, {"role": "assistant", "content": answer}]
        media = []
    return messages


def make_batch(seed: str, rank: int, workers: int, stage: Stage, processor: Qwen2VLProcessor) -> dict:
    """Chats about things of one kind on canvases of one size, as model inputs and labels (B, T).

    All workers draw the same kind and canvas, so that none waits long for another, and fill it on their own.
    """
    rng = random.Random(seed)
    kind = rng.choices(list(stage.diets), [diet.share for diet in stage.diets.values()])[0]
    diet = stage.diets[kind]
    canvas, with_ids = diet.level.canvas(rng), kind == "pictures" and rng.random() < 0.5
    pictures = {"text": 0, "pictures": 3, "video": 4}.get(kind, 1)
    patches = pictures * min(canvas[0] * canvas[1] / 14**2, 400)
    rows = max(4, round(BUDGET / (patches + 30 * diet.turns) * 2 / workers))
    rng = random.Random(f"{seed}:{rank}")
    talks = [random_talk(rng, kind, diet, canvas, stage.tasks) for _ in range(rows)]
    inputs = processor.apply_chat_template(
        [talk for talk in talks if talk],  # a scene may leave nothing to ask
        tokenize=True, return_dict=True, return_tensors="pt", add_vision_id=with_ids,
    )  # fmt: skip
    # Padding belongs on the right here: no token sees what comes behind it, so that no mask is needed.
    padding = (inputs.pop("attention_mask") == 0).sum(1).tolist()
    rows = zip(inputs["input_ids"], padding, strict=True)
    inputs["input_ids"] = torch.stack([row.roll(-n) for row, n in rows])
    inputs["labels"] = answer_labels(inputs["input_ids"], processor)
    inputs["weights"] = answer_weights(inputs["labels"])
    return inputs


def answer_labels(input_ids: torch.Tensor, processor: Qwen2VLProcessor) -> torch.Tensor:
    """The ids (B, T) where the assistant speaks, its <|im_end|> included; -100 everywhere else."""
    start, end = (processor.tokenizer.token_to_id(f"<|im_{edge}|>") for edge in ("start", "end"))
    opening = processor.tokenizer.encode("assistant\n").ids
    labels = torch.full_like(input_ids, -100)
    for row, ids in enumerate(input_ids.tolist()):
        at = 0
        while start in ids[at:]:
            at = ids.index(start, at) + 1
            if ids[at : at + len(opening)] == opening:
                first, last = at + len(opening), ids.index(end, at) + 1
                labels[row, first:last] = input_ids[row, first:last]
    return labels


def answer_weights(labels: torch.Tensor) -> torch.Tensor:
    """How much each labelled place (B, T) counts: 1/sqrt(n) in an answer of n tokens.

    Else a box of twenty digits would count ten times as much as the word that says a colour.
    """
    spoken = labels != -100
    begins = spoken & ~F.pad(spoken, (1, 0))[:, :-1]
    answer = begins.flatten().cumsum(0).view_as(labels)  # the first is 1
    lengths = torch.bincount(answer[spoken], minlength=1)
    return torch.where(spoken, lengths[answer].clamp_min(1).rsqrt(), 0.0)


def batch_loss(model: Qwen2VLForConditionalGeneration, inputs: dict) -> torch.Tensor:
    """The loss of a batch whose pictures, or frames, all have one size.

    `model(**inputs)` would send the pictures through the vision transformer one by one, and the hidden states
    of all tokens through the head. To the tower, pictures of one size are like the frames of a video, a batch
    that doesn't see each other: so they go through as one. And only what has a label goes on to the head.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    grids = {kind: inputs.get(f"{kind}_grid_thw") for kind in ("image", "video")}
    media = {"image": (None, None), "video": (None, None)}
    for kind, grid in grids.items():
        if grid is not None:
            assert (grid[:, 1:] == grid[0, 1:]).all()
            pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"]
            media[kind] = pixels, torch.cat([grid[:, :1].sum(0, keepdim=True), grid[:1, 1:]], dim=1)
    embeds = model.embed(ids, media["image"], media["video"])
    positions, _ = model.get_rope_index(ids, grids["image"], grids["video"], mask)
    hidden = model.model(embeds, positions, mask, implementation=model.attn_implementation)[:, :-1]
    labels = inputs["labels"][:, 1:]
    spoken = labels != -100
    each = F.cross_entropy(model.lm_head(hidden[spoken]).float(), labels[spoken], reduction="none")
    weights = inputs["weights"][:, 1:][spoken] if "weights" in inputs else torch.ones_like(each)
    return (each * weights).sum() / weights.sum()


# -------------------------------------------------------------------------------------------------- training


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for all else; one schedule for both."""

    def __init__(self, model: nn.Module, lr: float = 3e-3):
        inner = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
        rest = [p for n, p in model.named_parameters() if n not in inner]
        muon = torch.optim.Muon(
            inner.values(), lr=lr, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts = {"muon": muon, "adam": adam}
        self.lr = lr

    def step(self, share: float) -> float:
        """One step at `share` (0 to 1) of the training: warm-up over 1 %, then a cosine to 2 %."""
        lr = self.lr * min(1.0, share / 0.01 + 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)
        return lr

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def sum_over_workers(values: torch.Tensor, workers: int) -> torch.Tensor:
    if workers > 1:
        dist.all_reduce(values)
    return values


def average_gradients(model: nn.Module, numbers: list[float], workers: int) -> list[float]:
    """Every worker's gradients become their mean over the workers; so do the numbers, which are returned."""
    if workers == 1:
        return numbers
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    mean = sum_over_workers(torch.cat([*flat, torch.tensor(numbers)]), workers) / workers
    at = 0
    for p in parameters:
        p.grad = mean[at : at + p.numel()].view_as(p)
        at += p.numel()
    return mean[at:].tolist()


@torch.no_grad()
def measure(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, stage: Stage, rank: int, workers: int
) -> dict[str, float]:
    """The share of right answers to a few fresh questions of each task that the stage has."""
    questions = [
        question
        for question in fresh_questions(20, "progress", stage.diets)
        if question.task in stage.tasks or not stage.tasks
    ]
    tasks = sorted({question.task for question in questions})
    marks = torch.zeros(len(tasks), 2)
    mine = questions[rank::workers]
    for question, said in zip(mine, answers(model, processor, mine), strict=True):
        marks[tasks.index(question.task)] += torch.tensor([question.right(said), 1.0])
    right, asked = sum_over_workers(marks, workers).T.tolist()
    return {task: r / n for task, r, n in zip(tasks, right, asked, strict=True)}


def stage_at(share: float, minutes: float) -> Stage:
    """The stage at a share (0 to 1) of a training of so many minutes."""
    first = min(1.0, max(CURRICULUM[0].until, SINGLE_OBJECTS / minutes * (minutes < 2 * SINGLE_OBJECTS)))
    return next(s for s in (replace(CURRICULUM[0], until=first), *CURRICULUM[1:]) if share < s.until)


def train(
    out: Path,
    minutes: float,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 1,
    stop_after: float | None = None,
) -> None:
    """Train for `minutes` in all, over as many calls as it takes; the state is kept beside `out`."""
    if not (out / "tokenizer.json").exists():
        write_blank_checkpoint(out)
    given = (out, minutes, seed, device, dtype, workers, stop_after)
    if workers == 1:
        return work(0, "", *given)
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(work, (f"file://{meeting}/point", *given), nprocs=workers)


def work(
    rank: int,
    meeting: str,
    out: Path,
    minutes: float,
    seed: int,
    device: str,
    dtype: torch.dtype,
    workers: int,
    stop_after: float | None,
) -> None:
    """One of the workers: draws its share of each batch, and steps as the others do."""
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", meeting, rank=rank, world_size=workers)
    torch.manual_seed(seed)
    processor = Qwen2VLProcessor.from_pretrained(out)
    config = Qwen2VLConfig.from_pretrained(out)
    model = Qwen2VLForConditionalGeneration(config, "eager").to(device)  # the fastest at these lengths
    model.generation_config = read_json(out, "generation_config.json")
    initialise(model)
    optimizer = Optimizer(model)
    run = {"seconds": 0.0, "steps": 0, "scenes": 0, "log": [], "marks": []}
    state_file = out.parent / f"{out.name}.run.pt"
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        run = saved["run"]

    bar = tqdm(
        total=round(minutes * 60),
        initial=round(run["seconds"]),
        unit="s",
        dynamic_ncols=True,
        disable=rank > 0,
    )
    began, saved_at, started_at, mean_loss = time.time(), run["seconds"], run["seconds"], None
    parent = os.getppid()
    while run["seconds"] < minutes * 60 and os.getppid() == parent:  # a worker ends with who started it
        share = run["seconds"] / (minutes * 60)
        inputs = make_batch(f"{seed}:{run['steps']}", rank, workers, stage_at(share, minutes), processor).to(
            device
        )
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = batch_loss(model, inputs)
        loss.backward()
        numbers = [loss.item(), float(len(inputs["input_ids"])), time.time() - began]
        loss, scenes, seconds = average_gradients(model, numbers, workers)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = optimizer.step(share)
        mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
        began += seconds
        run["seconds"] += seconds
        run["steps"] += 1
        run["scenes"] += round(scenes * workers)
        run["log"].append((run["seconds"], run["scenes"], loss, lr))
        bar.update(round(run["seconds"]) - bar.n)
        if run["steps"] % 20 == 0:
            speed = run["scenes"] / run["seconds"]
            bar.set_postfix_str(f"loss {mean_loss:.3f}, {speed:.0f} scenes/s, {run['steps']} steps")
        if int(MARKS * run["seconds"] / (minutes * 60)) > int(MARKS * share):
            marks = measure(model, processor, stage_at(share, minutes), rank, workers)
            run["marks"].append((run["seconds"], marks))
            if rank == 0:
                shares = ", ".join(f"{task} {mark:.0%}" for task, mark in marks.items())
                bar.write(f"{run['seconds'] / 60:.0f} min: {shares}")
        over = stop_after is not None and run["seconds"] - started_at >= stop_after * 60
        if run["seconds"] - saved_at > 120 or run["seconds"] >= minutes * 60 or over:
            saved_at = run["seconds"]
            if rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run}
                save_atomically(state, state_file)
                model.save_pretrained(out)
            if over:
                break
    bar.close()
    if workers > 1:
        dist.barrier()  # whoever leaves first would take the meeting point along
        dist.destroy_process_group()


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 on CUDA and on a CPU with AVX512-BF16 or AMX, where it is twice as fast; else float32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    fast = device.startswith("cuda") or "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if fast else torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="training time in all (default 60)")
    parser.add_argument(
        "--out", type=Path, default=Path("tiny/runs/checkpoint"), help="the checkpoint's folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="of the matrix products (default: bfloat16 where that is fast, on CUDA and some CPUs)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int,
        default=2 if (os.cpu_count() or 1) > 1 and not torch.cuda.is_available() else 1,
        help="processes that share each batch, on a CPU each with one thread (default 2, with CUDA 1)",
    )  # fmt: skip
    args = parser.parse_args()
    dtype = fast_dtype(args.device) if args.dtype == "auto" else getattr(torch, args.dtype)
    train(args.out, args.minutes, args.seed, args.device, dtype, args.workers)


if __name__ == "__main__":
    main()
