"""Find a checkpoint by its name, read its config, tokenizer and weights, and save one.

A folder has the layout of the official checkpoints: JSON files, and model.safetensors or its
shards with their index. This file does not know the model: its caller passes the names and shapes
of the tensors that it expects, and gets exactly those or an error.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from qwen2vl_extras import end_tokens, json_files, lora, media_settings, packed_config, tensor_names
from qwen2vl_extras.added_tokens import add_stated_tokens
from qwen2vl_extras.distributed import Part
from qwen2vl_extras.errors import note

# The folder of the checkpoint that comes with this code, by the name "tiny".
EMBEDDED = Path(__file__).parent / "tiny" / "checkpoint"
# Weights are in one file, or in shards that an index lists.
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
# What is downloaded from a repository.
WEIGHT_PATTERNS = [SINGLE, INDEX, SHARDS, lora.WEIGHTS]
TEXT_PATTERNS = [
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "*.jinja",
    lora.CONFIG,
    *packed_config.OLDER_FILES,
]

# The dtypes that a model can be loaded in, by their names in a safetensors header.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Stored tensors may also have this one. They are converted.
STORED_DTYPES = (*DTYPES, "F64")
MAX_HEADER_BYTES = 16 * 2**20  # of a safetensors file; the 72B model's take 10 kB each
SMALL = 2**16  # norms and biases have fewer values than this

# What a user can do about the errors of huggingface_hub. They are known by their names, since the
# library is imported only where it is needed.
HUB_ERRORS = {
    "GatedRepoError": "it is gated: accept its terms on its page and log in (hf auth login)",
    "RepositoryNotFoundError": "it does not exist, or is private (then log in: hf auth login)",
    "LocalEntryNotFoundError": "it can't be reached and is not cached ('tiny' needs no network)",
}


# ----------------------------------------------------------------------------- a name to a folder


def find_checkpoint(name: str | os.PathLike, weights: bool = True) -> Path:
    """Return the folder of "tiny" (it comes with this code), of a path, or of a Hub repository.

    A repository, "owner/name", is downloaded once, with or without its weights. Later it comes
    from huggingface_hub's cache, also offline. Every failure is a FileNotFoundError with one
    line.
    """
    name = os.fspath(name)
    if name == "tiny":  # reserved, even where a folder has this name
        if not EMBEDDED.is_dir():
            raise FileNotFoundError(f"'tiny' is not installed: there is no folder {EMBEDDED}")
        return EMBEDDED

    # A folder wins over a repository of the same name. "" would be the current folder.
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    looks_like_repository = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None
    if folder.exists() or not looks_like_repository:
        raise FileNotFoundError(
            f"{name!r} is neither a folder ({folder}) nor a Hub repository (owner/name)"
        )
    return download(name, weights)


def find_base_and_adapter(
    name: str | os.PathLike, base: str | os.PathLike | None, weights: bool = True
) -> tuple[Path, Path | None]:
    """Return the folder of a checkpoint, and None; or that of a LoRA adapter's base, and its own.

    base: what the adapter `name` is merged into, like `name` of find_checkpoint; by default the
    Hub repository that its config names. ValueError for a base of what is no adapter, and for a
    base that is an adapter itself.
    """
    folder = find_checkpoint(name, weights)
    if not (folder / lora.CONFIG).is_file():
        if base is not None:
            raise ValueError(
                f"base={os.fspath(base)!r} goes with a LoRA adapter: {folder} has no {lora.CONFIG}"
            )
        return folder, None

    if base is None:
        if (folder / SINGLE).exists() or (folder / INDEX).exists():
            raise ValueError(
                f"{folder} holds a whole model and an adapter: delete {lora.CONFIG} to load the "
                f"model alone, or give the base of the adapter as base= (--base)"
            )
        base = lora.base_in_config(folder, read_json(folder, lora.CONFIG))
        what = "weights" if weights else "processor"
        note(f"the base of {folder} is {base} on the Hub, as its {lora.CONFIG} says ({what})")
    base_folder = find_checkpoint(base, weights)
    if not (base_folder / "config.json").is_file() and (base_folder / lora.CONFIG).is_file():
        raise ValueError(
            f"base={os.fspath(base)!r} is an adapter, too: load it, save_pretrained, and give "
            "that folder as base= (--base)"
        )
    return base_folder, folder


def download(repository: str, weights: bool) -> Path:
    """Return the folder of a Hub repository in the cache, after downloading what is missing."""
    from huggingface_hub import snapshot_download  # here: slow to import and seldom needed

    # A processor needs no weights: a few megabytes.
    patterns = TEXT_PATTERNS + WEIGHT_PATTERNS if weights else TEXT_PATTERNS
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
    # The library's HTTP client, and with it the errors, differ between versions.
    except Exception as error:
        message = " ".join(str(error).split())[:200]  # on one line
        other = f"the download failed ({message}); finished files are kept: try again"
        reason = HUB_ERRORS.get(type(error).__name__, other)
        raise FileNotFoundError(
            f"{repository!r} is no folder here; on the Hub: {reason}"
        ) from error
    has_weights = any(folder.glob("model*.safetensors")) or (folder / lora.CONFIG).exists()
    if weights and not has_weights:
        raise FileNotFoundError(
            f"{repository!r} has no model*.safetensors on the Hub or, offline, none in the cache"
        )
    return folder


# ------------------------------------------------------------------------------------- JSON files


def read_json(folder: Path, filename: str, optional: bool = False) -> dict:
    """Read one JSON object from a folder; a missing file is an error, or {} if it is optional.

    Its fields have the types and ranges that qwen2vl_extras/schemas.py allows. ValueError, in one
    line, names the file, the field, its value and what is allowed.
    """
    # Many files are there in some versions of a repository only.
    return json_files.read_object(folder, filename, optional)


def read_config(folder: Path) -> dict:
    """Read `config.json` in its flat form; ValueError for a model that can't be run here."""
    if (folder / "config.json.partial").exists() and not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: saving was interrupted, save again")
    config = flatten_config(read_json(folder, "config.json"))
    vision = config["vision_config"]

    # What the official checkpoints state, or leave out because it is the default.
    check_field(folder, "model_type", config.get("model_type"), "qwen2_vl")
    packed_config.read_format(folder, config)  # refuses what is neither AWQ nor GPTQ
    check_field(folder, "use_sliding_window", config.get("use_sliding_window") or False, False)
    for layer_type in config.get("layer_types") or []:
        check_field(folder, "layer_types", layer_type, "full_attention")
    check_field(folder, "hidden_act", config.get("hidden_act") or "silu", "silu")
    vision_act = vision.get("hidden_act") or "quick_gelu"
    check_field(folder, "vision_config.hidden_act", vision_act, "quick_gelu")
    rope_type = config["rope_scaling"]["type"]
    check_field(folder, "rope_scaling.type (or rope_type)", rope_type, "mrope")

    # An end token may stand in another file only.
    if config.get("eos_token_id") is None:
        ends = read_generation_config(folder).get("eos_token_id")
        if ends is not None:
            config["eos_token_id"] = ends
    return config


def read_generation_config(folder: Path) -> dict:
    """Read `generation_config.json`, with the end tokens that any file of the folder names.

    Without such a file it holds end tokens and padding only.
    """
    config = read_json(folder, "config.json", optional=True)
    stated = read_json(folder, "generation_config.json", optional=True)
    return end_tokens.complete(folder, config, stated)


def read_media_config(folder: Path) -> tuple[dict, dict]:
    """Read the settings of images and those of videos, whichever files and keys state them.

    Both are under canonical names: min_pixels, max_pixels, patch_size, image_mean ... and, of
    videos, total_pixels, fps, nframes, min_frames, max_frames. What is not stated is absent; so
    are limits of videos that only repeat those of images.
    """
    # A section of the newest layout counts, else the file of the older one, as in transformers 5.
    both = read_json(folder, "processor_config.json", optional=True)
    sections = []
    for kind, older in (
        ("image_processor", "preprocessor_config.json"),
        ("video_processor", "video_preprocessor_config.json"),
    ):
        place = f"{folder / 'processor_config.json'}: {kind}"
        stated = both.get(kind)
        if stated is None:
            place = str(folder / older)
            stated = read_json(folder, older, optional=kind == "video_processor")
        sections.append(media_settings.canonical(place, stated))
    image, video = sections
    media_settings.drop_repeated_limits(image, video)

    # The model must take the patches that they describe.
    config = flatten_config(read_json(folder, "config.json", optional=True))
    media_settings.check_patches(image, config["vision_config"])
    media_settings.check_patches(video, config["vision_config"])
    media_settings.check_same_colours(image, video)
    return image.settings, video.settings


def check_field(folder: Path, name: str, found: object, supported: object) -> None:
    """ValueError unless a field of config.json has the one value that can be run here."""
    if found != supported:
        raise ValueError(
            f"{folder}: {name} is {found!r:.99} in config.json; only {supported!r} can be run here"
        )


def flatten_config(config: dict) -> dict:
    """Return the flat form of a config, that of the official checkpoints.

    Newer versions of `transformers` write
      text_config      with the fields of the decoder, which are at the top of the flat form;
      rope_parameters  in place of rope_theta and rope_scaling;
      dtype            in place of torch_dtype, and in_channels in place of in_chans.
    """
    flat = dict(config)

    # What text_config says counts: the same field at the top is a leftover. Its own model_type is
    # that of the decoder, its own dtype may be left over from before a conversion, and
    # tie_word_embeddings is left out where it is false.
    text = flat.pop("text_config", None)
    if text:
        flat.setdefault("tie_word_embeddings", False)
        for key, value in text.items():
            if value is not None and key not in ("model_type", "dtype", "torch_dtype"):
                flat[key] = value

    # The type has two names, of which files may have both, and M-RoPE is also called "default".
    rope = dict(flat.pop("rope_parameters", None) or flat.get("rope_scaling") or {})
    older_name = rope.pop("type", None)
    rope_type = rope.pop("rope_type", None) or older_name or "mrope"
    rope["type"] = "mrope" if rope_type == "default" else rope_type
    rope_theta = rope.pop("rope_theta", None)
    flat["rope_theta"] = flat.get("rope_theta") if rope_theta is None else rope_theta
    flat["rope_scaling"] = rope

    # The older name of each field, with None where neither is there.
    dtype = flat.pop("dtype", None)
    flat["torch_dtype"] = flat.get("torch_dtype") if dtype is None else dtype
    vision = dict(flat.get("vision_config") or {})
    channels = vision.pop("in_channels", None)
    vision["in_chans"] = vision.get("in_chans") if channels is None else channels
    flat["vision_config"] = vision
    return flat


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder.

    Official repositories, and those of finetunes, have some of its tokens in other files only.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{file} can't be read as a tokenizer: {error}") from error
    config = read_json(folder, "tokenizer_config.json", optional=True)
    older_tokens = read_json(folder, "added_tokens.json", optional=True)
    older_roles = read_json(folder, "special_tokens_map.json", optional=True)
    add_stated_tokens(tokenizer, config, older_tokens, older_roles, str(folder))

    # What a training run has left in the file: rows of one length, and random splits (dropout).
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


# ---------------------------------------------------------------------------------------- weights


def checkpoint_dtype(config: dict, folder: Path, dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype asked for; "auto" is that of the config, or else that of the weights."""
    # The config may name a dtype in which the weights are not stored.
    wanted: object = dtype
    if dtype == "auto":
        wanted = config.get("torch_dtype") or stored_dtype(folder)
    by_name = {dtype_name(known): known for known in DTYPES.values()}
    if dtype_name(wanted) not in by_name:
        known_names = ", ".join(by_name)
        raise ValueError(f"dtype {dtype_name(wanted)!r:.99} is not one of {known_names}")
    return by_name[dtype_name(wanted)]


def dtype_name(dtype: object) -> str:
    """The name of a dtype as config.json has it: "float32" for torch.float32 or "float32"."""
    return str(dtype).removeprefix("torch.")


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of the first floating-point tensor in the files, if there is one.

    float32 for float64, which no model runs in here.
    """
    for header in tensor_headers(folder).values():
        if header.dtype in STORED_DTYPES:
            return DTYPES.get(header.dtype, torch.float32)
    return None


def note_other_dtypes(
    folder: Path, headers: Mapping[str, "TensorHeader"], dtype: torch.dtype
) -> None:
    """Say in one line if tensors are stored in another dtype than the one they are read in.

    Not of the embedded checkpoint, which is stored in bfloat16 only to be small.
    """
    stored = {header.dtype for header in headers.values()}
    others = sorted(stored - {name for name in DTYPES if DTYPES[name] == dtype})
    if others and folder != EMBEDDED:
        note(
            f"{folder}: weights are stored in {' and '.join(others)} and read in "
            f"{dtype_name(dtype)}, the checkpoint's dtype; dtype= chooses another"
        )


class TensorHeader(NamedTuple):
    """What the header of a safetensors file says about a tensor."""

    file: Path
    stored_name: str  # other tools have other names for some tensors
    shape: tuple[int, ...]
    dtype: str  # "F32", "BF16", ...


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """The header of each tensor in a folder's weights, by its name there, ordered by file."""
    # One file, or the shards that an index lists.
    if (folder / SINGLE).exists():
        files = {SINGLE}
    elif (folder / INDEX).exists():
        files = set((read_json(folder, INDEX).get("weight_map") or {}).values())
    else:
        raise FileNotFoundError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")

    headers = {}
    for file in sorted(folder / filename for filename in files):
        if not file.exists():
            raise FileNotFoundError(f"{folder} has no {file.name}, which {INDEX} names")
        for header in read_header(file):
            headers[header.stored_name] = header
    return headers


def read_header(file: Path) -> list[TensorHeader]:
    """What the header of one safetensors file says, in the order of the file."""
    json_files.require_file(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"{file}: its header takes {length} bytes, at most {MAX_HEADER_BYTES}")
    try:
        # Opening a file reads its header only.
        with safe_open(file, framework="pt") as weights:
            headers = []
            for name in weights.keys():  # noqa: SIM118, it is no dict
                entry = weights.get_slice(name)
                shape = tuple(entry.get_shape())
                headers.append(TensorHeader(file, name, shape, entry.get_dtype()))
            return headers
    except SafetensorError as error:
        raise ValueError(
            f"{file} is broken or cut short ({error}): copy or download it again"
        ) from error


def match_tensors(
    folder: Path,
    found: Mapping[str, TensorHeader],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> dict[str, TensorHeader]:
    """The header of each expected tensor (name to shape), by its expected name.

    found: those of all tensors in the folder, see `tensor_headers`. Names of other tools are
    understood (qwen2vl_extras/tensor_names.py). ignored: names to be skipped, say that of a
    tied head. ValueError lists the tensors that do not match.
    """
    stored_names = tensor_names.map_names(folder, found, expected)
    for name in ignored:
        stored_names.pop(name, None)
    headers = {name: found[stored_name] for name, stored_name in stored_names.items()}
    check_dtypes(headers, expected)
    check_tensors(folder, headers, expected)
    return headers


def read_weights(
    headers: Mapping[str, TensorHeader],
    device: torch.device,
    dtype: torch.dtype,
    one_by_one: bool = False,
    part: Part | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor once, by name, on `device` in `dtype`; headers: those of `match_tensors`.

    part: what one of several processes reads of them; by default it is all.

    On the CPU, a tensor in its stored dtype is memory-mapped: its bytes are read from the file when
    they are first used. one_by_one: those of a tensor that is dropped are given back at once, and
    not with the last of its file.
    """
    is_quiet = part is not None and part.rank > 0
    # Shown after two seconds.
    progress = tqdm(total=len(headers), desc="weights", delay=2, disable=is_quiet)
    with progress:
        for file, names in names_to_read(headers, one_by_one):
            # The file stays mapped as long as one of its tensors is in use.
            with safe_open(file, framework="pt") as weights:
                for name in names:
                    stored_name, shape = headers[name].stored_name, headers[name].shape
                    if part is None:
                        tensor = weights.get_tensor(stored_name)
                    else:
                        tensor = part.read(name, weights.get_slice(stored_name), shape)
                    check_values(file, name, tensor)
                    yield name, tensor.to(device, dtype)
                    progress.update()


def names_to_read(
    headers: Mapping[str, TensorHeader], one_by_one: bool
) -> Iterator[tuple[Path, list[str]]]:
    """Each file with the tensors that are read while it is open: all of it, or one at a time."""
    for file in sorted({header.file for header in headers.values()}):
        names = [name for name, header in headers.items() if header.file == file]
        if not one_by_one:
            yield file, names
            continue
        for name in names:
            yield file, [name]


def check_dtypes(headers: Mapping[str, TensorHeader], expected: Collection[str]) -> None:
    """ValueError for the first expected tensor that holds integers, booleans or 8-bit floats.

    Packed weights are integers; packed_layers.py checks those.
    """
    for name, header in headers.items():
        is_packed = name.endswith(packed_config.PARTS)
        if name in expected and not is_packed and header.dtype not in STORED_DTYPES:
            raise ValueError(
                f"{header.file}: {name} is stored in {header.dtype}; only "
                f"{', '.join(STORED_DTYPES)} can be read, and no quantized weights"
            )


def check_tensors(
    folder: Path, headers: Mapping[str, TensorHeader], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """ValueError that lists missing, unexpected and misshapen tensors, at most 5 of them."""
    # Shapes say most about what is wrong, so they come first.
    shapes: list[str] = []
    missing: list[str] = []
    for name in sorted(headers.keys() | expected.keys()):
        found = headers[name].shape if name in headers else "missing"
        wanted = expected.get(name, "absent")
        if found == wanted:
            continue
        is_shape = name in headers and name in expected
        problem = f"{tensor_names.printable(name)} is {found}, should be {wanted}"
        fields = tensor_names.fields_of(name, is_shape)
        if fields:
            problem += f" (from {fields})"
        (shapes if is_shape else missing).append(problem)
    problems = shapes + missing
    if problems:
        listed = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        title = f"{len(problems)} tensors in {folder} don't fit its config.json"
        raise ValueError(f"{title}: {listed}{more}")


def check_values(file: Path, name: str, tensor: Tensor) -> None:
    """ValueError for a norm or bias that holds NaN or infinity, or a norm that is all zero.

    They are small, so looking at them costs nothing. Larger tensors are looked at only if the
    logits are not finite, or all equal.
    """
    if tensor.ndim != 1 or tensor.numel() > SMALL:
        return
    if not tensor.isfinite().all():
        raise ValueError(f"{file}: {name} holds NaN or infinity: the weights are damaged")
    is_norm = "norm" in name or "ln_q" in name
    if is_norm and name.endswith("weight") and not tensor.any():
        raise ValueError(f"{file}: {name} is all zero: the weights are damaged")


# ----------------------------------------------------------------------------------------- saving


def save_checkpoint(
    folder: Path,
    config: dict,
    tensors: Mapping[str, Tensor],
    generation_config: dict | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write config, weights (by name) and generation config in the official layout.

    Every file is written as NAME.partial. When all are complete, the config of an earlier save is
    deleted, the new weights get their names, other weights of an earlier save are deleted, and the
    config gets its name last. So a crash leaves the earlier checkpoint, or the new one, or a
    folder without config.json, which `read_config` refuses; never a mixture.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder.mkdir(parents=True, exist_ok=True)
    # Weights of more than max_shard_size are split over several files.
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    for filename, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].detach().contiguous() for name in names}  # as save_file needs
        save_file(shard, folder / f"{filename}.partial", metadata={"format": "pt"})

    weight_files = list(split.filename_to_tensors)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{INDEX}.partial", index)
        weight_files.append(INDEX)

    config_files = []
    if generation_config is not None:
        write_json(folder / "generation_config.json.partial", generation_config)
        config_files.append("generation_config.json")
    write_json(folder / "config.json.partial", config)
    config_files.append("config.json")

    # Everything is on the disk. From here to the last line the folder is no checkpoint.
    (folder / "config.json").unlink(missing_ok=True)
    # Rename the weights, then delete what earlier saves have left.
    for filename in weight_files:
        os.replace(folder / f"{filename}.partial", folder / filename)
    older = {SINGLE, INDEX, *(file.name for file in folder.glob(SHARDS))}
    for filename in older - set(weight_files):
        (folder / filename).unlink(missing_ok=True)
    for leftover in folder.glob("model*.partial"):
        leftover.unlink()
    for filename in config_files:
        os.replace(folder / f"{filename}.partial", folder / filename)


def write_json(file: Path, content: dict) -> None:
    """Write a JSON object as the official files are laid out."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
