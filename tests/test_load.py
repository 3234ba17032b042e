"""load.py: a name → a folder → config, tokenizer, weights."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import load
from tests.helpers.hub import LocalHub

ROOT = Path(load.__file__).parent
SECTION = [2, 3, 3]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 120,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
VISION = {
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "hidden_size": 32,
    "mlp_ratio": 4,
    "patch_size": 14,
}
VISION |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
FLAT = {
    "model_type": "qwen2_vl",
    "image_token_id": 7,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}
FLAT |= TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": SECTION}}
FLAT |= {"vision_config": VISION | {"in_chans": 3}}


def write(folder: Path, **files: dict) -> Path:
    """`write(folder, config={...})` writes folder/config.json."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def random_tensors(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{i}.weight": torch.randn(3, 5 + i, generator=generator) for i in range(count)}


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_all(
    folder: Path, expected: dict[str, tuple], dtype=torch.float32, **more
) -> dict[str, torch.Tensor]:
    pairs = list(load.read_weights(folder, expected, "cpu", dtype, **more))
    assert len(pairs) == len(dict(pairs)), "a tensor came twice"
    return dict(pairs)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# ------------------------------------------------------------------------------ names and folders


def test_a_folder_is_itself_and_tiny_is_reserved(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load.find_checkpoint(tmp_path) == tmp_path
    assert load.find_checkpoint("./tiny") == Path("tiny")
    monkeypatch.setattr(load, "__file__", str(tmp_path / "load.py"))
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        load.find_checkpoint("tiny")  # the one beside load.py, not the folder here
    (tmp_path / "tiny" / "checkpoint").mkdir()
    assert load.find_checkpoint("tiny") == tmp_path / "tiny" / "checkpoint"


def test_what_is_neither_folder_nor_hub_name_is_refused_by_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in (
        "nowhere",
        "/no/such/folder",
        "./a/b",
        "a/b/c",
        str(tmp_path / "model.safetensors"),
    ):
        with pytest.raises(FileNotFoundError, match=f"'{re.escape(name)}' is neither a folder"):
            load.find_checkpoint(name)


# ---------------------------------------------------------------------------------------- the Hub

ASK = """
import sys, load
try:
    print(load.find_checkpoint(sys.argv[1], weights=sys.argv[2] == "weights"))
except OSError as error:
    print("ERROR", error)
"""


def ask(env: dict[str, str], repo: str, what: str = "weights") -> str:
    """What a fresh process gets from `find_checkpoint` (huggingface_hub reads its settings when
    imported).
    """
    command = [sys.executable, "-c", ASK, repo, what]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def repository(tmp_path: Path, size: int = 1000) -> dict[str, bytes]:
    tensors = {"w": torch.arange(size, dtype=torch.float32)}
    load.save_checkpoint(tmp_path / "made", FLAT, tensors, generation_config={"do_sample": False})
    files = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    return files | {
        "README.md": b"long",
        "pytorch_model.bin": b"big",
        "onnx/model.safetensors": b"other",
    }


def test_hub_download_takes_only_the_needed_files_and_then_works_offline(tmp_path):
    files = repository(tmp_path)
    with LocalHub({"some/model": files}) as hub:
        env = hub.environment(tmp_path / "home")
        texts = Path(ask(env, "some/model", "texts"))
        assert {file.name for file in texts.iterdir()} == {"config.json", "generation_config.json"}
        offline = ask(env | {"HF_HUB_OFFLINE": "1"}, "some/model")
        assert (
            offline.startswith("ERROR 'some/model'") and "cache" in offline and "\n" not in offline
        )
        folder = Path(ask(env, "some/model"))
        needed = {"config.json", "generation_config.json", "model.safetensors"}
        assert {file.name for file in folder.iterdir()} == needed
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        before = len(hub.log)
        assert Path(ask(env | {"HF_HUB_OFFLINE": "1"}, "some/model")) == folder
        assert len(hub.log) == before
    assert Path(ask(env, "some/model")) == folder  # the Hub is gone, the cache is not


def test_hub_download_cut_in_the_middle_is_resumed(tmp_path):
    files = repository(tmp_path, size=6_000_000)  # 24 MB: huggingface_hub writes in pieces of 10
    cut = 15_000_000
    with LocalHub({"some/model": files}, cut={"model.safetensors": cut}) as hub:
        env = hub.environment(tmp_path / "home")
        answer = ask(env, "some/model")
        if answer.startswith("ERROR"):  # some versions of huggingface_hub go on by themselves
            assert "'some/model'" in answer and "try again" in answer and "\n" not in answer
            answer = ask(env, "some/model")
        assert (Path(answer) / "model.safetensors").read_bytes() == files["model.safetensors"]
        first, second = hub.transfers("model.safetensors")
        assert first == 0 and 0 < second <= cut


def test_hub_errors_are_one_line_that_names_the_repository(tmp_path):
    with LocalHub({}, gated=("some/gated",)) as hub:
        env = hub.environment(tmp_path / "home")
        answers = {"does not exist": ask(env, "some/unknown"), "is gated": ask(env, "some/gated")}
    answers["can't be reached"] = ask(env, "some/model")
    for reason, answer in answers.items():
        assert answer.startswith("ERROR 'some/") and reason in answer and "\n" not in answer
    assert "'tiny' needs no network" in answers["can't be reached"]


# ----------------------------------------------------------------------------------------- config


def test_json_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no config.json")):
        load.read_json(tmp_path, "config.json")
    for content in (b"{", b"[1]", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
            load.read_json(tmp_path, "config.json")


@pytest.mark.parametrize("tied", [False, True])
def test_nested_config_of_transformers_flattens_to_the_flat_one(tmp_path, tied):
    from transformers import Qwen2VLConfig

    text = TEXT | {"tie_word_embeddings": tied, "rope_scaling": dict(FLAT["rope_scaling"])}
    nested = Qwen2VLConfig(
        text_config=text, vision_config=VISION | {"in_channels": 3}, image_token_id=7
    )
    nested.dtype = torch.float32
    nested.save_pretrained(tmp_path)
    assert "text_config" in load.read_json(tmp_path, "config.json")
    flat, wanted = load.read_config(tmp_path), FLAT | {"tie_word_embeddings": tied}
    plain = FLAT.keys() - {"vision_config"}
    assert {key: flat[key] for key in plain} == {key: wanted[key] for key in plain}
    assert flat["vision_config"].items() >= FLAT["vision_config"].items()
    assert not {"text_config", "dtype"} & flat.keys() and "in_channels" not in flat["vision_config"]


@pytest.mark.parametrize("size", ["2b", "7b", "72b"])
def test_official_config_saved_nested_flattens_to_itself(official, tmp_path, size):
    from transformers import Qwen2VLConfig

    flat = json.loads((official / f"config-{size}.json").read_text())
    assert load.flatten_config(flat) == flat
    Qwen2VLConfig(**deepcopy(flat)).save_pretrained(tmp_path)  # it changes what it is given
    again = load.read_config(tmp_path)
    plain = flat.keys() - {"vision_config", "transformers_version"}
    assert {key: again[key] for key in plain} == {key: flat[key] for key in plain}
    assert again["vision_config"].items() >= flat["vision_config"].items()


@pytest.mark.parametrize("tied", [False, True])
def test_nested_config_of_transformers_5_flattens_to_the_flat_one(tmp_path, tied):
    rope = {
        "mrope_section": SECTION,
        "rope_theta": 1000000.0,
        "rope_type": "default",
        "type": "mrope",
    }
    text = {key: value for key, value in TEXT.items() if key != "rope_theta"}  # as 5.23 writes it
    text |= {
        "model_type": "qwen2_vl_text",
        "rope_parameters": rope,
        "layer_types": ["full_attention"] * 2,
    }
    text |= {"dtype": "float32", "pad_token_id": None, "sliding_window": None}
    vision = VISION | {
        "in_channels": 3,
        "model_type": "qwen2_vl_vision",
        "hidden_act": "quick_gelu",
    }
    vision |= {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}
    nested = {
        "model_type": "qwen2_vl",
        "image_token_id": 7,
        "dtype": "float32",
        "tie_word_embeddings": tied,
    }
    nested |= {"text_config": text, "vision_config": vision}
    flat = load.read_config(write(tmp_path, config=nested))
    vision = flat.pop("vision_config")
    wanted = FLAT | {"tie_word_embeddings": tied}
    assert vision.items() >= wanted.pop("vision_config").items()
    assert flat == wanted | {"layer_types": text["layer_types"]}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_type": "qwen2_5_vl"}, "qwen2_5_vl"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": None}, "None"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": SECTION}}, "yarn"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "yarn", "mrope_section": SECTION}}},
            "yarn",
        ),
        ({"text_config": {"use_sliding_window": True}}, "use_sliding_window is True"),
        ({"vision_config": {"hidden_act": "silu"}}, "vision_config.hidden_act is 'silu'"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_name(tmp_path, change, named):
    assert load.read_config(write(tmp_path, config=FLAT)) == FLAT
    with pytest.raises(ValueError, match=named) as error:
        load.read_config(write(tmp_path, config=FLAT | change))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


# -------------------------------------------------------------------------------------- tokenizer


def small_bpe(
    folder: Path, stated: dict[int, dict] | None = None, shift: int = 0
) -> dict[str, int]:
    """A BPE whose `<|im_end|>` stands in tokenizer.json, its vision tokens only in
    tokenizer_config.json.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a red circle, a blue square"] * 4, trainer)
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(write(folder) / "tokenizer.json"))
    first = tokenizer.get_vocab_size() + shift
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    ids = {content: first + i for i, content in enumerate([*special, "<box>"])}
    ids["<|im_end|>"] = tokenizer.token_to_id("<|im_end|>")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(id): {
            "content": content,
            "special": content != "<box>",
            **flags,
            "lstrip": content == "<box>",
        }
        for content, id in reversed(ids.items())  # the order in the file must not matter
    }
    write(folder, tokenizer_config={"added_tokens_decoder": decoder | (stated or {})})
    return ids


def test_tokens_only_in_tokenizer_config_get_their_stated_ids(tmp_path):
    ids = small_bpe(tmp_path)
    tokenizer = load.load_tokenizer(tmp_path)
    assert tokenizer.encode("<|vision_start|><|image_pad|><|vision_end|><|im_end|>").ids == [
        ids[content]
        for content in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|im_end|>")
    ]
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ids["<|image_pad|>"] not in bare.encode("<|image_pad|>").ids


def test_special_tokens_are_dropped_in_decoding_and_the_others_keep_their_flags(tmp_path):
    ids = small_bpe(tmp_path)
    tokenizer = load.load_tokenizer(tmp_path)
    encoded = tokenizer.encode("a   <box><|vision_start|>").ids
    assert encoded[-2:] == [ids["<box>"], ids["<|vision_start|>"]]
    assert tokenizer.decode(encoded[-2:], skip_special_tokens=True) == "<box>"
    assert tokenizer.decode(encoded[:-2]) == "a"  # lstrip: the token took the blanks before it


def test_an_id_that_cannot_be_had_is_an_error_with_both_ids(tmp_path):
    stated = small_bpe(tmp_path, shift=3)["<|vision_start|>"]
    with pytest.raises(ValueError, match=rf"vision_start.* {stated - 3}, .* {stated}"):
        load.load_tokenizer(tmp_path)
    small_bpe(tmp_path, stated={"5": {"content": "<|im_end|>", "special": True}})
    with pytest.raises(ValueError, match=r"im_end.*says 5"):
        load.load_tokenizer(tmp_path)


def test_a_missing_or_broken_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no tokenizer.json")):
        load.load_tokenizer(tmp_path)
    for content in ("{", '{"version": "1.0"}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json can't be read as a tokenizer"):
            load.load_tokenizer(tmp_path)


def test_official_tokenizer_without_its_last_tokens_is_completed(official, tmp_path):
    content = json.loads((official / "tokenizer.json").read_text(encoding="utf-8"))
    whole = Tokenizer.from_file(str(official / "tokenizer.json"))
    cut = [token for token in content["added_tokens"] if token["id"] >= 151646]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 151646]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    stated = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in cut}
    write(tmp_path, tokenizer_config={"added_tokens_decoder": stated})
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>naïve "
    text += "<|box_start|>(1)<|box_end|> 漢字"
    assert len(cut) >= 10
    assert load.load_tokenizer(tmp_path).encode(text).ids == whole.encode(text).ids
    assert (
        Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
        != whole.encode(text).ids
    )
    write(tmp_path, tokenizer_config={})
    assert load.load_tokenizer(official).encode(text).ids == whole.encode(text).ids


# ------------------------------------------------------------------------------- dtype and device


def test_auto_dtype_is_the_configs_else_the_one_in_the_weights(tmp_path):
    assert load.checkpoint_dtype({"torch_dtype": "bfloat16"}, tmp_path, "auto") == torch.bfloat16
    assert load.checkpoint_dtype({"torch_dtype": "bfloat16"}, tmp_path, "float32") == torch.float32
    assert load.checkpoint_dtype({}, tmp_path, torch.float16) == torch.float16
    stored = {"a": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(2).half()}
    save_file(stored, tmp_path / "model.safetensors")
    assert load.checkpoint_dtype({}, tmp_path, "auto") == torch.float16


@pytest.mark.parametrize("dtype", ["float64", "int8", torch.int8, "fp16", None])
def test_other_dtypes_are_refused_with_the_three_that_work(tmp_path, dtype):
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        load.checkpoint_dtype({}, tmp_path, dtype)
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        load.checkpoint_dtype({"torch_dtype": str(dtype)}, tmp_path, "auto")


def with_devices(monkeypatch, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 9 * 10**9))


@pytest.mark.parametrize(
    "cuda, mps, chosen", [(0, False, "cpu"), (0, True, "mps"), (2, True, "cuda:0")]
)
def test_auto_is_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, chosen):
    with_devices(monkeypatch, cuda, mps)
    assert load.pick_device("auto", 1) == torch.device(chosen)


def test_a_device_asked_for_is_taken_or_refused_by_name(monkeypatch):
    with_devices(monkeypatch, cuda=2, mps=False)
    for wanted in ("cpu", torch.device("cpu"), "cuda:1", torch.device("cuda:1")):
        assert load.pick_device(wanted, 1) == torch.device(wanted)
    for wanted in ("cuda:2", "mps", "meta", "balanced", "gpu", 1, {"visual": "cpu"}, None):
        with pytest.raises(
            ValueError, match=r"device .* is not there: this PyTorch sees cuda:0, cuda:1, cpu"
        ):
            load.pick_device(wanted, 1)
    with_devices(monkeypatch, cuda=0, mps=False)
    with pytest.raises(ValueError, match="'cuda' is not there"):
        load.pick_device("cuda", 1)


def test_weights_that_do_not_fit_are_refused_with_both_numbers(monkeypatch):
    assert load.pick_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(MemoryError, match=r"take 1000000000.0 GB, cpu has [\d.]+ GB free"):
        load.pick_device("cpu", 10**18)
    with_devices(monkeypatch, cuda=1, mps=False)
    with pytest.raises(MemoryError, match=r"take 8.5 GB, cuda:0 has 8.0 GB free"):
        load.pick_device("auto", 85 * 10**8)


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("most, files", [(10**9, 1), (200, 2), (1, 4)])
def test_what_is_saved_in_shards_or_whole_is_read_back_bit_for_bit(tmp_path, most, files):
    tensors = random_tensors() | {"layers.0.weight": random_tensors()["layers.0.weight"].T}
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=most)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert_same(read_all(tmp_path, shapes(tensors)), tensors)
    assert load.read_config(tmp_path) == FLAT
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (files > 1)
    if files > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        assert json.loads(index.read_text())["metadata"]["total_size"] == total


def test_tensors_come_in_the_dtype_asked_for(tmp_path):
    tensors = random_tensors(2)
    load.save_checkpoint(tmp_path, FLAT, tensors)
    found = read_all(tmp_path, shapes(tensors), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert_same(found, {name: tensor.bfloat16() for name, tensor in tensors.items()})


def test_saving_over_an_earlier_checkpoint_leaves_only_the_new_one(tmp_path):
    (tmp_path / "model_ema.safetensors").write_bytes(b"mine")
    for most in (1, 200, 10**9, 1):
        tensors = random_tensors(3 if most == 200 else 4)
        load.save_checkpoint(tmp_path, FLAT, tensors, generation_config={}, max_shard_size=most)
        assert_same(read_all(tmp_path, shapes(tensors)), tensors)
        shards = {file.name for file in tmp_path.glob("model[.-]*safetensors")}
        index = tmp_path / "model.safetensors.index.json"
        named = (
            json.loads(index.read_text())["weight_map"].values()
            if most < 10**9
            else ["model.safetensors"]
        )
        assert shards == set(named) and index.exists() == (most < 10**9)
    assert (tmp_path / "model_ema.safetensors").read_bytes() == b"mine"


def test_a_crash_while_saving_leaves_the_earlier_checkpoint_whole(tmp_path, monkeypatch):
    tensors = random_tensors()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    written = []

    def crash(shard, file, metadata):
        written.append(file)
        file.write_bytes(b"half")
        if len(written) == 2:
            raise OSError("the disk is full")

    monkeypatch.setattr(load, "save_file", crash)
    with pytest.raises(OSError, match="full"):
        load.save_checkpoint(tmp_path, {}, random_tensors(3), max_shard_size=1)
    after = {
        file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".partial"
    }
    assert after == before and len(list(tmp_path.iterdir())) > len(before)
    monkeypatch.undo()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    assert {file.name for file in tmp_path.iterdir()} == before.keys()


def test_all_that_does_not_fit_is_listed_before_any_data_is_read(tmp_path, monkeypatch):
    tensors = random_tensors()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    expected = shapes(tensors) | {"layers.0.weight": (7, 7), "head.weight": (2, 3)}
    del expected["layers.1.weight"]
    monkeypatch.setattr(load, "tqdm", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(ValueError) as error:
        read_all(tmp_path, expected)
    assert str(error.value).splitlines() == [
        f"3 tensors in {tmp_path} don't fit the config (20 are listed at most):",
        "  head.weight is missing, should be (2, 3)",
        "  layers.0.weight is (3, 5), should be (7, 7)",
        "  layers.1.weight is (3, 6), should be absent",
    ]


def test_a_long_list_of_problems_is_cut(tmp_path):
    load.save_checkpoint(tmp_path, FLAT, random_tensors(1))
    with pytest.raises(ValueError, match=r"^39 tensors") as error:
        read_all(tmp_path, shapes(random_tensors(40)))
    assert len(str(error.value).splitlines()) == 21


def test_what_the_index_promises_and_is_not_there_is_an_error(tmp_path):
    tensors, second = random_tensors(2), tmp_path / "model-00002-of-00002.safetensors"
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    save_file({"other": torch.zeros(1)}, second)
    with pytest.raises(
        ValueError, match=r"layers.1.weight is missing(.|\n)* other is \(1,\), should be absent$"
    ):
        read_all(tmp_path, shapes(tensors))
    second.unlink()
    with pytest.raises(FileNotFoundError, match=second.name):
        read_all(tmp_path, shapes(tensors))


def test_ignored_names_may_be_there_or_not_and_are_never_handed_out(tmp_path):
    tensors = random_tensors()
    rest = {name: tensor for name, tensor in tensors.items() if name != "layers.3.weight"}
    for saved in (tensors, rest):
        load.save_checkpoint(tmp_path, FLAT, saved, max_shard_size=1)
        assert_same(read_all(tmp_path, shapes(rest), ignored=frozenset({"layers.3.weight"})), rest)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, keep):
    tensors = random_tensors()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=200)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{shard.name} is broken or cut short") as error:
        read_all(tmp_path, shapes(tensors))
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_or_with_an_empty_index_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no weights"):
        read_all(tmp_path, {})
    write(tmp_path, **{"model.safetensors.index": {"weight_map": {}}})
    with pytest.raises(ValueError, match="a is missing"):
        read_all(tmp_path, {"a": (1,)})


@pytest.mark.parametrize("tied, size", [(False, "5GB"), (True, "5GB"), (False, "30KB")])
def test_a_checkpoint_saved_by_transformers_is_read(tmp_path, tied, size):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = TEXT | {"tie_word_embeddings": tied, "rope_scaling": dict(FLAT["rope_scaling"])}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=VISION))
    model.save_pretrained(tmp_path, max_shard_size=size)
    state = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in model.state_dict().items()
    }
    if tied:
        state.pop("lm_head.weight")
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "30KB")
    assert_same(read_all(tmp_path, shapes(state)), state)
    assert load.read_config(tmp_path)["tie_word_embeddings"] == tied


def test_transformers_reads_what_is_saved_here(tmp_path):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**deepcopy(FLAT)))
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    load.save_checkpoint(
        tmp_path / "ours", FLAT, tensors, {"do_sample": False}, max_shard_size=30_000
    )
    again, info = Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    assert_same(again.state_dict(), model.state_dict())


MEASURE = """
import sys, torch, load
from pathlib import Path
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
shapes = {f"w{i}": (2**21,) for i in range(24)}
Path("/proc/self/clear_refs").write_text("5")
before = peak()
dtype = getattr(torch, sys.argv[2])
kept = dict(load.read_weights(Path(sys.argv[1]), shapes, torch.device("cpu"), dtype))
print(peak() - before)
print(sum(float(t.sum()) for t in kept.values()), peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is Linux's to tell"
)
@pytest.mark.parametrize(
    ("dtype", "loaded", "used"),
    [
        (
            "float32",
            (0, 8),
            (192, 200),
        ),  # MiB: 24 tensors of 8, which stay in the files until they are used
        (
            "bfloat16",
            (96, 160),
            (96, 160),
        ),  # copies of 4, one file of 48 at a time, and 16 for the rest
    ],
)
def test_reading_takes_no_memory_or_that_of_the_copies_and_a_file(tmp_path, dtype, loaded, used):
    weights = {f"w{i}": torch.ones(2**21) for i in range(24)}
    load.save_checkpoint(tmp_path, FLAT, weights, max_shard_size=6 * 2**23)
    assert len(list(tmp_path.glob(load.SHARDS))) == 4
    command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    peak, total, peak_used = map(float, result.stdout.split())
    assert total == 24 * 2**21
    assert loaded[0] <= peak <= loaded[1] and used[0] <= peak_used <= used[1]


def test_changing_a_loaded_weight_leaves_its_file_alone(tmp_path):
    load.save_checkpoint(tmp_path, FLAT, {"w": torch.ones(4)})
    for _ in range(2):
        ((_, weight),) = load.read_weights(
            tmp_path, {"w": (4,)}, torch.device("cpu"), torch.float32
        )
        assert weight.tolist() == [1.0] * 4
        weight += 1


def test_importing_loads_no_hub_library():
    code = (
        "import sys, load; print('huggingface_hub' in sys.modules, 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"] and result.stderr == ""
