"""Train the embedded checkpoint with this repository's own model, processor and loss.

    python -m tiny.train --minutes 60 --out tiny/checkpoint     # two CPU cores
    python -m tiny.train --minutes 60 --out tiny/checkpoint     # the same again goes on where it was stopped

Unlike a large model nothing here is pretrained, so a curriculum does what data does elsewhere.
One shape on a small canvas first, a hundred at a time, until the vision transformer sees shapes; then two,
then three, on any canvas, with several questions a scene as turns of one chat: they share one look at it.
"""

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from load import read_json
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration, VisionConfig
from tiny.world import TASKS, Level, ask, random_scene

# The official checkpoints' added tokens, in the official order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCABULARY = 512
# How the official tokenizer cuts text before BPE: contractions, words, single digits, signs, lines, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Stage:
    """A part of the training: up to which share of the time, on which scenes, how many of them a step."""

    until: float
    level: Level
    batch: int
    turns: int
    tasks: tuple[str, ...] = tuple(TASKS)


CURRICULUM = (
    Stage(0.06, Level(objects=(1, 1), sides=(50, 62)), batch=128, turns=1, tasks=("describe",)),
    Stage(0.35, Level(objects=(1, 2), sides=(50, 112)), batch=48, turns=4),
    Stage(1.0, Level(objects=(1, 3), sides=(50, 182)), batch=32, turns=5),
)


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


def sample_texts(n: int = 4000) -> list[str]:
    """Questions and answers, and what the chat template adds: what the merges are learned from."""
    rng = random.Random("tokenizer")
    level = CURRICULUM[-1].level
    texts = ["You are a helpful assistant.", "system\n", "user\n", "assistant\n"] * (n // 4)
    for _ in range(n):
        scene = random_scene(rng, level)
        for task in TASKS:
            texts += ask(scene, rng, level, task) or ()
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
            "max_pixels": 64 * 28 * 28,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "generation_config.json": {
            "bos_token_id": ids["endoftext"],
            "pad_token_id": ids["endoftext"],
            "eos_token_id": [ids["im_end"], ids["endoftext"]],
            "do_sample": False,
        },
        "config.json": tiny_config(tokenizer).to_dict() | {"torch_dtype": "float32"},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


def make_batch(rng: random.Random, stage: Stage, processor: Qwen2VLProcessor) -> dict:
    """Scenes on canvases of one size, each with a chat about it, as model inputs and labels (B, T)."""
    canvas = stage.level.canvas(rng)
    conversations = []
    for _ in range(stage.batch):
        scene = random_scene(rng, stage.level, canvas)
        content = [{"type": "image", "image": scene.draw()}]
        messages = []
        tasks = rng.choices(stage.tasks, k=3 * stage.turns)  # some leave nothing to ask about this scene
        pairs = [pair for pair in (ask(scene, rng, stage.level, task) for task in tasks) if pair]
        for question, answer in list(dict.fromkeys(pairs))[: stage.turns]:
            content.append({"type": "text", "text": question})
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            content = []
        conversations.append(messages)
    inputs = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs["labels"] = answer_labels(inputs["input_ids"], processor)
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


def batch_loss(model: Qwen2VLForConditionalGeneration, inputs: dict) -> torch.Tensor:
    """The loss of a batch whose pictures all have one size.

    `model(**inputs)` would send the pictures through the vision transformer one by one. To it, pictures of
    one size are like the frames of a video, a batch that doesn't see each other. So they go through as one.
    """
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    assert (grid == grid[0]).all() and grid[0, 0] == 1
    h, w = grid[0, 1:].tolist()
    embeds = model.embed(ids, (inputs["pixel_values"], grid.new_tensor([[len(grid), h, w]])))
    positions, _ = model.get_rope_index(ids, grid, attention_mask=inputs["attention_mask"])
    return model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=inputs["attention_mask"],
        labels=inputs["labels"],
    ).loss


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


def train(
    out: Path, minutes: float, seed: int, device: str, dtype: torch.dtype, stop_after: float | None = None
) -> None:
    """Train for `minutes` in all, over as many calls as it takes; the state is kept beside `out`."""
    if not (out / "tokenizer.json").exists():
        write_blank_checkpoint(out)
    torch.manual_seed(seed)
    processor = Qwen2VLProcessor.from_pretrained(out)
    config = Qwen2VLConfig.from_pretrained(out)
    model = Qwen2VLForConditionalGeneration(config, "eager").to(device)  # the fastest at these lengths
    model.generation_config = read_json(out, "generation_config.json")
    initialise(model)
    optimizer = Optimizer(model)
    run = {"seconds": 0.0, "steps": 0, "scenes": 0, "log": []}
    state_file = out.parent / f"{out.name}.run.pt"
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        run = saved["run"]
        print(f"going on after {run['steps']} steps, {run['seconds'] / 60:.1f} minutes", file=sys.stderr)

    bar = tqdm(total=round(minutes * 60), initial=round(run["seconds"]), unit="s", dynamic_ncols=True)
    began, saved_at, loss_mean = time.time(), run["seconds"], None
    while run["seconds"] < minutes * 60:
        share = run["seconds"] / (minutes * 60)
        stage = next(stage for stage in CURRICULUM if share < stage.until)
        inputs = make_batch(random.Random(f"{seed}:{run['steps']}"), stage, processor).to(device)
        tick = time.time()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = batch_loss(model, inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = optimizer.step(share)
        loss = loss.item()
        loss_mean = loss if loss_mean is None else 0.98 * loss_mean + 0.02 * loss
        now = time.time()
        run["seconds"] += now - began
        run["steps"] += 1
        run["scenes"] += stage.batch
        bar.update(round(run["seconds"]) - bar.n)
        run["log"].append((run["seconds"], run["scenes"], loss, lr))
        if run["steps"] % 20 == 0:
            bar.set_postfix_str(
                f"loss {loss_mean:.3f}, {stage.batch / (now - began):.0f} pictures/s, "
                f"drawing {100 * (tick - began) / (now - began):.0f} %"
            )
        began = now
        over = stop_after is not None and run["seconds"] - saved_at >= stop_after * 60
        if run["seconds"] - saved_at > 120 or run["seconds"] >= minutes * 60 or over:
            saved_at = run["seconds"]
            save_atomically(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run}, state_file
            )
            model.save_pretrained(out)
            if over:
                break
    bar.close()


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
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the matrix products; bfloat16 is twice as fast on CUDA and on CPUs with AVX512-BF16 or AMX",
    )  # fmt: skip
    args = parser.parse_args()
    train(args.out, args.minutes, args.seed, args.device, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
