"""What notebook 08 borrows from transformers: its processors, and its published outputs."""

import course
import torch
from PIL import Image
from torch import Tensor

from load import find_checkpoint
from processor import Qwen2VLImageProcessor, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration


def token_ids(processor: Qwen2VLProcessor, input_ids: Tensor) -> Tensor:
    """The text of prompts (B, T), placeholders included, as ids of the reference's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint(course.MODEL))
    texts = [processor.decode(row) for row in input_ids]
    return torch.tensor(tokenizer(texts).input_ids)


def pixel_values(image_processor: Qwen2VLImageProcessor, image: Image.Image) -> Tensor:
    """An image's patches (P, 1176) by the reference's Pillow-based image processor."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
        Qwen2VLImageProcessor as Theirs,
    )

    theirs = Theirs(
        image_mean=image_processor.image_mean,
        image_std=image_processor.image_std,
        min_pixels=image_processor.min_pixels,
        max_pixels=image_processor.max_pixels,
    )
    return torch.as_tensor(theirs(images=image, return_tensors="pt")["pixel_values"])


# From transformers' integration tests, tests/models/qwen2_vl/test_modeling_qwen2_vl.py.
DOG = "https://qianwen-res.oss-accelerate-overseas.aliyuncs.com/Qwen2-VL/demo_small.jpg"
DOG_IDS = [
    151644,
    8948,
    198,
    2610,
    525,
    264,
    10950,
    17847,
    13,
    151645,
    198,
    151644,
    872,
    198,
    151652,
]
DOG_PIXELS = [[0.8792, 0.8792, 0.9084], [1.1858, 1.1858, 1.2296], [1.2004, 1.2004, 1.2150]]
DOG_ANSWER = "The dog in the picture appears to be a Labrador Retriever."


def compare_with_published(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor
) -> None:
    """Compare ids, pixels and the answer with the published ones, or say what can't be had."""
    content = [{"type": "image", "url": DOG}, {"type": "text", "text": "What kind of dog is this?"}]
    try:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
    except OSError as error:
        print(f"– not compared: {error}")
        return
    ids = model.generate(**inputs.to(model.device), max_new_tokens=30)[0]
    answer = processor.decode(ids[inputs.input_ids.shape[1] :], skip_special_tokens=True)
    print("it says:", answer)
    first_ids = inputs.input_ids[0, : len(DOG_IDS)].tolist()
    first_pixels = inputs.pixel_values[: len(DOG_PIXELS), :3]
    pixel_error = float((first_pixels - torch.tensor(DOG_PIXELS)).abs().max())
    claims = {
        "the first ids": first_ids == DOG_IDS,
        "the first pixel values, to 3e-3": pixel_error <= 3e-3,
        "the answer (that of the 7B model)": answer.startswith(DOG_ANSWER),
    }
    for claim, holds in claims.items():
        if holds:
            print(f"✓ {claim}: as published")
        else:
            print(f"✗ {claim}: not as published")
