"""A model that several processes share computes what one process computes, and all end together.

The processes are on the CPU of this machine and talk over gloo; on GPUs it would be NCCL.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import load
from benchmarks.shapes import SHAPE_72B, SHAPES
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras import distributed, memory
from tests.helpers.launch import Launch
from tests.helpers.reference import (
    KINDS,
    TOLERANCE,
    error,
    fill_randomly,
    random_config,
    random_inputs,
)
from tests.helpers.shared_worker import NEW_TOKENS

COUNTS = (2, 4)
# Query, key-value and vision heads that 2 and 4 processes can share; the first are the 72B's.
HEADS = [(64, 8, 16), (4, 2, 4), (8, 8, 8), (4, 1, 4), (12, 2, 4), (8, 4, 4), (28, 4, 16)]
TINY = load.EMBEDDED


# ---------------------------------------------------------------------------------- random models


def shared_config(seed: int, heads: tuple[int, int, int]) -> dict:
    """A random config with these heads. Vocabulary and inner sizes seldom divide evenly."""
    config = random_config(seed, tied=seed % 3 == 0)
    rng = random.Random(seed)
    H, K, vision_heads = heads
    d = sum(config["rope_scaling"]["mrope_section"]) * 2
    D = H * d
    config.update(num_attention_heads=H, num_key_value_heads=K, hidden_size=D)
    config["intermediate_size"] = rng.randint(20, 90)
    config["vision_config"].update(
        num_heads=vision_heads,
        embed_dim=vision_heads * rng.choice([8, 16]),
        mlp_ratio=rng.choice([2, 3.1, 4]),
        hidden_size=D,
    )
    return config


def save_model(folder: Path, config: dict, seed: int) -> Qwen2VLForConditionalGeneration:
    """A random model in float32, in a folder with what the official ones hold."""
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config)).eval()
    fill_randomly(model, seed)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def expect(model: Qwen2VLForConditionalGeneration, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one process computes."""
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1)
    longer = dict(inputs)
    logits = model(**inputs).logits
    token = logits[:, -1:].argmax(-1)
    longer["input_ids"] = torch.cat((inputs["input_ids"], token), dim=1)
    ones = torch.ones_like(token)
    longer["attention_mask"] = torch.cat((inputs["attention_mask"], ones), dim=1)
    return {"logits": logits, "tokens": tokens, "step": model(**longer).logits[:, -1:]}


class Case:
    """One random model and its inputs in a folder, and what one process makes of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.kind = KINDS[seed % len(KINDS)]
        self.heads = HEADS[seed % len(HEADS)]
        self.name = f"seed {seed}, {self.heads}, {self.kind}"
        self.model = save_model(folder, shared_config(seed, self.heads), seed)
        self.config = self.model.config
        self.inputs = random_inputs(self.config, self.kind, seed)
        torch.save(self.inputs, folder / "inputs.pt")
        self.expected = expect(self.model, self.inputs)

    def results(self, count: int) -> list[dict]:
        """What each of `count` processes has left."""
        return left_in(self.folder, count)


def left_in(folder: Path, count: int) -> list[dict]:
    """What each of `count` processes has left in the folder of its model."""
    return [torch.load(folder / f"out-{count}-{rank}.pt") for rank in range(count)]


def run_workers(count: int, folders: list[Path]) -> None:
    arguments = ["-m", "tests.helpers.shared_worker", *(str(folder) for folder in folders)]
    codes, _, errors = Launch(count, *arguments).finish()
    assert codes == [0] * count, "\n".join(errors)


# ---------------------------------------------------------------------------- a narrow 72B model


def narrow_72b() -> dict:
    """The 72B model's 80 layers, 64 and 8 heads and vision heads; 1/16 of its width."""
    config = dict(SHAPE_72B, hidden_size=512, intermediate_size=768, vocab_size=1024)
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    for i, name in enumerate(
        ("bos", "eos", "vision_start", "vision_end", "image", "video"), start=1000
    ):
        config[f"{name}_token_id"] = i
    config["vision_config"] = dict(
        SHAPE_72B["vision_config"], depth=4, embed_dim=128, hidden_size=512
    )
    return config


@pytest.fixture(scope="module")
def narrow_counts(amount: Callable) -> tuple[int, ...]:
    """How many processes share it: its many layers take two cores a while."""
    return COUNTS[-amount(1, 2) :]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """Its folder, in bfloat16 and in shards; what one process computes in float32; its shapes."""
    folder = tmp_path_factory.mktemp("narrow")
    config = narrow_72b()
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2**20, generator=generator)
    tensors = {}
    shapes = {}
    for path, p in model.named_parameters():
        shapes[path] = tuple(p.shape)
        if p.ndim == 1:
            tensors[path] = torch.ones(p.shape, dtype=torch.bfloat16)
            continue
        # The same noise for all layers, from another place on, is random enough.
        start = int(torch.randint(2**19, (), generator=generator))
        values = noise[start:].repeat(p.numel() // 2**19 + 1)[: p.numel()]
        values = values * p[0].numel() ** -0.5
        tensors[path] = values.view(p.shape).to(torch.bfloat16)
    load.save_checkpoint(folder, config, tensors, max_shard_size="100MB")
    inputs = random_inputs(model.config, "mixed batch", 0)
    torch.save(inputs, folder / "inputs.pt")

    whole = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, torch.float32, "cpu", attn_implementation="sdpa"
    )
    expected = expect(whole, inputs)
    return folder, expected, shapes


# ---------------------------------------------------------------------------------------- launches


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory,
    amount: Callable,
    narrow: tuple[Path, dict, dict],
    narrow_counts: tuple[int, ...],
) -> list[Case]:
    """Random models and the narrow 72B ran on 2 and on 4 processes: one launch each for all."""
    made = [Case(tmp_path_factory.mktemp("case"), seed) for seed in range(amount(7, 70))]
    for count in COUNTS:
        folders = [case.folder for case in made]
        if count in narrow_counts:
            # The second, for the first imports libraries, and its memory is measured.
            folders.insert(1, narrow[0])
        run_workers(count, folders)
    return made


# ------------------------------------------------------------------------------------- same results


@pytest.mark.parametrize("count", COUNTS)
def test_logits_of_several_processes_are_those_of_one(cases, count, figure):
    for case in cases:
        for result in case.results(count):
            for what in ("logits", "step"):
                found = error(result[what], case.expected[what])
                claim = f"{what} of {count} processes against one"
                assert figure(claim, found) <= TOLERANCE, case.name


@pytest.mark.parametrize("count", COUNTS)
def test_greedy_tokens_of_several_processes_are_those_of_one(cases, count):
    for case in cases:
        for result in case.results(count):
            assert torch.equal(result["tokens"], case.expected["tokens"]), case.name


@pytest.mark.parametrize("count", COUNTS)
def test_all_processes_draw_the_tokens_of_the_first_without_a_seed(cases, count):
    differs = 0
    for case in cases:
        first, *others = case.results(count)
        for other in others:
            assert torch.equal(other["drawn"], first["drawn"]), case.name
        differs += not torch.equal(first["drawn"], first["tokens"])
    assert differs > 0  # tokens were drawn, and not only the most probable ones taken


@pytest.mark.parametrize("count", COUNTS)
def test_the_cache_of_a_process_holds_its_own_heads(cases, count):
    for case in cases:
        K = case.heads[1]
        results = case.results(count)
        for result in results:
            assert result["cache heads"] == max(1, K // count), case.name
        # End to end they are all heads, of which several processes may hold the same one.
        own = [result["keys"] for result in results]  # (layers, B, heads, d)
        repeats = max(1, count // K)
        together = torch.cat(own[::repeats], dim=2)
        assert together.shape[2] == K, case.name
        for rank, keys in enumerate(own):
            assert torch.equal(keys, own[rank // repeats * repeats]), case.name


def test_the_plan_fits_the_paper_of_each_layer(cases):
    """Every matrix of the model is in the plan but the patch embedding, and nothing else is."""
    for case in cases:
        for path, p in case.model.named_parameters():
            module = path.rpartition(".")[0]
            is_divided = distributed.style_in_plan(module) is not None
            is_linear = isinstance(case.model.get_submodule(module), torch.nn.Linear)
            is_table = module == "model.embed_tokens"
            assert is_divided == (is_linear or is_table), path
            assert p is not None


# ----------------------------------------------------------------------------------------- slices


def part_of(config: Qwen2VLConfig, rank: int, count: int) -> distributed.Part:
    return distributed.Part(config, rank, count, "cpu", count)


def test_the_parts_of_all_processes_are_the_whole_of_every_parameter(amount):
    """Of random layouts, for every count that they allow; repeated heads are there repeatedly."""
    for seed in range(amount(20, 200)):
        heads = HEADS[seed % len(HEADS)]
        config = Qwen2VLConfig.from_dict(shared_config(seed, heads))
        model = Qwen2VLForConditionalGeneration(config)
        for count in distributed.allowed_counts(config):
            parts = [part_of(config, rank, count) for rank in range(count)]
            for path, p in model.named_parameters():
                shape = tuple(p.shape)
                held = [part.read(path, p.detach(), shape) for part in parts]
                for part, tensor in zip(parts, held, strict=True):
                    assert tuple(tensor.shape) == part.shape_of(path, shape), path
                check_whole(path, p.detach(), held, config, parts[0].axis_of(path))


def check_whole(
    path: str, whole: Tensor, held: list[Tensor], config: Qwen2VLConfig, axis: int | None
) -> None:
    """That the parts of a parameter give the whole one."""
    if axis is None:
        assert all(torch.equal(part, whole) for part in held), path
        return
    if ".qkv." in path:  # queries of all processes, then keys, then values
        thirds = [torch.stack(part.chunk(3)) for part in held]
        assert torch.equal(torch.cat(thirds, dim=1).flatten(0, 1), whole), path
        return
    if ".k_proj." in path or ".v_proj." in path:
        repeats = max(1, len(held) // config.num_key_value_heads)
        assert torch.equal(torch.cat(held[::repeats]), whole), path
        return
    together = torch.cat(held, dim=axis)
    size = whole.shape[axis]
    # Whatever is more is zeros at the ends of the parts, here of the last ones.
    assert torch.equal(together.narrow(axis, 0, size), whole), path
    assert not together.narrow(axis, size, together.shape[axis] - size).any(), path


def test_a_narrow_72b_loaded_in_slices_computes_what_one_process_does(
    cases, narrow, narrow_counts, figure
):
    folder, expected, _ = narrow
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    for count in narrow_counts:
        for result in left_in(folder, count):
            found = error(result["logits"], expected["logits"])
            assert figure(f"80 layers on {count} processes against one", found) <= TOLERANCE
            assert torch.equal(result["tokens"], expected["tokens"])
            assert result["cache heads"] == 8 // count


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells RssAnon")
def test_loading_takes_a_process_eleven_tenths_of_its_share(cases, narrow, narrow_counts, figure):
    """Anonymous memory, at its peak. The files are mapped, and in another dtype."""
    folder, _, shapes = narrow
    config = Qwen2VLConfig.from_pretrained(folder)
    sizes = {path: 4 * torch.Size(shape).numel() for path, shape in shapes.items()}
    whole = sum(sizes.values())
    for count in narrow_counts:
        for rank, result in enumerate(left_in(folder, count)):
            share = part_of(config, rank, count).count_bytes(shapes, sizes)
            assert whole / count <= share <= 1.05 * whole / count  # norms are in all of them
            peak = result["memory"] / share
            assert figure(f"peak of {count} processes against their share", peak) <= 1.1


# --------------------------------------------------------------------------------------- exchanges


@pytest.mark.parametrize("count", COUNTS)
def test_a_token_costs_the_exchanges_of_the_plan_and_no_others(cases, narrow, narrow_counts, count):
    """Two sums a layer and one for the embedding, of D numbers; and the logits, once."""
    runs = [(case.name, case.config, case.results(count)) for case in cases]
    folder, _, _ = narrow
    if count in narrow_counts:
        config = Qwen2VLConfig.from_pretrained(folder)
        runs.append(("80 layers", config, left_in(folder, count)))
    for name, config, outputs in runs:
        for rank, result in enumerate(outputs):
            batch = len(result["tokens"])
            sums = (2 * config.num_hidden_layers + 1) * config.hidden_size
            longest = -(-config.vocab_size // count)
            expected = {
                "all_reduce": 4 * batch * sums,
                "all_gather_into_tensor": 4 * batch * longest,
            }
            assert result["exchanged"] == expected, f"{name}, process {rank}"
            sent = memory.sent_bytes(config, count, 4, batch)
            # A ring sends each sum around twice, less a process's own part, and a gather once.
            others = count - 1
            assert sent == pytest.approx(
                2 * expected["all_reduce"] * others / count
                + expected["all_gather_into_tensor"] * others
            )


# ------------------------------------------------------------------------------------ how many fit


def test_the_counts_of_the_official_models_are_those_of_their_heads():
    allowed = {}
    for name, shape in {**SHAPES, "shape:72b": SHAPE_72B}.items():
        allowed[name] = distributed.allowed_counts(Qwen2VLConfig.from_dict(shape))
    assert allowed == {"shape:2b": [1, 2, 4], "shape:7b": [1, 2, 4], "shape:72b": [1, 2, 4, 8, 16]}


def test_any_other_count_is_refused_with_those_that_work(amount):
    for seed in range(amount(30, 300)):
        rng = random.Random(seed)
        K = rng.randint(1, 8)
        heads = (K * rng.randint(1, 6), K, rng.randint(1, 16))
        config = Qwen2VLConfig.from_dict(shared_config(seed, heads))
        allowed = distributed.allowed_counts(config)
        listed = ", ".join(str(count) for count in allowed)
        for count in range(1, 20):
            H, vision_heads = heads[0], heads[2]
            works = H % count == 0 and vision_heads % count == 0 and not (K % count and count % K)
            assert (count in allowed) == works, (heads, count)
            if works:
                distributed.check_count(config, count)
                continue
            with pytest.raises(ValueError, match=f"{count} processes can't share") as caught:
                distributed.check_count(config, count)
            assert str(caught.value).endswith(f"takes {listed}"), (heads, count)


def test_too_little_memory_is_refused_with_both_numbers():
    config = Qwen2VLConfig.from_dict(SHAPE_72B)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    shapes = {path: tuple(p.shape) for path, p in model.named_parameters()}
    sizes = {path: 2 * p.numel() for path, p in model.named_parameters()}
    part = distributed.Part(config, 1, 2, "cuda:1", 2)
    held = part.count_bytes(shapes, sizes)
    needed = held + memory.prompt_bytes(config, 2, 2, memory.USUAL_TOKENS)
    part.check_memory(held, sizes, needed)
    with pytest.raises(MemoryError, match=r"take (\d+\.\d) GB .* 60\.0 GB are free") as caught:
        part.check_memory(held, sizes, 60e9)
    assert f"{needed / 1e9:.1f} GB" in str(caught.value)
    assert f"{held / 1e9:.1f} GB of weights" in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- what is refused by name


def run_alone(code: str, count: int, *arguments: str) -> tuple[list[int], list[str], list[str]]:
    return Launch(count, "-c", code, *arguments).finish()


REFUSALS = """
import sys, torch
from qwen2vl import Qwen2VLForConditionalGeneration as Model
model = Model.from_pretrained("tiny", tp_plan="auto")
ids = torch.tensor([[1, 2, 3]])
assert model.mesh.size() == 2
def refused(call):
    try:
        call()
    except ValueError as error:
        print(error)
refused(lambda: model.save_pretrained(sys.argv[1]))
refused(lambda: model.generate(ids, compile=True))
refused(lambda: Model.from_pretrained("tiny", tp_plan="auto", int8=True))
refused(lambda: Model.from_pretrained("tiny", tp_plan="auto", device_map="mps"))
refused(lambda: Model.from_pretrained("tiny", tp_plan="rows"))
refused(lambda: model.generate(ids + model.mesh.get_local_rank(), max_new_tokens=2))
alone = Model.from_pretrained("tiny", device_map="cpu")
assert alone.mesh is None
model.model.layers[1].mlp.up_proj.weight.data.fill_(float("nan"))
refused(lambda: model.generate(ids, max_new_tokens=2))
"""


def test_what_a_part_of_a_model_can_not_do_is_refused_by_name(tmp_path):
    codes, outs, errors = run_alone(REFUSALS, 2, str(tmp_path / "copy"))
    assert codes == [0, 0], errors
    for out in outs:
        lines = out.splitlines()
        expected = [
            "this process has a part of the model only",
            "compile=True needs a model of one process, 2 processes share this",
            "int8 does not go with several processes",
            "device is 'mps': processes that share a model take",
            "tp_plan is 'rows', 'auto' or None is needed",
            "input_ids of process 1 is not that of process 0",
            "model.layers.1.mlp.up_proj.weight holds NaN or infinity",
        ]
        assert len(lines) == len(expected), out
        for line, text in zip(lines, expected, strict=True):
            assert text in line
    assert not (tmp_path / "copy").exists()


def test_one_process_asks_for_no_others():
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny")
    assert model.mesh is None
    with pytest.raises(ValueError, match="tp_plan='auto' needs several processes: start them with"):
        Qwen2VLForConditionalGeneration.from_pretrained("tiny", tp_plan="auto")


# -------------------------------------------------------------------------------- the command line

LOST = "error: process {} of the {} that share the model was lost"


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that 2 and 4 processes can share, with the texts of `tiny`."""
    folder = tmp_path_factory.mktemp("speaking")
    for file in TINY.glob("*.json"):
        shutil.copy(file, folder)
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    config.update(num_attention_heads=8, num_key_value_heads=2)
    sections = config.get("rope_scaling") or config["rope_parameters"]
    half = config["hidden_size"] // 16
    sections["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    save_model(folder, config, 1)
    return folder


def ask(
    count: int, model: Path | str, *arguments: str, given: str | None = None
) -> tuple[list[int], list[str], list[str]]:
    """The command line in several processes; one is alone, as without torchrun."""
    command = ["qwen2vl.py", "--model", str(model), "--device", "cpu", *arguments]
    return Launch(count, *command, stdin=given is not None).finish(given)


CHAT = """What is it?
/image examples/shapes.png
And this?
/image no-such-file.png
What?
/reset
/video examples/moving.mp4
What moves?
/quit
"""


def test_a_chat_of_several_processes_is_that_of_one_and_the_first_alone_speaks(speaking, amount):
    arguments = ("--chat", "--image", "examples/wide.png", "--max-new-tokens", "6")
    (code,), (expected,), (said,) = ask(1, speaking, *arguments, given=CHAT)
    assert code == 0, said
    for count in COUNTS[: amount(1, 2)]:
        codes, outs, errors = ask(count, speaking, *arguments, given=CHAT)
        assert codes == [0] * count, errors
        assert outs == [expected] + [""] * (count - 1)
        # One line more than alone, and nothing from the others.
        lines = [line for line in errors[0].splitlines() if "processes share the model" in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"{count} processes share the model")
        rest = errors[0].replace(lines[0] + "\n", "")
        assert rest == said
        assert all("error" not in error for error in errors[1:])


# ------------------------------------------------------------------- calls of parts of the model

# What a conversation with a kept cache does: it calls the model's parts, and its cache grows and
# is cropped. With one process the same lines run without any other.
PARTS = """
import sys, torch
import torch.nn.functional as F
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras import followers, processes
processes.join_command_line()
model = Qwen2VLForConditionalGeneration.from_pretrained(sys.argv[1], device_map="cpu")
if processes.is_follower():
    followers.follow(model)
    sys.exit()
results = []
with torch.no_grad():
    ids = torch.arange(3, 13)[None]
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    embeds = model.model.embed_tokens(ids).clone()
    embeds[0, 2:6] = model.visual(pixels, torch.tensor([[1, 4, 4]]))
    cache = model.make_cache(1, 12)
    results.append(model.model(inputs_embeds=embeds, past_key_values=cache))
    # A second cache, which is gone when the first one is used again.
    other = model.make_cache(2, 4)
    results.append(model.model(ids[:, :4].expand(2, -1), past_key_values=other))
    del other
    cache.length = 7
    cache.keys = F.pad(cache.keys, (0, 0, 0, 8))
    cache.values = F.pad(cache.values, (0, 0, 0, 8))
    cache.capacity = 20
    hidden = model.model(ids, past_key_values=cache)
    results.append(hidden)
    results.append(model.lm_head(hidden))
    try:
        model.model(ids + 10**6)
    except ValueError:
        results.append(model(ids).logits)  # all processes go on after an error of the caller
torch.save([result.clone() for result in results], sys.argv[2])
"""


def test_parts_of_a_model_called_by_the_first_process_are_computed_by_all(speaking, tmp_path):
    saved = []
    for count in (1, 2):
        file = tmp_path / f"{count}.pt"
        codes, _, errors = run_alone(PARTS, count, str(speaking), str(file))
        assert codes == [0] * count, errors
        saved.append(torch.load(file))
    assert len(saved[0]) == len(saved[1]) == 5
    for expected, found in zip(*saved, strict=True):
        assert error(found, expected) <= TOLERANCE


LINES = """{"id": "a", "image": "examples/shapes.png"}
{"id": "b", "image": "examples/no-such-file.png"}
{"id": "c", "image": "examples/wide.png", "temperature": 1.0, "seed": 3}
{"id": "d", "prompt": "What colour is the sky?"}
"""


@pytest.mark.parametrize("output", ["--json", "--batch"])
def test_json_and_batches_of_two_processes_are_those_of_one(speaking, tmp_path, output):
    lines = tmp_path / "lines.jsonl"
    lines.write_text(LINES, encoding="utf-8")
    arguments = ["--json", "--image", "examples/shapes.png"]
    if output == "--batch":
        arguments = ["--batch", str(lines)]
    records = []
    for count in (1, 2):
        codes, outs, errors = ask(count, speaking, *arguments, "--max-new-tokens", "6")
        # Exit status 1 says that lines of a batch are errors.
        assert codes[0] == int(output == "--batch"), errors
        assert all(out == "" for out in outs[1:])
        found = [json.loads(line) for line in outs[0].splitlines()]
        assert len(found) == (4 if output == "--batch" else 1)
        for record in found:
            del record["seconds"]
        records.append(found)
    assert records[0] == records[1]


def test_a_batch_that_is_done_already_ends_all_processes(speaking, tmp_path):
    """The first process has nothing to compute, and loads no model that others could share."""
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"id": "d", "prompt": "What is red?"}\n', encoding="utf-8")
    arguments = ("--batch", str(lines), "--out", str(tmp_path / "answers.jsonl"))
    for count in (1, 2):
        codes, _, errors = ask(count, speaking, *arguments, "--max-new-tokens", "2")
        assert codes == [0] * count, errors
    assert "all 1 lines are there" in errors[0]


def error_lines(errors: list[str]) -> list[str]:
    """What our code said was wrong, in all processes together."""
    return [line for text in errors for line in text.splitlines() if line.startswith("error: ")]


# Without torchrun, which would end the others of its own accord.
@pytest.mark.parametrize(("count", "rank"), [(2, 0), (4, 3)], ids=["the first", "the last"])
def test_a_killed_process_ends_all_others_with_one_line(speaking, count, rank, figure):
    command = ["qwen2vl.py", "--model", str(speaking), "--device", "cpu", "--max-new-tokens"]
    launch = Launch(count, *command, "900", "--image", "examples/shapes.png")
    try:
        # As soon as it answers, it is in the middle of what all compute.
        assert launch.processes[0].stdout.read(1)
        launch.processes[rank].send_signal(signal.SIGKILL)
        start = time.monotonic()
        for process in launch.processes:
            process.wait(timeout=60)
        figure("seconds from a killed process to the end of all", time.monotonic() - start)
    finally:
        codes, _, errors = launch.finish()
    assert codes[rank] == -signal.SIGKILL
    assert all(code == 1 for other, code in enumerate(codes) if other != rank), errors
    assert error_lines(errors) == [LOST.format(rank, count)]
    assert not any("Traceback" in error for error in errors), errors


def test_ctrl_c_ends_all_processes_without_a_word(speaking, figure):
    command = ["qwen2vl.py", "--model", str(speaking), "--device", "cpu", "--max-new-tokens"]
    launch = Launch(2, *command, "900", "--image", "examples/shapes.png")
    try:
        assert launch.processes[0].stdout.read(1)
        start = time.monotonic()
        for process in launch.processes:
            process.send_signal(signal.SIGINT)
        for process in launch.processes:
            process.wait(timeout=60)
        figure("seconds from Ctrl-C to the end of all", time.monotonic() - start)
    finally:
        codes, _, errors = launch.finish()
    assert codes == [130, 130], errors
    assert error_lines(errors) == []
    assert not any("Traceback" in error for error in errors), errors


def wrong_count(folder: Path) -> tuple[int, str]:
    return 3, "3 processes can't share this model of 8 query, 2 key-value and 4 vision heads"


def missing_shard(folder: Path) -> tuple[int, str]:
    whole = folder / "model.safetensors"
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / load.INDEX).write_text(json.dumps(index), encoding="utf-8")
    whole.unlink()
    return 2, "has no model-00001-of-00002.safetensors, which"


def broken_file(folder: Path) -> tuple[int, str]:
    whole = folder / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1000])
    return 2, "is broken or cut short"


def no_processor(folder: Path) -> tuple[int, str]:
    """Only the first process looks for it: the others load the model in the meantime."""
    (folder / "tokenizer.json").unlink()
    return 2, "has no tokenizer.json"


@pytest.mark.parametrize("damage", [wrong_count, missing_shard, broken_file, no_processor])
def test_an_error_ends_all_processes_with_one_line(speaking, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(speaking, folder)
    count, text = damage(folder)
    codes, outs, errors = ask(count, folder, "--max-new-tokens", "3")
    assert codes == [2] * count, errors
    assert outs == [""] * count
    (line,) = error_lines(errors)
    assert text in line
    assert not any("Traceback" in error for error in errors), errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a file that is full")
def test_a_full_disk_under_the_answer_ends_all_processes_with_one_line(speaking):
    """/dev/full in place of a file on a full disk: what is written to it fails in the same way."""
    command = ["qwen2vl.py", "--model", str(speaking), "--device", "cpu", "--max-new-tokens", "9"]
    codes, _, errors = Launch(2, *command, stdout="/dev/full").finish()
    assert codes == [2, 2], errors
    (line,) = error_lines(errors)
    assert "No space left on device" in line
