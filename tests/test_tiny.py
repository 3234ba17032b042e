"""The embedded checkpoint and how it came to be: equal to the reference, honest about what it saw."""

import json
import random

import pytest
import torch
import transformers
from reference import TOLERANCE, error

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from tiny import evaluate, train
from tiny.world import COLOURS, HELD_OUT, PAIRS, SHAPES, TASKS, Level, ask, every_pair, random_scene

FOLDER = train.Path(train.__file__).parent / "checkpoint"


@pytest.fixture(scope="module")
def reference() -> transformers.Qwen2VLForConditionalGeneration:
    """The embedded folder, loaded by transformers."""
    return transformers.Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


def chat(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def conversations(seed: int) -> dict[str, list]:
    """A text, a picture, a video and a batch of all three, about fresh scenes."""
    rng = random.Random(f"test tiny {seed}")
    level = every_pair(Level(objects=(1, 3), sides=(50, 182)))
    question = {"type": "text", "text": "Describe this image."}
    picture = {"type": "image", "image": random_scene(rng, level).draw()}
    canvas = level.canvas(rng)
    frames = [random_scene(rng, level, canvas).draw() for _ in range(rng.randint(1, 5))]
    video = {"type": "video", "video": frames, "max_pixels": 20 * 784, "min_pixels": 4 * 784}
    found = {"text": chat(question), "picture": chat(picture, question), "video": chat(video, question)}
    return found | {"mixed batch": list(found.values())}


@pytest.mark.parametrize("kind", ["text", "picture", "video", "mixed batch"])
def test_logits_equal_the_reference(tiny, reference, kind, amount, figure):
    model, processor = tiny
    for seed in range(amount(4, 40)):
        inputs = processor.apply_chat_template(
            conversations(seed)[kind], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            ours, theirs = model(**inputs).logits, reference(**inputs).logits
        assert figure("tiny's logits, relative error", error(ours[real], theirs[real])) <= TOLERANCE


def test_greedy_answers_on_fresh_scenes_equal_the_reference(tiny, reference, amount):
    model, processor = tiny
    questions = list(evaluate.fresh_questions(amount(24, 200), seed="greedy"))
    for start in range(0, len(questions), 24):
        talks = [
            chat({"type": "image", "image": question.scene.draw()}, {"type": "text", "text": question.text})
            for question in questions[start : start + 24]
        ]
        inputs = processor.apply_chat_template(
            talks, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        settings = {"max_new_tokens": 30, "do_sample": False}
        assert torch.equal(model.generate(**inputs, **settings), reference.generate(**inputs, **settings))


def test_the_folder_is_small_and_has_the_official_layout(tiny):
    model, processor = tiny
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 15e6
    needed = {"config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"}
    assert needed | {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in FOLDER.iterdir()}
    for token in train.SPECIAL_TOKENS:
        assert processor.tokenizer.token_to_id(token) is not None
    assert model.config.image_token_id == processor.tokenizer.token_to_id("<|image_pad|>")
    assert model.config.video_token_id == processor.tokenizer.token_to_id("<|video_pad|>")


def test_a_folder_saved_here_loads_in_the_reference_and_back(tiny, reference, tmp_path):
    model, processor = tiny
    inputs = processor.apply_chat_template(conversations(0)["picture"], tokenize=True, return_dict=True)
    expected = model(**inputs).logits
    for writer, name in ((model, "ours"), (reference, "theirs")):
        writer.save_pretrained(tmp_path / name)
        again = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / name, device_map="cpu")
        there = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            tmp_path / name, dtype=torch.float32
        )
        assert torch.equal(again(**inputs).logits, expected)
        assert error(there(**inputs).logits, expected) <= TOLERANCE


# ---------------------------------------------------------------------------------------- world and training


def test_training_never_shows_or_names_a_held_out_pair():
    rng = random.Random(0)
    for stage in train.CURRICULUM:
        for _ in range(400):
            scene = random_scene(rng, stage.level)
            assert not HELD_OUT & {(thing.colour, thing.shape) for thing in scene.things}
            texts = [text for task in TASKS for text in ask(scene, rng, stage.level, task) or ()]
            for colour, shape in HELD_OUT:
                assert not any(f"{colour} {shape}" in text for text in texts)
    for colour in COLOURS:  # yet each colour and each shape is there, with other partners
        assert any(pair[0] == colour for pair in set(PAIRS) - HELD_OUT)
    for shape in SHAPES:
        assert any(pair[1] == shape for pair in set(PAIRS) - HELD_OUT)


def test_evaluation_scenes_are_not_training_scenes():
    """Scenes are random in a dozen real numbers; still, of 3,000 and 500 none is the same picture."""
    trained = set()
    for step in range(3000):
        rng = random.Random(f"0:{step}")
        level = train.CURRICULUM[-1].level
        trained.add(random_scene(rng, level, level.canvas(rng)).draw().tobytes())
    fresh = {question.scene for question in evaluate.fresh_questions(500)}
    assert not trained & {scene.draw().tobytes() for scene in fresh}


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_scene(task):
    """Each answer, read back by a second pair of eyes: simple rules on the words, no code of the world's."""
    rng = random.Random(task)
    level = every_pair(Level(objects=(1, 3), sides=(50, 182)))
    asked = 0
    while asked < 200:
        scene = random_scene(rng, level)
        pair = ask(scene, rng, level, task)
        if not pair:
            continue
        asked += 1
        question, answer = pair
        words = [thing.name for thing in scene.things]
        if task == "describe":
            places = [answer.lower().index(name) for name in words if words.count(name) == 1]
            assert places == sorted(places) and all(name in answer.lower() for name in words)
        elif task == "is there":
            assert (answer == "Yes.") == any(f"{name}" in question for name in words)
        elif task == "how many":
            kinds = [shape for shape in SHAPES if shape in question]
            n = sum(thing.shape in kinds for thing in scene.things) if kinds else len(words)
            assert ["No.", "One.", "Two.", "Three."].index(answer) == n
        elif task == "where":
            thing = next(thing for thing in scene.things if thing.name in question)
            assert ("left" in answer) == (thing.x < scene.width / 3)
            assert ("right" in answer) == (thing.x > scene.width * 2 / 3)
            assert ("top" in answer) == (thing.y < scene.height / 3)
            assert ("bottom" in answer) == (thing.y > scene.height * 2 / 3)
        else:
            other = "shape" if task == "colour" else "colour"
            about = [thing for thing in scene.things if f" {getattr(thing, other)}" in question]
            assert [getattr(thing, task) in answer.lower() for thing in about] == [True]


def test_labels_are_the_assistants_words_and_nothing_else(tiny):
    _, processor = tiny
    batch = train.make_batch(random.Random(1), train.CURRICULUM[1], processor)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = processor.decode(ids)
        said = [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>assistant\n")[1:]]
        assert processor.decode(labels[labels != -100]) == "".join(f"{one}<|im_end|>" for one in said)


def test_a_batch_through_the_tower_at_once_gives_the_loss_of_the_plain_forward(tiny):
    model, processor = tiny
    batch = train.make_batch(random.Random(2), train.CURRICULUM[1], processor)
    with torch.no_grad():
        assert abs(train.batch_loss(model, batch) - model(**batch).loss) <= 1e-5


def test_training_learns_stops_and_goes_on(tmp_path, monkeypatch):
    """A few seconds of the first stage: the loss falls; a second call goes on where the first was stopped."""
    stage = train.Stage(1.0, train.CURRICULUM[0].level, batch=16, turns=1, tasks=("describe",))
    monkeypatch.setattr(train, "CURRICULUM", (stage,))
    out = tmp_path / "checkpoint"
    train.train(out, minutes=0.3, seed=0, device="cpu", dtype=torch.float32, stop_after=0.1)
    first = torch.load(tmp_path / "checkpoint.run.pt", weights_only=True)["run"]
    train.train(out, minutes=0.3, seed=0, device="cpu", dtype=torch.float32)
    run = torch.load(tmp_path / "checkpoint.run.pt", weights_only=True)["run"]
    assert run["steps"] > first["steps"] > 0 and run["seconds"] >= 18
    assert run["log"][: len(first["log"])] == first["log"]
    losses = [loss for _, _, loss, _ in run["log"]]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    model = Qwen2VLForConditionalGeneration.from_pretrained(str(out), device_map="cpu")
    processor = Qwen2VLProcessor.from_pretrained(str(out))
    assert len(evaluate.answers(model, processor, list(evaluate.fresh_questions(2)), blind=True)) > 2


def test_a_fresh_checkpoint_folder_is_read_by_both(tmp_path):
    train.write_blank_checkpoint(tmp_path)
    assert Qwen2VLConfig.from_pretrained(str(tmp_path)) == Qwen2VLConfig.from_pretrained("tiny")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Qwen2VLProcessor.from_pretrained(str(tmp_path))
    text = "<|im_start|>user\nA red circle, 12 crosses: naïve 雪 <|box_start|>(1,2)<|box_end|><|im_end|>\n"
    assert ours(text)["input_ids"][0].tolist() == theirs(text)["input_ids"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2_vl"


# ----------------------------------------------------------------------------------------------- evaluation


def test_the_embedded_model_sees(tiny):
    """A sample of what tiny/README.md states for 2,000 scenes; blind, the same model does much worse."""
    right = evaluate.measure(*tiny, evaluate.fresh_questions(60, seed="sample"))
    share = {
        group: {task: sum(marks) / len(marks) for task, marks in tasks.items()}
        for group, tasks in right.items()
    }
    assert share["all"]["colour"] >= 0.85 and share["all"]["shape"] >= 0.85
    assert share["all"]["describe"] >= 0.7 > 0.2 > share["blind"]["describe"]
