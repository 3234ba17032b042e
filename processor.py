"""From what a person has (pictures, clips, a conversation) to what the model reads: patches and token ids.

  patches   a picture keeps its shape ("naive dynamic resolution", section 2.1 of arXiv 2409.12191): its sides
            are rounded to 28 px, and it is cut into patches of 14 x 14 px, two frames deep. The four patches
            of a 2 x 2 block follow one another, for the model merges them into one token
  video     of a clip a few frames are cut the same way, evenly spread and under one budget of pixels
  template  the conversation is written out between control tokens, an <|image_pad|> where a picture goes
  tokens    text becomes ids, and <|image_pad|> is repeated once for every token that its picture will give

B batch   T tokens   P patches   N = P/4 image tokens   n frames   C = 3 channels   D = C*tps*ps*ps: a patch
H,W picture px   t,h,w grid in patches   ps patch side, 14 px   tps frames a patch, 2   m merge side, 2
(In qwen2vl.py H counts query heads and D is a width.)
"""

import codecs
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer

from load import find_checkpoint, load_tokenizer, read_config, read_json
from media import SAMPLING, SIZING, Name, describe, flatten, load_image, read_video, settle
from pixels import fresh, join, pillow_resize, torch_resize


class BatchFeature(dict):
    """A dict of tensors that are attributes too, and that move to a device together."""

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"no entry {name!r}: there are {', '.join(self)}")

    def to(self, device: str | torch.device) -> "BatchFeature":
        return BatchFeature({key: value.to(device) for key, value in self.items()})


def smart_resize(height: int, width: int, factor=28, min_pixels=56 * 56, max_pixels=1280 * 28 * 28) -> tuple:
    """(height, width) as the model sees it: multiples of `factor`, within the limits if the shape allows."""
    if not 1 <= max(height, width) <= 200 * min(height, width):
        raise ValueError(f"a picture of {width} x {height} px: one side is 0 or over 200 times the other")
    if max_pixels < max(min_pixels, factor**2):
        raise ValueError(f"max_pixels {max_pixels} is below min_pixels {min_pixels} or {factor} x {factor}")
    sides = [round(side / factor) * factor for side in (height, width)]  # half to even: 70 px are 2 blocks
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif math.prod(sides) < min_pixels:  # also where a thin side was rounded to 0
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return max(factor, sides[0]), max(factor, sides[1])


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
    """Pictures to normalised patches as in the reference; the fields are preprocessor_config.json's."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    device: str | torch.device = "cpu"  # where torch_resize runs

    @classmethod
    def from_pretrained(cls, name: Name, **given: Any) -> "Qwen2VLImageProcessor":
        """A checkpoint's preprocessor_config.json; fields given here, say max_pixels, outweigh the file's."""
        config = read_json(find_checkpoint(name, weights=False), "preprocessor_config.json")
        size = config.get("size") or {}  # here newer files state the limits
        stated = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        names, levels = [f.name for f in fields(cls)], (stated, config, given)
        return cls(**{key: level[key] for level in levels for key in names if level.get(key) is not None})

    def size(self, picture: Image.Image, options: dict) -> tuple[int, int]:
        """(height, width) for a picture: the nearest to those asked for, else within the limits."""
        asked = "resized_height" in options or "resized_width" in options
        height = options.get("resized_height", picture.height)
        width = options.get("resized_width", picture.width)
        factor = self.patch_size * self.merge_size
        limits = (factor**2, math.inf) if asked else (options["min_pixels"], options["max_pixels"])
        return smart_resize(height, width, factor, *limits)

    def resize(self, pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
        """RGB pictures to uint8 (n, C, height, width) by Pillow's bicubic filter."""
        return pillow_resize(pictures, height, width)

    def patches(self, frames: torch.Tensor, still: bool = False) -> tuple[torch.Tensor, tuple]:
        """`patchify`, and each channel brought to about zero mean and unit spread: float32 (t*h*w, D).

        With `still` each frame is a picture, which is shown tps times (section 2.1).
        """
        tps, device = self.temporal_patch_size, frames.device
        flat, grid = patchify(frames, self.patch_size, 1 if still else tps, self.merge_size)
        mean, std = torch.tensor([self.image_mean, self.image_std], device=device).view(2, -1, 1, 1)
        flat = flat.view(len(flat), len(mean), 1, -1).expand(-1, -1, tps if still else 1, -1)
        values = fresh(flat.shape, device)
        for few, made in zip(flat.split(256), values.split(256), strict=True):  # they stay in the cache
            made.copy_(few).div_(255).sub_(mean).div_(std)
        return values.flatten(1), grid

    def __call__(self, images: Any, **options: Any) -> "BatchFeature":
        """Sources or message items, one or a list, to pixel_values (P, D) and image_grid_thw (n, 3)."""
        groups: dict[tuple, list] = {}  # (its size, its new size) -> pictures: they go through at once
        for i, image in enumerate(flatten(images)):
            source, wanted = settle(image, "image", vars(self), options)
            picture = load_image(source)
            groups.setdefault((picture.size, self.size(picture, wanted)), []).append((i, picture))
        if not groups:
            raise ValueError("an image processor needs at least 1 picture: got 0")
        done = {}  # place -> patches (h*w, D) and grid
        for (_, size), group in groups.items():
            frames = self.resize([picture for _, picture in group], *size)  # (n, C, H, W)
            patches, (_, h, w) = self.patches(frames, still=True)
            done |= {i: (part, (1, h, w)) for (i, _), part in zip(group, patches.split(h * w), strict=True)}
        parts, grids = zip(*(done[i] for i in range(len(done))), strict=True)
        return BatchFeature(pixel_values=join(parts), image_grid_thw=torch.tensor(grids))


class Qwen2VLImageProcessorFast(Qwen2VLImageProcessor):
    """The same with torch's resize, on any `device`; values may be a few of 255 levels off Pillow's."""

    def resize(self, pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
        return torch_resize(pictures, height, width, self.device)


def sample_frames(total: int, rate: float, fps=2.0, nframes=None, min_frames=4, max_frames=768) -> list[int]:
    """Which n of a clip's `total` frames, `rate` a second, to look at: evenly spread, floor(i * total / n).
    n is `nframes`, or else `fps` a second within the limits and the clip; then even, for they go in pairs.
    """
    if nframes is None:
        if not (rate > 0 and 0 < fps < math.inf) or min_frames > max(4, max_frames):
            raise ValueError(f"fps {fps} must be above 0, and min_frames {min_frames} within {max_frames}")
        nframes = int(min(max(total / rate * fps, min_frames), max_frames, total))
    if not 1 <= nframes <= total:
        raise ValueError(f"nframes {nframes} does not fit a clip of {total} frames")
    n = max(1, nframes // 2 * 2)
    return [i * total // n for i in range(n)]


def video_limits(n: int, options: dict) -> dict:
    """The limits of one frame out of n, so that all together stay under total_pixels: qwen-vl-utils' rule."""
    asked = options.get("max_pixels", math.inf)
    least = options.get("min_pixels", min(128 * 28 * 28, asked))
    share = options.get("total_pixels", 24576 * 28 * 28) / n * 2  # times 2: two frames cost the tokens of one
    most = max(min(options.get("max_pixels", 768 * 28 * 28), share), int(1.05 * least))
    return options | {"min_pixels": least, "max_pixels": min(asked, most)}


def video_patches(processor: Qwen2VLImageProcessor, video: Any, *levels: dict) -> tuple[torch.Tensor, tuple]:
    """One clip, a source or a message item, to normalised patches (t*h*w, D) and its grid (t, h, w)."""
    source, options = settle(video, "video", *levels)
    sampling = {key: options[key] for key in SAMPLING if key in options}
    start, end = sampling.pop("video_start", 0), sampling.pop("video_end", math.inf)  # seconds

    def choose(total: int, rate: float) -> list[int]:
        first, stop = math.ceil(max(0, start) * rate), int(min(total, end * rate + 1))
        if stop <= first:
            raise ValueError(f"none of its {total / rate:.2f} s lies in {start} to {end} s")
        return [first + i for i in sample_frames(stop - first, rate, **sampling)]

    def fit(frame: Image.Image, n: int) -> torch.Tensor:
        return torch_resize([frame], *processor.size(frame, video_limits(n, options)), processor.device)

    frames = read_video(source, choose, fit)
    if len(shapes := {tuple(frame.shape[2:]) for frame in frames}) > 1:
        raise ValueError(f"the frames of {describe(source)} differ in size: {' and '.join(map(str, shapes))}")
    return processor.patches(torch.cat(frames))


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
    for item in content if isinstance(content, (list, tuple)) else [{"text": content}]:
        names = [item.get("type"), *item] if isinstance(item, dict) else []
        kind = next((kind for kind in ("image", "image_url", "video") if kind in names), "text")
        if kind == "text" and not (names and isinstance(item.get("text"), str)):
            raise ValueError(f"content is text, or items of type text, image or video: got {item!r:.99}")
        pairs.append((kind.removesuffix("_url"), item))
    return pairs


def render(talk: list[dict], add_generation_prompt: bool = False, add_vision_id: bool = False) -> Pieces:
    """A conversation as the official Jinja template writes it, but in pieces, which tell the control tokens
    that the template set from those that a user spelt: what a user writes never becomes one.
    """
    pieces, seen = [], {"image": 0, "video": 0}
    if isinstance(talk[0], dict) and talk[0].get("role") != "system":
        talk = [{"role": "system", "content": "You are a helpful assistant."}, *talk]
    for message in talk:
        items = contents(message)
        pieces += [(IM_START, True), (message["role"] + "\n", False)]
        for kind, item in items:
            if kind == "text":
                pieces += [(item["text"], False)]
            else:
                seen[kind] += 1
                name = f"{'Picture' if kind == 'image' else 'Video'} {seen[kind]}: " * add_vision_id
                pieces += [(name, False), (VISION_START, True), (SLOTS[kind], True), (VISION_END, True)]
        pieces += [(IM_END, True), ("\n", False)]
    return pieces + [(IM_START, True), ("assistant\n", False)] * add_generation_prompt


def split_tokens(text: str, tokens: Iterable[str]) -> Pieces:
    """Text cut before and after each of the given tokens."""
    parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


# A byte-level vocabulary (GPT-2's) spells bytes as letters: printable ones as they are, the rest from 256.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTE_OF = {chr(b): bytes([b]) for b in PRINTABLE} | {chr(256 + i): bytes([b]) for i, b in enumerate(OTHERS)}


class TextStream:
    """Ids to text, one at a time: a letter spread over several tokens comes out once, whole."""

    def __init__(self, tokenizer: Tokenizer, dropped: Iterable[str] = (IM_END, PAD)):
        self.tokenizer, self.dropped = tokenizer, set(dropped)
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # holds back 3 bytes at most

    def push(self, token_id: int) -> str:
        """The text that this token completes: none inside a letter, U+FFFD for an id without a token."""
        token = self.tokenizer.id_to_token(int(token_id))
        if token in self.dropped:
            return ""
        if token is None:
            return self.utf8.decode(b"\xff")  # never valid in UTF-8, hence U+FFFD
        return self.utf8.decode(b"".join(BYTE_OF.get(letter, letter.encode()) for letter in token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished letter, else nothing."""
        return self.utf8.decode(b"", final=True)


class Qwen2VLProcessor:
    """Conversations, or rendered strings and their media, to what the model takes as keyword arguments."""

    def __init__(self, image_processor: Any, tokenizer: Tokenizer, limits=(), longest=math.inf):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.limits, self.longest = limits, longest  # for clips: the checkpoint's, outweighed by the caller's
        tokenizer.encode_special_tokens = True  # as plain text: only `encode` below sets control tokens
        self.special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        needed = IM_START, IM_END, PAD, VISION_START, VISION_END, *SLOTS.values(), *GROUNDING
        if missing := [token for token in needed if token not in self.special]:
            raise ValueError(f"the tokenizer is not one of Qwen2-VL: it lacks {', '.join(missing)}")
        self.text_stream = partial(TextStream, tokenizer)  # a fresh decoder for one row of generated ids
        self.eos_token_id, self.pad_token_id = self.special[IM_END], self.special[PAD]
        self.image_token_id, self.video_token_id = (self.special[slot] for slot in SLOTS.values())

    @classmethod
    def from_pretrained(cls, name: Name, min_pixels=None, max_pixels=None) -> "Qwen2VLProcessor":
        """The processor of a folder, "tiny" or a Hub name; limits in px, for pictures and frames of clips."""
        folder = find_checkpoint(name, weights=False)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        longest = read_config(folder).get("max_position_embeddings", math.inf)
        pictures = Qwen2VLImageProcessor.from_pretrained(folder, **limits)
        clips = read_json(folder, "video_preprocessor_config.json", optional=True)  # most have none
        return cls(pictures, load_tokenizer(folder), (clips, limits), longest)

    def encode(self, pieces: Pieces) -> list[int]:
        """Pieces to ids; text is joined up to the next control token first, for words merge across pieces."""
        ids = []
        for control, run in groupby(pieces, key=lambda piece: piece[1]):
            text = "".join(text for text, _ in run)
            text.encode()  # half a surrogate pair is a ValueError here, deeper down a TypeError
            for part, token in split_tokens(text, self.special if control else GROUNDING):
                ids += [self.special[part]] if token else self.tokenizer.encode(part).ids
        return ids

    def apply_chat_template(
        self, conversation: list, tokenize=False, add_generation_prompt=False, add_vision_id=False, **options
    ) -> Any:
        """One conversation or a list: rendered, or with `tokenize` as input_ids (B, T), with return_dict=True
        too as all that the model takes. Other `options` are those of `batch`, with video_fps for fps.
        """
        if not isinstance(conversation, (list, tuple)) or not conversation or not all(conversation):
            raise ValueError(f"a conversation is a list of at least 1 message: got {conversation!r:.99}")
        many = isinstance(conversation[0], (list, tuple))
        talks = conversation if many else [conversation]
        rows = [render(talk, add_generation_prompt, add_vision_id) for talk in talks]
        if not tokenize:
            texts = ["".join(text for text, _ in row) for row in rows]
            return texts if many else texts[0]
        items = [pair for talk in talks for message in talk for pair in contents(message)]
        media = {slot: [item for kind, item in items if kind == slot] for slot in SLOTS}
        return_dict, fps = options.pop("return_dict", False), options.pop("video_fps", None)
        inputs = self.batch(rows, media, **{"fps": fps} | options)
        return inputs if return_dict else inputs["input_ids"]

    def __call__(self, text: str | list, images: Any = None, videos: Any = None, **options) -> BatchFeature:
        """Rendered strings, and media in the order of their slots, to model inputs; `options` as in `batch`.
        What spells a control token here is one. A clip that is a list of frames stands in a list of clips.
        """
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"text must be a string or a list of at least 1 string: got {text!r:.99}")
        clips = list(videos) if isinstance(videos, (list, tuple)) else [videos]
        media = {"image": [] if images is None else flatten(images), "video": [] if videos is None else clips}
        return self.batch([split_tokens(one, self.special) for one in texts], media, **options)

    def batch(self, rows: list, media: dict, padding=True, return_tensors="pt", **options) -> BatchFeature:
        """Rows of pieces, and media in the order of their slots, to input_ids and attention_mask (B, T),
        pixel_values (P, D) and image_grid_thw (n, 3), pixel_values_videos and video_grid_thw.
        """
        if not padding or return_tensors != "pt":
            raise ValueError(f"rows come padded as 'pt' tensors: got {padding=}, {return_tensors=}")
        if unknown := options.keys() - {*SIZING, *SAMPLING}:
            raise ValueError(f"no option {', '.join(unknown)}: there are {', '.join(SIZING + SAMPLING)}")
        ids, inputs, m = [self.encode(row) for row in rows], BatchFeature(), self.image_processor.merge_size
        for kind, slot in ("image", self.image_token_id), ("video", self.video_token_id):
            if (slots := sum(row.count(slot) for row in ids)) != (given := len(media[kind])):
                raise ValueError(f"{kind} slots in the prompt: {slots}, {kind}s given: {given}")
        if media["image"]:
            inputs |= self.image_processor(media["image"], **options)
        if media["video"]:
            made = [video_patches(self.image_processor, one, *self.limits, options) for one in media["video"]]
            inputs["pixel_values_videos"] = join([patches for patches, _ in made])  # (P, D)
            inputs["video_grid_thw"] = torch.tensor([grid for _, grid in made])  # (n, 3)
        grids = {self.image_token_id: "image_grid_thw", self.video_token_id: "video_grid_thw"}
        N = {slot: iter(inputs[grid].prod(-1) // m**2) for slot, grid in grids.items() if grid in inputs}
        ids = [[i for i in row for _ in range(next(N[i]) if i in N else 1)] for row in ids]  # N tokens a slot
        if (T := max(map(len, ids))) > self.longest:
            cheaper = "lower max_pixels, fps or nframes"
            raise ValueError(f"the prompt has {T} tokens, this model reads at most {self.longest}: {cheaper}")
        mask = [[0] * (T - len(row)) + [1] * len(row) for row in ids]  # left: all rows end together
        ids = [[self.pad_token_id] * (T - len(row)) + row for row in ids]
        return BatchFeature(inputs, input_ids=torch.LongTensor(ids), attention_mask=torch.LongTensor(mask))

    def decode(self, ids: Any, skip_special_tokens=False, clean_up_tokenization_spaces=False) -> str:
        """One row of ids to text, control tokens included unless `skip_special_tokens`."""
        stream = TextStream(self.tokenizer, self.special if skip_special_tokens else ())
        text = "".join(map(stream.push, ids)) + stream.finish()
        if clean_up_tokenization_spaces:  # English spacing, the same ten replacements as the reference's
            text = re.sub(" ([.?!,])", r"\1", text).replace(" ' ", "'")
            text = re.sub(" (n't|'m|'s|'ve|'re)", r"\1", text)
        return text

    def batch_decode(self, ids: Any, **options: bool) -> list[str]:
        """Rows of ids (B, T) to texts, with the options of `decode`."""
        return [self.decode(row, **options) for row in ids]
