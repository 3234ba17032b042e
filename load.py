"""A name → a folder → config, tokenizer, weights.

A folder has the official layout: JSON files, and model.safetensors or its shards and their index. Nothing
here knows the model: the caller names the tensors it expects and gets exactly those, plain, or an error.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tqdm import tqdm

SINGLE, INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"
TEXTS = ["config.json", "generation_config.json", "*preprocessor_config.json", "tokenizer*.json"]
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # in a safetensors header → in torch
HUB_ERRORS = {
    "GatedRepoError": "it is gated: accept its terms on its page and log in (hf auth login)",
    "RepositoryNotFoundError": "it does not exist, or is private (then log in: hf auth login)",
    "LocalEntryNotFoundError": "can't be reached, and the cache lacks it ('tiny' needs no network)",
}


def find_checkpoint(name: str | os.PathLike, weights: bool = True) -> Path:
    """The folder of "tiny" (embedded here), of an existing folder, or of a Hub repository "owner/name".

    A repository is downloaded once, with `weights` or without; later it comes from huggingface_hub's cache,
    offline too. Whatever goes wrong is a FileNotFoundError of one line.
    """
    name = os.fspath(name)
    folder = Path(__file__).parent / "tiny" / "checkpoint" if name == "tiny" else Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise FileNotFoundError(f"{name!r} is neither a folder ({folder}) nor a Hub repository (owner/name)")
    from huggingface_hub import snapshot_download  # here: slow to import and seldom needed

    try:
        folder = Path(snapshot_download(name, allow_patterns=TEXTS + [SINGLE, INDEX, SHARDS] * weights))
        if weights and not any(folder.glob("model*.safetensors")):
            raise FileNotFoundError("no model*.safetensors there; offline: none in the cache")
        return folder
    except Exception as error:  # the library's HTTP client, and so what it raises, differs between versions
        other = f"it can't be had ({' '.join(str(error).split())[:200]}): what has arrived is kept, try again"
        reason = HUB_ERRORS.get(type(error).__name__, other)
        raise FileNotFoundError(f"{name!r} is no folder here; on the Hub: {reason}") from error


def read_json(folder: Path, filename: str, optional: bool = False) -> dict:
    """One JSON object from a folder, {} for a missing optional one; the errors name the file."""
    if not (file := folder / filename).is_file():
        if optional:
            return {}
        raise FileNotFoundError(f"{folder} has no {filename}")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # broken JSON, broken UTF-8, a list
        raise ValueError(f"{file} is not a valid JSON object: {error}") from error


def read_config(folder: Path) -> dict:
    """`config.json` in the official flat layout; ValueError names what this project can't run."""
    config = flatten_config(read_json(folder, "config.json"))
    found_and_wanted = {
        "model_type": (config.get("model_type"), "qwen2_vl"),
        "quantization": ((config.get("quantization_config") or {}).get("quant_method"), None),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "vision_config.hidden_act": (config["vision_config"].get("hidden_act", "quick_gelu"), "quick_gelu"),
        "rope_scaling.type": (config["rope_scaling"]["type"], "mrope"),
    }
    for name, (found, wanted) in found_and_wanted.items():
        if found != wanted:
            raise ValueError(f"{folder}: {name} is {found!r} in config.json; only {wanted!r} can be run here")
    return config


def flatten_config(config: dict) -> dict:
    """The official flat layout of a config, also of one that `transformers` from 4.52 on has nested.

    There the text model's fields went under "text_config" (what is still at the top is a leftover), the
    rotary base later into "rope_parameters"; "torch_dtype" became "dtype" and "in_chans" "in_channels".
    """
    flat = dict(config)
    if text := flat.pop("text_config", None):
        text = {key: value for key, value in text.items() if value is not None}
        flat = {"tie_word_embeddings": False} | flat | text | {"model_type": flat.get("model_type")}
    rope = dict(flat.pop("rope_parameters", None) or flat.get("rope_scaling") or {})
    kind = rope.pop("rope_type", rope.pop("type", "mrope"))  # newer files have both, and call it "default"
    flat["rope_theta"] = rope.pop("rope_theta", flat.get("rope_theta"))
    flat["rope_scaling"] = rope | {"type": "mrope" if kind == "default" else kind}
    flat["torch_dtype"] = flat.pop("dtype", flat.get("torch_dtype"))
    flat["vision_config"] = vision = dict(flat.get("vision_config") or {})
    vision["in_chans"] = vision.pop("in_channels", vision.get("in_chans"))
    return flat


def load_tokenizer(folder: Path) -> Tokenizer:
    """`tokenizer.json` and the tokens that official repositories have only in `tokenizer_config.json`."""
    if not (file := folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{file} can't be read as a tokenizer: {error}") from error
    stated = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
    tokens = {id: AddedToken(**stated[str(id)]) for id in sorted(map(int, stated))}
    tokenizer.add_tokens(list(tokens.values()))  # a known one keeps its id, a new one gets the next
    for id, token in tokens.items():
        if (found := tokenizer.token_to_id(token.content)) != id:
            raise ValueError(f"{file}: {token.content} gets id {found}, tokenizer_config.json says {id}")
    return tokenizer


def checkpoint_dtype(config: dict, folder: Path, dtype: str | torch.dtype) -> torch.dtype:
    """The dtype asked for; "auto" is the checkpoint's: the config's, else its first floating tensor's."""
    if dtype == "auto" and not (dtype := config.get("torch_dtype")):
        dtype = next((DTYPES[kind] for *_, kind in _headers(folder).values() if kind in DTYPES), None)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES.values():
        raise ValueError(f"dtype {name!r} is not one of {', '.join(DTYPES.values())}")
    return getattr(torch, name)


def pick_device(device_map: str | torch.device, nbytes: int) -> torch.device:
    """The one device asked for ("auto": CUDA, else MPS, else CPU), if it is there and `nbytes` fit in it."""
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    present += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    device = {"auto": present[0], "cuda": "cuda:0"}.get(str(device_map), str(device_map))
    if device not in present:
        raise ValueError(f"device '{device_map}' is not there: this PyTorch sees {', '.join(present)}")
    free = float("inf")  # Windows does not say
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what PyTorch keeps of freed tensors is free as well
        free = torch.cuda.mem_get_info(device)[0]
    elif sys.platform == "linux":
        free = 1024 * int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1])
    elif sys.platform == "darwin":  # all of it (MPS shares it): what of it is free the system does not say
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > free:
        raise MemoryError(f"the weights take {nbytes / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free")
    return torch.device(device)


def _headers(folder: Path) -> dict[str, tuple[Path, tuple, str]]:
    """Each tensor's file, shape and dtype, from the heads of the files."""
    if (folder / SINGLE).exists():
        files = {SINGLE}
    elif (folder / INDEX).exists():
        files = set(read_json(folder, INDEX).get("weight_map", {}).values())
    else:
        raise FileNotFoundError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")
    headers = {}
    for file in sorted(folder / file for file in files):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in sorted(weights.keys()):
                    part = weights.get_slice(name)
                    headers[name] = file, tuple(part.get_shape()), part.get_dtype()
        except SafetensorError as error:
            raise ValueError(f"{file} is broken or cut short ({error}): copy or download it again") from error
    return headers


def read_weights(
    folder: Path, expected: dict, device: torch.device, dtype: torch.dtype, ignored: Collection[str] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each expected tensor (name → shape) once, on `device` in `dtype`; skip `ignored` names.

    A ValueError lists every misfit before any data is read. A tensor that needs no copy stays in its file.
    """
    headers = {name: header for name, header in _headers(folder).items() if name not in ignored}
    found = {name: shape for name, (_, shape, _) in headers.items()}
    problems = [
        f"{name} is {found.get(name, 'missing')}, should be {expected.get(name, 'absent')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if problems:
        lines = [f"{len(problems)} tensors in {folder} don't fit the config (20 are listed at most):"]
        raise ValueError("\n  ".join(lines + problems[:20]))
    opened = functools.lru_cache(1)(safe_open)  # the next closes it; what is mapped is read where touched
    for name, (file, _, _) in tqdm(headers.items(), desc="weights", delay=2):  # seen after two seconds
        yield name, opened(file, framework="pt").get_tensor(name).to(device, dtype)


def save_checkpoint(
    folder: Path, config: dict, tensors: dict, generation_config: dict | None = None, max_shard_size="5GB"
) -> None:
    """Write config, weights (name → tensor) and generation defaults in the official layout.

    All is written as NAME.partial and then renamed: a crash leaves no half file. Stale weights go last.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename} if split.is_sharded else None
    texts = {INDEX: index, "generation_config.json": generation_config, "config.json": config}
    texts = {file: text for file, text in texts.items() if text is not None}
    written = [*split.filename_to_tensors, *texts]
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].detach().contiguous() for name in names}
        save_file(shard, folder / f"{file}.partial", metadata={"format": "pt"})
    for file, text in texts.items():
        (folder / f"{file}.partial").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    for file in written:
        os.replace(folder / f"{file}.partial", folder / file)
    for stale in {SINGLE, INDEX, *(file.name for file in folder.glob(SHARDS + "*"))} - set(written):
        (folder / stale).unlink(missing_ok=True)
