"""Many questions with one load: what `--batch` runs.

    python qwen2vl.py --batch questions.jsonl --out answers.jsonl

Lines are read in windows. Within a window, lines whose settings are equal are sorted by size and
share batches that fit into the memory that is allowed; their records come out in the order of the
lines. A line's answer is that which it has alone: padding changes nothing, and a line that is
sampled has a random generator of its own. In float32 that holds to the last token; in 16-bit
dtypes two tokens that are nearly equally probable may change places.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from processor import BatchFeature, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration, Sampling
from qwen2vl_app.batch_lines import SAMPLING_KEYS, Line, conversation_of, media_options_of
from qwen2vl_app.batch_memory import MemoryEstimate, RowSize
from qwen2vl_app.progress import grids_of
from qwen2vl_app.records import answer_record
from qwen2vl_extras.checks import check_integer
from qwen2vl_extras.options import merged

WINDOW_LINES = 64  # that are prepared before the first of them is answered
PIXELS_SHARE = 0.25  # of the memory, for the patches of lines that wait; the rest is a batch's
# The longest row of a batch may have this share more tokens than the shortest, and so many besides:
# padding is computed in vain.
LONGER_SHARE, LONGER_TOKENS = 0.25, 32
LARGEST_SEED = 2**31  # of those that are drawn for lines without one

# Whatever one line may cause; all else is a mistake of this program. PyTorch has a RuntimeError
# for memory that a CPU has not got.
FAULTS = (ValueError, OSError, MemoryError, torch.OutOfMemoryError)
NO_MEMORY = "can't allocate memory"


@dataclass(frozen=True)
class AnswerSettings:
    """How an answer is generated, see `stream`. None: as generation_config.json says."""

    max_new_tokens: int
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class BatchDefaults:
    """What holds for lines that say nothing else: the options of the command line."""

    prompt: str = "Describe this image."
    system: str | None = None
    fps: float | None = None
    max_new_tokens: int = 512  # or as many as there is room for
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    compile: bool = False


@dataclass
class Row:
    """A line that is ready to be answered."""

    line: Line
    inputs: BatchFeature  # of this line alone
    settings: AnswerSettings
    sampling: Sampling
    seed: int
    size: RowSize
    seconds: float  # what it took to read its images and tokens


class BatchRunner:
    """Answers lines with one model.

    memory: bytes that waiting lines and one batch may take beside the weights; a line that needs
    more is answered alone.
    """

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        defaults: BatchDefaults,
        memory: float = 2e9,
    ) -> None:
        self.model = model
        self.processor = processor
        self.defaults = defaults
        self.memory = memory
        self.estimate = MemoryEstimate(model)

    def records(self, lines: Iterator[Line], bar: tqdm) -> Iterator[dict[str, object]]:
        """A record for each line, in the order of the lines; bar: counts what is done."""
        for window in self.windows(lines, bar):
            yield from self.answer_window(window, bar)

    # ------------------------------------------------------------------ lines to rows

    def windows(self, lines: Iterator[Line], bar: tqdm) -> Iterator[list[Row | dict]]:
        """Lines that are prepared together: rows, and the records of lines that are wrong."""
        window: list[Row | dict] = []
        pixels = 0.0
        for line in lines:
            prepared = self.prepare(line)
            window.append(prepared)
            if isinstance(prepared, Row):
                pixels += self.estimate.pixels(prepared.size)
            else:
                bar.update()
            if len(window) == WINDOW_LINES or pixels > PIXELS_SHARE * self.memory:
                yield window
                window = []
                pixels = 0.0
        if window:
            yield window

    def prepare(self, line: Line) -> Row | dict:
        """A line as a row, its images read; or the record that says what is wrong with it."""
        start = time.perf_counter()
        try:
            return self.make_row(line, start)
        except FAULTS as error:
            return error_record(line, error, time.perf_counter() - start)

    def make_row(self, line: Line, start: float) -> Row:
        """ValueError or OSError for what is wrong with the line."""
        defaults = self.defaults
        messages = conversation_of(line, defaults.prompt, defaults.system)
        # What can be checked without its images comes first.
        chosen = self.chosen_settings(line)
        sampling = Sampling.resolve(self.model.config, self.model.generation_config, chosen)
        seed = self.seed(line)

        of_all = {} if defaults.fps is None else {"fps": defaults.fps}
        options = merged([of_all, media_options_of(line)])
        inputs = self.processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, **options
        )
        assert isinstance(inputs, BatchFeature)  # no string, since it is tokenized
        length = inputs.input_ids.shape[1]
        settings = AnswerSettings(self.answer_length(line, length), **chosen)
        size = row_size(inputs, settings.max_new_tokens)
        seconds = time.perf_counter() - start
        return Row(line, inputs, settings, sampling, seed, size, seconds)

    def chosen_settings(self, line: Line) -> dict:
        """How tokens are chosen, as the line states it, or else the command line."""
        chosen = {}
        for name in SAMPLING_KEYS:
            default = getattr(self.defaults, name, None)  # it has not all of them
            stated = line.fields.get(name)
            chosen[name] = default if stated is None else stated
        return chosen

    def seed(self, line: Line) -> int:
        """The seed of a line, of the command line, or else one that is drawn for it."""
        for stated in (line.fields.get("seed"), self.defaults.seed):
            if stated is not None:
                check_integer("seed", stated, 0, 2**63 - 1)
                return stated
        return random.randrange(LARGEST_SEED)

    def answer_length(self, line: Line, length: int) -> int:
        """How many tokens may follow a prompt of `length` tokens.

        What the line states must fit; of the default so much is taken as there is room for.
        """
        stated = line.fields.get("max_new_tokens")
        if stated is not None:
            return self.model.answer_length(length, stated, None)
        room = self.model.config.max_position_embeddings - length
        wanted = self.defaults.max_new_tokens
        return self.model.answer_length(length, min(wanted, room) if room > 0 else wanted, None)

    # --------------------------------------------------------------- rows to batches

    def batches(self, rows: list[Row]) -> list[list[Row]]:
        """Rows that are answered together, the batch with the earliest line first."""
        groups: dict[AnswerSettings, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.settings, []).append(row)
        batches: list[list[Row]] = []
        for group in groups.values():
            # Rows of about one length next to each other: little of a batch is padding.
            group.sort(key=row_length)
            batches += self.cut(group)
        batches.sort(key=first_number)
        return batches

    def cut(self, group: list[Row]) -> list[list[Row]]:
        """Sorted rows as batches: as large as memory allows, with little padding, never empty."""
        limit = (1 - PIXELS_SHARE) * self.memory
        batches: list[list[Row]] = []
        batch: list[Row] = []
        for row in group:
            if batch:
                longest = (1 + LONGER_SHARE) * row_length(batch[0]) + LONGER_TOKENS
                sizes = [one.size for one in (*batch, row)]
                if row_length(row) > longest or self.estimate.batch(sizes) > limit:
                    batches.append(batch)
                    batch = []
            batch.append(row)
        batches.append(batch)
        return batches

    # ------------------------------------------------------------- batches to records

    def answer_window(self, window: list[Row | dict], bar: tqdm) -> Iterator[dict[str, object]]:
        """The records of a window, each as soon as all before it are there."""
        done: dict[int, dict[str, object]] = {}
        order: deque[int] = deque()  # the numbers of lines whose records are still to come
        rows = []
        for one in window:
            if isinstance(one, Row):
                rows.append(one)
                order.append(one.line.number)
            else:
                done[one["line"]] = one
                order.append(one["line"])
        for batch in self.batches(rows):
            for row, record in zip(batch, self.answer(batch), strict=True):
                done[row.line.number] = record
            bar.update(len(batch))
            while order and order[0] in done:
                yield done.pop(order.popleft())
        while order:  # errors behind the last batch
            yield done.pop(order.popleft())

    def answer(self, batch: list[Row]) -> list[dict[str, object]]:
        """The records of a batch. If it fails, its rows are answered one by one."""
        start = time.perf_counter()
        try:
            answers = self.generate(batch)
        except (*FAULTS, RuntimeError) as error:
            is_fault = isinstance(error, FAULTS) or NO_MEMORY in str(error)
            if not is_fault:
                raise
            if len(batch) == 1:
                return [error_record(batch[0].line, error, time.perf_counter() - start)]
            return [self.answer([row])[0] for row in batch]
        # Of the time of a batch each row has an equal share.
        share = (time.perf_counter() - start) / len(batch)
        pairs = zip(batch, answers, strict=True)
        return [self.record(row, ids, row.seconds + share) for row, ids in pairs]

    def generate(self, batch: list[Row]) -> list[list[int]]:
        """The new ids of each row, up to its end token."""
        inputs = collate(batch).to(self.model.device)
        tensors: dict = inputs
        settings = asdict(batch[0].settings)
        seeds = [row.seed for row in batch]
        tokens = self.model.stream(**tensors, **settings, seed=seeds, compile=self.defaults.compile)
        columns = torch.stack(list(tokens), dim=1)  # (B, new tokens)
        end_tokens = set(batch[0].sampling.end_tokens)
        return [up_to_end(ids, end_tokens) for ids in columns.tolist()]

    def record(self, row: Row, ids: list[int], seconds: float) -> dict[str, object]:
        """The record of a row that was answered with these ids."""
        answer = self.processor.text_stream().read_all(ids)
        record: dict[str, object] = {"line": row.line.number, "id": row.line.id}
        record.update(answer_record(answer, row.size.tokens, len(ids)))
        if row.sampling.do_sample:
            record["seed"] = row.seed
        record["seconds"] = round(seconds, 3)
        record["error"] = None
        return record


def row_length(row: Row) -> int:
    """Tokens of a row's prompt, by which a window is sorted."""
    return row.size.tokens


def first_number(batch: list[Row]) -> int:
    """The number of a batch's earliest line."""
    return min(row.line.number for row in batch)


def row_size(inputs: BatchFeature, new_tokens: int) -> RowSize:
    """The size of one row; inputs: of this row alone."""
    grids = grids_of(inputs)
    return RowSize(
        tokens=inputs.input_ids.shape[1],
        new_tokens=new_tokens,
        patches=sum(t * h * w for t, h, w in grids),
        largest_media=max((t * h * w for t, h, w in grids), default=0),
        largest_frame=max((h * w for _, h, w in grids), default=0),
    )


def collate(batch: list[Row]) -> BatchFeature:
    """The inputs of a batch (B, T), padded on the left, from those of its rows (1, T)."""
    length = max(row.size.tokens for row in batch)
    input_ids, attention_mask = [], []
    for row in batch:
        ids = row.inputs.input_ids[0]
        missing = length - len(ids)
        # A token of the row's own prompt is its padding. Masked it changes nothing, nor does it
        # where the repetition penalty lowers all tokens that are there.
        input_ids.append(torch.cat((ids[-1:].expand(missing), ids)))
        attention_mask.append(torch.arange(length) >= missing)
    inputs = BatchFeature(
        input_ids=torch.stack(input_ids), attention_mask=torch.stack(attention_mask).long()
    )
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        parts: list[Tensor] = [row.inputs[name] for row in batch if name in row.inputs]
        if parts:
            inputs[name] = torch.cat(parts)
    return inputs


def up_to_end(ids: list[int], end_tokens: set[int]) -> list[int]:
    """Ids up to the first end token, which is the last of them; behind it there is padding."""
    for i, token in enumerate(ids):
        if token in end_tokens:
            return ids[: i + 1]
    return ids


def error_record(line: Line, error: Exception, seconds: float) -> dict[str, object]:
    """The record of a line that has no answer."""
    reason = " ".join(str(error).split()) or "out of memory: lower max_pixels or fps"
    return {
        "line": line.number,
        "id": line.id,
        "answer": None,
        "boxes": [],
        "prompt_tokens": None,
        "tokens": 0,
        "seconds": round(seconds, 3),
        "error": f"line {line.number}: {reason}",
    }
