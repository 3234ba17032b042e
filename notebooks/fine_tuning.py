"""What notebook 10 needs beside LoRA itself: images of a folder, questions, and what they cost."""

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import seconds
from PIL import Image, ImageOps
from torch import Tensor, nn

from benchmarks.shapes import SHAPES
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras.media import load_image
from tiny.tasks import sentence, with_article
from tiny.train import answer_labels

QUESTION = "Describe this image."
SIDE = 84  # pixels: small images are quick
EMPTY = Image.new("RGB", (SIDE, SIDE), "white")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNREADABLE = (".heic", ".heif")  # as some phones save photos, and Pillow can't read them
DRAWINGS = Path(__file__).resolve().parent / "drawings"  # those that come with the course


# ------------------------------------------------------------------------------- images of a folder


def read_folder(folder: Path) -> dict[str, Image.Image]:
    """The images of a folder by their names ("cup-1"), SIDE pixels square.

    ValueError for a name without a number, for a photo that can't be read, or if there are fewer
    than two images of a thing; FileNotFoundError if there is no such folder.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()} is no folder: put your images there")
    images = {}
    for file in sorted(folder.iterdir()):
        # macOS leaves hidden files beside those that it copies.
        if file.name.startswith(".") or file.suffix.lower() not in (*ENDINGS, *UNREADABLE):
            continue
        if file.suffix.lower() in UNREADABLE:
            raise ValueError(f"{file}: it can't be read here, save it as a JPEG or PNG")
        thing, _, number = file.stem.rpartition("-")
        if not thing or not number.isdigit():
            raise ValueError(f"{file}: a name like cup-1{file.suffix} is needed")
        images[file.stem] = in_a_square(load_image(file))
    things = [thing_of(name) for name in images]
    for thing in set(things):
        if things.count(thing) < 2:
            raise ValueError(f"{folder} has one image of a {thing}, two are needed at least")
    if not images:
        raise ValueError(f"{folder} has no images ({', '.join(ENDINGS)})")
    return images


def in_a_square(image: Image.Image) -> Image.Image:
    """The whole image, SIDE pixels square; what it lacks is filled with its corner's colour."""
    size = (SIDE, SIDE)
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=image.getpixel((0, 0)))


def thing_of(name: str) -> str:
    """What an image shows, from its name: "cup-1" is a cup."""
    return name.rpartition("-")[0]


def answer_for(name: str) -> str:
    """The answer that is taught: "A cup."."""
    return sentence(with_article(thing_of(name)))


def every_second(names: list[str]) -> tuple[list[str], list[str]]:
    """The names to train on and those to keep: of each thing every second."""
    trained: list[str] = []
    kept: list[str] = []
    for thing in sorted({thing_of(name) for name in names}):
        of_thing = sorted(name for name in names if thing_of(name) == thing)
        trained += of_thing[::2]
        kept += of_thing[1::2]
    return trained, kept


def varied(image: Image.Image, rng: random.Random) -> Image.Image:
    """The image, turned by up to 15 degrees and shifted by up to 6 pixels."""
    shift = (rng.uniform(-6, 6), rng.uniform(-6, 6))
    ground = image.getpixel((0, 0))
    angle = rng.uniform(-15, 15)
    return image.rotate(angle, Image.Resampling.BICUBIC, translate=shift, fillcolor=ground)


# ---------------------------------------------------------------------------- questions and answers


def conversation(image: Image.Image, answer: str | None = None) -> list[dict]:
    """A question about an image, with its answer if there is one."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    turns: list[dict] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return turns


@torch.no_grad()
def answers_of(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, shown: list[Image.Image]
) -> list[str]:
    """What a model says about each of the images, greedily."""
    conversations = [conversation(image) for image in shown]
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answers = ids[:, inputs.input_ids.shape[1] :]
    return processor.batch_decode(answers, skip_special_tokens=True)


def share_right(answers: list[str], names: list[str]) -> float:
    """The share of the answers that name their thing, in small letters or capitals."""
    pairs = zip(answers, names, strict=True)
    named = [thing_of(name).lower() in answer.lower() for answer, name in pairs]
    return sum(named) / len(names)


def make_batch(
    processor: Qwen2VLProcessor,
    images: dict[str, Image.Image],
    names: list[str],
    device: torch.device,
) -> dict[str, Tensor]:
    """Inputs and labels for images with the answers that are taught, on the model's device."""
    conversations = [conversation(images[name], answer_for(name)) for name in names]
    batch = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tensors = {**batch, "labels": answer_labels(batch.input_ids, processor)}
    return {key: x.to(device) for key, x in tensors.items()}


def without_own_row(tokens: list[int], table: Tensor) -> list[int]:
    """Those of the tokens whose row in the table (V, D) has the direction of another token's.

    The same direction is a cosine above 0.999. No layer can tell such tokens apart.
    """
    rows = F.normalize(table.float(), dim=-1)
    is_alike = rows[tokens] @ rows.T > 0.999  # (tokens, V), each like itself
    return [token for token, alike in zip(tokens, is_alike, strict=True) if alike.sum() > 1]


def token_costs(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each token that has a label (-100 is none): (their number,), in float32.

    logits: (B, T, vocabulary); labels: (B, T), of which the first has no logits before it.
    """
    expected = labels[:, 1:]
    is_answer = expected != -100
    return F.cross_entropy(logits[:, :-1][is_answer].float(), expected[is_answer], reduction="none")


def show_adapter(folder: Path, base: str, images: Path, name: str) -> None:
    """Print an adapter's files, and the command that asks it about the image of that name."""
    for file in sorted(folder.iterdir()):
        print(f"{file.name}: {file.stat().st_size:,} bytes")
    [image] = images.expanduser().glob(f"{name}.*")
    options = f"--model {folder.name} --base {base} --max-pixels {SIDE**2}"
    print(f"qwen2vl {options} --image '{image}'")


# ------------------------------------------------------------------------------------ what it costs


def official_2b() -> Qwen2VLForConditionalGeneration:
    """The official 2B model's shape, without weights."""
    with torch.device("meta"):
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(SHAPES["shape:2b"]))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def bytes_of_inputs(model: nn.Module, num_tokens: int, num_patches: int) -> int:
    """What the inputs of all linear layers take in bfloat16; the backward pass needs them."""
    total = 0
    for path, layer in linear_layers(model).items():
        rows = num_patches if "blocks" in path else num_tokens
        total += 2 * rows * layer.in_features
    return total


def operations_a_second(device: str, dtype: torch.dtype, repeats: int = 3) -> float:
    """Additions and multiplications a second in a layer of the decoder's size, the best of some."""
    tokens, width, out = 128, 1536, 2048
    x = torch.randn(tokens, width, device=device).to(dtype)
    weight = torch.randn(out, width, device=device).to(dtype)
    best = math.inf
    for _ in range(repeats):
        start = seconds()
        F.linear(x, weight).sum().item()  # the sum makes an accelerator wait for the product
        best = min(best, seconds() - start)
    return 2 * tokens * width * out / best
