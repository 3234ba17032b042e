"""Opening images and videos from every source, however odd."""

import base64
import io
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
import torch
from PIL import Image, features

from processor import sample_frames
from qwen2vl_extras.media import describe, load_image, read_video
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
