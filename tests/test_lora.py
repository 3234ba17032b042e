"""LoRA adapters: merged as PEFT does it, on the base that is named, or refused in one line.

What PEFT wrote and computed is stored; helpers/make_lora_adapters.py made it.
"""

import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_app.command_line import main
from qwen2vl_extras import lora, patterns
from tests.helpers.hub import LocalHub
from tests.helpers.reference import error, random_config
from tests.test_load import run_python

STORED = Path(__file__).parent / "stored"
FILES = sorted(STORED.glob("lora_peft_*.npz"))
TINY = Path(lora.__file__).parent.parent / "tiny" / "checkpoint"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WEIGHT_ERROR = 1e-6
LOGITS_ERROR = 1e-5


# ------------------------------------------------------------------------------- what PEFT has done


def stored_cases() -> list[tuple[Path, str]]:
    cases = []
    for file in FILES:
        with np.load(file) as arrays:
            names = [name.removesuffix("/config") for name in arrays if name.endswith("/config")]
        cases += [(file, name) for name in names]
    return cases


CASES = stored_cases()


def name_of(case: tuple[Path, str]) -> str:
    file, variant = case
    return f"{variant} ({file.stem.removeprefix('lora_peft_')})"


def find_cases(*variants: str) -> list[tuple[Path, str]]:
    return [case for case in CASES if case[1] in variants]


def array(case: tuple[Path, str], what: str) -> np.ndarray:
    with np.load(case[0]) as arrays:
        return arrays[f"{case[1]}/{what}"]


def base_weights(file: Path) -> dict[str, Tensor]:
    with np.load(file) as arrays:
        names = [name for name in arrays if name.startswith("base/")]
        return {name.removeprefix("base/"): torch.from_numpy(arrays[name]) for name in names}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """A folder with the stored base, as "False" with a head of its own, as "True" with a tied."""
    folder = tmp_path_factory.mktemp("bases")
    weights = base_weights(FILES[0])
    with np.load(FILES[0]) as arrays:
        config = json.loads(arrays["inputs"].tobytes())["config"]
    for tied in (False, True):
        base = folder / str(tied)
        base.mkdir()
        tensors = dict(weights)
        if tied:
            del tensors["lm_head.weight"]
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        write_json(base / "config.json", {**config, "tie_word_embeddings": tied})
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_adapter(folder: Path, case: tuple[Path, str]) -> Path:
    """The two files that PEFT wrote."""
    folder.mkdir()
    (folder / CONFIG).write_bytes(array(case, "config").tobytes())
    (folder / WEIGHTS).write_bytes(array(case, "adapter").tobytes())
    return folder


def base_of(case: tuple[Path, str], bases: Path) -> Path:
    return bases / str(case[1].startswith("tied"))


def load_model(folder: Path, base: Path | str | None, **options) -> Qwen2VLForConditionalGeneration:
    load_pretrained = Qwen2VLForConditionalGeneration.from_pretrained
    return load_pretrained(folder, device_map="cpu", base=base, **options)


@torch.no_grad()
def logits_of(model: Qwen2VLForConditionalGeneration, file: Path) -> Tensor:
    with np.load(file) as arrays:
        inputs = json.loads(arrays["inputs"].tobytes())
        pixel_values = torch.from_numpy(arrays["pixel_values"])
    return model(
        torch.tensor(inputs["input_ids"]),
        pixel_values=pixel_values,
        image_grid_thw=torch.tensor(inputs["image_grid_thw"]),
    ).logits


def weights_of(model: Qwen2VLForConditionalGeneration) -> dict[str, Tensor]:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    weights.setdefault("lm_head.weight", model.lm_head.weight.detach())
    return weights


def split(values: np.ndarray, case: tuple[Path, str]) -> dict[str, Tensor]:
    """Stored values of changed weights, by name."""
    names = json.loads(array(case, "names").tobytes())
    shapes = {name: tensor.shape for name, tensor in base_weights(case[0]).items()}
    sizes = [shapes[name].numel() for name in names]
    parts = torch.from_numpy(values.copy()).split(sizes)
    return {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_merged_weights_and_logits_are_those_of_peft(case, bases, base_logits, tmp_path, figure):
    model = load_model(write_adapter(tmp_path / "adapter", case), base_of(case, bases))
    expected = split(array(case, "merged"), case)
    unchanged = base_weights(case[0])
    for name, weight in weights_of(model).items():
        if name in expected:
            assert not torch.equal(expected[name], unchanged[name]), name
            found = error(weight, expected[name])
            assert figure("LoRA: merged weights against PEFT", found) <= WEIGHT_ERROR, name
        elif not (model.config.tie_word_embeddings and name == "lm_head.weight"):
            assert torch.equal(weight, unchanged[name]), name

    logits = torch.from_numpy(array(case, "logits"))
    found = error(logits_of(model, case[0]), logits)
    assert figure("LoRA: logits against PEFT before its merge", found) <= LOGITS_ERROR
    # The base by itself answers something else.
    assert error(base_logits[case[1].startswith("tied")], logits) > 100 * LOGITS_ERROR


@pytest.fixture(scope="module")
def base_logits(bases) -> dict[bool, Tensor]:
    """The logits of the two bases: untied, tied."""
    logits = {}
    for tied in (False, True):
        logits[tied] = logits_of(load_model(bases / str(tied), None), FILES[0])
    return logits


def bfloat16_steps(a: Tensor, b: Tensor) -> Tensor:
    """How many bfloat16 numbers lie between those of two tensors."""

    def order(values: Tensor) -> Tensor:
        bits = values.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (order(a) - order(b)).abs()


@pytest.mark.parametrize(
    "case", find_cases("list", "both towers", "dora", "table", "tied"), ids=name_of
)
def test_in_bfloat16_merged_weights_are_at_most_one_step_off(case, bases, tmp_path, figure):
    model = load_model(
        write_adapter(tmp_path / "adapter", case), base_of(case, bases), dtype="bfloat16"
    )
    found = weights_of(model)
    for name, bits in split(array(case, "bfloat16"), case).items():
        steps = bfloat16_steps(found[name], bits.view(torch.bfloat16))
        figure("LoRA: bfloat16 weights that differ from PEFT's", (steps > 0).float().mean().item())
        # Of the table PEFT rounds the change before it adds it.
        if name == "model.embed_tokens.weight" and case[1] == "table":
            assert error(found[name].float(), bits.view(torch.bfloat16).float()) <= 2**-7
        else:
            assert steps.max() <= 1, name


def test_the_stored_variants_are_many_and_of_two_versions():
    assert len(FILES) == 2
    assert len(CASES) >= 60
    names = [array(case, "adapter").tobytes() for case in CASES]
    assert sum(b"base_model.model.model.language_model." in text for text in names) >= 24
    assert sum(b"base_model.model.model.layers." in text for text in names) >= 12


# ------------------------------------------------------------------------------------ other names

SPELLINGS = {
    "transformers 4.45": {"model.": "model.", "visual.": "visual.", "lm_head.": "lm_head."},
    "transformers 4.52": {
        "model.": "model.language_model.",
        "visual.": "model.visual.",
        "lm_head.": "lm_head.",
    },
    "language_model.model": {
        "model.": "language_model.model.",
        "visual.": "visual.",
        "lm_head.": "language_model.lm_head.",
    },
}
PREFIXES = (
    "base_model.model.",
    "",
    "module.base_model.model.",
    "base_model.model._orig_mod.",
    "_orig_mod.module.",
)
PARTS = r"(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta)"


def respell(name: str, spelling: dict[str, str], prefix: str, adapter: str) -> str:
    """A name that transformers 4.57 and PEFT wrote, as others do."""
    name = name.removeprefix("base_model.model.")
    name = re.sub(r"^model\.visual\.", "visual.", name)
    name = re.sub(r"^model\.language_model\.", "model.", name)
    for beginning, other in spelling.items():
        if name.startswith(beginning):
            name = other + name[len(beginning) :]
            break
    if adapter:
        name = re.sub(PARTS, rf"\1.{adapter}", name)
    return prefix + name


def test_every_spelling_of_the_names_gives_the_same_weights(bases, tmp_path, amount):
    rng = random.Random(0)
    variants = ("both towers", "dora", "table and head", "saved merger", "bias of B", "rows")
    cases = [case for case in find_cases(*variants) if "0.21" in case[0].name]
    assert len(cases) == len(variants)
    for i in range(amount(16, 400)):
        case = rng.choice(cases)
        spelling = rng.choice(sorted(SPELLINGS))
        prefix = rng.choice(PREFIXES)
        adapter = rng.choice(["", "default", "my-adapter_2"])
        folder = write_adapter(tmp_path / f"{i}", case)
        expected = weights_of(load_model(folder, bases / "False"))
        tensors = {}
        for name, tensor in load_file(folder / WEIGHTS).items():
            tensors[respell(name, SPELLINGS[spelling], prefix, adapter)] = tensor
        save_file(tensors, folder / WEIGHTS)
        found = weights_of(load_model(folder, bases / "False"))
        for name, weight in expected.items():
            what = (case[1], spelling, prefix, adapter, name)
            assert torch.equal(found[name], weight), what


# --------------------------------------------------------------------------- adapters of our own


def random_adapter(seed: int, folder: Path) -> dict[str, Tensor]:
    """Write a random base and an adapter on it; the merged weights by the formula in float64."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    base_config = random_config(seed)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(base_config))
    base = {}
    for name, p in model.named_parameters():
        base[name] = torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5

    matrices = [name for name, tensor in base.items() if tensor.ndim == 2 and "embed" not in name]
    chosen = rng.sample(matrices, rng.randint(1, min(9, len(matrices))))
    config: dict = {
        "peft_type": "LORA",
        "r": rng.randint(1, 5),
        "lora_alpha": rng.choice([1, 2.5, 16, 0, -3]),
        "use_rslora": rng.random() < 0.5,
        "target_modules": [name.removesuffix(".weight") for name in chosen],
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    tensors = {}
    merged = dict(base)
    for name in chosen:
        module = name.removesuffix(".weight")
        rank, alpha = config["r"], config["lora_alpha"]
        if rng.random() < 0.4:
            rank = rng.randint(1, 9)
            config["rank_pattern"][f"^{re.escape(module)}"] = rank
        if rng.random() < 0.4:
            alpha = rng.randint(1, 32)
            config["alpha_pattern"][module] = alpha
        out_features, in_features = base[name].shape
        a = torch.randn(rank, in_features, generator=generator)
        b = torch.randn(out_features, rank, generator=generator)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
        merged[name] = (base[name].double() + b.double() @ a.double() * scale).float()

    for part in ("base", "adapter"):
        (folder / part).mkdir(parents=True)
    write_json(folder / "base" / "config.json", base_config)
    save_file(base, folder / "base" / "model.safetensors")
    write_json(folder / "adapter" / CONFIG, config)
    save_file(tensors, folder / "adapter" / WEIGHTS)
    return merged


def test_random_adapters_on_random_bases_are_merged_by_the_formula(tmp_path, amount, figure):
    for seed in range(amount(5, 300)):
        folder = tmp_path / str(seed)
        expected = random_adapter(seed, folder)
        found = weights_of(load_model(folder / "adapter", folder / "base"))
        for name, weight in expected.items():
            off = error(found[name], weight)
            assert figure("LoRA: random adapters against float64", off) <= WEIGHT_ERROR, seed
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------ the merged model


@pytest.mark.parametrize(
    "case",
    find_cases("both towers", "tied", "tied, table", "tied, saved head", "dora of the table"),
    ids=name_of,
)
def test_a_merged_model_is_saved_as_a_whole_checkpoint(case, bases, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", case)
    merged = load_model(adapter, base_of(case, bases))
    merged.save_pretrained(tmp_path / "whole")
    again = load_model(tmp_path / "whole", None)
    assert again.config == merged.config
    expected = weights_of(merged)
    for name, weight in weights_of(again).items():
        assert torch.equal(weight, expected[name]), name

    # int8: merged first, then rounded, like the whole checkpoint.
    int8 = load_model(adapter, base_of(case, bases), int8=True).state_dict()
    rounded = load_model(tmp_path / "whole", None, int8=True).state_dict()
    assert int8.keys() == rounded.keys()
    for name, tensor in rounded.items():
        assert torch.equal(int8[name], tensor), name


def test_a_tied_head_is_untied_only_where_it_must_be(bases, tmp_path):
    stays = {"tied", "tied, rows", "tied, saved embeddings", "tied, head follows saved table"}
    for i, case in enumerate(CASES):
        if case[1].startswith("tied"):
            model = load_model(write_adapter(tmp_path / str(i), case), bases / "True")
            is_one = model.lm_head.weight is model.model.embed_tokens.weight
            assert is_one == model.config.tie_word_embeddings == (case[1] in stays), case


# --------------------------------------------------------------------------------------- the base


def tiny_weight() -> Tensor:
    """A matrix of "tiny" in float32."""
    with safe_open(TINY / "model.safetensors", framework="pt") as weights:
        return weights.get_tensor("model.layers.0.self_attn.q_proj.weight").float()


def tiny_adapter(folder: Path, **changes: object) -> Path:
    """An adapter on "tiny" that doubles a matrix of its first layer, and so its answers."""
    folder.mkdir()
    weight = tiny_weight()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    rows = torch.eye(len(weight))
    tensors = {f"{name}.lora_A.weight": weight.contiguous(), f"{name}.lora_B.weight": rows}
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "r": len(weight),
        "lora_alpha": len(weight),
        "target_modules": ["layers.0.self_attn.q_proj"],
        "base_model_name_or_path": "owner/base",
        **changes,
    }
    write_json(folder / CONFIG, config)
    return folder


def doubled(model: Qwen2VLForConditionalGeneration) -> bool:
    found = model.model.layers[0].self_attn.q_proj.weight.detach().float()
    return torch.equal(found, 2 * tiny_weight())


def test_a_base_may_be_tiny_or_a_path_in_any_form(tmp_path, monkeypatch):
    adapter = tiny_adapter(tmp_path / "adapter")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "copy")
    for base in (
        "tiny",
        TINY,
        str(TINY),
        "copy",
        "./copy",
        "../" + tmp_path.name + "/copy",
        "~/copy",
    ):
        assert doubled(load_model(adapter, base)), base
        assert Qwen2VLConfig.from_pretrained(adapter, base=base).hidden_size, base


def test_the_base_on_the_hub_is_loaded_and_said(tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter")
    repos = {
        "owner/base": {file.name: file.read_bytes() for file in TINY.iterdir()},
        "owner/adapter": {file.name: file.read_bytes() for file in adapter.iterdir()},
    }
    code = """
import sys
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
for name in sys.argv[2:]:
    processor = Qwen2VLProcessor.from_pretrained(name)
    model = Qwen2VLForConditionalGeneration.from_pretrained(name, device_map="cpu")
    model.save_pretrained(sys.argv[1] + name.replace("/", "-"))
"""
    names = (str(adapter), "owner/adapter")
    with LocalHub(repos) as hub:
        env = hub.environment(tmp_path / "home")
        done = run_python(code, f"{tmp_path}/whole", *names, env=env)
    for name in names:
        assert doubled(load_model(Path(f"{tmp_path}/whole" + name.replace("/", "-")), None)), name
    # Each processor and each model says what it takes from where.
    lines = [line for line in done.stderr.splitlines() if "owner/base" in line]
    assert len(lines) == 4
    assert all(CONFIG in line for line in lines)
    assert [len(hub.transfers(file)) for file in (CONFIG, WEIGHTS, "model.safetensors")] == [
        1,
        1,
        1,
    ]


def paths_to(base: Path) -> list[str]:
    """Ways in which an adapter's config may point to a folder that is there."""
    parent, name = base.parent.name, base.name
    return [
        str(base),
        f"{base}/",
        f"file://{base}",
        f"file:{base}",
        name,
        f"{name}/",
        f"./{name}",
        f".//{name}",
        f"../{parent}/{name}",
        f"{name}/../{name}",
        f"~/{name}",
        f"~root/../{base}",
        f"{name}/inner",  # looks like a name on the Hub, and is a folder here
        f"{name}\\inner",
        f"C:\\{name}",
        f"\\\\server\\{name}",
        f"{name}/inner/more",
        f"$HOME/{name}",
        f"owner/../{name}",
        f"owner/{name}/.",
        f"owner/ {name}",
        f"owner/{name}\n",
        "tiny",
        "https://huggingface.co/owner/base",
        "owner/base@main",
        "",
        ".",
        "..",
        "/",
        "-",
        "o" * 5000 + "/base",
    ]


def test_a_path_in_the_config_is_never_followed(tmp_path, monkeypatch):
    base = tmp_path / "base"
    for folder in (base, base / "inner", base / "inner" / "more"):
        shutil.copytree(TINY, folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for i, path in enumerate(paths_to(base)):
        adapter = tiny_adapter(tmp_path / f"adapter {i}", base_model_name_or_path=path)
        for load_pretrained in (
            Qwen2VLForConditionalGeneration.from_pretrained,
            Qwen2VLProcessor.from_pretrained,
            Qwen2VLConfig.from_pretrained,
        ):
            with pytest.raises(ValueError, match="base=") as caught:
                load_pretrained(adapter)
            assert "\n" not in str(caught.value), path
            assert len(str(caught.value)) < 500, path
    # Named by the user, the same folder is taken.
    assert doubled(load_model(adapter, base))


def test_what_base_may_not_be_is_refused(tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter")
    both = shutil.copytree(TINY, tmp_path / "both")
    for file in adapter.iterdir():
        shutil.copy(file, both)
    (tmp_path / "empty").mkdir()
    for name, base, message in (
        ("tiny", "tiny", "goes with a LoRA adapter"),
        (TINY, adapter, "goes with a LoRA adapter"),
        (adapter, adapter, "is an adapter, too"),
        (adapter, tmp_path / "empty", "has no config.json"),
        (adapter, tmp_path / "missing", "neither a folder"),
        (both, None, "a whole model and an adapter"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_model(name, base)
        assert "\n" not in str(caught.value)
    # Which of the two is meant is said by naming the base, say the folder itself.
    assert doubled(load_model(both, both))


def test_a_revision_of_the_base_is_not_ignored(tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", revision="v2")
    with pytest.raises(ValueError, match="revision 'v2' of owner/base"):
        load_model(adapter, None)
    assert doubled(load_model(adapter, "tiny"))


def test_the_command_line_takes_a_base(tmp_path, capsys):
    adapter = tiny_adapter(tmp_path / "adapter")
    question = ["--model", str(adapter), "--image", "examples/shapes.png", "--max-new-tokens", "3"]
    assert main([*question, "--base", "tiny"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["--base", "tiny", "--image", "examples/shapes.png"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: base='tiny'")


# ---------------------------------------------------------------------------------- the processor


def test_a_processor_takes_what_the_adapter_has_and_the_rest_from_the_base(tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter")
    of_base = Qwen2VLProcessor.from_pretrained("tiny")
    plain = Qwen2VLProcessor.from_pretrained(adapter, base="tiny")
    assert plain.image_processor == of_base.image_processor
    assert plain.tokenizer.to_str() == of_base.tokenizer.to_str()
    assert plain.max_tokens == of_base.max_tokens

    # A finetune's own tokens, and its own limit of images.
    settings = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    size = of_base.tokenizer.get_vocab_size()
    token = {"content": "<memory>", "special": True, "normalized": False}
    settings["added_tokens_decoder"][str(size)] = token
    write_json(adapter / "tokenizer_config.json", settings)
    own = Qwen2VLProcessor.from_pretrained(adapter, base="tiny")
    assert own.tokenizer.token_to_id("<memory>") == size
    assert own.image_processor == of_base.image_processor
    settings = json.loads((TINY / "preprocessor_config.json").read_text(encoding="utf-8"))
    write_json(adapter / "preprocessor_config.json", {**settings, "max_pixels": 56 * 56})
    own = Qwen2VLProcessor.from_pretrained(adapter, base="tiny")
    assert own.image_processor.max_pixels == 56 * 56
    assert own.tokenizer.token_to_id("<memory>") == size
    given = Qwen2VLProcessor.from_pretrained(adapter, max_pixels=84 * 84, base="tiny")
    assert given.image_processor.max_pixels == 84 * 84

    # Errors name the file where it is.
    (adapter / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(adapter / "tokenizer.json"))):
        Qwen2VLProcessor.from_pretrained(adapter, base="tiny")


def test_the_template_of_an_adapter_goes_before_that_of_its_base(tmp_path):
    base = shutil.copytree(TINY, tmp_path / "base")
    write_json(base / "chat_template.json", {"chat_template": "base"})
    settings = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    own = {**settings, "chat_template": "own"}
    cases = [("base", {}), ("own", {"tokenizer_config.json": json.dumps(own)})]
    cases.append(("own", {"chat_template.jinja": "own"}))
    cases.append(("own", {"chat_template.json": json.dumps({"chat_template": "own"})}))
    cases.append(("own", {"additional_chat_templates/default.jinja": "own"}))
    conversation = [{"role": "user", "content": "Hello"}]
    for i, (expected, files) in enumerate(cases):
        adapter = tiny_adapter(tmp_path / f"adapter {i}")
        for filename, text in files.items():
            (adapter / filename).parent.mkdir(exist_ok=True)
            (adapter / filename).write_text(text, encoding="utf-8")
        processor = Qwen2VLProcessor.from_pretrained(adapter, base=base)
        assert processor.apply_chat_template(conversation) == expected, files


# ------------------------------------------------------------------------------ broken adapters

Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
A = f"{Q_PROJ}.lora_A.weight"
B = f"{Q_PROJ}.lora_B.weight"
CATASTROPHIC = r"(\w+\.?)+\s"

NO_VALUE = object()  # the field is left out


def broken_configs() -> list[tuple[str, object, str]]:
    """(field, value, what the error says) of an adapter_config.json that can't be merged."""
    cases: list[tuple[str, object, str]] = []
    for kind in ("LOHA", "LOKR", "IA3", "PROMPT_TUNING", "ADALORA", "lora", "", None, 3, NO_VALUE):
        cases.append(("peft_type", kind, "peft_type"))
    for value in (0, -1, 2.5, "2", True, [2], None, 10**9, 3, NO_VALUE):
        expected = "should be" if value == 3 else r"\br\b"
        cases.append(("r", value, expected))
    for value in ("6", True, [6], math.nan, math.inf, -math.inf, 1e300, None, NO_VALUE):
        cases.append(("lora_alpha", value, "lora_alpha"))
    for field in ("use_rslora", "use_dora", "lora_bias"):
        cases += [(field, value, field) for value in (1, "true", "false", [], {})]
    cases.append(("use_dora", True, "lacks magnitude"))
    cases.append(("lora_bias", True, "lacks bias"))
    for value in ("some", "boft_only", True, 3):
        cases.append(("bias", value, "bias"))
    for name in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "True", 1.0, 2):
        cases.append(("init_lora_weights", name, "init_lora_weights"))
    for value in (None, NO_VALUE, 3, {}, [3], [["q_proj"]]):
        cases.append(("target_modules", value, "target_modules"))
    for value in ([], ["o_proj"], ["q"], ["Q_PROJ"], "q_proj", "all-linear", ["q_proj", "o_proj"]):
        cases.append(("target_modules", value, "lacks tensors|does not name"))
    for field in ("target_modules", "exclude_modules"):
        for pattern in ("(", "*", "a{1,99999999999}", "(" * 3000, "(?P<a>x)(?P<a>y)"):
            cases.append((field, pattern, "no regular expression"))
    for value in ("lm_head", [3], {"lm_head": 1}):
        cases.append(("modules_to_save", value, "modules_to_save"))
    for value in (["lm_head"], ["merger"], ["norm"]):
        cases.append(("modules_to_save", value, "lacks tensors"))
    cases.append(("exclude_modules", ["q_proj"], "does not name"))
    for field in ("rank_pattern", "alpha_pattern"):
        cases += [(field, value, field) for value in ([], "q_proj", {"q_proj": "2"}, {"x": True})]
        cases.append((field, {"(": 2}, "no regular expression"))
    cases.append(("rank_pattern", {"q_proj": 0}, "rank_pattern"))
    cases.append(("rank_pattern", {"q_proj": 5}, "should be"))
    cases.append(("alpha_pattern", {"q_proj": math.nan}, "alpha_pattern"))
    for value in ("0", [0.5], -1, {}, [-1]):
        cases.append(("layers_to_transform", value, "layers_to_transform"))
    cases.append(("layers_to_transform", [0], "does not name"))
    for value in ("1", [1.5], {"embed_tokens": 3}, [-1]):
        cases.append(("trainable_token_indices", value, "trainable_token_indices"))
    cases.append(("trainable_token_indices", [1], "lacks tensors"))
    # Fields of newer versions that change what is computed.
    for field, value in (
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["q_proj.weight"]),
        ("use_bdlora", {"nblocks": 2}),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("kasa_config", {"beta": 1}),
        ("arrow_config", {"top_k": 3}),
        ("a_field_of_the_future", 1),
    ):
        cases.append((field, value, field))
    return cases


BROKEN_CONFIGS = broken_configs()


def refused(folder: Path, base: Path | str | None, message: str, what: object) -> None:
    """Loading is refused in one line that names the folder and says `message`."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model(folder, base)
    text = str(caught.value)
    assert "\n" not in text, what
    assert str(folder) in text, what
    assert re.search(message, text), (what, text)
    assert len(text) < 1200, (what, text)


def test_configs_that_cannot_be_merged_are_refused_by_name(bases, tmp_path):
    [case] = [case for case in find_cases("list") if "0.21" in case[0].name]
    folder = write_adapter(tmp_path / "adapter", case)
    good = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    load_model(folder, bases / "False")
    for field, value, message in BROKEN_CONFIGS:
        config = {**good, field: value}
        if value is NO_VALUE:
            del config[field]
        write_json(folder / CONFIG, config)
        refused(folder, bases / "False", message, (field, value))


def test_fields_that_change_nothing_are_taken(bases, tmp_path):
    [case] = [case for case in find_cases("list") if "0.21" in case[0].name]
    folder = write_adapter(tmp_path / "adapter", case)
    good = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    expected = weights_of(load_model(folder, bases / "False"))
    for changes in (
        {"lora_dropout": 0.5, "inference_mode": False, "task_type": "CAUSAL_LM"},
        {"loftq_config": {"a": 1}, "eva_config": {"rho": 2}, "auto_mapping": {"b": "c"}},
        {"fan_in_fan_out": True, "peft_version": "9.9"},
        {"a_field_of_the_future": None, "another": False, "more": [], "most": {}, "last": ""},
        {"rank_pattern": None, "alpha_pattern": None, "modules_to_save": None},
        {"modules_to_save": [], "exclude_modules": [], "layers_to_transform": None},
        {"alpha_pattern": {"k_proj": 3}, "rank_pattern": {"nothing.*": 7}},
        {"target_modules": ["q_proj", "v_proj", "of_another_model"]},
        {"target_modules": r".*\.[qv]_proj"},
        {"exclude_modules": r".*mlp.*"},
    ):
        write_json(folder / CONFIG, {**good, **changes})
        found = weights_of(load_model(folder, bases / "False"))
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), (changes, name)


def broken_tensors(tensors: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor], str]]:
    """(what is broken, the tensors of the file, what the error says)."""
    a, b = tensors[A], tensors[B]
    bad = a.clone()
    bad[0, 0] = math.nan
    infinite = b.clone()
    infinite[1, 1] = math.inf
    second = A.replace("lora_A", "lora_A.second")
    q_bias = f"{Q_PROJ}.lora_B.bias"
    other = "base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight"
    changes: list[tuple[str, dict[str, Tensor | None], str]] = [
        ("no A", {A: None}, "lacks"),
        ("no B", {B: None}, "lacks"),
        ("neither", {A: None, B: None}, "lacks tensors of .*q_proj"),
        ("A of another rank", {A: a[:1]}, "should be"),
        ("A too wide", {A: torch.cat((a, a), 1)}, "should be"),
        ("A flat", {A: a.flatten()}, "should be"),
        ("A empty", {A: torch.zeros(0)}, "should be"),
        ("A without axes", {A: torch.tensor(1.0)}, "should be"),
        ("B swapped", {B: b.T.contiguous()}, "should be"),
        ("ranks exchanged", {A: b, B: a}, "should be"),
        ("NaN", {A: bad}, "not finite"),
        ("infinity", {B: infinite}, "not finite"),
        ("whole numbers", {A: a.int()}, "only F32"),
        ("booleans", {B: b.bool()}, "only F32"),
        ("float64", {B: b.double()}, "only F32"),
        ("a layer that is not there", {other: a}, "no parameter for"),
        ("a module that is not there", {f"{Q_PROJ}x.lora_A.weight": a}, "no parameter for"),
        ("another part", {f"{Q_PROJ}.lora_C.weight": a}, "no parameter for"),
        ("LoHa", {f"{Q_PROJ}.hada_w1_a": a}, "no parameter for"),
        ("a prompt", {"prompt_embeddings": a}, "no parameter for"),
        ("two adapters", {second: a}, "more than one adapter"),
        ("a bias of B", {q_bias: torch.zeros(16)}, "has bias"),
        ("a bias of A", {f"{Q_PROJ}.lora_A.bias": torch.zeros(2)}, "no parameter for"),
        ("a magnitude", {f"{Q_PROJ}.lora_magnitude_vector": torch.ones(16)}, "has magnitude"),
        ("A of a table for a layer", {f"{Q_PROJ}.lora_embedding_A": a}, "has embedding_A"),
        ("a whole weight of another shape", {f"{Q_PROJ}.weight": a}, "should be"),
        ("whole and base", {f"{Q_PROJ}.{end}": torch.zeros(16, 16) for end in
                            ("weight", "base_layer.weight")}, "twice"),
        ("twice and different", {f"{Q_PROJ}.weight": torch.zeros(16, 16),
                                 f"{Q_PROJ}.modules_to_save.weight": torch.ones(16, 16)}, "differ"),
        ("a whole weight that is NaN", {f"{Q_PROJ}.weight": torch.full((16, 16), math.nan)},
         "not finite"),
        ("rows of a table", {"base_model.model.model.language_model.embed_tokens.token_adapter."
                             "trainable_tokens_delta": torch.ones(1, 16)}, "does not name"),
    ]  # fmt: skip
    # Many at once are listed up to five.
    many = {f"{Q_PROJ}{i}.lora_A.weight": a for i in range(30)}
    changes.append(("thirty names", dict(many), "and 25 more"))
    cases = []
    for what, change, message in changes:
        changed = {**tensors, **change}
        kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
        cases.append((what, kept, message))
    cases.append(("no tensors", {}, "lacks tensors"))
    return cases


def test_tensors_that_cannot_be_merged_are_refused_by_name(bases, tmp_path):
    [case] = [case for case in find_cases("list") if "0.21" in case[0].name]
    folder = write_adapter(tmp_path / "adapter", case)
    tensors = {name: t.float() for name, t in load_file(folder / WEIGHTS).items()}
    cases = broken_tensors(tensors)
    assert len(cases) + len(BROKEN_CONFIGS) >= 150
    for what, changed, message in cases:
        # Copies, since the library refuses tensors that share memory.
        save_file({name: tensor.clone() for name, tensor in changed.items()}, folder / WEIGHTS)
        refused(folder, bases / "False", message, what)


def test_files_that_cannot_be_read_are_refused(bases, tmp_path):
    [case] = [case for case in find_cases("list") if "0.21" in case[0].name]
    folder = write_adapter(tmp_path / "adapter", case)
    whole = (folder / WEIGHTS).read_bytes()
    for content, message in (
        (b"", "broken or cut short"),
        (whole[:-1], "broken or cut short"),
        (whole[:100], "broken or cut short"),
        (b"\xff" * 64, "broken or cut short"),
        (b"PK\x03\x04 a zip, as torch.save writes", "broken or cut short"),
    ):
        (folder / WEIGHTS).write_bytes(content)
        refused(folder, bases / "False", message, content[:20])
    (folder / WEIGHTS).unlink()
    refused(folder, bases / "False", f"has no {WEIGHTS}", "missing")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    refused(folder, bases / "False", "adapter_model.bin is a pickle", "a pickle")
    (folder / WEIGHTS).write_bytes(whole)
    for content in ("", "{", "[]", "3", "[" * 100_000, '{"r": ' * 60):
        (folder / CONFIG).write_text(content, encoding="utf-8")
        refused(folder, bases / "False", CONFIG, content[:20])


def test_an_adapter_of_another_size_does_not_fit(bases, tmp_path):
    [case] = [case for case in find_cases("list") if "0.21" in case[0].name]
    refused(write_adapter(tmp_path / "adapter", case), "tiny", "does not fit|lacks", "tiny")


def test_random_damage_to_an_adapter_is_refused_or_changes_nothing_else(bases, tmp_path, amount):
    """Bytes of the header are overwritten: an error in one line, or an adapter that loads."""
    rng = random.Random(0)
    [case] = [case for case in find_cases("patterns") if "0.21" in case[0].name]
    folder = write_adapter(tmp_path / "adapter", case)
    whole = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    refusals = 0
    for _ in range(amount(40, 1500)):
        name = rng.choice((CONFIG, WEIGHTS))
        damaged = bytearray(whole[name])
        end = len(damaged) if name == CONFIG else min(len(damaged), 1500)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(end)] = rng.choice(b'"{}[],:0123456789azAZ_.\\ \xff\x00')
        (folder / name).write_bytes(damaged)
        try:
            load_model(folder, bases / "False")
        except (ValueError, FileNotFoundError) as problem:
            refusals += 1
            assert "\n" not in str(problem), bytes(damaged)
        (folder / name).write_bytes(whole[name])
    assert refusals > 10


# ------------------------------------------------------------------------------------ patterns


def test_patterns_that_take_for_ever_are_stopped(bases, tmp_path, amount, monkeypatch):
    [case] = [case for case in find_cases("list") if "0.21" in case[0].name]
    folder = write_adapter(tmp_path / "adapter", case)
    good = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    monkeypatch.setattr(patterns, "SECONDS", 1)
    fields = [
        ("target_modules", CATASTROPHIC),
        ("exclude_modules", CATASTROPHIC),
        ("alpha_pattern", {CATASTROPHIC: 1}),
        ("rank_pattern", {CATASTROPHIC: 1}),
    ]
    for field, value in fields[: amount(2, 4)]:
        write_json(folder / CONFIG, {**good, field: value})
        refused(folder, bases / "False", "more than 1 s", field)


def test_patterns_match_as_in_one_process():
    names = ["a.b", "a.bc", "x.a.b", "", "A.B"]
    regexes = ["a.b", r".*\.b", "", ".*", "(?i)a.b", "a|x.*", r"(.*\.)?(b|bc)"]
    found = patterns.match_patterns(regexes, names, "here")
    assert found == [[n for n in names if re.fullmatch(regex, n)] for regex in regexes]
