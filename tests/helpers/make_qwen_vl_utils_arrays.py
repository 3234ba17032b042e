"""Stores what qwen-vl-utils and transformers 4.57.6 make of the official examples.

Writes qwen_vl_utils_arrays.npz.xz and official_examples.json: of each example what
process_vision_info returns, and with it the prompts, ids, grids, a sample of the pixel values, and
the greedy answer of "tiny", all by the processor and the model of transformers; the latter also of
the examples in the documentation of transformers. Both packages need torchvision, which breaks the
import of transformers beside the CPU build of torch, so run it in environments of their own, one
for each version of qwen-vl-utils:

    python -m venv venv-utils && . venv-utils/bin/activate
    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install transformers==4.57.6 numpy pillow requests packaging decord==0.6.0 av
    pip install --no-deps torchvision==0.28.0 qwen-vl-utils==0.0.8
    python tests/helpers/make_qwen_vl_utils_arrays.py

torchvision's compiled operators need not load. Videos are read with decord.
"""

import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import library

os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
# Before torchvision is imported.
OPERATORS = library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from transformers import video_utils  # noqa: E402

# The documentation's clips are read with PyAV: torchvision no longer reads any.
video_utils.VIDEO_DECODERS["torchvision"] = video_utils.VIDEO_DECODERS["pyav"]

# Beside this script.
from official_examples import (  # noqa: E402
    ANSWERS,
    ARRAYS,
    DOCUMENTED_OPTIONS,
    LATER,
    LIMITED,
    NEW_TOKENS,
    PROCESSOR_LIMITS,
    RESOLUTIONS,
    UTILS_VERSIONS,
    conversations,
    documentation,
    pack,
    read_arrays,
    rendered,
    sample,
    write_arrays,
    write_tiny_folder,
)
from qwen_vl_utils import process_vision_info  # noqa: E402
from saved_inputs import TINY, read_saved  # noqa: E402

PIXELS = ("pixel_values", "pixel_values_videos")


def vision_info(name: str, messages: list) -> tuple:
    """(images, videos, further arguments of the processor), as the README of the example says."""
    if name not in LATER:
        return *process_vision_info(messages), {}
    if name != "video metadata":
        return process_vision_info(messages, return_video_kwargs=True)
    images, pairs, kwargs = process_vision_info(
        messages, return_video_kwargs=True, return_video_metadata=True
    )
    videos, metadata = zip(*pairs, strict=True)
    return images, list(videos), {**kwargs, "video_metadata": list(metadata)}


def run(name: str, messages: list, folder: Path, arrays: dict[str, np.ndarray]) -> dict:
    """One example: what is stored of it as JSON; tensors go into `arrays`."""
    limits = PROCESSOR_LIMITS if name == LIMITED else {}
    processor = transformers.AutoProcessor.from_pretrained(folder, **limits)
    # Images with Pillow, as in the official README's time.
    image_processor = transformers.Qwen2VLImageProcessor.from_pretrained(folder, **limits)
    processor.image_processor = image_processor
    prompts = rendered(processor, messages)
    images, videos, kwargs = vision_info(name, messages)
    stored = {
        "prompts": prompts,
        "images": pack(images, arrays),
        "videos": pack(videos, arrays),
        "kwargs": kwargs,
    }
    inputs = processor(
        text=prompts, images=images, videos=videos, padding=True, return_tensors="pt", **kwargs
    )
    label = f"{importlib.metadata.version('qwen-vl-utils')}/{name}"
    stored.update(answer(label, folder, processor, inputs, arrays))
    return stored


def answer(
    label: str,
    folder: Path,
    processor: transformers.ProcessorMixin,
    inputs: transformers.BatchFeature,
    arrays: dict[str, np.ndarray],
) -> dict:
    """What the model says to inputs: what is stored as JSON; tensors go into `arrays`."""
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    answers = output[:, inputs.input_ids.shape[1] :]
    stored: dict = {"tensors": sorted(inputs)}
    stored["answers"] = processor.batch_decode(
        answers, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    for key, tensor in [*inputs.items(), ("answer_ids", answers)]:
        values = tensor.numpy()
        arrays[f"{label}/{key}"] = sample(values) if key in PIXELS else values.astype(np.int32)
        stored[f"{key} shape"] = list(values.shape)
    return stored


def run_documentation(name: str, conversation: list, arrays: dict[str, np.ndarray]) -> dict:
    """One example of the documentation, with "tiny" as it is, which has limits for videos."""
    limits = RESOLUTIONS.get(name, {})
    processor = transformers.AutoProcessor.from_pretrained(TINY, **limits)
    image_processor = transformers.Qwen2VLImageProcessor.from_pretrained(TINY, **limits)
    processor.image_processor = image_processor
    processor.chat_template = read_saved()["4.45.2"]["official/chat_template.json"]["chat_template"]
    inputs = processor.apply_chat_template(
        with_items(conversation),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        **DOCUMENTED_OPTIONS.get(name, {}),
    )
    return answer(f"documentation/{name}", TINY, processor, inputs, arrays)


def with_items(conversation: list) -> list:
    """A conversation, or a batch of them, with items of text in place of strings.

    The page has a message that is a string, which this version can't tokenize.
    """
    if isinstance(conversation[0], list):
        return [with_items(one) for one in conversation]
    messages = []
    for message in conversation:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        messages.append({**message, "content": content})
    return messages


def main() -> None:
    version = importlib.metadata.version("qwen-vl-utils")
    assert version in UTILS_VERSIONS and transformers.__version__ == "4.57.6"
    examples, arrays = {}, {}
    with tempfile.TemporaryDirectory() as work:
        write_tiny_folder(Path(work))
        for name, messages in conversations().items():
            if version == "0.0.8" and name in LATER:
                continue
            examples[name] = run(name, messages, Path(work), arrays)
            print(name, examples[name]["answers"])

    documented = {}
    for name, conversation in documentation().items():
        documented[name] = run_documentation(name, conversation, arrays)
        print(name, documented[name]["answers"])

    # Beside what the other version has given, of which equal arrays are stored once.
    stored = {}
    if ANSWERS.exists():
        stored = json.loads(ANSWERS.read_text())
        kept = {
            name: array for name, array in read_arrays().items() if not name.startswith(version)
        }
        arrays = {**kept, **arrays}
    stored[version] = examples
    stored["documentation"] = documented
    lines = json.dumps(stored, ensure_ascii=False, indent=1, default=list)
    ANSWERS.write_text(lines + "\n", encoding="utf-8")
    write_arrays(arrays)
    print(f"{ARRAYS.name}: {ARRAYS.stat().st_size} bytes, {ANSWERS.stat().st_size} in JSON")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
