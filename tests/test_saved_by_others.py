"""Folders that other tools have saved load here, and give what the folder before gave.

What eleven versions of transformers write is stored (helpers/saved_inputs.py). The weights are
random, and the reference computes with the same.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import load
from processor import BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from tests.helpers import saved_folders as folders
from tests.helpers.reference import TOLERANCE, error, reference_config
from tests.helpers.saved_folders import PLAIN, SAVED, Style, write_json
from tests.helpers.saved_inputs import (
    IMAGE_SIZES,
    NEWEST,
    PROCESSORS,
    SIZES,
    VERSIONS,
    VIDEO_FRAMES,
    VIDEO_SIZES,
    gradient,
    small_config,
)

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def load_model(folder: Path) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, device_map="cpu")


def process(folder: Path) -> BatchFeature:
    """What a folder's processor makes of the one conversation."""
    processor = Qwen2VLProcessor.from_pretrained(folder)
    return processor.apply_chat_template(
        folders.conversation(), add_generation_prompt=True, tokenize=True, return_dict=True
    )


def logits(model: torch.nn.Module, inputs: BatchFeature) -> Tensor:
    with torch.no_grad():
        return model(**folders.model_inputs(inputs)).logits


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def small(request, tmp_path_factory) -> tuple[str, transformers.PreTrainedModel, BatchFeature]:
    """ "tied" or "untied", the reference's model, and the inputs of the plain folder."""
    tied = request.param
    model = folders.small_reference(tied)
    folder = tmp_path_factory.mktemp("plain")
    write_json(folder / "config.json", small_config(tied))
    folders.write_plain_processor(folder)
    return "tied" if tied else "untied", model, process(folder)


@pytest.fixture(scope="module")
def versions(amount) -> list[str]:
    """All versions with --full; by default those that wrote another model than the one before."""
    if amount(0, 1):
        return VERSIONS
    return different_versions(("tied/", "untied/"))


def different_versions(prefixes: tuple[str, ...]) -> list[str]:
    """The versions that wrote something else than all before, of what has such a name."""
    chosen, seen = [], []
    for version in VERSIONS:
        written = {}
        for name, content in SAVED[version].items():
            if name.startswith(prefixes):
                written[name] = content
        if written and written not in seen:
            chosen.append(version)
        seen.append(written)
    return chosen


# ------------------------------------------------------------------------------------ config.json


def read_config(folder: Path, content: dict) -> Qwen2VLConfig:
    write_json(folder / "config.json", content)
    return Qwen2VLConfig.from_pretrained(folder)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_official_configs_saved_by_any_version_of_transformers_say_the_same(
    tmp_path, version, size
):
    # 4.51 writes all fields in the flat form; the next test compares them with the official ones.
    expected = read_config(tmp_path, SAVED["4.51.3"][f"{size}/config.json"])
    found = read_config(tmp_path, SAVED[version][f"{size}/config.json"])
    assert found == expected
    assert load.read_config(tmp_path)["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("size", SIZES)
def test_saved_configs_say_what_the_official_ones_say(official, tmp_path, size):
    expected = read_config(tmp_path, read_json(official / f"config-{size}.json"))
    for version in VERSIONS:
        found = read_config(tmp_path, SAVED[version][f"{size}/config.json"])
        assert found == expected, version


@pytest.mark.parametrize("version", ["4.45.2", "4.48.3", "4.49.0"])
def test_what_the_stored_configs_leave_out_is_not_there_by_chance(version):
    """These versions drop what equals the class's defaults, which the tests above rely on."""
    for size in SIZES:
        vision = SAVED[version][f"{size}/config.json"]["vision_config"]
        assert "depth" not in vision and "embed_dim" not in vision
        assert ("hidden_size" in vision) == (size != "7b")


# ----------------------------------------------------------------------------------------- limits


def grids(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """The grids that a folder's processor gives to the images and videos of the stored ones."""
    processor = Qwen2VLProcessor.from_pretrained(folder)
    images = [Image.fromarray(gradient(*size)) for size in IMAGE_SIZES]
    videos = [[Image.fromarray(gradient(*size))] * VIDEO_FRAMES for size in VIDEO_SIZES]
    image_output = processor.image_processor(images)
    text = "<|vision_start|><|video_pad|><|vision_end|>" * len(videos)
    video_output = processor(text=[text], videos=videos)
    return image_output["image_grid_thw"].tolist(), video_output["video_grid_thw"].tolist()


@pytest.mark.parametrize("processor", PROCESSORS)
def test_limits_are_those_of_the_version_that_saved_them(tmp_path, processor, amount):
    plain = tmp_path / "plain"
    plain.mkdir()
    write_json(plain / "config.json", small_config(tied=True))
    folders.write_plain_processor(plain, processor)
    plain_video_grids = grids(plain)[1]

    for version in VERSIONS if amount(0, 1) else different_versions((f"{processor}/",)):
        if not folders.has_processor(version, processor):
            continue
        saved = tmp_path / version
        saved.mkdir()
        write_json(saved / "config.json", small_config(tied=True))
        folders.write_saved_processor(saved, version, processor)
        image_grids, video_grids = grids(saved)
        assert image_grids == SAVED[version][f"{processor}/image grids"], version
        if processor == "video":
            assert video_grids == SAVED[version]["video/video grids"], version
        else:
            # Limits that only repeat those of images are taken as absent; the version obeys them.
            assert video_grids == plain_video_grids, version
            assert video_grids != SAVED[version][f"{processor}/video grids"], version


def test_versions_from_4_52_on_have_limits_of_their_own_for_videos():
    """Those that the test above tries "video" with."""
    found = [version for version in VERSIONS if folders.has_processor(version, "video")]
    assert found == ["4.52.4", "4.55.4", "4.57.6", "5.24.0"]


def test_the_official_tokenizer_saved_by_any_version_gives_the_same_ids(official, tmp_path, amount):
    text = "Is it 3.5 € or 私たち? <|object_ref_start|>the dog<|object_ref_end|> <|im_end|>\n\n"
    reference = transformers.AutoTokenizer.from_pretrained(official)
    for version in VERSIONS if amount(0, 1) else [VERSIONS[0], NEWEST]:
        folder = tmp_path / version
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((official / "tokenizer.json").read_bytes())
        for name, content in folders.saved_files(version, "tokenizer").items():
            folders.write_content(folder / name, content)
        tokenizer = load.load_tokenizer(folder)
        assert tokenizer.encode(text).ids == reference(text)["input_ids"], version
        for token in CONTROL_TOKENS:
            expected = reference.convert_tokens_to_ids(token)
            assert tokenizer.token_to_id(token) == expected, f"{version}: {token}"


# ----------------------------------------------------------------------------------------- models


def named_as(names: list[str], model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """The reference's tensors under the names that a version has written."""
    tensors = folders.official_tensors(model)
    styles = [folders.NAME_STYLES["official"], folders.NAME_STYLES["in memory"]]
    renamed = {}
    for official_name, tensor in tensors.items():
        for style in styles:
            if style(official_name) in names:
                renamed[style(official_name)] = tensor
    assert sorted(renamed) == names
    return renamed


@pytest.mark.parametrize("names", ["names in the file", "names in memory"])
def test_a_model_saved_by_any_version_gives_the_references_logits(tmp_path, small, versions, names):
    tying, theirs, inputs = small
    expected = logits(theirs, inputs)
    for version in versions:
        folder = tmp_path / version
        folder.mkdir()
        write_json(folder / "config.json", SAVED[version][f"{tying}/config.json"])
        tensors = named_as(SAVED[version][f"{tying}/{names}"], theirs)
        folders.write_weights(folder, tensors)
        ours = load_model(folder)
        assert ours.dtype == torch.float32, version
        assert error(logits(ours, inputs), expected) <= TOLERANCE, version


@pytest.mark.parametrize("names", ["names in the file", "names in memory"])
def test_the_reference_reads_the_weights_of_these_folders_alike(tmp_path, small, versions, names):
    """So the names above are given to the right tensors."""
    tying, theirs, _ = small
    config = reference_config(small_config(tying == "tied"))
    for version in versions:
        folder = tmp_path / version
        folder.mkdir()
        write_json(folder / "config.json", small_config(tying == "tied"))
        folders.write_weights(folder, named_as(SAVED[version][f"{tying}/{names}"], theirs))
        again, info = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            folder, config=config, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"], version
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), f"{version}: {name}"


@pytest.mark.parametrize("style", list(folders.NAME_STYLES))
def test_names_of_tensors_in_any_style_map_to_the_official_ones(tmp_path, small, style):
    tying, theirs, inputs = small
    expected = logits(theirs, inputs)
    for tied_style in folders.TIED_STYLES if tying == "tied" else (None,):
        folder = tmp_path / str(tied_style)
        folder.mkdir()
        write_json(folder / "config.json", small_config(tying == "tied"))
        tensors = folders.rename(folders.official_tensors(theirs), style, tied_style)
        folders.write_weights(folder, tensors)
        assert error(logits(load_model(folder), inputs), expected) <= TOLERANCE, tied_style


@pytest.mark.parametrize("ours_or_theirs", ["ours", "theirs"])
def test_a_model_written_by_safetensors_save_model_loads(tmp_path, small, ours_or_theirs):
    """Of two tied matrices it keeps the one whose name comes first, lm_head.weight."""
    tying, theirs, inputs = small
    model = theirs
    if ours_or_theirs == "ours":
        config = Qwen2VLConfig.from_dict(small_config(tying == "tied"))
        model = Qwen2VLForConditionalGeneration(config).eval()
        model.load_state_dict(folders.official_tensors(theirs))
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    write_json(tmp_path / "config.json", small_config(tying == "tied"))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    has_table = any(name.endswith("embed_tokens.weight") for name in names)
    assert "lm_head.weight" in names and has_table == (tying == "untied")
    assert error(logits(load_model(tmp_path), inputs), logits(theirs, inputs)) <= TOLERANCE


def test_a_folder_saved_again_after_float_is_read_in_float32(tmp_path, small):
    tying, theirs, inputs = small
    reference = transformers.Qwen2VLForConditionalGeneration
    config = {**small_config(tying == "tied"), "torch_dtype": "bfloat16"}
    half = reference(reference_config(config))
    half.load_state_dict(theirs.state_dict())
    half.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    whole = reference.from_pretrained(tmp_path / "half", dtype="auto").float()
    # A step of training: values that bfloat16 does not have.
    with torch.no_grad():
        for p in whole.parameters():
            p.mul_(1.0001)
    whole.save_pretrained(tmp_path / "whole")
    content = read_json(tmp_path / "whole" / "config.json")
    assert content["dtype"] == "float32"
    assert content["text_config"]["dtype"] == "bfloat16"

    ours = load_model(tmp_path / "whole")
    assert ours.dtype == torch.float32
    assert error(logits(ours, inputs), logits(whole.eval(), inputs)) <= TOLERANCE
    assert load_model(tmp_path / "half").dtype == torch.bfloat16


# ---------------------------------------------------------------------------------- whole folders


def write_expected(folder: Path, tied: bool, processor: str, tensors: dict[str, Tensor]) -> None:
    """The folder in the official layout that another one must equal."""
    folder.mkdir()
    config = small_config(tied)
    write_json(folder / "config.json", config)
    folders.write_plain_processor(folder, processor)
    folders.write_weights(
        folder, folders.rename(tensors, "official", "embedding" if tied else None)
    )
    greedy = {"eos_token_id": [692, 690], "pad_token_id": 690, "do_sample": False}
    write_json(folder / "generation_config.json", greedy)


def outputs(folder: Path) -> dict[str, Tensor]:
    """What a folder gives: the tensors of its processor, logits, and a greedy answer."""
    inputs = process(folder)
    model = load_model(folder)
    given = dict(inputs)
    given["logits"] = logits(model, inputs)
    given["answer"] = model.generate(**inputs, max_new_tokens=6)
    return given


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: object) -> None:
    """Same ids, pixels, grids, logits, and answer; `what` was tried."""
    assert found.keys() == expected.keys(), what
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{name}: {what}"


def test_a_whole_folder_saved_by_any_version_equals_the_plain_one(tmp_path, small, versions):
    tying, theirs, _ = small
    tensors = folders.official_tensors(theirs)
    write_expected(tmp_path / "plain", tying == "tied", "official", tensors)
    expected = outputs(tmp_path / "plain")
    for version in versions:
        saved = tmp_path / version
        saved.mkdir()
        for name, content in folders.saved_files(version, tying).items():
            folders.write_content(saved / name, content)
        folders.write_saved_processor(saved, version)
        names = SAVED[version][f"{tying}/names in the file"]
        folders.write_weights(saved, named_as(names, theirs))
        assert_same(outputs(saved), expected, version)


def test_the_newest_version_writes_other_files_than_the_official_repositories():
    """What the test above is about, in its last case."""
    names = SAVED[NEWEST]["official/names"]
    assert "processor_config.json" in names and "chat_template.jinja" in names
    assert "preprocessor_config.json" not in names


def test_folders_that_combine_what_tools_write_equal_the_plain_one(tmp_path, amount):
    rng = random.Random(15)
    tensors_of = {}
    for tied in (True, False):
        tensors_of[tied] = folders.official_tensors(folders.small_reference(tied))
    expected = {}
    for i in range(amount(8, 80)):
        style = folders.draw_style(rng)
        tensors = tensors_of[style.tied]
        kind = f"{style.tied}-{style.processor}"
        if kind not in expected:
            write_expected(tmp_path / kind, style.tied, style.processor, tensors)
            expected[kind] = outputs(tmp_path / kind)
        folder = tmp_path / str(i)
        folders.write_folder(folder, style, tensors)
        assert_same(outputs(folder), expected[kind], style)


def test_the_styles_that_are_combined_cover_every_choice():
    """So that no choice is there in name only."""
    rng = random.Random(15)
    styles = [folders.draw_style(rng) for _ in range(80)]
    for field in dataclasses.fields(Style):
        found = {getattr(style, field.name) for style in styles}
        choices = {
            "config": {PLAIN, *VERSIONS},
            "processor_version": {PLAIN, *VERSIONS},
            "processor": set(PROCESSORS),
            "names": set(folders.NAME_STYLES),
            "tied_names": {None, *folders.TIED_STYLES},
            "tokenizer": set(folders.TOKENIZER_STYLES),
            "template": set(folders.TEMPLATE_STYLES),
            "dtype": set(folders.DTYPE_STYLES),
        }
        assert found >= choices.get(field.name, set()), field.name
