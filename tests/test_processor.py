"""Images, videos and conversations to patches and token ids, against the reference.

With the official tokenizer and config where QWEN2VL_OFFICIAL names them, else with the embedded
ones.
"""

import ast
import importlib.util
import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.qwen2_vl import image_processing_qwen2_vl

from load import find_checkpoint
from processor import (
    BatchFeature,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLProcessor,
    parse_conversation,
    render,
    sample_frames,
    smart_resize,
    video_limits,
)
from qwen2vl_extras.media import read_video
from tests.helpers.drawn_media import keep_frame, noise, write_video

GROUNDING = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
]
CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Pieces of text that are hard to split into tokens.
TEXTS = [
    "Hello",
    " world",
    "\n",
    "  two  spaces ",
    "12345",
    "I'll say: don't!",
    "你好，世界",
    "👩‍👩‍👧 🇨🇭",
    "e\u0301",
    "\t\n\n x",
    "na\u00efve",
    "def f(x):\n    return x",
    "<|",
    "|>",
    "",
    "ＡＢＣ",
    "\u202eabc",
    "user\n",
    "<tool>",
]
IMAGE_PART = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_PART = "<|vision_start|><|video_pad|><|vision_end|>"
OFFICIAL_LIMITS = {"min_pixels": 56 * 56, "max_pixels": 16384 * 28 * 28}


# ----------------------------------------------------------------------- what the tests work with


@pytest.fixture(scope="session")
def checkpoint(official_texts: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without weights: the official files if they are known, else the embedded ones."""
    folder = tmp_path_factory.mktemp("checkpoint")
    source = official_texts or find_checkpoint("tiny")
    for file in source.glob("*.json"):
        if not file.name.startswith("config-"):
            shutil.copyfile(file, folder / file.name)
    if (source / "config-2b.json").exists():
        shutil.copyfile(source / "config-2b.json", folder / "config.json")
    return folder


@pytest.fixture
def checkpoint_of_known_limits(tmp_path: Path) -> Path:
    """The embedded checkpoint's files, with the official limits of images and none of videos."""
    folder = tmp_path / "known limits"
    ignored = shutil.ignore_patterns("*.safetensors", "video_*")
    shutil.copytree(find_checkpoint("tiny"), folder, ignore=ignored)
    change_json(folder / "preprocessor_config.json", OFFICIAL_LIMITS)
    return folder


@pytest.fixture(scope="session")
def ours(checkpoint: Path) -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def theirs(checkpoint: Path) -> transformers.Qwen2TokenizerFast:
    """The reference's tokenizer, with the official template where it is known."""
    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(checkpoint)
    template = checkpoint / "chat_template.json"
    if template.exists():
        tokenizer.chat_template = read_json(template)["chat_template"]
    return tokenizer


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def change_json(path: Path, changes: dict) -> None:
    """Set entries of a JSON file; those with None are deleted."""
    content = read_json(path)
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def say(*items: str | dict, role: str = "user") -> list[dict]:
    """A conversation of one message; strings are items of text."""
    content = []
    for item in items:
        content.append({"type": "text", "text": item} if isinstance(item, str) else item)
    return [{"role": role, "content": content}]


def image_item(image: object, **options: object) -> dict:
    return {"type": "image", "image": image, **options}


def video_item(video: object, **options: object) -> dict:
    return {"type": "video", "video": video, **options}


def read(processor: Qwen2VLProcessor, conversation: list, **options: object) -> BatchFeature:
    """Everything the model takes of a conversation, or of a list of them."""
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, **options)


def encode(processor: Qwen2VLProcessor, conversation: list[dict], **options: bool) -> list[int]:
    """The ids of a rendered conversation, with one id for each placeholder."""
    return processor.encode(render(parse_conversation(conversation), **options))


# ------------------------------------------------------------------ images: sizes and pixel values


def test_smart_resize_gives_published_sizes():
    assert smart_resize(561, 278) == (560, 280)
    assert smart_resize(70, 420) == (56, 420), "70 / 28 = 2.5 rounds half to even"
    assert smart_resize(31, 639, max_pixels=20 * 784)[0] == 28, "a side never becomes 0"
    for min_pixels, max_pixels, patches in ((56 * 56, 12845056, 5704), (64**2, 512**2, 1320)):
        height, width = smart_resize(876, 1300, min_pixels=min_pixels, max_pixels=max_pixels)
        assert height * width // 14**2 == patches
        assert height * width // 28**2 == patches // 4


def test_smart_resize_equals_the_reference():
    rng = random.Random(0)
    for _ in range(5000):
        height = int(2 ** rng.uniform(0, 12))
        width = int(2 ** rng.uniform(0, 12))
        min_pixels = rng.choice([0, 28 * 28, 56 * 56, rng.randrange(784, 10**6)])
        larger = max(784, min_pixels + rng.randrange(10**6))
        max_pixels = max(min_pixels, rng.choice([14 * 14 * 4 * 1280, larger]))
        if max(height, width) / min(height, width) <= 200:
            found = smart_resize(height, width, 28, min_pixels, max_pixels)
            expected = image_processing_qwen2_vl.smart_resize(
                height, width, 28, min_pixels, max_pixels
            )
            # The reference lets a side become 0.
            assert found == tuple(max(28, side) for side in expected)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ((2010, 10), ["2010", "10"]),
        ((0, 5), ["0", "5"]),
        ((50, 50, 28, 3136, 3000), ["3136", "3000"]),
        ((50, 50, 28, 100, 700), ["28 x 28", "700"]),
    ],
)
def test_sizes_and_limits_that_cannot_be_met_are_errors_with_both_numbers(arguments, numbers):
    with pytest.raises(ValueError) as error:
        smart_resize(*arguments)
    message = str(error.value)
    assert all(number in message for number in numbers)
    assert "\n" not in message


def reference_pixels(image: Image.Image, min_pixels: int, max_pixels: int) -> dict[str, Tensor]:
    reference = transformers.Qwen2VLImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels)
    return reference(images=[image], return_tensors="pt")


def random_images(count: int) -> Iterator[tuple[Image.Image, int, int]]:
    """Images of random sizes and modes, each with min_pixels and max_pixels."""
    rng = random.Random(1)
    for seed in range(count):
        mode = rng.choice(["RGB", "RGB", "L", "P", "1"])
        image = noise(rng.randrange(4, 260), rng.randrange(4, 260), seed).convert(mode)
        small = (784, 784 * rng.randrange(1, 40))
        min_pixels, max_pixels = rng.choice([(3136, 12845056), small, (50000, 90000)])
        yield image, min_pixels, max_pixels


def test_pixel_values_equal_the_reference(amount, figure):
    for image, min_pixels, max_pixels in random_images(amount(30, 300)):
        case = (image.size, min_pixels, max_pixels)
        expected = reference_pixels(image, min_pixels, max_pixels)
        found = Qwen2VLImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels)(image)
        assert found.image_grid_thw.tolist() == expected["image_grid_thw"].tolist(), case
        assert found.pixel_values.dtype == torch.float32
        assert found.image_grid_thw.dtype == torch.int64
        worst = (found.pixel_values - expected["pixel_values"]).abs().max().item()
        assert figure("pixel values, error", worst) <= 1e-6, case


def test_fast_pixel_values_are_close_to_the_reference(amount):
    level = 1 / 255 / 0.26  # one of 255 levels, after normalising
    num_values = 0
    num_different = 0
    for image, min_pixels, max_pixels in random_images(amount(24, 300)):
        # Along rows first, as torch and torchvision do. Pillow does so up to 12; 13 begins with
        # the columns in some shapes.
        height, width = smart_resize(image.height, image.width, 28, min_pixels, max_pixels)
        wide = image.convert("RGB").resize((width, image.height), Image.Resampling.BICUBIC)
        resized = wide.resize((width, height), Image.Resampling.BICUBIC)
        expected = reference_pixels(resized, 784, 10**9)["pixel_values"]

        fast = Qwen2VLImageProcessorFast(min_pixels=min_pixels, max_pixels=max_pixels)
        error = (fast(image).pixel_values - expected).abs()
        assert error.max() <= 2.1 * level, (image.size, image.mode, min_pixels, max_pixels)
        num_different += int((error > 2e-2).sum())
        num_values += error.numel()
    assert num_different <= 1e-4 * num_values, "nearly all are within one of 255 levels"


@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLImageProcessorFast])
def test_images_of_mixed_sizes_come_out_in_order_and_as_if_alone(kind):
    sizes = [(56, 84), (40, 40), (56, 84), (84, 56), (40, 40)]
    images = [noise(height, width, i) for i, (height, width) in enumerate(sizes)]
    together = kind()(images)
    alone = [kind()(image) for image in images]
    for key in ("pixel_values", "image_grid_thw"):
        assert torch.equal(together[key], torch.cat([one[key] for one in alone]))


def count_tokens(grid_thw: Tensor) -> int:
    return int(grid_thw.prod()) // 4


def test_nearest_limit_wins(checkpoint_of_known_limits):
    """max_pixels at load, in a call and per item."""
    image = noise(560, 560)
    loaded = Qwen2VLProcessor.from_pretrained(checkpoint_of_known_limits, max_pixels=280**2)

    def tokens(item: dict, **options: int) -> int:
        return count_tokens(read(loaded, say(item), **options).image_grid_thw)

    assert tokens(image_item(image)) == 100
    assert tokens(image_item(image), max_pixels=140**2) == 25
    assert tokens(image_item(image, max_pixels=84**2), max_pixels=140**2) == 9
    # A size that is asked for has no limits, and a side that is not named stays.
    resized = image_item(image, resized_height=60, resized_width=100)
    assert tokens(resized, max_pixels=140**2) == 2 * 4
    assert tokens(image_item(image, resized_height=56)) == 2 * 20
    with pytest.raises(ValueError, match=r"3000.*3136"):
        tokens(image_item(image, max_pixels=3000))
    trusted = loaded(text="<|image_pad|>", images=image, max_pixels=560**2)
    assert count_tokens(trusted.image_grid_thw) == 400

    # The caller's limits hold for videos as well; those of the file are for images.
    unlimited = Qwen2VLProcessor.from_pretrained(checkpoint_of_known_limits)
    video = say(video_item([image, image]))
    assert count_tokens(read(loaded, video).video_grid_thw) == 100
    assert count_tokens(read(unlimited, video).video_grid_thw) == 400


def test_limits_for_videos_in_a_file_of_their_own_hold_unless_the_caller_sets_others(
    checkpoint_of_known_limits,
):
    """video_preprocessor_config.json, as newer repositories have it; the official have none."""
    folder = checkpoint_of_known_limits
    stated = {"min_pixels": 784, "max_pixels": 56**2, "fps": 1}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(stated))
    video = say(video_item([noise(280, 280)] * 2))

    def tokens(processor: Qwen2VLProcessor, **options: int) -> int:
        return count_tokens(read(processor, video, **options).video_grid_thw)

    assert tokens(Qwen2VLProcessor.from_pretrained(str(folder))) == 4
    assert tokens(Qwen2VLProcessor.from_pretrained(str(folder)), max_pixels=84**2) == 9
    assert tokens(Qwen2VLProcessor.from_pretrained(str(folder), max_pixels=140**2)) == 25


def test_size_in_place_of_limits_is_understood(checkpoint, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    shutil.copyfile(checkpoint / path.name, path)
    size = {"shortest_edge": 784, "longest_edge": 84**2}
    change_json(path, {"min_pixels": None, "max_pixels": None, "size": size})
    loaded = Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert (loaded.min_pixels, loaded.max_pixels) == (784, 84**2)


def test_a_single_pixel_is_enlarged():
    batch = Qwen2VLImageProcessor()(Image.new("RGB", (1, 1), (255, 0, 127)))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.array([1, 0, 127 / 255]) - mean) / std
    assert batch.image_grid_thw.tolist() == [[1, 4, 4]]
    found = batch.pixel_values.view(16, 3, -1).numpy()
    assert np.abs(found - expected[None, :, None]).max() < 1e-6


def test_message_items_name_their_image_in_four_ways(ours, tmp_path):
    noise(56, 56).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    items = [{"type": "image", key: path} for key in ("path", "url", "image", "image_url")]
    items.append({"type": "image_url", "image_url": {"url": path}})
    items.append({"image": path})
    expected = ours.image_processor(path).pixel_values
    for item in items:
        assert torch.equal(read(ours, say(item)).pixel_values, expected)


# ------------------------------------------------------------------------------- frames and videos


def reference_sample_frames() -> Callable[[int, float, float], list[int]]:
    """The reference's choice of frames, as a function of total, rate and fps.

    It is cut out of a file of transformers that can't be imported here without torchvision.
    """
    root = Path(importlib.util.find_spec("transformers").origin).parent
    file = root / "models/qwen2_vl/video_processing_qwen2_vl.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "sample_frames":
            method = node
    for argument in method.args.args:
        argument.annotation = None  # these name what would have to be imported
    scope = {"math": math, "torch": torch}
    exec(compile(ast.Module([method], []), str(file), "exec"), scope)

    defaults = SimpleNamespace(
        num_frames=None, fps=None, temporal_patch_size=2, min_frames=4, max_frames=768
    )

    def sample(total: int, rate: float, fps: float) -> list[int]:
        metadata = SimpleNamespace(total_num_frames=total, fps=rate)
        return scope["sample_frames"](defaults, metadata, fps=fps).tolist()

    return sample


def test_frame_indices_equal_the_reference_wherever_it_returns_n_of_them():
    reference = reference_sample_frames()
    compared = 0
    rng = random.Random(2)
    for _ in range(2000):
        total = rng.randrange(2, 3000)
        rate = rng.choice([5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0])
        fps = rng.choice([0.5, 1.0, 2.0, 3.0, 10.0])
        expected = reference(total, rate, fps)
        found = sample_frames(total, rate, fps=fps)

        wanted = max(total / rate * fps, 4)
        n = min(wanted, min(768, total) // 2 * 2, total) // 2 * 2
        assert len(found) == n
        if len(expected) != n:
            continue
        compared += 1
        for i in range(int(n)):
            # The reference counts in float32: its rounding is allowed where the exact quotient is
            # a whole number.
            is_whole = i * total % n == 0
            assert found[i] == expected[i] or (is_whole and found[i] == expected[i] + 1)
    assert compared > 1000


def count_frames(total: int, rate: float, **options: float) -> int:
    return len(sample_frames(total, rate, **options))


def test_frame_counts_of_odd_videos():
    assert count_frames(1, 25.0) == 1
    assert count_frames(2, 25.0) == 2
    # Rounded down to an even number.
    assert count_frames(3, 25.0) == 2
    assert count_frames(7, 7.0, fps=7) == 6
    assert count_frames(10, 10.0, nframes=5) == 4
    # A number that is asked for is rounded, 7 / 2 to the even 4.
    assert count_frames(10, 10.0, nframes=7) == 8
    assert count_frames(10, 10.0, nframes=1) == 1
    # Within the limits.
    assert count_frames(100000, 25.0) == 768
    assert count_frames(100000, 25.0, max_frames=11) == 10
    assert sample_frames(10, 10.0, nframes=4) == [0, 2, 5, 7]


@pytest.mark.parametrize(
    ("total", "options", "named"),
    [
        (5, {"nframes": 6}, ["6", "5"]),
        (5, {"nframes": 0}, ["0", "5"]),
        (0, {}, ["0 frames"]),
        (9, {"max_frames": 0, "min_frames": 0}, ["0", "9"]),
        (9, {"fps": 0}, ["fps 0"]),
        (9, {"min_frames": 8, "max_frames": 6}, ["8", "6"]),
    ],
)
def test_frame_counts_that_cannot_be_had_are_errors_that_name_them(total, options, named):
    with pytest.raises(ValueError) as error:
        sample_frames(total, 10.0, **options)
    assert all(text in str(error.value) for text in named)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_videos_give_whole_frame_pairs(ours, tmp_path, count):
    path = str(write_video(tmp_path / "a.mp4", count))
    batch = read(ours, say({"type": "video", "path": path}))
    t, h, w = batch.video_grid_thw[0].tolist()
    assert t == max(1, count // 2)
    assert len(batch.pixel_values_videos) == t * h * w
    assert batch.input_ids.eq(ours.video_token_id).sum() == t * h * w // 4
    if count == 1:
        first, second = batch.pixel_values_videos.view(-1, 3, 2, 196).unbind(2)
        assert torch.equal(first, second)


def test_all_frames_together_stay_under_total_pixels():
    """The rule of qwen-vl-utils: per frame max(min(768·28², total/n·2), 1.05·min)."""
    for n in (1, 10, 64, 100, 768):
        limits = video_limits(n, {})
        assert limits["min_pixels"] == 128 * 784
        share = min(768 * 784, 24576 * 784 / n * 2)
        assert limits["max_pixels"] == max(share, int(128 * 784 * 1.05))
    # Unless the caller asks for less.
    assert video_limits(10, {"max_pixels": 5000}) == {"min_pixels": 5000, "max_pixels": 5000}
    assert video_limits(10, {"min_pixels": 784})["max_pixels"] == 768 * 784
    assert video_limits(10, {"min_pixels": 784, "total_pixels": 50000})["max_pixels"] == 10000


def test_a_frame_list_of_two_sizes_is_refused(ours):
    with pytest.raises(ValueError, match="differ in size"):
        ours(text="<|video_pad|>", videos=[[noise(300, 300), noise(600, 300)]])


def test_options_of_a_video_come_from_call_or_item(checkpoint_of_known_limits, tmp_path):
    processor = Qwen2VLProcessor.from_pretrained(checkpoint_of_known_limits)
    path = write_video(tmp_path / "a.mp4", 60)  # 6 seconds

    def run(options: dict, **call_options: object) -> BatchFeature:
        item = video_item(path, max_pixels=784)
        item.update(options)
        return read(processor, say(item), **call_options)

    def frames(options: dict, **call_options: object) -> int:
        return int(run(options, **call_options).video_grid_thw[0, 0]) * 2

    assert frames({}) == 12
    assert frames({"video": None, "url": path.as_uri()}) == 12
    assert frames({}, video_fps=1) == 6
    assert frames({}, fps=1) == 6
    assert frames({"nframes": 8}, video_fps=1) == 8
    assert frames({"fps": 4}, fps=1) == 24
    assert frames({"min_frames": 20}) == 20
    assert frames({"max_frames": 4}) == 4
    assert frames({"video_start": 1.0, "video_end": 2.95}) == 4

    # The part of a video gives what its frames give as a list.
    part = run({"nframes": 4, "video_start": 1, "video_end": 1.9})
    chosen = read_video(path, lambda total, rate: [10, 12, 15, 17], keep_frame)
    expected = run({"video": chosen})
    assert torch.equal(part.pixel_values_videos, expected.pixel_values_videos)
    with pytest.raises(ValueError, match=r"6\.00 s.*7 to 9"):
        run({"video_start": 7, "video_end": 9})


@pytest.mark.parametrize(
    ("wrong", "end"),
    [
        ("max_pixel", ": did you mean 'max_pixels'?"),
        ("nframe", ": did you mean 'nframes'?"),
        ("frame_rate", ": "),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_known_one(ours, wrong, end):
    expected = re.escape(f"no option '{wrong}'{end}")
    with pytest.raises(ValueError, match=expected):
        read(ours, say("hi"), **{wrong: 4})
    with pytest.raises(ValueError, match=expected):
        ours(text="hi", **{wrong: 4})


# -------------------------------------------------------------------------------- template and ids


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices([*TEXTS, *GROUNDING], k=rng.randrange(4)))


def random_item(rng: random.Random) -> dict:
    """An item of text, an image or a video, in one of the forms that the template knows."""
    text = "a text"  # replaced below
    item = rng.choice(
        [
            {"type": "text", "text": text},
            {"type": "text", "text": text},
            {"type": "text", "text": text},
            {"type": "image"},
            {"type": "video"},
            {"type": "image", "image": "a.png"},
            {"image_url": {"url": "a.png"}},
            {"type": "image", "url": "a.png"},
            {"video": "a.mp4"},
            {"text": text},
        ]
    )
    if "text" in item:
        item["text"] = random_text(rng)
    return item


def random_conversation(rng: random.Random) -> list[dict]:
    roles = rng.choice(
        [
            ["system", "user"],
            ["user"],
            ["user", "assistant", "user"],
            ["assistant", "user", "system"],
        ]
    )
    messages = []
    for role in roles:
        if rng.random() < 0.3:
            content = random_text(rng)
        else:
            content = [random_item(rng) for _ in range(rng.randrange(5))]
        messages.append({"role": role, "content": content})
    return messages


def test_rendered_chat_equals_the_official_template_and_its_ids_the_reference(
    official, ours, theirs, amount
):
    rng = random.Random(3)
    for _ in range(amount(80, 300)):
        conversation = random_conversation(rng)
        options = {"add_generation_prompt": rng.random() < 0.5, "add_vision_id": rng.random() < 0.5}
        expected = theirs.apply_chat_template(conversation, tokenize=False, **options)
        assert ours.apply_chat_template(conversation, **options) == expected
        assert encode(ours, conversation, **options) == theirs(expected)["input_ids"]

        # With media: an image gives 2 x 2 tokens, a video 2 x 10 x 13.
        images = [Image.new("RGB", (56, 56))] * expected.count("<|image_pad|>")
        videos = [[Image.new("RGB", (360, 280))] * 4] * expected.count("<|video_pad|>")
        if len(images) + len(videos) < 5:
            expanded = expected.replace("<|image_pad|>", "<|image_pad|>" * 4)
            expanded = expanded.replace("<|video_pad|>", "<|video_pad|>" * 260)
            batch = ours(text=expected, images=images, videos=videos)
            assert batch.input_ids.tolist() == [theirs(expanded)["input_ids"]]


def test_ids_of_rendered_chats_equal_the_reference_tokenizer(ours, theirs):
    rng = random.Random(4)
    for _ in range(80):
        conversation = random_conversation(rng)
        rendered = ours.apply_chat_template(conversation, add_generation_prompt=True)
        found = encode(ours, conversation, add_generation_prompt=True)
        assert found == theirs(rendered)["input_ids"]


def test_the_documentations_two_outputs(ours):
    answer = "I'm doing well, thank you for asking. How can I assist you today?"
    question = "Can you describe these images and video?"
    conversation = [
        *say({"type": "image"}, "Hello, how are you?"),
        {"role": "assistant", "content": answer},
        *say(
            question,
            {"type": "image"},
            {"type": "image"},
            {"type": "video"},
            "These are from my vacation.",
        ),
    ]
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    middle = "Hello, how are you?<|im_end|>\n"
    middle += f"<|im_start|>assistant\n{answer}<|im_end|>\n"
    middle += f"<|im_start|>user\n{question}"
    tail = "These are from my vacation.<|im_end|>\n<|im_start|>assistant\n"

    plain = ours.apply_chat_template(conversation, add_generation_prompt=True)
    assert plain == f"{head}{IMAGE_PART}{middle}{IMAGE_PART}{IMAGE_PART}{VIDEO_PART}{tail}"

    numbered = ours.apply_chat_template(
        conversation, add_generation_prompt=True, add_vision_id=True
    )
    expected = f"{head}Picture 1: {IMAGE_PART}{middle}Picture 2: {IMAGE_PART}"
    expected += f"Picture 3: {IMAGE_PART}Video 1: {VIDEO_PART}{tail}"
    assert numbered == expected


def test_control_tokens_in_user_text_are_text(ours, theirs):
    """Never a control id; turns and placeholders unchanged; decodes back to the same text."""
    rng = random.Random(4)
    control_ids = {token: theirs.convert_tokens_to_ids(token) for token in CONTROL}
    image = Image.new("RGB", (56, 56))  # 4 tokens
    plain = theirs(ours.apply_chat_template(say("x", {"type": "image"})))["input_ids"]
    for _ in range(60):
        text = "".join(rng.choices([*CONTROL, "<|im_", "end|>", "hi ", "\n", "你好"], k=6))
        cut = rng.randrange(len(text) + 1)
        ids = read(ours, say(text[:cut], text[cut:], image_item(image))).input_ids[0].tolist()

        # As many control tokens as where a user writes none.
        for token, token_id in control_ids.items():
            repeats = 4 if token == "<|image_pad|>" else 1
            assert ids.count(token_id) == plain.count(token_id) * repeats, (text, token)
        rest = [i for i in ids if i not in control_ids.values()]
        expected = f"system\nYou are a helpful assistant.\nuser\n{text}\n"
        assert theirs.decode(rest) == expected, text

    # A rendered string is trusted.
    trusted = ours(text="<|im_start|>user\n<|im_end|>").input_ids[0].tolist()
    assert trusted == theirs("<|im_start|>user\n<|im_end|>")["input_ids"]


def test_grounding_tokens_in_text_are_tokens(ours, theirs):
    text = "the <|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> "
    text += "<|quad_start|>x<|quad_end|>"
    ids = read(ours, say(text)).input_ids[0].tolist()
    for token in GROUNDING:
        assert ids.count(theirs.convert_tokens_to_ids(token)) == 1

    # One token from two items, as in the reference, which sees the joined string.
    split = say("<|box_st", "art|>")
    assert encode(ours, split) == theirs(ours.apply_chat_template(split))["input_ids"]


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("given", [0, 1, 3])
def test_more_or_fewer_images_than_placeholders_is_an_error_with_both_counts(ours, given):
    images = [Image.new("RGB", (28, 28))] * given or None
    with pytest.raises(ValueError) as error:
        ours(text=[IMAGE_PART * 2], images=images)
    assert str(error.value) == f"image placeholders in the prompt: 2, images given: {given}"


def test_a_video_placeholder_needs_a_video(ours):
    with pytest.raises(ValueError, match="video placeholders in the prompt: 0, videos given: 1"):
        ours(text="hi", videos=[[Image.new("RGB", (28, 28))] * 2])
    with pytest.raises(ValueError, match="no source"):
        read(ours, say({"type": "image"}))


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        [[]],
        "hi",
        {"role": "user", "content": "hi"},
        ["hi"],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{"type": "sound", "sound": "a.wav"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    ],
)
def test_misshapen_conversations_are_one_line_errors(ours, conversation):
    with pytest.raises(ValueError) as error:
        ours.apply_chat_template(conversation)
    assert "\n" not in str(error.value)


def test_a_prompt_past_the_models_reach_names_both_numbers_and_what_is_cheaper(ours):
    most = ours.max_tokens
    for length in (most + 1, 2 * most + 1):
        expected = rf"{length} tokens.*at most {most}: lower max_pixels, fps or nframes"
        with pytest.raises(ValueError, match=expected):
            ours("<|im_end|>" * length)
    assert ours("<|im_end|>" * most).input_ids.shape == (1, most)


# -------------------------------------------------------------------------------- batches of rows


def test_lists_are_left_padded_unasked_and_rows_equal_single_ones(ours):
    frames = [noise(60, 60, i) for i in range(3)]
    conversations = [
        say(image_item(noise(56, 56)), "one"),
        say("two words and more"),
        say(video_item(frames), image_item(noise(84, 84)), "all"),
    ]
    batch = read(ours, conversations, add_generation_prompt=True)
    singles = [read(ours, one, add_generation_prompt=True) for one in conversations]
    for row, mask, single in zip(batch.input_ids, batch.attention_mask, singles, strict=True):
        n = single.input_ids.shape[1]
        missing = len(row) - n
        assert torch.equal(row[missing:], single.input_ids[0])
        assert row[:missing].eq(ours.pad_token_id).all()
        assert mask.tolist() == [0] * missing + [1] * n

    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        expected = torch.cat([single[key] for single in singles if key in single])
        assert torch.equal(batch[key], expected)
    assert set(singles[1]) == {"input_ids", "attention_mask"}
    ids = ours.apply_chat_template(conversations, tokenize=True, add_generation_prompt=True)
    assert torch.equal(ids, batch.input_ids)


def test_the_same_batch_comes_from_messages_and_from_rendered_strings(ours):
    images = [noise(56, 84), noise(84, 56)]
    frames = [noise(60, 60, i) for i in range(4)]
    conversations = [
        say(image_item(images[0]), "a"),
        [*say("b", video_item(frames)), *say(image_item(images[1]))],
    ]
    expected = read(ours, conversations, add_generation_prompt=True)
    texts = ours.apply_chat_template(conversations, add_generation_prompt=True)
    for nested in (images, [[images[0]], [images[1]]]):
        found = ours(text=texts, images=nested, videos=[frames], padding=True, return_tensors="pt")
        assert set(found) == set(expected)
        for key in found:
            assert torch.equal(found[key], expected[key])

    for options in ({"padding": False}, {"return_tensors": "np"}):
        with pytest.raises(ValueError, match=r"padding=.*return_tensors="):
            ours(text=["a", "a b c"], **options)


def test_a_batch_is_a_mapping_that_moves(ours):
    batch = ours(text="<|image_pad|>", images=noise(28, 28))
    assert batch.input_ids is batch["input_ids"]
    assert {**batch}.keys() == batch.keys()
    moved = batch.to("meta")
    assert moved.pixel_values.is_meta
    assert moved.pixel_values.dtype == torch.float32
    assert moved.input_ids.is_meta
    assert moved.input_ids.dtype == moved.attention_mask.dtype == torch.int64
    with pytest.raises(AttributeError, match="labels"):
        _ = batch.labels


# ----------------------------------------------------------------------------------------- decoding


def test_decoding_equals_the_reference(ours, theirs):
    rng = random.Random(5)
    spaced = [" .", " ?", " n't", " 's", " 're", " ' ", " ,", " !"]
    words = [*TEXTS, *GROUNDING, *CONTROL, *spaced]
    rows = []
    for _ in range(60):
        rows.append(theirs("".join(rng.choices(words, k=12)))["input_ids"])
    for _ in range(60):
        rows.append([rng.randrange(len(theirs)) for _ in range(20)])
    for skip in (False, True):
        for clean in (False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)

    hello = theirs("Hello")["input_ids"]
    world = theirs(" world")["input_ids"]
    assert ours.batch_decode(torch.tensor([hello + world])) == ["Hello world"]
    beyond = [len(theirs), len(theirs) + 100]  # the vocabulary has more rows than there are tokens
    assert ours.decode(hello + beyond + world) == "Hello\ufffd\ufffd world"


def test_emoji_and_cjk_stream_whole(ours, theirs):
    rng = random.Random(6)
    for _ in range(60):
        text = "".join(rng.choices([*TEXTS, "🦄", "🫠", "𠜎", "龘", *GROUNDING], k=8))
        ids = theirs(text)["input_ids"]
        stream = ours.text_stream()
        pieces = [stream.push(i) for i in [*ids, ours.eos_token_id, ours.pad_token_id]]
        assert "".join(pieces) == theirs.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)
        assert stream.finish() == ""

    ids = theirs("🫠")["input_ids"]
    assert len(ids) >= 3
    stream = ours.text_stream()
    assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🫠"]
    # An unfinished character at the end of an answer.
    assert [stream.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.finish() == "\ufffd"
    # An id without a token.
    assert ours.text_stream().push(len(theirs) + 50) == "\ufffd"


# ------------------------------------------------------------------------------------ the tokenizer


def test_vision_tokens_that_stand_only_in_tokenizer_config_are_found(
    checkpoint, ours, theirs, tmp_path
):
    """The official repositories' tokenizer.json lacks some of them."""
    for path in checkpoint.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    first = theirs.convert_tokens_to_ids("<|vision_start|>")
    kept = []
    moved = {}
    for token in read_json(tmp_path / "tokenizer.json")["added_tokens"]:
        if token["id"] < first:
            kept.append(token)
        else:
            moved[str(token.pop("id"))] = token
    change_json(tmp_path / "tokenizer.json", {"added_tokens": kept})
    change_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": moved})

    loaded = Qwen2VLProcessor.from_pretrained(tmp_path)
    assert loaded.image_token_id == ours.image_token_id
    assert loaded.video_token_id == ours.video_token_id
    conversation = say({"type": "image"}, "hi")
    rendered = loaded.apply_chat_template(conversation)
    assert encode(loaded, conversation) == theirs(rendered)["input_ids"]


def test_a_tokenizer_without_vision_tokens_is_refused(checkpoint):
    content = read_json(checkpoint / "tokenizer.json")
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks.*<\|image_pad\|>"):
        Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer)
