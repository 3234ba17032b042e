"""Many questions: seconds per line of `--batch`, beside one line at a time and one call a line."""

import json
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.models import Models
from benchmarks.processes import run_python
from benchmarks.settings import OURS, REFERENCE, dtype_name
from benchmarks.shapes import SHAPES
from benchmarks.stage import Contestant, Run, Stage, synchronise
from benchmarks.stages.preprocessing import make_image
from processor import BatchFeature, Qwen2VLImageProcessor
from qwen2vl import Sampling
from qwen2vl_app.batch import AnswerSettings, BatchDefaults, BatchRunner, Row, row_size
from qwen2vl_app.batch_lines import Line

LINES = 16
CALLS = 4  # of the lines, where each is a command of its own
NEW_TOKENS = 8
MEMORY = 2e9  # bytes, the default of --batch-memory
# The images (width, height) of four lines, over and over; the last has none.
IMAGE_SIZES = [(640, 480), (480, 640), (320, 240), None]
NO_TOKEN = -1  # as the end token: no answer ends early
WHOLE_COMMANDS = "whole commands"


class BatchOfLines:
    """The same lines, answered together, alone, and each by a command that loads the model.

    Lines are ids that stand for words, since the official shapes have no tokenizer here. Commands
    need a checkpoint; there the lines are questions.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.images: list[Image.Image | None] = []
        for i in range(LINES):
            size = IMAGE_SIZES[i % len(IMAGE_SIZES)]
            self.images.append(None if size is None else make_image(*size))
        self.folder = tempfile.TemporaryDirectory(prefix="benchmarks-")  # gone with this object

    def stage(self) -> Stage:
        contestants = [
            Contestant(f"{OURS}, --batch", self.ours),
            Contestant(f"{OURS}, a line at a time", self.ours_alone),
        ]
        if self.models.has_reference:
            contestants.append(Contestant(f"{REFERENCE}, a line at a time", self.reference))
        if self.models.settings.model not in SHAPES:
            self.write_lines()
            together = Contestant(f"{OURS}, --batch, {WHOLE_COMMANDS}", self.ours_command)
            one_by_one = Contestant(f"{OURS}, one call a line, {WHOLE_COMMANDS}", self.ours_calls)
            for contestant in (together, one_by_one):
                contestant.variant = WHOLE_COMMANDS
                contestants.append(contestant)
        note = f"seconds per line; {LINES} lines, {NEW_TOKENS} new tokens each"
        stage = Stage("many lines, --batch", contestants, note, rounds=2)
        # The memory of commands is that of other processes.
        stage.measure_memory = self.models.settings.model in SHAPES
        return stage

    # ------------------------------------------------------------- with a model that is loaded

    def rows(self) -> list[Row]:
        """The lines as `BatchRunner` prepares them."""
        config = self.models.config
        processor = Qwen2VLImageProcessor()
        settings = AnswerSettings(NEW_TOKENS, temperature=0)
        sampling = Sampling(eos_token_id=NO_TOKEN)
        rows = []
        for number, image in enumerate(self.images, start=1):
            inputs = BatchFeature()
            # Words, the image, and words.
            ids = [config.bos_token_id - 1 - i for i in range(20)]
            if image is not None:
                inputs.update(processor([image]))
                tokens = len(inputs.pixel_values) // config.vision_config.spatial_merge_size**2
                ids.append(config.vision_start_token_id)
                ids += [config.image_token_id] * tokens
                ids.append(config.vision_end_token_id)
            ids += range(10)
            inputs["input_ids"] = torch.tensor([ids])
            size = row_size(inputs, NEW_TOKENS)
            rows.append(Row(Line(number), inputs, settings, sampling, 0, size, 0.0))
        return rows

    def ours(self) -> Run:
        return self.time_runner(MEMORY)

    def ours_alone(self) -> Run:
        return self.time_runner(memory=1)  # byte: no two rows fit

    def time_runner(self, memory: float) -> Run:
        # No processor: the rows are ready, and nothing is decoded.
        runner = BatchRunner(self.models.ours(), None, BatchDefaults(), memory)  # type: ignore[arg-type]
        start = time.perf_counter()
        for batch in runner.batches(self.rows()):
            runner.generate(batch)
        synchronise(self.models.device)
        return Run((time.perf_counter() - start) / LINES)

    def reference(self) -> Run:
        model = self.models.reference()
        start = time.perf_counter()
        for row in self.rows():
            inputs: dict = row.inputs.to(self.models.device)
            model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=NO_TOKEN,
                do_sample=False,
                pad_token_id=0,
            )
        synchronise(self.models.device)
        return Run((time.perf_counter() - start) / LINES)

    # ------------------------------------------------------------------------ whole commands

    def write_lines(self) -> None:
        """The images and a file of lines about them."""
        lines = []
        for i, image in enumerate(self.images):
            line: dict[str, object] = {"prompt": "What is it?"}
            if image is not None:
                line["image"] = str(self.file(i))
                image.save(self.file(i))
            lines.append(json.dumps(line) + "\n")
        (Path(self.folder.name) / "lines.jsonl").write_text("".join(lines))

    def file(self, i: int) -> Path:
        """Where the image of a line is."""
        return Path(self.folder.name) / f"{i}.png"

    def ours_command(self) -> Run:
        start = time.perf_counter()
        self.run_command("--batch", str(Path(self.folder.name) / "lines.jsonl"))
        return Run((time.perf_counter() - start) / LINES)

    def ours_calls(self) -> Run:
        start = time.perf_counter()
        for i in range(CALLS):
            image = [] if self.images[i] is None else ["--image", str(self.file(i))]
            self.run_command("--prompt", "What is it?", *image)
        return Run((time.perf_counter() - start) / CALLS)

    def run_command(self, *arguments: str) -> None:
        settings = self.models.settings
        command = ["qwen2vl.py", "--model", settings.model, "--device", str(settings.device)]
        command += ["--dtype", dtype_name(settings.dtype), "--attn", settings.attention]
        run_python([*command, "--max-new-tokens", str(NEW_TOKENS), *arguments])
