"""Ours and the reference on one image and one question, stage by stage, in one table.

    python -m notebooks.against --model Qwen/Qwen2-VL-2B-Instruct --image photo.jpg \\
        --dtype bfloat16 --out DIR

writes DIR/against.md and DIR/against.json and prints the table. Exit code 0: every stage holds;
1: one doesn't, and the last line names the first; 2: something is wrong with what was given. The
models are loaded one after the other, so there is never more than one in memory. Notebook 08 shows
the same table, and explains it; OFFICIAL.md says what to expect.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Run as a module of the package, the files beside this one are imported by their plain names.
for path in (FOLDER.parent, FOLDER):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

import torch  # noqa: E402
from comparison import Comparison, Table  # noqa: E402
from our_side import OurSide  # noqa: E402
from PIL import Image  # noqa: E402
from precision import choose_dtype  # noqa: E402
from published import DOG, compare_published, which_checkpoint  # noqa: E402
from report import Report, stored_hash, versions  # noqa: E402
from side import Question, Rounding, Side  # noqa: E402
from verdicts import table_of  # noqa: E402

from load import find_checkpoint, read_media_config  # noqa: E402
from processor import Qwen2VLProcessor  # noqa: E402
from qwen2vl import Qwen2VLForConditionalGeneration  # noqa: E402
from qwen2vl_extras.errors import note  # noqa: E402
from qwen2vl_extras.media import load_image  # noqa: E402

EXAMPLE = FOLDER.parent / "examples" / "shapes.png"
# Every result of every stage is kept, and attention in plain operations keeps a score for each pair
# of patches: 256 tokens of an image are 1,024 patches.
MAX_PIXELS = 256 * 28 * 28


def their_answer(
    name: str, dtype: torch.dtype, device: str, max_pixels: int | None, question: Question
) -> tuple[Side, Rounding]:
    """What the reference makes of a question; its model is gone afterwards."""
    import their_side  # here: imports transformers

    model = their_side.load_model(name, dtype, device)
    processor = their_side.load_processor(find_checkpoint(name), max_pixels)
    asked = their_side.TheirSide(model, processor)
    side = asked.ask(question)
    return side, asked.rounding(side)


def our_model(
    name: str, dtype: torch.dtype, device: str, max_pixels: int | None
) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """Our model and processor, with attention in plain operations as the reference's."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        name, dtype=dtype, device_map=device, attn_implementation="eager"
    )
    return model, Qwen2VLProcessor.from_pretrained(name, max_pixels=max_pixels)


def costs_of(ours: Side, theirs: Side) -> dict[str, tuple[float, float]]:
    """What both took, as far as ours came."""
    return {
        name: (ours.costs.get(name, float("nan")), value) for name, value in theirs.costs.items()
    }


def pixel_limit(name: str, asked: int | None) -> int:
    """The limit of both sides: the one asked for, else the checkpoint's and at most MAX_PIXELS."""
    if asked is not None:
        return asked
    settings, _ = read_media_config(find_checkpoint(name, weights=False))
    return min(MAX_PIXELS, int(settings.get("max_pixels") or MAX_PIXELS))


def open_image(given: str | None) -> tuple[Image.Image, str]:
    """The image, and what it is called in the report.

    Without one it is the official demo image, or an example where that can't be had.
    """
    if given is not None:
        return load_image(given), given
    try:
        return load_image(DOG), DOG
    except OSError as error:
        note(f"the official demo image can't be had ({error}): {EXAMPLE.name} takes its place")
        return load_image(str(EXAMPLE)), EXAMPLE.name


def run(options: argparse.Namespace) -> Report:
    """Ask both sides, and compare."""
    dtype, reason = choose_dtype(options.model, options.dtype, options.device, num_models=1)
    note(f"dtype: {reason}")
    image, image_name = open_image(options.image)
    question = Question(image, options.prompt, options.max_new_tokens)
    limit = pixel_limit(options.model, options.max_pixels)

    note("the reference, all stages")
    theirs, rounding = their_answer(options.model, dtype, options.device, limit, question)
    gc.collect()  # its model, before ours comes
    note("ours, all stages")
    model, processor = our_model(options.model, dtype, options.device, limit)
    ours = OurSide(model, processor).ask(question, theirs)
    table = table_of(ours, theirs, rounding, processor.decode)

    facts = {
        "model": options.model,
        "tensor": f"SHA-256 of the stored patch embedding: {stored_hash(options.model)}",
        "dtype": str(dtype).removeprefix("torch."),
        "device": options.device,
        "image": f"{image_name}, {image.width} × {image.height} pixels",
        "prompt": options.prompt,
        "answer, ours": ours.answer,
        "answer, theirs": theirs.answer,
    }
    facts.update(versions())
    published = published_rows(options, model)
    return Report(facts, table, costs_of(ours, theirs), published)


def published_rows(
    options: argparse.Namespace, model: Qwen2VLForConditionalGeneration
) -> list[Comparison]:
    """Published outputs, if the checkpoint is one of those, or is said to be."""
    size = options.published or which_checkpoint(options.model, model.config)
    if size is None:
        return []
    return compare_published(size, model, Qwen2VLProcessor.from_pretrained(options.model))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.against", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", default="tiny", help='"tiny", a folder or a Hub repository')
    parser.add_argument("--image", help="a file or URL (default: the official demo image)")
    parser.add_argument("--prompt", default="Describe this image.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: what fits")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the two files")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--max-pixels", type=int, help=f"of the image (default: {MAX_PIXELS})")
    parser.add_argument("--published", choices=("2b", "7b"), help="whose outputs to compare with")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if all stages hold, 1 if one doesn't, 2 for a mistake in what was given."""
    options = make_parser().parse_args(arguments)
    try:
        report = run(options)
        files = report.write(options.out)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        print(f"error: {error}".split("\n")[0], file=sys.stderr)
        return 2
    rows: Table = report.all_rows()
    print(rows)
    note(f"written: {', '.join(map(str, files))}")
    return 0 if rows.first_wrong() is None else 1


if __name__ == "__main__":
    sys.exit(main())
