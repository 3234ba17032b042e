"""Measure a checkpoint on unseen scenes: right answers per task, beside what it says
without seeing.

    python -m tiny.evaluate                        # the embedded checkpoint, 500 scenes a task
    python -m tiny.evaluate --scenes 40            # a quick look
    python -m tiny.evaluate --reference            # transformers too: are all answers equal?

Each question opens a conversation of its own, about a scene of its own, from seeds that
training never uses. Kept from training are ten pairs of colour and shape, one phrasing of
each question, one aspect ratio of the canvas, and a fifth of the words: all come up here,
and are counted apart as well. "Blind" is the same question about an empty canvas: what is
right then is guessing, not sight.

Right means equal to the letter, except for `find`: the box must overlap the true one by
half (IoU >= 0.5).
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
from tqdm import tqdm

from load import find_checkpoint
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.boxes import find_boxes
from tiny.tasks import SMALL_TALK, TASKS, Shown, ask, content, show
from tiny.world import HELD_OUT, Level, with_held_out

# What is asked about: as hard as the last stage of training, with all that training keeps
# back.
LEVELS = {
    "image": with_held_out(Level(things=(1, 6), sides=(56, 336))),
    "words": with_held_out(Level(things=(1, 1), sides=(56, 150))),
    "images": with_held_out(Level(things=(1, 2), sides=(56, 112))),
    "video": with_held_out(Level(things=(1, 2), sides=(56, 112))),
    "text": with_held_out(Level(things=(1, 1), sides=(56, 112))),
}
# What the first stage of training shows.
SINGLE_THINGS = with_held_out(Level(things=(1, 1), sides=(56, 69)))
# The names of two kinds in the seeds. They are older than the kinds' names, and stay: so
# the scenes are those that the figures in README.md were measured on.
SEED_NAMES = {"image": "picture", "images": "pictures"}
BATCH_SIZE = 48  # questions that are answered at once
GROUPS = ("all", "unseen pairs", "unseen phrasing", "unseen ratio", "blind")


# -------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Question:
    """One question, perhaps after other ones, and what is unseen about it."""

    kind: str
    task: str
    shown: Shown
    text: str
    answer: str
    level: Level
    earlier: tuple[str, ...] = ()  # questions of the same conversation that come first

    @property
    def groups(self) -> list[str]:
        """The columns of the table that it counts for."""
        groups = ["all"]
        things = self.shown.things if self.shown else ()
        if any((thing.colour, thing.shape) in HELD_OUT for thing in things):
            groups.append("unseen pairs")
        if self.level.phrasings == "held out":
            groups.append("unseen phrasing")
        if self.level.ratios == "held out" and self.shown is not None:
            groups.append("unseen ratio")
        return groups

    def score(self, said: str) -> float:
        return score_answer(self.answer, said)

    def is_right(self, said: str) -> bool:
        return self.score(said) >= 0.5


def score_answer(true: str, said: str) -> float:
    """1 for the true answer to the letter, else 0; for a box its overlap with the true one."""
    true_boxes = find_boxes(true)
    if not true_boxes:
        return float(said == true)
    said_boxes = find_boxes(said)
    if len(said_boxes) != 1 or said_boxes[0].name != true_boxes[0].name:
        return 0.0
    return true_boxes[0].overlap(said_boxes[0])


def random_question(
    kind: str, task: str, index: int, seed: str, level: Level | None = None
) -> Question:
    """A question of a task; of four indices one gives unseen phrasings, one unseen ratios."""
    if level is None:
        level = LEVELS[kind]
        if index % 4 == 0:
            level = replace(level, phrasings="held out")
        elif index % 4 == 1:
            level = replace(level, ratios="held out")
    rng = random.Random(f"{seed}:{SEED_NAMES.get(kind, kind)}:{task}:{index}")
    while True:  # until the scene leaves one clear answer
        shown = show(kind, rng, level)
        exchange = ask(task, kind, shown, rng, level)
        if exchange:
            return Question(kind, task, shown, exchange.question, exchange.answer, level)


def random_questions(
    scenes: int, seed: str = "evaluate", kinds: Iterable[str] = tuple(TASKS)
) -> list[Question]:
    """So many questions of each task, and all of small talk, which has no scenes."""
    questions = []
    for kind in kinds:
        if kind == "text":
            questions += small_talk_questions()
            continue
        for task in TASKS[kind]:
            questions += [random_question(kind, task, i, seed) for i in range(scenes)]
    return questions


def small_talk_questions() -> list[Question]:
    """Each phrasing of small talk, the unseen ones too."""
    questions = []
    for answer, phrasings in SMALL_TALK.items():
        for text in phrasings:
            is_held_out = text == phrasings[-1]
            level = replace(LEVELS["text"], phrasings="held out" if is_held_out else "known")
            questions.append(Question("text", "small talk", None, text, answer, level))
    return questions


def as_later_turn(question: Question, turns: int = 2) -> Question:
    """The same question as a later turn: after so many others about the same image."""
    rng = random.Random(question.text)
    earlier: list[str] = []
    while len(earlier) < turns:
        task = rng.choice(list(TASKS[question.kind]))
        exchange = ask(task, question.kind, question.shown, rng, LEVELS[question.kind])
        if exchange:
            earlier.append(exchange.question)
    return replace(question, earlier=tuple(earlier))


def blinded(questions: Iterable[Question]) -> list[Question]:
    """The same questions about empty canvases."""
    blind = []
    for question in questions:
        shown = question.shown.blank() if question.shown else None
        blind.append(replace(question, shown=shown))
    return blind


# ---------------------------------------------------------------------------------- answers


def answer_batch(
    model: nn.Module, processor: Qwen2VLProcessor, conversations: list[list[dict]]
) -> list[str]:
    """The greedy answer to each conversation, in one left-padded batch.

    model: ours or that of transformers.
    """
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    # Cut here, since skipping control tokens would drop those of boxes too.
    return [text.split("<|im_end|>")[0] for text in texts]


def load_and_answer(name: str, conversations: list[list[dict]]) -> list[str]:
    """What a checkpoint answers to each conversation, asked one by one on the CPU."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        name, dtype=torch.float32, device_map="cpu"
    )
    processor = Qwen2VLProcessor.from_pretrained(name)
    answers = []
    for conversation in conversations:
        answers += answer_batch(model, processor, [conversation])
    return answers


def answer_questions(
    model: nn.Module,
    processor: Qwen2VLProcessor,
    questions: list[Question],
    label: str | None = None,
) -> list[str]:
    """The greedy answer to each question, batch by batch.

    With a label, progress is shown under it.
    """
    said: list[str] = []
    starts = range(0, len(questions), BATCH_SIZE)
    for start in tqdm(starts, label, unit="batch", dynamic_ncols=True, disable=label is None):
        said += answer_in_turns(model, processor, questions[start : start + BATCH_SIZE])
    return said


def answer_in_turns(
    model: nn.Module, processor: Qwen2VLProcessor, questions: list[Question]
) -> list[str]:
    """The answers to one batch of questions, after those to their earlier questions."""
    conversations: list[list[dict]] = [[] for _ in questions]
    answers: list[str] = []
    for turn in range(len(questions[0].earlier) + 1):
        for conversation, question in zip(conversations, questions, strict=True):
            texts = (*question.earlier, question.text)
            media = content(question.shown) if turn == 0 else []
            items = [*media, {"type": "text", "text": texts[turn]}]
            conversation.append({"role": "user", "content": items})
        answers = answer_batch(model, processor, conversations)
        for conversation, answer in zip(conversations, answers, strict=True):
            conversation.append({"role": "assistant", "content": answer})
    return answers


# ---------------------------------------------------------------------------------- figures


@dataclass
class Result:
    """Questions and what was said to them."""

    questions: list[Question]
    said: list[str]

    def scores(self, task: str, group: str = "all") -> list[float]:
        scores = []
        for question, said in zip(self.questions, self.said, strict=True):
            if question.task == task and group in question.groups:
                scores.append(question.score(said))
        return scores

    def share(self, task: str, group: str = "all") -> float | None:
        """The share of right answers, None where there was no such question."""
        scores = self.scores(task, group)
        if not scores:
            return None
        return sum(score >= 0.5 for score in scores) / len(scores)


def evaluate_questions(
    model: nn.Module, processor: Qwen2VLProcessor, questions: list[Question], label: str = ""
) -> Result:
    """Ask all, with progress."""
    return Result(questions, answer_questions(model, processor, questions, label))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def markdown_table(seen: Result, blind: Result) -> str:
    """The shares of right answers as Markdown."""
    lines = [
        "| shown | task | questions | right | unseen pairs | unseen phrasing "
        "| unseen ratio | blind |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, tasks in TASKS.items():
        for task in tasks:
            count = len(seen.scores(task))
            if count == 0:
                continue
            cells = [kind, task, str(count)]
            cells += [_percent(seen.share(task, group)) for group in GROUPS[:-1]]
            cells.append("" if kind == "text" else _percent(blind.share(task)))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare_with_transformers(
    processor: Qwen2VLProcessor, name: str, device: str, ours: Result
) -> None:
    """Ask transformers the same and print how many answers are equal."""
    import transformers  # of the dev extra

    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(name), dtype=torch.float32
    )
    theirs = theirs.to(device).eval()
    said = evaluate_questions(theirs, processor, ours.questions, label="transformers").said
    equal = 0
    for question, our_answer, their_answer in zip(ours.questions, ours.said, said, strict=True):
        if our_answer == their_answer:
            equal += 1
        else:
            difference = f"here {our_answer!r}, there {their_answer!r}"
            print(f"  {question.text} {difference}", file=sys.stderr)
    print(f"transformers gives the same answer to {equal} of {len(said)}")


def print_single_things(
    model: nn.Module, processor: Qwen2VLProcessor, scenes: int, seed: str
) -> None:
    """Print the shares of right answers about the colour and the shape of single things."""
    tasks = ("colour", "shape")
    questions = []
    for task in tasks:
        questions += [random_question("image", task, i, seed, SINGLE_THINGS) for i in range(scenes)]
    seen = evaluate_questions(model, processor, questions)
    print(", ".join(f"{task} {_percent(seen.share(task))}" for task in tasks))


def print_turns(model: nn.Module, processor: Qwen2VLProcessor, questions: list[Question]) -> None:
    """Print the accuracy of the same questions as first and as third turns."""
    first = [q for i, q in enumerate(questions) if q.kind == "image" and i % 5 == 2]
    turns = {"first": first, "third": [as_later_turn(question) for question in first]}
    for name, asked in turns.items():
        said = evaluate_questions(model, processor, asked, label=name).said
        right = sum(q.is_right(text) for q, text in zip(asked, said, strict=True))
        share = right / len(asked)
        print(f"asked as the {name} turn: {_percent(share)} of {len(asked)}")


def write_json(result: Result, path: Path) -> None:
    """Write every question, the true answer and what was said."""
    rows = []
    for question, said in zip(result.questions, result.said, strict=True):
        row = {
            "kind": question.kind,
            "task": question.task,
            "groups": question.groups,
            "question": question.text,
            "answer": question.answer,
            "said": said,
        }
        rows.append(row)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="tiny", help='"tiny" (default) or a folder')
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    add("--scenes", type=int, default=500, help="how many scenes a task (default 500)")
    add("--seed", default="evaluate", help="another word gives other scenes")
    add("--reference", action="store_true", help="ask transformers the same and compare")
    add("--single", action="store_true", help="only colour and shape of single things")
    add("--json", type=Path, help="write every question, answer and score there")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        args.model, dtype=torch.float32, device_map=args.device
    )
    processor = Qwen2VLProcessor.from_pretrained(args.model)
    if args.single:
        print_single_things(model, processor, args.scenes, args.seed)
        return

    questions = random_questions(args.scenes, args.seed)
    about_something = [question for question in questions if question.shown]
    seen = evaluate_questions(model, processor, questions, label="seeing")
    blind = evaluate_questions(model, processor, blinded(about_something), label="blind")
    print(markdown_table(seen, blind))
    overlaps = seen.scores("find")
    print(f"\nfind: mean IoU {sum(overlaps) / len(overlaps):.3f}")

    print_turns(model, processor, questions)
    if args.reference:
        compare_with_transformers(processor, args.model, args.device, seen)
    if args.json:
        write_json(seen, args.json)


if __name__ == "__main__":
    main()
