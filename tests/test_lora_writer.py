"""Adapters as this project writes them: `load.py` and PEFT compute with them what was trained."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_extras.lora import TABLE
from qwen2vl_extras.lora_writer import save_adapter
from tests.helpers.reference import error

TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LAYERS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BLOCKS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
BAR = 1e-5


def random_modules(rng: random.Random) -> list[str]:
    """Some linear layers of the embedded model, one at least."""
    names = [f"model.layers.{i}.{part}" for i in range(4) for part in LAYERS]
    names += [f"visual.blocks.{i}.{part}" for i in range(4) for part in BLOCKS]
    names += ["visual.merger.mlp.0", "visual.merger.mlp.2"]
    return rng.sample(names, rng.randint(1, len(names)))


def random_adapter(seed: int, weights: dict[str, Tensor]) -> dict:
    """The arguments of save_adapter, for random matrices and rows."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rank = rng.choice([1, 2, 4, 16])
    dtype = rng.choice([torch.float32, torch.bfloat16])
    matrices = {}
    for name in random_modules(rng):
        out, width = weights[f"{name}.weight"].shape
        a = torch.randn(rank, width, generator=generator) / width**0.5
        b = torch.randn(out, rank, generator=generator) / rank**0.5
        matrices[name] = (a.to(dtype), b.to(dtype))
    rows = {}
    for token in rng.sample(range(690), rng.choice([0, 1, 7])):
        rows[token] = torch.randn(weights[TABLE].shape[1], generator=generator)
    return {"matrices": matrices, "alpha": rng.choice([1, 8, 2.5]), "rows": rows}


def by_hand(weights: dict[str, Tensor], adapter: dict) -> dict[str, Tensor]:
    """The weights after the change, in plain operations."""
    changed = dict(weights)
    for name, (a, b) in adapter["matrices"].items():
        scale = adapter["alpha"] / len(a)
        changed[f"{name}.weight"] = weights[f"{name}.weight"] + scale * (b.float() @ a.float())
    table = weights[TABLE].clone()
    for token, row in adapter["rows"].items():
        table[token] = row
    changed[TABLE] = table
    return changed


@pytest.fixture(scope="module")
def base() -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained("tiny", device_map="cpu")


def prompt(tiny) -> dict[str, Tensor]:
    image = Image.open(TINY.parent.parent / "examples" / "shapes.png")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Describe this image."}]
    return tiny[1].apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@torch.no_grad()
def test_load_reads_back_what_was_written(base, tmp_path, amount, figure):
    weights = dict(base.named_parameters())
    for seed in range(amount(12, 100)):
        adapter = random_adapter(seed, weights)
        folder = tmp_path / str(seed)
        save_adapter(folder, **adapter)
        loaded = Qwen2VLForConditionalGeneration.from_pretrained(
            str(folder), base="tiny", device_map="cpu"
        )
        right = by_hand(weights, adapter)
        found = dict(loaded.named_parameters())
        assert found.keys() == weights.keys()
        for name, weight in found.items():
            off = error(weight, right[name])
            assert figure("LoRA: written and loaded, against W + B A", off) <= BAR, (seed, name)


@torch.no_grad()
def test_peft_computes_the_same_from_what_was_written(base, tiny, tmp_path, amount, figure):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    transformers = pytest.importorskip("transformers")
    weights = dict(base.named_parameters())
    inputs = prompt(tiny)
    plain = base(**inputs).logits
    for seed in range(amount(6, 30)):
        adapter = random_adapter(seed, weights)
        folder = tmp_path / str(seed)
        save_adapter(folder, **adapter)
        ours = Qwen2VLForConditionalGeneration.from_pretrained(
            str(folder), base="tiny", device_map="cpu"
        )
        theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(TINY)
        theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
        logits = ours(**inputs).logits
        right = theirs(**inputs).logits
        off = error(logits, right)
        assert figure("LoRA: our adapter's logits, against PEFT's", off) <= 1e-4, seed
        # The adapter does something: the base alone is far from both.
        assert error(plain, right) > 1e-2, seed


def test_what_does_not_fit_together_is_refused_by_name(tmp_path):
    q = "model.layers.0.self_attn.q_proj"
    k = "model.layers.0.self_attn.k_proj"
    a, b = torch.zeros(2, 8), torch.zeros(6, 2)
    not_finite = torch.full((6, 2), float("nan"))
    cases = [
        ({}, {}, "one layer at least"),
        ({q: (a, b.T)}, {}, "q_proj: A is"),
        ({q: (a[0], b)}, {}, "q_proj: A is"),
        ({q: (a[:0], b[:, :0])}, {}, "q_proj: A is"),
        ({q: (a, b), k: (a[:1], b[:, :1])}, {}, "has r = 2"),
        ({q: (a, b.half())}, {}, "both must be"),
        ({q: (a.double(), b.double())}, {}, "both must be"),
        ({q: (a, not_finite)}, {}, "not finite"),
        ({"layers.0.q_proj": (a, b)}, {}, "official names"),
        ({q: (a, b)}, {"alpha": float("inf")}, "alpha"),
        ({q: (a, b)}, {"rows": {3: torch.zeros(4), 5: torch.zeros(5)}}, "one shape"),
        ({q: (a, b)}, {"rows": {3: torch.zeros(4, 1)}}, "one shape"),
        ({q: (a, b)}, {"rows": {-1: torch.zeros(4)}}, "no token id"),
        ({q: (a, b)}, {"rows": {3: torch.full((4,), float("nan"))}}, "not finite"),
    ]
    for number, (matrices, options, message) in enumerate(cases):
        folder = tmp_path / str(number)
        with pytest.raises(ValueError, match=message) as raised:
            save_adapter(folder, matrices, **{"alpha": 4, **options})
        assert "\n" not in str(raised.value)
        assert not folder.exists(), message
