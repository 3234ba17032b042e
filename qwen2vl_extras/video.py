"""Decode the frames of a video file that its caller chooses, however damaged or uneven it is.

A first pass lists the packets, which decodes nothing: how many frames there are, when each is
shown, and which are key frames, from which decoding can begin. The second decodes what is chosen,
and seeks to a key frame where that skips enough. The frame that comes is known by its time, so
that what is skipped or lost shifts no other frame. As soon as something is not as listed, a third
pass decodes everything from the beginning, and counts what is damaged.

All frames get the size of the first chosen one; transparent pixels become white.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO, Generic, NoReturn, TypeAlias, TypeVar, cast

from PIL import Image

from qwen2vl_extras.errors import note
from qwen2vl_extras.rgb import to_rgb
from qwen2vl_extras.timeline import Timeline

if TYPE_CHECKING:  # slow to import and seldom needed
    import av
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# What a caller makes of a frame.
Prepared = TypeVar("Prepared")
# (how many frames a video has, frames a second) -> the indices of those to keep, ascending.
ChooseFrames: TypeAlias = Callable[[int, float], list[int]]
# (a frame, how many are kept) -> what to keep of it.
PrepareFrame: TypeAlias = Callable[[Image.Image, int], Prepared]

MAX_VIDEO_PIXELS = 2**26  # of a frame: 8192 x 8192
MAX_VIDEO_SIDE = 2**14  # pixels of a side of a frame
MAX_VIDEO_FRAMES = 2**23  # 77 hours at 30 a second
MAX_DAMAGE = 0.1  # the share of packets that may be damaged
MAX_LOSS = 0.25  # the share of frames that may be lost with them: a key frame takes others along
DEFAULT_DURATION = 100  # milliseconds of a frame of an animation that states none
MAX_HELD_BACK = 64  # frames that a decoder may hold back, after each an error
MIN_SKIPPED = 16  # frames; to seek costs about as much as to decode a few
# Containers that state exactly where their key frames are.
MOV = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
# The decoders that see transparency, which FFmpeg's own don't.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
TEXT_FORMATS = ("tty", "bin", "xbin", "adf", "idf")  # FFmpeg draws any text as an old terminal


def read_video_file(
    file: BinaryIO,
    name: str,
    choose_frames: ChooseFrames,
    prepare_frame: PrepareFrame[Prepared],
    start: float = 0.0,
    end: float = math.inf,
) -> list[Prepared]:
    """What prepare_frame makes of each chosen frame between `start` and `end` seconds.

    name: of the file, for errors and notes.
    """
    import av

    reader = VideoFile(file, name, choose_frames, prepare_frame, start, end)
    try:
        if is_webp(file):  # FFmpeg reads no animated ones
            return reader.read_by_pillow()
        return reader.read(reader.list_packets())
    except MemoryError:
        raise MemoryError(f"not enough memory for the video {name}") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
        raise ValueError(f"cannot read the video {name}: {reason}") from error


def is_webp(file: BinaryIO) -> bool:
    """Whether a file is a WebP image, which may be animated."""
    file.seek(0)
    beginning = file.read(12)
    return beginning[:4] == b"RIFF" and beginning[8:] == b"WEBP"


# -------------------------------------------------------------------------- what comes out


class ChosenFrames(Generic[Prepared]):
    """The chosen frames of a video, prepared as soon as they come."""

    def __init__(self, chosen: list[int], prepare_frame: PrepareFrame[Prepared]) -> None:
        self.chosen = chosen
        self.prepare_frame = prepare_frame
        self.prepared: list[Prepared] = []
        self.previous: VideoFrame | None = None
        self.size: tuple[int, int] | None = None

    @property
    def is_complete(self) -> bool:
        return len(self.prepared) == len(self.chosen)

    def take(self, number: int, frame: "VideoFrame") -> None:
        """The next frame that is there.

        In place of a chosen frame that should have come earlier is what is shown at its time:
        the one before it.
        """
        while not self.is_complete and self.chosen[len(self.prepared)] < number:
            self.keep(image_of(self.previous or frame))
        while not self.is_complete and self.chosen[len(self.prepared)] == number:
            self.keep(image_of(frame))
        self.previous = frame

    def finish(self) -> list[Prepared]:
        """All of them; those after the last frame that came are that frame."""
        while not self.is_complete and self.previous is not None:
            self.keep(image_of(self.previous))
        return self.prepared

    def keep(self, image: Image.Image) -> None:
        """Prepare one, in the size of the first."""
        if self.size is None:
            self.size = image.size
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BICUBIC)
        self.prepared.append(self.prepare_frame(image, len(self.chosen)))


def image_of(frame: "VideoFrame") -> Image.Image:
    """A decoded frame as an upright RGB image."""
    check_size(frame.width, frame.height)
    is_transparent = frame.format.name == "pal8"
    for component in frame.format.components:
        is_transparent = is_transparent or component.is_alpha
    if is_transparent:
        image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        image = frame.to_image()
    # Phones store frames sideways and note the rotation, counter-clockwise as Pillow.
    rotation = round(frame.rotation / 90) * 90
    return image.rotate(rotation, expand=True)


def check_size(width: int, height: int) -> None:
    """ValueError for frames that are too large."""
    if width * height > MAX_VIDEO_PIXELS or max(width, height) > MAX_VIDEO_SIDE:
        raise ValueError(
            f"its frames have {width} x {height} pixels: the limit is {MAX_VIDEO_SIDE} a side and "
            f"{MAX_VIDEO_PIXELS} in all"
        )


# --------------------------------------------------------------------------------- decoding


@dataclass
class Damage:
    """What a pass found wrong: packets that can't be decoded, and frames that are marked as
    damaged; `arrived` are the numbers of the good frames.
    """

    errors: int = 0
    corrupt: int = 0
    arrived: list[int] = field(default_factory=list)


@dataclass
class OpenVideo:
    """An open container, its video stream, and the decoder."""

    container: "InputContainer"
    stream: "VideoStream"
    decoder: "VideoCodecContext"

    def frames(self, damage: Damage, stop_at_errors: bool) -> Iterator["VideoFrame"]:
        """The frames from here on, as they are shown; errors are counted, or end it."""
        import av

        # None makes the decoder give what it holds back; after an error it may hold more.
        for packet in itertools.chain(self.packets(damage), [None] * MAX_HELD_BACK):
            try:
                yield from self.decoder.decode(packet)
            except EOFError:  # it holds nothing more
                return
            except av.FFmpegError:
                damage.errors += 1
            if damage.errors > 0 and stop_at_errors:
                return

    def packets(self, damage: Damage) -> Iterator["av.Packet"]:
        """The packets from here on. It ends where the container can't be read further."""
        import av

        try:
            for packet in self.container.demux(self.stream):
                if packet.size > 0:  # an empty one says that the frame before is still shown
                    yield packet
        except av.FFmpegError:
            damage.errors += 1


@contextmanager
def open_video(file: BinaryIO, threads: bool = True) -> Iterator[OpenVideo]:
    """An open file as a video; ValueError if it is none. threads: decode on all cores."""
    import av

    file.seek(0)
    with av.open(file, "r", io_open=refuse_other_files) as container:
        stream = video_stream(container)
        if stream.codec_context is None:
            raise ValueError("there is no decoder for its codec")
        decoder = stream.codec_context
        check_size(decoder.width, decoder.height)
        if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
            decoder = cast(
                "VideoCodecContext", av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
            )
            decoder.extradata = stream.codec_context.extradata
        decoder.thread_type = "AUTO" if threads else "NONE"
        yield OpenVideo(container, stream, decoder)


def refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """What FFmpeg gets that asks for another file or URL, which a playlist may name."""
    raise OSError(f"it names another file, which is not opened: {url:.200}")


def video_stream(container: "InputContainer") -> "VideoStream":
    """The first video of a container; a cover picture only if there is no other."""
    import av

    streams = container.streams.video
    if not streams or container.format.name in TEXT_FORMATS:
        raise ValueError("it has no video stream")
    for stream in streams:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return streams[0]


@dataclass
class Listing:
    """What the packets of a video say, without decoding.

    times: of the packets, in units; None where a container gives none. targets: what to seek
    for, by the time of a key frame. hidden: times of VP8 frames that are only referred to.
    """

    times: list[int | None] = field(default_factory=list)
    targets: dict[int, int] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)
    num_packets: int = 0

    def add(self, packet: "av.Packet", container: str, codec: str) -> None:
        """One more packet; ValueError if there are too many."""
        self.num_packets += 1
        if packet.is_discard:  # an edit list leaves it out
            return
        self.times.append(packet.pts)
        if len(self.times) > MAX_VIDEO_FRAMES:
            raise ValueError(f"it has over {MAX_VIDEO_FRAMES} frames, the limit")
        if packet.pts is None:
            return
        # MOV counts by the time of decoding where it seeks.
        target = packet.dts if container == MOV else packet.pts
        if packet.is_keyframe and target is not None and container in (MOV, MATROSKA):
            self.targets[packet.pts] = target
        is_hidden = codec == "vp8" and not bytes(packet)[0] & 0x10  # RFC 6386, section 9.1
        if is_hidden:
            self.hidden.add(packet.pts)

    def timeline(self, stated_rate: float, unit: float) -> Timeline:
        """The timeline; without times unless each frame has one of its own."""
        pts = sorted(time for time in set(self.times) if time is not None)
        if len(pts) < len(self.times):
            return Timeline(len(self.times), stated_rate)
        keys = {}
        for key_pts, target in sorted(self.targets.items()):
            keys[bisect.bisect_left(pts, key_pts)] = target
        timeline = Timeline(len(pts), stated_rate, pts, unit, keys)
        if not self.hidden:
            return timeline
        # A damaged packet may look hidden, but it leaves a gap, or is the last.
        shown = [number for number, time in enumerate(pts) if time not in self.hidden]
        if pts[-1] in self.hidden or timeline.has_gaps_with_only(shown):
            return timeline
        return timeline.only(shown)


class VideoFile(Generic[Prepared]):
    """One video file, and what its caller wants of it."""

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        choose_frames: ChooseFrames,
        prepare_frame: PrepareFrame[Prepared],
        start: float,
        end: float,
    ) -> None:
        self.file = file
        self.name = name
        self.choose_frames = choose_frames
        self.prepare_frame = prepare_frame
        self.start = start
        self.end = end

    def choose(self, timeline: Timeline) -> list[int]:
        """The numbers of the chosen frames, counted from the beginning of the video."""
        first, stop, rate = timeline.part(self.start, self.end)
        return [first + i for i in self.choose_frames(stop - first, rate)]

    def list_packets(self) -> Timeline:
        """The first pass: the timeline by the times of the packets."""
        listing = Listing()
        with open_video(self.file) as video:
            stream = video.stream
            for packet in video.packets(Damage()):
                listing.add(packet, video.container.format.name, stream.codec_context.name)
            stated_rate = float(stream.average_rate or stream.guessed_rate or 0)
            unit = float(stream.time_base or 1)
            stated_total = stream.frames
        if not listing.times:
            raise ValueError("it has 0 frames")
        if stated_total > listing.num_packets:
            note(
                f"video {self.name}: {stated_total} frames by its header, "
                f"{listing.num_packets} are there"
            )
        return listing.timeline(stated_rate, unit)

    def read(self, timeline: Timeline) -> list[Prepared]:
        """The chosen frames, the fast way if nothing is wrong, else the careful one."""
        chosen = self.choose(timeline)
        prepared = self.decode_chosen(timeline, chosen)
        # A container may call a key frame what is none.
        if prepared is None and timeline.keys:
            prepared = self.decode_chosen(replace(timeline, keys={}), chosen)
        if prepared is None:
            prepared = self.decode_all(timeline, chosen)
        return prepared

    def decode_chosen(self, timeline: Timeline, chosen: list[int]) -> list[Prepared] | None:
        """The second pass: no frame but those needed, on all cores; None if anything is wrong."""
        kept = ChosenFrames(chosen, self.prepare_frame)
        number_of = timeline.number_of()
        with open_video(self.file) as video:
            for key, last in segments(chosen, list(timeline.keys)):
                if key > 0:
                    video.container.seek(timeline.keys[key], stream=video.stream)
                    video.decoder.flush_buffers()
                if not decode_segment(video, number_of, key, last, kept):
                    return None
        return kept.prepared

    def decode_all(self, timeline: Timeline, chosen: list[int]) -> list[Prepared]:
        """The third pass: every frame, on one core, where each error is that of one packet."""
        kept = ChosenFrames(chosen, self.prepare_frame)
        damage = Damage()
        number_of = timeline.number_of()
        number = -1
        with open_video(self.file, threads=False) as video:
            for frame in video.frames(damage, stop_at_errors=False):
                before = number
                if timeline.pts:
                    number = number_of.get(frame.pts, -1)
                else:
                    number = before + 1 + damage.errors
                if number <= before:  # the times are wrong: without them
                    return self.read(Timeline(timeline.total, timeline.stated_rate))
                if frame.is_corrupt:
                    damage.corrupt += 1
                    continue
                damage.arrived.append(number)
                kept.take(number, frame)
        return self.judge(timeline, damage, kept)

    def judge(
        self, timeline: Timeline, damage: Damage, kept: ChosenFrames[Prepared]
    ) -> list[Prepared]:
        """What the third pass kept, with a note of what is lost; ValueError if that is too much.

        If nothing is damaged and there are fewer frames than packets, they are chosen again.
        """
        num_damaged = damage.errors + damage.corrupt
        total = timeline.total
        lost = total - len(damage.arrived)
        if lost > 0 and num_damaged == 0:
            if not timeline.has_gaps_with_only(damage.arrived):
                if not damage.arrived:
                    raise ValueError("it has 0 frames")
                return self.read(timeline.only(damage.arrived))
            num_damaged = lost  # the decoder has dropped them and said nothing
        if lost <= 0:
            return kept.finish()
        if num_damaged > MAX_DAMAGE * total or lost > MAX_LOSS * total:
            raise ValueError(f"{lost} of {total} frames are damaged, more than a tenth")
        note(
            f"video {self.name}: {lost} of {total} frames are damaged, "
            "the frames before them stand in for them"
        )
        return kept.finish()

    def read_by_pillow(self) -> list[Prepared]:
        """An animated image: all frames are decoded for their times, then the chosen ones."""
        try:
            self.file.seek(0)
            with Image.open(self.file) as image:
                check_size(image.width, image.height)
                return self.read_animation(image)
        except MemoryError:
            raise
        except Exception as error:  # on broken files Pillow's readers raise a dozen types
            raise ValueError(str(error)) from error

    def read_animation(self, image: Image.Image) -> list[Prepared]:
        """The chosen frames of an open animated image."""
        # When each is shown, in milliseconds.
        times = []
        now = 0
        total = getattr(image, "n_frames", 1)
        for number in range(total):
            image.seek(number)
            image.load()
            times.append(now)
            now += round(image.info.get("duration") or DEFAULT_DURATION)
        prepared = []
        chosen = self.choose(Timeline(total, pts=times, unit=0.001))
        for number in chosen:
            image.seek(number)
            prepared.append(self.prepare_frame(to_rgb(image.copy()), len(chosen)))
        return prepared


def segments(chosen: list[int], keys: list[int]) -> list[tuple[int, int]]:
    """What to decode for the chosen frames: (the frame to begin at, the last chosen one), ...

    A segment begins at a key frame, and only where that skips MIN_SKIPPED frames.
    """
    parts: list[tuple[int, int]] = []
    position = 0  # the next frame that would be decoded
    begin = 0
    for number in chosen:
        before = bisect.bisect_right(keys, number)
        key = keys[before - 1] if before > 0 else 0
        if key - position >= MIN_SKIPPED:
            begin = key
        elif parts:
            parts.pop()  # it goes on to this frame
        parts.append((begin, number))
        position = number + 1
    return parts


def decode_segment(
    video: OpenVideo,
    number_of: dict[int | None, int],
    key: int,
    last: int,
    kept: ChosenFrames[Prepared],
) -> bool:
    """Decode from a key frame to the last chosen one of a segment; False if anything is wrong.

    Frames before the key frame may come first, those that refer to what was skipped; from it on
    each must come, and be good. number_of: frames by their times; empty if these are unknown.
    """
    expected = key
    for frame in video.frames(Damage(), stop_at_errors=True):
        number = number_of.get(frame.pts, -1) if number_of else expected
        if expected == key and 0 <= number < key:
            continue
        if number != expected or frame.is_corrupt:
            return False
        kept.take(number, frame)
        if number == last:
            return True
        expected += 1
    return False
