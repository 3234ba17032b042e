"""Measure a checkpoint on fresh scenes: right answers per task, beside what it says without seeing.

    python -m tiny.evaluate                        # the embedded checkpoint, 500 scenes a task
    python -m tiny.evaluate --scenes 40            # a quick look
    python -m tiny.evaluate --reference            # transformers too: are all answers equal?

Each question opens a conversation of its own, about a scene of its own, from seeds that training never draws.
Kept from training are ten pairs of colour and shape, one phrasing of each question, one aspect ratio of the
canvas, and a fifth of the words: all come up here, and are counted apart as well. "Blind" is the same
question about an empty canvas: what is right then is guessing, not sight.

Right means equal to the letter, except for `find`: the box must overlap the true one by half (IoU >= 0.5).
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from boxes import find_boxes
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tiny.tasks import SMALL_TALK, TASKS, Exchange, Shown, ask, content, show
from tiny.world import HELD_OUT, Level, everything

# What is asked about: as hard as the last stage of training, with all that training keeps back.
LEVELS = {
    "picture": everything(Level(objects=(1, 6), sides=(56, 336))),
    "words": everything(Level(objects=(1, 1), sides=(56, 150))),
    "pictures": everything(Level(objects=(1, 2), sides=(56, 112))),
    "video": everything(Level(objects=(1, 2), sides=(56, 112))),
    "text": everything(Level(objects=(1, 1), sides=(56, 112))),
}
SINGLE = everything(Level(objects=(1, 1), sides=(56, 69)))  # what the first stage of training shows
BATCH = 48  # questions that are answered at once
GROUPS = ("all", "unseen pairs", "unseen phrasing", "unseen ratio", "blind")


@dataclass(frozen=True)
class Question:
    """One question about something fresh, perhaps after other ones, and what is unseen about it."""

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
        pairs = {(thing.colour, thing.shape) for thing in self.shown.things} if self.shown else set()
        unseen = {
            "unseen pairs": bool(pairs & HELD_OUT),
            "unseen phrasing": self.level.phrasings == "held out",
            "unseen ratio": self.level.ratios == "held out" and self.shown is not None,
        }
        return ["all", *(group for group, holds in unseen.items() if holds)]

    def score(self, said: str) -> float:
        return judge(self.answer, said)

    def right(self, said: str) -> bool:
        return self.score(said) >= 0.5


def judge(true: str, said: str) -> float:
    """1 for the true answer to the letter, 0 for another; for a box its overlap with the true one."""
    box, found = find_boxes(true), find_boxes(said)
    if box:
        return box[0].overlap(found[0]) if len(found) == 1 and found[0].name == box[0].name else 0.0
    return float(said == true)


def fresh_question(kind: str, task: str, i: int, seed: str, level: Level | None = None) -> Question:
    """The i-th question of a task; a quarter has unseen phrasings, another unseen ratios."""
    if level is None:
        unseen = {0: {"phrasings": "held out"}, 1: {"ratios": "held out"}}.get(i % 4, {})
        level = replace(LEVELS[kind], **unseen)
    rng = random.Random(f"{seed}:{kind}:{task}:{i}")
    while True:  # until the scene leaves one clear answer
        shown = show(kind, rng, level)
        if exchange := ask(task, kind, shown, rng, level):
            return Question(kind, task, shown, *exchange, level)


def fresh_questions(
    scenes: int, seed: str = "evaluate", kinds: Iterable[str] = tuple(TASKS)
) -> list[Question]:
    """So many questions of each task; of small talk, which has no scenes, each known and unseen phrasing."""
    questions = []
    for kind in kinds:
        if kind == "text":
            for answer, phrasings in SMALL_TALK.items():
                for text in phrasings:
                    level = replace(LEVELS[kind], phrasings="held out" if text == phrasings[-1] else "known")
                    questions.append(Question(kind, "small talk", None, text, answer, level))
        else:
            questions += [fresh_question(kind, task, i, seed) for task in TASKS[kind] for i in range(scenes)]
    return questions


def later(question: Question, turns: int = 2) -> Question:
    """The same question as a later turn: after so many others about the same picture."""
    rng = random.Random(question.text)
    before: list[Exchange] = []
    while len(before) < turns:
        task = rng.choice(list(TASKS[question.kind]))
        if exchange := ask(task, question.kind, question.shown, rng, LEVELS[question.kind]):
            before.append(exchange)
    return replace(question, earlier=tuple(exchange.question for exchange in before))


def complete(model, processor, talks: list[list[dict]]) -> list[str]:
    """The greedy answer to each conversation, in one left-padded batch; transformers' models do too."""
    inputs = processor.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    return [text.split("<|im_end|>")[0] for text in texts]  # skipping special tokens would drop boxes


def ask_all(name: str, talks: list[list[dict]]) -> list[str]:
    """What the checkpoint of that name answers to each conversation, asked one by one."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
    processor = Qwen2VLProcessor.from_pretrained(name)
    return [complete(model, processor, [talk])[0] for talk in talks]


def answers(model, processor, questions: list[Question], label: str | None = None) -> list[str]:
    """The greedy answer to each question, batch by batch; earlier questions are answered on the way.

    With a label, progress is shown under it.
    """
    said: list[str] = []
    starts = range(0, len(questions), BATCH)
    for start in tqdm(starts, label, unit="batch", dynamic_ncols=True, disable=label is None):
        some = questions[start : start + BATCH]
        talks: list[list[dict]] = [[] for _ in some]
        for turn in range(len(some[0].earlier) + 1):
            for talk, question in zip(talks, some, strict=True):
                text = (*question.earlier, question.text)[turn]
                media = [] if talk else content(question.shown)
                talk.append({"role": "user", "content": [*media, {"type": "text", "text": text}]})
            texts = complete(model, processor, talks)
            for talk, text in zip(talks, texts, strict=True):
                talk.append({"role": "assistant", "content": text})
        said += texts
    return said


def blinded(questions: Iterable[Question]) -> list[Question]:
    return [replace(question, shown=question.shown and question.shown.blank()) for question in questions]


@dataclass
class Result:
    """Questions and what was said to them."""

    questions: list[Question]
    said: list[str]

    def scores(self, task: str, group: str = "all") -> list[float]:
        return [
            question.score(text)
            for question, text in zip(self.questions, self.said, strict=True)
            if question.task == task and group in question.groups
        ]

    def share(self, task: str, group: str = "all") -> float | None:
        """The share of right answers, None where there was no such question."""
        scores = self.scores(task, group)
        return sum(score >= 0.5 for score in scores) / len(scores) if scores else None


def run(model, processor, questions: list[Question], label: str = "") -> Result:
    """Ask all, with progress."""
    return Result(questions, answers(model, processor, questions, label))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def table(seen: Result, blind: Result) -> str:
    """The shares of right answers as Markdown."""
    lines = [
        "| shown | task | questions | right | unseen pairs | unseen phrasing | unseen ratio | blind |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, tasks in TASKS.items():
        for task in tasks:
            if not (scores := seen.scores(task)):
                continue
            cells = [_percent(seen.share(task, group)) for group in GROUPS[:-1]]
            blind_cell = "" if kind == "text" else _percent(blind.share(task))
            lines.append(f"| {kind} | {task} | {len(scores)} | {' | '.join(cells)} | {blind_cell} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    parser.add_argument("--scenes", type=int, default=500, help="how many scenes a task (default 500)")
    parser.add_argument("--seed", default="evaluate", help="another word gives other scenes")
    parser.add_argument("--reference", action="store_true", help="ask transformers the same and compare")
    parser.add_argument("--single", action="store_true", help="only colour and shape of single objects")
    parser.add_argument("--json", type=Path, help="write every question, answer and score there")
    args = parser.parse_args()
    model = Qwen2VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    processor = Qwen2VLProcessor.from_pretrained(args.model)
    if args.single:
        questions = [
            fresh_question("picture", t, i, args.seed, SINGLE)
            for t in ("colour", "shape")
            for i in range(args.scenes)
        ]
        seen = run(model, processor, questions)
        print(", ".join(f"{task} {_percent(seen.share(task))}" for task in ("colour", "shape")))
        return
    questions = fresh_questions(args.scenes, args.seed)
    seen = run(model, processor, questions, label="seeing")
    blind = run(model, processor, blinded(q for q in questions if q.shown), label="blind")
    print(table(seen, blind))
    overlaps = seen.scores("find")
    print(f"\nfind: mean IoU {sum(overlaps) / len(overlaps):.3f}")

    firsts = [q for i, q in enumerate(questions) if q.kind == "picture" and i % 5 == 2]
    turns = {"first": firsts, "third": [later(question) for question in firsts]}
    for name, asked in turns.items():
        marks = [
            q.right(text)
            for q, text in zip(asked, run(model, processor, asked, label=name).said, strict=True)
        ]
        print(f"asked as the {name} turn: {100 * sum(marks) / len(marks):.1f} % of {len(marks)}")
    if args.reference:
        compare(processor, args.model, seen)
    if args.json:
        rows = [
            {"kind": q.kind, "task": q.task, "groups": q.groups}
            | {"question": q.text, "answer": q.answer, "said": text}
            for q, text in zip(seen.questions, seen.said, strict=True)
        ]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compare(processor: Qwen2VLProcessor, name: str, ours: Result) -> None:
    """Asks transformers, with the same folder and inputs, and says how many answers are equal."""
    import transformers  # the dev extra's

    from load import find_checkpoint

    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(name), dtype=torch.float32
    ).eval()
    said = run(theirs, processor, ours.questions, label="transformers").said
    different = [i for i, (one, other) in enumerate(zip(ours.said, said, strict=True)) if one != other]
    print(f"transformers gives the same answer to {len(said) - len(different)} of {len(said)}")
    for i in different:
        print(f"  {ours.questions[i].text} here {ours.said[i]!r}, there {said[i]!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
