"""How far does it see? Forty sketches by code that training doesn't share, none chosen, with
every answer as given.

    python -m tiny.gallery    # writes tiny/plots/gallery.png, prints how many answers are right

They are the first forty of a fixed seed, one way of drawing or writing after another; each
shows one to three objects, or a word, and is asked one question.
"""

import argparse
import random
from pathlib import Path

from tiny.evaluate import load_and_answer
from tiny.sheet import Entry, contact_sheet
from tiny.sketches import ALL_WAYS, SketchQuestion, any_sketch, ask_about, conversation, draw_sketch

OUT = Path(__file__).parent / "plots" / "gallery.png"
SKETCHES = 40


def gallery_questions() -> list[SketchQuestion]:
    """Forty sketches, each with one of the questions that can be asked about it."""
    rng = random.Random("gallery")
    questions = []
    for i in range(SKETCHES):
        way = ALL_WAYS[i % len(ALL_WAYS)]
        fewest = 2 if way == "overlapping" else 1
        sketch = any_sketch(way, rng.randint(fewest, 3), f"gallery:{i}")
        questions.append(rng.choice(ask_about(sketch)))
    return questions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help='"tiny" (default) or a folder')
    args = parser.parse_args()

    questions = gallery_questions()
    answers = load_and_answer(args.model, [conversation(question) for question in questions])

    cells = []
    for question, said in zip(questions, answers, strict=True):
        label = f"({question.sketch.way}) {question.text}"
        cells.append(Entry(draw_sketch(question.sketch), label, said, said == question.answer))
    OUT.parent.mkdir(exist_ok=True)
    contact_sheet(cells, columns=5).save(OUT, optimize=True)
    print(f"{sum(cell.right for cell in cells)} of {len(cells)} answers are right")


if __name__ == "__main__":
    main()
