"""What the notebooks share: the model, a style for plots, checks that must hold, and exercises.

    QWEN2VL_MODEL=Qwen/Qwen2-VL-2B-Instruct jupyter lab notebooks    # official weights
    QWEN2VL_DEVICE=cuda jupyter lab notebooks                        # another device than the CPU
    QWEN2VL_IMAGE=photo.jpg jupyter lab notebooks                    # your own image in all of them

A check compares with two others: with the shipped function, and with the reference. The
reference is `transformers` where that is installed, or else an array that it once gave, stored
in `notebooks/reference/`.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from architecture import draw
from cycler import cycler
from IPython.display import SVG
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare clone works, nothing has to be installed from it

from load import find_checkpoint  # noqa: E402
from processor import Qwen2VLImageProcessor, Qwen2VLProcessor, patchify, smart_resize  # noqa: E402
from qwen2vl import Qwen2VLForConditionalGeneration  # noqa: E402
from qwen2vl_extras.media import load_image  # noqa: E402

MODEL = os.environ.get("QWEN2VL_MODEL", "tiny")
IS_TINY = MODEL == "tiny"
DEVICE = os.environ.get("QWEN2VL_DEVICE", "cpu")  # as for the stored outputs
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


# -------------------------------------------------------------------------------- model and images


def load(attention: str = "eager") -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The model that QWEN2VL_MODEL names, by default the embedded one, and its processor.

    The model is on DEVICE, and gradients are switched off.
    """
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        MODEL, device_map=DEVICE, attn_implementation=attention
    )
    return model, Qwen2VLProcessor.from_pretrained(MODEL)


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
        print(f"– {claim}: no reference here (no transformers installed, none stored for {MODEL})")
        return
    apart = difference(ours, theirs)
    if not apart <= tolerance:  # NaN fails as well
        raise AssertionError(f"{claim}: {apart:.1e} apart, more than {tolerance:.0e}")
    result = "equal to the last bit" if apart == 0 else f"at most {apart:.1e} apart"
    print(f"✓ {claim}: {result}")


def answered(claim: str, holds: bool) -> None:
    """Check a claim about the embedded model's answers.

    Other weights and other images give other answers: then the line only says whether the claim
    holds.
    """
    result = "it holds" if holds else "it does not hold"
    if not IS_TINY:
        print(f"– {claim}: {result} here; it needs trained weights, so only tiny must meet it")
        return
    if OWN_IMAGE is not None:
        print(f"– {claim}: {result} here; it is about the course's image, and yours is another")
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
    """The same checkpoint in transformers, in our dtype; None where that is not installed."""
    if not transformers_installed():
        return None
    import transformers

    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(MODEL), dtype="auto", attn_implementation="eager"
    )
    return model.eval().to(DEVICE)


def reference(name: str, ask: Callable[[], ArrayLike | Tensor]) -> Tensor | None:
    """What the reference says: ask() where transformers is installed, else the stored array `name`.

    With QWEN2VL_STORE=1 what ask() gives is stored. There are arrays for the embedded model
    and the course's image only.
    """
    file = STORED / f"{name}.npy"
    has_stored = IS_TINY and OWN_IMAGE is None
    if transformers_installed():
        theirs = torch.as_tensor(ask()).detach().cpu()
        if os.environ.get("QWEN2VL_STORE") and has_stored:
            STORED.mkdir(exist_ok=True)
            np.save(file, theirs.numpy())
        return theirs
    if has_stored and file.exists():
        return torch.from_numpy(np.load(file))
    return None


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
