"""What config.json says about packed weights: those of AWQ and GPTQ, in 4 or 8 bits.

Both methods store a matrix as small whole numbers, with a scale and a zero for each group of
inputs of each output:

  weight[o, i] = (code[o, i] - zero[g, o]) * scale[g, o]     where g is the group of input i

`PackedFormat` says how these are laid out in a file; packed_layout.py reads the layouts. The
section `quantization_config` of config.json has the fields, or, where older tools wrote it,
a file of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen2vl_extras import json_files
from qwen2vl_extras.errors import shorten

# Files of AutoGPTQ and of AutoAWQ beside a config.json that says nothing.
OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# The layout of each method: the versions of its name that are read.
GPTQ_FORMATS = ("gptq", "gptq_v2")
AWQ_FORMATS = ("gemm",)
# A packed layer X has X.qweight and so on in place of X.weight; AWQ has no g_idx.
PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


@dataclass(frozen=True)
class PackedFormat:
    """How the packed weights of a checkpoint are laid out."""

    method: str  # "awq" or "gptq"
    bits: int  # of a code: 4, or of GPTQ also 8
    group_size: int  # inputs that share a scale; -1 for all inputs of a layer
    desc_act: bool  # GPTQ only: the groups may be in any order, which g_idx tells
    # How zeros are stored: as they are, or each less one, in one of two ways.
    zeros: str  # "plain", "less one", "word less one"
    source: str  # the file and section that say so, for errors

    def group_size_of(self, in_features: int) -> int:
        """The size of the groups in a layer with that many inputs."""
        return in_features if self.group_size == -1 else self.group_size


def read_format(folder: Path, config: Mapping) -> PackedFormat | None:
    """The format of a folder's packed weights; None if no file speaks of any.

    config: the content of config.json. ValueError, in one line, for a format that can't be read
    here: it names the file, the field, its value and what is allowed.
    """
    section = config.get("quantization_config")
    if section:
        return parse(f"{folder / 'config.json'}: quantization_config", section, "")
    for filename, method in OLDER_FILES.items():
        section = json_files.read_object(folder, filename, optional=True)
        if section:
            return parse(f"{folder / filename}", section, method)
    return None


def parse(source: str, section: Mapping, method_of_file: str) -> PackedFormat:
    """A section of quantization settings as a PackedFormat; `source` is named in errors."""
    method = first_stated(section, "quant_method", "method") or method_of_file
    require(source, "quant_method", method, ("awq", "gptq"))
    # AWQ's own names for two fields came first.
    bits = first_stated(section, "bits", "w_bit", "wbits")
    require(source, "bits", bits, (4,) if method == "awq" else (4, 8), f" for {method!r}")
    group_size = first_stated(section, "group_size", "q_group_size")
    is_size = type(group_size) is int and (group_size == -1 or group_size >= 1)
    if not is_size:
        refuse(source, "group_size", group_size, "a whole number from 1, or -1 for one group a row")
    assert isinstance(group_size, int)
    require(source, "pack_dtype", section.get("pack_dtype") or "int32", ("int32",))
    check_exceptions(source, section)
    zeros = awq_zeros(source, section) if method == "awq" else gptq_zeros(source, section)
    assert isinstance(bits, int)
    desc_act = bool(section.get("desc_act"))
    return PackedFormat(str(method), bits, group_size, desc_act, zeros, source)


def awq_zeros(source: str, section: Mapping) -> str:
    """How AWQ stores zeros; ValueError for another layout than that of its version gemm."""
    for name in ("version", "format", "checkpoint_format"):
        version = section.get(name)
        if version is not None:
            lowered = version.lower() if isinstance(version, str) else version
            require(source, name, lowered, AWQ_FORMATS)
    backend = section.get("backend")
    if backend == "llm-awq":  # it packs 16-bit words, in another order
        refuse(source, "backend", backend, "'autoawq'")
    require(source, "zero_point", section.get("zero_point", True), (True,))
    return "plain"


def gptq_zeros(source: str, section: Mapping) -> str:
    """How GPTQ stores zeros: version 2 as they are, version 1 each less one."""
    if section.get("is_marlin_format"):
        refuse(source, "is_marlin_format", True, "false")
    name = "checkpoint_format" if section.get("checkpoint_format") else "format"
    version = section.get(name) or "gptq"
    require(source, name, version, GPTQ_FORMATS)
    if version == "gptq_v2":
        return "plain"
    # GPTQModel subtracts one from all zeros of a 32-bit word at once: from a zero of 0 it borrows
    # of the next one. Other tools subtract it from each zero by itself.
    meta = section.get("meta") or {}
    quantizer = meta.get("quantizer") or ""
    is_gptqmodel = "gptqmodel" in str(quantizer).lower()
    return "word less one" if is_gptqmodel else "less one"


def check_exceptions(source: str, section: Mapping) -> None:
    """ValueError if some layers have settings of their own; layers that are left out have none."""
    for pattern in section.get("dynamic") or {}:
        if not pattern.startswith("-:"):
            refuse(source, "dynamic", pattern, "layers that are left out, '-:PATTERN'")


def first_stated(section: Mapping, *names: str) -> object:
    """The value of the first of these fields that is there."""
    for name in names:
        if section.get(name) is not None:
            return section[name]
    return None


def require(
    source: str, name: str, value: object, allowed: tuple[object, ...], where: str = ""
) -> None:
    """ValueError unless a field has one of the allowed values; in Python true is 1."""
    for one in allowed:
        if type(value) is type(one) and value == one:
            return
    refuse(source, name, value, " or ".join(repr(one) for one in allowed) + where)


def refuse(source: str, name: str, value: object, allowed: str) -> None:
    raise ValueError(f"{source}: {name} is {shorten(value)}; it must be {allowed}")
