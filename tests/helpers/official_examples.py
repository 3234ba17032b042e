"""The messages of the official examples, with files of examples/ for those that they name.

Sources: README.md of QwenLM/Qwen2-VL at commit dcc62fea, "Using Transformers to Chat" and "More
Usage Tips"; the READMEs of qwen-vl-utils 0.0.8 and 0.0.14 on PyPI. make_qwen_vl_utils_arrays.py
runs them with qwen-vl-utils and transformers, test_official_examples.py with this project and with
what the script has stored. So nothing here imports any of these.
"""

import base64
import io
import json
import lzma
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

try:  # beside a script, which runs by its path, or as a part of the tests
    from saved_inputs import ROOT, STORED, read_saved
except ImportError:
    from tests.helpers.saved_inputs import ROOT, STORED, read_saved

EXAMPLES = ROOT / "examples"
ARRAYS = STORED / "qwen_vl_utils_arrays.npz.xz"
ANSWERS = STORED / "official_examples.json"
UTILS_VERSIONS = ("0.0.8", "0.0.14")
NEW_TOKENS = 24
SAMPLE = 400  # values kept of each pixel tensor

# The examples of later READMEs, for which process_vision_info has more options than in 0.0.8.
LATER = ("video kwargs", "video kwargs, frames", "video metadata")
# In this example the processor is loaded with limits.
LIMITED = "limits of the processor"
PROCESSOR_LIMITS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28}


def path(name: str) -> str:
    return str(EXAMPLES / name)


def url(name: str) -> str:
    return f"file://{EXAMPLES / name}"


def base64_url(name: str) -> str:
    data = base64.b64encode((EXAMPLES / name).read_bytes()).decode()
    return f"data:image;base64,{data}"


def user(*content: dict) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(source: object, **options: int) -> dict:
    return {"type": "image", "image": source, **options}


def video(source: object, **options: float) -> dict:
    return {"type": "video", "video": source, **options}


DESCRIBE = text("Describe this image.")
DESCRIBE_VIDEO = text("Describe this video.")
FRAMES = [url("before.png"), url("after.png"), url("after.png"), url("before.png")]


def conversations() -> dict[str, list]:
    """The messages of each example by its name; of a batch, a list of conversations."""
    return {**using_transformers_to_chat(), **more_usage_tips(), **of_qwen_vl_utils()}


def using_transformers_to_chat() -> dict[str, list]:
    return {
        "chat": user(image(path("shapes.png")), DESCRIBE),
        "multi image": user(
            image(url("before.png")),
            image(url("after.png")),
            text("Identify the similarities between these images."),
        ),
        "video of images": user(video(FRAMES), DESCRIBE_VIDEO),
        "video file": user(video(url("moving.mp4"), max_pixels=360 * 420, fps=1.0), DESCRIBE_VIDEO),
        "video": user(video(path("moving.mp4")), DESCRIBE_VIDEO),
        "batch": [
            user(
                image(url("wide.png")),
                image(url("tall.png")),
                text("What are the common elements in these pictures?"),
            ),
            [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Who are you?"},
            ],
        ],
    }


def more_usage_tips() -> dict[str, list]:
    return {
        "local file": user(image(url("triangle.png")), DESCRIBE),
        "base64": user(image(base64_url("triangle.png")), DESCRIBE),
        "resized": user(image(url("many.png"), resized_height=280, resized_width=420), DESCRIBE),
        "limits of an image": user(
            image(url("many.png"), min_pixels=50176, max_pixels=50176), DESCRIBE
        ),
        LIMITED: user(image(url("triangle.png")), DESCRIBE),
    }


def of_qwen_vl_utils() -> dict[str, list]:
    return {
        "utils, resized video": user(
            video(url("moving.mp4"), fps=2.0, resized_height=280, resized_width=280), DESCRIBE_VIDEO
        ),
        "utils, three frames": user(video(FRAMES[:3]), DESCRIBE_VIDEO),
        "utils, batch": [
            user(image(url("shapes.png")), DESCRIBE),
            user(image(base64_url("triangle.png")), DESCRIBE),
            user(image(Image.open(EXAMPLES / "word.png")), DESCRIBE),
            user(image(url("number.png"), resized_height=112, resized_width=224), DESCRIBE),
            user(
                video(url("appearing.mp4"), nframes=4, resized_height=84, resized_width=112),
                DESCRIBE_VIDEO,
            ),
        ],
        "video kwargs": user(
            video(url("moving.mp4"), max_pixels=360 * 420, fps=1.0), DESCRIBE_VIDEO
        ),
        "video kwargs, frames": user(video(FRAMES), DESCRIBE_VIDEO),
        "video metadata": user(
            video(url("moving.mp4"), max_pixels=360 * 420, fps=1.0), DESCRIBE_VIDEO
        ),
    }


# The limits that the documentation shows.
RESOLUTIONS = {
    "224 to 2048": {"min_pixels": 224 * 224, "max_pixels": 2048 * 2048},
    "256 to 1024 tokens": {"min_pixels": 256 * 28 * 28, "max_pixels": 1024 * 28 * 28},
}


# What apply_chat_template gets besides, in the examples with a video.
DOCUMENTED_OPTIONS = {"video": {"video_fps": 1}, "batch": {"video_fps": 1}}


def documentation() -> dict[str, list]:
    """The conversations of the Qwen2-VL page in the documentation of transformers, by name.

    They go to apply_chat_template with DOCUMENTED_OPTIONS. Only the names of files are not those
    of the page. Source: docs/source/en/model_doc/qwen2_vl.md of transformers.
    """
    image_item = {"type": "image", "url": path("shapes.png")}
    wide = {"type": "image", "path": path("wide.png")}
    tall = {"type": "image", "path": path("tall.png")}
    triangle = {"type": "image", "path": path("triangle.png")}
    video_item = {"type": "video", "path": path("moving.mp4")}
    return {
        "image": user(image_item, DESCRIBE),
        "video": user(video_item, text("What happened in the video?")),
        "batch": [
            user({"type": "image", "path": path("shapes.png")}, DESCRIBE),
            user(wide, tall, text("What is written in the pictures?")),
            [{"role": "user", "content": "who are you?"}],
            user(tall, triangle, video_item, text("What are the common elements in these medias?")),
        ],
        **{name: user(triangle, DESCRIBE) for name in RESOLUTIONS},
    }


def rendered(processor: object, messages: list) -> list[str]:
    """The prompts of an example: one, or those of a batch, each from a call of its own."""
    is_batch = isinstance(messages[0], list)
    texts = []
    for one in messages if is_batch else [messages]:
        prompt = processor.apply_chat_template(one, tokenize=False, add_generation_prompt=True)
        texts.append(prompt)
    return texts


def write_tiny_folder(folder: Path) -> None:
    """The model "tiny" with the limits and the template of the official repositories.

    Like these, it has no limits of its own for videos.
    """
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(ROOT / "tiny" / "checkpoint" / name, folder / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tiny" / "checkpoint" / name, folder / name)
    content = json.loads((ROOT / "tiny" / "checkpoint" / "preprocessor_config.json").read_text())
    content["min_pixels"] = 56 * 56
    content["max_pixels"] = 16384 * 28 * 28
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    template = read_saved()["4.45.2"]["official/chat_template.json"]
    (folder / "chat_template.json").write_text(json.dumps(template))


# ------------------------------------------------------------------------------------ the arrays
#
# What process_vision_info returns is stored as uint8 arrays, each once, named by its checksum. A
# description, in the JSON file, says what was an image (PIL), a list of images, a uint8 or a float
# tensor.


def pack(media: object, arrays: dict[str, np.ndarray]) -> object:
    """The description of what was returned, whose pixels go into `arrays`."""
    if media is None:
        return None
    if isinstance(media, (list, tuple)):
        return [pack(one, arrays) for one in media]
    if isinstance(media, Image.Image):
        kind, pixels = "image", np.asarray(media)
    else:  # a tensor
        kind, pixels = str(media.dtype), media.numpy()
    stored = pixels.astype(np.uint8)
    assert (stored == pixels).all(), "only whole numbers from 0 to 255 are stored"
    name = f"{zlib.crc32(stored.tobytes()):08x}"
    arrays[name] = stored
    return {"kind": kind, "array": name}


def unpack(description: object, arrays: dict[str, np.ndarray]) -> object:
    """What was returned, from its description: PIL images and tensors in their own dtype."""
    if description is None:
        return None
    if isinstance(description, list):
        return [unpack(one, arrays) for one in description]
    pixels = arrays[description["array"]]
    if description["kind"] == "image":
        return Image.fromarray(pixels)
    dtype = getattr(torch, description["kind"].removeprefix("torch."))
    return torch.from_numpy(pixels).to(dtype)


def write_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays that read_arrays reads.

    Frames are stored as differences to the pixel above and to the left, which packs well.
    """
    stored = {}
    for name, array in arrays.items():
        if array.dtype == np.uint8 and array.ndim == 4:  # (frames, 3, height, width)
            zero = np.uint8(0)
            array = np.diff(np.diff(array, axis=3, prepend=zero), axis=2, prepend=zero)
        stored[name] = array
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    ARRAYS.write_bytes(lzma.compress(buffer.getvalue()))


def read_arrays() -> dict[str, np.ndarray]:
    """The stored arrays by their names."""
    arrays = {}
    with np.load(io.BytesIO(lzma.decompress(ARRAYS.read_bytes()))) as stored:
        for name, array in stored.items():
            if array.dtype == np.uint8 and array.ndim == 4:
                array = array.cumsum(axis=2, dtype=np.uint8).cumsum(axis=3, dtype=np.uint8)
            arrays[name] = array
    return arrays


def sample(values: np.ndarray) -> np.ndarray:
    """SAMPLE of the values of a tensor, spread over it."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat[np.arange(SAMPLE) * len(flat) // SAMPLE + np.arange(SAMPLE) % 7]
