"""processor.py: pictures, clips and conversations to patches and token ids, against the
reference.

With the official tokenizer and config where QWEN2VL_OFFICIAL names them, else with the embedded
ones.
"""

import ast
import importlib.util
import json
import math
import random
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import processor as P
from load import find_checkpoint
from processor import (
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLProcessor,
    smart_resize,
)
from qwen2vl_extras.media import read_video
from tests.helpers.drawn_media import keep_frame, noise, write_video

transformers = pytest.importorskip("transformers", reason="the oracle: pip install -e .[dev]")
GROUNDING = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
GROUNDING += ["<|quad_start|>", "<|quad_end|>"]
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>"]
CONTROL += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
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
]
TEXTS += [
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


TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"

# ----------------------------------------------------------------------- what the tests work with


@pytest.fixture(scope="session")
def checkpoint(official_texts: Path | None, tmp_path_factory) -> Path:
    """A checkpoint folder without weights: the official files if known, else the embedded ones."""
    folder = tmp_path_factory.mktemp("checkpoint")
    source = official_texts or TINY
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
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors", "video_*"))
    stated = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    stated["min_pixels"], stated["max_pixels"] = 56 * 56, 16384 * 28 * 28
    (folder / "preprocessor_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def ours(checkpoint) -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def theirs(checkpoint):
    """The reference's tokenizer, with the official template."""
    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(checkpoint)
    if (template := checkpoint / "chat_template.json").exists():
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    return tokenizer


def say(*items, role: str = "user") -> list[dict]:
    return [
        {
            "role": role,
            "content": [{"type": "text", "text": x} if isinstance(x, str) else x for x in items],
        }
    ]


def reference_sample_frames():
    """`Qwen2VLVideoProcessor.sample_frames` of transformers, cut out of a file that cannot be
    imported here without torchvision.
    """
    root = Path(importlib.util.find_spec("transformers").origin).parent
    source = (root / "models/qwen2_vl/video_processing_qwen2_vl.py").read_text(encoding="utf-8")
    found = next(
        n for n in ast.walk(ast.parse(source)) if getattr(n, "name", "") == "sample_frames"
    )
    for argument in found.args.args:
        argument.annotation = None
    scope = {"math": math, "torch": torch}
    exec(compile(ast.Module([found], []), "reference", "exec"), scope)
    defaults = SimpleNamespace(
        num_frames=None, fps=None, temporal_patch_size=2, min_frames=4, max_frames=768
    )
    return partial(scope["sample_frames"], defaults)


# --------------------------------------------------------------- pictures: sizes and pixel values


def test_smart_resize_gives_published_sizes():
    assert smart_resize(561, 278) == (560, 280)
    assert smart_resize(70, 420) == (56, 420), "70 / 28 = 2.5 rounds half to even"
    assert smart_resize(31, 639, max_pixels=20 * 784)[0] == 28, "a side never becomes 0"
    for limits, patches in (({}, 5704), ({"min_pixels": 64**2, "max_pixels": 512**2}, 1320)):
        height, width = smart_resize(876, 1300, **({"max_pixels": 12845056} | limits))
        assert height * width // 14**2 == patches and height * width // 28**2 == patches // 4


def test_smart_resize_equals_the_reference():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

    rng = random.Random(0)
    for _ in range(5000):
        height, width = (int(2 ** rng.uniform(0, 12)) for _ in range(2))
        least = rng.choice([0, 28 * 28, 56 * 56, rng.randrange(784, 10**6)])
        most = rng.choice([14 * 14 * 4 * 1280, max(784, least + rng.randrange(10**6))])
        most = max(least, most)
        if max(height, width) / min(height, width) <= 200:
            expected = reference(height, width, 28, least, most)
            assert smart_resize(height, width, 28, least, most) == (
                tuple(max(28, side) for side in expected)
            )


@pytest.mark.parametrize(
    "arguments, numbers",
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
    assert all(number in str(error.value) for number in numbers) and "\n" not in str(error.value)


def reference_pixels(picture: Image.Image, least: int, most: int) -> dict:
    reference = transformers.Qwen2VLImageProcessor(min_pixels=least, max_pixels=most)
    return reference(images=[picture], return_tensors="pt")


def random_cases(count: int):
    rng = random.Random(1)
    for seed in range(count):
        mode = rng.choice(["RGB", "RGB", "L", "P", "1"])
        picture = noise(rng.randrange(4, 260), rng.randrange(4, 260), seed)
        yield (
            picture.convert(mode),
            *rng.choice([(3136, 12845056), (784, 784 * rng.randrange(1, 40)), (50000, 90000)]),
        )


def test_pixel_values_equal_the_reference(amount, figure):
    for picture, least, most in random_cases(amount(30, 300)):
        expected = reference_pixels(picture, least, most)
        got = Qwen2VLImageProcessor(min_pixels=least, max_pixels=most)(picture)
        assert got.image_grid_thw.tolist() == expected["image_grid_thw"].tolist(), (
            picture.size,
            least,
            most,
        )
        assert got.pixel_values.dtype == torch.float32 and got.image_grid_thw.dtype == torch.int64
        worst = (got.pixel_values - expected["pixel_values"]).abs().max().item()
        assert figure("pixel values, error", worst) <= 1e-6, (picture.size, least, most)


def test_fast_pixel_values_are_close_to_the_reference(amount):
    """Along rows first, as torch, torchvision and Pillow up to 12; 13 starts with columns in some
    shapes.
    """
    level, off, count = 1 / 255 / 0.26, 0, 0
    for picture, least, most in random_cases(amount(24, 300)):
        height, width = smart_resize(picture.height, picture.width, 28, least, most)
        rows = picture.convert("RGB").resize((width, picture.height), Image.Resampling.BICUBIC)
        resized = rows.resize((width, height), Image.Resampling.BICUBIC)
        expected = reference_pixels(resized, 784, 10**9)["pixel_values"]
        got = Qwen2VLImageProcessorFast(min_pixels=least, max_pixels=most)(picture).pixel_values
        error = (got - expected).abs()
        assert error.max() <= 2.1 * level, (picture.size, picture.mode, least, most)
        off, count = off + int((error > 2e-2).sum()), count + error.numel()
    assert off <= 1e-4 * count, "nearly all are within one of 255 levels"


@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLImageProcessorFast])
def test_images_of_mixed_sizes_come_out_in_order_and_as_if_alone(kind):
    pictures = [
        noise(h, w, i)
        for i, (h, w) in enumerate([(56, 84), (40, 40), (56, 84), (84, 56), (40, 40)])
    ]
    together, alone = kind()(pictures), [kind()(picture) for picture in pictures]
    assert torch.equal(together.pixel_values, torch.cat([one.pixel_values for one in alone]))
    assert torch.equal(together.image_grid_thw, torch.cat([one.image_grid_thw for one in alone]))


def test_nearest_limit_wins(checkpoint_of_known_limits):
    """max_pixels at load, in a call and per item."""
    checkpoint = checkpoint_of_known_limits
    picture = noise(560, 560)

    def tokens(batch) -> int:
        return int(batch["image_grid_thw"].prod()) // 4

    loaded = Qwen2VLProcessor.from_pretrained(checkpoint, max_pixels=280**2)
    item = {"type": "image", "image": picture}
    run = partial(loaded.apply_chat_template, tokenize=True, return_dict=True)
    assert tokens(run(say(item))) == 100
    assert tokens(run(say(item), max_pixels=140**2)) == 25
    assert tokens(run(say(item | {"max_pixels": 84**2}), max_pixels=140**2)) == 9
    assert (
        tokens(run(say(item | {"resized_height": 60, "resized_width": 100}), max_pixels=140**2))
        == 2 * 4
    )
    assert tokens(loaded(text="<|image_pad|>", images=picture, max_pixels=560**2)) == 400
    assert tokens(run(say(item | {"resized_height": 56}))) == 2 * 20, "the other side stays"
    with pytest.raises(ValueError, match=r"3000.*3136"):
        run(say(item | {"max_pixels": 3000}))
    frames = {"type": "video", "video": [picture] * 2}
    for processor, most in ((loaded, 100), (Qwen2VLProcessor.from_pretrained(checkpoint), 400)):
        grid = processor.apply_chat_template(say(frames), tokenize=True, return_dict=True)[
            "video_grid_thw"
        ]
        assert int(grid.prod()) // 4 == most, (
            "limits of the caller hold for clips, those of the file don't"
        )


def test_limits_for_videos_in_a_file_of_their_own_hold_unless_the_caller_sets_others(tmp_path):
    """video_preprocessor_config.json, as newer repositories have it; official ones have none."""
    folder = find_checkpoint("tiny", weights=False)
    for file in folder.glob("*.json"):
        shutil.copy(file, tmp_path)
    stated = {"min_pixels": 784, "max_pixels": 56**2, "fps": 1}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(stated))
    clip = {"type": "video", "video": [noise(280, 280)] * 2}

    def tokens(processor, **options) -> int:
        run = partial(processor.apply_chat_template, tokenize=True, return_dict=True)
        return int(run(say(clip), **options)["video_grid_thw"].prod()) // 4

    assert tokens(Qwen2VLProcessor.from_pretrained(str(tmp_path))) == 4
    assert tokens(Qwen2VLProcessor.from_pretrained(str(tmp_path)), max_pixels=84**2) == 9
    assert tokens(Qwen2VLProcessor.from_pretrained(str(tmp_path), max_pixels=140**2)) == 25


def test_size_in_place_of_limits_is_understood(checkpoint, tmp_path):
    config = json.loads((checkpoint / "preprocessor_config.json").read_text())
    for name in ("min_pixels", "max_pixels"):
        del config[name]
    config["size"] = {"shortest_edge": 784, "longest_edge": 84**2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    loaded = Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert (loaded.min_pixels, loaded.max_pixels) == (784, 84**2)


def test_a_single_pixel_is_enlarged():
    batch = Qwen2VLImageProcessor()(Image.new("RGB", (1, 1), (255, 0, 127)))
    mean, std = (
        np.array([0.48145466, 0.4578275, 0.40821073]),
        np.array([0.26862954, 0.26130258, 0.27577711]),
    )
    expected = (np.array([1, 0, 127 / 255]) - mean) / std
    assert batch.image_grid_thw.tolist() == [[1, 4, 4]]
    got = batch.pixel_values.view(16, 3, -1)
    assert np.abs(got.numpy() - expected[None, :, None]).max() < 1e-6


def test_message_items_name_their_image_in_four_ways(ours, tmp_path):
    noise(56, 56).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    items = [{"type": "image", key: path} for key in ("path", "url", "image", "image_url")]
    items += [{"type": "image_url", "image_url": {"url": path}}, {"image": path}]
    expected = ours.image_processor(path).pixel_values
    for item in items:
        got = ours.apply_chat_template(say(item), tokenize=True, return_dict=True)
        assert torch.equal(got.pixel_values, expected)


# ------------------------------------------------------------------------------- frames and clips


def test_frame_indices_equal_the_reference_wherever_it_returns_n_of_them():
    reference, compared = reference_sample_frames(), 0
    rng = random.Random(2)
    for _ in range(2000):
        total, rate = (
            rng.randrange(2, 3000),
            rng.choice([5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0]),
        )
        fps = rng.choice([0.5, 1.0, 2.0, 3.0, 10.0])
        expected = reference(SimpleNamespace(total_num_frames=total, fps=rate), fps=fps)
        n = min(min(max(total / rate * fps, 4), min(768, total) // 2 * 2), total) // 2 * 2
        got = P.sample_frames(total, rate, fps=fps)
        assert len(got) == n
        if len(expected) == n:
            compared += 1
            # The reference counts in float32: allow its rounding where the exact quotient is a
            # whole number.
            whole = [i * total % n == 0 for i in range(int(n))]
            assert all(
                a == b or (w and a - b == 1)
                for a, b, w in zip(got, expected.tolist(), whole, strict=True)
            )
    assert compared > 1000


def test_frame_counts_of_odd_videos():
    def count(*arguments, **options) -> int:
        return len(P.sample_frames(*arguments, **options))

    assert count(1, 25.0) == 1 and count(2, 25.0) == 2
    assert count(3, 25.0) == 2 and count(7, 7.0, fps=7) == 6, "floored to even"
    assert count(100000, 25.0) == 768 and count(100000, 25.0, max_frames=11) == 10
    assert count(10, 10.0, nframes=7) == 6 and count(10, 10.0, nframes=1) == 1
    assert P.sample_frames(10, 10.0, nframes=4) == [0, 2, 5, 7]
    for arguments, options, named in [
        ((5, 10.0), {"nframes": 6}, ["6", "5"]),
        ((5, 10.0), {"nframes": 0}, ["0", "5"]),
        ((0, 10.0), {}, ["0 frames"]),
        ((9, 10.0), {"max_frames": 0, "min_frames": 0}, ["0", "9"]),
        ((9, 10.0), {"fps": 0}, ["fps 0"]),
        ((9, 10.0), {"min_frames": 8, "max_frames": 6}, ["8", "6"]),
    ]:
        with pytest.raises(ValueError) as error:
            P.sample_frames(*arguments, **options)
        assert all(text in str(error.value) for text in named)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_videos_give_whole_frame_pairs(ours, tmp_path, count):
    path = str(write_video(tmp_path / "a.mp4", count))
    batch = ours.apply_chat_template(
        say({"type": "video", "path": path}), tokenize=True, return_dict=True
    )
    t, h, w = batch.video_grid_thw[0].tolist()
    assert t == max(1, count // 2) and len(batch.pixel_values_videos) == t * h * w
    assert batch.input_ids.eq(ours.video_token_id).sum() == t * h * w // 4
    if count == 1:
        first, second = batch.pixel_values_videos.view(-1, 3, 2, 196).unbind(2)
        assert torch.equal(first, second)


def test_all_frames_together_stay_under_total_pixels():
    """qwen-vl-utils: per frame max(min(768·28², total/n·2), 1.05·min), unless the caller asks for
    less.
    """
    for n in (1, 10, 64, 100, 768):
        limits = P.video_limits(n, {})
        assert limits["min_pixels"] == 128 * 784
        assert limits["max_pixels"] == max(
            min(768 * 784, 24576 * 784 / n * 2), int(128 * 784 * 1.05)
        )
    assert P.video_limits(10, {"max_pixels": 5000}) == {"min_pixels": 5000, "max_pixels": 5000}
    assert P.video_limits(10, {"min_pixels": 784})["max_pixels"] == 768 * 784
    assert P.video_limits(10, {"min_pixels": 784, "total_pixels": 50000})["max_pixels"] == 10000


def test_a_frame_list_of_two_sizes_is_refused(ours):
    with pytest.raises(ValueError, match="differ in size"):
        ours(text="<|video_pad|>", videos=[[noise(300, 300), noise(600, 300)]])


def test_options_of_a_video_come_from_call_or_item(checkpoint_of_known_limits, tmp_path):
    ours = Qwen2VLProcessor.from_pretrained(checkpoint_of_known_limits)
    path = write_video(tmp_path / "a.mp4", 60)
    item = {"type": "video", "video": path, "max_pixels": 784}

    def run(item: dict, **options):
        return ours.apply_chat_template(say(item), tokenize=True, return_dict=True, **options)

    def frames(item: dict, **options) -> int:
        return int(run(item, **options).video_grid_thw[0, 0]) * 2

    assert frames(item) == frames({"type": "video", "url": path.as_uri(), "max_pixels": 784}) == 12
    assert frames(item, video_fps=1) == 6 and frames(item, fps=1) == 6
    assert (
        frames(item | {"nframes": 8}, video_fps=1) == 8 and frames(item | {"fps": 4}, fps=1) == 24
    )
    assert frames(item | {"min_frames": 20}) == 20 and frames(item | {"max_frames": 4}) == 4
    assert frames(item | {"video_start": 1.0, "video_end": 2.95}) == 4
    got = run(item | {"nframes": 4, "video_start": 1, "video_end": 1.9})
    stills = read_video(path, lambda total, rate: [10, 12, 15, 17], keep_frame)
    assert torch.equal(got.pixel_values_videos, run(item | {"video": stills}).pixel_values_videos)
    with pytest.raises(ValueError, match=r"6\.00 s.*7 to 9"):
        run(item | {"video_start": 7, "video_end": 9})
    with pytest.raises(ValueError, match="frame_rate"):
        frames(item, frame_rate=4)


# ------------------------------------------------------------------------------- template and ids


def random_conversation(rng: random.Random, words: tuple = (*TEXTS, *GROUNDING)) -> list[dict]:
    def text() -> str:
        return "".join(rng.choices(words, k=rng.randrange(4)))

    def items() -> list[dict]:
        return [rng.choice(kinds)() for _ in range(rng.randrange(5))]

    kinds = [lambda: {"type": "text", "text": text()}] * 3
    kinds += [
        lambda: {"type": "image"},
        lambda: {"type": "video"},
        lambda: {"type": "image", "image": "a.png"},
    ]
    kinds += [lambda: {"image_url": {"url": "a.png"}}, lambda: {"type": "image", "url": "a.png"}]
    kinds += [lambda: {"video": "a.mp4"}, lambda: {"text": text()}]
    roles = rng.choice(
        [
            ["system", "user"],
            ["user"],
            ["user", "assistant", "user"],
            ["assistant", "user", "system"],
        ]
    )
    return [{"role": role, "content": text() if rng.random() < 0.3 else items()} for role in roles]


def test_rendered_chat_equals_the_official_template_and_its_ids_the_reference(
    official, ours, theirs, amount
):
    rng = random.Random(3)
    for _ in range(amount(80, 300)):
        conversation = random_conversation(rng)
        options = {"add_generation_prompt": rng.random() < 0.5, "add_vision_id": rng.random() < 0.5}
        expected = theirs.apply_chat_template(conversation, tokenize=False, **options)
        assert ours.apply_chat_template(conversation, **options) == expected
        ids = theirs(expected)["input_ids"]
        assert ours.encode(P.render(P.parse_conversation(conversation), **options)) == ids
        pictures = [Image.new("RGB", (56, 56))] * expected.count("<|image_pad|>")
        clips = [[Image.new("RGB", (360, 280))] * 4] * expected.count(
            "<|video_pad|>"
        )  # 2 x 10 x 13 tokens
        filled = expected.replace("<|image_pad|>", "<|image_pad|>" * 4)
        filled = filled.replace("<|video_pad|>", "<|video_pad|>" * 260)
        if len(pictures) + len(clips) < 5:
            batch = ours(text=expected, images=pictures, videos=clips)
            assert batch.input_ids.tolist() == [theirs(filled)["input_ids"]]


def test_ids_of_rendered_chats_equal_the_reference_tokenizer(ours, theirs):
    rng = random.Random(4)
    for _ in range(80):
        conversation = random_conversation(rng)
        rendered = ours.apply_chat_template(conversation, add_generation_prompt=True)
        assert (
            ours.encode(P.render(P.parse_conversation(conversation), True))
            == theirs(rendered)["input_ids"]
        )


def test_the_documentations_two_outputs(ours):
    conversation = say({"type": "image"}, "Hello, how are you?")
    conversation += say(
        "I'm doing well, thank you for asking. How can I assist you today?", role="assistant"
    )
    conversation[1]["content"] = conversation[1]["content"][0]["text"]
    conversation += say(
        "Can you describe these images and video?", {"type": "image"}, {"type": "image"}
    )
    conversation[2]["content"] += [
        {"type": "video"},
        {"type": "text", "text": "These are from my vacation."},
    ]
    image, video = (
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|video_pad|><|vision_end|>",
    )
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    middle = "Hello, how are you?<|im_end|>\n<|im_start|>assistant\n"
    middle += "I'm doing well, thank you for asking. How can I assist you today?<|im_end|>\n"
    middle += "<|im_start|>user\nCan you describe these images and video?"
    tail = "These are from my vacation.<|im_end|>\n<|im_start|>assistant\n"
    plain = ours.apply_chat_template(conversation, add_generation_prompt=True)
    assert plain == head + image + middle + image + image + video + tail
    numbered = ours.apply_chat_template(
        conversation, add_generation_prompt=True, add_vision_id=True
    )
    expected = f"{head}Picture 1: {image}{middle}Picture 2: {image}"
    expected += f"Picture 3: {image}Video 1: {video}{tail}"
    assert numbered == expected


def test_control_tokens_in_user_text_are_text(ours, theirs):
    """Never a control id; turns and placeholders unchanged; decodes back to the same text."""
    rng = random.Random(4)
    special = {theirs.convert_tokens_to_ids(token) for token in CONTROL}
    for _ in range(60):
        words = [*CONTROL, "<|im_", "end|>", "hi ", "\n", "你好"]
        nasty = "".join(rng.choices(words, k=6))
        cut = rng.randrange(len(nasty) + 1)
        conversation = say(
            nasty[:cut], nasty[cut:], {"type": "image", "image": Image.new("RGB", (56, 56))}
        )
        ids = ours.apply_chat_template(conversation, tokenize=True)[0].tolist()
        plain = theirs(ours.apply_chat_template(say("x", {"type": "image"})))["input_ids"]
        for token in CONTROL:
            times = plain.count(theirs.convert_tokens_to_ids(token)) * (
                4 if token == "<|image_pad|>" else 1
            )
            assert ids.count(theirs.convert_tokens_to_ids(token)) == times, (nasty, token)
        inner = [i for i in ids if i not in special]
        frame = "system\nYou are a helpful assistant.\nuser\n"
        assert theirs.decode(inner) == f"{frame}{nasty}\n", nasty
    trusted = ours(text="<|im_start|>user\n<|im_end|>").input_ids[0].tolist()
    assert trusted == theirs("<|im_start|>user\n<|im_end|>")["input_ids"], (
        "a rendered string is trusted"
    )


def test_grounding_tokens_in_text_are_tokens(ours, theirs):
    text = "the <|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> "
    text += "<|quad_start|>x<|quad_end|>"
    ids = ours.apply_chat_template(say(text), tokenize=True)[0].tolist()
    assert all(ids.count(theirs.convert_tokens_to_ids(token)) == 1 for token in GROUNDING)
    split = say(
        "<|box_st", "art|>"
    )  # two items, one token: as in the reference, which sees the joined string
    assert (
        ours.encode(P.render(P.parse_conversation(split)))
        == theirs(ours.apply_chat_template(split))["input_ids"]
    )


@pytest.mark.parametrize("given", [0, 1, 3])
def test_more_or_fewer_images_than_placeholders_is_an_error_with_both_counts(ours, given):
    text = "<|vision_start|><|image_pad|><|vision_end|>" * 2
    with pytest.raises(ValueError) as error:
        ours(text=[text], images=[Image.new("RGB", (28, 28))] * given or None)
    assert str(error.value) == f"image placeholders in the prompt: 2, images given: {given}"


def test_a_video_placeholder_needs_a_video(ours):
    with pytest.raises(ValueError, match="video placeholders in the prompt: 0, videos given: 1"):
        ours(text="hi", videos=[[Image.new("RGB", (28, 28))] * 2])
    with pytest.raises(ValueError, match="no source"):
        ours.apply_chat_template(say({"type": "image"}), tokenize=True)


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
    for wrong in (ours.max_tokens, 2 * ours.max_tokens):
        message = (
            rf"{wrong + 1} tokens.*at most {ours.max_tokens}: lower max_pixels, fps or nframes"
        )
        with pytest.raises(ValueError, match=message):
            ours("<|im_end|>" * (wrong + 1))
    assert ours("<|im_end|>" * ours.max_tokens).input_ids.shape == (1, ours.max_tokens)


# --------------------------------------------------------------------- batches, decoding, loading


def test_lists_are_left_padded_unasked_and_rows_equal_single_ones(ours):
    picture, frames = noise(56, 56), [noise(60, 60, i) for i in range(3)]
    talks = [say({"type": "image", "image": picture}, "one"), say("two words and more")]
    talks += [
        say({"type": "video", "video": frames}, {"type": "image", "image": noise(84, 84)}, "all")
    ]
    run = partial(
        ours.apply_chat_template, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    batch, singles = run(talks), [run(talk) for talk in talks]
    for row, mask, single in zip(batch.input_ids, batch.attention_mask, singles, strict=True):
        n = single.input_ids.shape[1]
        assert (
            torch.equal(row[-n:], single.input_ids[0])
            and mask.tolist() == [0] * (len(row) - n) + [1] * n
        )
        assert row[:-n].eq(ours.pad_token_id).all()
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(
            batch[key], torch.cat([single[key] for single in singles if key in single])
        )
    assert set(singles[1]) == {"input_ids", "attention_mask"}
    assert torch.equal(run(talks, return_dict=False), batch.input_ids)


def test_the_same_batch_comes_from_messages_and_from_rendered_strings(ours):
    pictures, frames = [noise(56, 84), noise(84, 56)], [noise(60, 60, i) for i in range(4)]
    talks = [
        say({"type": "image", "image": pictures[0]}, "a"),
        say("b", {"type": "video", "video": frames}),
    ]
    talks[1] += say({"type": "image", "image": pictures[1]})
    texts = ours.apply_chat_template(talks, add_generation_prompt=True)
    expected = ours.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    for images in (pictures, [[pictures[0]], [pictures[1]]]):
        got = ours(text=texts, images=images, videos=[frames], padding=True, return_tensors="pt")
        assert set(got) == set(expected) and all(
            torch.equal(got[key], expected[key]) for key in got
        )
    for options in ({"padding": False}, {"return_tensors": "np"}):
        with pytest.raises(ValueError, match=r"padding=.*return_tensors="):
            ours(text=["a", "a b c"], **options)


def test_a_batch_is_a_mapping_that_moves(ours):
    batch = ours(text="<|image_pad|>", images=noise(28, 28))
    assert batch.input_ids is batch["input_ids"] and {**batch}.keys() == batch.keys()
    moved = batch.to("meta")
    assert moved.pixel_values.is_meta and moved.pixel_values.dtype == torch.float32
    assert (
        moved.input_ids.is_meta
        and moved.input_ids.dtype == moved.attention_mask.dtype == torch.int64
    )
    with pytest.raises(AttributeError, match="labels"):
        _ = batch.labels


def test_decoding_equals_the_reference(ours, theirs):
    rng = random.Random(5)
    words = TEXTS + GROUNDING + CONTROL + [" .", " ?", " n't", " 's", " 're", " ' ", " ,", " !"]
    rows = [theirs("".join(rng.choices(words, k=12)))["input_ids"] for _ in range(60)]
    rows += [[rng.randrange(len(theirs)) for _ in range(20)] for _ in range(60)]
    for skip in (False, True):
        for clean in (False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)
    hello, world = theirs("Hello")["input_ids"], theirs(" world")["input_ids"]
    assert ours.batch_decode(torch.tensor([hello + world])) == ["Hello world"]
    beyond = [len(theirs), len(theirs) + 100]  # the vocabulary has more rows than there are tokens
    assert ours.decode(hello + beyond + world) == "Hello\ufffd\ufffd world"


def test_emoji_and_cjk_stream_whole(ours, theirs):
    rng = random.Random(6)
    for _ in range(60):
        text = "".join(rng.choices([*TEXTS, "🦄", "🫠", "𠜎", "龘", *GROUNDING], k=8))
        ids, stream = theirs(text)["input_ids"], ours.text_stream()
        pieces = [stream.push(i) for i in [*ids, ours.eos_token_id, ours.pad_token_id]]
        assert "".join(pieces) == theirs.decode(ids) and not any(
            "\ufffd" in piece for piece in pieces
        )
        assert stream.finish() == ""
    ids = theirs("🫠")["input_ids"]
    assert len(ids) >= 3
    stream = ours.text_stream()
    assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🫠"]
    assert [stream.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.finish() == "\ufffd", "an unfinished letter at the end of the budget"
    assert ours.text_stream().push(len(theirs) + 50) == "\ufffd", "an id without a token"


def test_vision_tokens_that_stand_only_in_tokenizer_config_are_found(
    checkpoint, ours, theirs, tmp_path
):
    """The real repositories' tokenizer.json lacks some of them."""
    for path in checkpoint.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    first = theirs.convert_tokens_to_ids("<|vision_start|>")
    moved = [token for token in tokenizer["added_tokens"] if token["id"] >= first]
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["id"] < first
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in moved
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Qwen2VLProcessor.from_pretrained(tmp_path)
    assert (loaded.image_token_id, loaded.video_token_id) == (
        ours.image_token_id,
        ours.video_token_id,
    )
    talk = say({"type": "image"}, "hi")
    assert (
        loaded.encode(P.render(P.parse_conversation(talk)))
        == theirs(loaded.apply_chat_template(talk))["input_ids"]
    )


def test_a_tokenizer_without_vision_tokens_is_refused(checkpoint):
    from tokenizers import Tokenizer

    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:3]
    with pytest.raises(ValueError, match=r"lacks.*<\|image_pad\|>"):
        Qwen2VLProcessor(Qwen2VLImageProcessor(), Tokenizer.from_str(json.dumps(tokenizer)))
