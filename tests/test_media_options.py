"""Options of images and videos, and the forms in which people give media: nothing is ignored.

Each group draws variants from a seeded generator. What frames become is compared with stored
outputs of transformers 4.57.6 (helpers/make_clip_arrays.py), numbers of frames with qwen-vl-utils
(helpers/make_frame_counts.py), images with transformers itself.
"""

import contextlib
import json
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import load
from processor import (
    BatchFeature,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLProcessor,
    sample_frames,
    video_patches,
)
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras import options as media_options
from qwen2vl_extras.clips import list_videos
from tests.helpers.clip_inputs import OFFICIAL_LIMITS, Clip, clips, frame_settings
from tests.helpers.drawn_media import noise, write_video

STORED = Path(__file__).parent / "stored"
IMAGE_PART = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_PART = "<|vision_start|><|video_pad|><|vision_end|>"
# A value of each option that has an effect on a large image or video.
VALUES: dict[str, float] = {
    "min_pixels": 50_000,
    "max_pixels": 3136,
    "total_pixels": 20_000,
    "resized_height": 56,
    "resized_width": 84,
    "fps": 1,
    "nframes": 2,
    "min_frames": 6,
    "max_frames": 2,
    "video_start": 1,
    "video_end": 1,
    "do_resize": True,
    "do_sample_frames": False,
}


@pytest.fixture(scope="module")
def plain() -> Qwen2VLProcessor:
    """A processor with the limits of the official checkpoints, and none of a file for videos."""
    image_processor = Qwen2VLImageProcessor(*OFFICIAL_LIMITS)
    return Qwen2VLProcessor(image_processor, load.load_tokenizer(load.find_checkpoint("tiny")))


def say(*items: dict, role: str = "user") -> list[dict]:
    return [{"role": role, "content": list(items)}]


def read(processor: Qwen2VLProcessor, *items: dict, **options: object) -> BatchFeature:
    """All that the model takes of a conversation of one message."""
    return processor.apply_chat_template(say(*items), tokenize=True, return_dict=True, **options)


def assert_same(found: BatchFeature, expected: BatchFeature, case: object) -> None:
    assert found.keys() == expected.keys(), case
    for key in found:
        assert torch.equal(found[key], expected[key]), (case, key)


def message_of(call: Callable[[], object], case: object) -> str:
    """The line of the ValueError that a call raises."""
    with pytest.raises(ValueError) as error:
        call()
        pytest.fail(f"taken: {case}")
    message = str(error.value)
    assert "\n" not in message and len(message) < 600, (case, message)
    return message


# ------------------------------------------------------------------------- clips given as frames


def forms_of_clip(rng: random.Random, clip: np.ndarray) -> object:
    """A clip (n, 3, height, width) in one of the forms in which tools give it."""
    frames = list(clip)
    if rng.random() < 0.5:
        frames = [frame.transpose(1, 2, 0) for frame in frames]
    if clip.dtype == np.uint8 and rng.random() < 0.4:
        return [Image.fromarray(frame.transpose(1, 2, 0)) for frame in clip]
    together = np.stack(frames)
    forms = [
        frames,
        tuple(frames),
        together,
        [torch.from_numpy(np.ascontiguousarray(frame)) for frame in frames],
        torch.from_numpy(together),
        (torch.from_numpy(together), {"fps": 24.0, "total_num_frames": 9, "frames_indices": [0]}),
    ]
    if clip.dtype == np.float32:
        forms.append(torch.from_numpy(together).double())
        forms.append(together.astype(">f4"))
    return rng.choice(forms)


@pytest.fixture(scope="module")
def stored_clips() -> list[tuple[Clip, list[int], np.ndarray]]:
    with np.load(STORED / "clip_arrays.npz") as arrays:
        return list(zip(clips(), arrays["grids"].tolist(), arrays["values"], strict=True))


@pytest.mark.parametrize("is_fast", [False, True])
def test_clips_of_frames_equal_the_reference(stored_clips, plain, amount, figure, is_fast):
    """Floats and bytes, sized already or not; in any form, the same patches and tokens."""
    kind = Qwen2VLImageProcessorFast if is_fast else Qwen2VLImageProcessor
    processor = Qwen2VLProcessor(kind(*OFFICIAL_LIMITS), plain.tokenizer)
    rng = random.Random(0)
    for clip, grid, values in stored_clips[:: amount(2, 1)]:
        given = forms_of_clip(rng, clip.draw())
        options = {}
        if clip.limits != OFFICIAL_LIMITS:
            options = {"min_pixels": clip.limits[0], "max_pixels": clip.limits[1]}
        options["fps"] = rng.choice([2.0, [2.0], [None], None])
        options["do_sample_frames"] = rng.choice([False, None])
        found = processor(text=[VIDEO_PART], videos=[given], **options)
        assert found.video_grid_thw.tolist() == [grid], clip
        assert found.pixel_values_videos.dtype == torch.float32
        tokens = math.prod(grid) // 4
        assert found.input_ids.eq(processor.video_token_id).sum() == tokens, clip
        sample = found.pixel_values_videos.flatten().numpy()
        error = np.abs(sample[clip.sample_indices(sample.size)] - values).max()
        # A byte that torch rounds is the same byte on every machine but for the order of sums.
        limit = 1e-5 if clip.values == "fractions" or clip.limits == OFFICIAL_LIMITS else 2e-5
        assert figure("given clips against transformers, error", error) <= limit, clip


def test_rounding_the_floats_misses(stored_clips):
    """A negative control of the comparison above."""
    missed = 0
    for clip, _, values in stored_clips:
        if clip.values != "fractions" or clip.limits != OFFICIAL_LIMITS:
            continue
        patches, _ = video_patches(Qwen2VLImageProcessor(), clip.draw().round())
        sample = patches.flatten().numpy()[clip.sample_indices(patches.numel())]
        assert np.abs(sample - values).max() >= 1e-3, clip
        missed += 1
    assert missed >= 5


def test_a_clip_that_is_sized_is_held_to_stated_limits_only(plain, amount):
    """56 x 112 pixels are 8 tokens for two frames; the default least of a frame would make 72."""
    rng = random.Random(1)
    for _ in range(amount(20, 200)):
        n, h, w = rng.randrange(1, 6), rng.randrange(1, 7), rng.randrange(1, 7)
        clip = torch.full((n, 3, 28 * h, 28 * w), 7.0)
        pairs = math.ceil(n / 2)
        case = (n, h, w)
        found = plain(VIDEO_PART, videos=rng.choice([clip, [clip], list(clip.byte()), [[clip]]]))
        assert found.video_grid_thw.tolist() == [[pairs, 2 * h, 2 * w]], case
        assert found.input_ids.eq(plain.video_token_id).sum() == pairs * h * w, case

        # Limits act if a file, the call or the item states them.
        if h * w > 1:
            limit = {"max_pixels": 784 * h * w - 1}
            by_file = Qwen2VLProcessor(plain.image_processor, plain.tokenizer, [limit])
            item = {"type": "video", "video": clip}
            grids = [
                plain(VIDEO_PART, videos=[clip], **limit).video_grid_thw,
                read(plain, {**item, **limit}).video_grid_thw,
                by_file(VIDEO_PART, videos=[clip]).video_grid_thw,
                plain(VIDEO_PART, videos=[clip], total_pixels=784 * h * w * n / 2 - 1)[
                    "video_grid_thw"
                ],
            ]
            assert all(grid[0, 1] * grid[0, 2] < 4 * h * w for grid in grids), case
        larger = plain(VIDEO_PART, videos=[clip], min_pixels=784 * h * w + 1).video_grid_thw
        assert larger[0, 1] * larger[0, 2] > 4 * h * w, case

    unsized = plain(VIDEO_PART, videos=[torch.full((2, 3, 56, 111), 7.0)])
    assert unsized.video_grid_thw.prod() >= 128 * 4, "another size is enlarged as a file's frames"


def test_values_that_are_no_pixels_are_refused(plain, amount):
    rng = np.random.default_rng(0)
    wrong = {
        "0 to 1": lambda clip: clip / 255,
        "-1 to 1": lambda clip: clip / 127.5 - 1,
        "normalised": lambda clip: (clip / 255 - 0.45) / 0.27,
        "16 bits": lambda clip: clip * 257,
        "NaN": lambda clip: np.where(clip > 250, np.nan, clip),
        "infinite": lambda clip: np.where(clip > 250, np.inf, clip),
        "negative": lambda clip: clip - 255,
    }
    for name, change in wrong.items():
        for _ in range(amount(2, 10)):
            clip = rng.integers(0, 256, (3, 3, 28, 56)).astype(np.float32)
            clip[0, 0, 0, :2] = [0, 255]
            changed = change(clip).astype(np.float32)
            for form in (changed, torch.from_numpy(changed), list(changed)):
                message = message_of(lambda form=form: plain(VIDEO_PART, videos=[form]), name)
                assert "0 to 255" in message, name
    for value in (0, 1, 255):  # black, nearly black and white have no fractions
        assert plain(VIDEO_PART, videos=torch.full((2, 3, 28, 28), float(value)))
    shapes = [(4, 28), (28,), (), (2, 2, 28, 28), (2, 5, 3, 28, 28), (0, 3, 28, 28), (2, 3, 0, 28)]
    for shape in shapes:
        for dtype in (torch.float32, torch.uint8):
            clip = torch.zeros(shape, dtype=dtype)
            item = {"type": "video", "video": clip}
            message_of(lambda item=item: read(plain, item), (shape, dtype))


def test_frames_of_two_sizes_are_refused(plain):
    for make in (lambda side: torch.zeros(3, side, side), lambda side: noise(side, side)):
        frames = [make(28), make(56)]
        assert "differ in size" in message_of(
            lambda frames=frames: plain(VIDEO_PART, None, [frames]), 0
        )


# ------------------------------------------------------- what process_vision_info hands on


def test_video_kwargs_of_qwen_vl_utils_act_or_change_nothing(plain, amount):
    """fps and do_sample_frames, video_metadata and do_resize=False, for several videos."""
    rng = random.Random(2)
    for _ in range(amount(25, 250)):
        count = rng.randrange(4)
        videos = []
        for _ in range(count):
            n, h, w = rng.randrange(1, 5), rng.randrange(2, 5), rng.randrange(2, 5)
            videos.append(
                torch.from_numpy(
                    np.random.default_rng(n).integers(0, 256, (n, 3, 28 * h, 28 * w))
                ).float()
            )
        text = VIDEO_PART * count
        expected = plain(text=[text], videos=videos or None)
        fps = [rng.choice([2.0, 1, np.float32(3), torch.tensor(2.0)]) for _ in videos]
        kwargs: dict = {"do_sample_frames": False, "fps": rng.choice([fps, tuple(fps), 2.0])}
        if rng.random() < 0.5:
            kwargs["do_resize"] = rng.choice([False, True])
        given: object = videos
        metadata = [{"fps": 24.0, "total_num_frames": len(video)} for video in videos]
        form = rng.randrange(4)
        if form == 0:
            kwargs["video_metadata"] = rng.choice([metadata, [None] * count, None])
        elif form == 1:
            given = list(zip(videos, metadata, strict=True))
        elif form == 2 and count == 1:
            given = videos[0]
        found = plain(
            text=[text],
            images=None,
            videos=given if count else None,
            padding=True,
            return_tensors="pt",
            **kwargs,
        )
        assert_same(found, expected, (count, kwargs, form))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_a_list_of_fps_has_one_for_each_video(plain, tmp_path, count, length):
    path = str(write_video(tmp_path / "a.mp4", 40))  # 4 seconds
    asked = [1.0, 2.0, 4.0, 8.0][:length]
    small = {"max_pixels": 784}
    if count != length:
        message = message_of(
            lambda: plain(VIDEO_PART * count, videos=[path] * count, fps=asked, **small), length
        )
        assert str(count) in message and str(length) in message
        return
    found = plain(VIDEO_PART * count, videos=[path] * count, fps=asked, **small)
    if count:
        assert found.video_grid_thw[:, 0].tolist() == [2, 4, 8][:count]
    items = [{"type": "video", "path": path, **small} for _ in asked]
    for name in ("fps", "video_fps"):
        assert_same(
            read(plain, *items, **{name: asked}).copy() if count else found,
            read(plain, *[{**item, "fps": fps} for item, fps in zip(items, asked, strict=True)])
            if count
            else found,
            name,
        )


def test_every_frame_of_a_file_is_seen_without_sampling(plain, tmp_path, amount):
    rng = random.Random(3)
    for number in range(amount(4, 20)):
        count, rate = rng.randrange(1, 30), rng.choice([5, 10, 30])
        path = write_video(tmp_path / f"{number}.mp4", count, rate)
        options = {"max_pixels": 784, "do_sample_frames": False, "fps": rng.choice([None, 2.0])}
        grid = plain(VIDEO_PART, videos=[path], **options).video_grid_thw
        assert grid[0, 0] == math.ceil(count / 2), (count, rate)
        sampled = plain(VIDEO_PART, videos=[path], max_pixels=784).video_grid_thw
        again = plain(VIDEO_PART, videos=[path], max_pixels=784, do_sample_frames=True)
        assert torch.equal(again.video_grid_thw, sampled)


def test_options_that_choose_frames_are_refused_beside_frames(plain):
    frames = [noise(56, 56, i) for i in range(4)]
    item = {"type": "video", "video": frames}
    for name in (*media_options.FILE_OPTIONS, "do_sample_frames"):
        value = True if name == "do_sample_frames" else VALUES[name]
        for call in (
            lambda name=name, value=value: read(plain, {**item, name: value}),
            lambda name=name, value=value: read(plain, item, **{name: value}),
            lambda name=name, value=value: plain(VIDEO_PART, videos=[frames], **{name: value}),
        ):
            assert f"{name}={value}" in message_of(call, name)
        # In a checkpoint's file they are meant for files.
        by_file = Qwen2VLProcessor(plain.image_processor, plain.tokenizer, [{name: value}])
        assert_same(read(by_file, item), read(plain, item), name)
    for fps in (1, 2.5):  # in qwen-vl-utils a note on the frames
        assert_same(read(plain, {**item, "fps": fps}), read(plain, item), fps)


def test_options_that_cannot_act_beside_another_are_refused(plain):
    image = noise(56, 84)
    for name in media_options.SIZE_OPTIONS:
        call = {"do_resize": False, name: VALUES[name]}
        assert name in message_of(lambda call=call: plain("hi", **call), name)
        item = {"type": "video", "video": [image], name: VALUES[name]}
        assert name in message_of(lambda item=item: read(plain, item, do_resize=False), name)
    for name in media_options.COUNT_OPTIONS:
        call = {"do_sample_frames": False, name: VALUES[name]}
        assert name in message_of(lambda call=call: plain("hi", **call), name)
    # Nothing is resized, or it is refused by the sides that are no multiples of 28.
    assert_same(plain(IMAGE_PART, image, do_resize=False), plain(IMAGE_PART, image), "sized")
    message = message_of(lambda: plain(IMAGE_PART, noise(57, 84), do_resize=False), "unsized")
    assert "84 x 57" in message


# ------------------------------------------------------------------- rows of tables, kinds of items


def unused_keys(rng: random.Random, item: dict) -> dict:
    """The same item as a row of a table: keys in any order, the other ones None."""
    keys = ["type", "text", "image", "image_url", "video", "video_url", "path", "url", "id"]
    keys += ["index", "detail", "bytes", "comment", *VALUES]
    row = {key: None for key in keys if rng.random() < 0.8}
    row.update(item)
    shuffled = list(row.items())
    rng.shuffle(shuffled)
    return dict(shuffled)


def random_items(rng: random.Random, picture: str, clip: str) -> list[dict]:
    """Items of each kind in each way to write it."""
    key = rng.choice(["image", "image_url", "path", "url"])
    video_key = rng.choice(["video", "video_url", "path", "url"])
    return [
        {"type": "text", "text": rng.choice(["hi", "", "x\ny"])},
        {"text": "untyped"},
        {"type": rng.choice(["image", "image_url"]), key: picture},
        {"type": "image_url", "image_url": {"url": picture, "detail": rng.choice(["auto", None])}},
        {rng.choice(["image", "image_url"]): picture, "resized_height": 56},
        {"type": rng.choice(["video", "video_url"]), video_key: clip, "max_pixels": 784},
        {"type": "video_url", "video_url": {"url": clip}, "nframes": 2},
        {rng.choice(["video", "video_url"]): clip, "fps": 1.0, "max_pixels": 784},
    ]


def test_a_row_with_every_key_is_the_item_without_the_unused_ones(plain, tmp_path, amount):
    rng = random.Random(4)
    picture = str(tmp_path / "a.png")
    noise(60, 90).save(picture)
    clip = str(write_video(tmp_path / "a.mp4", 12))
    for _ in range(amount(3, 40)):
        for item in random_items(rng, picture, clip):
            row = unused_keys(rng, item)
            assert_same(read(plain, row), read(plain, item), row)
            rendered = plain.apply_chat_template(say(row), add_vision_id=True)
            assert rendered == plain.apply_chat_template(say(item), add_vision_id=True), row


def test_a_file_as_datasets_has_it_is_a_source(plain, tmp_path, amount):
    rng = random.Random(13)
    for number in range(amount(4, 40)):
        path = tmp_path / f"{number}.png"
        noise(rng.randrange(28, 90), rng.randrange(28, 90), number).save(path)
        content = path.read_bytes()
        expected = plain(IMAGE_PART, str(path))
        for row in (
            {"bytes": content, "path": None},
            {"path": str(path), "bytes": None},
            {"bytes": content, "path": "gone.png"},
            {"bytes": content},
        ):
            assert_same(plain(IMAGE_PART, row), expected, row.keys())
            assert_same(plain(IMAGE_PART, [[row]]), expected, row.keys())
            for key in ("image", "path", "image_url"):
                found = read(plain, {"type": "image", key: row, "text": None})
                assert torch.equal(found.pixel_values, expected.pixel_values), (row.keys(), key)
    assert_same(plain(IMAGE_PART, {"path": str(path)}), expected, "an item")


def test_the_type_wins_over_keys_of_other_kinds(plain, amount):
    rng = random.Random(5)
    values = {"text": "words", "image": noise(28, 28), "video": [noise(56, 56)] * 2}
    used = {"text": "text", "image": "image", "video": "video"}
    for _ in range(amount(10, 100)):
        keys = rng.sample(list(values), rng.choice([2, 3]))
        kind = rng.choice(keys)
        item = {"type": kind}
        item.update((key, values[key]) for key in keys)
        expected = read(plain, {"type": kind, used[kind]: values[kind]})
        assert_same(read(plain, item), expected, (kind, keys))
    # Of one kind the key that the type names comes first.
    small, large = noise(28, 28), noise(112, 112)
    for first, second in (("image", "image_url"), ("image_url", "image"), ("image", "path")):
        item = {second: large, first: small, "type": first}
        assert_same(read(plain, item), read(plain, {"type": "image", "image": small}), item)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "audio", "audio": "a.wav"},
        {"type": "audio", "text": "hi"},
        {"type": "Image", "image": "a.png"},
        {"type": "input_text", "text": "hi"},
        {"type": ["image"], "image": "a.png"},
        {"type": 3, "text": "hi"},
        {"type": "", "text": "hi"},
        {"type": "text", "text": None, "image": "a.png"},
        {"type": "text", "text": 3},
        {"type": "text"},
        {"type": None, "text": None},
        {"path": "a.png"},
        {},
        "hi",
        None,
        3,
    ],
    ids=str,
)
def test_what_is_no_item_is_refused(plain, item):
    message_of(lambda: plain.apply_chat_template(say(item)), item)


def test_details_of_openai_act_nowhere_and_are_refused_but_for_auto(plain):
    image = noise(28, 28)
    for detail in ("low", "high", 3):
        item = {"type": "image_url", "image_url": {"url": image, "detail": detail}}
        assert "detail" in message_of(lambda item=item: read(plain, item), detail)
        item = {"type": "image", "image": image, "detail": detail}
        assert "detail" in message_of(lambda item=item: read(plain, item), detail)
    item = {"type": "image_url", "image_url": {"url": image, "size": 3}}
    assert "'size'" in message_of(lambda: read(plain, item), item)


# ----------------------------------------------------------------------------- numbers of frames


def reference_refuses_only(total: int, item: dict) -> bool:
    """Whether this project takes a frame where qwen-vl-utils refuses: design, "one frame"."""
    if "nframes" in item:
        return round(item["nframes"] / 2) == 0
    return total < 2 or item.get("max_frames", 768) < 2


def test_numbers_of_frames_equal_qwen_vl_utils():
    """Odd and fractional nframes, odd limits; its newest version, and an older one for nframes."""
    stored = json.loads((STORED / "frame_counts.json").read_text(encoding="utf-8"))
    compared = refused = single = excluded = 0
    rows = zip(frame_settings(), stored["0.0.14"], stored["0.0.8"], strict=True)
    for (total, rate, item), expected, older in rows:
        case = (total, rate, item)
        if item.get("min_frames", 4) > max(4, item.get("max_frames", 768)):
            message_of(lambda case=case: sample_frames(case[0], case[1], **case[2]), case)
            excluded += 1
        elif expected is None and reference_refuses_only(total, item):
            assert len(sample_frames(total, rate, **item)) == 1, case
            single += 1
        elif expected is None:
            message_of(lambda case=case: sample_frames(case[0], case[1], **case[2]), case)
            refused += 1
        else:
            assert len(sample_frames(total, rate, **item)) == expected, case
            assert "nframes" not in item or older == expected, case
            compared += 1
    assert (compared, refused, single, excluded) >= (1000, 20, 20, 20)
    assert compared + refused + single + excluded == 1500


def test_the_numbers_of_frames_that_the_issue_names():
    for item, expected in (({"nframes": 7}, 8), ({"nframes": 8.0}, 8), ({"min_frames": 5}, 6)):
        assert len(sample_frames(20, 30.0, **item)) == expected


def test_the_part_of_a_video_has_the_frames_shown_in_it(plain, tmp_path, amount):
    """Also where seconds times rate is no exact float, as 0.7 * 10."""
    rng = random.Random(6)
    paths = {rate: write_video(tmp_path / f"{rate}.mp4", 45, rate) for rate in (10, 24, 30)}
    for _ in range(amount(25, 250)):
        rate = rng.choice(list(paths))
        first = rng.randrange(40)
        last = rng.randrange(first, 44)
        start, end = float(Fraction(first, rate)), float(Fraction(last, rate))
        item = {"type": "video", "path": str(paths[rate]), "max_pixels": 784}
        item.update(video_start=start, video_end=end, do_sample_frames=False)
        grid = read(plain, item).video_grid_thw
        assert grid[0, 0] == math.ceil((last - first + 1) / 2), (rate, first, last)


# ------------------------------------------------------------------------ unknown and wrong options


def misspelt(rng: random.Random, name: str) -> str:
    """A name with one slip of the finger, which is no other option."""
    known = {*media_options.ALL_OPTIONS, *media_options.NEUTRAL_MEDIA, *media_options.NEUTRAL_TEXT}
    while True:
        i = rng.randrange(len(name))
        slip = rng.randrange(4)
        wrong = name[:i] + name[i + 1 :]
        if slip == 1:
            wrong = name[:i] + rng.choice("aeiostx_") + name[i:]
        elif slip == 2:
            wrong = name[:i] + name[i : i + 2][::-1] + name[i + 2 :]
        elif slip == 3:
            wrong = name + "s"
        if wrong not in known and wrong.isidentifier():
            return wrong


def calls_with(plain: Qwen2VLProcessor, option: dict) -> Iterator[tuple[str, Callable]]:
    """Every place where an option can be said."""
    image = {"type": "image", "image": noise(56, 56)}
    video = {"type": "video", "video": [noise(56, 56)] * 2}
    ours = plain.image_processor
    yield "template", lambda: plain.apply_chat_template(say(image), **option)
    yield "template, tokens", lambda: read(plain, image, **option)
    yield "call", lambda: plain(text=["hi"], **option)
    yield "image processor", lambda: ours(image["image"], **option)
    yield "preprocess", lambda: ours.preprocess(image["image"], **option)
    yield "settings", lambda: Qwen2VLImageProcessor.from_pretrained("tiny", **option)
    yield "image item", lambda: plain.apply_chat_template(say({**image, **option}))
    yield "video item", lambda: plain.apply_chat_template(say({**video, **option}))
    yield (
        "text item",
        lambda: plain.apply_chat_template(say({"type": "text", "text": "", **option})),
    )
    yield "image of a call", lambda: plain(IMAGE_PART, images=[{**image, **option}])
    yield "video of a call", lambda: plain(VIDEO_PART, videos=[{**video, **option}])


def test_a_misspelt_option_is_refused_with_the_nearest_known_one_wherever_it_is_said(plain, amount):
    rng = random.Random(7)
    for _ in range(amount(2, 12)):
        for name, value in VALUES.items():
            wrong = misspelt(rng, name)
            for place, call in calls_with(plain, {wrong: value}):
                message = message_of(call, (place, wrong))
                assert repr(wrong) in message, (place, message)
                if place in ("template", "template, tokens", "call", "video item"):
                    assert f"did you mean {name!r}?" in message, (place, message)


def test_options_of_videos_are_refused_by_images_and_all_by_text(plain):
    for name, value in VALUES.items():
        for place, call in calls_with(plain, {name: value}):
            of_image = name in media_options.IMAGE_OPTIONS
            if place in ("image item", "image of a call", "image processor", "preprocess"):
                if not of_image:
                    assert repr(name) in message_of(call, (place, name))
                elif name != "do_resize":
                    call()
            elif place == "text item":
                assert repr(name) in message_of(call, (place, name))


def test_a_setting_that_an_image_processor_has_not_is_refused_where_it_is_made():
    for name in ("sizes", "fps", "resized_height", "do_rescaled"):
        call = lambda name=name: Qwen2VLImageProcessor.from_pretrained("tiny", **{name: 3})  # noqa: E731
        assert repr(name) in message_of(call, name)
    wrong = [("do_resize", False), ("do_normalize", False), ("resample", 2)]
    for name, value in wrong:
        call = lambda name=name, value=value: Qwen2VLImageProcessor.from_pretrained(  # noqa: E731
            "tiny", **{name: value}
        )
        assert f"{name}=" in message_of(call, name)
    wrong = [("min_pixels", "3136"), ("max_pixels", -1), ("patch_size", 0), ("merge_size", "2")]
    wrong += [("image_mean", [0.5]), ("image_std", 3), ("size", {"longest_edge": math.nan})]
    for name, value in wrong:
        call = lambda name=name, value=value: Qwen2VLImageProcessor.from_pretrained(  # noqa: E731
            "tiny", **{name: value}
        )
        assert ("max_pixels" if name == "size" else name) in message_of(call, name)
    size = {"shortest_edge": 784, "longest_edge": 7840}
    made = Qwen2VLImageProcessor.from_pretrained("tiny", size=size, do_resize=True)
    assert (made.min_pixels, made.max_pixels) == (784, 7840)


WRONG_NUMBERS = [
    "7", "", b"7", True, False, np.True_, torch.tensor(True), -1, -0.5, math.nan, math.inf,
    -math.inf, 10**400, 2j, [7], (7,), {"a": 7}, np.array([7]), torch.tensor([7, 8]),
    np.zeros((9, 9)), object(), np.float32("nan"), torch.tensor(math.inf),
]  # fmt: skip


@pytest.mark.parametrize("name", media_options.MEDIA_OPTIONS)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(plain, name):
    for value in WRONG_NUMBERS:
        places = dict(calls_with(plain, {name: value}))
        for place in ("template", "call", "video item", "video of a call"):
            is_list = name == "fps" and isinstance(value, (list, tuple)) and "item" not in place
            if is_list and place != "video of a call":
                continue  # one for each video
            assert name in message_of(places[place], (place, value))
    if name not in ("min_pixels", "min_frames", "video_start", "video_end"):
        assert name in message_of(lambda: plain("hi", **{name: 0}), 0)


@pytest.mark.parametrize("name", media_options.SWITCHES)
def test_a_switch_is_true_or_false(plain, name):
    for value in (0, 1, "True", "", [], 0.5, np.array([True, False])):
        places = dict(calls_with(plain, {name: value}))
        for place in ("template", "call", "video item"):
            assert name in message_of(places[place], (place, value))


def test_scalars_of_numpy_and_torch_are_numbers_and_none_is_absent(plain, tmp_path):
    path = str(write_video(tmp_path / "a.mp4", 30))
    item = {"type": "video", "path": path}
    base = {"max_pixels": 1568}
    kinds = [np.int64, np.float32, np.uint16, torch.tensor, np.array, lambda value: float(value)]
    for name, value in VALUES.items():
        own = {} if name in ("min_pixels", "max_pixels") else base
        if name in media_options.SWITCHES:
            forms = [np.bool_(value), torch.tensor(value), np.array(value)]
        else:
            forms = [kind(value) for kind in kinds]
        expected = read(plain, {**item, **own, name: value})
        for form in forms:
            assert_same(read(plain, {**item, **own, name: form}), expected, (name, form))
            assert_same(read(plain, item, **own, **{name: form}), expected, (name, form))
        assert_same(
            read(plain, {**item, **base}, **{name: None}), read(plain, {**item, **base}), name
        )


NEUTRAL_OF_IMAGES = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "input_data_format": None,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "return_tensors": "pt",
}


def test_neutral_options_of_transformers_are_taken_and_no_other_value(plain, amount):
    """Those of images with the reference, which takes them, too."""
    rng = random.Random(8)
    theirs = transformers.Qwen2VLImageProcessor(
        min_pixels=OFFICIAL_LIMITS[0], max_pixels=OFFICIAL_LIMITS[1]
    )
    for seed in range(amount(10, 100)):
        names = rng.sample(list(NEUTRAL_OF_IMAGES), rng.randrange(1, 6))
        neutral = {name: NEUTRAL_OF_IMAGES[name] for name in names}
        neutral["return_tensors"] = "pt"
        image = noise(rng.randrange(20, 120), rng.randrange(20, 120), seed)
        expected = theirs(images=[image], **neutral)["pixel_values"]
        for call in (plain.image_processor, plain.image_processor.preprocess):
            assert (call([image], **neutral).pixel_values - expected).abs().max() <= 1e-6, neutral

    known = {**media_options.NEUTRAL_MEDIA, **media_options.NEUTRAL_TEXT}
    expected = plain("a b")
    for name, values in known.items():
        for value in [*values, None]:
            assert_same(plain("a b", **{name: value}), expected, (name, value))
            assert plain.apply_chat_template(say({"text": "a"}), **{name: value})
        for value in ("sideways", 77, -1, [3], {"height": 3}, np.zeros(3), torch.ones(2)):
            message = message_of(lambda n=name, v=value: plain("a", **{n: v}), (name, value))
            assert f"{name}=" in message, (name, message)


def test_size_states_limits_as_in_transformers(plain, amount):
    rng = random.Random(9)
    theirs = transformers.Qwen2VLImageProcessor()
    for seed in range(amount(10, 100)):
        size = {"shortest_edge": 784 * rng.randrange(1, 9)}
        size["longest_edge"] = size["shortest_edge"] + 784 * rng.randrange(1, 30)
        image = noise(rng.randrange(20, 200), rng.randrange(20, 200), seed)
        expected = theirs(images=[image], size=size, return_tensors="pt")
        found = plain.image_processor(image, size=size)
        assert torch.equal(found.image_grid_thw, expected["image_grid_thw"]), size
        assert (found.pixel_values - expected["pixel_values"]).abs().max() <= 1e-6, size
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        for video in ([image] * 2, torch.full((2, 3, 60, 90), 9.0)):
            by_limits = plain(IMAGE_PART + VIDEO_PART, image, [video], **limits)
            assert_same(plain(IMAGE_PART + VIDEO_PART, image, [video], size=size), by_limits, size)
    for size in ({"height": 28, "width": 28}, 448, {"shortest_edge": "a"}, (28, 28), {"edge": 3}):
        for call in (
            plain.image_processor,
            lambda image, size: plain(IMAGE_PART, image, size=size),
        ):
            message_of(lambda call=call, size=size: call(noise(56, 56), size=size), size)
    differ = {"size": {"longest_edge": 7840}, "max_pixels": 784}
    assert "max_pixels" in message_of(lambda: plain("hi", **differ), differ)


def test_an_explicit_size_is_rounded_side_by_side(amount, plain):
    """A side under 14 pixels becomes 28, and leaves the other one alone."""
    rng = random.Random(10)
    for _ in range(amount(40, 400)):
        height, width = rng.randrange(1, 300), rng.randrange(1, 300)
        asked = {"resized_height": height, "resized_width": width}
        if rng.random() < 0.3:
            del asked[rng.choice(list(asked))]
        expected = []
        for name, own in (("resized_height", 70), ("resized_width", 200)):
            side = Fraction(asked.get(name, own), 28)
            expected.append(max(1, round(side)) * 2)  # to even where two are as near
        item = {"type": "image", "image": noise(70, 200), **asked}
        assert read(plain, item, max_pixels=784 * 4).image_grid_thw[0, 1:].tolist() == expected, (
            asked
        )
    for asked in (
        {"resized_height": 10**5, "resized_width": 10**5},
        {"min_pixels": 10**9, "max_pixels": 10**9},
    ):
        message = message_of(lambda asked=asked: plain(IMAGE_PART, noise(56, 56), **asked), asked)
        assert "131072" in message
    clip = [noise(56, 56)] * 3
    huge = {"resized_height": 9000, "resized_width": 9000}
    assert "131072" in message_of(lambda: plain(VIDEO_PART, videos=[clip], **huge), huge)


def test_the_nearest_statement_of_fps_or_nframes_wins(plain, tmp_path, amount):
    """Of a file, a call and an item; two in one place exclude each other."""
    rng = random.Random(11)
    path = str(write_video(tmp_path / "a.mp4", 60))  # 6 seconds
    asked = {"fps": [1, 2, 4], "nframes": [2, 6, 10, 20]}
    for _ in range(amount(15, 150)):
        levels: list[dict] = []
        count = 12
        for _ in range(3):
            level = {}
            if rng.random() < 0.7:
                name = rng.choice(list(asked))
                level[name] = rng.choice(asked[name])
                count = level[name] * (6 if name == "fps" else 1)
            levels.append(level)
        in_file, in_call, in_item = levels
        in_file["max_pixels"] = 784
        processor = Qwen2VLProcessor(plain.image_processor, plain.tokenizer, [in_file])
        item = {"type": "video", "path": path, **in_item}
        grid = read(processor, item, **in_call).video_grid_thw
        assert grid[0, 0] * 2 == max(count, 4 if count == 12 else 2), levels
    both = {"fps": 1, "nframes": 4}
    for call in (
        lambda: plain("hi", **both),
        lambda: plain("hi", fps=[1], nframes=4),
        lambda: plain.apply_chat_template(say({"text": "a"}), video_fps=1, nframes=4),
        lambda: plain.apply_chat_template(say({"type": "video", "path": path, **both})),
        lambda: plain.apply_chat_template(say({"text": "a"}), video_fps=1, fps=2),
    ):
        assert "fps" in message_of(call, both)


# ---------------------------------------------------------------------------- torch's own settings


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def numpy_settings() -> Iterator[None]:
    with np.errstate(all="raise"), np.printoptions(precision=1, threshold=2):
        yield


SETTINGS: dict[str, Callable] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default device": lambda: torch.device("meta"),
    "numpy": numpy_settings,
}


def all_inputs(kind: type, case: int, path: str) -> dict[str, Tensor]:
    """Inputs of images, a file and clips, with a processor that is made for them."""
    tokenizer = load.load_tokenizer(load.find_checkpoint("tiny"))
    processor = Qwen2VLProcessor(kind(*OFFICIAL_LIMITS), tokenizer)
    rng = np.random.default_rng(case)
    clip = rng.integers(0, 256, (3, 3, 50 + case, 70)).astype(np.float32) * np.float32(0.5)
    items = [
        {"type": "image", "image": noise(60 + case, 90, case)},
        {"type": "image", "image": np.asarray(noise(56, 84, case))},
        {"type": "video", "path": path, "max_pixels": 3136},
        {"type": "video", "video": clip, "max_pixels": 1568},
        {"type": "video", "video": torch.from_numpy(clip).byte(), "max_pixels": 1568},
        {"type": "text", "text": "words"},
    ]
    return dict(read(processor, *items, add_generation_prompt=True))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLImageProcessorFast])
def test_settings_of_torch_and_numpy_change_no_input(setting, kind, tmp_path, amount):
    path = str(write_video(tmp_path / "a.mp4", 10))
    for case in range(amount(1, 10)):
        expected = all_inputs(kind, case, path)
        with SETTINGS[setting]():
            found = all_inputs(kind, case, path)
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.dtype == expected[key].dtype, key
            assert tensor.device == expected[key].device == torch.device("cpu"), key
            assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_weight_and_no_logit(tiny, dtype):
    model, processor = tiny
    inputs = read(processor, {"type": "image", "image": noise(60, 90)}, {"text": "words"})
    with torch.no_grad(), default_dtype(dtype):
        loaded = Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu")
        logits = loaded(**inputs).logits
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
        assert weight.dtype == model.state_dict()[name].dtype, name
    with torch.no_grad():
        assert torch.equal(logits, model(**inputs).logits)


# ------------------------------------------------------------------------------------ mixed calls


def nested(rng: random.Random, media: list) -> object:
    """The same media as a list, a tuple, or in rows of a batch."""
    form = rng.randrange(4)
    if form == 0:
        return tuple(media)
    if form == 1 and len(media) == 1:
        return media[0]
    if form == 2:
        cut = rng.randrange(len(media) + 1)
        return [media[:cut], media[cut:]]
    return list(media)


def test_images_and_videos_are_taken_in_every_nesting(plain, amount):
    rng = random.Random(12)
    for seed in range(amount(30, 300)):
        images = [noise(56, 28 * rng.randrange(1, 4), seed + i) for i in range(rng.randrange(4))]
        if rng.random() < 0.5:
            images = [np.asarray(image) for image in images]
        clips_given, same_clips = [], []
        for i in range(rng.randrange(4)):
            height, width = 28 * rng.randrange(1, 4), 28 * rng.randrange(1, 4)
            frames = [np.asarray(noise(height, width, seed + i + j)) for j in range(2)]
            clip = np.stack(frames).transpose(0, 3, 1, 2)
            same_clips.append(frames)
            clips_given.append(rng.choice([clip, torch.from_numpy(clip).float(), frames]))
        text = IMAGE_PART * len(images) + VIDEO_PART * len(same_clips)
        expected = plain(text=text, images=list(images) or None, videos=same_clips or None)
        found = plain(
            text=[text],
            images=nested(rng, images) if images else None,
            videos=nested(rng, clips_given) if clips_given else rng.choice([None, []]),
        )
        assert_same(found, expected, (seed, len(images), len(same_clips)))


def test_arrays_of_several_are_as_many_images_or_videos(plain):
    images = [noise(56, 84, i) for i in range(3)]
    together = np.stack([np.asarray(image) for image in images])
    expected = plain(IMAGE_PART * 3, images=images)
    for form in (
        together,
        torch.from_numpy(together),
        torch.from_numpy(together.transpose(0, 3, 1, 2)),
    ):
        assert_same(plain(IMAGE_PART * 3, images=form), expected, form.shape)
        assert torch.equal(plain.image_processor(form).pixel_values, expected.pixel_values)
    batch = together[None].repeat(2, axis=0)  # (videos, frames, H, W, 3)
    expected = plain(VIDEO_PART * 2, videos=[images, images])
    assert_same(plain(VIDEO_PART * 2, videos=batch), expected, batch.shape)
    assert_same(plain(VIDEO_PART * 2, videos=torch.from_numpy(batch)), expected, batch.shape)
    # A list of pictures is one video; one picture is a video of one frame.
    assert_same(plain(VIDEO_PART, videos=images), plain(VIDEO_PART, videos=[images]), "frames")
    one = plain(VIDEO_PART, videos=[[images[0]]])
    for form in (images[0], [images[0]], together[0], torch.from_numpy(together[0])):
        assert_same(plain(VIDEO_PART, videos=form), one, type(form))
    grey = np.concatenate([together, together])[..., 0]  # (frames, H, W)
    expected = plain(VIDEO_PART, videos=[[Image.fromarray(frame) for frame in grey]])
    for form in (grey, torch.from_numpy(grey), grey.astype(np.float32)):
        assert_same(plain(VIDEO_PART, videos=[form]), expected, form.dtype)


def test_lists_of_files_are_lists_of_videos():
    """A path says nothing of what it names: in a list of videos it is a video."""
    for videos in (["a.mp4", "b.mp4"], [b"1", b"2"], [{"path": "a"}, "b"], [Path("a"), Path("b")]):
        assert list_videos(videos) == videos
    assert list_videos([["a.png", "b.png"]]) == [["a.png", "b.png"]], "frames"
    assert list_videos(None) == []
    assert list_videos("a.mp4") == ["a.mp4"]


def test_a_list_of_descriptions_has_one_for_each_video(plain):
    clip = [noise(56, 56)] * 2
    for metadata in ([], [{}, {}], ({}, {})):
        message = message_of(
            lambda metadata=metadata: plain(VIDEO_PART, videos=[clip], video_metadata=metadata), 0
        )
        assert "video_metadata" in message
