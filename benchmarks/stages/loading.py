"""Loading: `from_pretrained` of a sharded checkpoint whose files are in the system's cache.

On a CPU both projects map the files, and the system reads what is touched later. So it is timed
twice: as it is, and with every page touched.
"""

import json
import tempfile
from pathlib import Path

import load
from benchmarks.models import Models
from benchmarks.processes import run_python
from benchmarks.settings import OURS, REFERENCE, dtype_name
from benchmarks.stage import Contestant, Run, Stage


class Loading:
    """A checkpoint in a folder of its own, which is gone with this object.

    quantized: our own loading in int8 and int4 is timed beside the plain one.
    """

    def __init__(self, models: Models, quantized: bool = False) -> None:
        self.models = models
        self.quantized = quantized
        self.folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        config = models.config.to_dict()
        config["torch_dtype"] = dtype_name(models.dtype)
        tensors = dict(models.ours().named_parameters())
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        load.save_checkpoint(Path(self.folder.name), config, tensors, max_shard_size="2GB")

    def stage(self) -> Stage:
        touched = "every page touched"
        contestants = [
            Contestant(OURS, self.ours),
            Contestant(f"{OURS}, {touched}", self.ours_touched, variant=touched),
        ]
        if self.models.has_reference:
            name = f"{REFERENCE}, {touched}"
            contestants.insert(1, Contestant(REFERENCE, self.reference))
            contestants.append(Contestant(name, self.reference_touched, variant=touched))
        if self.quantized:
            contestants += [
                Contestant(f"{OURS}, int8", self.ours_int8, variant=touched),
                Contestant(f"{OURS}, int4", self.ours_int4, variant=touched),
            ]
        weights = f"{self.weight_bytes / 1e9:.2f} GB"
        return Stage(
            "load, sharded",
            contestants,
            note=f"weights {weights}; memory is all that came after the import",
            rounds=5,
            measure_memory=False,  # the process that loads tells it
        )

    def ours(self) -> Run:
        return self.load_in_a_process(OURS)

    def ours_touched(self) -> Run:
        return self.load_in_a_process(OURS, "--touch")

    def ours_int8(self) -> Run:
        return self.load_in_a_process(OURS, "--int8")

    def ours_int4(self) -> Run:
        return self.load_in_a_process(OURS, "--int4")

    def reference(self) -> Run:
        return self.load_in_a_process(REFERENCE)

    def reference_touched(self) -> Run:
        return self.load_in_a_process(REFERENCE, "--touch")

    def load_in_a_process(self, *arguments: str) -> Run:
        command = ["-m", "benchmarks.processes.load_once", *arguments]
        command += ["--folder", self.folder.name, "--dtype", dtype_name(self.models.dtype)]
        command += ["--device", str(self.models.device)]
        answer = json.loads(run_python(command).splitlines()[-1])
        return Run(answer["seconds"], answer["peak_memory"])
