"""Packed checkpoints: AWQ and GPTQ read exactly, int4 in memory, and saved again."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import load
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras import int4, packed_layout, products, words
from qwen2vl_extras.compiled import compile_once
from qwen2vl_extras.int4 import Int4Linear
from qwen2vl_extras.packed_config import PackedFormat
from qwen2vl_extras.packed_layout import GroupedWeight
from qwen2vl_extras.words import words_of
from tests.helpers.packed_folders import Variant, random_variant, section_of, write_packed
from tests.helpers.reference import error, random_config, random_inputs

STORED = Path(__file__).parent / "stored" / "packed_layers.npz"
from_pretrained = Qwen2VLForConditionalGeneration.from_pretrained


def packable_config(seed: int) -> dict:
    """A small config whose sizes are multiples of 64, as those of real checkpoints are."""
    config = random_config(seed, tied=seed % 2 == 0)
    config.update(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128
    )
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    config["vision_config"]["hidden_size"] = 64
    return config


def random_model(config: dict, seed: int) -> Qwen2VLForConditionalGeneration:
    """A model with matrices of standard deviation 1/sqrt(fan_in)."""
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        values = torch.randn(p.shape, generator=generator)
        p.data = values * p[0].numel() ** -0.5 if p.ndim > 1 else 1 + 0.3 * values
    return model


def packed_folder(
    folder: Path, seed: int, variant: Variant, change_parts=None
) -> tuple[Qwen2VLForConditionalGeneration, dict[str, Tensor]]:
    """Write a packed checkpoint; returns the same model unpacked, in float32, and its weights."""
    config = packable_config(seed)
    model = random_model(config, seed)
    tensors = dict(model.named_parameters())
    unpacked = write_packed(folder, config, tensors, variant, seed, change_parts)
    model.load_state_dict({name: t.float() for name, t in unpacked.items()}, strict=False)
    return model, unpacked


def weight_of(layer: torch.nn.Module) -> Tensor:
    """The matrix that a layer multiplies by, in float64, found by multiplying the unit vectors."""
    bias = layer.bias
    layer.bias = None
    dtype = layer.scales_and_zeros.dtype if isinstance(layer, Int4Linear) else layer.weight.dtype
    columns = layer(torch.eye(layer.in_features, dtype=dtype))  # (in, out)
    layer.bias = bias
    return columns.T.double()


# ------------------------------------------------------------------------------- reading, exactly


@torch.no_grad()
def test_packed_checkpoints_are_the_same_model_as_unpacked_ones(tmp_path, amount, figure, caplog):
    rng = random.Random(21)
    kinds = set()
    for i in range(amount(8, 120)):
        variant = random_variant(rng)
        folder = tmp_path / str(i)
        expected, unpacked = packed_folder(folder, i, variant)
        found = from_pretrained(folder, torch.float32, "cpu")
        for name, weight in unpacked.items():
            layer = found.get_submodule(name.rpartition(".")[0])
            if name.startswith("model.layers.") and weight.ndim == 2:
                kinds.add(type(layer))
                assert error(weight_of(layer), weight) <= 1e-6, (variant, name)
        inputs = random_inputs(expected.config, "image", i)
        difference = error(found(**inputs).logits, expected(**inputs).logits)
        assert figure("packed against unpacked logits, float32", difference) <= 1e-4, variant
        shutil.rmtree(folder)
    assert kinds == {Int4Linear, torch.nn.Linear}
    # What is unpacked is said once a checkpoint.
    messages = [record.getMessage() for record in caplog.records]
    assert any("are unpacked" in message for message in messages)


@torch.no_grad()
def test_a_wrong_order_or_offset_would_be_seen(tmp_path):
    """The negative control: one nibble order or offset off is far beyond the tolerance."""
    variant = Variant("gptq", symmetric=False, version="gptq_v2")
    expected, _ = packed_folder(tmp_path, 3, variant)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    inputs = random_inputs(expected.config, "text", 3)
    found = from_pretrained(tmp_path, torch.float32, "cpu")
    assert error(found(**inputs).logits, expected(**inputs).logits) > 1e-2


def stored_cases() -> list[str]:
    with np.load(STORED) as arrays:
        return sorted({name.partition("/")[0] for name in arrays.files})


@pytest.mark.parametrize("case", stored_cases())
def test_layers_that_the_libraries_packed_are_read_weight_by_weight(case):
    with np.load(STORED) as arrays:
        parts = {
            name.partition("/")[2]: arrays[name]
            for name in arrays.files
            if name.startswith(f"{case}/")
        }
    section = json.loads(str(parts["section"]))
    zeros = {"awq": "plain", "gptq_v2": "plain", "gptqmodel": "word less one"}
    form = PackedFormat(
        section["quant_method"],
        section["bits"],
        section["group_size"],
        False,
        zeros.get(section["layout"], "less one"),
        "stored",
    )
    codes = packed_layout.read_codes(form, torch.tensor(parts["qweight"]))
    found_zeros = packed_layout.read_zeros(form, torch.tensor(parts["qzeros"]))
    groups = torch.tensor(parts["groups"]).long()
    weight = GroupedWeight(codes, torch.tensor(parts["scales"]), found_zeros, groups)
    assert np.array_equal(codes.numpy(), parts["codes"])
    assert np.array_equal(found_zeros.numpy(), parts["zeros"])
    expected = (parts["codes"].astype(float) - parts["zeros"][parts["groups"]].T) * parts[
        "scales"
    ].astype(float)[parts["groups"]].T
    assert error(weight.unpack(torch.float64), torch.tensor(expected)) <= 1e-12


# ---------------------------------------------------------------------------------- what is refused


def without(part: str):
    def remove(stored: dict) -> None:
        stored.pop(next(name for name in sorted(stored) if name.endswith(part)))

    return remove


def replaced(part: str, change):
    def replace(stored: dict) -> None:
        name = next(name for name in sorted(stored) if name.endswith(part))
        stored[name] = change(stored[name]).contiguous()

    return replace


DAMAGES = [
    ("awq", without(".scales"), "scales is missing"),
    ("gptq", without(".qweight"), "qweight is missing"),
    ("gptq", without(".qzeros"), "qzeros is missing"),
    ("gptq", replaced(".qweight", lambda t: t[:-1]), "qweight is"),
    ("gptq", replaced(".qweight", lambda t: t.short()), "stored in I16"),
    ("awq", replaced(".qzeros", lambda t: t.float()), "stored in F32"),
    ("awq", replaced(".scales", lambda t: t * float("nan")), "scales holds NaN"),
    ("gptq", replaced(".g_idx", lambda t: t + 5), "g_idx goes from 5"),
    ("gptq", replaced(".g_idx", lambda t: t - 1), "g_idx goes from -1"),
]


@pytest.mark.parametrize(("method", "damage", "named"), DAMAGES)
def test_damaged_packed_weights_are_refused_in_one_line(tmp_path, method, damage, named):
    packed_folder(tmp_path, 1, Variant(method, symmetric=False), damage)
    with pytest.raises(ValueError, match=named) as caught:
        from_pretrained(tmp_path, torch.float32, "cpu")
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "\n" not in text


def damage_one_part(stored: dict[str, Tensor], rng: random.Random) -> tuple[str, str]:
    """Damage one tensor of a packed layer; returns its name and how, which an error has to name."""
    parts = (".qweight", ".qzeros", ".scales", ".g_idx")
    name = rng.choice([name for name in sorted(stored) if name.endswith(parts)])
    tensor = stored[name]
    kinds = ["missing", "shorter", "longer", "narrower", "another dtype", "one more axis"]
    if name.endswith(".scales"):
        kinds += ["NaN", "infinity"]
    if name.endswith(".g_idx"):
        kinds += ["too large", "negative"]
    how = rng.choice(kinds)
    index = rng.randrange(tensor.numel())
    if how == "missing":
        del stored[name]
    elif how == "shorter":
        stored[name] = tensor[:-1].clone()
    elif how == "longer":
        stored[name] = torch.cat((tensor, tensor[:1]))
    elif how == "narrower":
        stored[name] = tensor[..., 1:].contiguous()
    elif how == "another dtype":
        stored[name] = tensor.to(rng.choice([torch.int16, torch.uint8, torch.float64]))
    elif how == "one more axis":
        stored[name] = tensor[None].clone()
    else:
        values = {"NaN": float("nan"), "infinity": float("inf"), "too large": 99, "negative": -1}
        changed = tensor.clone()
        changed.view(-1)[index] = values[how]
        stored[name] = changed
    return name, how


def refusal(folder: Path) -> str | None:
    """The error of loading a folder, or None if it loads."""
    try:
        from_pretrained(folder, torch.float32, "cpu")
    except ValueError as error:
        return str(error)
    return None


def test_any_damaged_part_is_refused_by_its_name(tmp_path, amount):
    rng = random.Random(3)
    sources = []
    for i, method in enumerate(("awq", "gptq")):
        packed_folder(tmp_path / method, i, Variant(method, symmetric=False, order="shuffled"))
        sources.append(load_file(tmp_path / method / "model.safetensors"))
    for i in range(amount(12, 400)):
        stored = dict(sources[i % 2])
        name, how = damage_one_part(stored, rng)
        folder = tmp_path / ("awq", "gptq")[i % 2]
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        message = refusal(folder)
        assert message is not None, (name, how)
        assert name in message, (name, how, message)
        assert str(folder) in message, (name, how, message)
        assert "\n" not in message, (name, how, message)


JUNK = [
    None,
    True,
    False,
    -2,
    0,
    1,
    3,
    5,
    8,
    16,
    48,
    2**40,
    1.5,
    "",
    "x",
    "4",
    [],
    [4],
    {},
    {"a": 1},
]
FIELDS = {
    "awq": ("bits", "group_size", "quant_method", "version", "zero_point", "backend", "pack_dtype"),
    "gptq": (
        "bits",
        "group_size",
        "quant_method",
        "checkpoint_format",
        "desc_act",
        "sym",
        "is_marlin_format",
        "pack_dtype",
        "dynamic",
        "meta",
    ),
}


@torch.no_grad()
def test_any_value_in_a_section_is_refused_by_its_name_or_changes_nothing(tmp_path, amount):
    rng = random.Random(4)
    ids = torch.arange(3, 12)[None]
    for method, fields in FIELDS.items():
        folder = tmp_path / method
        packed_folder(folder, 1, Variant(method, symmetric=False))
        expected = from_pretrained(folder, torch.float32, "cpu")(ids).logits
        file = folder / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        pairs = [(field, value) for field in fields for value in JUNK]
        for field, value in rng.sample(pairs, amount(12, len(pairs))):
            section = {**content["quantization_config"], field: value}
            file.write_text(json.dumps({**content, "quantization_config": section}))
            message = refusal(folder)
            if message is None:
                found = from_pretrained(folder, torch.float32, "cpu")(ids).logits
                assert found.equal(expected), (method, field, value)
                continue
            assert field in message, (field, value, message)
            assert str(folder) in message, (field, value, message)
            assert "\n" not in message, (field, value, message)


SECTIONS = [
    ({"bits": 3}, "bits is 3"),
    ({"bits": True}, "bits is True"),
    ({"bits": None}, "bits is None"),
    ({"group_size": 0}, "group_size is 0"),
    ({"group_size": 48}, "group_size is 48"),
    ({"group_size": "128"}, "group_size is '128'"),
    ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
    ({"quant_method": "compressed-tensors"}, "quant_method is 'compressed-tensors'"),
    ({"quant_method": None}, "quant_method is"),
    ({"quant_method": 4}, "quant_method is 4"),
    ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv'"),
    ({"quant_method": "awq", "version": "gemv_fast"}, "version is 'gemv_fast'"),
    ({"quant_method": "awq", "version": 3}, "version is 3"),
    ({"quant_method": "awq", "bits": 8}, "bits is 8"),
    ({"quant_method": "awq", "backend": "llm-awq"}, "backend is 'llm-awq'"),
    ({"quant_method": "awq", "zero_point": False}, "zero_point is False"),
    ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    ({"is_marlin_format": True}, "is_marlin_format is True"),
    ({"pack_dtype": "int64"}, "pack_dtype is 'int64'"),
    ({"dynamic": {"+:.*": {"bits": 8}}}, "dynamic is"),
    ({"dynamic": 3}, "dynamic is 3"),
    ({"meta": "x"}, "meta is 'x'"),
    ({"desc_act": "yes"}, "desc_act is 'yes'"),
]


@pytest.mark.parametrize(("change", "named"), SECTIONS)
def test_sections_that_cannot_be_read_are_refused_in_one_line(tmp_path, change, named):
    packed_folder(tmp_path, 1, Variant("gptq"))
    file = tmp_path / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["quantization_config"].update(change)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=named) as caught:
        from_pretrained(tmp_path, torch.float32, "cpu")
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_weights_need_a_section_and_a_section_packed_weights(tmp_path):
    packed_folder(tmp_path, 1, Variant("gptq"))
    file = tmp_path / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    section = content.pop("quantization_config")
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="has no quantization_config"):
        from_pretrained(tmp_path, device_map="cpu")

    # Older tools wrote it to a file of its own.
    (tmp_path / "quantize_config.json").write_text(json.dumps(section), encoding="utf-8")
    packed = from_pretrained(tmp_path, device_map="cpu")
    assert any(isinstance(module, Int4Linear) for module in packed.modules())

    plain = tmp_path / "plain"
    random_model(packable_config(1), 1).save_pretrained(plain)
    # A leftover is no harm; what config.json itself says must be true.
    (plain / "quantize_config.json").write_text(json.dumps(section), encoding="utf-8")
    from_pretrained(plain, device_map="cpu")
    content = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    content["quantization_config"] = section_of(Variant("awq"))
    (plain / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="hold no packed layer"):
        from_pretrained(plain, device_map="cpu")


# ------------------------------------------------------------------------------------- in memory


def test_what_pytorch_cannot_hold_in_four_bits_is_said():
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    assert int4.why_not((16, 64), 32, cpu, bf16) is None
    assert "outputs" in int4.why_not((8, 64), 32, cpu, bf16)
    assert "groups of 16" in int4.why_not((16, 64), 16, cpu, bf16)
    assert "divide" in int4.why_not((16, 96), 64, cpu, bf16)
    assert "CUDA" in int4.why_not((16, 64), 32, torch.device("cuda"), torch.float16)
    assert "mps" in int4.why_not((16, 64), 32, torch.device("mps"), bf16)


@torch.no_grad()
def test_both_products_multiply_by_the_weight_of_the_definition(amount, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(amount(12, 200)):
        out_features = 16 * int(rng.integers(1, 70))
        size = int(rng.choice([32, 64, 96, 128, 256, 384, 512]))
        in_features = size * int(rng.integers(1, 4))
        codes = torch.tensor(rng.integers(0, 16, (out_features, in_features)), dtype=torch.uint8)
        groups = in_features // size
        scales = torch.tensor(rng.normal(size=(groups, out_features))).half()
        zeros = torch.tensor(rng.integers(0, 16, (groups, out_features)), dtype=torch.uint8)
        weight = GroupedWeight(codes, scales, zeros)
        if i % 2:
            weight.groups = torch.tensor(rng.permutation(in_features) // size)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
            layer = Int4Linear(weight, torch.device("cpu"), dtype)
            assert layer.grouped_weight().codes.equal(codes)
            assert layer.grouped_weight().zeros.equal(zeros)
            rows = torch.tensor(rng.normal(size=(int(rng.integers(1, 5)), in_features))).to(dtype)
            expected = rows.double() @ weight.unpack(torch.float64).T
            # The way of prompts; not all CPUs multiply bfloat16 themselves.
            multiplies = i % 3 > 0 or dtype == torch.float32
            monkeypatch.setattr(products, "multiplies", lambda _, answer=multiplies: answer)
            x = rows if layer.order is None else rows[:, layer.order]
            y = layer.unpacked_product(x)
            assert error(y.double(), expected) <= tolerance, (out_features, size, i)
            # A step of decoding, for which PyTorch's product has the weight in blocks.
            assert error(layer(rows).double(), expected) <= tolerance, (out_features, size, i)
            assert layer.is_in_rows == (dtype == torch.float32)
            assert layer.unpacked_product(x).equal(y)
            assert layer.grouped_weight().codes.equal(codes)
            assert layer.grouped_weight().zeros.equal(zeros)


@pytest.mark.parametrize(
    ("out_features", "in_features", "size"), [(48, 1536, 128), (16, 9216, 64), (80, 512, 512)]
)
@torch.no_grad()
def test_a_row_of_a_compiled_step_is_exact_and_others_are_as_in_blocks(
    out_features, in_features, size
):
    rng = np.random.default_rng(1)
    layer = random_layer(rng, out_features, in_features, size)
    before = layer.grouped_weight()
    in_rows = layer.weight.clone()
    by_input = layer.scales_and_zeros.double().repeat_interleave(layer.group_size, 1)
    scales, zeros = by_input.unbind(2)  # (out, in)
    weight = (before.codes.double()[:, layer.order] - 8) * scales + zeros

    x = torch.tensor(rng.normal(size=(20, in_features)) + 0.5).bfloat16()
    expected = x.double()[:, layer.order] @ weight.T
    assert layer.fits_words
    found = compile_once(words.row_product)(x[0], words_of(layer))
    assert error(found.double(), expected[0]) <= 2e-6
    assert error(layer(x).double(), expected) <= 0.02
    assert layer.is_in_rows

    # A step of decoding that is not compiled wants the other order, in which PyTorch packs.
    assert error(layer(x[:1]).double(), expected[:1]) <= 0.02
    assert not layer.is_in_rows
    assert layer.weight.equal(int4.pack_for_cpu(before.codes[:, layer.order]))
    after = layer.grouped_weight()
    for name in ("codes", "scales", "zeros", "groups"):
        assert getattr(after, name).equal(getattr(before, name)), name

    int4.arrange_for_compiled_steps(torch.nn.ModuleList([layer]))
    assert layer.is_in_rows
    assert layer.weight.equal(in_rows)


def random_layer(
    rng: np.random.Generator, out_features: int, in_features: int, size: int
) -> Int4Linear:
    """Groups with zeros of their own, the inputs in a random order."""
    shape = (in_features // size, out_features)
    weight = GroupedWeight(
        torch.tensor(rng.integers(0, 16, (out_features, in_features)), dtype=torch.uint8),
        torch.tensor(rng.normal(size=shape)).half(),
        torch.tensor(rng.integers(0, 16, shape), dtype=torch.uint8),
        torch.tensor(rng.permutation(in_features) // size),
    )
    return Int4Linear(weight, torch.device("cpu"), torch.bfloat16)


@torch.no_grad()
def test_each_step_has_the_order_that_it_reads():
    """Words take groups from 64 on in bfloat16; PyTorch's product any group, in bfloat16 too."""
    rng = np.random.default_rng(2)
    long = random_layer(rng, 16, 128, 64)
    short = random_layer(rng, 16, 64, 32)
    wide = Int4Linear(long.grouped_weight(), torch.device("cpu"), torch.float32)
    for layer, compiled, plain in ((long, True, False), (short, False, False), (wide, True, True)):
        assert layer.is_in_rows
        x = torch.tensor(rng.normal(size=(1, layer.in_features))).to(layer.scales_and_zeros.dtype)
        layer.arrange_for_steps(compiled=True)
        assert layer.is_in_rows == compiled
        layer(x)
        assert layer.is_in_rows == plain


def test_cuda_takes_the_shapes_that_are_made_for_it():
    """Shapes only: there is no GPU here, and the product has never run on one."""
    mode = FakeTensorMode()

    def on_cuda(shape: tuple[int, ...], dtype: torch.dtype) -> FakeTensor:
        return FakeTensor(mode, torch.empty(shape, dtype=dtype, device="meta"), "cuda")

    for out_features, in_features, size in ((1536, 8960, 128), (256, 1536, 64), (16, 32, 32)):
        codes = torch.empty(out_features, in_features, dtype=torch.uint8, device="meta")
        packed = int4.pack_for_cuda(codes)
        assert packed.numel() * 8 == out_features * in_features
        with mode:
            y = int4.packed_product(
                on_cuda((3, in_features), torch.bfloat16),
                on_cuda(tuple(packed.shape), packed.dtype),
                size,
                on_cuda((in_features // size, out_features, 2), torch.bfloat16),
            )
        assert y.is_cuda
        assert y.shape == (3, out_features)


def test_float16_checkpoints_run_in_bfloat16_unless_told_otherwise(tmp_path, caplog):
    packed_folder(tmp_path, 2, Variant("awq"))
    assert from_pretrained(tmp_path, device_map="cpu").dtype == torch.bfloat16
    assert sum("runs in bfloat16" in record.getMessage() for record in caplog.records) == 1
    assert from_pretrained(tmp_path, torch.float16, "cpu").dtype == torch.float16


def test_eight_bits_are_unpacked_and_said_once(tmp_path, caplog):
    packed_folder(tmp_path, 2, Variant("gptq", bits=8))
    model = from_pretrained(tmp_path, torch.float32, "cpu")
    assert not any(isinstance(module, Int4Linear) for module in model.modules())
    assert sum("unpacked" in record.getMessage() for record in caplog.records) == 1


# ---------------------------------------------------------------------------- rounding and saving


@torch.no_grad()
def test_int4_rounds_each_group_to_the_nearest_step():
    from qwen2vl_extras.quantization import round_to_groups

    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))
    weight[3, :128] = 0
    rounded = round_to_groups("w", weight, 128)
    assert rounded.zeros.eq(8).all()
    scales = rounded.scales.double().T.repeat_interleave(128, dim=1)
    difference = (rounded.unpack(torch.float64) - weight).abs()
    # Half a step, or a whole one at the end of the range where there is no 8th step.
    is_last = rounded.codes == 15
    assert (difference <= scales.abs() * (0.5 + is_last * 0.51) + 1e-9).all()
    for damaged in (float("nan"), float("inf")):
        broken = weight.clone()
        broken[5, 5] = damaged
        with pytest.raises(ValueError, match="w holds NaN"):
            round_to_groups("w", broken, 128)


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_int4_is_saved_in_the_layout_of_gptq_and_read_again(tmp_path, seed):
    random_model(packable_config(seed), seed).save_pretrained(tmp_path / "plain")
    rounded = from_pretrained(tmp_path / "plain", torch.bfloat16, "cpu", int4=True)
    assert rounded.lm_head.weight.dtype == torch.int8
    rounded.save_pretrained(tmp_path / "packed")
    section = json.loads((tmp_path / "packed" / "config.json").read_text(encoding="utf-8"))[
        "quantization_config"
    ]
    assert (section["quant_method"], section["bits"], section["sym"]) == ("gptq", 4, True)

    # Read by the definition: a word of 8 codes down a column, zeros less one.
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16, torch.float16, torch.int32}
    again = from_pretrained(tmp_path / "packed", device_map="cpu")
    for name, layer in rounded.named_modules():
        if not isinstance(layer, Int4Linear):
            continue
        qweight, scales = stored[f"{name}.qweight"], stored[f"{name}.scales"].double()
        zeros = stored[f"{name}.qzeros"]
        assert zeros.eq(0x77777777).all()
        shape = (layer.out_features, layer.in_features)
        weight = torch.empty(shape, dtype=torch.float64)
        for i in range(layer.in_features):
            codes = (qweight[i // 8].long() >> (4 * (i % 8))) & 15
            weight[:, i] = (codes - 8) * scales[i // section["group_size"]]
        assert error(weight, layer.grouped_weight().unpack(torch.float64)) <= 1e-9
        read_again = again.get_submodule(name)
        assert read_again.weight.equal(layer.weight)
        assert read_again.scales_and_zeros.equal(layer.scales_and_zeros)


@torch.no_grad()
def test_what_was_packed_is_saved_as_the_same_numbers(tmp_path, amount):
    rng = random.Random(5)
    for i in range(amount(2, 40)):
        variant = random_variant(rng)
        if variant.bits == 8 or variant.group_size == 16 or variant.order == "unequal":
            variant = Variant("awq", symmetric=False)
        expected, _ = packed_folder(tmp_path / "first", i, variant)
        from_pretrained(tmp_path / "first", torch.float32, "cpu").save_pretrained(tmp_path / "next")
        found = from_pretrained(tmp_path / "next", torch.float32, "cpu")
        inputs = random_inputs(expected.config, "text", i)
        assert error(found(**inputs).logits, expected(**inputs).logits) <= 1e-4, variant
        shutil.rmtree(tmp_path / "first")
        shutil.rmtree(tmp_path / "next")


def test_int4_and_int8_together_are_refused():
    with pytest.raises(ValueError, match="take one"):
        from_pretrained("tiny", device_map="cpu", int8=True, int4=True)


def test_layers_that_cannot_be_four_bits_keep_their_dtype(tmp_path, caplog):
    config = packable_config(1)
    config["intermediate_size"] = 80
    random_model(config, 1).save_pretrained(tmp_path / "plain")
    model = from_pretrained(tmp_path / "plain", device_map="cpu", int4=True)
    mlp = model.model.layers[0].mlp
    assert isinstance(mlp.up_proj, Int4Linear)
    assert type(mlp.down_proj) is torch.nn.Linear
    assert any("keep their dtype" in record.getMessage() for record in caplog.records)
    model.save_pretrained(tmp_path / "packed")
    again = from_pretrained(tmp_path / "packed", device_map="cpu")
    assert type(again.model.layers[0].mlp.down_proj) is torch.nn.Linear


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_compiled_steps_give_the_same_tokens(tmp_path, batch):
    packed_folder(tmp_path, 4, Variant("awq", symmetric=False, group_size=64))
    model = from_pretrained(tmp_path, torch.bfloat16, "cpu")
    ids = torch.arange(3, 12)[None] + torch.arange(batch)[:, None]
    plain = model.generate(ids, max_new_tokens=4, eos_token_id=-1)
    counters.clear()
    assert model.generate(ids, max_new_tokens=4, eos_token_id=-1, compile=True).equal(plain)
    # All layers share one compilation, and the head has the other.
    assert counters["stats"]["unique_graphs"] == 2
    layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
    assert all(layer.is_in_rows for layer in layers)
    assert model.generate(ids, max_new_tokens=4, eos_token_id=-1).equal(plain)
    assert not any(layer.is_in_rows for layer in layers)


def test_an_adapter_is_not_merged_into_packed_weights(tmp_path):
    packed_folder(tmp_path / "base", 1, Variant("awq"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="whose weights are packed"):
        from_pretrained(adapter, device_map="cpu", base=tmp_path / "base")


def test_processors_read_packed_folders(tmp_path):
    packed_folder(tmp_path, 1, Variant("awq"))
    assert load.read_config(tmp_path)["quantization_config"]["version"] == "gemm"
