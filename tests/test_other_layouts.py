"""Folders as other tools write them: names, limits, dtypes, end tokens and defaults, at random."""

import copy
import json
import logging
import random
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import load
from processor import Qwen2VLImageProcessor, Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration, VisionConfig
from tests.helpers.reference import random_config, random_pair
from tests.helpers.saved_folders import write_weights

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
TABLE = "model.embed_tokens.weight"


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def small_weights(seed: int, tied: bool = False) -> tuple[dict, dict[str, Tensor]]:
    """A small config.json and random weights under official names, a tied head left out."""
    ours, _ = random_pair(seed, tied=tied)
    tensors = {name: p.detach().clone() for name, p in ours.named_parameters()}
    return random_config(seed, tied), tensors


def load_model(folder: Path | str, dtype: str = "auto") -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, device_map="cpu")


# ----------------------------------------------------------------------------------------- names

# What a tool puts in place of "visual.", "model." and "lm_head.".
STYLES = [
    ("visual.", "model.", "lm_head."),
    ("model.visual.", "model.language_model.", "lm_head."),
    ("visual.", "language_model.model.", "language_model.lm_head."),
    ("model.visual.", "model.language_model.model.", "model.language_model.lm_head."),
    ("visual.", "language_model.", "lm_head."),
]
LEFTOVERS = ["module.", "base_model.model.", "_orig_mod.", "_fsdp_wrapped_module."]


def rename(name: str, style: tuple[str, str, str], leftovers: str, inner: bool) -> str:
    """An official name in a style, with leftovers in front and maybe one in the middle."""
    for official, other in zip(STYLES[0], style, strict=True):
        if name.startswith(official):
            name = other + name.removeprefix(official)
            break
    if inner:
        name = name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
    return leftovers + name


def test_names_of_any_tool_load_when_they_map_one_to_one(tmp_path, amount):
    rng = random.Random(3)
    for i in range(amount(25, 300)):
        tied = rng.random() < 0.5
        config, tensors = small_weights(i % 7, tied)
        saved = dict(tensors)
        # A tied file has the one matrix, the other, or both.
        tied_file = rng.choice(["table", "head", "both"]) if tied else "untied"
        if tied_file in ("head", "both"):
            saved[HEAD] = saved[TABLE].clone()
        if tied_file == "head":
            del saved[TABLE]
        style = rng.choice(STYLES)
        leftovers = "".join(rng.choice(LEFTOVERS) for _ in range(rng.randint(0, 3)))
        inner = rng.random() < 0.3
        saved = {rename(name, style, leftovers, inner): t for name, t in saved.items()}
        if rng.random() < 0.3:  # a table of frequencies, which some tools save
            saved[leftovers + "model.rotary_emb.inv_freq"] = torch.ones(4)

        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder, "config.json", config)
        write_weights(folder, saved, shards=rng.choice([1, 3]))
        variant = f"{i}: {style} {leftovers!r} {inner=} {tied_file}"
        found = dict(load_model(folder).named_parameters())
        assert found.keys() == tensors.keys(), variant
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor), f"{variant}: {name}"


def test_names_that_do_not_map_one_to_one_are_listed_five_at_most(tmp_path, amount):
    rng = random.Random(4)
    for i in range(amount(10, 100)):
        config, tensors = small_weights(i % 7, tied=False)
        names = rng.sample(sorted(tensors), rng.randint(1, 9))
        kind = rng.choice(["missing", "strange", "twice"])
        for name in names:
            if kind == "missing":
                del tensors[name]
            elif kind == "strange":
                tensors[f"other.{name}"] = tensors.pop(name)
            else:
                tensors[f"module.{name}"] = tensors[name].clone()
        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder, "config.json", config)
        write_weights(folder, tensors)
        with pytest.raises(ValueError) as error:
            load_model(folder)
        message = str(error.value)
        assert "\n" not in message
        assert str(folder) in message
        assert any(name in message for name in names), (kind, message)
        count = {"missing": len(names), "strange": 2 * len(names)}.get(kind, 0)
        assert message.count(", should be ") == min(5, count), (kind, message)


# ---------------------------------------------------------------------------------------- limits

SPELLINGS = {
    "min_pixels": ["min_pixels", "size.shortest_edge", "size.min_pixels"],
    "max_pixels": ["max_pixels", "size.longest_edge", "size.max_pixels"],
}


def draw_section(rng: random.Random) -> tuple[dict, dict]:
    """A section with limits in some spellings, and the limits that hold."""
    section: dict = {}
    expected = {}
    values = {"min_pixels": 784 * rng.randint(1, 9), "max_pixels": 784 * rng.randint(40, 90)}
    for name, spellings in SPELLINGS.items():
        stated = [spelling for spelling in spellings if rng.random() < 0.5]
        for i, spelling in enumerate(stated):
            value = values[name] + 784 * i  # the first counts
            parent, _, child = spelling.rpartition(".")
            (section.setdefault(parent, {}) if parent else section)[child] = value
        if stated:
            expected[name] = values[name]
    if rng.random() < 0.2:
        section.setdefault("size", None)
    return section, expected


def test_limits_are_obeyed_in_every_spelling_and_every_file(tmp_path, amount):
    rng = random.Random(5)
    for i in range(amount(60, 1000)):
        image, of_images = draw_section(rng)
        video, of_videos = draw_section(rng)
        has_video = rng.random() < 0.6
        layout = rng.choice(["older", "newest", "both"])
        folder = tmp_path / str(i)
        folder.mkdir()
        if layout == "older":
            write(folder, "preprocessor_config.json", image)
            if has_video:
                write(folder, "video_preprocessor_config.json", video)
        else:
            both = {"image_processor": image}
            if has_video:
                both["video_processor"] = video
            write(folder, "processor_config.json", both)
        if layout == "both":  # left over from an older save
            older = {"min_pixels": 1000, "max_pixels": 1_000_000}
            write(folder, "preprocessor_config.json", older)
        variant = f"{layout}: {image} {video if has_video else None}"

        found, found_video = load.read_media_config(folder)
        limits = {name: found[name] for name in SPELLINGS if name in found}
        assert limits == of_images, variant
        video_limits = {name: found_video[name] for name in SPELLINGS if name in found_video}
        is_repeated = of_videos == of_images
        assert video_limits == (of_videos if has_video and not is_repeated else {}), variant
        processor = Qwen2VLImageProcessor.from_pretrained(folder)
        for name, value in of_images.items():
            assert getattr(processor, name) == value, variant
        # The reference reads the same from the spelling that it wrote at all times.
        size = image.get("size")
        has_edges = size is None or {"shortest_edge", "longest_edge"} <= size.keys()
        if layout == "older" and has_edges and {"min_pixels", "max_pixels"} <= image.keys():
            theirs = transformers.Qwen2VLImageProcessor.from_pretrained(folder)
            for name in SPELLINGS:
                assert getattr(theirs, name) == getattr(processor, name), variant


def test_limits_of_videos_that_repeat_those_of_images_are_absent_unless_total_pixels_is_there(
    tmp_path, amount
):
    rng = random.Random(6)
    for _ in range(amount(20, 200)):
        smallest, largest = 784 * rng.randint(1, 9), 784 * rng.randint(40, 90)
        spelt = [
            {"min_pixels": smallest, "max_pixels": largest},
            {"size": {"shortest_edge": smallest, "longest_edge": largest}},
            {"size": {"min_pixels": smallest, "max_pixels": largest}},
        ]
        image, video = rng.choice(spelt), dict(rng.choice(spelt))
        change = rng.choice(["none", "total_pixels", "other"])
        if change == "total_pixels":
            video["total_pixels"] = 784 * 1000
        if change == "other":
            video["max_pixels"] = largest + 784
        video["fps"] = 1.5
        write(tmp_path, "preprocessor_config.json", image)
        write(tmp_path, "video_preprocessor_config.json", video)
        _, found = load.read_media_config(tmp_path)
        assert ("max_pixels" in found) == (change != "none"), (image, video)
        assert ("min_pixels" in found) == (change != "none"), (image, video)
        assert found["fps"] == 1.5


def test_a_size_that_is_not_understood_is_refused_by_name(tmp_path):
    sizes: list[object] = [
        {"height": 448, "width": 448},
        {"shortest_edge": 784, "longest_edge": 78400, "height": 2},
        {"shortest": 784},
        {"longest_edge": "78400"},
        {"shortest_edge": [784]},
        {"shortest_edge": -784},
        {"shortest_edge": True},
        {"shortest_edge": 78400, "longest_edge": 784},
        448,
        [448, 448],
        "448",
        True,
    ]
    for size in sizes:
        write(tmp_path, "preprocessor_config.json", {"size": size})
        with pytest.raises(ValueError, match=r"preprocessor_config\.json: (size|min_pixels)"):
            Qwen2VLImageProcessor.from_pretrained(tmp_path)
    # Null and neutral values change nothing.
    neutral = {"size": {"height": None, "longest_edge": 78400}, "do_resize": True, "resample": 3}
    neutral |= {"rescale_factor": 1 / 255, "crop_size": None, "do_center_crop": None}
    write(tmp_path, "preprocessor_config.json", neutral)
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path).max_pixels == 78400


# ---------------------------------------------------------------------------------------- dtypes

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def test_auto_dtype_is_that_of_transformers_and_a_difference_is_said(tmp_path, amount, caplog):
    rng = random.Random(7)
    for i in range(amount(10, 120)):
        config, tensors = small_weights(i % 7)
        # Some files nest the decoder's fields, with a dtype of their own.
        if rng.random() < 0.5:
            theirs = transformers.Qwen2VLConfig(**copy.deepcopy(config))
            theirs.save_pretrained(tmp_path)
            config = json.loads((tmp_path / "config.json").read_text())
            config["text_config"]["dtype"] = rng.choice(list(NAMES))
            config["vision_config"]["dtype"] = rng.choice(list(NAMES))
        for key in ("dtype", "torch_dtype"):
            config.pop(key, None)
            if rng.random() < 0.4:
                config[key] = rng.choice([*NAMES, None])
        # All tensors in one dtype, or each in its own.
        one = rng.choice(list(NAMES))
        is_mixed = rng.random() < 0.3
        for name in tensors:
            dtype = rng.choice(list(NAMES)) if is_mixed else one
            tensors[name] = tensors[name].to(NAMES[dtype])

        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder, "config.json", config)
        write_weights(folder, tensors, shards=rng.choice([1, 3]))
        stated = {key: config.get(key) for key in ("dtype", "torch_dtype")}
        variant = f"{stated} stored {'mixed' if is_mixed else one}"
        caplog.clear()
        with caplog.at_level(logging.WARNING, "qwen2vl"):
            ours = load_model(folder)
        reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype="auto"
        )
        # Its towers may get the nested dtypes and its parts then differ; the head gets the one
        # that holds for the whole.
        assert ours.dtype == reference.lm_head.weight.dtype, variant
        notes = [r.getMessage() for r in caplog.records if "weights are stored" in r.getMessage()]
        is_different = any(t.dtype != ours.dtype for t in tensors.values())
        assert len(notes) == is_different, (variant, notes)
        for note in notes:
            assert str(folder) in note
            assert "\n" not in note


def test_no_line_says_that_the_embedded_checkpoint_is_stored_in_bfloat16(
    tmp_path, caplog, monkeypatch
):
    config, tensors = small_weights(1)
    write(tmp_path, "config.json", config | {"torch_dtype": "float32"})
    write_weights(tmp_path, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    with caplog.at_level(logging.WARNING, "qwen2vl"):
        with monkeypatch.context() as embedded:
            embedded.setattr(load, "EMBEDDED", tmp_path)
            assert load_model("tiny").dtype == torch.float32
        assert not caplog.text
        load_model(tmp_path)
    assert "stored in BF16 and read in float32" in caplog.text


def test_float64_weights_are_converted_and_a_line_says_so(tmp_path, caplog):
    config, tensors = small_weights(1)
    write(tmp_path, "config.json", config)
    write_weights(tmp_path, {name: tensor.double() for name, tensor in tensors.items()})
    with caplog.at_level(logging.WARNING, "qwen2vl"):
        model = load_model(tmp_path)
    assert model.dtype == torch.float32
    assert "stored in F64 and read in float32" in caplog.text
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name]), name


# ------------------------------------------------------------------------------------ end tokens


def draw_end_tokens(rng: random.Random, folder: Path, config: dict) -> set[int]:
    """Write files that name end tokens in some of the places that can; return all of them."""
    vocabulary = config["vocab_size"]
    ids = rng.sample(range(vocabulary - 10), 6)
    named = set()

    def one_or_list(token_id: int) -> object:
        return rng.choice([token_id, [token_id], [token_id, ids[5]]])

    config["eos_token_id"] = None
    if rng.random() < 0.5:
        config["eos_token_id"] = one_or_list(ids[0])
    generation = {"temperature": None, "do_sample": None, "eos_token_id": None}
    if rng.random() < 0.5:
        generation["eos_token_id"] = one_or_list(ids[1])
    for stated in (config["eos_token_id"], generation["eos_token_id"]):
        if stated is not None:
            named |= set(stated if isinstance(stated, list) else [stated])
    if rng.random() < 0.7:
        write(folder, "generation_config.json", generation)
    elif generation["eos_token_id"] is not None:
        stated = config["eos_token_id"]
        named = set() if stated is None else set(stated if isinstance(stated, list) else [stated])

    # The tokenizer's, by the small file or the large one.
    settings: dict = {}
    large: dict = {"added_tokens": [], "model": {"vocab": {}}}
    tokens = {"<|im_end|>": ids[2], "<end>": ids[3]}
    if rng.random() < 0.5:
        settings["eos_token"] = rng.choice(["<end>", {"content": "<end>", "lstrip": False}])
    else:
        tokens.pop("<end>")
    for content, token_id in tokens.items():
        place = rng.choice(["decoder", "added", "vocabulary"])
        if place == "decoder":
            decoder = settings.setdefault("added_tokens_decoder", {})
            decoder[str(token_id)] = {"content": content, "special": True}
        elif place == "added":
            large["added_tokens"].append({"id": token_id, "content": content})
        else:
            large["model"]["vocab"][content] = token_id
        named.add(token_id)
    write(folder, "tokenizer_config.json", settings)
    write(folder, "tokenizer.json", large)
    return named


def as_set(value: int | list[int]) -> set[int]:
    return set(value) if isinstance(value, list) else {value}


def test_an_answer_ends_at_any_end_token_that_any_file_names(tmp_path, amount):
    rng = random.Random(8)
    for i in range(amount(12, 200)):
        config, tensors = small_weights(i % 7)
        folder = tmp_path / str(i)
        folder.mkdir()
        named = draw_end_tokens(rng, folder, config)
        write(folder, "config.json", config)
        write_weights(folder, tensors)
        model = load_model(folder)
        assert as_set(model.generation_config["eos_token_id"]) == named, i

        # The model is made to write one of them at once: it stops there, unless told otherwise.
        last = rng.choice(sorted(named))
        ids = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            first = int(model(ids).logits[0, -1].argmax())
            weight = model.lm_head.weight
            weight[[first, last]] = weight[[last, first]]
        assert model.generate(ids, max_new_tokens=5, do_sample=False).tolist() == [[1, 2, 3, last]]
        longer = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=[])
        assert longer.shape == (1, 8)

        # Saved and loaded again it is the same.
        model.save_pretrained(tmp_path / f"{i} again")
        again = load_model(tmp_path / f"{i} again")
        assert again.generation_config == model.generation_config, i


# -------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize("size", ["2b", "7b", "72b"])
def test_what_a_config_leaves_out_because_it_is_the_familys_default_is_filled_in(
    official, amount, size
):
    whole = json.loads((official / f"config-{size}.json").read_text())
    defaults = transformers.Qwen2VLConfig().vision_config.to_dict()
    expected = Qwen2VLConfig.from_dict(whole)
    rng = random.Random(9)
    for _ in range(amount(20, 300)):
        config = copy.deepcopy(whole)
        vision = config["vision_config"]
        dropped = []
        for name in list(vision):
            known = "in_channels" if name == "in_chans" else name
            if vision[name] == defaults.get(known) and rng.random() < 0.6:
                del vision[name]
                dropped.append(name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
            if rng.random() < 0.3:
                config[name] = None
        if not config["tie_word_embeddings"] and rng.random() < 0.5:
            del config["tie_word_embeddings"]
        assert Qwen2VLConfig.from_dict(config) == expected, dropped


def test_the_defaults_are_those_of_transformers():
    theirs = transformers.Qwen2VLConfig()
    for f in fields(VisionConfig):
        known = "in_channels" if f.name == "in_chans" else f.name
        assert f.default == getattr(theirs.vision_config, known), f.name
    ours = {f.name: f.default for f in fields(Qwen2VLConfig)}
    for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
        assert ours[name] == getattr(theirs, name), name


# ---------------------------------------------------------------------------- the whole processor


def test_tiny_still_obeys_its_own_limits_for_clips():
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    stated, _ = processor.video_defaults
    assert stated["max_pixels"] == 100 * 28 * 28
    assert stated["total_pixels"] == 24576 * 28 * 28
