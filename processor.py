"""From what a person has (pictures, clips, a conversation) to what the model reads: patches and token ids.

  sources   a path, URL, data: URI, array or PIL picture becomes an upright 8-bit RGB picture; a clip, frames
  patches   a picture keeps its shape ("naive dynamic resolution", section 2.1 of arXiv 2409.12191): its sides
            are rounded to 28 px, and it is cut into patches of 14 x 14 px, two frames deep. The four patches
            of a 2 x 2 block follow one another, for the model merges them into one token
  template  the conversation is written out between control tokens, an <|image_pad|> where a picture goes
  tokens    text becomes ids, and <|image_pad|> is repeated once for every token that its picture will give

What a user writes never becomes a control token, even if it spells one (see `render`). Batches are padded on
the left, so that every row ends where its answer starts.

B batch   T tokens   P patches   N = P/4 image tokens   n frames   C = 3 channels   D = C*tps*ps*ps: a patch
H,W picture px   t,h,w grid in patches   ps patch side, 14 px   tps frames a patch, 2   m merge side, 2
"""

import codecs
import json
import math
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import InitVar, asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from load import find_checkpoint, load_tokenizer, read_config, read_json

# What a media item, a call or `from_pretrained` may say; the nearest to the picture wins.
SIZING = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
SAMPLING = ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end")
SOURCE_KEYS = {"image": ("path", "url", "image", "image_url"), "video": ("path", "url", "video")}
Name = str | os.PathLike


# ------------------------------------------------------------------------------------------ sources
def describe(source: Any) -> str:
    """A source's name for error messages, with data: URIs and other long strings cut."""
    if hasattr(source, "dtype"):
        return f"{type(source).__name__} of {source.dtype} {tuple(source.shape)}"
    name = repr(os.fspath(source) if isinstance(source, os.PathLike) else source)
    limit = 40 if name.startswith("'data:") else 200
    return name if len(name) <= limit else f"{name[:limit]}... ({len(name)} characters)"


def open_source(source: Name, kind: str) -> BinaryIO:
    """A path, file://, http(s):// or data: URI as an open binary file; an OSError names what can't be had."""
    from http.client import HTTPException  # here: slow to import and seldom needed
    from urllib import parse, request

    place = os.fspath(source)
    scheme = place.split(":", 1)[0].lower()
    try:
        if scheme not in ("http", "https", "data"):
            return open(request.url2pathname(parse.urlsplit(place).path) if scheme == "file" else place, "rb")
        agent = {"User-Agent": "Mozilla/5.0 qwen2vl"}  # some hosts refuse urllib's own
        with request.urlopen(request.Request(place, headers=agent), timeout=30) as answer:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (vanishes when the caller closes it)
            shutil.copyfileobj(answer, file)
            file.seek(0)
            return file
    except FileNotFoundError:
        raise FileNotFoundError(f"no such {kind}: {describe(source)}") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot get the {kind} {describe(source)}: {reason}") from error


def as_item(media: Any, kind: str) -> tuple[dict, Any]:
    """A source or a message item, {"type": "image", "path": ...}, as the item and the source in it."""
    item = media if isinstance(media, dict) else {kind: media}
    source = next((item[key] for key in SOURCE_KEYS[kind] if item.get(key) is not None), None)
    source = source.get("url") if isinstance(source, dict) else source  # {"image_url": {"url": ...}}
    if source is None:
        raise ValueError(f"no source in {item!r:.99}: a {kind} has one of {', '.join(SOURCE_KEYS[kind])}")
    return item, source


def nearest(*levels: dict) -> dict:
    """The media options of all levels, from far (the checkpoint) to near (the item): the nearest wins."""
    merged: dict = {}
    for level in levels:
        given = {key: level[key] for key in SIZING + SAMPLING if level.get(key) is not None}
        if "fps" in given and "nframes" in given:
            raise ValueError(f"give fps or nframes, not both: got {given['fps']} and {given['nframes']}")
        rival = {"fps": "nframes", "nframes": "fps"}  # a near fps also outweighs a far nframes
        merged = {key: value for key, value in merged.items() if rival.get(key) not in given} | given
    return merged


def load_image(source: Any) -> Image.Image:
    """One picture as RGB: upright by its EXIF tag, the first frame if animated, white where transparent.

    From a path, URL, data: URI, PIL picture, uint8 array (H, W[, 3]) or uint8 tensor, which may be (3, H, W).
    """
    if hasattr(source, "dtype"):
        source = Image.fromarray(to_array(source))
    if not isinstance(source, (Name, Image.Image)):
        raise ValueError(f"a picture is a path, a URL, a PIL picture or an array, not {describe(source)}")
    given = isinstance(source, Image.Image)
    with nullcontext(source) if given else open_source(source, "picture") as file:
        try:
            return to_rgb(source if given else Image.open(file))
        except Exception as error:  # on broken files Pillow's readers raise a dozen types
            raise ValueError(f"cannot read the picture {describe(source)}: {error}") from error


def to_array(pixels: np.ndarray | torch.Tensor) -> np.ndarray:
    """Array or tensor to uint8 (H, W) or (H, W, 3 or 4); ValueError if rows may be mistaken for channels."""
    array = np.asarray(pixels.cpu() if isinstance(pixels, torch.Tensor) else pixels)
    if isinstance(pixels, torch.Tensor) and array.ndim == 3 and array.shape[0] == 3 != array.shape[2]:
        array = array.transpose(1, 2, 0)  # (H, W, 3)
    clear = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[0] != 3)
    if array.dtype != np.uint8 or array.size == 0 or not clear:
        wanted = "uint8 (H, W), (H, W, 3) or, as a tensor, (3, H, W)"
        raise ValueError(f"an array picture must be {wanted}: got {describe(pixels)}")
    return np.ascontiguousarray(array)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any Pillow mode as upright RGB; ValueError for floats, which have no fixed range."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating point: scale them to 8 bits first")
    if picture.getexif().get(0x0112, 1) != 1:  # the tag "Orientation": how the camera was held
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255; 65535 / 257 = 255
        wide = np.asarray(picture).clip(0, 65535)
        picture = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")


# ------------------------------------------------------------------------------------------ patches
def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: float = 56 * 56, max_pixels: float = 1280 * 28 * 28
) -> tuple[int, int]:
    """The size (height, width) in px at which the model sees a picture: both sides multiples of `factor`.

    The area is held between the limits as far as the shape allows. ValueError for sides that differ more than
    200-fold, and for limits that no size meets.
    """
    if not 1 <= max(height, width) <= 200 * min(height, width):
        raise ValueError(f"a picture's sides may differ 200-fold, from 1 px on: got {height} x {width}")
    if max_pixels < max(min_pixels, factor**2):
        least = f"min_pixels {min_pixels}" if min_pixels > factor**2 else f"a block of {factor} x {factor} px"
        raise ValueError(f"max_pixels {max_pixels} is less than {least}")
    sides = [round(side / factor) * factor for side in (height, width)]  # half to even: 70 px are 2 blocks
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif math.prod(sides) < min_pixels:  # also where a thin side was rounded to 0
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return max(factor, sides[0]), max(factor, sides[1])


def target_size(height: int, width: int, factor: int, options: dict) -> tuple[int, int]:
    """`smart_resize` under media options, of which resized_height and resized_width outweigh the limits."""
    asked = options.get("resized_height"), options.get("resized_width")
    if asked == (None, None):
        return smart_resize(height, width, factor, options["min_pixels"], options["max_pixels"])
    if None in asked:
        raise ValueError(f"resized_height and resized_width go together: got {asked[0]} and {asked[1]}")
    return smart_resize(*asked, factor, factor**2, math.inf)


def patchify(frames: torch.Tensor, ps: int = 14, tps: int = 2, m: int = 2) -> tuple[torch.Tensor, tuple]:
    """Cuts frames (n, C, H, W) into patches (t*h*w, D) and gives their grid (t, h, w).

    Patches come in the merger's order: frame pair, 2 x 2 block, place in the block. Values of a patch come in
    the Conv3d weight's order: channel, frame, row, column. The last frame is repeated to fill its pair.
    """
    n, C, H, W = frames.shape
    if n % tps:
        frames = torch.cat([frames, frames[-1:].expand(tps - n % tps, -1, -1, -1)])  # (t*tps, C, H, W)
    t, h, w = len(frames) // tps, H // ps, W // ps
    blocks = frames.reshape(t, tps, C, h // m, m, ps, w // m, m, ps)
    blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h/m, w/m, m, m, C, tps, ps, ps)
    return blocks.reshape(t * h * w, C * tps * ps * ps), (t, h, w)


@dataclass
class Qwen2VLImageProcessor:
    """Pictures to normalised patches. Resizes with Pillow's bicubic filter, and so equals the reference.

    The fields are those of preprocessor_config.json. `asked` are limits that the caller set: they hold for
    clips too, the file's don't. `device` is where `Qwen2VLImageProcessorFast` works.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    device: InitVar[str | torch.device] = "cpu"
    asked: InitVar[dict | None] = None

    def __post_init__(self, device: str | torch.device, asked: dict | None):
        self.device, self.asked = device, asked or {}

    @classmethod
    def from_pretrained(cls, name: Name, min_pixels: int | None = None, max_pixels: int | None = None):
        """Reads a checkpoint's preprocessor_config.json; limits given here, in px, outweigh the file's."""
        config = read_json(find_checkpoint(name, weights=False), "preprocessor_config.json")
        size = config.get("size") or {}  # here newer files state the limits
        config.setdefault("min_pixels", size.get("shortest_edge"))
        config.setdefault("max_pixels", size.get("longest_edge"))
        asked = nearest({"min_pixels": min_pixels, "max_pixels": max_pixels})
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        return cls(**known | asked, asked=asked)

    def resize(self, pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
        """RGB pictures to uint8 (n, C, height, width)."""
        resized = [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)  # (n, C, H, W)

    def cut(self, frames: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """`patchify` with this checkpoint's sizes."""
        return patchify(frames, self.patch_size, self.temporal_patch_size, self.merge_size)

    def normalize(self, patches: torch.Tensor) -> torch.Tensor:
        """uint8 patches (P, D) to float32, of about zero mean and unit spread in each channel."""
        mean, std = torch.tensor([self.image_mean, self.image_std], device=patches.device).unsqueeze(-1)
        values = patches.float().view(len(patches), len(mean), -1)  # (P, C, tps*ps*ps): the only float copy
        return values.div_(255).sub_(mean).div_(std).flatten(1)  # (P, D)

    def __call__(self, images: Any, **options: Any) -> "BatchFeature":
        """Sources or message items, one or a list, to pixel_values (P, D) and image_grid_thw (n, 3).

        `options` are min_pixels and max_pixels, or resized_height and resized_width; an item's own win.
        """
        if not flatten(images):
            raise ValueError("an image processor needs at least 1 picture: got 0")
        items, sources = zip(*(as_item(image, "image") for image in flatten(images)), strict=True)
        pictures = [load_image(source) for source in sources]
        groups = defaultdict(list)  # (size now, size then) -> places: one size goes through at once
        for i, (item, picture) in enumerate(zip(items, pictures, strict=True)):
            wanted, factor = nearest(vars(self), options, item), self.patch_size * self.merge_size
            groups[picture.size, target_size(picture.height, picture.width, factor, wanted)].append(i)
        found: dict[int, tuple] = {}
        for (_, size), places in groups.items():
            frames = self.resize([pictures[i] for i in places], *size)  # (n, C, H, W)
            # A picture is one frame shown tps times (section 2.1): n pictures are a clip of n*tps frames.
            flat, (_, h, w) = self.cut(frames.repeat_interleave(self.temporal_patch_size, 0))  # (n*h*w, D)
            found |= {i: (patches, (1, h, w)) for i, patches in zip(places, flat.split(h * w), strict=True)}
        values = self.normalize(torch.cat([found[i][0] for i in range(len(items))]))  # (P, D)
        grids = torch.tensor([found[i][1] for i in range(len(items))])  # (n, 3)
        return BatchFeature(pixel_values=values, image_grid_thw=grids)


class Qwen2VLImageProcessorFast(Qwen2VLImageProcessor):
    """The same with torch's resize, on any `device`; values may be a few of 255 levels off Pillow's."""

    def resize(self, pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
        """RGB pictures of one size to uint8 (n, C, height, width) on the device."""
        stack = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        frames = stack.to(self.device).permute(0, 3, 1, 2)  # (n, C, H, W)
        if frames.shape[2:] == (height, width):
            return frames
        wide = frames if frames.device.type == "cpu" else frames.float()  # only the CPU has an 8-bit kernel
        wide = F.interpolate(wide, (height, width), mode="bicubic", antialias=True)
        return wide if wide.dtype == torch.uint8 else wide.round_().clamp_(0, 255).to(torch.uint8)


# ------------------------------------------------------------------------------------------ video
def sample_frames(
    total: int, file_fps: float, fps=2.0, nframes: int | None = None, min_frames=4, max_frames=768
) -> list[int]:
    """Which of a clip's `total` frames to look at: n of them, evenly spread, at floor(i * total / n).

    n is `nframes`, or the clip's seconds times `fps`, held to the limits and to the clip; then floored to
    even, for frames go in pairs, but at least 1. ValueError for more `nframes` than the clip has.
    """
    if total < 1:
        raise ValueError("it has 0 frames")
    if nframes is None:
        if min(file_fps, fps) <= 0 or min(min_frames, max_frames) < 1 or min_frames > max(4, max_frames):
            limits = f"{min_frames} to {max_frames} frames"
            raise ValueError(f"cannot sample {limits} at fps {fps} from {file_fps} frames a second")
        nframes = int(min(max(total / file_fps * fps, min_frames), max_frames, total))
    if not 1 <= nframes <= total:
        raise ValueError(f"nframes {nframes} does not fit a clip of {total} frames")
    n = max(1, nframes // 2 * 2)
    return [i * total // n for i in range(n)]


def decode_frames(file: BinaryIO, wanted: list[int], fit: Callable) -> tuple[list, int]:
    """One pass over a clip: `fit(frame, n)` of the n wanted frames, and how many frames it met on the way."""
    import av  # here: slow to import and seldom needed

    file.seek(0)
    kept, seen = [], 0
    with av.open(file) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            if seen == wanted[len(kept)]:
                turn = round(frame.rotation / 90) * 90  # phones store frames lying and note the turn
                kept.append(fit(frame.to_image().rotate(turn, expand=True), len(wanted)))
            seen += 1
            if len(kept) == len(wanted):
                break
    return kept, seen


def read_clip(file: BinaryIO, fit: Callable, video_start=0.0, video_end=math.inf, **sampling: Any) -> list:
    """Samples an open file in one pass, or in a second one if it holds fewer frames than it states."""
    import av

    with av.open(file) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 1)  # a single picture may state none
        total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))  # none is decoded
    while True:
        first, stop = math.ceil(max(0, video_start) * rate), int(min(total, video_end * rate + 1))
        if stop <= first and total:
            raise ValueError(f"none of its {total / rate:.2f} s lies in {video_start} to {video_end} s")
        wanted = [first + i for i in sample_frames(stop - first, rate, **sampling)]
        kept, total = decode_frames(file, wanted, fit)
        if len(kept) == len(wanted):
            return kept


def read_video(source: Any, fit: Callable = lambda frame, n: frame, **options: Any) -> list:
    """The sampled frames of a clip, each as `fit(frame, n)` made it while decoding: nothing else is kept.

    `source` is a path, URL or data: URI, or a list of frames, which is used as it is. `options` are those of
    `sample_frames`, and video_start and video_end in seconds.
    """
    if isinstance(source, (list, tuple, np.ndarray, torch.Tensor)) and len(source):
        return [fit(load_image(frame), len(source)) for frame in source]
    if not isinstance(source, Name):
        raise ValueError(f"a video is a path, a URL or a list of at least 1 frame, not {describe(source)}")
    with open_source(source, "video") as file:
        import av

        try:
            return read_clip(file, fit, **options)
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read the video {describe(source)}: {reason}") from error


def video_limits(n: int, options: dict) -> dict:
    """The limits of one frame out of n, so that all together stay under total_pixels: qwen-vl-utils' rule."""
    asked = options.get("max_pixels", math.inf)
    least = options.get("min_pixels", min(128 * 28 * 28, asked))
    share = options.get("total_pixels", 24576 * 28 * 28) / n * 2  # times 2: two frames cost the tokens of one
    most = max(min(options.get("max_pixels", 768 * 28 * 28), share), int(1.05 * least))
    return options | {"min_pixels": least, "max_pixels": min(asked, most)}


def video_patches(processor: Qwen2VLImageProcessor, video: Any, **call: Any) -> tuple[torch.Tensor, tuple]:
    """One clip, a source or a message item, to normalised patches (t*h*w, D) and its grid (t, h, w)."""
    item, source = as_item(video, "video")
    options, factor = nearest(processor.asked, call, item), processor.patch_size * processor.merge_size

    def fit(frame: Image.Image, n: int) -> torch.Tensor:
        size = target_size(frame.height, frame.width, factor, video_limits(n, options))
        return processor.resize([frame], *size)  # (1, C, H, W)

    frames = read_video(source, fit, **{key: options[key] for key in SAMPLING if key in options})
    if len(shapes := {tuple(frame.shape[2:]) for frame in frames}) > 1:
        raise ValueError(f"the frames of {describe(source)} differ in size: {' and '.join(map(str, shapes))}")
    patches, grid = processor.cut(torch.cat(frames))
    return processor.normalize(patches), grid


# ------------------------------------------------------------------------------------------------ template

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SLOTS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
# These name things and places in a picture and are a part of the language: tokens wherever they stand.
GROUNDING = [f"<|{what}_{side}|>" for what in ("object_ref", "box", "quad") for side in ("start", "end")]
Pieces = list[tuple[str, bool]]  # (text, whether it is a token of its own)


def contents(message: Any) -> list[tuple[str, dict]]:
    """A message's items, each with its kind: image, video or text, by type or key as in the template."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise ValueError(f"a message is a dict with the role system, user or assistant: got {message!r:.99}")
    content, pairs = message.get("content"), []
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for item in content if isinstance(content, (list, tuple)) else [content]:
        kind = (item.get("type") or "text") if isinstance(item, dict) else None
        if kind and ("image" in item or "image_url" in item):
            kind = "image"
        elif kind == "text" and "video" in item:
            kind = "video"
        if not (isinstance(item.get("text"), str) if kind == "text" else kind in SLOTS):
            raise ValueError(f"content is text, or items of type text, image or video: got {item!r:.99}")
        pairs.append((kind, item))
    return pairs


def render(talk: list[dict], add_generation_prompt: bool = False, add_vision_id: bool = False) -> Pieces:
    """A conversation as the official Jinja template writes it, in pieces (text, whether a control token).

    Joined they are the template's string; apart they tell the control tokens that the template set from those
    that a user spelt. ValueError for a role or a content type that the model does not know.
    """
    pieces, seen = [], {"image": 0, "video": 0}
    if isinstance(talk[0], dict) and talk[0].get("role") != "system":
        talk = [{"role": "system", "content": "You are a helpful assistant."}, *talk]
    for message in talk:
        pairs = contents(message)
        pieces += [(IM_START, True), (message["role"] + "\n", False)]
        for kind, item in pairs:
            if kind == "text":
                pieces.append((item["text"], False))
                continue
            seen[kind] += 1
            name = f"{'Picture' if kind == 'image' else 'Video'} {seen[kind]}: " * add_vision_id
            pieces += [(name, False), (VISION_START, True), (SLOTS[kind], True), (VISION_END, True)]
        pieces += [(IM_END, True), ("\n", False)]
    return pieces + [(IM_START, True), ("assistant\n", False)] * add_generation_prompt


def split_tokens(text: str, tokens: Iterable[str]) -> Pieces:
    """Text cut before and after each of the given tokens."""
    parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


# ------------------------------------------------------------------------------------------ tokens
class BatchFeature(dict):
    """A dict of tensors that are attributes too, and that move to a device together."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no entry {name!r}: there are {', '.join(self)}")

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> "BatchFeature":
        """Every tensor on `device`; `dtype` is for the floating-point ones alone."""
        kept = {key: value.dtype for key, value in self.items() if not value.is_floating_point()}
        return BatchFeature({key: value.to(device, kept.get(key, dtype)) for key, value in self.items()})


def flatten(media: Any) -> list:
    """One picture, a list of them, or nested lists, as one flat list."""
    return [one for part in media for one in flatten(part)] if isinstance(media, (list, tuple)) else [media]


# A byte-level vocabulary (GPT-2's) spells a byte as a letter: printable ones as they are, others from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + i): b for i, b in enumerate(OTHERS)}


class TextStream:
    """Ids to text, one at a time: a letter whose bytes are spread over several tokens comes out once, whole.

    Tokens in `dropped` print nothing, ids without a token U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, dropped: Iterable[str] = (IM_END, PAD)):
        self.tokenizer, self.dropped = tokenizer, set(dropped)
        self.added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # holds back 3 bytes at most

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty inside a letter."""
        token = self.tokenizer.id_to_token(int(token_id))
        if token in self.dropped:
            return ""
        if token is None:
            return self.utf8.decode(b"\xff")  # never valid in UTF-8, hence U+FFFD
        return self.utf8.decode(token.encode() if token in self.added else bytes(BYTE_OF[c] for c in token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished letter, else nothing."""
        return self.utf8.decode(b"", final=True)


class Qwen2VLProcessor:
    """Conversations, or rendered strings and their media, to what the model takes as keyword arguments.

    `files` are the texts that `save_pretrained` hands on, `longest` is the most tokens that the model reads.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Tokenizer, files: dict | None = None, longest=math.inf
    ):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.files, self.longest = files or {}, longest
        # From here on control tokens are plain text to the tokenizer: `encode` alone sets them.
        tokenizer.encode_special_tokens = True
        self.special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        needed = IM_START, IM_END, PAD, VISION_START, VISION_END, *SLOTS.values(), *GROUNDING
        if missing := [token for token in needed if token not in self.special]:
            raise ValueError(f"the tokenizer is not one of Qwen2-VL: it lacks {', '.join(missing)}")
        self.eos_token_id, self.pad_token_id = self.special[IM_END], self.special[PAD]
        self.vision_start_token_id = self.special[VISION_START]
        self.vision_end_token_id = self.special[VISION_END]
        self.image_token_id, self.video_token_id = (self.special[slot] for slot in SLOTS.values())

    @classmethod
    def from_pretrained(
        cls, name: Name, min_pixels: int | None = None, max_pixels: int | None = None, use_fast: bool = False
    ) -> "Qwen2VLProcessor":
        """The processor of a folder, "tiny" or a Hub name; limits in px, for pictures and frames of clips."""
        folder = find_checkpoint(name, weights=False)
        kind = Qwen2VLImageProcessorFast if use_fast else Qwen2VLImageProcessor
        paths = [folder / file for file in ("tokenizer_config.json", "chat_template.json")]
        files = {path.name: path.read_text("utf-8") for path in paths if path.exists()}
        config = read_config(folder) if (folder / "config.json").exists() else {}
        longest = config.get("max_position_embeddings", math.inf)
        pictures = kind.from_pretrained(folder, min_pixels, max_pixels)
        return cls(pictures, load_tokenizer(folder), files, longest)

    def save_pretrained(self, folder: Name) -> None:
        """Writes tokenizer.json, preprocessor_config.json and the texts that came with the checkpoint."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
        config = json.dumps(asdict(self.image_processor) | names, indent=2)
        for file, content in (self.files | {"preprocessor_config.json": config}).items():
            (folder / file).write_text(content, "utf-8")

    def encode(self, pieces: Pieces) -> list[int]:
        """Pieces to ids; text is joined up to the next control token first, for words merge across pieces."""
        ids = []
        for control, run in groupby(pieces, key=lambda piece: piece[1]):
            for part, token in run if control else split_tokens("".join(part for part, _ in run), GROUNDING):
                spelt = [] if token else self.tokenizer.encode(part, add_special_tokens=False).ids
                ids += [self.special[part]] if token else spelt
        return ids

    def apply_chat_template(
        self,
        conversation: list,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        add_vision_id: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """One conversation or a list: rendered, or with `tokenize` as input_ids (B, T), or with `return_dict`
        too as all that the model takes. `options` are those of `batch`, and video_fps for fps.
        """
        if not isinstance(conversation, (list, tuple)) or not conversation or not all(conversation):
            raise ValueError(f"a conversation is a list of at least 1 message: got {conversation!r:.99}")
        many = isinstance(conversation[0], (list, tuple))
        talks = conversation if many else [conversation]
        rows = [render(talk, add_generation_prompt, add_vision_id) for talk in talks]
        if not tokenize:
            texts = ["".join(part for part, _ in row) for row in rows]
            return texts if many else texts[0]
        pairs = [pair for talk in talks for message in talk for pair in contents(message)]
        media = {slot: [item for kind, item in pairs if kind == slot] for slot in SLOTS}
        options.setdefault("fps", options.pop("video_fps", None))
        inputs = self.batch(rows, media, **options)
        return inputs if return_dict else inputs["input_ids"]

    def __call__(self, text: str | list, images: Any = None, videos: Any = None, **options) -> BatchFeature:
        """Rendered strings and, in the order of their slots, pictures and clips, to model inputs.

        The strings are trusted: what spells a control token is one. A clip that is a list of frames stands in
        a list of clips. `options` are those of `batch`.
        """
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"text must be a string or a list of at least 1 string: got {text!r:.99}")
        clips = list(videos) if isinstance(videos, (list, tuple)) else [videos]
        media = {"image": [] if images is None else flatten(images), "video": [] if videos is None else clips}
        return self.batch([split_tokens(one, self.special) for one in texts], media, **options)

    def batch(
        self, rows: list, media: dict, padding=True, padding_side="left", return_tensors="pt", **options
    ):
        """Rows of pieces, and media in the order of their slots, to model inputs; `options` are of media.

        input_ids and attention_mask (B, T), pixel_values (P, D) and image_grid_thw (n, 3) for pictures, and
        pixel_values_videos and video_grid_thw for clips. ValueError where slots and media differ in number.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors can only be 'pt': got {return_tensors!r}")
        if unknown := options.keys() - {*SIZING, *SAMPLING}:
            raise ValueError(f"no option {', '.join(unknown)}: there are {', '.join(SIZING + SAMPLING)}")
        ids = [self.encode(row) for row in rows]
        for kind, slot in zip(media, (self.image_token_id, self.video_token_id), strict=True):
            slots, given = sum(row.count(slot) for row in ids), len(media[kind])
            if slots != given:
                noun = "picture" if kind == "image" else kind
                had = f"{given} {noun} was" if given == 1 else f"{given} {noun}s were"
                raise ValueError(f"the prompt has {slots} {kind} slot{'s' * (slots != 1)}, {had} given")
        pixels = self.pixels(media, options)
        grids, m = (
            {self.image_token_id: iter(pixels.get("image_grid_thw", ()))},
            self.image_processor.merge_size,
        )
        grids[self.video_token_id] = iter(pixels.get("video_grid_thw", ()))
        for row in ids:
            N = [int(next(grids[i]).prod()) // m**2 if i in grids else 1 for i in row]  # tokens in a slot
            row[:] = [i for i, times in zip(row, N, strict=True) for _ in range(times)]
        return BatchFeature(self.pad(ids, padding, padding_side) | pixels)

    def pixels(self, media: dict[str, list], options: dict) -> dict[str, torch.Tensor]:
        """The tensors of all pictures and clips, with no key for a kind that is absent."""
        pixels = {}
        if media["image"]:
            sizing = {key: value for key, value in options.items() if key in SIZING}
            pixels |= self.image_processor(media["image"], **sizing)
        if media["video"]:
            made = [video_patches(self.image_processor, video, **options) for video in media["video"]]
            pixels["pixel_values_videos"] = torch.cat([patches for patches, _ in made])  # (P, D)
            pixels["video_grid_thw"] = torch.tensor([grid for _, grid in made])  # (n, 3)
        return pixels

    def pad(self, ids: list[list[int]], padding: bool, side: str) -> dict[str, torch.Tensor]:
        """Rows of ids to input_ids and attention_mask (B, T); ValueError for more than the model reads."""
        T = max(map(len, ids))
        if self.longest < T:
            advice = "shorten the text, or lower max_pixels, fps or nframes"
            raise ValueError(f"the prompt has {T} tokens, this model reads at most {self.longest}: {advice}")
        if not padding and any(len(row) < T for row in ids):
            raise ValueError(
                f"rows of {min(map(len, ids))} and {T} tokens make no batch without padding=True"
            )
        input_ids = torch.full((len(ids), T), self.pad_token_id)  # (B, T)
        mask = torch.zeros_like(input_ids)  # (B, T)
        for row, tokens in enumerate(ids):
            place = slice(len(tokens)) if side == "right" else slice(T - len(tokens), T)
            input_ids[row, place], mask[row, place] = torch.tensor(tokens, dtype=torch.long), 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def decode(self, ids: Any, skip_special_tokens=False, clean_up_tokenization_spaces=False) -> str:
        """One row of ids to text; an id without a token (the vocabulary reserves some) gives U+FFFD."""
        stream = TextStream(self.tokenizer, self.special if skip_special_tokens else ())
        text = "".join(map(stream.push, ids)) + stream.finish()
        if clean_up_tokenization_spaces:  # English spacing, the same ten replacements as the reference's
            text = re.sub(" ([.?!,])", r"\1", text).replace(" ' ", "'")
            text = re.sub(" (n't|'m|'s|'ve|'re)", r"\1", text)
        return text

    def batch_decode(self, ids: Any, **options: bool) -> list[str]:
        """Rows of ids (B, T) to texts, with the options of `decode`."""
        return [self.decode(row, **options) for row in ids]

    def text_stream(self) -> TextStream:
        """A fresh decoder for one row of generated ids; end and padding tokens print nothing."""
        return TextStream(self.tokenizer)
