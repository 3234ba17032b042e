"""media.py: pictures and clips from every source, however odd."""

import base64
import io
import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, features

from media import describe, load_image, read_video
from processor import sample_frames

# ---------------------------------------------------------------- what the tests work with


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    """Smooth colours under sharp noise, so that every filter tap shows."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def saved(picture: Image.Image, kind: str, **options) -> str:
    """A picture as a data: URI, through a file format and back."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture
def server(tmp_path):
    """An http server on the test's folder that refuses urllib's own User-Agent, as some hosts do."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            refused = self.headers["User-Agent"].startswith("Python-urllib")
            self.send_error(403) if refused else super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def clip(path: Path, count: int, rate: int = 10, codec="mpeg4", size=(64, 48), times=None) -> Path:
    """A clip whose frames tell their numbers: in each, block i of 16 x 16 px is white if bit i is set."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            blocks = np.array([255 * (number >> i & 1) for i in range(size[0] * size[1] // 256)], np.uint8)
            pixels = blocks.reshape(size[1] // 16, size[0] // 16).repeat(16, 0).repeat(16, 1)  # (H, W)
            frame = av.VideoFrame.from_ndarray(np.stack([pixels] * 3, -1), "rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: list) -> list[int]:
    """The numbers of frames made by `clip`."""
    blocks = [np.asarray(frame.convert("L"))[8::16, 8::16].ravel() > 127 for frame in frames]
    return [sum(int(bit) << i for i, bit in enumerate(block)) for block in blocks]


def keep(frame: Image.Image, n: int) -> Image.Image:
    return frame


def sampled(source, **options) -> list:
    """The frames of a clip that `sample_frames` chooses."""
    return read_video(source, partial(sample_frames, **options), keep)


# ---------------------------------------------------------------- pictures


def test_every_source_of_a_picture_gives_the_same_pixels(server, tmp_path):
    picture = noise(20, 30)
    path = tmp_path / "a picture.png"
    picture.save(path)
    pixels = np.asarray(picture)
    sources = [path, str(path), path.as_uri(), f"{server}/a%20picture.png", saved(picture, "PNG")]
    for source in [*sources, picture, pixels, torch.from_numpy(pixels.copy())]:
        assert np.array_equal(np.asarray(load_image(source)), pixels), describe(source)
    assert np.array_equal(np.asarray(load_image(pixels[..., 0]))[..., 2], pixels[..., 0])


def test_bad_pictures_are_one_line_errors_that_name_them(server, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
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
        assert named in str(error.value) and "\n" not in str(error.value), error.value
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((4, 5, 3), "float32"),
        ((3, 20, 30), "uint8"),
        ((4, 5, 1), "uint8"),
        ((4,), "uint8"),
        ((0, 4), "uint8"),
    ],
)
def test_arrays_that_are_no_8_bit_pictures_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"\(H, W, 3\).*got ndarray of"):
        load_image(np.zeros(shape, dtype))


def test_transparent_pixels_lie_on_white():
    colours = np.zeros((2, 3, 4), np.uint8)
    colours[..., :3], colours[..., 3] = (200, 100, 50), [[0, 51, 255], [102, 153, 204]]
    alpha = colours[..., 3:] / 255
    expected = colours[..., :3] * alpha + 255 * (1 - alpha)
    rgba = Image.fromarray(colours)
    assert np.abs(np.asarray(load_image(rgba)) - expected).max() <= 1
    assert np.abs(np.asarray(load_image(saved(rgba, "PNG"))) - expected).max() <= 1
    grey = np.asarray(load_image(rgba.convert("LA")))
    assert np.abs(grey - (np.asarray(rgba.convert("L"))[..., None] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("mode, key", [("RGB", (10, 20, 30)), ("L", 10), ("P", 1)])
def test_a_transparent_colour_is_white(mode, key):
    picture = Image.new(mode, (2, 1), key)
    if mode == "P":
        picture.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), {"RGB": (40, 50, 60), "L": 40, "P": 2}[mode])
    left, right = np.asarray(load_image(saved(picture, "PNG", transparency=key)))[0].tolist()
    assert left == [255] * 3 and right == ([40] * 3 if mode == "L" else [40, 50, 60])


def test_photos_are_turned_upright_by_their_exif_tag():
    upright = np.asarray(noise(6, 9))
    # How a camera stores an upright picture for each value of the tag (EXIF standard, table of "Orientation")
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turned = upright.transpose(1, 0, 2)
    stored |= {5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}
    for tag, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        uri = saved(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif)
        assert np.array_equal(np.asarray(load_image(uri)), upright), tag


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    wide = np.array([[0, 128, 129, 257, 30000, 65535]], np.uint16)
    got = np.asarray(load_image(saved(Image.fromarray(wide), kind)))
    assert got[0, :, 0].tolist() == [0, 0, 1, 1, 117, 255] and (got == got[..., :1]).all()
    assert np.array_equal(np.asarray(load_image(Image.fromarray(wide.astype(np.int32)))), got)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_in_the_reference(mode):
    from transformers.image_transforms import convert_to_rgb

    picture = noise(20, 30).convert(mode)
    assert np.array_equal(np.asarray(load_image(picture)), np.asarray(convert_to_rgb(picture)))


def test_an_animated_picture_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for kind in ["GIF", "PNG"] + ["WEBP"] * features.check("webp"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        uri = saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert load_image(uri).getpixel((3, 3)) == (255, 0, 0), kind


# ---------------------------------------------------------------- clips


def test_every_source_of_a_clip_gives_the_same_frames(server, tmp_path):
    path = clip(tmp_path / "a.mp4", 10)
    data = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), path.as_uri(), f"{server}/a.mp4", data):
        assert numbers(sampled(source, nframes=4)) == [0, 2, 5, 7], describe(source)
    frames = [noise(20, 30, seed) for seed in range(3)]
    for source in (frames, tuple(frames), np.stack(frames)):
        got = read_video(source, sample_frames, lambda frame, n: (np.asarray(frame), n))
        assert [n for _, n in got] == [3] * 3, "every frame of a list is taken"
        assert all(np.array_equal(one, frame) for (one, _), frame in zip(got, frames, strict=True))


@pytest.mark.parametrize(
    "suffix, codec", [("mp4", "mpeg4"), ("mkv", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx")]
)
def test_the_sampled_frames_are_those_asked_for(tmp_path, suffix, codec):
    path = clip(tmp_path / f"a.{suffix}", 50, codec=codec)
    with av.open(str(path)) as container:
        states_count = container.streams.video[0].frames > 0
    assert states_count == (suffix in ("mp4", "avi")), "both kinds of container are met"
    assert numbers(sampled(path)) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert numbers(sampled(path, fps=1)) == [0, 12, 25, 37]
    assert numbers(sampled(path, nframes=3)) == [0, 25]
    assert numbers(sampled(path, nframes=1)) == [0]
    assert numbers(read_video(path, lambda total, rate: [total - 1], keep)) == [49]
    with pytest.raises(ValueError, match=r"60.*50 frames"):
        sampled(path, nframes=60)


def test_variable_frame_rate_is_sampled_by_number(tmp_path):
    times = [0, 1, 2, 3, 30, 31, 32, 60, 61, 99]
    path = clip(tmp_path / "a.mkv", 10, times=times)
    assert numbers(sampled(path, nframes=10)) == list(range(10))
    frames = sampled(path, fps=1)
    assert 4 <= len(frames) <= 10 and numbers(frames) == [i * 10 // len(frames) for i in range(len(frames))]


def test_a_wrongly_stated_frame_count_is_mended(tmp_path):
    path = clip(tmp_path / "a.avi", 20)
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[at : at + 4], "little") == 20
    data[at : at + 4] = (200).to_bytes(4, "little")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 200
    assert numbers(sampled(path, nframes=4)) == [0, 5, 10, 15]


def test_a_clip_filmed_with_the_phone_turned_is_upright(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:, :32] = 255  # the left half is white
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()

    def matrix(a: int, b: int, c: int, d: int) -> bytes:
        return b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 2**30))

    at = data.index(matrix(65536, 0, 0, 65536), data.index(b"tkhd"))
    # ISO 14496-12: x' = a*x + c*y, y' = b*x + d*y. This is a quarter turn clockwise: a phone held upright.
    path.write_bytes(data[:at] + matrix(0, 65536, -65536, 0) + data[at + 36 :])
    frame = np.asarray(sampled(path, nframes=2)[0])
    assert frame.shape == (64, 48, 3)
    assert frame[:24].mean() > 240 and frame[40:].mean() < 15, "what was at the left is at the top"


def test_a_long_clip_is_read_in_bounded_memory(tmp_path):
    path = clip(tmp_path / "long.mp4", 6000, size=(16, 16))
    alive, peak = [], 0

    def watch(frame, n):
        nonlocal alive, peak
        alive = [ref for ref in [*alive, weakref.ref(frame)] if ref() is not None]
        peak = max(peak, len(alive))
        return n

    assert read_video(path, sample_frames, watch) == [768] * 768, "600 s at 2 fps, held to 768"
    assert peak <= 2


def test_bad_clips_are_one_line_errors_that_name_them(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a clip")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    (tmp_path / "empty.mkv").write_bytes(clip(tmp_path / "b.mkv", 5).read_bytes()[:600])
    for source, kind, named in [
        ("none.mp4", FileNotFoundError, "none.mp4"),
        ("broken.mp4", ValueError, "broken.mp4"),
        ("sound.wav", ValueError, "no video"),
        ("empty.mkv", ValueError, "0 frames"),
        ([], ValueError, "at least 1 frame"),
        (5, ValueError, "5"),
    ]:
        with pytest.raises(kind, match=named) as error:
            sampled(str(tmp_path / source) if isinstance(source, str) else source)
        assert "\n" not in str(error.value)
