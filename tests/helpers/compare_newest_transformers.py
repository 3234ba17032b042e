"""Compares logits of the newest transformers with this project's, as PROOFS.md reports them.

The tests' own reference is 4.57.6, and one environment has one version. So the comparison is made
in two steps: first, with the development environment of this project,

    PYTHONPATH=. python tests/helpers/compare_newest_transformers.py write FOLDER

writes random models, inputs and this project's logits; then, in an environment with the newest
version (pip install torch==2.13.0 transformers==5.24.0, and nothing of this project),

    python tests/helpers/compare_newest_transformers.py compare FOLDER

loads each folder with it and prints the relative error of its logits, by the kind of prompt.
"""

import random
import sys
from pathlib import Path

import torch

MODELS = 10
ROUNDS = 6  # of each kind and model
KINDS = ("text", "image", "images", "video of few frames", "long video", "mixed batch")


def write(folder: Path) -> None:
    """Random models, and for each kind inputs with this project's logits."""
    from tests.helpers import reference  # here: these are not in the other environment

    for seed in range(MODELS):
        ours, theirs = reference.random_pair(seed, tied=seed % 2 == 0)
        model_folder = folder / f"model-{seed}"
        ours.save_pretrained(model_folder)
        cases = []
        for kind in KINDS:
            for i in range(ROUNDS):
                rng = random.Random(1000 * seed + i)
                inputs = draw_inputs(reference, rng, ours.config, kind)
                with torch.no_grad():
                    logits = ours(**inputs).logits
                    older = theirs(**inputs).logits
                case = {"kind": kind, "inputs": inputs, "logits": logits, "4.57.6": older}
                cases.append(case)
        torch.save(cases, model_folder / "cases.pt")


def draw_inputs(reference, rng: random.Random, config, kind: str) -> dict[str, torch.Tensor]:
    """Inputs of a kind; a video is long if it has more pairs of frames than rows and columns."""
    if "video" not in kind:
        rows = reference.random_rows(rng, config, kind)
        return reference.collate(rows, config, rng.randrange(2**31))
    while True:
        row = reference.random_row(rng, config, ["video"], longest=8)
        t, h, w = row.videos[0]
        is_long = t > max(h, w) // 2
        if is_long == (kind == "long video"):
            return reference.collate([row], config, rng.randrange(2**31))


def relative_error(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> float:
    """max |difference| / max |expected| over the tokens that are no padding."""
    found, expected = found[mask.bool()], expected[mask.bool()]
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compare(folder: Path) -> None:
    """The errors of the installed transformers against what was written."""
    import transformers

    print(f"transformers {transformers.__version__}")
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    older: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for model_folder in sorted(folder.iterdir()):
        model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            model_folder, dtype=torch.float32
        ).eval()
        for case in torch.load(model_folder / "cases.pt"):
            inputs = case["inputs"]
            with torch.no_grad():
                logits = model(**inputs, **token_types(model, inputs)).logits
            mask = inputs["attention_mask"]
            errors[case["kind"]].append(relative_error(logits, case["logits"], mask))
            older[case["kind"]].append(relative_error(case["4.57.6"], case["logits"], mask))
    for kind in KINDS:
        values = errors[kind]
        equal = sum(value <= 1e-5 for value in values)
        print(
            f"{kind:20} {equal} of {len(values)} equal to 1e-5, error {min(values):.2g} to "
            f"{max(values):.2g}; 4.57.6 to {max(older[kind]):.2g}"
        )


def token_types(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What 5.x wants besides, from its processor: 1 for tokens of images, 2 for those of videos."""
    types = torch.zeros_like(inputs["input_ids"])
    types[inputs["input_ids"] == model.config.image_token_id] = 1
    types[inputs["input_ids"] == model.config.video_token_id] = 2
    return {"mm_token_type_ids": types}


if __name__ == "__main__":
    command, target = sys.argv[1:]
    if command == "write":
        write(Path(target))
    else:
        compare(Path(target))
