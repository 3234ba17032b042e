"""Checkers of notebook 01: the right answers come from the shipped image processor."""

import random
from collections.abc import Callable

import course
import torch
from course import Wrong
from PIL import Image
from plots import plots_01 as plots
from plots.shared import draw_images
from torch import Tensor

from checks import watch
from processor import Qwen2VLImageProcessor, patchify


def _shipped_indices(h: int, w: int, merge_size: int) -> Tensor:
    """(h, w): the index in the list of the patch at each row and column."""
    numbered = torch.arange(h * w).view(1, 1, h, w)  # patches of a single pixel
    order = patchify(numbered, 1, 1, merge_size)[0].flatten()
    return order.argsort().view(h, w)


def _grids() -> list[tuple[int, int, int]]:
    """(h, w, merge_size) in patches: the one of the plot first, then random ones."""
    grids = [(4, 6, 2), (4, 4, 2), (2, 8, 2)]
    rng = random.Random(0)
    for _ in range(10):
        merge_size = rng.randint(1, 4)
        grids.append((merge_size * rng.randint(1, 5), merge_size * rng.randint(1, 5), merge_size))
    return grids


def patch_index(answer: Callable[[int, int, int, int], int]) -> None:
    """Exercise 1: answer(row, column, w, merge_size) is a patch's index in the list."""
    answer = watch.without_calls(answer, "processor.patchify")
    for h, w, merge_size in _grids():
        case = f"in a grid of {h} x {w} patches with squares of {merge_size} x {merge_size}"
        right = _shipped_indices(h, w, merge_size)
        rows = []
        for row in range(h):
            indices = [answer(row, column, w, merge_size) for column in range(w)]
            rows.append([watch.whole_number(index, case) for index in indices])
        found = torch.tensor(rows)
        is_wrong = found != right
        if (h, w) == (4, 6) or is_wrong.any():
            plots.draw_indices(found, right, merge_size)
        if is_wrong.any():
            row, column = is_wrong.nonzero()[0].tolist()
            raise Wrong(
                f"{case}, the patch in row {row}, column {column} has the index "
                f"{right[row, column]}, not {found[row, column]} ({int(is_wrong.sum())} of {h * w} "
                "are wrong)"
            )


def _image_processors() -> list[Qwen2VLImageProcessor]:
    """The official numbers first, then patches, squares, means and spreads of other sizes."""
    processors = [Qwen2VLImageProcessor()]
    rng = random.Random(0)
    for merge_size in (1, 2, 3):
        processors.append(
            Qwen2VLImageProcessor(
                min_pixels=1,
                patch_size=rng.choice((5, 7, 8)),
                merge_size=merge_size,
                temporal_patch_size=rng.choice((1, 2, 3)),
                image_mean=[rng.uniform(0.3, 0.6) for _ in range(3)],
                image_std=[rng.uniform(0.2, 0.4) for _ in range(3)],
            )
        )
    return processors


def unpatchify(answer: Callable[[Tensor, list[int], Qwen2VLImageProcessor], Tensor]) -> None:
    """Exercise 2: answer(patches, grid, image_processor) is the image (3, height, width)."""
    answer = watch.without_calls(answer, "processor.patchify", "course.image_from_patches")
    for number, image_processor in enumerate(_image_processors()):
        side = image_processor.patch_size * image_processor.merge_size
        noise = torch.rand(2 * side, 3 * side, 3, generator=torch.Generator().manual_seed(number))
        noise_image = Image.fromarray((noise * 255).byte().numpy())
        sources = [course.EXAMPLES / "shapes.png", noise_image] if number == 0 else [noise_image]
        for source in sources:
            inputs = image_processor(source)
            grid = inputs.image_grid_thw[0].tolist()
            right = course.image_from_patches(inputs.pixel_values, grid, image_processor)
            found = answer(inputs.pixel_values.clone(), grid, image_processor)
            case = f"patches of {image_processor.patch_size} px, {image_processor.merge_size} x "
            case += f"{image_processor.merge_size} in a square, "
            case += f"{image_processor.temporal_patch_size} frames deep, grid {grid}"
            found = watch.tensor_like(found, right, case)
            _compare_images(case, found, right, show_always=source is not noise_image)


def _standardised(image: Tensor) -> Tensor:
    """An image (3, height, width) with mean 0 and spread 1 in each channel."""
    mean = image.mean((1, 2), keepdim=True)
    return (image - mean) / image.std((1, 2), keepdim=True)


def _compare_images(case: str, found: Tensor, right: Tensor, show_always: bool) -> None:
    """Draw both and raise Wrong if they differ."""
    apart = (found - right).abs()
    if show_always or apart.max() > 1e-3:
        titles = ["what was cut into patches", "what you made of the patches"]
        draw_images([right, found.clamp(0, 1)], titles)
    if found.min() < -0.1 or found.max() > 1.1:
        values = f"values run from {found.min():.2f} to {found.max():.2f}"
        raise Wrong(f"{case}: {values}: is the normalisation undone?")
    if apart.max() > 1e-3:
        share = float((apart.amax(0) > 1e-3).float().mean())
        said = f"{case}: {share:.0%} of the pixels differ, by {apart.max():.2f} at most"
        same_values = torch.allclose(
            found.flatten().sort().values, right.flatten().sort().values, atol=1e-3
        )
        if same_values:
            said += ": all values are there, at other positions; look at the order of the axes"
        elif torch.allclose(_standardised(found), _standardised(right), atol=1e-2):
            said += ": all pixels are in place; are mean and std those of `image_processor`?"
        raise Wrong(said)
