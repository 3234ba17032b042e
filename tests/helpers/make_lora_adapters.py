"""Writes stored/lora_peft_VERSION.npz: adapters as PEFT saves them, and what PEFT makes of them.

PEFT is no dependency of this project. To run this script, make two environments of their own,
which name modules in two ways, and run it in each:

    python -m venv venv-new && venv-new/bin/pip install "torch>=2.9,<2.14" transformers==4.57.6 \\
        peft==0.21.2
    python -m venv venv-old && venv-old/bin/pip install "torch>=2.9,<2.14" transformers==4.49.0 \\
        peft==0.13.2
    venv-new/bin/python tests/helpers/make_lora_adapters.py
    venv-old/bin/python tests/helpers/make_lora_adapters.py

Every variant is a random "finetune" of the base below. An array's name is VARIANT/WHAT, where WHAT
is one of

    config, adapter      the bytes of the two files that PEFT wrote
    logits               of PEFT's model before the merge, for the inputs below
    names                of the weights that differ from the base's after merge_and_unload: JSON
    merged               these weights in float32, one after the other
    bfloat16             the same for a base in bfloat16, as bits

The base's weights are base/NAME; its config and the inputs are inputs, JSON, and pixel_values.
"""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

STORED = Path(__file__).parent.parent / "stored"

CONFIG = {
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": 34,
    "eos_token_id": 35,
    "vision_start_token_id": 36,
    "vision_end_token_id": 37,
    "image_token_id": 38,
    "video_token_id": 39,
    "vision_config": {
        "depth": 1,
        "embed_dim": 8,
        "num_heads": 1,
        "mlp_ratio": 2,
        "in_chans": 3,
        "in_channels": 3,
        "hidden_size": 16,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
IDS = [1, 36, 38, 38, 38, 38, 37, 5, 3, 30, 2]
GRID = [[1, 4, 4]]

# Options of LoraConfig; what begins with an underscore is for this script:
# _tied: the base's head is its table; _save: options of save_pretrained; _bfloat16: also merge
# into a base in bfloat16, and store the adapter in bfloat16; _newer: not in peft 0.13; _once: it
# does not depend on the version, or the older one is wrong: it takes alpha from alpha_pattern only
# by a key of rank_pattern, and merges DoRA of a table unlike its own model.
ATTENTION = ["q_proj", "v_proj"]
BOTH_TOWERS = ["q_proj", "o_proj", "down_proj", "qkv", "attn.proj", "fc1", "fc2"]
VARIANTS = {
    "list": dict(target_modules=ATTENTION, _bfloat16=True),
    "regex": dict(target_modules=r".*mlp\.(gate|up)_proj", _once=True),
    "regex with lookahead": dict(
        target_modules=r"^(?!.*visual).*(?:o_proj|down_proj).*", _once=True
    ),
    "both towers": dict(target_modules=BOTH_TOWERS, _bfloat16=True),
    "merger": dict(target_modules=r".*merger\.mlp\.(0|2)", _once=True),
    "all-linear": dict(target_modules="all-linear", _newer=True),
    "full names": dict(target_modules=["visual.blocks.0.attn.qkv", "k_proj"], _once=True),
    "rslora": dict(target_modules=BOTH_TOWERS, use_rslora=True, _once=True),
    "patterns": dict(
        target_modules=["q_proj", "k_proj", "v_proj"],
        rank_pattern={"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 1},
        alpha_pattern={r".*layers\.0.*": 5, "v_proj": 11},
        _once=True,
    ),
    "patterns with rslora": dict(
        target_modules=["q_proj", "qkv", "v_proj"],
        rank_pattern={"(qkv|v_proj)": 4},
        alpha_pattern={"blocks.0.attn.qkv": 1},
        use_rslora=True,
        _once=True,
    ),
    "pattern at a border": dict(target_modules=["up_proj", "o_proj"], rank_pattern={"p_proj": 5}),
    "one layer": dict(target_modules=ATTENTION, layers_to_transform=1, _once=True),
    "layers of a list": dict(
        target_modules=["q_proj", "qkv"], layers_to_transform=[0], layers_pattern="layers"
    ),
    "layers of both lists": dict(
        target_modules=["q_proj", "fc1"],
        layers_to_transform=[0, 7],
        layers_pattern=["layers", "blocks"],
        _once=True,
    ),
    "excluded": dict(
        target_modules=["q_proj", "v_proj", "fc1"],
        exclude_modules=["layers.0.self_attn.q_proj"],
        _newer=True,
    ),
    "excluded by regex": dict(
        target_modules=["q_proj", "fc1"], exclude_modules=r".*visual.*", _newer=True
    ),
    "bias all": dict(target_modules=["q_proj", "qkv"], bias="all"),
    "bias lora_only": dict(target_modules=["q_proj", "qkv"], bias="lora_only"),
    "bias of B": dict(target_modules=["q_proj", "fc2"], lora_bias=True, _newer=True),
    "saved head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"], _once=True),
    "saved table and head": dict(
        target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "saved merger": dict(target_modules=["v_proj"], modules_to_save=["merger"]),
    "saved norms": dict(target_modules=["v_proj"], modules_to_save=["norm", "ln_q"], _once=True),
    "saved layers": dict(target_modules=["qkv"], modules_to_save=["k_proj", "mlp.fc1"], _once=True),
    "saved embeddings": dict(
        target_modules=["q_proj"], _save={"save_embedding_layers": True}, _once=True
    ),
    "saved twice": dict(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        _save={"save_embedding_layers": True},
    ),
    "table": dict(target_modules=["embed_tokens"], _bfloat16=True, _once=True),
    "table and head": dict(target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "convolution": dict(target_modules=r".*patch_embed\.proj", _newer=True),
    "dora": dict(target_modules=BOTH_TOWERS, use_dora=True, _bfloat16=True),
    "dora with rslora": dict(
        target_modules=["gate_proj"],
        use_dora=True,
        use_rslora=True,
        rank_pattern={"gate_proj": 5},
        _once=True,
    ),
    "dora of the table": dict(target_modules=["embed_tokens", "q_proj"], use_dora=True, _once=True),
    "dora of a convolution": dict(
        target_modules=r".*patch_embed\.proj", use_dora=True, _newer=True
    ),
    "fan_in_fan_out": dict(target_modules=["q_proj"], fan_in_fan_out=True, _once=True),
    "gaussian": dict(target_modules=["q_proj"], init_lora_weights="gaussian", _once=True),
    "orthogonal": dict(target_modules=["q_proj"], init_lora_weights="orthogonal", _newer=True),
    "converted from pissa": dict(
        target_modules=["q_proj", "fc1"], init_lora_weights="pissa", _once=True
    ),
    "rows": dict(target_modules=["q_proj"], trainable_token_indices=[3, 30], _newer=True),
    "rows of table and head": dict(
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [3, 30], "lm_head": [1]},
        _newer=True,
    ),
    "tied": dict(target_modules=["q_proj", "fc1"], _tied=True, _bfloat16=True),
    "tied, table": dict(target_modules=["embed_tokens"], _tied=True),
    "tied, head": dict(target_modules=["lm_head", "q_proj"], _tied=True, _once=True),
    "tied, table and head": dict(target_modules=["embed_tokens", "lm_head"], _tied=True),
    "tied, dora of both": dict(
        target_modules=["embed_tokens", "lm_head"], use_dora=True, _tied=True, _once=True
    ),
    "tied, saved table": dict(
        target_modules=["q_proj"], modules_to_save=["embed_tokens"], _tied=True, _once=True
    ),
    "tied, saved head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"], _tied=True),
    "tied, saved table and head": dict(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        _tied=True,
        _once=True,
    ),
    "tied, saved twice": dict(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        _save={"save_embedding_layers": True},
        _tied=True,
    ),
    "tied, saved embeddings": dict(
        target_modules=["q_proj"], _save={"save_embedding_layers": True}, _tied=True, _once=True
    ),
    "tied, rows": dict(
        target_modules=["q_proj"], trainable_token_indices=[3, 30], _tied=True, _newer=True
    ),
    "tied, rows of each": dict(
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [3, 30], "lm_head": [3, 1]},
        _tied=True,
        _newer=True,
    ),
    "tied, head follows table": dict(
        target_modules=["embed_tokens"], ensure_weight_tying=True, _tied=True, _newer=True
    ),
    "tied, head follows saved table": dict(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
        _tied=True,
        _newer=True,
    ),
}


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state_dict of any version of transformers under the names of the official checkpoints."""
    official = {}
    for name, tensor in state.items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        official[name] = tensor
    return official


def round_off(values: torch.Tensor) -> torch.Tensor:
    """The nearest multiples of 1 / 64, which take less room in a file."""
    return (values * 64).round() / 64


def make_base(folder: Path) -> dict[str, torch.Tensor]:
    """Write the base with random weights; its table is the head as well where it is tied."""
    model = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(**json.loads(json.dumps(CONFIG)), tie_word_embeddings=False)
    )
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in sorted(official_names(model.state_dict()).items()):
        values = torch.randn(tensor.shape, generator=generator)
        is_matrix = tensor.ndim > 1
        values = values * tensor[0].numel() ** -0.5 if is_matrix else 1 + 0.3 * values
        weights[name] = round_off(values)
    for tied in (False, True):
        write_base(folder / f"tied {tied}", weights, tied, clone_head=False)
    # What PEFT advises for merging into a tied base.
    write_base(folder / "untied", weights, tied=False, clone_head=True)
    return weights


def write_base(
    folder: Path, weights: dict[str, torch.Tensor], tied: bool, clone_head: bool
) -> None:
    folder.mkdir()
    weights = dict(weights)
    if clone_head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if tied:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": tied}))


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, torch_dtype=dtype)
    return model.eval()


def train(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Let every trainable value differ from what it was."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            # In place: some parameters share their values.
            parameter.data.copy_(round_off(parameter.data + 0.2 * noise))


def save_adapter(base: Path, folder: Path, options: dict, seed: int) -> None:
    """A random finetune, saved by PEFT."""
    config = {key: value for key, value in options.items() if not key.startswith("_")}
    torch.manual_seed(seed)
    model = peft.get_peft_model(load_base(base), peft.LoraConfig(r=2, lora_alpha=6, **config))
    save_options = dict(options.get("_save", {}))
    if str(config.get("init_lora_weights")).startswith("pissa"):
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder.with_name("initial"))
        save_options["path_initial_model_for_weight_conversion"] = str(folder.with_name("initial"))
    train(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder, **save_options)
    if "_bfloat16" in options:
        file = folder / "adapter_model.safetensors"
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
def logits_of(model: torch.nn.Module, pixel_values: torch.Tensor) -> np.ndarray:
    output = model(
        input_ids=torch.tensor([IDS]),
        attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
        pixel_values=pixel_values,
        image_grid_thw=torch.tensor(GRID),
    )
    return output.logits.numpy()


def merge(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = peft.PeftModel.from_pretrained(load_base(base, dtype), adapter)
    return official_names(model.merge_and_unload().state_dict())


def make_variant(
    bases: Path, options: dict, weights: dict[str, torch.Tensor], pixels: torch.Tensor, seed: int
) -> dict[str, np.ndarray]:
    tied = options.get("_tied", False)
    base = bases / f"tied {tied}"
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        save_adapter(base, folder, options, seed)
        for what, file in (
            ("config", "adapter_config.json"),
            ("adapter", "adapter_model.safetensors"),
        ):
            arrays[what] = np.frombuffer((folder / file).read_bytes(), np.uint8)
        model = peft.PeftModel.from_pretrained(load_base(base), folder).eval()
        arrays["logits"] = logits_of(model, pixels)

        # A tied base is untied before the merge, unless rows or nothing of the table change.
        text = json.dumps({key: value for key, value in options.items() if key != "_save"})
        one_alone = "embed_tokens" in text or "lm_head" in text
        if tied and one_alone:
            base = bases / "untied"
        merged = merge(base, folder, torch.float32)
        if options.get("ensure_weight_tying"):  # which PEFT can't do on an untied base
            merged["lm_head.weight"] = merged["model.embed_tokens.weight"]
        changed = []
        for name, tensor in merged.items():
            is_different = not torch.equal(tensor, weights[name])
            if tied and name == "lm_head.weight":  # the base has none
                is_different = one_alone
            if is_different:
                changed.append(name)
        arrays["names"] = np.frombuffer(json.dumps(changed).encode(), np.uint8)
        arrays["merged"] = torch.cat([merged[name].flatten() for name in changed]).numpy()
        if "_bfloat16" in options:
            merged = merge(base, folder, torch.bfloat16)
            # The older version leaves matrices of DoRA in float32.
            values = torch.cat([merged[name].flatten() for name in changed]).bfloat16()
            arrays["bfloat16"] = values.view(torch.int16).numpy()
    return arrays


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        bases = Path(temporary)
        weights = make_base(bases)
        pixels = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
        for name, tensor in weights.items():
            arrays[f"base/{name}"] = tensor.numpy()
        inputs = json.dumps({"config": CONFIG, "input_ids": [IDS], "image_grid_thw": GRID})
        arrays["inputs"] = np.frombuffer(inputs.encode(), np.uint8)
        arrays["pixel_values"] = pixels.numpy()
        is_old = peft.__version__.startswith("0.13.")
        for seed, (variant, options) in enumerate(VARIANTS.items()):
            if is_old and (options.get("_newer") or options.get("_once")):
                continue
            for what, array in make_variant(bases, options, weights, pixels, seed).items():
                arrays[f"{variant}/{what}"] = array
    STORED.mkdir(exist_ok=True)
    path = STORED / f"lora_peft_{peft.__version__}.npz"
    np.savez_compressed(path, **arrays)
    variants = {name.split("/")[0] for name in arrays if "/config" in name}
    print(f"{path.name}: {len(variants)} variants, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
