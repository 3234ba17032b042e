"""Whether what is written for CUDA computes what the CPU does: `python -m benchmarks.cuda_checks`.

A check a line: its name, "ok", "failed" or "left out", and its figure. Random small models and the
embedded one; nothing is downloaded, and neither pytest nor `transformers` is needed. An error costs
its check and no other. Exit code 1 if a check failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shapes import official_config
from qwen2vl import (
    ATTENTION_IMPLEMENTATIONS,
    AttentionMask,
    PlainStep,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    attention,
)
from qwen2vl_extras import compiled, flash

ROOT = Path(__file__).parent.parent
CUDA = torch.device("cuda")
GRIDS = [[1, 4, 6], [1, 8, 4], [2, 4, 4]]  # of the images of random prompts, in patches
# Of float32 on the CPU against float32 on CUDA, where sums are in another order.
FLOAT32_ERROR = 1e-4
MORE_THAN_SDPA = 1.3  # times sdpa's error in bfloat16: the most that another attention may have


class LeftOut(Exception):
    """What a check needs is not here."""


# ---------------------------------------------------------------------------- models and inputs


def random_model(
    seed: int = 0, dtype: torch.dtype = torch.float32
) -> Qwen2VLForConditionalGeneration:
    """A small model with grouped heads of the official size, on the CPU."""
    config = official_config(1024, 768, 8, 2, 1000, tie_word_embeddings=seed % 2 == 0)
    config.update(num_hidden_layers=3)
    names = ("bos", "eos", "vision_start", "vision_end", "image", "video")
    for i, name in enumerate(names):
        config[f"{name}_token_id"] = 990 + i
    config["vision_config"].update(depth=2, embed_dim=320, num_heads=4)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config), "eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            spread = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
            p.normal_(0, spread, generator=generator)
    return model.to(dtype)


def random_inputs(model: Qwen2VLForConditionalGeneration, batch: int = 3) -> dict[str, Tensor]:
    """Prompts of different lengths, padded on the left, each with all images of GRIDS."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    rows = []
    for b in range(batch):
        ids: list[int] = []
        for t, h, w in GRIDS:
            ids += torch.randint(3, 900, (4 + 5 * b,), generator=generator).tolist()
            ids.append(config.vision_start_token_id)
            ids += [config.image_token_id] * (t * h * w // 4)
            ids.append(config.vision_end_token_id)
        rows.append([*ids, 7])
    longest = max(len(ids) for ids in rows)
    patches = batch * sum(t * h * w for t, h, w in GRIDS)
    return {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]
        ),
        "pixel_values": torch.randn(patches, 1176, generator=generator),
        "image_grid_thw": torch.tensor(GRIDS * batch),
    }


def to_cuda(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return to(CUDA, inputs)


def to(device: torch.device, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in inputs.items()}


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def root_mean_square(found: Tensor, expected: Tensor) -> float:
    return (found.detach().cpu().double() - expected.cpu().double()).square().mean().sqrt().item()


def check(is_right: bool, figure: str) -> str:
    """The figure of a check; AssertionError with it if it is not right."""
    if not is_right:
        raise AssertionError(figure)
    return figure


# --------------------------------------------------------------------------------- the checks


@torch.no_grad()
def float32_is_that_of_the_cpu() -> str:
    model = random_model()
    inputs = random_inputs(model)
    is_token = inputs["attention_mask"].bool()
    expected = model(**inputs).logits[is_token]
    model.to(CUDA)
    figures = []
    for name in ("eager", "sdpa", "chunked"):
        model.attn_implementation = name
        found = error(model(**to_cuda(inputs)).logits.cpu()[is_token], expected)
        figures.append(f"{name} {found:.1e}")
        check(found <= FLOAT32_ERROR, ", ".join(figures))
    return ", ".join(figures)


@torch.no_grad()
def every_attention_is_as_exact_as_sdpa_in_bfloat16() -> str:
    """Padded batches of several images: root mean square errors against float32."""
    model = random_model(1)
    inputs = random_inputs(model)
    is_token = inputs["attention_mask"].bool()
    expected = model(**inputs).logits[is_token]
    model.to(CUDA, torch.bfloat16)
    errors = {}
    for name in ATTENTION_IMPLEMENTATIONS:
        model.attn_implementation = name
        found = model(**to_cuda(inputs)).logits.cpu()[is_token]
        errors[name] = root_mean_square(found, expected)
    figure = ", ".join(f"{name} {found:.2e}" for name, found in errors.items())
    return check(max(errors.values()) <= MORE_THAN_SDPA * errors["sdpa"], figure)


@torch.no_grad()
def flash_attention_decodes_behind_a_cache() -> str:
    """Greedy tokens of flash and of sdpa: how many of them agree."""
    model = random_model(2).to(CUDA, torch.bfloat16)
    inputs = to_cuda(random_inputs(model))
    tokens = {}
    for name in ("sdpa", "flash_attention_2"):
        model.attn_implementation = name
        tokens[name] = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=-1)[
            :, -8:
        ]
    same = (tokens["sdpa"] == tokens["flash_attention_2"]).float().mean().item()
    return check(same >= 0.75, f"{same:.0%} of the tokens are the same")


@torch.no_grad()
def every_flash_kernel_agrees() -> str:
    """PyTorch's kernel, and that of flash_attn where it is installed, with few and many heads."""
    figures = []
    for kernel in {flash.torch_kernel, flash.find_flash_kernel()}:
        for H, K, T, S in ((12, 2, 300, 300), (28, 4, 1, 257), (16, 16, 64, 64)):
            q = torch.randn(2, H, T, 128, device=CUDA, dtype=torch.bfloat16)
            k, v = torch.randn(2, 2, K, S, 128, device=CUDA, dtype=torch.bfloat16)
            padding = torch.ones(2, S, dtype=torch.bool, device=CUDA)
            padding[0, : S // 3] = T == 1  # a row of fewer keys; its queries are the last ones
            for mask in (None, padding):
                out = flash.packed_attention(q, k, v, True, mask, kernel)
                whole = None if mask is None else mask[:, None, None].expand(2, 1, T, S)
                dense = torch.ones(T, S, dtype=torch.bool, device=CUDA).tril(S - T)
                dense = dense[None, None] if whole is None else dense & whole
                # A padded query attends to nothing: it is compared nowhere.
                keep = dense.any(-1).expand(2, 1, T)[:, 0]
                exact, _ = attention(
                    q.float(), k.float(), v.float(), AttentionMask(dense=dense), "eager"
                )
                found = error(out.transpose(1, 2).flatten(2)[keep], exact[keep])
                figures.append(found)
    return check(max(figures) <= 2e-2, f"at most {max(figures):.1e} in {len(figures)} cases")


@torch.no_grad()
def the_cuda_graph_gives_the_logits_of_the_plain_step() -> str:
    figures = []
    for batch in (1, 3):
        model = random_model(3).to(CUDA)
        inputs = to_cuda(random_inputs(model, batch))
        mask = inputs["attention_mask"]
        steps = []
        for make in (PlainStep, compiled.CompiledStep):
            cache = model.make_cache(batch, mask.shape[1] + 4)
            out = model(**inputs, past_key_values=cache)
            steps.append(make(model, cache, mask, out.rope_deltas))
        token = out.logits[:, -1].argmax(-1)
        for _ in range(3):
            expected = steps[0](token).clone()
            figures.append(error(steps[1](token), expected))
            token = expected.argmax(-1)
    return check(max(figures) <= FLOAT32_ERROR, f"at most {max(figures):.1e}")


def compiled_answers_are_the_plain_ones() -> str:
    """Greedy and drawn, of one row and of three: the step runs ahead of the host."""
    count = 0
    for batch in (1, 3):
        model = random_model(4).to(CUDA)
        inputs = to_cuda(random_inputs(model, batch))
        for chosen in ({"do_sample": False}, {"seed": 3, "temperature": 0.7, "top_p": 0.9}):
            settings = {**inputs, **chosen, "max_new_tokens": 12, "eos_token_id": -1}
            plain = model.generate(**settings)
            ahead = model.generate(**settings, compile=True)
            check(torch.equal(plain, ahead), f"{plain.tolist()} but compiled {ahead.tolist()}")
            count += 1
    return f"{count} answers of 12 tokens"


def int8_is_that_of_the_cpu() -> str:
    return rounded_weights_are_those_of_the_cpu(int8=True)


def int4_is_that_of_the_cpu() -> str:
    return rounded_weights_are_those_of_the_cpu(int4=True)


@torch.no_grad()
def rounded_weights_are_those_of_the_cpu(**rounding: bool) -> str:
    model = random_model(5, torch.bfloat16)
    inputs = random_inputs(model)
    # A single row goes through another kernel than a prompt.
    one = random_inputs(model, 1)
    logits = []
    tokens = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for device in (torch.device("cpu"), CUDA):
            rounded = Qwen2VLForConditionalGeneration.from_pretrained(
                folder, torch.bfloat16, device, **rounding
            )
            logits.append(rounded(**to(device, inputs)).logits.cpu())
            settings = {**to(device, one), "max_new_tokens": 6, "do_sample": False}
            tokens.append(rounded.generate(**settings, eos_token_id=-1)[:, -6:].cpu())
    is_token = inputs["attention_mask"].bool()
    difference = error(logits[1][is_token], logits[0][is_token])
    same = (tokens[0] == tokens[1]).float().mean().item()
    figure = f"logits {difference:.1e}, {same:.0%} of the tokens are the same"
    return check(difference <= 5e-2, figure)


def the_fast_image_processor_runs_on_the_device() -> str:
    from processor import Qwen2VLImageProcessorFast

    image = torch.randint(0, 256, (3, 300, 500), dtype=torch.uint8).numpy()
    on_cpu = Qwen2VLImageProcessorFast()([image])
    on_cuda = Qwen2VLImageProcessorFast(device=str(CUDA))([image])
    check(torch.equal(on_cpu["image_grid_thw"], on_cuda["image_grid_thw"].cpu()), "other grids")
    difference = (on_cpu["pixel_values"] - on_cuda["pixel_values"].cpu()).abs().max().item()
    # A level of 255 is at most 0.0149 after normalisation.
    return check(difference <= 0.016, f"at most {difference / 0.0149:.2f} of 255 levels")


def tiny_answers_as_on_the_cpu() -> str:
    from processor import Qwen2VLProcessor

    processor = Qwen2VLProcessor.from_pretrained("tiny")
    image = {"type": "image", "path": str(ROOT / "examples" / "shapes.png")}
    text = {"type": "text", "text": "Describe this image."}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [image, text]}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )
    answers = []
    for device in ("cpu", str(CUDA)):
        model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map=device)
        tensors = {name: x.to(model.device) for name, x in inputs.items()}
        ids = model.generate(**tensors, max_new_tokens=24, do_sample=False)
        answers.append(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0])
    return check(answers[0] == answers[1], " | ".join(dict.fromkeys(answers)))


@torch.no_grad()
def layers_spread_over_devices_compute_the_same() -> str:
    if torch.cuda.device_count() < 2:
        raise LeftOut("one CUDA device")
    from qwen2vl_extras import spread

    model = random_model(6)
    inputs = random_inputs(model)
    is_token = inputs["attention_mask"].bool()
    expected = model(**inputs).logits[is_token]
    devices = [torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cuda:1")]
    layout = spread.Layout(model.config, devices)
    for path, p in list(model.named_parameters()):
        model.set_parameter(path, p.detach().to(layout.device_of(path)))
    model.tie_weights()
    spread.attach(model, layout)
    model.generate(**to_cuda(inputs), max_new_tokens=4)
    found = error(model(**to_cuda(inputs)).logits.cpu()[is_token], expected)
    return check(found <= FLOAT32_ERROR, f"{found:.1e}")


def processes_share_a_model_over_nccl() -> str:
    if torch.cuda.device_count() < 2:
        raise LeftOut("one CUDA device")
    question = ["qwen2vl.py", "--image", "examples/shapes.png", "--max-new-tokens", "16"]
    runs = []
    alone = [sys.executable, *question, "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for command in (alone, [*torchrun, *question, "--device", "cuda", "--dtype", "float32"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        check(done.returncode == 0, done.stderr[-500:])
        runs.append(done.stdout)
    return check(runs[0] == runs[1], " | ".join(dict.fromkeys(runs)))


CHECKS = (
    float32_is_that_of_the_cpu,
    every_attention_is_as_exact_as_sdpa_in_bfloat16,
    every_flash_kernel_agrees,
    flash_attention_decodes_behind_a_cache,
    the_cuda_graph_gives_the_logits_of_the_plain_step,
    compiled_answers_are_the_plain_ones,
    int8_is_that_of_the_cpu,
    int4_is_that_of_the_cpu,
    tiny_answers_as_on_the_cpu,
    the_fast_image_processor_runs_on_the_device,
    layers_spread_over_devices_compute_the_same,
    processes_share_a_model_over_nccl,
)


# ------------------------------------------------------------------------------------- running


def run_check(function: Callable[[], str]) -> dict[str, object]:
    """The result of a check, whatever happens in it."""
    start = time.perf_counter()
    try:
        state, figure = "ok", function()
    except LeftOut as error:
        state, figure = "left out", str(error)
    except Exception as error:  # anything may be wrong with what never ran
        state, figure = "failed", f"{type(error).__name__}: {error}"
    seconds = round(time.perf_counter() - start, 1)
    name = function.__name__.replace("_", " ")
    return {"check": name, "state": state, "figure": figure, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results there, after each check")
    parser.add_argument("--device", default="cuda", help="cpu: only to try this program")
    args = parser.parse_args()
    global CUDA
    CUDA = torch.device(args.device)
    if CUDA.type == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device here", file=sys.stderr)
        return 2
    # Sums of float32 in full, as on the CPU.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    results = []
    for function in CHECKS:
        result = run_check(function)
        results.append(result)
        seconds = result["seconds"]
        print(f"{result['state']}: {result['check']} ({seconds} s): {result['figure']}", flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(results, indent=1) + os.linesep)
    return int(any(result["state"] == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
