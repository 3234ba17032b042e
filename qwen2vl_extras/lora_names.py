"""The tensors of a LoRA adapter by their names: which parameter each belongs to, in which role.

PEFT writes base_model.model.<module>.<part>, where the modules have the names that they had in
the version of transformers that trained them. Examples:

  base_model.model.model.layers.0.mlp.up_proj.lora_A.weight                  transformers 4.45-4.51
  base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight   4.52 and later
  base_model.model.visual.merger.mlp.0.bias                                  a bias that was trained
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

# The parts that PEFT adds to a module, and the role of each; other tensors are whole parameters.
ROLES = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "lora_magnitude_vector": "magnitude",  # of DoRA
    "token_adapter.trainable_tokens_delta": "tokens",  # single rows of an embedding table
    "base_layer": "base",  # a parameter that is saved beside the matrices A and B
    "modules_to_save": "whole",
    "original_module": "unused",  # the same before it was trained
}
PART = re.compile(r"\.({})(?=\.|$)".format("|".join(re.escape(part) for part in ROLES)))
# What PEFT, and wrappers of the training loop, put before the names of the model.
PREFIX = re.compile(r"((base_model\.model|module|_orig_mod)\.)*")

# Beginnings of names, as some versions write them and as the official checkpoints do.
FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    (),  # transformers 4.45 to 4.51: the official names
    (("model.language_model.", "model."), ("model.visual.", "visual.")),  # 4.52 and later
    (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")),
)


def first_five(names: Iterable[str]) -> str:
    """At most five names, and how many more there are."""
    every = sorted(names)
    more = f" and {len(every) - 5} more" if len(every) > 5 else ""
    return ", ".join(every[:5]) + more


class TensorNames:
    """The tensors of an adapter, sorted by the parameters of its base.

    roles: {parameter: {role: tensor}}, parameters by their official names. repeated: pairs of
    tensors for one role of one parameter; PEFT saves some embedding tables twice.
    """

    def __init__(self, file: Path, tensors: Iterable[str], parameters: Collection[str]) -> None:
        self.parameters = parameters
        self.roles: dict[str, dict[str, str]] = {}
        self.repeated: list[tuple[str, str]] = []

        # The family of names in which the fewest tensors are of no parameter.
        names = sorted(tensors)
        best = [self.unknown(names, family) for family in FAMILIES]
        fewest = min(best, key=len)
        self.family = FAMILIES[best.index(fewest)]
        if fewest:
            raise ValueError(f"{file}: the base has no parameter for {first_five(fewest)}")

        adapters = set()
        for name in names:
            path, role, adapter = self.place(name, self.family)
            if role == "unused":
                continue
            if role not in ("whole", "base"):
                adapters.add(adapter)
            roles = self.roles.setdefault(path, {})
            if role in roles:
                self.repeated.append((roles[role], name))
            roles[role] = name
        if len(adapters) > 1:
            raise ValueError(f"{file} holds more than one adapter: {first_five(adapters)}")

    def unknown(self, names: Iterable[str], family: tuple[tuple[str, str], ...]) -> list[str]:
        """The tensors that, in a family of names, belong to no parameter."""
        return [name for name in names if self.place(name, family)[0] not in self.parameters]

    def place(self, name: str, family: tuple[tuple[str, str], ...]) -> tuple[str, str, str]:
        """A tensor's parameter, its role, and the name of the adapter, "" if it is left out."""
        name = PREFIX.sub("", name, count=1)
        part = PART.search(name)
        if part is None:
            return official(name, family), "whole", ""
        module = name[: part.start()]
        role = ROLES[part[1]]
        rest = name[part.end() :].lstrip(".").split(".")  # default.weight, weight, default or ""

        # After these the rest is the parameter's name within the module.
        if role in ("base", "whole", "unused"):
            path = official(".".join([module, *rest]), family)
            if path in self.parameters:
                return path, role, ""
            return official(".".join([module, *rest[1:]]), family), role, rest[0]

        # After the others it is the name of the adapter, and of the small matrix's parameter.
        parameter = "weight"
        if rest[-1] in ("weight", "bias"):
            parameter = rest.pop()
        if parameter == "bias":
            role = "bias" if role == "B" else "unknown"
        adapter = ".".join(rest)
        if role == "unknown" or "." in adapter:
            return name, role, adapter
        return official(f"{module}.{parameter}", family), role, adapter

    def written(self, module: str) -> str:
        """The name of a module, given by its official one, as this adapter writes it."""
        for theirs, ours in self.family:
            if f"{module}.".startswith(ours):
                return (theirs + f"{module}."[len(ours) :]).removesuffix(".")
        return module


def official(name: str, family: tuple[tuple[str, str], ...]) -> str:
    """The official name of a parameter that is written in a family of names."""
    for theirs, ours in family:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name
