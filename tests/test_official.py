"""The published outputs of the official weights: `pytest -m official` downloads them."""

import os

import pytest
import torch

from processor import BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration

pytestmark = pytest.mark.official

# Source: the integration tests of transformers, tests/models/qwen2_vl/test_modeling_qwen2_vl.py.
MODEL = os.environ.get("QWEN2VL_MODEL", "Qwen/Qwen2-VL-7B-Instruct")
DOG = "https://qianwen-res.oss-accelerate-overseas.aliyuncs.com/Qwen2-VL/demo_small.jpg"
FIRST_IDS = [
    *[151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198],  # the system message
    *[151644, 872, 198, 151652, 151655, 151655],  # the user's, up to the first placeholders
]
PIXELS = [
    [0.8792, 0.8792, 0.9084],
    [1.1858, 1.1858, 1.2296],
    [1.2004, 1.2004, 1.2150],
    [1.4340, 1.4340, 1.4194],
    [1.3902, 1.4048, 1.4194],
    [1.5216, 1.5362, 1.5362],
]


@pytest.fixture(scope="module")
def processor() -> Qwen2VLProcessor:
    try:
        return Qwen2VLProcessor.from_pretrained(MODEL)
    except FileNotFoundError as error:
        pytest.skip(f"the official files can't be had: {error}")


@pytest.fixture(scope="module")
def inputs(processor) -> BatchFeature:
    content = [{"type": "image", "url": DOG}, {"type": "text", "text": "What kind of dog is this?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )


def test_ids_and_pixels_are_the_published_ones(inputs):
    assert inputs.input_ids[0, :17].tolist() == FIRST_IDS
    assert (inputs.pixel_values[:6, :3] - torch.tensor(PIXELS)).abs().max() <= 3e-3


def test_the_answer_is_the_published_one(processor, inputs):
    try:
        model = Qwen2VLForConditionalGeneration.from_pretrained(MODEL)
    except (FileNotFoundError, MemoryError) as error:
        pytest.skip(f"the official weights can't be had or held: {error}")
    ids = model.generate(**inputs.to(model.device), max_new_tokens=30)
    new_ids = ids[0, inputs.input_ids.shape[1] :]
    answer = processor.decode(new_ids, skip_special_tokens=True)
    assert answer.startswith("The dog in the picture appears to be a Labrador Retriever.")
