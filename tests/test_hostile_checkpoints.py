"""Folders from anywhere: what is broken or hostile is refused in one line, and nothing hangs.

Every field of every JSON file is given values of the wrong type, sign, size or depth, one at a
time. The tests know no schema: what must be refused follows from the value that the field has in
a good folder.
"""

import copy
import json
import math
import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import load
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras import json_files

TINY = load.find_checkpoint("tiny")
ERRORS = (ValueError, FileNotFoundError, MemoryError)
INDEX = "model.safetensors.index.json"


# ---------------------------------------------------------------------------------- good folders


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def nested_config(flat: dict) -> dict:
    """A flat config.json in the layout of transformers 5."""
    text = {key: value for key, value in flat.items() if not key.endswith("token_id")}
    for key in ("architectures", "model_type", "torch_dtype", "vision_config"):
        text.pop(key)
    rope = text.pop("rope_scaling")
    tied = text.pop("tie_word_embeddings")
    text["rope_parameters"] = {
        "mrope_section": rope["mrope_section"],
        "rope_theta": text.pop("rope_theta"),
        "rope_type": "default",
    }
    config = {"model_type": "qwen2_vl", "dtype": "float32", "tie_word_embeddings": tied}
    for key, value in flat.items():
        if key.endswith("token_id"):
            config[key] = value
    vision = {**flat["vision_config"], "rope_parameters": {"rope_theta": 10000.0}}
    return {**config, "text_config": text, "vision_config": vision}


def newest_layout(folder: Path) -> None:
    """Turn a copy of "tiny" into a folder as transformers 5 saves it, in shards."""
    write(folder, "config.json", nested_config(read(folder, "config.json")))
    sections = {}
    for kind, name in (
        ("image_processor", "preprocessor_config.json"),
        ("video_processor", "video_preprocessor_config.json"),
    ):
        section = read(folder, name)
        smallest, largest = section.pop("min_pixels"), section.pop("max_pixels")
        section["size"] = {"shortest_edge": smallest, "longest_edge": largest}
        sections[kind] = section
        (folder / name).unlink()
    write(folder, "processor_config.json", sections)

    tensors = load_file(TINY / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, names in enumerate((sorted(tensors)[:50], sorted(tensors)[50:])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    write(folder, INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})


@pytest.fixture(scope="module")
def good_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two good folders, in the official layout and in that of transformers 5."""
    folders = {}
    for layout in ("official", "newest"):
        folder = tmp_path_factory.mktemp(layout) / "good"
        shutil.copytree(TINY, folder)
        if layout == "newest":
            newest_layout(folder)
        folders[layout] = folder
    return folders


def copy_of(good: Path, folder: Path) -> Path:
    """A copy that shares the weights."""
    folder.mkdir()
    for file in good.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, folder / file.name)
        else:
            shutil.copyfile(file, folder / file.name)
    return folder


# --------------------------------------------------------------------------------------- outcomes


def answer(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the first new tokens for a prompt with an image and a video.

    What takes longer than a minute hangs: then the signal ends all tests.
    """
    signal.alarm(60)
    try:
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder, device_map="cpu")
        inputs = prompt(Qwen2VLProcessor.from_pretrained(folder))
        with torch.no_grad():
            logits = model(**inputs, logits_to_keep=1).logits
        return logits, model.generate(**inputs, max_new_tokens=3, seed=0)
    finally:
        signal.alarm(0)


def prompt(processor: Qwen2VLProcessor) -> dict[str, torch.Tensor]:
    """A question about an image and a video."""
    red, blue = (Image.new("RGB", (56, 56), colour) for colour in ("red", "blue"))
    content = [{"type": "image", "image": red}, {"type": "video", "video": [red, blue]}]
    content.append({"type": "text", "text": "describe"})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )


def outcome(folder: Path, figure: Callable[[str, float], float]) -> str | torch.Tensor:
    """The logits that a folder gives, or the line in which it is refused."""
    start = time.perf_counter()
    try:
        logits, _ = answer(folder)
    except ERRORS as error:
        figure("seconds until a hostile folder is refused", time.perf_counter() - start)
        message = str(error)
        assert "\n" not in message, message
        assert len(message) < 1200, message
        return message
    assert logits.isfinite().all()
    return logits


# ---------------------------------------------------------------------- one field, one bad value

DEEP: object = "deep"
for _ in range(40):
    DEEP = [DEEP]

# Never right, wherever they stand.
HOPELESS: list[object] = [
    -1,
    -0.5,
    10**30,
    int("9" * 4000),
    math.nan,
    math.inf,
    -math.inf,
    [[]],
    [None],
    {"a": {"b": None}},
    DEEP,
]
# Right for some fields.
DOUBTFUL: list[object] = [
    True,
    False,
    0,
    1,
    13,
    2.0,
    0.5,
    10**8,
    10**12,
    1e300,
    "",
    "text",
    "\ud800",
    "x" * 100_000,
    [],
    {},
    [1],
    [1, 2, 3],
    ["a"],
    None,
]

FILES = {
    "official": [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "tokenizer_config.json",
    ],
    "newest": ["config.json", "processor_config.json", INDEX],
}
# Fields that nothing here reads, as in transformers: any value is right.
NEVER_READ = {
    "architectures",
    "metadata",
    "image_processor_type",
    "video_processor_type",
    "processor_class",
    "tokenizer_class",
    "unk_token",
    "bos_token",
    "padding_side",
    "model_max_length",
    "clean_up_tokenization_spaces",
}


def paths_in(content: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON file, the whole file left out."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, part in content.items():
            yield from paths_in(part, (*path, key))
    elif isinstance(content, list):
        for i, part in enumerate(content):
            yield from paths_in(part, (*path, i))


def value_at(content: object, path: tuple) -> object:
    for key in path:
        content = content[key]
    return content


def mutated(content: dict, path: tuple, value: object) -> dict:
    changed = copy.deepcopy(content)
    value_at(changed, path[:-1])[path[-1]] = value
    return changed


def all_mutations(folders: dict[str, Path]) -> list[tuple[str, str, tuple, object]]:
    """(layout, file, path, value) of every field and every value, in an order drawn at random."""
    cases = []
    for layout, names in FILES.items():
        for name in names:
            paths = [p for p in paths_in(read(folders[layout], name)) if not NEVER_READ & {*p}]
            random.Random(name).shuffle(paths)
            # Of hundreds of tensors and tokens some stand for all.
            paths = paths[:60]
            for path in paths:
                values = HOPELESS + DOUBTFUL
                if "added_tokens_decoder" in path:  # test_load.py has tokens that may be right
                    values = HOPELESS
                cases += [(layout, name, path, value) for value in values]
    random.Random(15).shuffle(cases)
    return cases


def must_be_refused(before: object, value: object) -> bool:
    """Whether a value can't be right where `before` is."""
    if value is None:
        return False
    if any(value is one for one in HOPELESS):
        return True
    is_number = isinstance(before, int | float) and not isinstance(before, bool)
    if is_number:
        return isinstance(value, bool) or not isinstance(value, int | float)
    return type(value) is not type(before)


def names_field(message: str, name: str, path: tuple) -> bool:
    """Whether an error names the file, and the field or the list or object that it is in."""
    if name == INDEX:  # a shard that is not there is named by itself
        return name in message
    fields = [key for key in path if isinstance(key, str)]
    is_named = any(field in message for field in fields)
    return is_named and (name in message or "config.json" in message)


def test_a_wrong_value_in_any_field_is_refused_by_name_or_does_no_harm(
    good_folders, tmp_path, amount, figure
):
    expected = {layout: answer(folder)[0] for layout, folder in good_folders.items()}
    assert torch.equal(expected["official"], expected["newest"])
    problems = []
    cases = all_mutations(good_folders)[: amount(30, 600)]
    for i, (layout, name, path, value) in enumerate(cases):
        folder = copy_of(good_folders[layout], tmp_path / str(i))
        content = read(folder, name)
        before = value_at(content, path)
        write(folder, name, mutated(content, path, value))
        variant = f"{layout} {name} {path} = {value!r:.60}"
        try:
            found = outcome(folder, figure)
        except Exception as error:  # whatever it is, it should have been a refusal
            problems.append(f"{variant}: {type(error).__name__} {error!s:.300}")
            found = None
        if isinstance(found, str) and value is not None and not names_field(found, name, path):
            problems.append(f"{variant}: the field is not named: {found}")
        if isinstance(found, torch.Tensor) and must_be_refused(before, value):
            problems.append(f"{variant}: loads")
        shutil.rmtree(folder)
    assert not problems, "\n".join(problems)


def test_null_is_the_same_as_absent(good_folders, tmp_path, amount, figure):
    cases = []
    for layout, name, path, value in all_mutations(good_folders):
        if value is None and isinstance(path[-1], str) and name != INDEX:
            cases.append((layout, name, path))
    for i, (layout, name, path) in enumerate(cases[: amount(4, 60)]):
        found = []
        for kind in ("null", "absent"):
            folder = copy_of(good_folders[layout], tmp_path / f"{i} {kind}")
            content = read(folder, name)
            if kind == "null":
                content = mutated(content, path, None)
            else:
                del value_at(content, path[:-1])[path[-1]]
            write(folder, name, content)
            found.append(outcome(folder, figure))
            shutil.rmtree(folder)
        variant = f"{layout} {name} {path}"
        if isinstance(found[0], str) or isinstance(found[1], str):
            assert type(found[0]) is type(found[1]), (variant, found)
        else:
            assert torch.equal(*found), variant


# ------------------------------------------------------------------------------- the files as such


def broken_contents() -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut": b'{"a": ',
        "a list": b"[1]",
        "a number": b"1",
        "NaN": b"NaN",
        "not UTF-8": b'{"a": "\xff"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "a zero byte": b'{"a": 1}\x00',
        "half a surrogate pair": b'{"a": ["\\ud800"]}',
        "half a surrogate pair as a name": b'{"a": {"\\udc00": 1}}',
        "two objects": b"{}{}",
        "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep objects": b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
        "deep but parsed": b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
        "a long number": b'{"hidden_size": ' + b"1" * 5000 + b"}",
        "too large": b'{"a": "' + b"x" * json_files.MAX_CONFIG_BYTES + b'"}',
        "many empty lists": b'{"a": [' + b"[]," * 2_000_000 + b"[]]}",
    }


JSON_FILES = sorted({name for names in FILES.values() for name in names})


@pytest.mark.parametrize("name", JSON_FILES)
def test_broken_json_is_one_line_that_names_the_file(good_folders, tmp_path, figure, name):
    layout = "official" if name in FILES["official"] else "newest"
    for i, (kind, content) in enumerate(broken_contents().items()):
        folder = copy_of(good_folders[layout], tmp_path / str(i))
        (folder / name).write_bytes(content)
        found = outcome(folder, figure)
        assert isinstance(found, str), kind
        assert name in found, (kind, found)


@pytest.mark.parametrize("name", [*JSON_FILES, "tokenizer.json", "model.safetensors"])
def test_what_is_no_plain_file_is_refused_and_never_opened(good_folders, tmp_path, figure, name):
    layout = "newest" if name in FILES["newest"] and name != "config.json" else "official"
    for kind in ("pipe", "device", "folder"):
        folder = copy_of(good_folders[layout], tmp_path / kind)
        (folder / name).unlink()
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "device":
            (folder / name).symlink_to("/dev/zero")
        else:
            (folder / name).mkdir()
        if name == "tokenizer.json":  # read here only where the small file does not answer
            write(folder, "tokenizer_config.json", {"eos_token": "x"})
            with pytest.raises(ValueError, match=r"tokenizer\.json is a pipe"):
                load.read_generation_config(folder)
            continue
        found = outcome(folder, figure)
        assert isinstance(found, str), kind
        assert name in found, (kind, found)


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_byte_order_mark_is_no_harm(good_folders, tmp_path, name):
    layout = "official" if name in FILES["official"] else "newest"
    folder = copy_of(good_folders[layout], tmp_path / "marked")
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert torch.equal(answer(folder)[0], answer(good_folders[layout])[0])


# --------------------------------------------------------------------------------------- the index

OUTSIDE = [
    "../secret.safetensors",
    "../../secret.safetensors",
    "x/../../secret.safetensors",
    "./model-00001-of-00002.safetensors",
    "sub/model-00001-of-00002.safetensors",
    "..\\secret.safetensors",
    "C:secret.safetensors",
    "C:\\secret.safetensors",
    "\\\\host\\share\\secret.safetensors",
    "file:///secret.safetensors",
    "/dev/zero",
    "..",
    ".",
    "",
    "a\nb.safetensors",
    "a\x00b.safetensors",
    "x" * 300,
]


def test_an_index_never_leads_out_of_the_folder(good_folders, tmp_path, figure):
    # A file outside that would do: the whole weights.
    shutil.copyfile(TINY / "model.safetensors", tmp_path / "secret.safetensors")
    outside = [*OUTSIDE, str(tmp_path / "secret.safetensors"), 5, None, [], {}, True]
    for i, target in enumerate(outside):
        folder = copy_of(good_folders["newest"], tmp_path / str(i))
        index = read(folder, INDEX)
        index["weight_map"]["model.norm.weight"] = target
        write(folder, INDEX, index)
        found = outcome(folder, figure)
        assert isinstance(found, str), target
        assert INDEX in found, found
        assert "the name of a file in this folder" in found, found


def test_a_shard_that_is_not_there_is_named(good_folders, tmp_path, figure):
    folder = copy_of(good_folders["newest"], tmp_path / "folder")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "has no model-00002-of-00002.safetensors" in outcome(folder, figure)


# --------------------------------------------------------------------------------------- weights


def with_weights(good: Path, folder: Path, **changed: torch.Tensor) -> Path:
    """A copy of a folder with some tensors replaced."""
    copy_of(good, folder)
    tensors = load_file(good / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({**tensors, **changed}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.int32, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "visual.merger.ln_q.weight"])
def test_integer_and_boolean_weights_are_refused_by_name(good_folders, tmp_path, dtype, name):
    shape = load_file(TINY / "model.safetensors")[name].shape
    changed = {name: torch.ones(shape).to(dtype)}
    folder = with_weights(good_folders["official"], tmp_path / "folder", **changed)
    expected = rf"model\.safetensors: {name} is stored in [A-Z0-9_]+; only F32, BF16, F16, F64"
    with pytest.raises(ValueError, match=expected):
        answer(folder)


def small_names() -> list[str]:
    return [name for name, t in load_file(TINY / "model.safetensors").items() if t.ndim == 1]


def test_damaged_norms_and_biases_are_refused_at_load_by_name(good_folders, tmp_path, amount):
    names = small_names()
    random.Random(0).shuffle(names)
    tensors = load_file(TINY / "model.safetensors")
    for i, name in enumerate(names[: amount(6, 60)]):
        for value in (math.nan, math.inf, -math.inf, 0.0):
            is_norm = "norm" in name or "ln_q" in name
            if value == 0 and not (is_norm and name.endswith("weight")):
                continue  # a bias may be zero
            changed = tensors[name].clone()
            if value == 0:
                changed.zero_()
            else:
                changed[len(changed) // 2] = value
            folder = tmp_path / f"{i} {value}"
            with_weights(good_folders["official"], folder, **{name: changed})
            with pytest.raises(ValueError, match=rf"model\.safetensors: {name} ") as error:
                answer(folder)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.mlp.down_proj.weight",
        "visual.blocks.0.mlp.fc1.weight",
    ],
)
def test_nan_in_a_matrix_is_named_when_the_logits_show_it(good_folders, tmp_path, dtype, name):
    matrix = load_file(TINY / "model.safetensors")[name].clone()
    matrix[:] = math.nan
    folder = with_weights(good_folders["official"], tmp_path / "folder", **{name: matrix})
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype, device_map="cpu")
    prompt = {"input_ids": torch.tensor([[1, 699, 702, 700, 2]])}
    prompt["pixel_values"] = torch.randn(4, 1176)
    prompt["image_grid_thw"] = torch.tensor([[1, 2, 2]])
    with pytest.raises(ValueError, match=f"torch.{dtype} are not finite: {name} holds") as error:
        model.generate(**prompt, max_new_tokens=2)
    assert "load" not in str(error.value)


def test_pixel_values_that_are_not_finite_are_not_blamed_on_the_weights(good_folders):
    model = Qwen2VLForConditionalGeneration.from_pretrained(good_folders["official"])
    prompt = {"input_ids": torch.tensor([[1, 699, 702, 700, 2]])}
    prompt["image_grid_thw"] = torch.tensor([[1, 2, 2]])
    prompt["pixel_values"] = torch.full((4, 1176), math.nan)
    with pytest.raises(ValueError, match="pixel_values has 4704 values that are NaN"):
        model.generate(**prompt, max_new_tokens=2)


def test_logits_that_are_all_equal_are_refused_with_the_zero_matrix(good_folders, tmp_path):
    name = "model.embed_tokens.weight"  # the tied head
    zeros = torch.zeros_like(load_file(TINY / "model.safetensors")[name])
    folder = with_weights(good_folders["official"], tmp_path / "folder", **{name: zeros})
    with pytest.raises(ValueError, match=f"all logits are equal: {name} is all zero"):
        answer(folder)


def test_broken_safetensors_are_refused_by_name(good_folders, tmp_path, figure):
    good = (TINY / "model.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    contents = {
        "empty": b"",
        "seven bytes": good[:7],
        "a header only": good[: 8 + length],
        "one byte less": good[:-1],
        "one byte more": good + b"x",
        "a huge header": struct.pack("<Q", 2**60) + good[8:],
        "a large header": struct.pack("<Q", 50_000_000) + b" " * 50_000_000,
        "no JSON": struct.pack("<Q", 4) + b"abcd",
        "a page": b"<!DOCTYPE html><html>Not found</html>" * 10,
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }
    for i, (kind, content) in enumerate(contents.items()):
        folder = copy_of(good_folders["official"], tmp_path / str(i))
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(content)
        found = outcome(folder, figure)
        assert isinstance(found, str), kind
        assert "model.safetensors" in found, (kind, found)


# --------------------------------------------------------------------------- sizes that don't agree

DISAGREEMENTS = [
    ("config.json", ("num_attention_heads",), 5, "num_attention_heads is 5"),
    ("config.json", ("num_key_value_heads",), 4, "num_key_value_heads is 4"),
    ("config.json", ("rope_scaling", "mrope_section"), [4, 6, 7], "mrope_section is [4, 6, 7]"),
    ("config.json", ("rope_scaling", "mrope_section"), [16, 16, -16], "mrope_section[2] is -16"),
    ("config.json", ("rope_scaling", "mrope_section"), [16, 0], "mrope_section is [16, 0]"),
    ("config.json", ("head_dim",), 64, "head_dim is 64; it must be 32"),
    ("config.json", ("partial_rotary_factor",), 0.5, "partial_rotary_factor is 0.5"),
    ("config.json", ("vision_config", "num_heads"), 64, "vision_config.num_heads is 64"),
    ("config.json", ("vision_config", "num_heads"), 5, "vision_config.num_heads is 5"),
    ("config.json", ("vision_config", "hidden_size"), 128, "vision_config.hidden_size is 128"),
    ("config.json", ("vision_config", "patch_size"), 13, "vision_config.patch_size"),
    ("config.json", ("vision_config", "spatial_merge_size"), 0, "spatial_merge_size is 0"),
    ("config.json", ("vision_config", "depth"), 10**8, "vision_config.depth is 100000000"),
    ("config.json", ("vision_config", "depth"), 5, "vision_config.depth"),
    ("config.json", ("num_hidden_layers",), 10**8, "num_hidden_layers is 100000000"),
    ("config.json", ("num_hidden_layers",), 3, "num_hidden_layers"),
    ("config.json", ("vocab_size",), 10**12, "vocab_size is 1000000000000"),
    ("config.json", ("vocab_size",), 705, "vocab_size"),
    ("config.json", ("hidden_size",), 10**6, "hidden_size"),
    ("config.json", ("intermediate_size",), 2**20, "intermediate_size"),
    ("config.json", ("image_token_id",), 704, "image_token_id is 704"),
    ("config.json", ("image_token_id",), 703, "video_token_id is 703"),
    ("config.json", ("vision_start_token_id",), 700, "vision_end_token_id is 700"),
    ("config.json", ("eos_token_id",), 704, "eos_token_id is 704"),
    ("config.json", ("eos_token_id",), [692, 704], "eos_token_id is 704"),
    ("config.json", ("bos_token_id",), 704, "bos_token_id is 704"),
    ("config.json", ("quantization_config",), "awq", "quantization_config is 'awq'"),
    ("config.json", ("quantization_config",), {"bits": 4}, "quantization"),
    ("config.json", ("layer_types",), ["sliding_attention"], "layer_types is 'sliding_attention'"),
    ("config.json", ("torch_dtype",), "float8_e4m3fn", "float8_e4m3fn"),
    ("generation_config.json", ("eos_token_id",), 704, "eos_token_id is 704"),
    ("generation_config.json", ("pad_token_id",), 704, "pad_token_id is 704"),
    ("config.json", ("image_token_id",), 13, "image_token_id is 13; it must be 702"),
    ("config.json", ("video_token_id",), 13, "video_token_id is 13; it must be 703"),
    ("config.json", ("vision_end_token_id",), 13, "vision_end_token_id is 13; it must be 700"),
    ("preprocessor_config.json", ("patch_size",), 13, "patch_size is 13; it must be 14"),
    ("preprocessor_config.json", ("merge_size",), 0, "merge_size is 0"),
    ("preprocessor_config.json", ("merge_size",), 3, "merge_size is 3; it must be 2"),
    ("preprocessor_config.json", ("temporal_patch_size",), 1, "temporal_patch_size is 1"),
    ("preprocessor_config.json", ("min_pixels",), 78401, "min_pixels is 78401; it must be at most"),
    ("preprocessor_config.json", ("image_mean",), [0.5], "image_mean is [0.5]"),
    ("preprocessor_config.json", ("image_mean",), 0.5, "image_mean is 0.5"),
    ("preprocessor_config.json", ("image_std",), [0.5, 0.5, 0], "image_std[2] is 0"),
    ("preprocessor_config.json", ("size",), {"height": 4, "width": 4}, "size is {'height': 4"),
    ("preprocessor_config.json", ("size",), 448, "size is 448"),
    ("preprocessor_config.json", ("do_resize",), False, "do_resize is False"),
    ("preprocessor_config.json", ("do_normalize",), False, "do_normalize is False"),
    ("preprocessor_config.json", ("do_rescale",), False, "do_rescale is False"),
    ("preprocessor_config.json", ("rescale_factor",), 1, "rescale_factor is 1"),
    ("preprocessor_config.json", ("resample",), 2, "resample is 2"),
    ("video_preprocessor_config.json", ("patch_size",), 16, "patch_size is 16"),
    ("video_preprocessor_config.json", ("max_frames",), 3, "min_frames is 4"),
    ("video_preprocessor_config.json", ("image_mean",), [0.5] * 3, "image_mean is [0.5, 0.5, 0.5]"),
]


@pytest.mark.parametrize(("name", "path", "value", "expected"), DISAGREEMENTS)
def test_sizes_that_do_not_go_together_are_refused_by_name(
    good_folders, tmp_path, figure, name, path, value, expected
):
    folder = copy_of(good_folders["official"], tmp_path / "folder")
    content = read(folder, name)
    write(folder, name, mutated(content, path, value))
    found = outcome(folder, figure)
    assert isinstance(found, str)
    assert expected in found, found
    assert name in found or "float8" in expected, found
