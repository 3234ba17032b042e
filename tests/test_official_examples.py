"""The official examples run here with only imports, names and paths changed.

They are those of the README of QwenLM/Qwen2-VL at commit dcc62fea ("Using Transformers to Chat",
"More Usage Tips") and of the READMEs of qwen-vl-utils. What process_vision_info of qwen-vl-utils
returns is stored, and so are the ids, grids, pixel values and answers of transformers 4.57.6, with
the weights of "tiny" (helpers/official_examples.py). The documentation of transformers has a file
of its own, test_documentation.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from processor import BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tests.helpers import official_examples as examples
from tests.helpers.official_examples import (
    DESCRIBE,
    EXAMPLES,
    LATER,
    LIMITED,
    NEW_TOKENS,
    PROCESSOR_LIMITS,
    UTILS_VERSIONS,
)

PIXELS = ("pixel_values", "pixel_values_videos")
STORED = json.loads(examples.ANSWERS.read_text(encoding="utf-8"))
MESSAGES = examples.conversations()


def different_cases() -> list[tuple[str, str]]:
    """(version, name) of the examples for which process_vision_info returned what no other did."""
    cases, seen = [], []
    for version in UTILS_VERSIONS:
        for name, case in STORED[version].items():
            returned = (name, case["images"], case["videos"], case["kwargs"])
            if returned not in seen:
                cases.append((version, name))
            seen.append(returned)
    return cases


CASES = different_cases()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return examples.read_arrays()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """ "tiny" in the layout of the official repositories, with their limits."""
    folder = tmp_path_factory.mktemp("tiny")
    examples.write_tiny_folder(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(
        folder, torch_dtype="auto", device_map="cpu"
    )


@pytest.fixture(scope="module")
def processor(folder) -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained(folder)


# ----------------------------------------------------------------------- the steps of each example


def process_vision_info(version: str, name: str, arrays: dict[str, np.ndarray]) -> tuple:
    """(images, videos) as that version of qwen-vl-utils returned them for the example."""
    case = STORED[version][name]
    return examples.unpack(case["images"], arrays), examples.unpack(case["videos"], arrays)


def run(
    version: str,
    name: str,
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    arrays: dict[str, np.ndarray],
) -> tuple[list[str], BatchFeature, Tensor, list[str]]:
    """The example as it stands in the README: (prompts, inputs, new ids, answers)."""
    messages = MESSAGES[name]
    text = examples.rendered(processor, messages)
    image_inputs, video_inputs = process_vision_info(version, name, arrays)
    # In the first README none; in later ones video_kwargs, and for metadata that as well.
    further = STORED[version][name]["kwargs"]
    inputs = processor(
        text=text,
        images=image_inputs,
        videos=video_inputs,
        padding=True,
        return_tensors="pt",
        **further,
    )
    inputs = inputs.to("cpu")  # "cuda" in the README

    generated_ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    generated_ids_trimmed = [
        out_ids[len(in_ids) :]
        for in_ids, out_ids in zip(inputs.input_ids, generated_ids, strict=True)
    ]
    output_text = processor.batch_decode(
        generated_ids_trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text, inputs, torch.stack(generated_ids_trimmed), output_text


def assert_equals_transformers(
    version: str, name: str, inputs: BatchFeature, arrays: dict[str, np.ndarray]
) -> None:
    """Same tensors: ids, masks and grids equal, pixel values to 1e-6."""
    assert sorted(inputs) == STORED[version][name]["tensors"]
    for key, tensor in inputs.items():
        expected = arrays[f"{version}/{name}/{key}"]
        assert list(tensor.shape) == STORED[version][name][f"{key} shape"], key
        if key in PIXELS:
            assert np.abs(examples.sample(tensor.numpy()) - expected).max() <= 1e-6, key
        else:
            assert np.array_equal(tensor.numpy(), expected), key


@pytest.mark.parametrize(("version", "name"), CASES)
def test_example_gives_transformers_inputs_and_answer(
    version, name, folder, model, processor, arrays
):
    if name == LIMITED:
        processor = Qwen2VLProcessor.from_pretrained(folder, **PROCESSOR_LIMITS)
    text, inputs, new_ids, answers = run(version, name, model, processor, arrays)
    case = STORED[version][name]
    assert text == case["prompts"]
    assert_equals_transformers(version, name, inputs, arrays)
    assert new_ids.tolist() == arrays[f"{version}/{name}/answer_ids"].tolist()
    assert answers == case["answers"]


def test_a_batch_is_rendered_in_one_call_as_the_readme_of_qwen_vl_utils_does(processor):
    for name in ("batch", "utils, batch"):
        text = processor.apply_chat_template(
            MESSAGES[name], tokenize=False, add_generation_prompt=True
        )
        assert text == STORED["0.0.14"][name]["prompts"]


def test_the_stored_examples_are_all_examples_and_hold_every_kind_of_media(arrays):
    """So that a kind that the READMEs show is not left out: what is a float clip stays one."""
    assert set(STORED["0.0.14"]) == set(MESSAGES)
    assert set(STORED["0.0.8"]) == set(MESSAGES) - set(LATER)
    kinds = set()
    for version, name in CASES:
        for media in ("images", "videos"):
            kinds.update(kinds_of(STORED[version][name][media]))
    assert kinds == {"image", "torch.float32"}
    clip = examples.unpack(STORED["0.0.8"]["video"]["videos"], arrays)[0]
    assert clip.dtype == torch.float32 and clip.shape[1] == 3 and clip.max() > 100
    # What the later README hands on to the processor.
    assert STORED["0.0.14"]["video kwargs"]["kwargs"].keys() == {"do_sample_frames", "fps"}
    assert len(STORED["0.0.14"]["video metadata"]["kwargs"]["video_metadata"]) == 1


def kinds_of(description: object) -> set[str]:
    """Whether PIL images or tensors are described."""
    if description is None:
        return set()
    if isinstance(description, list):
        return set().union(*(kinds_of(one) for one in description))
    return {description["kind"]}


# ---------------------------------------------------- without process_vision_info, by this project


NATIVE = ["chat", "multi image", "batch", "local file", "base64", "resized", "limits of an image"]


@pytest.mark.parametrize("name", NATIVE)
def test_messages_of_images_give_the_same_without_process_vision_info(name, processor, arrays):
    """The messages go to apply_chat_template, which opens and resizes what they name."""
    inputs = processor.apply_chat_template(
        MESSAGES[name], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert_equals_transformers("0.0.14", name, inputs, arrays)


# The official README asks for two frames a second of a clip, and qwen-vl-utils takes the first
# and the last frame and those between; we take the first of each interval. So only ids and grids.
@pytest.mark.parametrize("name", ["video file", "video", "utils, resized video"])
def test_messages_of_videos_give_the_same_grids_without_process_vision_info(
    name, processor, arrays
):
    inputs = processor.apply_chat_template(
        MESSAGES[name], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    for key in ("input_ids", "attention_mask", "video_grid_thw"):
        assert np.array_equal(inputs[key].numpy(), arrays[f"0.0.14/{name}/{key}"]), key


# ------------------------------------------------------------------------------ other usage tips


def test_flash_attention_is_loaded_as_the_readme_does_or_refused_by_name(folder):
    """On a machine without it the error names what is missing; nothing else takes its place."""
    with pytest.raises((ImportError, ValueError), match="flash"):
        Qwen2VLForConditionalGeneration.from_pretrained(
            folder,
            torch_dtype=torch.bfloat16,
            attn_implementation="flash_attention_2",
            device_map="cpu",
        )


def test_vision_ids_are_added_as_the_readme_shows(processor):
    image = {"type": "image"}
    conversation = [
        {"role": "user", "content": [image, {"type": "text", "text": "Hello, how are you?"}]},
        {"role": "assistant", "content": "I'm doing well. How can I assist you today?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Can you describe these images and video?"},
                image,
                image,
                {"type": "video"},
                {"type": "text", "text": "These are from my vacation."},
            ],
        },
        {"role": "assistant", "content": "I'd be happy to describe them."},
        {"role": "user", "content": "It was a trip to the mountains."},
    ]
    without_ids = processor.apply_chat_template(conversation, add_generation_prompt=True)
    with_ids = processor.apply_chat_template(
        conversation, add_generation_prompt=True, add_vision_id=True
    )
    # The two outputs that the README expects differ in four labels.
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPicture 1: {picture}Hello, how are you?<|im_end|>\n"
        "<|im_start|>assistant\nI'm doing well. How can I assist you today?<|im_end|>\n"
        "<|im_start|>user\nCan you describe these images and video?"
        f"Picture 2: {picture}Picture 3: {picture}Video 1: {video}"
        "These are from my vacation.<|im_end|>\n"
        "<|im_start|>assistant\nI'd be happy to describe them.<|im_end|>\n"
        "<|im_start|>user\nIt was a trip to the mountains.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert with_ids == expected
    for label in ("Picture 1: ", "Picture 2: ", "Picture 3: ", "Video 1: "):
        expected = expected.replace(label, "")
    assert without_ids == expected


def test_images_are_taken_as_file_url_path_base64_and_pil_alike(processor):
    """README: "we support local files, base64, and URLs"."""
    from PIL import Image

    sources = [
        examples.path("triangle.png"),
        examples.url("triangle.png"),
        examples.base64_url("triangle.png"),
        Image.open(EXAMPLES / "triangle.png"),
    ]
    found = []
    for source in sources:
        messages = examples.user(examples.image(source), DESCRIBE)
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        found.append(inputs["pixel_values"])
    for pixel_values in found[1:]:
        assert torch.equal(pixel_values, found[0])
