"""What the Qwen2-VL page of the transformers documentation shows runs here as it stands there.

Only imports, the model's name and the paths of images and videos are ours: the embedded model and
the examples. Source: huggingface.co/docs/transformers/model_doc/qwen2_vl, with a misspelt variable
corrected.
"""

from pathlib import Path

import torch

from processor import BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration

EXAMPLES = Path(__file__).parent.parent / "examples"
# The arguments that the page gives apply_chat_template each time.
TEMPLATE_OPTIONS = {
    "add_generation_prompt": True,
    "tokenize": True,
    "return_dict": True,
    "return_tensors": "pt",
}


def answers(model, processor: Qwen2VLProcessor, inputs: BatchFeature) -> list[str]:
    """The texts that follow the inputs, in the steps of the page."""
    output_ids = model.generate(**inputs, max_new_tokens=32)
    generated_ids = []
    for input_ids, ids in zip(inputs.input_ids, output_ids, strict=True):
        generated_ids.append(ids[len(input_ids) :])
    return processor.batch_decode(
        generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
    )


def user(*content: dict) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(name: str, key: str = "path") -> dict:
    return {"type": "image", key: str(EXAMPLES / name)}


VIDEO = {"type": "video", "path": str(EXAMPLES / "moving.mp4")}


def test_single_media():
    # On the page device_map is "auto". For "tiny" that is the CPU.
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="auto")
    assert model.device.type == "cpu"
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    conversation = user(image("shapes.png", "url"), text("Describe this image."))
    inputs = processor.apply_chat_template(conversation, **TEMPLATE_OPTIONS).to(model.device)
    assert answers(model, processor, inputs) == ["A red circle and a blue star."]

    conversation = user(VIDEO, text("What happened in the video?"))
    inputs = processor.apply_chat_template(conversation, video_fps=1, **TEMPLATE_OPTIONS)
    (answer,) = answers(model, processor, inputs.to(model.device))
    assert len(answer) > 0


def test_a_batch_of_mixed_media_says_what_its_rows_say_alone(tiny):
    model, processor = tiny
    conversations = [
        user(image("shapes.png"), text("Describe this image.")),
        user(image("wide.png"), image("tall.png"), text("What is written in the pictures?")),
        [{"role": "user", "content": "who are you?"}],
        user(
            image("tall.png"), image("triangle.png"), VIDEO, text("What do these have in common?")
        ),
    ]
    inputs = processor.apply_chat_template(conversations, video_fps=1, **TEMPLATE_OPTIONS)
    together = answers(model, processor, inputs.to(model.device))
    alone = []
    for one in conversations:
        inputs = processor.apply_chat_template(one, video_fps=1, **TEMPLATE_OPTIONS)
        alone += answers(model, processor, inputs)
    assert together == alone


def test_resolution_limits():
    """224 * 224 to 2048 * 2048 pixels, or 256 to 1,024 tokens, of an image of 84 x 84 pixels."""
    question = user(image("triangle.png"), text("Describe this image."))
    for min_pixels, max_pixels, tokens in (
        (224 * 224, 2048 * 2048, 64),
        (256 * 28 * 28, 1024 * 28 * 28, 256),
    ):
        processor = Qwen2VLProcessor.from_pretrained(
            "tiny", min_pixels=min_pixels, max_pixels=max_pixels
        )
        inputs = processor.apply_chat_template(question, **TEMPLATE_OPTIONS)
        # It is enlarged to the lower limit.
        assert (inputs.input_ids == processor.image_token_id).sum() == tokens


def test_loading_in_half_precision(tiny):
    _, processor = tiny
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        "tiny", torch_dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager"
    )
    assert model.lm_head.weight.dtype == torch.bfloat16
    question = user(image("shapes.png"), text("What do you see?"))
    inputs = processor.apply_chat_template(question, **TEMPLATE_OPTIONS)
    (answer,) = answers(model, processor, inputs)
    assert answer.startswith("A red circle")


# The two rendered outputs of the page's last conversation are tested in test_processor.py.
