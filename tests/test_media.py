"""Opening images and videos from every source, however odd."""

import base64
import io
import itertools
import os
import random
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib import parse

import av
import numpy as np
import pytest
import torch
from PIL import Image, features

from processor import sample_frames
from qwen2vl_app.command_line import media_items, parse_arguments
from qwen2vl_extras.download import ascii_url
from qwen2vl_extras.media import describe, load_image, read_video
from qwen2vl_extras.sources import paths_of_url
from tests.helpers.drawn_media import frame_numbers, keep_frame, noise, write_frames, write_video


class PoliteHandler(SimpleHTTPRequestHandler):
    """Refuses urllib's own User-Agent, as some hosts do."""

    def do_GET(self) -> None:
        if self.headers["User-Agent"].startswith("Python-urllib"):
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of an http server on the test's folder."""
    handler = partial(PoliteHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def data_uri(image: Image.Image, kind: str, **options) -> str:
    """An image as a data: URI in a file format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def sampled_frames(source, **options) -> list[Image.Image]:
    """The frames of a video that `sample_frames` chooses."""
    return read_video(source, partial(sample_frames, **options), keep_frame)


# ------------------------------------------------------------------------------------------ images


def test_every_source_of_an_image_gives_the_same_pixels(server, tmp_path):
    image = noise(20, 30)
    pixels = np.asarray(image)
    path = tmp_path / "an image.png"
    image.save(path)
    sources = [
        path,
        str(path),
        path.as_uri(),
        f"{server}/an%20image.png",
        data_uri(image, "PNG"),
        image,
        pixels,
        torch.from_numpy(pixels.copy()),
    ]
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), pixels), describe(source)
    grey = np.asarray(load_image(pixels[..., 0]))
    assert np.array_equal(grey[..., 2], pixels[..., 0])


def test_bad_images_are_one_line_errors_that_name_them(server, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    noise(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    cases = {
        str(tmp_path / "none.png"): (FileNotFoundError, "none.png"),
        (tmp_path / "gone.png").as_uri(): (FileNotFoundError, "gone.png"),
        str(tmp_path): (OSError, tmp_path.name),
        str(tmp_path / "broken.png"): (ValueError, "broken.png"),
        str(tmp_path / "cut.png"): (ValueError, "cut.png"),
        f"{server}/none.png": (OSError, "404"),
        "http://127.0.0.1:9/x.png": (OSError, "127.0.0.1:9"),
        "data:image/png;base64,AAAA" + "A" * 5000: (ValueError, "data:image/png"),
        "data:nothing": (OSError, "data:nothing"),
        "x" * 5000: (OSError, "5002 characters"),
        "a\0b": (OSError, "null"),
        3: (ValueError, "3"),
        None: (ValueError, "None"),
    }
    for source, (kind, named) in cases.items():
        with pytest.raises(kind) as error:
            load_image(source)
        message = str(error.value)
        assert named in message, message
        assert "\n" not in message, message
        assert len(message) < 500


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 5, 6), "uint8"),
        ((1, 4, 5, 3), "uint8"),
        ((4, 5, 1), "uint8"),
        ((4,), "uint8"),
        ((0, 4), "uint8"),
    ],
)
def test_arrays_that_are_no_8_bit_images_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"\(H, W, 3\).*got ndarray of"):
        load_image(np.zeros(shape, dtype))


# Ways to hand over the pixels (20, 30, 3) of one image, by a name.
def array_forms(pixels: np.ndarray) -> dict[str, np.ndarray | torch.Tensor]:
    tensor = torch.from_numpy(pixels.copy())
    first = tensor.permute(2, 0, 1)
    forms = {
        "array, colours first": pixels.transpose(2, 0, 1),
        "array, colours first, contiguous": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        "array upside down twice": pixels[::-1].copy()[::-1],
        "Fortran order": np.asfortranarray(pixels),
        "every other of twice as many": pixels.repeat(2, axis=1)[:, ::2],
        "read-only": np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape),
        "tensor, colours first": first,
        "parameter": torch.nn.Parameter(first.float()),
        "with alpha": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    }
    for dtype in ("int8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64"):
        if dtype != "int8":
            forms[f"array of {dtype}"] = pixels.astype(dtype)
            forms[f"array of {dtype}, the other byte order"] = pixels.astype(
                np.dtype(dtype).newbyteorder()
            )
    for dtype in (torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16):
        forms[f"tensor of {dtype}"] = first.to(dtype)
    return forms


def test_every_form_of_an_array_gives_the_same_pixels():
    pixels = np.asarray(noise(20, 30))
    forms = array_forms(pixels)
    for name, form in forms.items():
        assert np.array_equal(np.asarray(load_image(form)), pixels), name
    assert len(forms) >= 25
    grey = pixels[..., 0]
    for form in (grey, grey[None], torch.from_numpy(grey[None].copy()), grey.astype(float)):
        assert np.array_equal(np.asarray(load_image(form)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 3, 3), (3, 3)),
        ((3, 5, 3), (5, 3)),
        ((3, 5, 4), (5, 3)),
        ((4, 5, 3), (5, 4)),
        ((1, 5, 3), (5, 1)),
        ((3, 5, 6), (6, 5)),
        ((3, 4, 5), (5, 4)),
        ((1, 4, 5), (5, 4)),
        ((3, 1), (1, 3)),
    ],
)
def test_the_last_axis_is_that_of_the_colours_if_it_can_be(shape, size):
    for pixels in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
        assert load_image(pixels).size == size


def test_values_that_are_no_pixels_are_refused_with_the_reason():
    image = np.asarray(noise(8, 9)).astype(np.float32)
    fractions = "fractions from 0 to 1"
    spoilt = {"NaN": np.nan, "infinity": np.inf, "a negative": -1.0, "too much": 255.5}
    cases = [(image / 255, fractions), (np.full((8, 9, 3), 0.5), fractions)]
    cases += [(image.astype(bool), "not bool"), (image.astype(complex), "not complex")]
    cases += [(image.astype(np.int64) * 257, "0 to 65535"), (image.astype(str), "not <U")]
    for value in spoilt.values():
        pixels = image.copy()
        pixels[3, 4, 1] = value
        cases.append((pixels, "0 to 255"))
    for pixels, named in cases:
        forms = [pixels]
        if pixels.dtype.kind in "ifc":
            forms.append(torch.from_numpy(pixels))
        for form in forms:
            with pytest.raises(ValueError, match=named) as error:
                load_image(form)
            assert "of" in str(error.value) and "\n" not in str(error.value)
    for tensor in (torch.zeros(8, 9, 3, device="meta"), torch.zeros(8, 9, 3).to_sparse()):
        with pytest.raises(ValueError, match=r"Tensor of torch\.float32"):
            load_image(tensor)
    # Black and white as floats are no fractions; a dark frame of a bright clip neither.
    assert load_image(np.ones((4, 4, 3), np.float32)).getpixel((0, 0)) == (1, 1, 1)
    clip = np.stack([np.full((4, 5, 3), 0.5), np.full((4, 5, 3), 200.0)])
    for frames in (clip, torch.from_numpy(clip).permute(0, 3, 1, 2)):
        dark, bright = read_video(frames, sample_frames, keep_frame)
        assert dark.getpixel((0, 0)) == (0, 0, 0)
        assert bright.getpixel((0, 0)) == (200, 200, 200)
    with pytest.raises(ValueError, match=fractions):
        read_video(clip / 255, sample_frames, keep_frame)
    with pytest.raises(ValueError, match=r"\(frames, H, W, 3\)"):
        read_video(clip[0], sample_frames, keep_frame)


def test_content_in_memory_and_open_files_give_the_same_pixels(tmp_path):
    image = noise(20, 30)
    path = tmp_path / "a.png"
    image.save(path)
    content = path.read_bytes()
    at_its_end = io.BytesIO(content)
    at_its_end.seek(0, io.SEEK_END)
    read_end, write_end = os.pipe()
    threading.Thread(target=lambda: os.fdopen(write_end, "wb").write(content)).start()
    with open(path, "rb") as opened, os.fdopen(read_end, "rb") as pipe:
        opened.seek(7)
        sources = {
            "bytes": content,
            "bytearray": bytearray(content),
            "memoryview": memoryview(content),
            "open file": opened,
            "a file that was just written": at_its_end,
            "pipe": pipe,
            "row": {"bytes": content, "path": None},
            "row with a path that is not here": {"bytes": content, "path": "gone.png"},
            "row of a path": {"bytes": None, "path": str(path)},
        }
        for name, source in sources.items():
            assert np.array_equal(np.asarray(load_image(source)), np.asarray(image)), name
        assert opened.tell() == 7, "the caller's file is where it was"
    video = write_video(tmp_path / "a.mp4", 10).read_bytes()
    for source in (video, bytearray(video), io.BytesIO(video), {"bytes": video, "path": None}):
        assert frame_numbers(sampled_frames(source, nframes=4)) == [0, 2, 5, 7]
    with open(path, encoding="latin-1") as text, pytest.raises(ValueError, match="'rb'"):
        load_image(text)
    with pytest.raises(ValueError, match="closed"):
        load_image(opened)
    with pytest.raises(ValueError, match="bytes or a path"):
        load_image({"bytes": None, "path": None})


NAMES = [
    "a b.png",
    "a%20b.png",
    "a?b=c.png",
    "a#1.png",
    "ü ß.png",
    "100%.png",
    "a+b.png",
    "日本.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_found_however_their_url_is_written(name, tmp_path, monkeypatch):
    path = tmp_path / name
    noise(6, 9).save(path)
    places = [
        str(path),
        path.as_uri(),  # encoded as the standard says
        f"file://{path}",  # and as people write it
        f"FILE://{path}",
        f"file:{path}",
        f"file://localhost{path}",
        f"{path}\n",
        f" '{path}' ",
        path.as_uri() + "\n",
        path.as_uri() + "#t=1",
    ]
    monkeypatch.setenv("HOME", str(tmp_path))
    places += [f"~/{name}", f"file://~/{name}"]
    monkeypatch.chdir(tmp_path)
    places += [name, f"file://{name}", f"file:{name}"]
    for place in places:
        assert load_image(place).size == (9, 6), place


def test_the_file_urls_of_windows_are_its_paths():
    for url, path in {
        "file:///C:/a%20b.png": "C:\\a b.png",
        "file:///C|/a.png": "C:\\a.png",
        "file://C:/a.png": "C:\\a.png",
        "file:C:\\a.png": "C:\\a.png",
        "file://localhost/C:/a.png": "C:\\a.png",
        "file://server/share/a.png": "\\\\server\\share\\a.png",
    }.items():
        assert paths_of_url(url, windows=True)[0] == path
    with pytest.raises(FileNotFoundError, match="no such image"):  # a drive is no scheme
        load_image("C:\\a.png")


@pytest.mark.parametrize("name", NAMES)
def test_urls_with_spaces_and_letters_of_any_language_are_found(name, server, tmp_path):
    noise(6, 9).save(tmp_path / name)
    written = [f"{server}/{parse.quote(name)}", f"  {server}/{parse.quote(name)}\n"]
    written.append(f"{server}/{parse.quote(name)}?w=1 2&ü=ß#top".replace("http", "HTTP"))
    if not set("?#%") & set(name):
        written.append(f"{server}/{name}")
    for url in written:
        assert load_image(url).size == (9, 6), url
    assert ascii_url("http://bücher.example/ü?q=ü#x") == (
        "http://xn--bcher-kva.example/%C3%BC?q=%C3%BC"
    )


def test_data_uris_are_read_in_every_form():
    for size in range(1, 8):  # each remainder of the length
        image = noise(size, 9, seed=size)
        file = io.BytesIO()
        image.save(file, "PNG")
        content = file.getvalue()
        plain = base64.b64encode(content).decode()
        safe = base64.urlsafe_b64encode(content).decode()
        lines = base64.encodebytes(content).decode()
        forms = [
            f"data:image/png;base64,{plain}",
            f"data:image;base64,{plain}",
            f"data:;base64,{plain}",
            f"DATA:image/PNG;BASE64,{plain}",
            f"data:image/png;charset=utf-8;base64,{plain}",
            f"data:image/png; base64, {plain}\n",
            f" data:image/png;base64,{plain}",
            f"data:image/png;base64,{plain.rstrip('=')}",
            f"data:image/png;base64,{safe}",
            f"data:image/png;base64,{safe.rstrip('=')}",
            f"data:image/png;base64,{lines}",
            f"data:image/png;base64,{parse.quote(plain)}",
            f"data:image/png,{parse.quote(content)}",
            plain,  # without "data:", as transformers takes it
            lines,
        ]
        for form in forms:
            assert np.array_equal(np.asarray(load_image(form)), np.asarray(image)), form[:40]
    for broken in ("data:image/png;base64", "data:image/png;base64,A", "data:;base64,ü!!"):
        with pytest.raises(OSError, match="data:"):
            load_image(broken)


@pytest.mark.parametrize("scheme", ["ftp", "s3", "gs", "rtsp", "hdfs", "ssh", "blob", "S3"])
def test_other_schemes_are_refused_by_name(scheme):
    for read in (load_image, sampled_frames):
        with pytest.raises(OSError, match=rf"{scheme.lower()}: is not supported.*https:"):
            read(f"{scheme}://bucket/a b.png")


# Modes, sizes and formats, as far as Pillow writes them.
FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "PCX"]
FORMATS += ["SGI", "DDS", "AVIF", "QOI", "SPIDER", "MPO", "DIB", "XBM", "MSP", "ICNS"]
MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa", "RGBX"]


def odd_pictures(rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Pictures of every format and mode that Pillow writes, in odd sizes: (name, content)."""
    pairs = list(itertools.product(FORMATS, MODES))
    for trial in range(count * 10):
        kind, mode = pairs[trial % len(pairs)]
        size = (rng.choice([1, 2, 3, 7, 31, 64]), rng.choice([1, 2, 5, 33, 100]))
        try:
            base = noise(*size, seed=trial)
            image = base.convert("RGBA").convert(mode) if mode == "RGBa" else base.convert(mode)
            file = io.BytesIO()
            image.save(file, kind)
        except (OSError, ValueError, KeyError, SystemError):  # it can't be written
            continue
        yield f"{kind} {mode} {size} {trial}", file.getvalue()


def test_odd_pictures_equal_pillows_own_conversion(amount):
    tried = 0
    for name, content in odd_pictures(random.Random(0), amount(60, 400)):
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I") or image.mode == "F":
                continue  # Pillow clips these
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                expected = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            else:
                expected = image.convert("RGB")
        assert np.array_equal(np.asarray(load_image(content)), np.asarray(expected)), name
        tried += 1
        if tried == amount(200, 1200):
            break
    assert tried >= amount(200, 1200)


def test_an_image_or_video_may_come_from_stdin_once(tmp_path, monkeypatch):
    for kind, content in (
        ("image", noise(20, 30)),
        ("video", write_video(tmp_path / "a.mp4", 10).read_bytes()),
    ):
        if kind == "image":
            file = io.BytesIO()
            content.save(file, "PNG")
            content = file.getvalue()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        args = parse_arguments([f"--{kind}", "-", "--image", "b.png"])
        items = media_items(args)
        (source,) = [item[kind] for item in items if isinstance(item[item["type"]], bytes)]
        assert source == content
        assert {"type": "image", "image": "b.png"} in items
    for argv, named in (
        (["--image", "-", "--video", "-"], "only once"),
        (["--image", "-", "--chat"], "--chat reads the questions"),
    ):
        with pytest.raises(ValueError, match=named):
            media_items(parse_arguments(argv))


@pytest.mark.parametrize("mode", ["La", "RGBa", "LA"])
def test_images_in_memory_of_transparent_modes_lie_on_white(mode):
    image = noise(5, 6).convert("RGBA")
    image.putalpha(128)
    if mode in ("La", "LA"):
        image = image.convert("LA")
    found = np.asarray(load_image(image.convert(mode) if mode != image.mode else image))
    expected = np.asarray(image.convert("RGB")) * (128 / 255) + 255 * (1 - 128 / 255)
    assert np.abs(found - expected).max() <= 2


def test_transparent_pixels_lie_on_white():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., :3] = (200, 100, 50)
    pixels[..., 3] = [[0, 51, 255], [102, 153, 204]]
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    rgba = Image.fromarray(pixels)
    for source in (rgba, data_uri(rgba, "PNG")):
        assert np.abs(np.asarray(load_image(source)) - expected).max() <= 1

    grey = np.asarray(rgba.convert("L"))[..., None] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(load_image(rgba.convert("LA"))) - grey).max() <= 1


@pytest.mark.parametrize(
    ("mode", "key", "other", "expected"),
    [
        ("RGB", (10, 20, 30), (40, 50, 60), [40, 50, 60]),
        ("L", 10, 40, [40, 40, 40]),
        ("P", 1, 2, [40, 50, 60]),
    ],
)
def test_a_transparent_colour_is_white(mode, key, other, expected):
    image = Image.new(mode, (2, 1), key)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), other)
    (row,) = np.asarray(load_image(data_uri(image, "PNG", transparency=key))).tolist()
    assert row == [[255, 255, 255], expected]


def test_images_are_turned_upright_by_their_exif_tag():
    upright = np.asarray(noise(6, 9))
    turned = upright.transpose(1, 0, 2)
    # How a camera stores an upright image for each value of the tag: the EXIF standard, table of
    # "Orientation".
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }
    for tag, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        image = Image.fromarray(np.ascontiguousarray(pixels))
        found = np.asarray(load_image(data_uri(image, "PNG", exif=exif)))
        assert np.array_equal(found, upright), tag


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    wide = np.array([[0, 128, 129, 257, 30000, 65535]], np.uint16)
    found = np.asarray(load_image(data_uri(Image.fromarray(wide), kind)))
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 117, 255]
    assert (found == found[..., :1]).all()
    as_int32 = Image.fromarray(wide.astype(np.int32))
    assert np.array_equal(np.asarray(load_image(as_int32)), found)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_in_the_reference(mode):
    from transformers.image_transforms import convert_to_rgb

    image = noise(20, 30).convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(convert_to_rgb(image)))


def test_an_animated_image_gives_its_first_frame():
    first, *others = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"save_all": True, "append_images": others}
    sources = [data_uri(first, "GIF", **options), data_uri(first, "PNG", **options)]
    if features.check("webp"):
        sources.append(data_uri(first, "WEBP", lossless=True, **options))
    for source in sources:
        assert load_image(source).getpixel((3, 3)) == (255, 0, 0), describe(source)


# ------------------------------------------------------------------------------------------ videos


def test_every_source_of_a_video_gives_the_same_frames(server, tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    data = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), path.as_uri(), f"{server}/a.mp4", data):
        frames = sampled_frames(source, nframes=4)
        assert frame_numbers(frames) == [0, 2, 5, 7], describe(source)

    frames = [noise(20, 30, seed) for seed in range(3)]
    for source in (frames, tuple(frames), np.stack(frames)):
        kept = read_video(source, sample_frames, lambda frame, n: (np.asarray(frame), n))
        assert len(kept) == 3, "every frame of a list is taken"
        for (pixels, num_frames), frame in zip(kept, frames, strict=True):
            assert np.array_equal(pixels, frame)
            assert num_frames == 3


@pytest.mark.parametrize(
    ("suffix", "codec", "states_count"),
    [
        ("mp4", "mpeg4", True),
        ("mkv", "mpeg4", False),
        ("avi", "mpeg4", True),
        ("webm", "libvpx", False),
    ],
)
def test_the_sampled_frames_are_those_asked_for(tmp_path, suffix, codec, states_count):
    path = write_video(tmp_path / f"a.{suffix}", 50, codec=codec)
    with av.open(str(path)) as container:  # both kinds of container are met
        assert (container.streams.video[0].frames > 0) == states_count
    assert frame_numbers(sampled_frames(path)) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert frame_numbers(sampled_frames(path, fps=1)) == [0, 12, 25, 37]
    assert frame_numbers(sampled_frames(path, nframes=2)) == [0, 25]
    assert frame_numbers(sampled_frames(path, nframes=1)) == [0]
    last = read_video(path, lambda total, rate: [total - 1], keep_frame)
    assert frame_numbers(last) == [49]
    with pytest.raises(ValueError, match=r"60.*50 frames"):
        sampled_frames(path, nframes=60)


def test_variable_frame_rate_is_sampled_by_number(tmp_path):
    times = [0, 1, 2, 3, 30, 31, 32, 60, 61, 99]
    path = write_video(tmp_path / "a.mkv", 10, times=times)
    assert frame_numbers(sampled_frames(path, nframes=10)) == list(range(10))
    frames = sampled_frames(path, fps=1)
    n = len(frames)
    assert 4 <= n <= 10
    assert frame_numbers(frames) == [i * 10 // n for i in range(n)]


def test_a_wrongly_stated_frame_count_is_mended(tmp_path):
    path = write_video(tmp_path / "a.avi", 20)
    data = bytearray(path.read_bytes())
    start = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[start : start + 4], "little") == 20
    data[start : start + 4] = (200).to_bytes(4, "little")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 200
    assert frame_numbers(sampled_frames(path, nframes=4)) == [0, 5, 10, 15]


def test_a_video_filmed_with_the_phone_turned_is_upright(tmp_path):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255  # the left half is white
    path = write_frames(tmp_path / "a.mp4", [pixels] * 4)
    data = path.read_bytes()

    def matrix(a: int, b: int, c: int, d: int) -> bytes:
        """The matrix of a track header: x' = a*x + c*y, y' = b*x + d*y (ISO 14496-12)."""
        values = (a, b, 0, c, d, 0, 0, 0, 2**30)
        return b"".join(value.to_bytes(4, "big", signed=True) for value in values)

    # A quarter turn clockwise in place of the identity: a phone held upright.
    identity = matrix(65536, 0, 0, 65536)
    quarter_turn = matrix(0, 65536, -65536, 0)
    start = data.index(identity, data.index(b"tkhd"))
    end = start + len(identity)
    path.write_bytes(data[:start] + quarter_turn + data[end:])
    frame = np.asarray(sampled_frames(path, nframes=2)[0])
    assert frame.shape == (64, 48, 3)
    # What was at the left is at the top.
    assert frame[:24].mean() > 240
    assert frame[40:].mean() < 15


def test_a_long_video_is_read_in_bounded_memory(tmp_path):
    path = write_video(tmp_path / "long.mp4", 6000, size=(16, 16))
    frames = []  # weak references to all frames so far
    alive_counts = []

    def watch(frame: Image.Image, num_frames: int) -> int:
        frames.append(weakref.ref(frame))
        alive_counts.append(sum(one() is not None for one in frames))
        return num_frames

    # 600 seconds at 2 frames a second are held to 768.
    assert read_video(path, sample_frames, watch) == [768] * 768
    assert max(alive_counts) <= 2


def test_bad_videos_are_one_line_errors_that_name_them(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    whole = write_video(tmp_path / "whole.mkv", 5)
    (tmp_path / "empty.mkv").write_bytes(whole.read_bytes()[:600])
    for source, kind, named in [
        (str(tmp_path / "none.mp4"), FileNotFoundError, "none.mp4"),
        (str(tmp_path / "broken.mp4"), ValueError, "broken.mp4"),
        (str(tmp_path / "sound.wav"), ValueError, "no video"),
        (str(tmp_path / "empty.mkv"), ValueError, "0 frames"),
        ([], ValueError, "at least 1 frame"),
        (5, ValueError, "5"),
    ]:
        with pytest.raises(kind, match=named) as error:
            sampled_frames(source)
        assert "\n" not in str(error.value)
