"""PIL images of every mode, arrays and tensors as upright 8-bit RGB."""

import numpy as np
from PIL import Image
from torch import Tensor

from qwen2vl_extras.sources import describe

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
# What makes an image upright, by the value of the tag: the EXIF standard, table of "Orientation".
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ARRAY_IMAGE = "(H, W), (H, W, 3), (H, W, 4), (3, H, W) or (1, H, W)"


# ------------------------------------------------------------------------------- PIL images


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright RGB; transparent pixels become white."""
    image.load()  # now, since the caller closes the file; a TIFF is turned upright here
    image = upright(image)

    # Modes I and I;16 hold 16 bits, which Pillow would clip at 255. 65535 / 257 is 255.
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(to_bytes(np.asarray(image)))

    # Transparent pixels on white. Pillow converts La, with its colours multiplied, to LA only.
    if image.mode == "La":
        image = image.convert("LA")
    # Of ICNS files it gives palette images that hide their palette: these may be transparent.
    has_hidden_palette = image.mode == "P" and image.palette is None
    if has_hidden_palette or image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF orientation says; what is no orientation is ignored."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # on broken EXIF Pillow's reader raises a dozen types
        orientation = None
    # A rational number 6/1 equals 6, and is not what the standard says.
    if not isinstance(orientation, int) or orientation not in TURNS:
        return image
    return image.transpose(TURNS[orientation])


# ------------------------------------------------------------------------ arrays and tensors


def image_from_array(source: np.ndarray | Tensor) -> Image.Image:
    """One image as an array or tensor: (H, W), (H, W, 3), (H, W, 4), (3, H, W) or (1, H, W).

    The last axis is that of the colours if it is 3 or 4 long, so that (3, 5, 3) is an image 3
    pixels high; else the first is. Values: as in `to_bytes`.
    """
    pixels = to_numpy(source)
    is_grey = pixels.ndim == 2
    has_colours_last = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    has_colours_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3) and not has_colours_last
    if pixels.size == 0 or not (is_grey or has_colours_last or has_colours_first):
        raise ValueError(f"an array image is {ARRAY_IMAGE}: got {describe(source)}")
    if has_colours_first:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    try:
        return Image.fromarray(np.ascontiguousarray(to_bytes(pixels)))
    except ValueError as error:
        raise ValueError(f"cannot read the image {describe(source)}: {error}") from None


def frames_from_array(source: np.ndarray | Tensor) -> list[np.ndarray]:
    """The frames (n, H, W, 3), (n, H, W, 4), (n, 3, H, W) or (n, 1, H, W) of a video, as bytes.

    They are looked at together, since a dark frame alone may look as if white were 1.
    """
    pixels = to_numpy(source)
    if pixels.ndim != 4 or pixels.size == 0:
        raise ValueError(
            "a video as an array is (frames, H, W, 3) or (frames, 3, H, W), of at least 1 frame: "
            f"got {describe(source)}"
        )
    try:
        return list(to_bytes(pixels))
    except ValueError as error:
        raise ValueError(f"cannot read the video {describe(source)}: {error}") from None


def to_numpy(source: np.ndarray | Tensor) -> np.ndarray:
    """A tensor of any device and layout as an array; an array as it is."""
    if not isinstance(source, Tensor):
        return source
    try:
        tensor = source.detach().cpu()
        if tensor.is_floating_point():  # numpy has no bfloat16
            tensor = tensor.float()
        return tensor.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:  # it is sparse, quantised, or has no values
        line = str(error).partition("\n")[0]
        raise ValueError(f"cannot read the pixels of {describe(source)}: {line:.200}") from None


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Values from 0 to 255, integers or floats, as uint8; fractions are rounded.

    ValueError for others, and for floats that seem to run from 0 to 1: all lie there, and one is
    a fraction.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"pixels are numbers from 0 to 255, not {pixels.dtype}")
    lowest, highest = pixels.min(), pixels.max()
    if not (lowest >= 0 and highest <= 255):  # so that NaN is refused, too
        raise ValueError(f"pixels lie in 0 to 255, these in {lowest:g} to {highest:g}")
    rounded = np.rint(pixels) if pixels.dtype.kind == "f" else pixels
    if highest <= 1 and (rounded != pixels).any():
        raise ValueError("its pixels are fractions from 0 to 1: multiply them by 255")
    return rounded.astype(np.uint8)
