"""What the notebooks share: the model, a style for plots, checks that must hold, and exercises.

    QWEN2VL_MODEL=Qwen/Qwen2-VL-2B-Instruct jupyter lab notebooks    # official weights
    QWEN2VL_DTYPE=bfloat16 jupyter lab notebooks                     # or float32
    QWEN2VL_DEVICE=cuda jupyter lab notebooks                        # another device than the CPU
    QWEN2VL_IMAGE=photo.jpg jupyter lab notebooks                    # your own image in all of them

A check compares with two others: with the shipped function, and with the reference. The
reference is `transformers` where that is installed, or else an array that it once gave, stored
in `notebooks/reference/`. `compare` shows both sides of a stage as a small table, `summary` those
of the whole notebook.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from architecture import draw
from cycler import cycler
from IPython.display import SVG, display
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare clone works, nothing has to be installed from it

from comparison import FAILS, TIE, Comparison, Measure, Table, largest_relative, mean_relative  # noqa: E402
from comparison import compare as compare_sides  # noqa: E402
from precision import choose_dtype  # noqa: E402
from stages import in_float32, recorded, stage_modules  # noqa: E402

from load import find_checkpoint  # noqa: E402
from processor import Qwen2VLImageProcessor, Qwen2VLProcessor, patchify, smart_resize  # noqa: E402
from qwen2vl import Qwen2VLForConditionalGeneration  # noqa: E402
from qwen2vl_extras.media import load_image  # noqa: E402

MODEL = os.environ.get("QWEN2VL_MODEL", "tiny")
IS_TINY = MODEL == "tiny"
DEVICE = os.environ.get("QWEN2VL_DEVICE", "cpu")  # as for the stored outputs
ASKED_DTYPE = os.environ.get("QWEN2VL_DTYPE")  # float32, bfloat16, or None for what fits
EXAMPLES = ROOT / "examples"
OWN_IMAGE = os.environ.get("QWEN2VL_IMAGE")  # in place of the course's image, from 00 to 06
OWN_IMAGE_PIXELS = 168 * 112  # about as large as the course's
STORED = ROOT / "notebooks" / "reference"

plt.rcParams.update(
    {
        "figure.figsize": (8, 4),
        "figure.dpi": 80,
        "figure.constrained_layout.use": True,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "image.cmap": "Greys",
        # Lines differ in more than colour: the plots stay readable in black and white.
        "axes.prop_cycle": cycler(color=["#000000", "#d55e00", "#0072b2", "#009e73"])
        + cycler(linestyle=["-", "--", ":", "-."]),
    }
)


@dataclass
class State:
    """What a notebook has loaded and compared so far."""

    dtype: torch.dtype = torch.float32
    reference_model: Any = None


STATE = State()
# By stage, so that a cell that runs twice counts once.
COMPARED: dict[str, Comparison] = {}


# -------------------------------------------------------------------------------- model and images


def load(attention: str = "eager") -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The model that QWEN2VL_MODEL names, by default the embedded one, and its processor.

    The model is on DEVICE, in the dtype of QWEN2VL_DTYPE, or else in float32 if the memory holds
    two such models, ours and the reference. Gradients are switched off.
    """
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    dtype, reason = choose_dtype(MODEL, ASKED_DTYPE, DEVICE, num_models=2)
    if not IS_TINY or ASKED_DTYPE is not None:
        print("dtype:", reason)
    STATE.dtype = dtype
    STATE.reference_model = None
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        MODEL, dtype=dtype, device_map=DEVICE, attn_implementation=attention
    )
    return model, Qwen2VLProcessor.from_pretrained(MODEL)


class Followed(NamedTuple):
    """A patch of an image that the notebooks follow: near the middle, a third from the left."""

    row: int  # in patches
    column: int
    index: int  # in the list of patches
    token: int  # of the image's tokens


def followed_patch(h: int, w: int, merge_size: int) -> Followed:
    """Which patch is followed in a grid of h x w patches, and where it is in the lists."""
    row, column = h // 2, w // 3
    squares = (row // merge_size) * (w // merge_size) + column // merge_size
    inside = (row % merge_size) * merge_size + column % merge_size
    return Followed(row, column, squares * merge_size**2 + inside, squares)


def image_path() -> Path:
    """The file of the image that goes through the course.

    It is the reader's own where QWEN2VL_IMAGE names one: made about as large as the course's, with
    sides in multiples of 28, so that the plots of its patches can be read.
    """
    if OWN_IMAGE is None:
        return EXAMPLES / "shapes.png"
    own = load_image(OWN_IMAGE)
    height, width = smart_resize(own.height, own.width, 28, 56 * 56, OWN_IMAGE_PIXELS)
    path = Path(tempfile.gettempdir()) / "qwen2vl-own-image.png"
    own.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def image() -> Image.Image:
    """The image that goes through the course, as RGB."""
    return Image.open(image_path()).convert("RGB")


def where_we_are(notebook: str) -> SVG:
    """The figure of the whole architecture, with the parts of a notebook ("02") in black."""
    return SVG(draw(notebook))


def image_from_patches(
    patches: Tensor, grid: tuple[int, int, int], image_processor: Qwen2VLImageProcessor
) -> Tensor:
    """The image that normalised patches (P, 1176) show if they are in the model's order.

    Returns the first frame (3, height, width), with values from 0 to 1.
    """
    patch_size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    channels = len(image_processor.image_mean)
    t, h, w = grid

    # Undo the normalisation.
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    values = patches.cpu().float().view(len(patches), channels, -1) * std + mean

    # Let the shipped code cut a frame whose pixels are numbered: that tells where each value
    # of a patch came from.
    shape = (t * depth, channels, h * patch_size, w * patch_size)
    pixel_numbers = torch.arange(values.numel()).view(shape)
    source, _ = patchify(pixel_numbers, patch_size, depth, image_processor.merge_size)
    frames = torch.empty(values.numel())
    frames[source.flatten()] = values.flatten()
    return frames.view(shape)[0].clamp(0, 1)


# ------------------------------------------------------------------------------------------ checks


def difference(ours: ArrayLike | Tensor, theirs: ArrayLike | Tensor) -> float:
    """The largest difference, relative to the largest number of the second.

    ValueError if the shapes differ.
    """
    # To the CPU first: other devices may have no float64.
    a = torch.as_tensor(ours).detach().cpu().double()
    b = torch.as_tensor(theirs).detach().cpu().double()
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def check(
    claim: str, ours: ArrayLike | Tensor, theirs: ArrayLike | Tensor | None, tolerance: float = 1e-5
) -> None:
    """Print how far apart two tensors are; AssertionError beyond the tolerance.

    `theirs` is None where there is no reference: then the line says so.
    """
    if theirs is None:
        no_reference(claim)
        return
    apart = difference(ours, theirs)
    if not apart <= tolerance:  # NaN fails as well
        raise AssertionError(f"{claim}: {apart:.1e} apart, more than {tolerance:.0e}")
    result = "equal to the last bit" if apart == 0 else f"at most {apart:.1e} apart"
    print(f"✓ {claim}: {result}")


def answered(claim: str, holds: bool, is_own: bool = OWN_IMAGE is not None) -> None:
    """Check a claim about the embedded model's answers.

    is_own: whether the images are the reader's own. Other weights and other images give other
    answers: then the line only says whether the claim holds.
    """
    result = "it holds" if holds else "it does not hold"
    if not IS_TINY:
        print(f"– {claim}: {result} here; it needs trained weights, so only tiny must meet it")
        return
    if is_own:
        print(f"– {claim}: {result} here; it is about the course's images, and these are yours")
        return
    assert holds, f"{claim}: does not hold"
    print(f"✓ {claim}")


def transformers_installed() -> bool:
    """Whether the reference can be asked; QWEN2VL_NO_TRANSFORMERS=1 pretends that it can't."""
    if os.environ.get("QWEN2VL_NO_TRANSFORMERS"):
        return False
    try:
        import transformers  # noqa: F401  (slow, so only where it is asked for)
    except ImportError:
        return False
    return True


def reference_model() -> Any:
    """The same checkpoint in transformers, in our dtype; None where that is not installed.

    It is loaded once: a cell that runs again gets the same one.
    """
    if not transformers_installed():
        return None
    if STATE.reference_model is None:
        from their_side import load_model

        STATE.reference_model = load_model(MODEL, STATE.dtype, DEVICE)
    return STATE.reference_model


def reference(name: str, ask: Callable[[], ArrayLike | Tensor]) -> Tensor | None:
    """What the reference says: ask() where transformers is installed, else the stored array `name`.

    With QWEN2VL_STORE=1 what ask() gives is stored. There are arrays for the embedded model in
    float32 and the course's image only.
    """
    file = STORED / f"{name}.npy"
    has_stored = IS_TINY and STATE.dtype is torch.float32 and OWN_IMAGE is None
    if transformers_installed():
        theirs = torch.as_tensor(ask()).detach().cpu()
        if os.environ.get("QWEN2VL_STORE") and has_stored:
            STORED.mkdir(exist_ok=True)
            np.save(file, theirs.numpy())
        return theirs
    if has_stored and file.exists():
        return torch.from_numpy(np.load(file))
    return None


def no_reference(what: str) -> None:
    """Say that something could not be compared."""
    print(f"– {what}: no reference here (no transformers installed, none stored for {MODEL})")


# ------------------------------------------------------------------------------ what they compute


def their_processor() -> Any:
    """The reference's processor, with its tokenizer; needs transformers."""
    from their_side import load_processor

    return load_processor(find_checkpoint(MODEL))


def their_inputs(conversation: list[dict]) -> dict[str, Tensor] | None:
    """What the reference's own processor makes of a conversation with images; None without it."""
    if not transformers_installed():
        return None
    return their_processor().apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def their_prompt(conversation: list[dict]) -> str | None:
    """The prompt that the reference's own template writes; None without it."""
    if not transformers_installed():
        return None
    return their_processor().apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=False
    )


def their_stages(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each stage of the reference puts out for these inputs: name to (rows, D)."""
    model = reference_model()
    with recorded(their_modules()) as results:
        model(**inputs, use_cache=False)
    return results


def their_vision_stages(pixel_values: Tensor, grid_thw: Tensor) -> dict[str, Tensor]:
    """The same for the vision transformer alone."""
    visual = reference_model().model.visual
    with recorded(their_modules()) as results:
        visual(pixel_values, grid_thw)
    return results


def their_modules() -> dict[str, torch.nn.Module]:
    """The reference's parts by stage."""
    model = reference_model()
    return stage_modules(model.model.visual, model.model.language_model, model.lm_head)


def their_answer(inputs: dict[str, Tensor], max_new_tokens: int) -> Tensor:
    """The reference's most probable token at each step, (new tokens,)."""
    ids = reference_model().generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        temperature=None,
        top_k=None,
        top_p=None,
    )
    return ids[0, inputs["input_ids"].shape[1] :]


# ------------------------------------------------------------------------------ ours beside theirs

FLOAT32_BAR = 1e-5
SHARE_OF_ROUNDING = 2.0  # how far ours may be, of what bfloat16 costs the reference itself


@dataclass(frozen=True)
class Reference:
    """What the reference says of a stage."""

    values: Tensor
    wide: Tensor | None  # the same computed in float32, where the model is in bfloat16

    @property
    def rounding(self) -> float:
        """How far bfloat16 is from float32 here, as a relative root of mean squares."""
        return 0.0 if self.wide is None else mean_relative(self.values, self.wide)

    def __getitem__(self, i: int) -> "Reference":
        """One of several stages that were asked for together."""
        wide = None if self.wide is None else self.wide[i]
        return Reference(self.values[i], wide)


def ask(name: str, function: Callable[[], ArrayLike | Tensor]) -> Reference | None:
    """The reference's side of a stage: as `reference` has it, and once more in float32.

    The second is needed where the model is in bfloat16: it tells how far rounding alone goes.
    """
    values = reference(name, function)
    if values is None:
        return None
    wide = None
    if STATE.dtype is not torch.float32 and STATE.reference_model is not None:
        with in_float32(STATE.reference_model):
            wide = torch.as_tensor(function()).detach().cpu()
    return Reference(values, wide)


def compare(
    stage: str,
    ours: ArrayLike | Tensor,
    theirs: Reference | None,
    exact: bool = False,
    show: bool = True,
) -> None:
    """Show both sides of a stage as a small table; AssertionError beyond its bar.

    theirs: from `ask`. exact: for ids, positions and pixels, which must be equal. In float32 the
    bar is 1e-5 of the largest number; in bfloat16 it is twice the distance that bfloat16 makes in
    the reference itself. show: False to leave the table to `summary`.
    """
    if theirs is None:
        no_reference(stage)
        return
    a = torch.as_tensor(ours).detach().cpu()
    b = theirs.values
    measures = []
    if not exact and a.shape == b.shape:
        measures = [stage_measure(a, b, theirs.rounding)]
    keep(compare_sides(stage, a, b, measures), show)


def keep(row: Comparison, show: bool = True) -> None:
    """Show a comparison and keep it for the summary; AssertionError if it does not hold."""
    COMPARED[row.stage] = row
    if show:
        display(row)
    if not row.holds:
        raise AssertionError(f"{row.stage}: {row.judgement()}")


def stage_measure(ours: Tensor, theirs: Tensor, rounding: float) -> Measure:
    """How far the two sides are apart, and how far they may be."""
    if rounding == 0.0:
        return Measure("relative", largest_relative(ours, theirs), FLOAT32_BAR)
    bar = SHARE_OF_ROUNDING * rounding
    return Measure("relative, as a mean", mean_relative(ours, theirs), bar)


def compare_text(stage: str, ours: str, theirs: str | None) -> None:
    """The same for texts, which must be equal; theirs is None without transformers."""
    if theirs is None:
        no_reference(stage)
        return
    keep(compare_sides(stage, ours, theirs))


def compare_answer(stage: str, ours: list[int], inputs: dict[str, Tensor], name: str) -> None:
    """The tokens of an answer beside those of the reference, which decodes greedily as well.

    In float32 they must be equal. In bfloat16 the first that differs may be a tie: the
    reference's own logits of the two are nearer than twice what bfloat16 changes in them.
    """
    theirs = reference(name, lambda: their_answer(inputs, len(ours)))
    if theirs is None:
        no_reference(stage)
        return
    row = compare_sides(stage, torch.tensor(ours), theirs)
    if not row.holds and STATE.dtype is not torch.float32:
        gap, bar = first_gap(ours, theirs.tolist(), inputs)
        row.remark = f"where they part, two logits are {gap:.1e} apart; {bar:.1e} is a tie"
        row.verdict = TIE if gap <= bar else FAILS
    keep(row)


def first_gap(ours: list[int], theirs: list[int], inputs: dict[str, Tensor]) -> tuple[float, float]:
    """How far apart the reference's logits of the first two tokens that differ are, and the bar."""
    pairs = list(zip(ours, theirs, strict=False))
    step = next(i for i, (a, b) in enumerate(pairs) if a != b)
    longer = dict(inputs)
    tokens = torch.tensor([theirs[:step]], dtype=torch.long, device=inputs["input_ids"].device)
    longer["input_ids"] = torch.cat((inputs["input_ids"], tokens), dim=1)
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    narrow = their_stages(longer)["logits"][-1].float()
    with in_float32(STATE.reference_model):
        wide = their_stages(longer)["logits"][-1]
    bar = SHARE_OF_ROUNDING * float((narrow - wide).abs().max())
    return float((narrow[theirs[step]] - narrow[ours[step]]).abs()), bar


def summary() -> Table:
    """All stages that this notebook has compared so far."""
    return Table(list(COMPARED.values()))


# --------------------------------------------------------------------------------------- exercises


class Wrong(Exception):
    """What a checker raises: it says what is wrong with an answer."""


def attempt(checker: Callable[..., None], *answers: Callable) -> None:
    """Let a checker try the reader's answers, and print the result: right, wrong or not written."""
    try:
        checker(*answers)
    except NotImplementedError:
        print("… not written yet: fill in the cell above, run it, then run this one again")
    except Wrong as wrong:
        print(f"✗ {wrong}")
    except Exception as error:  # the reader's code may raise anything
        print(f"✗ it stopped with {type(error).__name__}: {error}")
    else:
        print("✓ right")
