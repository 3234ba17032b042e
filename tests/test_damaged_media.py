"""Damaged, uneven, odd and hostile images and videos: answered where that is right, else refused.

Each group tries variants that a generator makes; a failure names its variant.
"""

import io
import itertools
import logging
import os
import random
import re
import socket
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, features

from processor import sample_frames
from qwen2vl_extras import download, sources, video
from qwen2vl_extras.media import load_image, read_video
from tests.helpers import odd_media
from tests.helpers.drawn_media import frame_numbers, keep_frame, noise
from tests.helpers.odd_media import (
    Clip,
    busy_frames,
    damage_packets,
    encode,
    numbered_frames,
    remux,
    spoil,
)

INTRA = [  # each frame by itself
    Clip("avi", "mjpeg", "yuvj420p"),
    Clip("matroska", "mjpeg", "yuvj420p"),
    Clip("mov", "png", "rgb24"),
    Clip("mp4", "libx264", options={"g": "1"}),
    Clip("matroska", "libvpx-vp9", options={"g": "1"}),
    Clip("webm", "libvpx", options={"g": "1"}),
]
PREDICTED = [
    Clip("mp4", "libx264"),
    Clip("mp4", "libx264", options={"bf": "0"}),
    Clip("matroska", "libx264", options={"g": "10"}),
    Clip("mp4", "mpeg4"),
    Clip("avi", "mpeg4"),
    Clip("mov", "mpeg4", options={"bf": "2"}),
    Clip("webm", "libvpx"),
    Clip("webm", "libvpx-vp9"),
    Clip("mpegts", "libx264"),
    Clip("mpegts", "mpeg2video", options={"bf": "2"}),
    Clip("flv", "flv"),
    Clip("asf", "wmv2"),
]


def every_frame(total: int, rate: float) -> list[int]:
    return list(range(total))


def numbers(source, choose=every_frame, **part) -> list[int]:
    """The numbers of the chosen frames of a clip of numbered frames."""
    frames = read_video(source, choose, keep_frame, **part)
    return frame_numbers([frame.crop((0, 0, 64, 48)) for frame in frames])


def refusal(call, *kinds: type[Exception]) -> str:
    """The message of the error of a call: one line, not too long, within a minute."""
    with pytest.raises(kinds) as error:
        odd_media.within_a_minute(call)
    message = str(error.value)
    assert message and "\n" not in message, message
    assert len(message) < 600
    return message


# -------------------------------------------------------------------------------------- broken EXIF


def exif_block(orientation: object, kind: int = 3, order: str = "<") -> bytes:
    """A TIFF block with the one tag Orientation, of any type (3: short, 2: text, 5: rational)."""
    byte_order = b"II" if order == "<" else b"MM"
    head = byte_order + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, kind, 1)
    if kind == 3:
        return head + struct.pack(order + "HHI", orientation, 0, 0)
    if kind == 2:
        return head + orientation.encode()[:4].ljust(4, b"\0") + bytes(4)
    return head + struct.pack(order + "III", len(head) + 8, 0, 0) + struct.pack(order + "I", 1)


def broken_exif(rng: random.Random) -> dict[str, bytes]:
    """Blocks that say nothing about how the image is turned."""
    valid = exif_block(6)
    blocks = {
        "nothing": b"",
        "blank": bytes(40),
        "header only": b"Exif\0\0",
        "doubled header": b"Exif\0\0Exif\0\0" + valid[:4],
        "text": b"this is no EXIF block at all",
        "orientation 0": exif_block(0),
        "orientation 9": exif_block(9),
        "orientation 65535": exif_block(65535, order=">"),
        "orientation as text": exif_block("6", kind=2),
        "orientation as a word": exif_block("top", kind=2),
        "rational orientation": exif_block(6, kind=5),
        "spaces": b" " * 60,
    }
    for length in range(1, 18):  # before the tag's value
        blocks[f"cut after {length}"] = valid[:length]
    for seed in range(12):
        blocks[f"noise {seed}"] = b"II*\0" + b"\xff" * 4 + rng.randbytes(30)
    return blocks


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    image = noise(6, 9)
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = save(image, kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    blocks = broken_exif(random.Random(0))
    for name, block in blocks.items():
        found = np.asarray(load_image(save(image, kind, exif=block, **options)))
        assert np.array_equal(found, expected), name
    assert len(blocks) >= 40

    # A negative control: a whole block does turn the image.
    assert load_image(save(image, kind, exif=b"Exif\0\0" + exif_block(6), **options)).size == (6, 9)


def test_images_with_any_change_in_their_exif_are_answered(amount):
    image = noise(6, 9)
    rng = random.Random(1)
    turns = [np.asarray(image), np.asarray(image)[::-1]]
    turns += [turn[:, ::-1] for turn in turns]
    turns += [turn.transpose(1, 0, 2) for turn in turns]
    valid = b"Exif\0\0" + exif_block(6)
    for trial in range(amount(200, 5000)):
        block = bytearray(valid)
        for _ in range(rng.choice([1, 2, 5])):
            block[rng.randrange(len(block))] = rng.randrange(256)
        found = np.asarray(load_image(save(image, "PNG", exif=bytes(block))))
        assert any(np.array_equal(found, turn) for turn in turns), (trial, bytes(block))


def test_a_tiff_of_any_orientation_is_answered():
    image = noise(6, 9)
    data = save(image, "TIFF", tiffinfo={0x0112: 6})
    assert load_image(data).size == (6, 9)
    entry = data.index(struct.pack("<HHI", 0x0112, 3, 1)) + 8
    for value in (0, 1, 9, 300, 65535):
        changed = data[:entry] + struct.pack("<H", value) + data[entry + 2 :]
        assert np.array_equal(np.asarray(load_image(changed)), np.asarray(image)), value


def save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---------------------------------------------------------------------------------- damaged packets


def damage(clip: Clip, count: int, how: str, seed: int, first: int = 1) -> tuple[bytes, set[int]]:
    """A clip of 40 frames with `count` damaged packets, from packet `first` on, and which."""
    rng = random.Random(f"{clip}{how}{seed}")
    whole = encode(clip, busy_frames(40, rng))
    bad = set(rng.sample(range(first, 40), count))

    if clip.container not in ("mpegts", "asf"):
        return damage_packets(whole, bad, how, rng), bad

    # There packets are in pieces in the file.
    def change(number: int, data: bytes) -> bytes:
        return spoil(data, how, rng) if number in bad else data

    return remux(clip.container, [whole], change), bad


def test_a_few_damaged_packets_shift_no_other_frame(amount, caplog):
    variants = list(itertools.product(INTRA, ("zero", "noise", "tail", "cut"), range(10)))
    random.Random(0).shuffle(variants)
    noted = 0
    for clip, how, seed in variants[: amount(16, 240)]:
        data, bad = damage(clip, 3, how, seed)
        caplog.clear()
        found = odd_media.within_a_minute(lambda data=data: numbers(data))
        assert len(found) == 40, (clip, how, seed)
        for i in set(range(40)) - bad:
            assert found[i] == i, (clip, how, seed, bad)
        # A decoder may still make something of half a packet, but not of zeros.
        lost = re.search(r"(\d+) of 40 frames are damaged", caplog.text)
        if how == "zero":
            assert lost and int(lost[1]) == 3, (clip, how, seed, caplog.text)
            noted += 1
            for i in bad:  # what was shown before it
                assert found[i] == max(set(range(i)) - bad), (clip, how, seed)
    assert noted >= 2


def test_clips_of_every_codec_are_read_with_a_few_damaged_packets(amount, caplog):
    variants = list(itertools.product(PREDICTED, ("zero", "noise", "tail", "cut"), range(10)))
    random.Random(0).shuffle(variants)
    for clip, how, seed in variants[: amount(16, 480)]:
        data, bad = damage(clip, 1, how, seed, first=20)
        found = odd_media.within_a_minute(lambda data=data: numbers(data))
        # In a transport stream FFmpeg's parser drops what is no frame, and counts the rest.
        assert len(found) == 40 or clip.container == "mpegts", (clip, how, seed)
        # Before the damage nothing is lost; frames that are shown before may be stored after it.
        assert found[: min(bad) - 4] == list(range(min(bad) - 4)), (clip, how, seed)


def test_much_damage_is_refused_with_its_count(amount):
    variants = list(itertools.product(INTRA + PREDICTED, ("zero", "noise"), range(10)))
    random.Random(0).shuffle(variants)
    # In a transport stream FFmpeg's parser drops what is no frame; in ASF noise may be a picture.
    clips = [one for one in variants if one[0].container not in ("mpegts", "asf")]
    for clip, how, seed in clips[: amount(10, 160)]:
        data, _ = damage(clip, 16, how, seed)
        message = refusal(lambda data=data: numbers(data), ValueError)
        assert re.search(r"\d+ of \d+ frames are damaged", message), (clip, how, seed, message)


def test_a_clip_that_was_cut_off_gives_what_is_there(caplog):
    data = encode(Clip("avi", "mpeg4"), busy_frames(40, random.Random(0)))
    start = data.index(b"movi")
    for share in (0.3, 0.5, 0.9):
        found = numbers(data[: start + int((len(data) - start) * share)], sample_frames)
        assert found == sorted(set(found)), share
        assert 0 < max(found) < 40 * share + 2
    assert "40 frames by its header" in caplog.text


# ------------------------------------------------------------------------------- times and rates


@pytest.mark.parametrize("container", ["matroska", "mp4"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_times_are_believed_where_the_header_denies_them(container, codec):
    # 100 frames in ten seconds; the header says a thousand a second.
    times = [100 * i for i in range(100)]
    unit = Fraction(1, 1000)
    clip = Clip(container, codec)
    data = encode(clip, numbered_frames(100), times, rate=1000, unit=unit)
    seen = []

    def choose(total: int, rate: float) -> list[int]:
        seen.append((total, rate))
        return sample_frames(total, rate, fps=1)

    found = numbers(data, choose)
    assert seen[0] == (100, pytest.approx(10, rel=0.02))
    assert found == [i * 100 // len(found) for i in range(len(found))]
    assert len(found) in (8, 10)
    assert numbers(data, start=2, end=3) == list(range(20, 31))


def test_a_part_of_an_uneven_clip_is_chosen_by_times(amount):
    rng = random.Random(0)
    containers = [Clip("matroska", "mpeg4"), Clip("mp4", "libx264"), Clip("mov", "mpeg4")]
    for trial in range(amount(12, 120)):
        # A few seconds at ten frames a second, then frames far apart.
        gaps = [rng.choice([1, 1, 1, 20, 30]) for _ in range(19)] + [40]
        times = [sum(gaps[:i]) for i in range(20)]
        clip = containers[trial % len(containers)]
        shift = rng.choice([0, 0, 55])  # clips need not start at 0
        data = encode(clip, numbered_frames(20), [time + shift for time in times])
        start, end = sorted(rng.sample(range(times[-1]), 2))
        expected = [i for i, time in enumerate(times) if start <= time <= end]
        if not expected:  # the frame that is shown meanwhile
            expected = [max(i for i, time in enumerate(times) if time <= start)]
        found = numbers(data, start=start / 10, end=end / 10)
        assert found == expected, (clip, times, start, end)


def test_a_lost_and_late_start_counts_from_the_first_frame():
    for container, codec in (("mp4", "libx264"), ("matroska", "mpeg4"), ("mpegts", "libx264")):
        times = [i + 70 for i in range(20)]
        data = encode(Clip(container, codec), numbered_frames(20), times)
        assert numbers(data) == list(range(20)), container
        assert numbers(data, start=0.5, end=1) == [5, 6, 7, 8, 9, 10], container


def test_a_cover_picture_is_no_video_where_there_is_one():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        try:
            cover.disposition = Disposition.attached_pic
        except (AttributeError, TypeError):
            pytest.skip("this PyAV can't write a cover picture")
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        container.mux(cover.encode(picture) + cover.encode())
        for pixels in numbered_frames(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    with av.open(io.BytesIO(file.getvalue())) as container:  # it is what it should be
        marks = [bool(one.disposition & Disposition.attached_pic) for one in container.streams]
        assert sorted(marks) == [False, True]
    assert numbers(file.getvalue()) == list(range(10))


def test_clips_without_times_are_read_in_their_order():
    for container, codec in (("h264", "libx264"), ("m4v", "mpeg4"), ("mpeg2video", "mpeg2video")):
        options = {"bf": "0"} if codec != "libx264" else {}
        data = encode(Clip(container, codec, options=options), numbered_frames(30))
        found = numbers(data)
        assert found[:28] == list(range(28)), container
        assert numbers(data, lambda total, rate: [0, 7, 20]) == [0, 7, 20], container


# ------------------------------------------------------------------------------------------- seeks

GOPS = [
    Clip("mp4", "libx264", options={"g": "30"}),
    Clip("mp4", "libx264", options={"x264-params": "open-gop=1:keyint=24:bframes=3"}),
    Clip("matroska", "libx264", options={"x264-params": "open-gop=1:keyint=25:bframes=3"}),
    Clip("mp4", "libx264", options={"x264-params": "intra-refresh=1:keyint=25"}),
    Clip("matroska", "libx264", options={"x264-params": "intra-refresh=1:keyint=25"}),
    Clip("mov", "mpeg4", options={"g": "20", "bf": "2"}),
    Clip("matroska", "mpeg2video", options={"g": "18", "bf": "2"}),
    Clip("webm", "libvpx", options={"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    Clip("webm", "libvpx-vp9", options={"g": "24"}),
    Clip("avi", "mpeg4", options={"g": "20", "bf": "2"}),  # and some without an index
    Clip("mpegts", "libx264", options={"g": "20"}),
    Clip("mpegts", "mpeg2video", options={"g": "12", "bf": "2"}),
    Clip("flv", "flv", options={"g": "20"}),
    Clip("asf", "wmv2", options={"g": "20"}),
]


@pytest.mark.parametrize("clip", GOPS, ids=str)
def test_frames_after_a_seek_equal_those_of_decoding_everything(clip, amount, monkeypatch):
    rng = random.Random(str(clip))
    decoded = []
    decode_segment = video.decode_segment

    def spy(opened, number_of, key, last, kept):
        decoded.append(last + 1 - key)
        return decode_segment(opened, number_of, key, last, kept)

    for count in amount([150], [100, 150, 333]):
        data = encode(clip, busy_frames(count, rng))
        everything = read_video(data, every_frame, keep_frame)
        assert frame_numbers([f.crop((0, 0, 64, 48)) for f in everything]) == list(range(count))
        monkeypatch.setattr(video, "decode_segment", spy)
        for _ in range(amount(4, 12)):
            chosen = sorted(rng.sample(range(count), rng.choice([1, 2, 5])))
            decoded.clear()
            frames = read_video(data, lambda total, rate, chosen=chosen: chosen, keep_frame)
            for number, frame in zip(chosen, frames, strict=True):
                assert np.array_equal(frame, everything[number]), (clip, number, chosen)
        # The last frame alone: little is decoded where there is an index.
        decoded.clear()
        read_video(data, lambda total, rate: [total - 1], keep_frame)
        is_indexed = clip.container not in ("avi", "mpegts", "flv", "asf")
        assert (decoded[0] <= count // 2) == is_indexed
        monkeypatch.undo()


# --------------------------------------------------------------------------- size, transparency


@pytest.mark.parametrize(
    "clip",
    [
        Clip("matroska", "libvpx"),
        Clip("matroska", "libvpx-vp9"),
        Clip("matroska", "mjpeg", "yuvj420p"),
        Clip("mpegts", "libx264"),
        Clip("mpegts", "mpeg2video"),
    ],
    ids=str,
)
def test_all_frames_have_the_size_of_the_first(clip):
    sizes = [(64, 48), (128, 96), (96, 64)]
    parts = [encode(clip, numbered_frames(10, *size)) for size in sizes]
    for order in itertools.permutations(range(3)):
        if clip.container == "mpegts":  # files that are glued together
            data = remux("mpegts", [parts[i] for i in order])
        else:
            data = remux("matroska", [parts[i] for i in order])
        frames = read_video(data, every_frame, keep_frame)
        assert len(frames) == 30
        assert {frame.size for frame in frames} == {sizes[order[0]]}, order
        middle = read_video(data, every_frame, keep_frame, start=1, end=1.5)
        assert {frame.size for frame in middle} == {sizes[order[1]]}, order


@pytest.mark.parametrize(
    "clip",
    [
        Clip("webm", "libvpx-vp9", "yuva420p"),
        Clip("webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        Clip("mov", "qtrle", "argb"),
        Clip("mov", "png", "rgba"),
        Clip("apng", "apng", "rgba"),
        Clip("matroska", "ffv1", "yuva420p"),
        Clip("mov", "prores_ks", "yuva444p10le"),
    ],
    ids=str,
)
def test_transparent_clips_lie_on_white(clip):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[..., 0] = 200  # red
    pixels[..., 3] = 255
    pixels[:, :32, 3] = 0  # and clear at the left
    for frame in read_video(encode(clip, [pixels] * 6), every_frame, keep_frame):
        left, right = frame.getpixel((8, 20)), frame.getpixel((56, 20))
        assert np.abs(np.subtract(left, (255, 255, 255))).max() <= 4
        assert np.abs(np.subtract(right, (200, 0, 0))).max() <= 12


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_animated_images_are_videos_with_their_times(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    first, *others = [Image.fromarray(pixels) for pixels in numbered_frames(8)]
    durations = [100, 100, 100, 1000, 100, 100, 100, 100]
    options = {"save_all": True, "append_images": others, "duration": durations}
    data = save(first, kind, **options)
    assert numbers(data) == list(range(8))
    assert numbers(data, start=0, end=0.25) == [0, 1, 2]
    assert numbers(data, start=1.25, end=1.45) == [4, 5]
    clear = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    other = Image.new("RGBA", (64, 48), (0, 0, 255, 255))
    data = save(clear, kind, save_all=True, append_images=[other], duration=100)
    found = [frame.getpixel((5, 5)) for frame in read_video(data, every_frame, keep_frame)]
    assert found[0] == (255, 255, 255), kind
    assert np.abs(np.subtract(found[1], (0, 0, 255))).max() <= 3, kind


# ------------------------------------------------------------------------------------ hostile files


def test_what_is_no_regular_file_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    cases = {"/dev/zero": "device", "/dev/urandom": "device", str(tmp_path): "directory"}
    cases |= {str(tmp_path / "fifo"): "FIFO", str(tmp_path / "socket"): "socket"}
    for path, named in cases.items():
        for place in (path, Path(path), f"file://{path}"):
            for read in (load_image, numbers):
                message = refusal(lambda read=read, place=place: read(place), OSError)
                assert named in message, message
                assert Path(path).name in message
    listener.close()


def test_no_other_file_is_read_because_a_playlist_names_it(tmp_path):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(encode(Clip("mpegts", "mpeg2video"), numbered_frames(5)))
    assert len(numbers(secret)) == 5
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "b.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nfile://{secret}\n",
        "c.txt": f"ffconcat version 1.0\nfile '{secret}'\n",
        "d.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
        "e.txt": "plain words, which FFmpeg would draw as a terminal\n" * 50,
        "f.mpd": f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>',
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        refusal(lambda name=name: numbers(tmp_path / name), ValueError)


def test_huge_images_are_refused_before_they_are_decoded():
    def png(width: int, height: int) -> bytes:
        """A PNG of this size with no content."""
        data = bytearray(save(Image.new("RGB", (1, 1)), "PNG"))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)

    for width, height in ((2**31 - 1, 2**31 - 1), (100_000, 100_000), (10**9, 1)):
        message = refusal(lambda size=(width, height): load_image(png(*size)), ValueError)
        assert "pixels" in message


def test_huge_frames_are_refused(monkeypatch):
    data = encode(Clip("mp4", "mpeg4"), numbered_frames(3))
    monkeypatch.setattr(video, "MAX_VIDEO_PIXELS", 1000)
    assert "64 x 48" in refusal(lambda: numbers(data), ValueError)
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_VIDEO_FRAMES", 2)
    assert "2 frames" in refusal(lambda: numbers(data), ValueError)


def test_postscript_is_not_run():
    assert "PostScript" in refusal(lambda: load_image(save(noise(9, 9), "EPS")), ValueError)


# ------------------------------------------------------------------------------------------ servers


@pytest.fixture
def small_limits(monkeypatch) -> None:
    """Limits that a test can wait for."""
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    monkeypatch.setattr(sources, "MAX_BYTES", {"image": 2**20, "video": 2**20})


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (odd_media.endless, "1048576 bytes"),
        (odd_media.one_byte_at_a_time, "bytes came in 1 s"),
        (odd_media.slow_headers, "0 bytes came in 1 s"),
        (odd_media.silent, "1 s|timed out"),
        (odd_media.cut_short, "broke off, 990 bytes"),
        (odd_media.redirect_to("file:///etc/passwd"), "redirected to file:"),
        (odd_media.redirect_to("FILE:///etc/passwd"), "redirected to file:"),
        (odd_media.redirect_to("data:image/png;base64,AAAA"), "redirected to data:"),
        (odd_media.redirect_to("ftp://127.0.0.1/a"), "redirected to ftp:"),
        (odd_media.redirect_to("gopher://127.0.0.1/a"), "redirected to gopher:"),
        (odd_media.redirect_to("/again"), "more than 10 times"),
    ],
)
def test_a_bad_server_is_an_error_that_names_the_limit(answer, named, small_limits):
    with odd_media.serve(answer) as url:
        for read in (load_image, numbers):
            message = refusal(lambda read=read: read(url), OSError)
            assert re.search(named, message), message
            assert url in message


def test_a_slow_server_that_sends_enough_is_waited_for(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    content = save(noise(40, 40), "PNG")

    def in_parts(handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for i in range(0, len(content), 1000):
            handler.wfile.write(content[i : i + 1000])
            odd_media.time.sleep(0.4)

    with odd_media.serve(in_parts) as url:
        assert odd_media.within_a_minute(lambda: load_image(url)).size == (40, 40)


def test_the_whole_time_of_a_download_is_limited(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setattr(download, "MAX_SECONDS", 1.0)
    with odd_media.serve(odd_media.endless) as url:
        monkeypatch.setattr(sources, "MAX_BYTES", {"image": 2**50, "video": 2**50})
        assert "1 s" in refusal(lambda: load_image(url), OSError)


def test_a_long_data_uri_is_refused(small_limits):
    for uri in ("data:image/png;base64," + "A" * 2**22, "data:," + "%41" * 2**21):
        assert "1048576 bytes" in refusal(lambda uri=uri: load_image(uri), OSError)


@pytest.fixture(autouse=True)
def notes_in_the_log(caplog) -> None:
    caplog.set_level(logging.WARNING, logger="qwen2vl")
