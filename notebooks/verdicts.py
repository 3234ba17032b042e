"""The verdict on each stage of both sides, in one table.

In float32 a stage may differ by 1e-5 of its largest number, and tokens must be equal. In bfloat16
one number can't judge: its rounding, some 1e-3 at each stage, is larger than many a mistake. There
a stage must hold in three ways:

  * from start to end it is no further from the reference than twice what bfloat16 costs the
    reference itself, against its own float32;
  * by itself, on the reference's input, it is nearer than half of that cost;
  * by itself, and with its weights widened to float32, it differs by 1e-5, as in float32.

The third finds what is wrong in any dtype, the second what is wrong in bfloat16 only, say a norm
that is not computed in float32.
"""

from collections.abc import Callable

import torch
from comparison import (
    FAILS,
    HOLDS,
    INHERITED,
    TIE,
    Comparison,
    Measure,
    Table,
    compare,
    largest_relative,
    mean_relative,
)
from side import Rounding, Side
from stages import SPLICE
from torch import Tensor

START_TO_END, ALONE, IN_FLOAT32 = "start to end", "alone", "alone in float32"
FLOAT32_BAR = 1e-5
PATCHES_BAR = 1e-6  # pixel values are float32 on both sides
# Shares of what bfloat16 costs the reference.
SHARE_FROM_START = 2.0
SHARE_ALONE = 0.5
NUM_PROBABLE = 5

# Inputs of the model: the name of the stage, and that of the tensor.
BEFORE_THE_MODEL = {"token ids": "input_ids", "placeholders": "placeholders"}
POSITIONS = {"positions": "positions", "delta": "delta"}


def table_of(
    ours: Side, theirs: Side, rounding: Rounding, decode: Callable[[list[int]], str]
) -> Table:
    """All stages in order, from pixels to the answer.

    rounding: of the reference, empty in float32. decode: the text of tokens. If our side stopped
    at an error, the table ends with the stage that it did not reach.
    """
    rows = processor_rows(ours, theirs)
    for name in theirs.stages_in_order():
        rows.append(stage_row(name, ours, theirs, rounding))
        if name == SPLICE:
            rows += tensor_rows(POSITIONS, ours, theirs)
    rows.append(probable_row(ours, theirs, rounding))
    rows += token_rows(ours, theirs, rounding, decode)
    rows.append(answer_row(rows, ours, theirs))
    return Table(up_to_the_stop(mark_inherited(rows)))


def up_to_the_stop(rows: list[Comparison]) -> list[Comparison]:
    """The rows without those after the first stage that our side did not reach."""
    for i, row in enumerate(rows):
        if row.is_missing:
            return rows[: i + 1]
    return rows


def mark_inherited(rows: list[Comparison]) -> list[Comparison]:
    """Stages behind a wrong one that hold by themselves are not wrong themselves."""
    is_first = True
    for row in rows:
        if row.verdict != FAILS:
            continue
        failed = [measure.name for measure in row.measures if not measure.holds]
        if not is_first and failed == [START_TO_END]:
            row.verdict = INHERITED
        is_first = False
    return rows


# ----------------------------------------------------------------------- what goes into the model


def processor_rows(ours: Side, theirs: Side) -> list[Comparison]:
    """Image and text up to what the model reads."""
    rows = tensor_rows({"pixels": "pixels", "grid": "image_grid_thw"}, ours, theirs)
    a, b = ours.inputs.get("pixel_values"), theirs.inputs["pixel_values"]
    apart = relative_or_nan(largest_relative, a, b)
    rows.append(compare("patches", a, b, [Measure(START_TO_END, apart, PATCHES_BAR)]))
    rows.append(compare("prompt text", ours.prompt, theirs.prompt))
    rows += tensor_rows(BEFORE_THE_MODEL, ours, theirs)
    return with_reason(rows, ours)


def tensor_rows(names: dict[str, str], ours: Side, theirs: Side) -> list[Comparison]:
    """Tensors for which nothing but equal will do."""
    rows = []
    for stage, name in names.items():
        rows.append(compare(stage, ours.inputs.get(name), theirs.inputs[name]))
    return with_reason(rows, ours)


def with_reason(rows: list[Comparison], ours: Side) -> list[Comparison]:
    """The rows; those of stages that were not reached say why."""
    for row in rows:
        if row.is_missing:
            row.remark = f"not reached: {ours.stopped}"
    return rows


# -------------------------------------------------------------------------- the stages of the model


def stage_row(name: str, ours: Side, theirs: Side, rounding: Rounding) -> Comparison:
    """One stage of the model, with the measures of its dtype."""
    a, b = ours.stages.get(name), theirs.stages[name]
    if b.dtype is torch.float32:
        measures = [
            Measure(START_TO_END, relative_or_nan(largest_relative, a, b), FLOAT32_BAR),
            Measure(ALONE, relative_or_nan(largest_relative, ours.alone.get(name), b), FLOAT32_BAR),
        ]
    else:
        measures = bfloat16_measures(name, ours, theirs, rounding)
    return with_reason([compare(name, a, b, measures)], ours)[0]


def bfloat16_measures(name: str, ours: Side, theirs: Side, rounding: Rounding) -> list[Measure]:
    """From start to end, alone, and alone in float32."""
    theirs_16, theirs_32 = theirs.stages[name], theirs.alone_float32[name]
    apart = relative_or_nan(mean_relative, ours.stages.get(name), theirs_16)
    apart_alone = relative_or_nan(mean_relative, ours.alone.get(name), theirs_16)
    apart_32 = relative_or_nan(largest_relative, ours.alone_float32.get(name), theirs_32)
    return [
        Measure(START_TO_END, apart, SHARE_FROM_START * rounding.stages[name]),
        Measure(ALONE, apart_alone, SHARE_ALONE * rounding.alone[name]),
        Measure(IN_FLOAT32, apart_32, FLOAT32_BAR),
    ]


def relative_or_nan(
    measure: Callable[[Tensor, Tensor], float], ours: Tensor | None, theirs: Tensor
) -> float:
    """A difference; NaN, which is within no bar, where there is nothing to subtract."""
    if ours is None or ours.shape != theirs.shape:
        return float("nan")
    return measure(ours, theirs)


# --------------------------------------------------------------------------------------- the answer


def logit_bar(theirs: Side, rounding: Rounding) -> float:
    """How far a logit may be from the reference's."""
    if rounding.logit:
        return SHARE_FROM_START * rounding.logit
    return FLOAT32_BAR * float(theirs.new_logits[0].abs().max())


def probable_row(ours: Side, theirs: Side, rounding: Rounding) -> Comparison:
    """The probabilities of the reference's most probable next tokens."""
    name = f"{NUM_PROBABLE} most probable next tokens"
    b = theirs.new_logits[0].softmax(-1)
    top = b.topk(NUM_PROBABLE)
    a = None
    apart = float("nan")
    if ours.new_logits:
        a = ours.new_logits[0].softmax(-1)[top.indices]
        # Of their logarithms, since it is logits that are rounded.
        apart = float((a.log() - top.values.log()).abs().max())
    # A difference in the sum of all counts as much as one in the logit itself.
    bar = 2 * logit_bar(theirs, rounding)
    measures = [Measure(START_TO_END, apart, bar)]
    return with_reason([compare(name, a, top.values, measures)], ours)[0]


def token_rows(
    ours: Side, theirs: Side, rounding: Rounding, decode: Callable[[list[int]], str]
) -> list[Comparison]:
    """Each generated token: our choice and theirs, and the logits behind their tokens so far."""
    rows = []
    choices = our_choices(ours, theirs)
    for i, token in enumerate(theirs.new_ids):
        stage = f"token {i + 1}"
        if i >= len(choices):
            row = compare(stage, None, decode([token]))
            rows += with_reason([row], ours)
            continue
        measures = [logits_measure(i, ours, theirs, rounding)]
        row = compare(stage, decode([choices[i]]), decode([token]), measures)
        judge_token(row, choices[i], token, theirs.new_logits[i], logit_bar(theirs, rounding))
        rows.append(row)
    return rows


def our_choices(ours: Side, theirs: Side) -> list[int]:
    """Our token at each of their steps.

    It is the one of our own answer, up to the first that differs. Behind that, two answers have
    different beginnings: there it is our most probable token behind the reference's.
    """
    choices = []
    has_parted = False
    for i, logits in enumerate(ours.new_logits):
        own = ours.new_ids[i] if i < len(ours.new_ids) and not has_parted else int(logits.argmax())
        choices.append(own)
        has_parted = has_parted or own != theirs.new_ids[i]
    return choices


def logits_measure(i: int, ours: Side, theirs: Side, rounding: Rounding) -> Measure:
    """How far the logits of step i are apart."""
    a, b = ours.new_logits[i], theirs.new_logits[i]
    if rounding.position:
        apart, bar = mean_relative(a, b), SHARE_FROM_START * rounding.position
    else:
        apart, bar = largest_relative(a, b), FLOAT32_BAR
    return Measure(START_TO_END, apart, bar)


def judge_token(row: Comparison, ours: int, theirs: int, logits: Tensor, bar: float) -> None:
    """The verdict on a token: the same, a tie, or wrong."""
    if not all(measure.holds for measure in row.measures):
        row.verdict = FAILS
    elif ours == theirs:
        row.verdict = HOLDS
    else:
        gap = float(logits[theirs] - logits[ours])
        row.verdict = TIE if gap <= bar else FAILS
        row.remark = f"their two logits are {gap:.1e} apart, {bar:.1e} is a tie"


def answer_row(rows: list[Comparison], ours: Side, theirs: Side) -> Comparison:
    """The answers as text."""
    row = compare("answer", ours.answer if ours.new_ids else None, theirs.answer)
    is_tied = any(other.verdict == TIE for other in rows)
    if row.verdict == FAILS and is_tied and not row.is_missing:
        row.verdict = TIE
        row.remark = "they part at a tie"
    return with_reason([row], ours)[0]
