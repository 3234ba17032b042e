"""The settings of images and videos in a checkpoint's files, under one name each.

transformers has written them in three layouts: preprocessor_config.json for images (and for
videos, before 4.52); that and video_preprocessor_config.json; and, since version 5,
processor_config.json with a section for each. The limits of pixels have three spellings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from qwen2vl_extras.schemas import Fault, refuse

# Canonical name -> where a section may state it, the first wins. This order is transformers'.
SPELLINGS = {
    "min_pixels": ("min_pixels", "size.shortest_edge", "size.min_pixels"),
    "max_pixels": ("max_pixels", "size.longest_edge", "size.max_pixels"),
    "total_pixels": ("total_pixels",),
    "fps": ("fps",),
    "nframes": ("nframes", "num_frames"),
    "min_frames": ("min_frames",),
    "max_frames": ("max_frames",),
    "patch_size": ("patch_size",),
    "temporal_patch_size": ("temporal_patch_size",),
    "merge_size": ("merge_size",),
    "image_mean": ("image_mean",),
    "image_std": ("image_std",),
}
LIMITS = ("min_pixels", "max_pixels")
# What the model is made for: name in a processor's section, in vision_config, family's default.
PATCHES = {
    "patch_size": ("patch_size", 14),
    "temporal_patch_size": ("temporal_patch_size", 2),
    "merge_size": ("spatial_merge_size", 2),
}


class MediaSection(NamedTuple):
    """The settings of one section, and how errors call the place where they stand."""

    place: str
    settings: dict


def canonical(place: str, section: Mapping) -> MediaSection:
    """A section of a checked file under canonical names; ValueError for contrary limits."""
    # {"size": {"shortest_edge": 1}} becomes {"size.shortest_edge": 1}.
    stated = dict(section)
    for name, value in (section.get("size") or {}).items():
        stated[f"size.{name}"] = value

    settings = {}
    for name, spellings in SPELLINGS.items():
        for spelling in spellings:
            value = stated.get(spelling)
            if value is not None:
                settings[name] = value
                break

    # The lower limit must not be above the upper one.
    for lower, upper in (LIMITS, ("min_frames", "max_frames")):
        if lower in settings and upper in settings and settings[lower] > settings[upper]:
            allowed = f"at most {upper}, which is {settings[upper]}"
            refuse(place, Fault(lower, settings[lower], allowed))
    return MediaSection(place, settings)


def drop_repeated_limits(image: MediaSection, video: MediaSection) -> None:
    """Remove from a video section the limits that only repeat those of images.

    transformers writes the limits of images into the video section of a checkpoint that has none,
    and then spends several times the tokens on a video. It never writes total_pixels: a section
    with it was written for videos.
    """
    if "total_pixels" in video.settings:
        return
    of_images = [image.settings.get(name) for name in LIMITS]
    of_videos = [video.settings.get(name) for name in LIMITS]
    if of_images == of_videos:
        for name in LIMITS:
            video.settings.pop(name, None)


def check_patches(section: MediaSection, vision_config: Mapping) -> None:
    """ValueError unless patches have the size that the model in this folder takes."""
    for name, (official, default) in PATCHES.items():
        found = section.settings.get(name, default)
        wanted = vision_config.get(official)
        if wanted is None:
            wanted = default
        if found != wanted:
            allowed = f"{wanted}, as vision_config.{official} in config.json"
            refuse(section.place, Fault(name, found, allowed))


def check_same_colours(image: MediaSection, video: MediaSection) -> None:
    """ValueError if frames of videos would be normalised otherwise than images."""
    for name in ("image_mean", "image_std"):
        wanted = image.settings.get(name)
        found = video.settings.get(name)
        if found is not None and wanted is not None and found != wanted:
            refuse(video.place, Fault(name, found, f"{wanted}, as for images"))


def check_token_ids(file: Path, config: Mapping, ids: Mapping[str, int]) -> None:
    """ValueError unless config.json has the tokenizer's ids of the tokens around and in images."""
    for name, wanted in ids.items():
        found = config.get(name)
        if found is not None and found != wanted:
            refuse(file, Fault(name, found, f"{wanted}, as the tokenizer has it"))
