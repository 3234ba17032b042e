"""The benchmarks: right counts, both sides measured alike, and nothing measured is lost."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.__main__ as command_line
from benchmarks import costs, cuda_checks, llama_cpp
from benchmarks.budget import Budget
from benchmarks.measure import StageMeasurement
from benchmarks.models import Models
from benchmarks.processes import run_python
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES
from benchmarks.stage import MATRIX_PRODUCTS, READ_BANDWIDTH, Contestant, Run, Stage
from benchmarks.stages import vision
from benchmarks.stages.catalogue import TYPICAL_SECONDS, choose_stages
from benchmarks.stages.decode import Decode
from benchmarks.stages.end_to_end import EndToEnd
from benchmarks.stages.llama_cpp import LlamaCppDecode, LlamaCppPrefill
from benchmarks.stages.loading import Loading
from benchmarks.stages.prefill import Prefill, random_prompt
from benchmarks.stages.preprocessing import VideoPreprocessing
from benchmarks.stages.step import OneToken
from qwen2vl import Qwen2VLConfig

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> Models:
    """Ours and the reference's model with the weights of `tiny`."""
    return Models(Settings("tiny", CPU, torch.float32, "sdpa", full=False))


def run_benchmarks(*arguments, path: Path | None = None) -> subprocess.CompletedProcess:
    """`python -m benchmarks` with `tiny` on the CPU; modules in the folder `path` come first."""
    command = [sys.executable, "-m", "benchmarks", "--model", "tiny", "--device", "cpu"]
    command += ["--dtype", "float32"]  # bfloat16 is very slow on CPUs without AVX-512
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


# ---------------------------------------------------------------------------------- what is counted


def test_vision_operations_are_those_that_pytorch_counts(tiny):
    model, _ = tiny
    v = model.config.vision_config
    pixels = torch.randn(64, v.in_chans * v.temporal_patch_size * v.patch_size**2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.visual(pixels, vision.square_grid(64), "eager")
    assert costs.vision_operations(model.config, 64) == counter.get_total_flops()


def test_prefill_operations_are_those_that_pytorch_counts(tiny):
    """Eager attention computes all scores, where half are needed: PyTorch counts the other half."""
    model, _ = tiny
    config = model.config
    T = 40
    positions = torch.arange(T).expand(3, 1, T)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = model.model(torch.zeros(1, T).long(), position_ids=positions, implementation="eager")
        model.lm_head(x[0, -1:])
    other_half = 2 * config.num_hidden_layers * T**2 * config.hidden_size
    expected = costs.prefill_operations(config, T) + other_half
    assert counter.get_total_flops() == expected


def test_what_a_step_reads_are_the_matrices_of_the_decoder(tiny):
    model, _ = tiny
    in_layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    assert costs.layer_parameters(model.config) == in_layers
    assert costs.head_parameters(model.config) == model.lm_head.weight.numel()


@pytest.mark.parametrize(
    ("shape", "parameters"), [("shape:2b", 2_208_985_600), ("shape:7b", 8_291_375_616)]
)
def test_the_shapes_have_the_official_number_of_parameters(shape, parameters):
    """The official checkpoints' total_size in model.safetensors.index.json, halved: bfloat16."""
    meta = Settings(shape, torch.device("meta"), torch.bfloat16, "sdpa", full=False)
    model = Models(meta).ours()
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_the_shapes_are_the_official_configs(size, official):
    stored = json.loads((official / f"config-{size}.json").read_text(encoding="utf-8"))
    ours = Qwen2VLConfig.from_dict(SHAPES[f"shape:{size}"])
    assert ours == Qwen2VLConfig.from_dict(stored)


# ------------------------------------------------------------------------ both sides measured alike


@torch.no_grad()
def test_all_models_have_one_set_of_weights(models):
    ours = models.ours()
    reference = models.reference()
    table = ours.model.embed_tokens.weight
    assert reference.model.language_model.embed_tokens.weight.data_ptr() == table.data_ptr()
    input_ids = random_prompt(models, 20)
    expected = reference(input_ids=input_ids).logits
    torch.testing.assert_close(ours(input_ids).logits, expected, rtol=1e-4, atol=1e-4)
    int8 = models.int8()(input_ids).logits
    assert (int8 - expected).square().mean() < 0.01 * expected.square().mean()
    assert ours.model.embed_tokens.weight.dtype == torch.float32  # ours stayed as it was


def test_a_command_measures_both_and_writes_table_json_and_plot(tmp_path):
    folder = tmp_path / "new" / "folder"
    file = tmp_path / "figures" / "tiny.json"
    outputs = ["--json", file, "--plot", folder]
    done = run_benchmarks("--stages", "prefill-300,vision-256", "--no-memory", *outputs)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["results"]
    rows = {row["contestant"]: row for row in results if row["stage"].startswith("prefill")}
    ours = rows["ours"]
    theirs = rows["transformers"]
    assert ours["ratio"] == pytest.approx(theirs["median"] / ours["median"])
    for row in (ours, theirs):
        assert row["least"] <= row["median"] <= row["most"]
    assert "| prefill, 300 tokens | ours |" in done.stdout
    assert Image.open(folder / "benchmarks.png").size[0] > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory")
def test_the_peak_memory_of_both_is_measured_in_processes_of_their_own(models):
    stage = Prefill(models, tokens=300).stage()
    measurement = StageMeasurement(stage, SteadyLimits())
    measurement.measure_peaks("prefill-300", models.settings)
    assert set(measurement.peaks) == {"ours", "transformers"}
    for peak in measurement.peaks.values():
        assert 0 <= peak < 1e9  # 0: it fitted into what the uncounted run left


def test_without_transformers_ours_alone_is_measured(tmp_path):
    """The stub takes the place of the package that is installed here."""
    (tmp_path / "transformers.py").write_text("raise ImportError('not installed')\n")
    done = run_benchmarks("--stages", "prefill-300", "--no-memory", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count('pip install -e ".[dev]"') == 1
    assert "| prefill, 300 tokens | ours |" in done.stdout
    assert "transformers" not in done.stdout


@torch.no_grad()
@pytest.mark.parametrize("contestant", ["ours", "ours_int8", "ours_int4", "reference"])
def test_decoding_gives_the_seconds_of_a_token(contestant, models):
    for batch in (1, 2):
        decode = Decode(models, batch=batch, context=12)
        assert 0 < getattr(decode, contestant)().seconds < 60


@torch.no_grad()
@pytest.mark.parametrize("contestant", ["ours", "reference"])
def test_both_go_the_whole_way_from_images_to_tokens(contestant, models):
    assert getattr(EndToEnd(models), contestant)().seconds > 0


@pytest.mark.parametrize("contestant", ["ours_touched", "reference"])
def test_both_load_a_checkpoint_in_a_process_of_its_own(contestant, models):
    run = getattr(Loading(models), contestant)()
    assert run.seconds > 0
    if sys.platform == "linux":
        assert run.peak_memory >= 0


def test_a_video_is_written_and_read(models):
    assert VideoPreprocessing(models, seconds=2).ours().seconds > 0


def test_the_reference_answers_in_the_cold_start():
    answer = run_python(["-m", "benchmarks.processes.first_token_of_reference"])
    assert answer.strip() == "A"  # "A red circle and a blue star."


# ------------------------------------------------------------------------ time, and what goes wrong


class SteadyLimits:
    """A machine whose limits never change, in place of MachineLimits."""

    def __init__(self, *_: object) -> None:
        self.rates = {READ_BANDWIDTH: [1e9], MATRIX_PRODUCTS: [1e9]}

    def measure(self, limit: str) -> float:
        return 1e9

    def median(self, limit: str) -> float:
        return 1e9

    def describe(self) -> str:
        return "reads at 1 GB/s"


def steady_stage(name: str = "decode, batch 1, 300 tokens before") -> Stage:
    """Ours takes 1 second and reads 0.5 GB, the reference takes 2 seconds, or compiled 1.5."""
    contestants = [
        Contestant("ours", lambda: Run(1.0), READ_BANDWIDTH, 5e8),
        Contestant("transformers", lambda: Run(2.0)),
        Contestant("transformers, compiled", lambda: Run(1.5)),
        Contestant("ours, Fast", lambda: Run(0.5), variant="Fast"),
    ]
    return Stage(name, contestants, note="a note", rounds=3, measure_memory=False)


def test_figures_come_from_the_rounds_and_the_fastest_reference():
    measurement = StageMeasurement(steady_stage(), SteadyLimits())
    measurement.run_rounds()
    ours, _, _, fast = measurement.results()
    assert (ours.median, ours.rounds, ours.ratio, ours.share) == (1.0, 3, 1.5, 0.5)
    assert fast.ratio is None  # the reference has none of this variant
    assert ours.note == "a note"


def test_a_stage_out_of_time_has_one_counted_round_and_says_so():
    measurement = StageMeasurement(steady_stage(), SteadyLimits(), deadline=0)
    measurement.run_rounds()
    ours = measurement.results()[0]
    assert ours.rounds == 1
    assert ours.note == "a note; 1 of 3 rounds for lack of time"


def test_the_time_is_divided_and_what_is_left_over_goes_to_later_stages():
    names = choose_stages(None, full=False)
    budget = Budget(names, seconds=540, start=1000)
    assert sum(budget.shares.values()) == pytest.approx(540)
    assert budget.deadlines[names[-1]] == pytest.approx(1540)
    second = names[1]
    start_of_second = budget.deadlines[names[0]]
    assert budget.has_time_for(second, now=1001)  # the first one was quick
    assert budget.has_time_for(second, start_of_second + 0.4 * budget.shares[second])
    assert not budget.has_time_for(second, start_of_second + 0.6 * budget.shares[second])


def test_a_stage_that_takes_longer_than_there_is_time_is_left_out(monkeypatch, capsys):
    """At 1 GFLOP/s and two rounds: 1e11 operations take 200 seconds, 1e9 take 2."""

    def make_stage(name, models):
        stage = steady_stage(name)
        stage.operations = 1e11 if name == "vision-4096" else 1e9
        return stage

    monkeypatch.setattr(command_line, "make_stage", make_stage)
    monkeypatch.setattr(command_line, "MachineLimits", SteadyLimits)
    assert command_line.main(["--model", "tiny", "--device", "cpu", "--minutes", "3"]) == 0
    out = capsys.readouterr().out
    assert "vision-4096 was left out: it takes 200 s here in bfloat16, or more." in out
    assert out.count("was left out") == 1
    assert "| vision-1024 (a note) | ours |" in out


def test_without_a_limit_there_is_always_time():
    budget = Budget(["cold", "load"], math.inf, start=5)
    assert budget.has_time_for("load", now=1e9)


def test_two_layers_are_scaled_to_all_and_what_is_around_them_is_not(models, monkeypatch):
    def seconds(tower, arguments, device):
        return 10 + len(tower.blocks)  # 10 around the layers, 1 for each of them

    monkeypatch.setattr(vision, "time_call", seconds)
    depth = models.config.vision_config.depth
    scaled = vision.Vision(models, patches=4096)
    assert "2 of" in scaled.stage().note
    assert scaled.ours().seconds == 10 + depth
    assert scaled.reference().seconds == 10 + depth
    assert len(models.ours().visual.blocks) == depth
    whole = vision.Vision(models, patches=1024)
    assert whole.stage().note == ""
    assert whole.ours().seconds == 10 + depth


def test_a_failed_stage_or_plot_loses_neither_table_nor_json(tmp_path, monkeypatch, capsys):
    def make_stage(name, models):
        if name == "load":
            raise RuntimeError("no space left")
        return steady_stage(name)

    def draw_plot(results, folder):
        raise RuntimeError("no font")

    monkeypatch.setattr(command_line, "make_stage", make_stage)
    monkeypatch.setattr(command_line, "draw_plot", draw_plot)
    monkeypatch.setattr(command_line, "MachineLimits", SteadyLimits)
    file = tmp_path / "figures.json"
    arguments = ["--model", "tiny", "--stages", "cold,load,prefill-300", "--device", "cpu"]
    code = command_line.main([*arguments, "--json", str(file), "--plot", str(tmp_path)])
    captured = capsys.readouterr()
    assert code == 1
    assert "| cold (a note) | ours | 1.00 s (1.00 s to 1.00 s) | 1.50 × |" in captured.out
    assert "| prefill-300 (a note) | ours |" in captured.out
    assert "load failed: RuntimeError: no space left" in captured.out
    assert "the plot failed: RuntimeError: no font" in captured.err
    assert len(json.loads(file.read_text())["results"]) == 8


def test_without_llama_cpp_its_stages_are_left_out_and_say_so(monkeypatch, capsys):
    monkeypatch.setattr(command_line.llama_cpp, "is_installed", lambda: False)
    monkeypatch.setattr(command_line, "MachineLimits", SteadyLimits)
    assert command_line.main(["--model", "tiny", "--device", "cpu", "--stages", "llama"]) == 0
    out = capsys.readouterr().out
    for name in ("llama-prefill", "llama-decode"):
        assert f'{name} was left out: llama.cpp is not installed: pip install -e ".[bench]"' in out


def test_a_gguf_file_holds_the_decoder_and_its_config(models, tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf comes with the extra bench")
    model = models.ours()
    llama_cpp.write_gguf(model, tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    parameters = {
        llama_cpp.gguf_name(path): p.detach()
        for path, p in model.named_parameters()
        if not path.startswith("visual.")
    }
    assert {tensor.name for tensor in reader.tensors} == parameters.keys()
    for tensor in reader.tensors:
        # GGUF names the fastest dimension first.
        assert tensor.shape.tolist() == list(parameters[tensor.name].shape)[::-1], tensor.name
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(torch.from_numpy(values.copy()), parameters[tensor.name]), tensor.name
    assert reader.fields["qwen2vl.rope.dimension_sections"].contents() == [4, 6, 6, 0]
    assert reader.fields["qwen2vl.block_count"].contents() == model.config.num_hidden_layers


def test_llama_cpp_says_with_the_same_weights_what_we_say(models, tmp_path):
    """The weights of `tiny` are bfloat16, so that its file holds them exactly."""
    if not llama_cpp.is_installed():
        pytest.skip(llama_cpp.NOT_INSTALLED)
    file = tmp_path / "tiny.gguf"
    llama_cpp.write_gguf(models.ours(), file)
    ids = random_prompt(models, 40)
    logits = models.ours()(ids).logits[0, -1]
    theirs = llama_cpp.LlamaModel(file).next_logits(ids[0].tolist())
    # It rounds activations to bfloat16, and keeps its cache in float16.
    assert (logits - theirs).abs().max() <= 2e-2 * logits.abs().max()


@pytest.mark.parametrize("build", [LlamaCppDecode, LlamaCppPrefill])
def test_a_stage_beside_llama_cpp_has_every_format_in_turn(build, models, monkeypatch, tmp_path):
    """With ours in place of llama.cpp's models."""

    class Stored:
        def __init__(self, name: str) -> None:
            self.file = tmp_path / name
            self.file.write_bytes(bytes(1000))
            self.read: list[int] = []

        def forget(self) -> None:
            self.read.clear()

        def next_logits(self, ids: list[int]) -> torch.Tensor:
            self.read += ids
            return models.ours()(torch.tensor([self.read])).logits[0, -1]

    stored = {name: Stored(name) for name in llama_cpp.FORMATS}
    monkeypatch.setattr(models, "llama_cpp", lambda: stored)
    stage = build(models, 30).stage()
    formats = [c for c in stage.contestants if c.name.startswith("llama.cpp")]
    assert [c.name for c in formats] == [f"llama.cpp, {name}" for name in llama_cpp.FORMATS]
    assert all(contestant.run().seconds > 0 for contestant in formats)
    new_tokens = 16 if build is LlamaCppDecode else 0
    assert len(stored["Q8_0"].read) == 30 + new_tokens


def test_ours_is_set_beside_the_format_that_its_users_would_choose():
    stage = steady_stage("decode beside llama.cpp")
    names = ["ours, compiled", "ours, int8, compiled", "llama.cpp, BF16", "llama.cpp, Q8_0"]
    seconds = [0.2, 0.1, 0.3, 0.05]
    stage.contestants = [
        Contestant(name, lambda time=time: Run(time))
        for name, time in zip(names, seconds, strict=True)
    ]
    measurement = StageMeasurement(stage, SteadyLimits(CPU, torch.float32))
    measurement.run_rounds()
    [line] = llama_cpp.against_llama_cpp(measurement.results())
    assert "ours, compiled 1.50 × llama.cpp, BF16" in line
    assert "ours, int8, compiled 0.50 × llama.cpp, Q8_0" in line


def test_a_token_behind_a_made_up_cache_is_the_same_work_on_both_sides(models, monkeypatch):
    """With random keys and values instead of constants, two steps give the same logits."""

    def made_up(self):
        torch.manual_seed(0)
        c = models.config
        d = (c.num_hidden_layers, self.batch, c.num_key_value_heads, self.context, c.head_dim)
        return torch.randn(d), torch.randn(d)

    monkeypatch.setattr(OneToken, "made_up", made_up)
    tokens = OneToken(models, batch=2, context=30)
    ours, theirs = tokens.step_of_ours(), tokens.step_of_reference()
    for ids in ([5, 9], [7, 7]):
        token = torch.tensor(ids)
        with torch.no_grad():
            assert (ours(token) - theirs(token)).abs().max() <= 1e-4


@pytest.mark.parametrize("contestant", ["ours", "transformers"])
def test_a_token_behind_a_made_up_cache_is_timed(contestant, models):
    stage = OneToken(models, batch=2, context=30).stage()
    [run] = [c.run for c in stage.contestants if c.name == contestant]
    assert run().seconds > 0


def test_stages_are_chosen_by_name_or_beginning():
    assert choose_stages("decode-1", full=False) == [
        "decode-1-300", "decode-1-1000", "decode-1-2000",
    ]  # fmt: skip
    assert choose_stages("cold, vision-256", full=False) == ["cold", "vision-256"]
    assert choose_stages(None, full=True) == list(TYPICAL_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "vison"], "there is no stage 'vison'"),
        (["--model", "shape:3b"], "there is no shape:3b"),
        (["--model", "no-such-folder"], "no-such-folder"),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--attn", "flash_attention_2", "--device", "cpu"], "flash_attention_2 needs CUDA"),
        (["--json", str(ROOT)], "is a folder"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(arguments, said, capsys):
    assert command_line.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command_line, "is_installed", lambda package: package != "matplotlib")
    assert command_line.main(["--model", "tiny", "--plot", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == ('error: --plot needs matplotlib: pip install -e ".[dev]" brings it\n')


# ------------------------------------------------------------------------------ checks for a GPU


@pytest.mark.parametrize(
    "check",
    [
        cuda_checks.int8_is_that_of_the_cpu,
        cuda_checks.int4_is_that_of_the_cpu,
        cuda_checks.tiny_answers_as_on_the_cpu,
        cuda_checks.the_fast_image_processor_runs_on_the_device,
    ],
)
def test_a_check_for_a_gpu_runs_with_a_cpu_in_its_place(monkeypatch, check):
    """So that a GPU that is lent for minutes is not spent on a name that has changed."""
    monkeypatch.setattr(cuda_checks, "CUDA", CPU)
    result = cuda_checks.run_check(check)
    assert result["state"] == "ok", result["figure"]
