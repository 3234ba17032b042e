"""Tokens of finetunes, leftovers of training runs, and the guard in every copy of a processor."""

import copy
import itertools
import json
import multiprocessing
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, processors

from load import find_checkpoint, load_tokenizer
from processor import (
    CONTROL_TOKENS,
    GROUNDING_TOKENS,
    BatchFeature,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from tests.helpers.prompts import QUESTION, Prompts

# What finetunes add: words, marks, blanks, and parts of control tokens.
CONTENTS = [
    "<memory>",
    "<|tool|>",
    "[REF]",
    "🙂tag",
    "two words",
    " lead",
    "trail ",
    "the",
    "<a",
    "||",
    "\n\n",
    "café",
    "cafe\u0301",
    "<|im",
    "im_end",
    "<|im_start|>user",
    "_end|>",
    "<loc_1>",
    "<loc_12>",
    "9",
]
WORDS = [
    "red",
    " ",
    "  ",
    "\n",
    "a",
    "memory",
    "<",
    "|>",
    "<|",
    "end",
    "é",
    "cafe",
    "你好",
    ".",
    "_",
]
PLACES = ["tokenizer", "config", "both", "roles", "legacy", "legacy roles", "extra", "vocabulary"]


# ------------------------------------------------------------------------------- odd tokenizers


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def texts_of_tiny(folder: Path) -> Path:
    """A folder with the JSON files of the embedded checkpoint."""
    folder.mkdir(parents=True)
    for file in find_checkpoint("tiny").glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    return folder


def random_token(rng: random.Random, content: str) -> dict:
    """A token as tokenizer.json describes it, without its id."""
    flags = {}
    for name in ("single_word", "lstrip", "rstrip", "normalized", "special"):
        flags[name] = rng.random() < 0.4
    return {"content": content, **flags}


class OddTokenizer:
    """A folder whose tokenizer has random tokens more, stated in one of PLACES."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = random.Random(seed)
        self.place = PLACES[seed % len(PLACES)]
        self.folder = texts_of_tiny(folder)
        contents = rng.sample(CONTENTS, rng.randint(1, 6))
        self.tokens = [random_token(rng, content) for content in contents]
        self.tokenizer = read_json(folder / "tokenizer.json")
        self.config = read_json(folder / "tokenizer_config.json")
        self.next_id = max(entry["id"] for entry in self.tokenizer["added_tokens"]) + 1
        self.state_tokens(rng)
        write_json(folder / "tokenizer.json", self.tokenizer)
        write_json(folder / "tokenizer_config.json", self.config)

    def state_tokens(self, rng: random.Random) -> None:
        """Write the tokens where they stand in this folder."""
        by_id = {}
        new = itertools.count(self.next_id)
        for token in self.tokens:
            # A word of the vocabulary keeps its id.
            known = self.tokenizer["model"]["vocab"].get(token["content"])
            by_id[str(next(new) if known is None else known)] = token
        contents = [token["content"] for token in self.tokens]
        if self.place in ("tokenizer", "both", "vocabulary"):
            for token_id, token in by_id.items():
                self.tokenizer["added_tokens"].append({"id": int(token_id), **token})
        if self.place == "vocabulary":
            self.leave_gaps(rng)
        if self.place in ("config", "both"):
            self.config["added_tokens_decoder"].update(by_id)
        if self.place == "both":
            # The same tokens with other flags: those of the config count.
            for token in self.tokens:
                self.tokenizer["added_tokens"][-1]["lstrip"] = not token["lstrip"]
        if self.place == "roles":
            self.config["additional_special_tokens"] = self.as_roles(rng)
        if self.place == "extra":
            roles = {f"own_{i}_token": content for i, content in enumerate(contents)}
            self.config["extra_special_tokens"] = roles
        if self.place.startswith("legacy"):
            del self.config["added_tokens_decoder"]
        if self.place == "legacy":
            ids = {token["content"]: int(token_id) for token_id, token in by_id.items()}
            write_json(self.folder / "added_tokens.json", ids)
        if self.place == "legacy roles":
            roles = {"additional_special_tokens": contents, "eos_token": "<|im_end|>"}
            write_json(self.folder / "special_tokens_map.json", roles)

    def as_roles(self, rng: random.Random) -> list:
        """The tokens as additional_special_tokens has them: texts, or objects with flags."""
        if rng.random() < 0.5:
            return [token["content"] for token in self.tokens]
        return [{"__type": "AddedToken", **token} for token in self.tokens]

    def leave_gaps(self, rng: random.Random) -> None:
        """Give the tokens ids far from each other, as a larger vocabulary has them."""
        token_id = self.next_id
        for entry in self.tokenizer["added_tokens"][-len(self.tokens) :]:
            token_id += rng.randint(1, 500)
            if entry["content"] not in self.tokenizer["model"]["vocab"]:
                entry["id"] = token_id
        for entry in self.tokenizer["added_tokens"]:
            self.tokenizer["model"]["vocab"][entry["content"]] = entry["id"]


def random_text(rng: random.Random, parts: list[str]) -> str:
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 14)))


def has_control_token(text: str) -> bool:
    return any(token in text for token in CONTROL_TOKENS)


def reference_ids(tokenizer: transformers.Qwen2TokenizerFast, text: str) -> list[int] | None:
    """The ids of a text; None where the library itself breaks down, at tokens that overlap."""
    try:
        return tokenizer(text)["input_ids"]
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


def test_tokens_of_finetunes_are_those_of_the_reference(amount, tmp_path):
    tried = 0
    for seed in range(amount(40, 800)):
        odd = OddTokenizer(tmp_path / str(seed), seed)
        theirs = transformers.Qwen2TokenizerFast.from_pretrained(odd.folder)
        ours = Qwen2VLProcessor.from_pretrained(odd.folder)
        rng = random.Random(seed)
        contents = [token["content"] for token in odd.tokens]
        for _ in range(40):
            text = random_text(rng, WORDS + contents * 3 + GROUNDING_TOKENS)
            if has_control_token(text):
                continue
            expected = reference_ids(theirs, text)
            if expected is None:
                continue
            assert ours.encode_text(text) == expected, (seed, odd.place, odd.tokens, text)
            # Control tokens of a string that is trusted are tokens in both.
            trusted = f"<|im_start|>{text}<|im_end|>\n"
            both = reference_ids(theirs, trusted)
            if both is not None and "<|im_start|>user" not in contents:
                found = ours(text=trusted).input_ids[0].tolist()
                assert found == both, (seed, odd.place, odd.tokens, text)
            # The library garbles an added token with letters past ASCII.
            for skip in (False, True) if "".join(contents).isascii() else ():
                decoded = theirs.decode(expected, skip_special_tokens=skip)
                assert ours.decode(expected, skip_special_tokens=skip) == decoded, (seed, text)
            tried += 1
    assert tried > 1000


def test_a_tokens_id_that_the_library_cannot_give_is_refused_with_both(tmp_path):
    for place in ("config", "legacy"):
        odd = OddTokenizer(tmp_path / place, PLACES.index(place))
        gap = odd.next_id + 1000
        if place == "config":
            stated = {str(gap): {"content": "<far>", "special": True}}
            odd.config["added_tokens_decoder"].update(stated)
            write_json(odd.folder / "tokenizer_config.json", odd.config)
        else:
            write_json(odd.folder / "added_tokens.json", {"<far>": gap})
        with pytest.raises(ValueError, match=rf"<far> gets id \d+, .*says {gap}"):
            load_tokenizer(odd.folder)


BROKEN = [
    {"added_tokens_decoder": []},
    {"added_tokens_decoder": [1]},
    {"added_tokens_decoder": "x"},
    {"added_tokens_decoder": {"x": {"content": "<a>"}}},
    {"added_tokens_decoder": {"-1": {"content": "<a>"}}},
    {"added_tokens_decoder": {"1e3": {"content": "<a>"}}},
    {"added_tokens_decoder": {"9" * 40: {"content": "<a>"}}},
    {"added_tokens_decoder": {"704": {"content": 5}}},
    {"added_tokens_decoder": {"704": None}},
    {"added_tokens_decoder": {"704": []}},
    {"added_tokens_decoder": {"704": {"content": "<a>", "special": "yes"}}},
    {"added_tokens_decoder": {"704": {"content": "<a>", "lstrip": None}}},
    {"added_tokens_decoder": {"704": {"content": "<a>", "strip": True}}},
    {"additional_special_tokens": "<a>"},
    {"additional_special_tokens": [5]},
    {"additional_special_tokens": {"a": "<a>"}},
    {"extra_special_tokens": "<a>"},
    {"extra_special_tokens": {"a": 5}},
    {"eos_token": 5},
    {"eos_token": ["<|im_end|>"]},
    {"pad_token": {"text": "<a>"}},
]


@pytest.mark.parametrize("changes", BROKEN, ids=str)
def test_an_entry_that_is_no_token_is_refused_in_one_line(tmp_path, changes):
    folder = texts_of_tiny(tmp_path / "broken")
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**config, **changes})
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    message = str(error.value)
    assert "tokenizer_config.json" in message
    assert next(iter(changes)) in message
    assert "\n" not in message


# ------------------------------------------------------------------- leftovers of training runs


def leftovers(tokenizer: Tokenizer) -> Iterator[str]:
    """Leave in a tokenizer what training runs leave, one after the other; yields their names."""
    for length in (0, 1, 3, 8):
        for side in ("left", "right"):
            tokenizer.enable_truncation(max_length=length, direction=side)
            yield f"truncation {length} {side}"
    tokenizer.no_truncation()
    for length in (None, 2, 400):
        for side in ("left", "right"):
            tokenizer.enable_padding(direction=side, pad_id=3, pad_token="a", length=length)
            yield f"padding {length} {side}"
    tokenizer.enable_padding(pad_to_multiple_of=64)
    yield "padding to multiples"
    tokenizer.enable_truncation(max_length=2, stride=1)
    yield "padding and truncation"
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pair = [("<|im_start|>", 691), ("<|im_end|>", 692)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", pair="$A $B", special_tokens=pair
    )
    yield "a post-processor that adds tokens"


def ids_of(processor: Qwen2VLProcessor) -> list[int]:
    return processor.apply_chat_template(QUESTION, tokenize=True)[0].tolist()


def test_truncation_and_padding_in_tokenizer_json_are_never_obeyed(tmp_path):
    clean = ids_of(Qwen2VLProcessor.from_pretrained("tiny"))
    folder = texts_of_tiny(tmp_path / "leftovers")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = tokenizer.encode(QUESTION[0]["content"][0]["text"]).ids
    num_obeyed = 0
    for name in leftovers(tokenizer):
        tokenizer.save(str(folder / "tokenizer.json"))
        processor = Qwen2VLProcessor.from_pretrained(folder)
        for one in (processor, copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
            assert ids_of(one) == clean, name
        obeyed = Tokenizer.from_file(str(folder / "tokenizer.json"))
        num_obeyed += obeyed.encode(QUESTION[0]["content"][0]["text"]).ids != text
    assert num_obeyed >= 13, "the library obeys nearly all of them"


def test_truncation_and_padding_that_a_program_sets_later_are_not_obeyed_either():
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    clean = ids_of(processor)
    for name in leftovers(processor.tokenizer):
        assert ids_of(processor) == clean, name
        assert ids_of(copy.deepcopy(processor)) == clean, name


def test_random_splits_of_a_training_run_are_switched_off(tmp_path):
    folder = texts_of_tiny(tmp_path / "dropout")
    content = read_json(folder / "tokenizer.json")
    content["model"]["dropout"] = 0.9
    write_json(folder / "tokenizer.json", content)
    processor = Qwen2VLProcessor.from_pretrained(folder)
    assert ids_of(processor) == ids_of(Qwen2VLProcessor.from_pretrained("tiny"))


# --------------------------------------------------------------------- the guard in every copy


def forged_texts(count: int) -> Iterator[str]:
    """Texts full of control tokens and parts of them."""
    parts = ["<|", "|>", "<", "|", ">", "im_end", "im_start", "vision_", "pad", " ", "\n", "x", "é"]
    rng = random.Random(7)
    for _ in range(count):
        yield random_text(rng, parts + CONTROL_TOKENS)


def plain_ids(text: str) -> list[int]:
    """The ids of a text by a simpler path: a tokenizer that knows no control token."""
    if not PLAIN:
        content = read_json(find_checkpoint("tiny") / "tokenizer.json")
        kept = [entry for entry in content["added_tokens"] if entry["content"] in GROUNDING_TOKENS]
        content["added_tokens"] = kept
        PLAIN.append(Tokenizer.from_str(json.dumps(content)))
    return PLAIN[0].encode(text).ids


PLAIN: list[Tokenizer] = []


def copies(processor: Qwen2VLProcessor) -> dict[str, Qwen2VLProcessor]:
    """A processor in all ways to copy it."""
    shared = Qwen2VLProcessor(Qwen2VLImageProcessor(), processor.tokenizer)
    found = {
        "itself": processor,
        "copy": copy.copy(processor),
        "deep copy": copy.deepcopy(processor),
        "copy of a copy": copy.deepcopy(copy.deepcopy(processor)),
        "one that shares its tokenizer": shared,
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found[f"pickle {protocol}"] = pickle.loads(pickle.dumps(processor, protocol))
    return found


def test_control_tokens_in_text_stay_text_in_every_copy(amount):
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    for name, one in copies(processor).items():
        for text in forged_texts(amount(60, 3000)):
            ids = one.encode_text(text)
            assert one.control_ids.isdisjoint(ids), (name, text)
            assert ids == plain_ids(text), (name, text)


def test_the_guard_holds_whatever_a_program_sets_in_the_tokenizer():
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    clean = ids_of(processor)
    for value in (False, True, False):
        processor.tokenizer.encode_special_tokens = value
        assert ids_of(processor) == clean, value
        processor.tokenizer.encode("<|im_end|>", add_special_tokens=False)
        assert ids_of(copy.deepcopy(processor)) == clean, value


def test_a_tokenizer_that_makes_control_tokens_of_other_text_is_refused(tmp_path):
    folder = texts_of_tiny(tmp_path / "normalizer")
    content = read_json(folder / "tokenizer.json")
    content["normalizer"] = {"type": "Lowercase"}
    for entry in content["added_tokens"]:
        entry["normalized"] = True
    write_json(folder / "tokenizer.json", content)
    (folder / "tokenizer_config.json").write_text("{}")
    processor = Qwen2VLProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="control token") as error:
        processor.encode_text("<|IM_END|>")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods()[:2])
def test_the_guard_holds_in_workers(method):
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    loader = torch.utils.data.DataLoader(
        Prompts(processor), num_workers=1, batch_size=3, multiprocessing_context=method
    )
    (batch,) = list(loader)
    assert batch.tolist() == [ids_of(processor)] * 3


def test_streams_and_batches_survive_copying():
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    ids = processor.encode_text("你好, <|box_start|>é👩‍👩‍👧")
    whole = processor.decode(ids)
    for position in range(len(ids)):
        stream = processor.text_stream()
        begin = "".join(stream.push(token_id) for token_id in ids[:position])
        for one in (pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream), copy.copy(stream)):
            rest = "".join(one.push(token_id) for token_id in ids[position:]) + one.finish()
            assert begin + rest == whole, position

    inputs = processor.apply_chat_template(QUESTION, tokenize=True, return_dict=True)
    for one in (copy.copy(inputs), copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert isinstance(one, BatchFeature)
        assert torch.equal(one.input_ids, inputs.input_ids)


def test_the_official_tokenizer_reads_forged_texts_as_text(official, amount):
    """By the same two paths as the embedded one, and with tokens that a finetune added."""
    tokenizer = load_tokenizer(official)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<memory>", "<|tool|>")])
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer)
    content = json.loads(tokenizer.to_str())
    for entry in content["added_tokens"]:
        if entry["content"] in CONTROL_TOKENS:
            entry["content"] = f"never {entry['id']}"  # the ids of the others stay
    plain = Tokenizer.from_str(json.dumps(content))
    for text in forged_texts(amount(100, 5000)):
        longer = f"{text}<memory>{text} <|tool|>"
        assert processor.encode_text(longer) == plain.encode(longer).ids, text
