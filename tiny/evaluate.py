"""Measure a checkpoint on fresh scenes: exact answers per task, beside what it says without seeing.

    python -m tiny.evaluate                        # the embedded checkpoint, 2,000 scenes, about 5 minutes
    python -m tiny.evaluate --model FOLDER --scenes 200

Each question opens a conversation of its own. Scenes come from seeds that training never draws from, and may
show the colour-and-shape pairs that training never shows: those are counted apart as well ("unseen pairs").
"Blind" is the same question about an empty canvas: what it answers right then is guessing, not sight.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tiny.world import HELD_OUT, TASKS, Level, Scene, ask, every_pair, random_scene

Marks = dict[str, dict[str, list[bool]]]  # group → task → right or wrong, question by question
LEVEL = every_pair(Level(objects=(1, 2), sides=(50, 182)))


@dataclass(frozen=True)
class Question:
    task: str
    scene: Scene
    text: str
    answer: str

    @property
    def unseen(self) -> bool:
        """Whether a pair that training never shows is in the picture."""
        return any((thing.colour, thing.shape) in HELD_OUT for thing in self.scene.things)


def fresh_questions(scenes: int, level: Level = LEVEL, seed: str = "evaluate") -> Iterator[Question]:
    """One question of each task about each scene, where the scene allows it."""
    for i in range(scenes):
        rng = random.Random(f"{seed}:{i}")
        scene = random_scene(rng, level)
        for task in TASKS:
            if pair := ask(scene, rng, level, task):
                yield Question(task, scene, *pair)


def answers(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    questions: list[Question],
    blind: bool,
) -> list[str]:
    """The greedy answer to each question, all in one left-padded batch."""
    conversations = []
    for question in questions:
        scene = replace(question.scene, things=()) if blind else question.scene
        content = [{"type": "image", "image": scene.draw()}, {"type": "text", "text": question.text}]
        conversations.append([{"role": "user", "content": content}])
    inputs = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(model, processor, questions: Iterable[Question], batch: int = 48) -> Marks:
    """Right or wrong for each question, by group ("all", "unseen pairs", "blind") and task."""
    questions = list(questions)
    right: Marks = defaultdict(lambda: defaultdict(list))
    for start in tqdm(range(0, len(questions), batch), unit="batch"):
        some = questions[start : start + batch]
        for question, said in zip(some, answers(model, processor, some, blind=False), strict=True):
            right["all"][question.task].append(said == question.answer)
            if question.unseen:
                right["unseen pairs"][question.task].append(said == question.answer)
        for question, said in zip(some, answers(model, processor, some, blind=True), strict=True):
            right["blind"][question.task].append(said == question.answer)
    return right


def table(right: Marks) -> str:
    """The shares of exact answers as Markdown."""
    lines = [
        "| task | questions | exact | with unseen pairs | blind |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in TASKS:
        shares = []
        for group in ("all", "unseen pairs", "blind"):
            marks = right[group][task]
            shares.append(f"{100 * sum(marks) / len(marks):.1f} %" if marks else "none asked")
        lines.append(f"| {task} | {len(right['all'][task])} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    parser.add_argument("--scenes", type=int, default=2000, help="how many scenes (default 2000)")
    parser.add_argument("--seed", default="evaluate", help="another word gives other scenes")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration.from_pretrained(args.model)
    processor = Qwen2VLProcessor.from_pretrained(args.model)
    print(table(measure(model, processor, fresh_questions(args.scenes, seed=args.seed))))


if __name__ == "__main__":
    main()
