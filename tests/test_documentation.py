"""What the Qwen2-VL page of the transformers documentation shows runs here as it stands there.

Only imports, the model's name and the paths of media are ours: the embedded model and the examples. Source:
huggingface.co/docs/transformers/model_doc/qwen2_vl (its misspelt variable mended).
"""

from pathlib import Path

import torch

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration

EXAMPLES = Path(__file__).parent.parent / "examples"
HOW = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def say(model, processor, inputs) -> list[str]:
    """The page's way from inputs to texts."""
    output_ids = model.generate(**inputs, max_new_tokens=32)
    generated_ids = [out[len(ids) :] for ids, out in zip(inputs.input_ids, output_ids, strict=True)]
    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": True}
    return processor.batch_decode(generated_ids, **settings)


def user(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(name: str, key: str = "path") -> dict:
    return {"type": "image", key: str(EXAMPLES / name)}


VIDEO = {"type": "video", "path": str(EXAMPLES / "moving.mp4")}


def test_single_media():
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="auto")
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    conversation = user(image("shapes.png", "url"), text("Describe this image."))
    inputs = processor.apply_chat_template(conversation, **HOW).to(model.device)
    assert say(model, processor, inputs) == ["A red circle and a blue star."]
    conversation = user(VIDEO, text("What happened in the video?"))
    inputs = processor.apply_chat_template(conversation, video_fps=1, **HOW).to(model.device)
    assert len(say(model, processor, inputs)[0]) > 0


def test_a_batch_of_mixed_media_says_what_its_rows_say_alone(tiny):
    model, processor = tiny
    conversations = [
        user(image("shapes.png"), text("Describe this image.")),
        user(image("wide.png"), image("tall.png"), text("What is written in the pictures?")),
        [{"role": "user", "content": "who are you?"}],
        user(image("tall.png"), image("triangle.png"), VIDEO, text("What do these have in common?")),
    ]
    inputs = processor.apply_chat_template(conversations, video_fps=1, **HOW).to(model.device)
    together = say(model, processor, inputs)
    alone = [
        say(model, processor, processor.apply_chat_template(one, video_fps=1, **HOW)) for one in conversations
    ]
    assert together == [answer for (answer,) in alone]


def test_resolution_limits():
    """224 * 224 to 2048 * 2048 pixels, or 256 to 1,024 tokens: a picture of 84 x 84 px is enlarged."""
    question = user(image("triangle.png"), text("Describe this image."))
    for least, most, tokens in ((224 * 224, 2048 * 2048, 64), (256 * 28 * 28, 1024 * 28 * 28, 256)):
        processor = Qwen2VLProcessor.from_pretrained("tiny", min_pixels=least, max_pixels=most)
        inputs = processor.apply_chat_template(question, **HOW)
        assert (inputs.input_ids == processor.image_token_id).sum() == tokens


def test_loading_in_half_precision(tiny):
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        "tiny", torch_dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert model.lm_head.weight.dtype == torch.bfloat16
    inputs = tiny[1].apply_chat_template(user(image("shapes.png"), text("What do you see?")), **HOW)
    assert say(model, tiny[1], inputs.to(model.device))[0].startswith("A red circle")


# The two rendered outputs of the page's last conversation stand in tests/test_processor.py.
