"""What is tried: for each target valid cases to start from, and a function that takes a case.

A case is bytes, or a value that `mutations` can change. What a target may raise is ALLOWED;
whatever else it raises, and every message of more than one line, is a finding.
"""

import io
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

import load
from processor import Qwen2VLImageProcessor, Qwen2VLProcessor, video_patches
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras.media import load_image
from tests.fuzz.mutations import mutate_bytes, mutate_value

ALLOWED = (ValueError, OSError, MemoryError)
TINY = load.EMBEDDED
JSON_FILES = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
]


@dataclass
class Target:
    """seeds: valid cases; mutate: a case and a generator to a new case; run: takes a case."""

    seeds: list
    mutate: Callable[[object, random.Random], object]
    run: Callable[[object], object]


# -------------------------------------------------------------------------------- checkpoints


def checkpoint_target() -> Target:
    """The JSON files of a checkpoint: one document {file name: content}."""
    files = {name: json.loads((TINY / name).read_text(encoding="utf-8")) for name in JSON_FILES}
    sections = {
        "image_processor": files["preprocessor_config.json"],
        "video_processor": files["video_preprocessor_config.json"],
    }
    newer = {**files, "processor_config.json": sections}
    del newer["preprocessor_config.json"]
    return Target([files, newer], mutate_value, load_checkpoint)


def load_checkpoint(files: object) -> None:
    """Load processor and model from a folder with these files and tiny's weights; answer once."""
    if not isinstance(files, dict):
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for unchanged in ("model.safetensors", "tokenizer.json"):
            (folder / unchanged).symlink_to(TINY / unchanged)
        for filename, content in files.items():
            if filename in (*JSON_FILES, "processor_config.json"):
                text = as_json(content)
                (folder / filename).write_text(text, encoding="utf-8", errors="surrogatepass")
        processor = Qwen2VLProcessor.from_pretrained(folder)
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder, device_map="cpu")
        image = Image.new("RGB", (56, 56), "red")
        ask(processor, model, [{"role": "user", "content": [{"type": "image", "image": image}]}])


def as_json(content: object) -> str:
    """JSON, or what it would be if lists were nested deeper than `json` can write."""
    try:
        return json.dumps(content)
    except RecursionError:
        return "[" * 100_000


# -------------------------------------------------------------------------------------- media


def image_target() -> Target:
    """Image files in the formats that Pillow writes."""
    seeds = []
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"):
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
            file = io.BytesIO()
            image = Image.fromarray(noise)
            image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
            try:
                image.save(file, kind)
            except (OSError, ValueError, KeyError):  # the format has no such mode
                continue
            seeds.append(file.getvalue())
    return Target(seeds, mutate_bytes, open_image)


def open_image(content: object) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        image = load_image(file.name)
    assert image.mode == "RGB"
    assert np.asarray(image).shape[2] == 3


def clip_target() -> Target:
    """Video files of several codecs and containers."""
    seeds = []
    for suffix, codec in (
        ("mp4", "h264"),
        ("mp4", "mpeg4"),
        ("mkv", "h264"),
        ("webm", "vp9"),
        ("avi", "mjpeg"),
        ("mov", "mpeg4"),
        ("gif", "gif"),
    ):
        with tempfile.NamedTemporaryFile(suffix="." + suffix) as file:
            write_clip(file.name, codec)
            seeds.append(Path(file.name).read_bytes())
    return Target(seeds, mutate_bytes, open_clip)


def write_clip(path: str, codec: str) -> None:
    """Twenty frames of 64 x 48 pixels."""
    rng = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def open_clip(content: object) -> None:
    options = {"max_pixels": 56 * 56, "min_pixels": 28 * 28, "max_frames": 8}
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        patches, (t, h, w) = video_patches(Qwen2VLImageProcessor(), file.name, (options,))
    assert len(patches) == t * h * w
    assert patches.isfinite().all()


# --------------------------------------------------------------------- conversations, options


class Asker:
    """The embedded model and processor, loaded once, and one generated token for each case."""

    def __init__(self) -> None:
        self.processor = Qwen2VLProcessor.from_pretrained("tiny")
        self.model = Qwen2VLForConditionalGeneration.from_pretrained("tiny")

    def converse(self, conversation: object) -> None:
        """A case is a conversation."""
        ask(self.processor, self.model, conversation)

    def call(self, case: object) -> None:
        """A case has options of the conversation's rendering, of its image, and of generate."""
        if not isinstance(case, dict):
            return
        parts = [case.get(name) for name in ("item", "template", "generate")]
        if not all(isinstance(part, dict) for part in parts):
            return
        item, template, generate = parts
        content = [{**item, "type": "image", "image": Image.new("RGB", (30, 40))}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            **{**template, "tokenize": True, "return_dict": True},
        )
        self.model.generate(**inputs, **{**generate, "max_new_tokens": 1})


def ask(
    processor: Qwen2VLProcessor, model: Qwen2VLForConditionalGeneration, conversation: object
) -> None:
    """One token of the answer."""
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=1)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 1


def conversation_target() -> Target:
    example = str(Path(load.__file__).parent / "examples" / "triangle.png")
    data_uri = "data:image/png;base64,iVBORw0KGgo="
    user = [
        {"type": "image", "image": example, "max_pixels": 3136},
        {"type": "text", "text": "What is it? <|im_end|>"},
        {"type": "image_url", "image_url": {"url": example}},
        {"type": "text", "text": "ü <memory> \U0001f600", "image": None, "video": None},
        {"type": "video", "video": [example, example], "fps": 1.0},
    ]
    one = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": user},
        {"role": "assistant", "content": "A triangle."},
        {"role": "user", "content": "Sure?"},
    ]
    two = [{"role": "user", "content": [{"type": "image", "url": data_uri}]}]
    batch = [one, [{"role": "user", "content": "Hello"}]]
    return Target([one, two, batch], mutate_value, Asker().converse)


def option_target() -> Target:
    seed = {
        "item": {"min_pixels": 784, "max_pixels": 3136, "resized_height": 28, "resized_width": 56},
        "template": {
            "add_generation_prompt": True,
            "add_vision_id": False,
            "video_fps": 1.0,
            "padding": True,
            "return_tensors": "pt",
            "min_pixels": 784,
            "max_pixels": 1568,
        },
        "generate": {
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 5,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
            "eos_token_id": [692],
            "pad_token_id": 690,
            "seed": 1,
            "compile": False,
            "use_cache": True,
            "num_beams": 1,
        },
    }
    return Target([seed], mutate_value, Asker().call)


TARGETS: dict[str, Callable[[], Target]] = {
    "checkpoint": checkpoint_target,
    "image": image_target,
    "clip": clip_target,
    "conversation": conversation_target,
    "options": option_target,
}


def problem_of(target: Target, case: object) -> str | None:
    """None, or what is wrong with the way in which a case ended."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            target.run(case)
        except ALLOWED as error:
            if type(error) not in ALLOWED and not isinstance(error, OSError):
                return f"{type(error).__name__} is no ValueError of ours: {error}"
            if not str(error):
                return f"{type(error).__name__} without a message"
            if "\n" in str(error):
                return f"more than one line: {error}"
        except Exception as error:  # the finding itself
            return f"{type(error).__name__}: {error}"
    return None
