"""What rounding costs in quality: `tiny` in int8 and int4 beside the same model without rounding.

  python -m tiny.quality --questions 10

For each kind: the root mean square of the change of the logits, relative to that of the logits; at
which share of the answers' positions the most probable token is the same; how many answers are the
same, and how many of each model's are right. The questions are those of tiny/evaluate.py, asked of
images that the model has not seen.
"""

import argparse

import torch

from processor import BatchFeature, Message, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from tiny.evaluate import Question, answer_questions, random_question
from tiny.tasks import TASKS, content

SEED = "quality"


def draw_questions(count: int) -> list[Question]:
    """`count` questions of each task about one image."""
    questions = []
    for task in TASKS["image"]:
        for i in range(count):
            questions.append(random_question("image", task, i, SEED))
    return questions


@torch.no_grad()
def answer_logits(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, question: Question
) -> torch.Tensor:
    """Logits (tokens, vocabulary) at the positions of the true answer."""
    items = [*content(question.shown), {"type": "text", "text": question.text}]
    messages: list[Message] = [{"role": "user", "content": items}]
    prompt = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    assert isinstance(prompt, BatchFeature)
    answer = torch.tensor([processor.tokenizer.encode(question.answer).ids])
    ids = torch.cat((prompt["input_ids"], answer), dim=1)
    out = model(ids, pixel_values=prompt["pixel_values"], image_grid_thw=prompt["image_grid_thw"])
    return out.logits[0, -answer.shape[1] - 1 : -1].float()


def compare(exact: list[torch.Tensor], rounded: list[torch.Tensor]) -> tuple[float, float]:
    """Relative RMS of the change of logits, and the share of equal most probable tokens."""
    before = torch.cat(exact)
    after = torch.cat(rounded)
    rms = ((after - before).square().mean() / before.square().mean()).sqrt()
    same = (after.argmax(-1) == before.argmax(-1)).float().mean()
    return float(rms), float(same)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=10, help="of each task (default: 10)")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of what is not rounded (default: bfloat16, slow on a CPU without AVX-512)",
    )
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)

    questions = draw_questions(args.questions)
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    load = Qwen2VLForConditionalGeneration.from_pretrained
    exact_logits: list[torch.Tensor] = []
    exact_answers: list[str] = []
    print("| weights | RMS of logits | same token | same answers | right answers |")
    print("| --- | --- | --- | --- | --- |")
    for kind in (args.dtype, "int8", "int4"):
        model = load("tiny", dtype, "cpu", int8=kind == "int8", int4=kind == "int4")
        logits = [answer_logits(model, processor, question) for question in questions]
        answers = answer_questions(model, processor, questions)
        if kind == args.dtype:
            exact_logits, exact_answers = logits, answers
        rms, same_tokens = compare(exact_logits, logits)
        pairs = zip(exact_answers, answers, strict=True)
        same = sum(one == other for one, other in pairs) / len(answers)
        right = 0.0
        for question, said in zip(questions, answers, strict=True):
            right += question.is_right(said) / len(questions)
        print(f"| {kind} | {rms:.1%} | {same_tokens:.1%} | {same:.1%} | {right:.1%} |")


if __name__ == "__main__":
    main()
