"""What the Qwen2-VL page of the transformers documentation shows runs here as it stands there.

Only imports, the model's name and the paths of images and videos are ours: the embedded model and
the examples. Source: docs/source/en/model_doc/qwen2_vl.md of transformers 4.57.6, with a misspelt
variable corrected. The ids, grids, pixel values and answers of transformers, with the same weights,
are stored (helpers/official_examples.py).
"""

import json

import numpy as np
import pytest
import torch

from processor import BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tests.helpers import official_examples as examples
from tests.helpers.official_examples import (
    DESCRIBE,
    DOCUMENTED_OPTIONS,
    NEW_TOKENS,
    RESOLUTIONS,
    user,
)

# The arguments that the page gives apply_chat_template each time.
TEMPLATE_OPTIONS = {
    "add_generation_prompt": True,
    "tokenize": True,
    "return_dict": True,
    "return_tensors": "pt",
}
CONVERSATIONS = examples.documentation()
STORED = json.loads(examples.ANSWERS.read_text(encoding="utf-8"))["documentation"]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return examples.read_arrays()


def answers(model, processor: Qwen2VLProcessor, inputs: BatchFeature) -> list[str]:
    """The texts that follow the inputs, in the steps of the page."""
    output_ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    generated_ids = [
        output_ids[len(input_ids) :]
        for input_ids, output_ids in zip(inputs.input_ids, output_ids, strict=True)
    ]
    return processor.batch_decode(
        generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
    )


def assert_equals_transformers(
    name: str, inputs: BatchFeature, arrays: dict[str, np.ndarray]
) -> None:
    """Same tensors: ids, masks and grids equal, pixel values to 1e-6."""
    assert sorted(inputs) == STORED[name]["tensors"]
    for key, tensor in inputs.items():
        expected = arrays[f"documentation/{name}/{key}"]
        assert list(tensor.shape) == STORED[name][f"{key} shape"], key
        if key.startswith("pixel_values"):
            assert np.abs(examples.sample(tensor.numpy()) - expected).max() <= 1e-6, key
        else:
            assert np.array_equal(tensor.numpy(), expected), key


def test_the_model_loads_on_the_device_that_the_page_asks_for():
    # "auto" is the CPU for "tiny".
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="auto")
    assert model.device.type == "cpu"


@pytest.mark.parametrize("name", ["image", "video", "batch"])
def test_single_media_and_a_batch_give_transformers_inputs_and_answers(name, tiny, arrays):
    model, processor = tiny
    inputs = processor.apply_chat_template(
        CONVERSATIONS[name], **DOCUMENTED_OPTIONS.get(name, {}), **TEMPLATE_OPTIONS
    ).to(model.device)
    assert_equals_transformers(name, inputs, arrays)
    assert answers(model, processor, inputs) == STORED[name]["answers"]


def test_a_batch_of_mixed_media_says_what_its_rows_say_alone(tiny):
    model, processor = tiny
    alone = []
    for conversation in CONVERSATIONS["batch"]:
        inputs = processor.apply_chat_template(conversation, video_fps=1, **TEMPLATE_OPTIONS)
        alone += answers(model, processor, inputs)
    assert alone == STORED["batch"]["answers"]


@pytest.mark.parametrize("name", list(RESOLUTIONS))
def test_resolution_limits_give_transformers_inputs_and_answers(name, tiny, arrays):
    """224 * 224 to 2048 * 2048 pixels, or 256 to 1,024 tokens, of an image of 84 x 84 pixels."""
    model, _ = tiny
    processor = Qwen2VLProcessor.from_pretrained("tiny", **RESOLUTIONS[name])
    inputs = processor.apply_chat_template(CONVERSATIONS[name], **TEMPLATE_OPTIONS)
    assert_equals_transformers(name, inputs, arrays)
    assert answers(model, processor, inputs) == STORED[name]["answers"]


def test_loading_in_half_precision(tiny):
    _, processor = tiny
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        "tiny", torch_dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager"
    )
    assert model.lm_head.weight.dtype == torch.bfloat16
    question = user(examples.image(examples.path("shapes.png")), DESCRIBE)
    inputs = processor.apply_chat_template(question, **TEMPLATE_OPTIONS)
    (answer,) = answers(model, processor, inputs)
    assert answer.startswith("A red circle")


# The two rendered outputs of the page's last conversation are tested in test_processor.py and
# test_official_examples.py.
