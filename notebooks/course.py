"""What the notebooks share: the model, a style for plots, checks that must hold, and exercises to try.

    QWEN2VL_MODEL=Qwen/Qwen2-VL-2B-Instruct jupyter lab notebooks    # official weights

Checks compare with two others: the shipped function, and the reference. The reference is `transformers` where
that is installed; else an array that it once gave, stored in `notebooks/reference/`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare clone works, nothing has to be installed from it

from processor import Qwen2VLProcessor  # noqa: E402
from qwen2vl import Qwen2VLForConditionalGeneration  # noqa: E402

MODEL = os.environ.get("QWEN2VL_MODEL", "tiny")
IS_TINY = MODEL == "tiny"
EXAMPLES = ROOT / "examples"
STORED = Path(__file__).resolve().parent / "reference"

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


def load(attn: str = "eager") -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The model that QWEN2VL_MODEL names, by default the embedded one, and its processor; no gradients."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = Qwen2VLForConditionalGeneration.from_pretrained(MODEL, attn_implementation=attn)
    return model, Qwen2VLProcessor.from_pretrained(MODEL)


# ---------------------------------------------------------------------------------------------------- checks


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest number of the second; ValueError if shapes differ."""
    ours, theirs = (torch.as_tensor(x).detach().double().cpu() for x in (ours, theirs))
    if ours.shape != theirs.shape:
        raise ValueError(f"the shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def check(what: str, ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Print how far two tensors are apart; AssertionError beyond the tolerance. None: no reference."""
    if theirs is None:
        print(f"– {what}: no reference here (transformers isn't installed, and {MODEL} has none stored)")
        return
    apart = difference(ours, theirs)
    if not apart <= tolerance:
        raise AssertionError(f"{what}: {apart:.1e} apart, more than {tolerance:.0e}")
    print(f"✓ {what}: " + ("equal to the last bit" if apart == 0 else f"at most {apart:.1e} apart"))


def answered(what: str, holds: bool) -> None:
    """A claim about the embedded model's answers; others answer otherwise, untrained ones at random."""
    if not IS_TINY:
        print(
            f"– {what}: {'so' if holds else 'not so'} here; it needs trained weights, so tiny is held to it"
        )
        return
    assert holds, f"{what}: does not hold"
    print(f"✓ {what}")


def transformers_here() -> bool:
    """Whether the reference implementation can be asked; QWEN2VL_NO_TRANSFORMERS=1 pretends that it can't."""
    if os.environ.get("QWEN2VL_NO_TRANSFORMERS"):
        return False
    try:
        import transformers  # noqa: F401  (slow: only where it's asked for)
    except ImportError:
        return False
    return True


def reference_model() -> Any:
    """The same checkpoint in transformers, in our model's dtype; None where it isn't installed."""
    if not transformers_here():
        return None
    import transformers

    from load import find_checkpoint

    return transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(MODEL), dtype="auto", attn_implementation="eager"
    ).eval()


def reference(name: str, ask: Callable[[], Any]) -> torch.Tensor | None:
    """What the reference says: ask() where transformers is installed, else the array stored under the name.

    Run with QWEN2VL_STORE=1 to store what ask() gives. Arrays are stored for the embedded model only.
    """
    file = STORED / f"{name}.npy"
    if transformers_here():
        theirs = torch.as_tensor(ask()).detach().cpu()
        if os.environ.get("QWEN2VL_STORE") and IS_TINY:
            STORED.mkdir(exist_ok=True)
            np.save(file, theirs.numpy())
        return theirs
    return torch.from_numpy(np.load(file)) if IS_TINY and file.exists() else None


# ------------------------------------------------------------------------------------------------- exercises


class Wrong(Exception):
    """What a checker raises: it says what is wrong."""


def attempt(checker: Callable, *answers: Any) -> None:
    """Let the checker look at the reader's answers: it draws, and says what is wrong, or that it's right."""
    attempt.passed = False
    try:
        checker(*answers)
    except NotImplementedError:
        print("… not written yet: fill in the cell above, run it, then run this one again")
    except Wrong as wrong:
        print(f"✗ {wrong}")
    except Exception as error:  # the reader's own code may raise anything, and the notebook should go on
        print(f"✗ it stopped with {type(error).__name__}: {error}")
    else:
        attempt.passed = True
        print("✓ right")


# ----------------------------------------------------------------------------------------------------- plots


def show(pictures: Any, titles: list[str] | None = None, height: float = 2.6) -> None:
    """Pictures (PIL, or tensors (3, H, W) or (H, W)) side by side."""
    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    titles = titles or [""] * len(pictures)
    _, panels = plt.subplots(1, len(pictures), figsize=(height * 1.25 * len(pictures), height), squeeze=False)
    for axes, picture, title in zip(panels[0], pictures, titles, strict=True):
        if isinstance(picture, torch.Tensor):
            picture = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
        axes.imshow(picture)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    plt.show()
