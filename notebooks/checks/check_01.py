"""Checkers of notebook 01: the right answers come from the shipped image processor."""

from collections.abc import Callable

import course
import torch
from course import Wrong
from PIL import Image
from plots import plots_01 as plots
from plots.shared import draw_images
from torch import Tensor

from processor import Qwen2VLImageProcessor, patchify


def _shipped_indices(h: int, w: int, merge_size: int) -> Tensor:
    """(h, w): the index in the list of the patch at each row and column."""
    numbered = torch.arange(h * w).view(1, 1, h, w)  # patches of a single pixel
    order = patchify(numbered, 1, 1, merge_size)[0].flatten()
    return order.argsort().view(h, w)


def patch_index(answer: Callable[[int, int, int, int], int]) -> None:
    """Exercise 1: answer(row, column, w, merge_size) is a patch's index in the list."""
    for h, w, merge_size in ((4, 6, 2), (4, 4, 2), (2, 8, 2), (8, 4, 2), (6, 9, 3)):
        right = _shipped_indices(h, w, merge_size)
        rows = [[answer(row, column, w, merge_size) for column in range(w)] for row in range(h)]
        if any(index is None for row in rows for index in row):
            raise Wrong("it returns None: is the `return` missing?")
        found = torch.tensor(rows)
        is_wrong = found != right
        if (h, w) == (4, 6) or is_wrong.any():
            plots.draw_indices(found, right, merge_size)
        if is_wrong.any():
            row, column = is_wrong.nonzero()[0].tolist()
            raise Wrong(
                f"in a grid of {h} x {w} patches with squares of {merge_size} x {merge_size}, the "
                f"patch in row {row}, column {column} has the index {right[row, column]}, not "
                f"{found[row, column]} ({int(is_wrong.sum())} of {h * w} are wrong)"
            )


def unpatchify(answer: Callable[[Tensor, list[int], Qwen2VLImageProcessor], Tensor]) -> None:
    """Exercise 2: answer(patches, grid, image_processor) is the image (3, height, width)."""
    noise = torch.rand(56, 84, 3, generator=torch.Generator().manual_seed(0))
    noise_image = Image.fromarray((noise * 255).byte().numpy())
    image_processor = Qwen2VLImageProcessor()
    for source in (course.EXAMPLES / "shapes.png", noise_image):
        inputs = image_processor(source)
        grid = inputs.image_grid_thw[0].tolist()
        right = course.image_from_patches(inputs.pixel_values, grid, image_processor)
        found = answer(inputs.pixel_values.clone(), grid, image_processor)
        if not isinstance(found, Tensor) or found.shape != right.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise Wrong(f"an image of {tuple(right.shape)} is wanted, not {shape}")
        _compare_images(found.float(), right, show_always=source is not noise_image)


def _compare_images(found: Tensor, right: Tensor, show_always: bool) -> None:
    """Draw both and raise Wrong if they differ."""
    apart = (found - right).abs()
    if show_always or apart.max() > 1e-3:
        titles = ["what was cut into patches", "what you made of the patches"]
        draw_images([right, found.clamp(0, 1)], titles)
    if found.min() < -0.1 or found.max() > 1.1:
        values = f"values run from {found.min():.2f} to {found.max():.2f}"
        raise Wrong(f"{values}: undo the normalisation (times std, plus mean)")
    if apart.max() > 1e-3:
        share = float((apart.amax(0) > 1e-3).float().mean())
        said = f"{share:.0%} of the pixels differ, by {apart.max():.2f} at most"
        same_values = torch.allclose(
            found.flatten().sort().values, right.flatten().sort().values, atol=1e-3
        )
        if same_values:
            said += ": all values are there, at other positions; look at the order of the axes"
        raise Wrong(said)
