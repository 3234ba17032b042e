"""Ours beside the reference: the table holds for right code, and finds mistakes at their stage."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from notebooks import against
from tests.helpers.official_layout import noisy_image, save_official_layout, save_tiny_layout

# The files beside the notebooks import each other by plain names, once `against` is imported.
import mistakes  # isort: skip
import our_side  # isort: skip
from side import Question, Rounding, Side  # isort: skip
from verdicts import table_of  # isort: skip

ROOT = Path(__file__).parent.parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Pair:
    """Our side of a checkpoint in one dtype, and what the reference said."""

    ours: our_side.OurSide
    question: Question
    theirs: Side
    rounding: Rounding

    def table(self):
        side = self.ours.ask(self.question, self.theirs, measured=False)
        return table_of(side, self.theirs, self.rounding, self.ours.processor.decode)


def make_pair(folder: Path, dtype: str) -> Pair:
    question = Question(noisy_image(1), "Describe this image.", max_new_tokens=4)
    theirs, rounding = against.their_answer(str(folder), DTYPES[dtype], "cpu", None, question)
    ours = our_side.OurSide(*against.our_model(str(folder), DTYPES[dtype], "cpu", None))
    return Pair(ours, question, theirs, rounding)


@pytest.fixture(scope="module", params=DTYPES)
def small(request, tmp_path_factory) -> Pair:
    """Random weights, four blocks and four layers, the embedded model's tokenizer."""
    folder = save_tiny_layout(ROOT / "tiny" / "checkpoint", tmp_path_factory.mktemp("small"))
    return make_pair(folder, request.param)


@pytest.fixture(scope="module", params=DTYPES)
def official_layout(request, official, tmp_path_factory) -> Pair:
    """Random weights, 32 blocks and 28 layers, the official tokenizer and template."""
    folder = save_official_layout(official, tmp_path_factory.mktemp("official"))
    return make_pair(folder, request.param)


def assert_found(pair: Pair, chosen: list[mistakes.Mistake]) -> None:
    is_bfloat16 = pair.ours.model.dtype is torch.bfloat16
    for mistake in chosen:
        with mistakes.planted(mistake.replacements):
            found = pair.table().first_wrong()
        expected = mistake.stage if is_bfloat16 or not mistake.only_bfloat16 else None
        assert found == expected, f"{mistake.name}: found at {found}"


def test_all_stages_of_a_small_checkpoint_hold(small):
    table = small.table()
    assert table.first_wrong() is None, table
    # Four blocks and four layers, each with attention and MLP apart, and the twelve of an answer.
    assert len(table.rows) == 6 + 1 + 3 * 4 + 3 + 2 + 3 * 4 + 2 + 1 + 4 + 1


def test_every_planted_mistake_is_found_at_its_stage(small):
    chosen = mistakes.all_mistakes(small.ours.model, small.ours.processor)
    assert len(chosen) >= 30
    assert_found(small, chosen)
    assert small.table().first_wrong() is None  # nothing of them stays


def test_the_official_layout_holds_and_finds_mistakes(official_layout, amount):
    assert official_layout.table().first_wrong() is None
    chosen = mistakes.all_mistakes(official_layout.ours.model, official_layout.ours.processor)
    assert_found(official_layout, chosen[:: amount(11, 1)])
