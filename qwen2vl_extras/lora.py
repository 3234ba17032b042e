"""LoRA adapters of PEFT, merged into the weights of their base while these are read.

An adapter is a folder with two files, which PEFT writes after a finetune:

  adapter_config.json        which modules were trained, and how
  adapter_model.safetensors  for each of them two small matrices, A (r, in) and B (out, r)

The weights of the finetuned model are those of the base plus the product of the two:

  W + B A * alpha / r

`low_rank_change` computes the product and `Adapter.add_change` the sum. The rest finds out which
tensor belongs to which weight, and refuses what can't be merged exactly.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen2vl_extras import json_files
from qwen2vl_extras.errors import note
from qwen2vl_extras.lora_config import CONFIG, LoraConfig
from qwen2vl_extras.lora_names import TensorNames, first_five

WEIGHTS = "adapter_model.safetensors"
DTYPES = ("F32", "BF16", "F16")
# The table of the tokens and the output layer, which in some checkpoints are one matrix.
TABLE = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


# ------------------------------------------------------------------------------------ the merging


def low_rank_change(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """B A * scale, the change (out, in) of a weight, from A (r, in) and B (out, r).

    For a convolution A has the axes of its kernel as well, and B as many of size 1.
    """
    return b.flatten(1) @ a.flatten(1) * scale


def set_lengths(weight: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """DoRA (arXiv 2402.09353): give each vector along an axis of a matrix its trained length."""
    length = torch.linalg.norm(weight, dim=axis, keepdim=True)
    return magnitude.reshape(length.shape) / length * weight


class Adapter:
    """An adapter in a folder, checked against the parameters of its base.

    shapes: those of the base's parameters, by
    official names, without a tied head. tied: whether the head and the table are one matrix.
    `stays_tied` says whether they still are after the merge. ValueError, in one line, for what
    can't be merged.

    How exact this is: PEFT's merge_and_unload, too, adds in float32 and rounds once, to the dtype
    of the base. The two differ by the order of the sums in B A: in float32 by 1e-6 of a matrix's
    largest value at most, in bfloat16 by one step of a few values. Two things differ on purpose.
    PEFT rounds the change of a table before it adds it; here it is rounded once. And of a tied
    table and head PEFT changes both where the adapter changes one, unlike its own model before
    the merge. Here the head is untied, as PEFT advises, and the merged model computes what the
    trained one did.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        self.file = folder / WEIGHTS
        self.config = LoraConfig(folder / CONFIG, json_files.read_object(folder, CONFIG))
        self.shapes = dict(shapes)
        if tied:
            self.shapes[HEAD] = shapes[TABLE]

        # Which tensor has which role for which parameter, and that none is missing.
        headers = read_headers(self.file)
        self.names = TensorNames(self.file, headers, self.shapes)
        self.roles = self.names.roles
        self.check_repeated()
        self.check_modules(tied)
        self.check_parts()

        # What the config says of each module with matrices A and B.
        self.written = {path: self.written_name(path) for path in self.shapes}
        low_rank = [self.written[path] for path in self.roles if self.is_low_rank(path)]
        self.ranks = self.config.ranks(low_rank)
        self.scales = self.config.scales(self.ranks)
        self.check_shapes(headers)

        self.is_tied = tied
        self.saved_table = self.find_saved_table() if tied else None
        self.stays_tied = tied and not self.changes_one_alone()
        if tied and not self.stays_tied:
            note(f"{folder}: the head is no longer tied: the adapter changes it or the table alone")

    def merge(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Turn the base's weights (name, tensor) into those of the finetuned model, one by one."""
        for path, weight in weights:
            if self.is_tied and path == TABLE:
                if self.saved_table is not None:
                    weight = self.read(self.saved_table, weight.device).to(weight.dtype)
                if not self.stays_tied:
                    yield HEAD, self.merge_one(HEAD, weight)
            yield path, self.merge_one(path, weight)

    @torch.no_grad()
    def merge_one(self, path: str, weight: Tensor) -> Tensor:
        """A weight of the finetuned model from that of the base, in its dtype and on its device."""
        roles = self.roles.get(path, {})
        if not roles:
            return weight
        merged = weight.float()
        for role in ("base", "whole"):  # saved or trained as a whole
            if role in roles:
                merged = self.read(roles[role], weight.device)
        if self.is_low_rank(path):
            merged = self.add_change(path, merged)
        if "bias" in roles:  # of the layer that multiplies by B
            scale = self.scales[self.written[path]]
            merged = merged + self.read(roles["bias"], weight.device) * scale
        if "tokens" in roles:  # only these rows were trained
            index = torch.tensor(self.tokens(path), device=weight.device)
            merged = merged.index_copy(0, index, self.read(roles["tokens"], weight.device))

        merged = merged.to(weight.dtype)
        if not merged.isfinite().all():
            raise ValueError(
                f"{self.file}: {path} is not finite, once merged in {weight.dtype}: is it damaged?"
            )
        return merged

    def add_change(self, path: str, weight: Tensor) -> Tensor:
        """W + B A * scale in float32; with DoRA every row then gets its trained length."""
        roles = self.roles[path]
        if path == TABLE:
            # Of a table the transposed change is stored, (B A).T = A.T B.T.
            a = self.read(roles["embedding_B"], weight.device).T
            b = self.read(roles["embedding_A"], weight.device).T
        else:
            a = self.read(roles["A"], weight.device)
            b = self.read(roles["B"], weight.device)
        merged = weight.flatten(1) + low_rank_change(a, b, self.scales[self.written[path]])
        if "magnitude" in roles:
            # Of a table every column.
            axis = 0 if path == TABLE else 1
            merged = set_lengths(merged, self.read(roles["magnitude"], weight.device), axis)
        return merged.view(weight.shape)

    def read(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A tensor of the adapter in float32."""
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(name).to(device).float()

    # ------------------------------------------------------------------------ what is checked

    def is_low_rank(self, path: str) -> bool:
        return "A" in self.roles[path] or "embedding_A" in self.roles[path]

    def written_name(self, path: str) -> str:
        """The module of a parameter, as the adapter writes it."""
        return self.names.written(path.rpartition(".")[0])

    def tokens(self, path: str) -> list[int]:
        """The ids whose rows of a parameter were trained."""
        return self.config.tokens(self.written_name(path), self.written_name(TABLE))

    def check_repeated(self) -> None:
        """ValueError unless tensors for one role are equal: PEFT saves some tables twice."""
        for first, second in self.names.repeated:
            if not torch.equal(self.read(first), self.read(second)):
                raise ValueError(f"{self.file}: {first} and {second} are for one weight and differ")

    def check_modules(self, tied: bool) -> None:
        """ValueError unless the tensors are of the modules that the config names, and of all."""
        targeted = self.targeted_modules(tied)
        trained = {self.written_name(path) for path in self.roles if self.is_low_rank(path)}
        # Whether PEFT adds A and B inside of modules that are saved whole depends on its version.
        missing = {name for name in targeted - trained if not self.config.is_saved(name)}
        unused = {name for name in trained - targeted if not self.config.is_saved(name)}

        # The config may name modules that are saved whole, and tables of which rows are trained.
        for path in self.shapes:
            roles = self.roles.get(path, {})
            is_saved = self.config.is_saved(self.written_name(path))
            if is_saved and not {"whole", "base"} & roles.keys():
                missing.add(path)
            has_tokens = path.endswith(".weight") and bool(self.tokens(path))
            # Rows of the table are trained for a tied head as well, and saved once.
            follows = tied and path == HEAD and "tokens" in self.roles.get(TABLE, {})
            if has_tokens and "tokens" not in roles and not follows:
                missing.add(path)
            if "tokens" in roles and not has_tokens:
                unused.add(path)
        if missing:
            raise ValueError(f"{self.file} lacks tensors of {first_five(missing)}")
        if unused:
            raise ValueError(
                f"{self.file} has tensors of what {CONFIG} does not name: {first_five(unused)}"
            )

    def targeted_modules(self, tied: bool) -> set[str]:
        """The modules that have matrices A and B by the config, as the adapter writes them."""
        matrices = []
        linear = []
        for path, shape in self.shapes.items():
            if path.endswith(".weight") and len(shape) >= 2:
                matrices.append(self.written_name(path))
                if len(shape) == 2 and path not in (TABLE, HEAD):
                    linear.append(self.written_name(path))
        targeted = self.config.targeted(matrices, linear)
        # PEFT can let a tied head follow the table.
        follows = tied and self.config.ensure_weight_tying
        if follows and self.written_name(TABLE) in targeted:
            targeted.add(self.written_name(HEAD))
        return targeted

    def check_parts(self) -> None:
        """ValueError unless each module has all the tensors of its kind of LoRA, and no others."""
        problems = []
        for path, roles in self.roles.items():
            found = roles.keys() - {"base", "whole", "tokens"}
            wanted = self.wanted_parts(path) if found else set()
            problems += [f"{path} lacks {role}" for role in wanted - found]
            problems += [f"{path} has {role}" for role in found - wanted]
            if {"base", "whole"} <= roles.keys():
                problems.append(f"{path} is there twice")
            # A matrix B that has a bias changes that of its layer.
            bias = path.removesuffix("weight") + "bias"
            needs_bias = self.config.lora_bias and self.is_low_rank(path)
            if needs_bias and "bias" not in self.roles.get(bias, {}):
                problems.append(f"{bias} lacks bias")
        if problems:
            raise ValueError(f"{self.file} does not go with {CONFIG}: {first_five(problems)}")

    def wanted_parts(self, path: str) -> set[str]:
        """The roles of the small tensors that change a parameter."""
        if path.endswith(".bias"):
            return {"bias"} if self.config.lora_bias else set()
        parts = {"embedding_A", "embedding_B"} if path == TABLE else {"A", "B"}
        return parts | {"magnitude"} if self.config.use_dora else parts

    def check_shapes(self, headers: Mapping[str, "Header"]) -> None:
        """ValueError unless every tensor has the shape of its role."""
        problems = []
        for path, roles in self.roles.items():
            rank = self.ranks.get(self.written[path], 0)
            ids = self.tokens(path)
            if any(token >= self.shapes[path][0] for token in ids) or len(set(ids)) < len(ids):
                problems.append(f"{CONFIG} has token ids that repeat or are no row of {path}")
            for role, name in roles.items():
                found = headers[name].shape
                wanted = shape_of(role, path, self.shapes[path], rank, len(ids))
                if found != wanted:
                    problems.append(f"{name} is {found}, should be {wanted}")
        if problems:
            raise ValueError(f"{self.file} does not fit its base: {first_five(problems)}")

    # ------------------------------------------------------------------ a tied table and head

    def find_saved_table(self) -> str | None:
        """The tensor of a tied base's matrix, which PEFT saves beside changes to it.

        It is not what was trained: it goes to table and head, and is taken out of their roles.
        """
        saved = []
        for path in (TABLE, HEAD):
            roles = self.roles.get(path, {})
            if "base" in roles:
                saved.append(roles.pop("base"))
            if "whole" in roles and not self.config.is_saved(self.written[path]):
                saved.append(roles.pop("whole"))
        if not saved:
            return None
        for other in saved[1:]:
            if not torch.equal(self.read(saved[0]), self.read(other)):
                raise ValueError(
                    f"{self.file}: {saved[0]} and {other} differ, but the base ties table and head"
                )
        return saved[0]

    def changes_one_alone(self) -> bool:
        """Whether a tied table and head are no longer equal after the merge."""
        table = self.roles.get(TABLE, {})
        head = self.roles.get(HEAD, {})
        if not head and table.keys() <= {"tokens"}:
            return False  # PEFT trains these rows for both
        if table.keys() | head.keys() != {"whole"}:
            return True
        table_tensor = table.get("whole", self.saved_table)
        head_tensor = head.get("whole", self.saved_table)
        if table_tensor is None or head_tensor is None:
            return True
        return not torch.equal(self.read(table_tensor), self.read(head_tensor))


def shape_of(role: str, path: str, shape: tuple[int, ...], rank: int, rows: int) -> tuple[int, ...]:
    """The shape of a tensor by its role for a parameter, whose own shape is given."""
    ones = (1,) * (len(shape) - 2)  # for the axes of a convolution's kernel
    if role == "A":
        return (rank, *shape[1:])
    if role == "B":
        return (shape[0], rank, *ones)
    if role == "embedding_A":
        return (rank, shape[0])
    if role == "embedding_B":
        return (shape[1], rank)
    if role == "tokens":
        return (rows, *shape[1:])
    if role == "magnitude" and path == TABLE:
        return (shape[1],)
    if role == "magnitude":
        return (1, shape[0], *ones) if ones else (shape[0],)
    return shape  # "base", "whole" and "bias"


class Header(NamedTuple):
    """What the header of a safetensors file says about a tensor."""

    shape: tuple[int, ...]
    dtype: str  # "F32", "BF16", ...


def read_headers(file: Path) -> dict[str, Header]:
    """The header of each tensor of an adapter, by its name."""
    if not file.is_file():
        other = file.with_name("adapter_model.bin")
        reason = f": {other.name} is a pickle, which can run code" if other.exists() else ""
        raise FileNotFoundError(f"{file.parent} has no {file.name}{reason}")
    headers = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                entry = tensors.get_slice(name)
                headers[name] = Header(tuple(entry.get_shape()), entry.get_dtype())
    except SafetensorError as error:
        raise ValueError(f"{file} is broken or cut short ({error})") from error
    wrong = [name for name, header in headers.items() if header.dtype not in DTYPES]
    if wrong:
        raise ValueError(f"{file}: only {', '.join(DTYPES)} is read, not {first_five(wrong)}")
    return headers


# ------------------------------------------------------------------------------- base and processor


def base_in_config(folder: Path, config: Mapping[str, object]) -> str:
    """The Hub repository that an adapter's config names as its base.

    ValueError for anything else, above all for a path: what a downloaded file says must not choose
    which folders of this machine are read.
    """
    file = folder / CONFIG
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file} names no base: give it as base= (--base)")
    pattern = r"\w[\w.-]{0,95}/\w[\w.-]{0,95}"
    if not isinstance(base, str) or re.fullmatch(pattern, base, re.ASCII) is None:
        raise ValueError(
            f"{file}: the base {base!r:.99} is no Hub name (owner/name), and paths are not "
            "followed: give it as base= (--base)"
        )
    if Path(base).exists():
        raise ValueError(
            f"{file}: the base {base!r:.99} is a Hub name and also a path here, which is not "
            "followed: give the one you mean as base= (--base)"
        )
    if config.get("revision") not in (None, "", "main"):
        raise ValueError(
            f"{file} asks for revision {config['revision']!r:.99} of {base}: download that, and "
            "give its folder as base= (--base)"
        )
    return base


@contextmanager
def processor_folder(adapter: Path, base: Path) -> Iterator[Path]:
    """A folder with the files of a processor: those of the adapter, and the others of the base.

    It is there while the `with` block lasts. Errors name the files where they really are.
    """
    with tempfile.TemporaryDirectory() as temporary:
        sources = processor_files(adapter, base)
        for filename, source in sources.items():
            target = Path(temporary) / filename
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
        try:
            yield Path(temporary)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            for filename, source in sources.items():
                text = text.replace(str(Path(temporary) / filename), str(source))
            raise type(error)(text.replace(temporary, f"{adapter} (base: {base})")) from error


# Files that say the same: where an adapter has one of them, none is taken from the base.
IMAGE_FILES = {
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
}
TEMPLATE_FILES = {"chat_template.json", "chat_template.jinja"}
TEMPLATE_FOLDER = "additional_chat_templates"
# The model's files, of which a processor reads those of the base.
MODEL_FILES = {"config.json", "generation_config.json", CONFIG}
LARGEST = 100_000_000  # bytes; a tokenizer has 11 million


def processor_files(adapter: Path, base: Path) -> dict[str, Path]:
    """Where each file of an adapter's processor is, by its name."""
    of_base = text_files(base)
    of_adapter = text_files(adapter)
    for filename in MODEL_FILES:
        of_adapter.pop(filename, None)
    left_out = set()
    if IMAGE_FILES & of_adapter.keys():
        left_out |= IMAGE_FILES
    # A template may also stand in the tokenizer's settings.
    settings = json_files.read_object(adapter, "tokenizer_config.json", optional=True)
    if settings.get("chat_template") or any(map(is_template, of_adapter)):
        left_out |= {filename for filename in of_base if is_template(filename)}
    for filename in left_out:
        of_base.pop(filename, None)
    return of_base | of_adapter


def is_template(filename: str) -> bool:
    return filename in TEMPLATE_FILES or filename.startswith(f"{TEMPLATE_FOLDER}/")


def text_files(folder: Path) -> dict[str, Path]:
    """The JSON files and templates of a folder that are not too large for any use, by name."""
    files = {}
    for pattern in ("*.json", "*.jinja", f"{TEMPLATE_FOLDER}/*.jinja"):
        for file in folder.glob(pattern):
            if file.is_file() and file.stat().st_size <= LARGEST:
                files[file.relative_to(folder).as_posix()] = file
    return files
