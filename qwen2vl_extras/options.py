"""Options of images and videos: which are known, what their values may be, and which one wins.

One rule everywhere: an option acts, or it is refused by name with the nearest known one.
`transformers` has options whose one value changes nothing here: that value is taken, any other is
refused. None is the same as not given.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from qwen2vl_extras import schemas
from qwen2vl_extras.clips import is_frames
from qwen2vl_extras.errors import check_options, shorten

# Options that are numbers, each with the least and the most that it may be.
MEDIA_OPTIONS: dict[str, tuple[float, float]] = {
    "min_pixels": (0, 1e12),  # of an image or a frame; smaller ones are enlarged
    "max_pixels": (1, 1e12),  # of an image or a frame; larger ones are shrunk
    "total_pixels": (1, 1e15),  # of a video, counted once for each pair of frames
    "resized_height": (1, 1e6),  # a size of one's own choice, in pixels
    "resized_width": (1, 1e6),
    "fps": (1e-6, 1e6),  # how many frames a second of a video to look at
    "nframes": (1, 1e9),  # how many frames in all, in place of fps
    "min_frames": (0, 1e9),  # limits of what fps gives
    "max_frames": (1, 1e9),
    "video_start": (0, 1e9),  # the part of a video to look at, in seconds
    "video_end": (0, 1e9),
}
# Options that are on or off. do_resize=False: the sides are multiples of 28 pixels already.
# do_sample_frames=False: every frame of a file.
SWITCHES = ("do_resize", "do_sample_frames")
ALL_OPTIONS = (*MEDIA_OPTIONS, *SWITCHES)
# Options of an image. A video has all.
IMAGE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width", "do_resize")
# Options that can't act where nothing is resized,
SIZE_OPTIONS = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
# where no frames are chosen,
COUNT_OPTIONS = ("nframes", "min_frames", "max_frames")
# and on frames that are given as a list or array. There fps says how they were chosen.
FILE_OPTIONS = (*COUNT_OPTIONS, "video_start", "video_end")

# The types of an item, and the kind that each is.
KINDS = {
    "text": "text",
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
# Where the source of an item is looked for, after the key that its type names.
SOURCE_KEYS = {
    "image": ("image", "image_url", "path", "url"),
    "video": ("video", "video_url", "path", "url"),
}
# Keys of an item that are its owner's data.
DATA_KEYS = ("id", "index", "uuid")
# Notes of qwen-vl-utils on the frames of a video, which nothing in Qwen2-VL depends on.
VIDEO_NOTES = ("sample_fps", "raw_fps")
# OpenAI's degree of detail.
NEUTRAL_KEYS: dict[str, list[object]] = {"detail": ["auto"]}

# Options of the image and video processors of transformers, with the values that change nothing.
NEUTRAL_MEDIA: dict[str, list[object]] = {
    "do_rescale": [True],
    "rescale_factor": [1 / 255],
    "do_normalize": [True],
    "do_convert_rgb": [True],
    "do_center_crop": [False],
    "do_pad": [False],
    "resample": [3],  # bicubic
    "crop_size": [],
    "pad_size": [],
    "size_divisor": [],
    "default_to_square": [True],
    "data_format": ["channels_first"],
    "input_data_format": [],
    "disable_grouping": [True, False],
    "return_metadata": [False],
    "num_frames": [],
}
# The same of its tokenizer and of its chat template.
NEUTRAL_TEXT: dict[str, list[object]] = {
    "add_special_tokens": [True, False],  # this tokenizer adds none
    "padding_side": ["left"],
    "truncation": [False, "do_not_truncate"],
    "max_length": [],
    "stride": [0],
    "pad_to_multiple_of": [],
    "is_split_into_words": [False],
    "text_pair": [],
    "text_target": [],
    "text_pair_target": [],
    "audio": [],
    "return_attention_mask": [True],
    "return_token_type_ids": [False],
    "return_mm_token_type_ids": [False],
    "return_overflowing_tokens": [False],
    "return_special_tokens_mask": [False],
    "return_offsets_mapping": [False],
    "return_length": [False],
    "verbose": [True, False],
    "load_audio_from_video": [False],
    "sampling_rate": [16_000],
    "video_load_backend": [],
    "tools": [[]],
    "documents": [[]],
    "return_assistant_tokens_mask": [False],
    "processor_kwargs": [{}],
    "tokenizer_kwargs": [{}],
}


# ----------------------------------------------------------------------------------------- values


def checked_value(name: str, value: object) -> float:
    """The value of an option as an int, float or bool; ValueError for what it can't be."""
    # NumPy's and torch's scalars are numbers, too.
    plain = value
    if isinstance(value, (np.ndarray, np.generic, Tensor)) and value.ndim == 0:
        plain = value.item()

    if name in SWITCHES:
        if isinstance(plain, bool):
            return plain
        raise ValueError(f"{name} is True or False, not {shorten(value)}")

    # A bool is an int in Python, but no number here. NaN is in no range.
    least, most = MEDIA_OPTIONS[name]
    if isinstance(plain, (int, float)) and not isinstance(plain, bool) and least <= plain <= most:
        return plain
    raise ValueError(f"{name} is a number from {least:g} to {most:g}, not {shorten(value)}")


def stated_values(given: Mapping[str, object], names: Iterable[str] = ALL_OPTIONS) -> dict:
    """Those of the named options that a dict, which may hold other things, gives a value."""
    options = {}
    for name in names:
        if given.get(name) is not None:
            options[name] = checked_value(name, given[name])
    # One excludes the other, unless they are said in different places.
    if "fps" in options and "nframes" in options:
        fps, nframes = options["fps"], options["nframes"]
        raise ValueError(f"fps={fps} and nframes={nframes} exclude each other: state one of them")
    return options


def limits_of_size(size: object) -> dict[str, object]:
    """The limits that transformers' option `size` states, as min_pixels and max_pixels."""
    # It calls them edges, though they are numbers of pixels.
    names = {
        "shortest_edge": "min_pixels",
        "longest_edge": "max_pixels",
        "min_pixels": "min_pixels",
        "max_pixels": "max_pixels",
    }
    wanted = "size is {'shortest_edge': PIXELS, 'longest_edge': PIXELS}, limits of the area"
    if not isinstance(size, Mapping):
        raise ValueError(f"{wanted}, not {shorten(size)}")
    limits: dict[str, object] = {}
    for key, value in size.items():
        name = names.get(key)
        if name is None or name in limits:
            raise ValueError(f"{wanted}, not {shorten(size)}")
        if value is not None:
            limits[name] = checked_value(name, value)
    return limits


# ---------------------------------------------------------------------------- options of one call


def with_limits(
    given: Mapping[str, object],
    known: Iterable[str],
    neutral: Mapping[str, Collection[object]],
    what: str,
) -> dict:
    """The given options with the limits that `size` states in its place.

    ValueError for an option that is neither known nor neutral; None is neutral, too.
    """
    taken = {name: [*neutral[name], None] for name in neutral}
    check_options(given, [*known, "size"], taken, what)
    options = dict(given)
    size = options.pop("size", None)
    limits = {} if size is None else limits_of_size(size)
    for name, value in limits.items():
        if options.get(name) is not None and checked_value(name, options[name]) != value:
            raise ValueError(f"size and {name}={options[name]} differ: state one of them")
        options[name] = value
    return options


def call_options(
    given: Mapping[str, object],
    known: Iterable[str],
    neutral: Mapping[str, Collection[object]],
    what: str,
) -> dict:
    """The options of a call of `what` that act, checked; `size` as the limits that it states.

    known: those of ALL_OPTIONS that act there. neutral: as in check_options.
    ValueError for any other option or value, and for two that exclude each other.
    """
    numbers = with_limits(given, known, neutral, what)
    # A list of fps has one for each video, or None.
    all_fps = numbers.get("fps")
    if isinstance(all_fps, (list, tuple)):
        each = [None if fps is None else checked_value("fps", fps) for fps in all_fps]
        stated = [fps for fps in each if fps is not None]
        numbers["fps"] = stated[0] if stated else None
        options = stated_values(numbers)
        options["fps"] = each
    else:
        options = stated_values(numbers)
    check_they_act(options)
    return options


def processor_options(given: Mapping[str, object], what: str) -> dict:
    """Options of a call of the processor; see call_options."""
    neutral = {**NEUTRAL_MEDIA, **NEUTRAL_TEXT}
    return call_options(given, ALL_OPTIONS, neutral, what)


def image_options(given: Mapping[str, object], fixed: Mapping[str, list[object]]) -> dict:
    """Options of a call of the image processor; fixed: what it was made with, as `neutral`."""
    neutral = {**NEUTRAL_MEDIA, **fixed}
    return call_options(given, IMAGE_OPTIONS, neutral, "the image processor")


def image_settings(given: Mapping[str, object], known: Collection[str]) -> dict:
    """What an image processor is made with, `size` as limits; ValueError for anything else."""
    what = "the image processor"
    neutral: dict[str, Collection[object]] = {**NEUTRAL_MEDIA, "do_resize": [True]}
    settings = {}
    for name, value in with_limits(given, known, neutral, what).items():
        if value is not None and name in known:
            settings[name] = checked_value(name, value) if name in MEDIA_OPTIONS else value
    # They may be what preprocessor_config.json may state.
    schemas.check(what, settings, schemas.IMAGE_PROCESSOR)
    return settings


def options_of_images(options: Mapping[str, object]) -> dict:
    """Those of a call's options that act on images."""
    return {name: options[name] for name in IMAGE_OPTIONS if name in options}


def options_of_videos(options: Mapping[str, object], num_videos: int) -> list[dict]:
    """A call's options for each of the videos; ValueError for a list of fps of another length."""
    all_fps = options.get("fps")
    if not isinstance(all_fps, list):
        return [dict(options)] * num_videos
    if len(all_fps) != num_videos:
        raise ValueError(f"fps is a list of {len(all_fps)} for {num_videos} videos")
    each = []
    for fps in all_fps:
        own = {name: value for name, value in options.items() if name != "fps"}
        if fps is not None:
            own["fps"] = fps
        each.append(own)
    return each


def merged(levels: Iterable[Mapping[str, object]]) -> dict:
    """The options of several places, of which later ones are nearer and win."""
    options: dict = {}
    for level in levels:
        # Either says how many frames are wanted, so the nearer one replaces the other.
        if "fps" in level:
            options.pop("nframes", None)
        if "nframes" in level:
            options.pop("fps", None)
        options.update(level)
    return options


def check_they_act(stated: Mapping[str, object], has_frames: bool = False) -> None:
    """ValueError for an option that can't act beside the others, or on a list of frames."""
    if stated.get("do_resize") is False:
        for name in SIZE_OPTIONS:
            if name in stated:
                raise ValueError(f"{name}={stated[name]} can't act beside do_resize=False")
    if stated.get("do_sample_frames") is False:
        for name in COUNT_OPTIONS:
            if name in stated:
                raise ValueError(f"{name}={stated[name]} can't act beside do_sample_frames=False")
    if not has_frames:
        return
    for name in FILE_OPTIONS:
        if name in stated:
            raise ValueError(
                f"{name}={stated[name]} acts on a file: of a list of frames all are taken"
            )
    if stated.get("do_sample_frames"):
        raise ValueError("do_sample_frames=True acts on a file: of a list of frames all are taken")


# ------------------------------------------------------------------------------------------ items


def kind_of_item(item: object) -> str | None:
    """The kind of an item, "text", "image" or "video", by its type or else by a key.

    None for what is no item. A key whose value is None is absent. Without a type an
    image comes before a video, and a video before text, as in the official template.
    """
    if not isinstance(item, dict):
        return None
    stated = item.get("type")
    if stated is not None:
        return KINDS.get(stated) if isinstance(stated, str) else None
    for key in ("image", "image_url", "video", "video_url", "text"):
        if item.get(key) is not None:
            return KINDS[key]
    return None


def item_options(item: Mapping[str, object], kind: str) -> dict:
    """The options of an item, checked; ValueError for a key that would be ignored.

    Keys of the other kinds are allowed, since rows of one table have them all: type wins.
    """
    known = ["type", "text", *SOURCE_KEYS["image"], *SOURCE_KEYS["video"], *DATA_KEYS]
    if kind == "image":
        known += IMAGE_OPTIONS
    if kind == "video":
        known += [*ALL_OPTIONS, *VIDEO_NOTES]
    article = "an" if kind == "image" else "a"
    given = {str(key): value for key, value in item.items() if value is not None}
    check_options(given, known, NEUTRAL_KEYS, f"{article} {kind} item")
    return stated_values(given) if kind != "text" else {}


def is_file_row(media: Mapping[str, object]) -> bool:
    """Whether a dict is a file as `datasets` has it, {"bytes": ..., "path": ...}, and no item."""
    return "bytes" in media and media.keys() <= {"bytes", "path"}


def source_of_item(item: Mapping[str, object], kind: str) -> object:
    """Where an image or video comes from; None if the item does not say.

    {"url": ...}, as OpenAI has it, is the URL; other dicts are taken as they are.
    """
    keys = list(SOURCE_KEYS[kind])
    stated = item.get("type")
    if stated in keys:
        keys.insert(0, str(stated))
    for key in keys:
        source = item.get(key)
        if isinstance(source, dict) and "url" in source:
            check_options(source, ["url"], {"detail": ["auto", None]}, key)
            source = source["url"]
        if source is not None:
            return source
    return None


def source_and_options(
    media: object,
    kind: str,
    defaults: Sequence[Mapping[str, object]],
    options: Mapping[str, object],
) -> tuple:
    """Return the source of an image or video, and the options (a dict) that hold for it.

    media: a message item, or a source alone; kind: "image" or "video". defaults: of files,
    of which the later override the earlier; options: of the call, which override them. The
    item's own options override all.
    """
    # A source alone is an item that says nothing else; {"bytes": ..., "path": ...} is one, too.
    item: dict = {kind: media}
    if isinstance(media, dict) and not is_file_row(media):
        item = media
    if item.get("type") is not None and kind_of_item(item) != kind:
        raise ValueError(f"{shorten(item)} stands where an item of type {kind!r} belongs")
    source = source_of_item(item, kind)
    if source is None:
        keys = ", ".join(SOURCE_KEYS[kind])
        raise ValueError(f"no source in {shorten(item)}: {kind}s have one of {keys}")

    # What the caller says must act. What files say may be meant for other media.
    stated = merged([options, item_options(item, kind)])
    check_they_act(stated, has_frames=kind == "video" and is_frames(source))
    files = [stated_values(one, MEDIA_OPTIONS) for one in defaults]
    return source, merged([*files, stated])
