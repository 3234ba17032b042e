"""What can be looked into after an answer: its prompt, where it looked, and what it nearly said.

All of it comes from one more pass over the answer alone. The keys and values of the prompt are
copied from the conversation's cache; the decoder's layers are then called one by one with "eager"
attention, whose weights are cut to size before the next layer runs. The model itself is not
changed, so other visitors' answers may be computed meanwhile.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from processor import Message, Qwen2VLProcessor
from qwen2vl import AttentionMask, KVCache
from qwen2vl_app.conversation import Conversation
from qwen2vl_app.prompts import Prompt, read_patches
from qwen2vl_app.web.limits import MAX_FRAMES_SHOWN, MAX_LOOKED_AT, MAX_MAP_BYTES
from qwen2vl_app.web.workers import Job

# For these the page can tell probabilities exactly: it moves temperature in steps of 0.1.
TEMPERATURES = [round(0.1 * i, 1) for i in range(1, 21)]
NUM_CANDIDATES = 40  # most probable tokens that are sent for each token of the answer


class Changed(ValueError):
    """The conversation is not the one that was answered any more."""


@dataclass
class Pass:
    """What the pass over an answer found, for each of its tokens (A) and what comes after."""

    maps: np.ndarray  # (layers, H or 1, A, S) uint8: 255 times the root of an attention weight
    lens: list[list[list[object]]]  # by token and layer: [text, probability]
    logits: Tensor  # (A, vocabulary)


def look_inside(conversation: Conversation, turn: int, job: Job) -> dict[str, object]:
    """Everything that the page shows about the answer messages[turn], as JSON can hold it."""
    messages = conversation.messages
    if not 0 <= turn < len(messages) or messages[turn].get("role") != "assistant":
        raise Changed("there is no such answer any more")
    prompt = conversation.writer.write(messages[:turn])
    answer = list(messages[turn]["token_ids"])[:MAX_LOOKED_AT]
    read = read_again(conversation, prompt, answer, job)

    processor = conversation.processor
    config = conversation.model.config
    ids = prompt.ids + answer
    return {
        "tokens": token_chips(processor, ids, prompt, len(prompt.ids)),
        "promptLength": len(prompt.ids),
        "answer": answer,
        "media": [
            {**shown, "first": first, "count": medium.num_tokens, "grid": medium.grid}
            for (first, medium), shown in zip(
                prompt.media, media_shown(processor, messages[:turn]), strict=True
            )
        ],
        "merge": config.vision_config.spatial_merge_size,
        "patch": config.vision_config.patch_size,
        "layers": config.num_hidden_layers,
        "heads": read.maps.shape[1],
        "allHeads": config.num_attention_heads,
        "vocabulary": config.vocab_size,
        "maps": base64.b64encode(read.maps.tobytes()).decode(),
        "lens": read.lens,
        "candidates": candidates(processor, read.logits),
        "temperatures": TEMPERATURES,
        "wasCut": len(answer) < len(messages[turn]["token_ids"]),
    }


# ------------------------------------------------------------------------------------ the pass


@torch.no_grad()
def read_again(conversation: Conversation, prompt: Prompt, answer: list[int], job: Job) -> Pass:
    """Read the last token of the prompt and the answer, layer by layer.

    Row i is what the model computed when it chose token i of the answer; the last row is what it
    would have said next.
    """
    model = conversation.model
    decoder = model.model
    past = len(prompt.ids) - 1
    cache = copy_cache(conversation, prompt, past, past + 1 + len(answer))
    ids = torch.tensor([[prompt.ids[-1], *answer]], device=model.device)
    position_ids = positions_after(prompt, len(answer)).to(model.device)  # (3, 1, A + 1)

    x = decoder.embed_tokens(ids)
    cos, sin = decoder.rotary_table(position_ids, x.dtype)
    num_rows = ids.shape[1]
    mask = AttentionMask.for_decoder(None, 1, num_rows, past + num_rows)
    maps = []
    lens: list[list[list[object]]] = [[] for _ in range(num_rows)]
    for i, layer in enumerate(decoder.layers):
        if job.is_cancelled:
            raise Changed("nobody waits for this any more")
        x, weights = layer(x, cos, sin, mask, "eager", cache.layer(i))
        maps.append(quantized_map(weights[0], len(decoder.layers)))
        # The logit lens: the head reads the state after this layer as if it were the last.
        logits = model.compute_logits(decoder.norm(x))[0].float()  # (A + 1, vocabulary)
        add_most_probable(conversation.processor, logits, lens)
    return Pass(np.stack(maps), lens, logits)


def copy_cache(conversation: Conversation, prompt: Prompt, past: int, capacity: int) -> KVCache:
    """A cache of its own with the first `past` tokens of a prompt, which are in another's."""
    kept = conversation.cache
    if kept.length < past or conversation.keys[:past] != prompt.keys[:past]:
        raise Changed("the conversation has changed since this answer: ask again to look inside")
    model = conversation.model
    cache = KVCache(model.config, 1, capacity, model.device, model.dtype)
    cache.keys[:, :, :, :past] = kept.keys[:, :, :, :past]
    cache.values[:, :, :, :past] = kept.values[:, :, :, :past]
    cache.length = past
    return cache


def positions_after(prompt: Prompt, count: int) -> Tensor:
    """Positions (3, 1, count + 1) of the prompt's last token and `count` tokens of text after."""
    time, _, _ = prompt.positions[-1]  # of text: the same on all three axes
    return (time + torch.arange(count + 1)).expand(3, 1, -1)


def quantized_map(weights: Tensor, num_layers: int) -> np.ndarray:
    """Attention weights (H, A, S) as bytes: 255 * sqrt(weight), which keeps small ones apart.

    The mean of the heads takes their place where all of them would be too many bytes: (1, A, S).
    Where even that is too much, the later rows are 0.
    """
    num_rows, num_keys = weights.shape[1:]
    if num_layers * weights.numel() > MAX_MAP_BYTES:
        weights = weights.mean(0, keepdim=True)
    most = max(1, MAX_MAP_BYTES // (num_layers * num_keys))  # rows, of one head
    if num_rows > most and len(weights) == 1:
        weights = weights[:, :most]
    return (weights.float().sqrt() * 255).round().to(torch.uint8).cpu().numpy()


def add_most_probable(
    processor: Qwen2VLProcessor, logits: Tensor, lens: list[list[list[object]]]
) -> None:
    """Append to each token's list the most probable token of these logits (A, vocabulary)."""
    probabilities, ids = logits.softmax(-1).max(-1)
    for row, probability, token_id in zip(lens, probabilities.tolist(), ids.tolist(), strict=True):
        row.append([token_text(processor, token_id), round(probability, 4)])


def candidates(processor: Qwen2VLProcessor, logits: Tensor) -> list[dict[str, object]]:
    """For each row the most probable tokens, and what the page needs to normalise them.

    "rest": of all other tokens, log(sum(exp(logit / T))) for each temperature T. So their share is
    exact at these temperatures, whatever the size of the vocabulary. Logits are counted from the
    largest, which is 0.
    """
    logits = logits - logits.amax(-1, keepdim=True)
    top = logits.topk(min(NUM_CANDIDATES, logits.shape[-1]))
    others = logits.scatter(-1, top.indices, -torch.inf)
    rests = [(others / temperature).logsumexp(-1) for temperature in TEMPERATURES]
    table = torch.stack(rests, dim=-1).clamp(min=-1e4)  # JSON has no infinity
    found: list[dict[str, object]] = []
    for row in range(len(logits)):
        ids = top.indices[row].tolist()
        one: dict[str, object] = {
            "ids": ids,
            "texts": [token_text(processor, token_id) for token_id in ids],
            "logits": [round(value, 4) for value in top.values[row].clamp(min=-1e4).tolist()],
            "rest": [round(value, 4) for value in table[row].tolist()],
        }
        found.append(one)
    return found


# ---------------------------------------------------------------------------------- the prompt


def token_text(processor: Qwen2VLProcessor, token_id: int) -> str:
    """A token as text; U+FFFD for one that is only a part of a character."""
    return processor.decode([token_id])


def token_chips(
    processor: Qwen2VLProcessor, ids: list[int], prompt: Prompt, prompt_length: int
) -> dict[str, list]:
    """Each token's id, text, kind and three positions."""
    positions = list(prompt.positions)
    while len(positions) < len(ids):
        time = positions[-1][0] + 1
        positions.append((time, time, time))
    # Placeholders by the image that they stand for; in an answer they are tokens like others.
    kinds = ["text"] * len(ids)
    controls = set(processor.special_tokens.values())
    for i, token_id in enumerate(ids):
        if token_id in controls:
            kinds[i] = "control"
    for first, medium in prompt.media:
        is_image = medium.placeholder == processor.image_token_id
        for i in range(first, first + medium.num_tokens):
            kinds[i] = "image" if is_image else "video"
    texts = [token_text(processor, token_id) for token_id in ids]
    return {"ids": ids, "texts": texts, "kinds": kinds, "positions": [list(p) for p in positions]}


def media_shown(processor: Qwen2VLProcessor, messages: list[Message]) -> list[dict[str, object]]:
    """The images and clips of a conversation as the model sees them: resized, in its frames."""
    shown = []
    for message in messages:
        content = message["content"]
        for item in content if isinstance(content, list) else []:
            if item.get("type") in ("image", "video"):
                pixels, grid_thw = read_patches(processor, item, item["type"])
                shown.append(frames_of(processor, pixels, grid_thw))
    return shown


def frames_of(processor: Qwen2VLProcessor, pixels: Tensor, grid_thw: Tensor) -> dict[str, object]:
    """Patches (P, 1176) put together to the frames that they were cut from, as data URIs.

    Of each pair of frames in a clip it is the first.
    """
    maker = processor.image_processor
    t, h, w = grid_thw[0].tolist()
    m, p = maker.merge_size, maker.patch_size
    # Undo `patchify`: (pair, row of squares, column of squares, row in it, column in it, channel,
    # frame, row of pixels, column of pixels).
    x = pixels.view(t, h // m, w // m, m, m, 3, maker.temporal_patch_size, p, p)
    x = x[:MAX_FRAMES_SHOWN, ..., 0, :, :]  # the first frame of each pair
    frames = x.permute(0, 1, 3, 6, 2, 4, 7, 5).reshape(-1, h * p, w * p, 3)
    # Undo the normalisation.
    values = frames * torch.tensor(maker.image_std) + torch.tensor(maker.image_mean)
    arrays = (values * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return {
        "width": w * p,
        "height": h * p,
        "frames": [data_uri(Image.fromarray(array)) for array in arrays],
    }


def data_uri(image: Image.Image) -> str:
    """An image for the page: small ones exact, as PNG, others as JPEG."""
    is_small = image.width * image.height <= 320 * 320
    written = io.BytesIO()
    image.save(written, "PNG" if is_small else "JPEG", quality=85)
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
