"""A name to a folder, and a folder to config, tokenizer and weights."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

import load
from qwen2vl_extras import devices
from tests.helpers.hub import LocalHub
from tests.helpers.reference import official_names

ROOT = Path(load.__file__).parent
INDEX = "model.safetensors.index.json"

# A small config.json, nested as transformers writes it and flat as the official ones are.
SECTION = [2, 3, 3]
ROPE_SCALING = {"type": "mrope", "mrope_section": SECTION}
YARN = {"rope_type": "yarn", "mrope_section": SECTION}
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
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
FLAT = {
    "model_type": "qwen2_vl",
    "image_token_id": 7,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    **TEXT,
    "rope_scaling": ROPE_SCALING,
    "vision_config": {**VISION, "in_chans": 3},
}


def flat_config(**changes: object) -> dict:
    """The flat config, with some entries changed."""
    config = deepcopy(FLAT)
    config.update(changes)
    return config


def transformers_config(tied: bool) -> transformers.Qwen2VLConfig:
    """The reference's config, from which the flat one would come."""
    text = {**TEXT, "tie_word_embeddings": tied, "rope_scaling": dict(ROPE_SCALING)}
    vision = {**VISION, "in_channels": 3}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=7)
    config.dtype = torch.float32
    return config


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_equal_configs(found: dict, expected: dict, ignored: tuple[str, ...] = ()) -> None:
    """The entries of `expected` are in `found`, but for those that are ignored."""
    for key, value in expected.items():
        if key == "vision_config":
            assert found[key].items() >= value.items()
        elif key not in ignored:
            assert found[key] == value, key


def random_tensors(count: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i in range(count):
        tensors[f"layers.{i}.weight"] = torch.randn(3, 5 + i, generator=generator)
    return tensors


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_all(
    folder: Path,
    expected: dict[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    ignored: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    headers = load.match_tensors(folder, load.tensor_headers(folder), expected, ignored)
    pairs = list(load.read_weights(headers, torch.device("cpu"), dtype))
    assert len(pairs) == len(dict(pairs)), "a tensor came twice"
    return dict(pairs)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def run_python(
    code: str, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which must exit with 0."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


# -------------------------------------------------------------------------------- names and folders


def test_a_folder_is_itself_and_tiny_is_reserved(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load.find_checkpoint(tmp_path) == tmp_path
    assert load.find_checkpoint("./tiny") == Path("tiny")
    # "tiny" is the folder beside load.py, not the one in the working directory.
    assert load.find_checkpoint("tiny") == ROOT / "tiny" / "checkpoint"
    elsewhere = tmp_path / "elsewhere" / "checkpoint"
    monkeypatch.setattr(load, "EMBEDDED", elsewhere)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        load.find_checkpoint("tiny")
    elsewhere.mkdir(parents=True)
    assert load.find_checkpoint("tiny") == elsewhere


def test_what_is_neither_folder_nor_hub_name_is_refused_by_name(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for name in ("nowhere", "/no/such/folder", "./a/b", "a/b/c", str(file)):
        with pytest.raises(FileNotFoundError, match=f"'{re.escape(name)}' is neither a folder"):
            load.find_checkpoint(name)


# ------------------------------------------------------------------------------------------ the Hub

ASK = """
import sys, load
try:
    print(load.find_checkpoint(sys.argv[1], weights=sys.argv[2] == "weights"))
except OSError as error:
    print("ERROR", error)
"""


def ask(env: dict[str, str], repo: str, what: str = "weights") -> str:
    """What a new process gets from `find_checkpoint`.

    A new one, because huggingface_hub reads its variables when it is imported.
    """
    return run_python(ASK, repo, what, env=env).stdout.strip()


def ask_offline(hub: LocalHub, home: Path, repo: str) -> str:
    return ask(hub.environment(home, HF_HUB_OFFLINE="1"), repo)


def assert_error(answer: str, repo: str, *parts: str) -> None:
    """The answer is an error of one line that names the repository and all parts."""
    assert answer.startswith(f"ERROR '{repo}'")
    assert "\n" not in answer
    for part in parts:
        assert part in answer


def repository(tmp_path: Path, size: int = 1000) -> dict[str, bytes]:
    """A repository with `size` weights, and files that are not needed."""
    folder = tmp_path / "repository"
    tensors = {"w": torch.arange(size, dtype=torch.float32)}
    load.save_checkpoint(folder, FLAT, tensors, generation_config={"do_sample": False})
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    files["README.md"] = b"long"
    files["pytorch_model.bin"] = b"big"
    files["onnx/model.safetensors"] = b"other"
    return files


def test_hub_download_takes_only_the_needed_files_and_then_works_offline(tmp_path):
    files = repository(tmp_path)
    home = tmp_path / "home"
    with LocalHub({"some/model": files}) as hub:
        env = hub.environment(home)
        # Without weights first: with those alone nothing can be loaded offline.
        texts = Path(ask(env, "some/model", "texts"))
        names = {file.name for file in texts.iterdir()}
        assert names == {"config.json", "generation_config.json"}
        assert_error(ask_offline(hub, home, "some/model"), "some/model", "cache")

        folder = Path(ask(env, "some/model"))
        names = {file.name for file in folder.iterdir()}
        assert names == {"config.json", "generation_config.json", "model.safetensors"}
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]

        requests = len(hub.log)
        assert Path(ask_offline(hub, home, "some/model")) == folder
        assert len(hub.log) == requests
    assert Path(ask(env, "some/model")) == folder  # the Hub is gone, the cache is not


def test_hub_download_takes_every_file_that_a_processor_reads(tmp_path):
    files = repository(tmp_path)
    needed = {
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.json",
        "chat_template.jinja",
        "additional_chat_templates/short.jinja",
        "adapter_config.json",
    }
    useless = {"README.md", "pytorch_model.bin", "modeling.py", "training_args.bin"}
    for name in needed | useless:
        files[name] = b"{}"
    with LocalHub({"some/model": files}) as hub:
        folder = Path(ask(hub.environment(tmp_path / "home"), "some/model", "texts"))
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == needed | {"config.json", "generation_config.json"}


def test_hub_download_cut_in_the_middle_is_resumed(tmp_path):
    files = repository(tmp_path, size=6_000_000)  # 24 MB: huggingface_hub writes 10 at a time
    cut = 15_000_000
    with LocalHub({"some/model": files}, cut={"model.safetensors": cut}) as hub:
        env = hub.environment(tmp_path / "home")
        answer = ask(env, "some/model")
        if answer.startswith("ERROR"):  # some versions of huggingface_hub go on by themselves
            assert_error(answer, "some/model", "try again")
            answer = ask(env, "some/model")
        assert (Path(answer) / "model.safetensors").read_bytes() == files["model.safetensors"]
        first, second = hub.transfers("model.safetensors")
        assert first == 0
        assert 0 < second <= cut


def test_hub_errors_are_one_line_that_names_the_repository(tmp_path):
    with LocalHub({}, gated=("some/gated",)) as hub:
        env = hub.environment(tmp_path / "home")
        assert_error(ask(env, "some/unknown"), "some/unknown", "does not exist")
        assert_error(ask(env, "some/gated"), "some/gated", "is gated")
    answer = ask(env, "some/model")
    assert_error(answer, "some/model", "can't be reached", "'tiny' needs no network")


# ------------------------------------------------------------------------------------------- config


def test_json_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no config.json")):
        load.read_json(tmp_path, "config.json")
    file = tmp_path / "config.json"
    for content in (b"{", b"[1]", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load.read_json(tmp_path, "config.json")


@pytest.mark.parametrize("tied", [False, True])
def test_nested_config_of_transformers_flattens_to_the_flat_one(tmp_path, tied):
    transformers_config(tied).save_pretrained(tmp_path)
    assert "text_config" in load.read_json(tmp_path, "config.json")
    found = load.read_config(tmp_path)
    assert_equal_configs(found, flat_config(tie_word_embeddings=tied))
    assert "text_config" not in found
    assert "dtype" not in found
    assert "in_channels" not in found["vision_config"]


@pytest.mark.parametrize("size", ["2b", "7b", "72b"])
def test_official_config_saved_nested_flattens_to_itself(official, tmp_path, size):
    flat = read_json(official / f"config-{size}.json")
    assert load.flatten_config(flat) == flat
    # A copy, since the reference changes what it is given.
    transformers.Qwen2VLConfig(**deepcopy(flat)).save_pretrained(tmp_path)
    found = load.read_config(tmp_path)
    assert_equal_configs(found, flat, ignored=("transformers_version",))


@pytest.mark.parametrize("tied", [False, True])
def test_nested_config_of_transformers_5_flattens_to_the_flat_one(tmp_path, tied):
    # As 5.23 writes it.
    layer_types = ["full_attention"] * 2
    text = {
        **TEXT,
        "model_type": "qwen2_vl_text",
        "rope_parameters": {
            "mrope_section": SECTION,
            "rope_theta": TEXT["rope_theta"],
            "rope_type": "default",
            "type": "mrope",
        },
        "layer_types": layer_types,
        "dtype": "float32",
        "pad_token_id": None,
        "sliding_window": None,
    }
    del text["rope_theta"]
    vision = {
        **VISION,
        "in_channels": 3,
        "model_type": "qwen2_vl_vision",
        "hidden_act": "quick_gelu",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    }
    nested = {
        "model_type": "qwen2_vl",
        "image_token_id": 7,
        "dtype": "float32",
        "tie_word_embeddings": tied,
        "text_config": text,
        "vision_config": vision,
    }
    write_json(tmp_path / "config.json", nested)
    found = load.read_config(tmp_path)
    expected = flat_config(tie_word_embeddings=tied, layer_types=layer_types)
    assert found.keys() == expected.keys()
    assert_equal_configs(found, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2_5_vl"}, "qwen2_5_vl"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": None}, "None"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": SECTION}}, "yarn"),
        ({"text_config": {"rope_parameters": YARN}}, "yarn"),
        ({"text_config": {"use_sliding_window": True}}, "use_sliding_window is True"),
        ({"vision_config": {"hidden_act": "silu"}}, "vision_config.hidden_act is 'silu'"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_name(tmp_path, change, named):
    write_json(tmp_path / "config.json", FLAT)
    assert load.read_config(tmp_path) == FLAT
    write_json(tmp_path / "config.json", flat_config(**change))
    with pytest.raises(ValueError, match=named) as error:
        load.read_config(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- tokenizer

# Tokens that small_tokenizer has in tokenizer_config.json only; all but the last are special.
ADDED_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<box>"]


def small_tokenizer(folder: Path) -> dict[str, int]:
    """Write a tokenizer whose `<|im_end|>` stands in tokenizer.json, ADDED_TOKENS elsewhere.

    Returns the ids of all five.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["a red circle, a blue square"] * 4, trainer)
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))

    first = tokenizer.get_vocab_size()
    ids = {content: first + i for i, content in enumerate(ADDED_TOKENS)}
    ids["<|im_end|>"] = tokenizer.token_to_id("<|im_end|>")
    write_added_tokens(folder, ids)
    return ids


def write_added_tokens(folder: Path, ids: dict[str, int]) -> None:
    """Write a tokenizer_config.json that gives these tokens these ids."""
    stated = {}
    for content, token_id in reversed(ids.items()):  # the order in the file must not matter
        stated[str(token_id)] = {
            "content": content,
            "special": content != "<box>",
            "lstrip": content == "<box>",
            "normalized": False,
            "rstrip": False,
            "single_word": False,
        }
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": stated})


def test_tokens_only_in_tokenizer_config_get_their_stated_ids(tmp_path):
    ids = small_tokenizer(tmp_path)
    tokens = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|im_end|>"]
    encoded = load.load_tokenizer(tmp_path).encode("".join(tokens)).ids
    assert encoded == [ids[token] for token in tokens]
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ids["<|image_pad|>"] not in bare.encode("<|image_pad|>").ids


def test_special_tokens_are_dropped_in_decoding_and_the_others_keep_their_flags(tmp_path):
    ids = small_tokenizer(tmp_path)
    tokenizer = load.load_tokenizer(tmp_path)
    encoded = tokenizer.encode("a   <box><|vision_start|>").ids
    assert encoded[-2:] == [ids["<box>"], ids["<|vision_start|>"]]
    assert tokenizer.decode(encoded[-2:], skip_special_tokens=True) == "<box>"
    assert tokenizer.decode(encoded[:-2]) == "a"  # lstrip: the token took the blanks before it


def test_an_id_that_cannot_be_had_is_an_error_with_both_ids(tmp_path):
    ids = small_tokenizer(tmp_path)
    # Ids that leave a gap.
    first = ids["<|vision_start|>"]
    shifted = {}
    for content in ADDED_TOKENS:
        shifted[content] = ids[content] + 3
    write_added_tokens(tmp_path, shifted)
    with pytest.raises(ValueError, match=rf"vision_start.* {first}, .* {first + 3}"):
        load.load_tokenizer(tmp_path)

    # Another id than tokenizer.json gives.
    write_added_tokens(tmp_path, {"<|im_end|>": 5})
    with pytest.raises(ValueError, match=rf"im_end.* {ids['<|im_end|>']}, .*says 5"):
        load.load_tokenizer(tmp_path)


def test_a_missing_or_broken_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no tokenizer.json")):
        load.load_tokenizer(tmp_path)
    for content in ("{", '{"version": "1.0"}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json can't be read as a tokenizer"):
            load.load_tokenizer(tmp_path)


def test_official_tokenizer_without_its_last_tokens_is_completed(official, tmp_path):
    whole = Tokenizer.from_file(str(official / "tokenizer.json"))
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>naïve "
    text += "<|box_start|>(1)<|box_end|> 漢字"
    expected = whole.encode(text).ids

    # The last tokens stand in tokenizer_config.json only, as in the official repositories.
    content = read_json(official / "tokenizer.json")
    kept = []
    moved = {}
    for token in content["added_tokens"]:
        if token["id"] < 151646:
            kept.append(token)
        else:
            moved[str(token.pop("id"))] = token
    assert len(moved) >= 10
    content["added_tokens"] = kept
    write_json(tmp_path / "tokenizer.json", content)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": moved})
    assert load.load_tokenizer(tmp_path).encode(text).ids == expected
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert bare.encode(text).ids != expected

    # And a tokenizer.json that has them all needs no other file.
    assert load.load_tokenizer(official).encode(text).ids == expected


# --------------------------------------------------------------------------------- dtype and device


def test_auto_dtype_is_the_configs_else_the_one_in_the_weights(tmp_path):
    stated = {"torch_dtype": "bfloat16"}
    assert load.checkpoint_dtype(stated, tmp_path, "auto") == torch.bfloat16
    assert load.checkpoint_dtype(stated, tmp_path, "float32") == torch.float32
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


def pretend_devices(monkeypatch, cuda: int, mps: bool) -> None:
    """Let PyTorch say that it sees so many CUDA devices of 8 GB, and MPS or not."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 9 * 10**9))


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(0, False, "cpu"), (0, True, "mps"), (2, True, "cuda:0")]
)
def test_auto_is_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, chosen):
    pretend_devices(monkeypatch, cuda, mps)
    assert devices.pick_device("auto", 1) == torch.device(chosen)


def test_a_device_asked_for_is_taken_or_refused_by_name(monkeypatch):
    pretend_devices(monkeypatch, cuda=2, mps=False)
    for wanted in ("cpu", torch.device("cpu"), "cuda:1", torch.device("cuda:1")):
        assert devices.pick_device(wanted, 1) == torch.device(wanted)
    expected = r"device .* is not there: this PyTorch sees cuda:0, cuda:1, cpu"
    refused = ("cuda:2", "mps", "mps:0", "cpu:0", "meta", "balanced", "gpu", 1, {"visual": "cpu"})
    for wanted in (*refused, "cuda:", "CUDA", "", "auto ", None):
        with pytest.raises(ValueError, match=expected):
            devices.pick_device(wanted, 1)
    # "cuda" is the device that PyTorch itself means by it.
    for current in (0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        assert devices.pick_device("cuda", 1) == torch.device("cuda", current)
    pretend_devices(monkeypatch, cuda=0, mps=True)
    for wanted in ("mps", "mps:0", torch.device("mps", 0), torch.device("mps")):
        assert devices.pick_device(wanted, 1) == torch.device("mps")
    with pytest.raises(ValueError, match="sees mps, cpu"):
        devices.pick_device("mps:1", 1)
    pretend_devices(monkeypatch, cuda=0, mps=False)
    with pytest.raises(ValueError, match="'cuda' is not there"):
        devices.pick_device("cuda", 1)


def test_weights_that_do_not_fit_are_refused_with_both_numbers(monkeypatch):
    assert devices.pick_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(MemoryError, match=r"take 1000000000.0 GB, cpu has [\d.]+ GB free"):
        devices.pick_device("cpu", 10**18)
    pretend_devices(monkeypatch, cuda=1, mps=False)
    with pytest.raises(MemoryError, match=r"take 8.5 GB, cuda:0 has 8.0 GB free"):
        devices.pick_device("auto", 85 * 10**8)


# ------------------------------------------------------------------------------ saving and reading


@pytest.mark.parametrize(("max_shard_size", "files"), [(10**9, 1), (200, 2), (1, 4)])
def test_what_is_saved_in_shards_or_whole_is_read_back_bit_for_bit(tmp_path, max_shard_size, files):
    tensors = random_tensors()
    tensors["layers.0.weight"] = tensors["layers.0.weight"].T  # not contiguous
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert_same(read_all(tmp_path, shapes(tensors)), tensors)
    assert load.read_config(tmp_path) == FLAT
    assert (tmp_path / INDEX).exists() == (files > 1)
    if files > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        assert read_json(tmp_path / INDEX)["metadata"]["total_size"] == total


def test_tensors_come_in_the_dtype_asked_for(tmp_path):
    tensors = random_tensors(2)
    load.save_checkpoint(tmp_path, FLAT, tensors)
    found = read_all(tmp_path, shapes(tensors), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert_same(found, {name: tensor.bfloat16() for name, tensor in tensors.items()})


def test_saving_over_an_earlier_checkpoint_leaves_only_the_new_one(tmp_path):
    own_file = tmp_path / "model_ema.safetensors"
    own_file.write_bytes(b"mine")
    for max_shard_size, count in ((1, 4), (200, 3), (10**9, 4), (1, 4)):
        tensors = random_tensors(count)
        load.save_checkpoint(
            tmp_path, FLAT, tensors, generation_config={}, max_shard_size=max_shard_size
        )
        assert_same(read_all(tmp_path, shapes(tensors)), tensors)

        # Nothing but what the index names, or the single file.
        is_sharded = max_shard_size < 10**9
        assert (tmp_path / INDEX).exists() == is_sharded
        expected = {"model.safetensors"}
        if is_sharded:
            expected = set(read_json(tmp_path / INDEX)["weight_map"].values())
        assert {file.name for file in tmp_path.glob("model[.-]*safetensors")} == expected
    assert own_file.read_bytes() == b"mine"


def test_a_crash_while_saving_leaves_the_earlier_checkpoint_whole(tmp_path, monkeypatch):
    tensors = random_tensors()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    written = []

    def crash_at_the_second(shard, file, metadata):
        written.append(file)
        file.write_bytes(b"half")
        if len(written) == 2:
            raise OSError("the disk is full")

    monkeypatch.setattr(load, "save_file", crash_at_the_second)
    with pytest.raises(OSError, match="full"):
        load.save_checkpoint(tmp_path, {}, random_tensors(3), max_shard_size=1)
    after = {}
    for file in tmp_path.iterdir():
        if file.suffix != ".partial":
            after[file.name] = file.read_bytes()
    assert after == before
    assert len(list(tmp_path.iterdir())) > len(before)

    # The next one clears up.
    monkeypatch.undo()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    assert {file.name for file in tmp_path.iterdir()} == before.keys()


class Crash(Exception):
    """The process ends here."""


def crash_at(monkeypatch, step: int) -> list[str]:
    """Let the step-th rename or deletion raise Crash; return the list of steps, as they come."""
    steps: list[str] = []
    rename, delete = load.os.replace, Path.unlink

    def count(name: str) -> None:
        if len(steps) == step:
            raise Crash
        steps.append(name)

    def counted_rename(source, target):
        count(f"rename {Path(source).name}")
        rename(source, target)

    def counted_delete(file, missing_ok=False):
        count(f"delete {file.name}")
        delete(file, missing_ok=missing_ok)

    monkeypatch.setattr(load.os, "replace", counted_rename)
    monkeypatch.setattr(Path, "unlink", counted_delete)
    return steps


@pytest.mark.parametrize("old_size", [1, 200, 10**9])
@pytest.mark.parametrize("new_size", [1, 200, 10**9])
def test_a_crash_at_any_rename_leaves_the_old_the_new_or_no_checkpoint(
    tmp_path, monkeypatch, old_size, new_size
):
    old = random_tensors(3)
    new = {name: tensor + 1 for name, tensor in random_tensors(3).items()}
    old_config, new_config = flat_config(vocab_size=100), flat_config(vocab_size=101)
    seen = set()
    step = 0
    while True:
        folder = tmp_path / str(step)
        load.save_checkpoint(folder, old_config, old, {"top_k": 1}, max_shard_size=old_size)
        with monkeypatch.context() as patch:
            steps = crash_at(patch, step)
            try:
                load.save_checkpoint(folder, new_config, new, {"top_k": 2}, max_shard_size=new_size)
                crashed = False
            except Crash:
                crashed = True

        try:
            config = load.read_config(folder)
        except FileNotFoundError as error:
            assert crashed
            assert "saving was interrupted" in str(error)
            seen.add("none")
        else:
            is_new = config["vocab_size"] == 101
            assert_same(read_all(folder, shapes(old)), new if is_new else old)
            assert load.read_json(folder, "generation_config.json")["top_k"] == 1 + is_new, steps
            seen.add("new" if is_new else "old")
        # Saving again mends it.
        load.save_checkpoint(folder, new_config, new, {"top_k": 2}, max_shard_size=new_size)
        assert_same(read_all(folder, shapes(new)), new)
        assert load.read_config(folder)["vocab_size"] == 101
        assert not list(folder.glob("*.partial"))
        if not crashed:
            break
        step += 1
    assert seen == {"old", "none", "new"}
    assert step >= 4


def test_all_that_does_not_fit_is_listed_before_any_data_is_read(tmp_path, monkeypatch):
    tensors = random_tensors()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    expected = shapes(tensors)
    expected["layers.0.weight"] = (7, 7)
    expected["head.weight"] = (2, 3)
    del expected["layers.1.weight"]
    monkeypatch.setattr(load, "tqdm", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(ValueError) as error:
        read_all(tmp_path, expected)
    problems = [
        "layers.0.weight is (3, 5), should be (7, 7)",
        "head.weight is missing, should be (2, 3)",
        "layers.1.weight is (3, 6), should be absent",
    ]
    title = f"3 tensors in {tmp_path} don't fit its config.json: "
    assert str(error.value) == title + "; ".join(problems)


def test_a_long_list_of_problems_is_cut(tmp_path):
    load.save_checkpoint(tmp_path, FLAT, random_tensors(1))
    with pytest.raises(ValueError, match=r"^39 tensors") as error:
        read_all(tmp_path, shapes(random_tensors(40)))
    message = str(error.value)
    assert message.count("is missing") == 5
    assert message.endswith("; and 34 more")
    assert "\n" not in message


def test_what_the_index_promises_and_is_not_there_is_an_error(tmp_path):
    tensors = random_tensors(2)
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=1)
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file({"other": torch.zeros(1)}, second)
    expected = r"layers.1.weight is missing.* other is \(1,\), should be absent$"
    with pytest.raises(ValueError, match=expected):
        read_all(tmp_path, shapes(tensors))
    second.unlink()
    with pytest.raises(FileNotFoundError, match=second.name):
        read_all(tmp_path, shapes(tensors))


def test_ignored_names_may_be_there_or_not_and_are_never_handed_out(tmp_path):
    tensors = random_tensors()
    rest = dict(tensors)
    del rest["layers.3.weight"]
    for saved in (tensors, rest):
        load.save_checkpoint(tmp_path, FLAT, saved, max_shard_size=1)
        found = read_all(tmp_path, shapes(rest), ignored=frozenset({"layers.3.weight"}))
        assert_same(found, rest)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, kept):
    tensors = random_tensors()
    load.save_checkpoint(tmp_path, FLAT, tensors, max_shard_size=200)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{shard.name} is broken or cut short") as error:
        read_all(tmp_path, shapes(tensors))
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_or_with_an_empty_index_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no weights"):
        read_all(tmp_path, {})
    write_json(tmp_path / INDEX, {"weight_map": {}})
    with pytest.raises(ValueError, match="a is missing"):
        read_all(tmp_path, {"a": (1,)})


# ------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize(
    ("tied", "max_shard_size"), [(False, "5GB"), (True, "5GB"), (False, "30KB")]
)
def test_a_checkpoint_saved_by_transformers_is_read(tmp_path, tied, max_shard_size):
    model = transformers.Qwen2VLForConditionalGeneration(transformers_config(tied))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "30KB")

    expected = official_names(model.state_dict())
    if tied:
        expected.pop("lm_head.weight")
    assert_same(read_all(tmp_path, shapes(expected)), expected)
    assert load.read_config(tmp_path)["tie_word_embeddings"] == tied


def test_transformers_reads_what_is_saved_here(tmp_path):
    reference = transformers.Qwen2VLForConditionalGeneration
    model = reference(transformers.Qwen2VLConfig(**deepcopy(FLAT)))
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    folder = tmp_path / "ours"
    load.save_checkpoint(folder, FLAT, tensors, {"do_sample": False}, max_shard_size=30_000)
    again, info = reference.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert_same(again.state_dict(), model.state_dict())


# ------------------------------------------------------------------------------- memory and imports

# Prints how far the peak memory rises by loading, in MiB; the sum of the weights; and how far by
# loading and using them.
MEASURE = """
import sys, torch, load
from pathlib import Path
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
shapes = {f"w{i}": (2**21,) for i in range(24)}
dtype = getattr(torch, sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
folder = Path(sys.argv[1])
headers = load.match_tensors(folder, load.tensor_headers(folder), shapes)
kept = dict(load.read_weights(headers, torch.device("cpu"), dtype))
print(peak() - before)
print(sum(float(t.sum()) for t in kept.values()), peak() - before)
"""


# In MiB, of 24 tensors of 8 in 4 files. In their own dtype they stay in the files until they are
# used. In bfloat16 they are copies of 4, made from one file of 48 at a time, and 16 for the rest.
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is Linux's to tell"
)
@pytest.mark.parametrize(
    ("dtype", "loaded", "used"),
    [("float32", (0, 8), (192, 200)), ("bfloat16", (96, 160), (96, 160))],
)
def test_reading_takes_no_memory_or_that_of_the_copies_and_a_file(tmp_path, dtype, loaded, used):
    weights = {f"w{i}": torch.ones(2**21) for i in range(24)}
    load.save_checkpoint(tmp_path, FLAT, weights, max_shard_size=6 * 2**23)
    assert len(list(tmp_path.glob(load.SHARDS))) == 4
    done = run_python(MEASURE, str(tmp_path), dtype)
    peak_loaded, total, peak_used = map(float, done.stdout.split())
    assert total == 24 * 2**21
    assert loaded[0] <= peak_loaded <= loaded[1]
    assert used[0] <= peak_used <= used[1]


def test_changing_a_loaded_weight_leaves_its_file_alone(tmp_path):
    load.save_checkpoint(tmp_path, FLAT, {"w": torch.ones(4)})
    for _ in range(2):
        weight = read_all(tmp_path, {"w": (4,)})["w"]
        assert weight.tolist() == [1.0] * 4
        weight += 1


def test_importing_loads_no_hub_library():
    code = """
import sys, load
print("huggingface_hub" in sys.modules, "transformers" in sys.modules)
"""
    done = run_python(code)
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == ""
