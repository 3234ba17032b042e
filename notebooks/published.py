"""Outputs of the official checkpoints that others have published, beside ours.

Source: the integration tests of transformers, tests/models/qwen2_vl/test_modeling_qwen2_vl.py and
test_image_processing_qwen2_vl.py; the formula of the rotary table is the paper's, arXiv 2409.12191.
"""

import torch
from comparison import FAILS, HOLDS, SHOWN, Comparison, Measure, Summary, compare
from torch import Tensor

from processor import Qwen2VLProcessor, smart_resize
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration, pick_attention
from qwen2vl_extras.media import load_image

# Hidden size, layers of the decoder and vocabulary of each, and a part of its name on the Hub.
SHAPES = {"2b": (1536, 28, 151936), "7b": (3584, 28, 152064)}
HUB_NAMES = {"2b": "qwen2-vl-2b-instruct", "7b": "qwen2-vl-7b-instruct"}

DOG = "https://qianwen-res.oss-accelerate-overseas.aliyuncs.com/Qwen2-VL/demo_small.jpg"
DOG_QUESTION = "What kind of dog is this?"
DOG_IDS = [
    *[151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198],  # the system message
    *[151644, 872, 198, 151652, 151655, 151655],  # the user's, up to the first placeholders
]
DOG_PIXELS = [
    [0.8792, 0.8792, 0.9084],
    [1.1858, 1.1858, 1.2296],
    [1.2004, 1.2004, 1.2150],
    [1.4340, 1.4340, 1.4194],
    [1.3902, 1.4048, 1.4194],
    [1.5216, 1.5362, 1.5362],
]
DOG_ANSWER = "The dog in the picture appears to be a Labrador Retriever."
PIXEL_BAR = 3e-3  # the published numbers have four digits
# (height, width), limits, and the published numbers of patches and tokens.
SIZES = [
    ((876, 1300), (56 * 56, 12_845_056), (5704, 1426)),
    ((876, 1300), (64 * 64, 512 * 512), (1320, 330)),
]


def which_checkpoint(name: str, config: Qwen2VLConfig) -> str | None:
    """ "2b" or "7b" if both shape and name are those of an official checkpoint, else None."""
    shape = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    for size, known in SHAPES.items():
        # The cache of the Hub writes "models--Qwen--Qwen2-VL-2B-Instruct" into its paths.
        if shape == known and HUB_NAMES[size] in name.lower():
            return size
    return None


def compare_published(
    size: str, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor
) -> list[Comparison]:
    """Ours beside what is published of a checkpoint, "2b" or "7b"; ValueError for another.

    processor: one with the checkpoint's own limits.
    """
    if size not in SHAPES:
        raise ValueError(f"published outputs are those of 2b or 7b: got {size!r:.99}")
    rows = [*size_rows(), rotary_row(model)]
    if size == "7b":
        rows += dog_rows(model, processor)
    return rows


def size_rows() -> list[Comparison]:
    """Numbers of patches and tokens of images of some sizes."""
    rows = []
    for (height, width), limits, published in SIZES:
        new_height, new_width = smart_resize(height, width, 28, *limits)
        patches = (new_height // 14) * (new_width // 14)
        stage = f"published: patches and tokens of {width} × {height}, at most {limits[1]:,} pixels"
        rows.append(compare(stage, torch.tensor([patches, patches // 4]), torch.tensor(published)))
    resized = torch.tensor(smart_resize(561, 278, 28))
    rows.append(compare("published: the size of 561 × 278", resized, torch.tensor([560, 280])))
    return rows


def rotary_row(model: Qwen2VLForConditionalGeneration) -> Comparison:
    """The rotary table of an image of 392 × 392 pixels: 28 × 28 patches."""
    cos, _ = model.visual.rotary_table(28, 28, torch.device("cpu"))
    angles = published_angles(28, cos.shape[-1])
    apart = float((cos - angles.cos()).abs().max())
    measure = Measure("start to end", apart, 1e-5)
    stage = "published: rotary table of 392 × 392 (its cosine)"
    return compare(stage, cos, angles.cos(), [measure])


def published_angles(side: int, d: int) -> Tensor:
    """(row · f, column · f), twice, of each patch, with f = 10000^(-2i / (d/2)): (patches, d)."""
    frequencies = 10_000.0 ** (-torch.arange(0, d // 2, 2).float() / (d // 2))
    rows = []
    # Square by square of 2 × 2 patches, and in each line by line.
    for square_row in range(0, side, 2):
        for square_column in range(0, side, 2):
            for row in (square_row, square_row + 1):
                for column in (square_column, square_column + 1):
                    angles = torch.cat((row * frequencies, column * frequencies))
                    rows.append(torch.cat((angles, angles)))
    return torch.stack(rows)


def dog_rows(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor
) -> list[Comparison]:
    """The photo of a dog: ids, pixel values and the answer of the 7B checkpoint."""
    try:
        image = load_image(DOG)
    except OSError as error:
        row = Comparison("published: the photo of a dog", Summary(), Summary(), 0.0)
        row.verdict, row.remark = SHOWN, f"not compared, it can't be had: {error}"
        return [row]
    content = [{"type": "image", "image": image}, {"type": "text", "text": DOG_QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    ids = inputs.input_ids[0, : len(DOG_IDS)]
    pixels, published = inputs.pixel_values[:6, :3], torch.tensor(DOG_PIXELS)
    measure = Measure("start to end", float((pixels - published).abs().max()), PIXEL_BAR)
    rows = [
        compare("published: first ids", ids, torch.tensor(DOG_IDS)),
        compare("published: first pixel values", pixels, published, [measure]),
    ]
    said = dog_answer(model, processor, inputs.to(model.device))
    row = compare("published: answer (how it begins)", said, DOG_ANSWER)
    row.verdict = HOLDS if said.startswith(DOG_ANSWER) else FAILS
    return [*rows, row]


def dog_answer(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, inputs: dict[str, Tensor]
) -> str:
    """Our answer, with the fastest attention: eager would take gigabytes for 5,704 patches."""
    before = model.attn_implementation
    model.attn_implementation = pick_attention("auto", model.device, model.dtype)
    try:
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    finally:
        model.attn_implementation = before
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
