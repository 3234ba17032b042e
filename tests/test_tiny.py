"""The embedded checkpoint and how it came to be: equal to the reference, honest about what
it saw.
"""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageChops

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_app.boxes import find_boxes
from tests.helpers.reference import TOLERANCE, error
from tiny import evaluate, examples, gallery, train
from tiny.evaluate import Question
from tiny.sketches import ALL_WAYS, draw_sketch
from tiny.tasks import RELATIONS, SMALL_TALK, TASKS, Shown, ask, content, show
from tiny.world import (
    COLOURS,
    HELD_OUT,
    HELD_OUT_RATIO,
    HELD_OUT_WORDS,
    PAIRS,
    SHAPES,
    WORDS,
    Images,
    Scene,
    Thing,
    Video,
    random_scene,
)

FOLDER = Path(train.__file__).parent / "checkpoint"
KINDS_AND_TASKS = [(kind, task) for kind, tasks in TASKS.items() for task in tasks]


@pytest.fixture(scope="module")
def reference() -> transformers.Qwen2VLForConditionalGeneration:
    """The embedded folder, loaded by transformers."""
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(scope="module")
def blank_folder(tmp_path_factory) -> Path:
    """The files of an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("blank")
    train.write_blank_checkpoint(folder)
    return folder


# -------------------------------------------------------------------- against the reference


def conversations(seed: int) -> dict[str, list]:
    """A text, an image, a video and a batch of all three, about random scenes."""
    rng = random.Random(f"test tiny {seed}")
    question = {"type": "text", "text": "Describe this image."}
    found = {}
    for kind in ("text", "image", "video"):
        media = content(show(kind, rng, evaluate.LEVELS[kind]))
        found[kind] = [{"role": "user", "content": [*media, question]}]
    found["mixed batch"] = list(found.values())
    return found


@pytest.mark.parametrize("kind", ["text", "image", "video", "mixed batch"])
def test_logits_equal_the_reference(tiny, reference, kind, amount, figure):
    model, processor = tiny
    for seed in range(amount(4, 40)):
        inputs = processor.apply_chat_template(
            conversations(seed)[kind], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        is_token = inputs["attention_mask"].bool()
        with torch.no_grad():
            ours = model(**inputs).logits[is_token]
            theirs = reference(**inputs).logits[is_token]
        assert figure("tiny's logits, relative error", error(ours, theirs)) <= TOLERANCE


def test_greedy_answers_on_fresh_scenes_equal_the_reference(tiny, reference, amount):
    model, processor = tiny
    questions = evaluate.random_questions(amount(2, 20), seed="greedy")
    ours = evaluate.answer_questions(model, processor, questions)
    theirs = evaluate.answer_questions(reference, processor, questions)
    assert ours == theirs


def test_greedy_answers_in_later_turns_equal_the_reference(tiny, reference, amount):
    model, processor = tiny
    first = evaluate.random_questions(amount(2, 10), "turns", ["image"])
    questions = [evaluate.as_later_turn(question) for question in first]
    ours = evaluate.answer_questions(model, processor, questions)
    theirs = evaluate.answer_questions(reference, processor, questions)
    assert ours == theirs


def test_the_folder_is_small_and_has_the_official_layout(tiny):
    model, processor = tiny
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert sum(files.values()) <= 15e6
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        assert name in files
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert name in files
    for token in train.SPECIAL_TOKENS:
        assert processor.tokenizer.token_to_id(token) is not None
    assert model.config.image_token_id == processor.tokenizer.token_to_id("<|image_pad|>")
    assert model.config.video_token_id == processor.tokenizer.token_to_id("<|video_pad|>")


def test_a_folder_saved_here_loads_in_the_reference_and_back(tiny, reference, tmp_path):
    model, processor = tiny
    inputs = processor.apply_chat_template(
        conversations(0)["image"], tokenize=True, return_dict=True
    )
    expected = model(**inputs).logits
    for writer, name in ((model, "ours"), (reference, "theirs")):
        folder = tmp_path / name
        writer.save_pretrained(folder)
        here = Qwen2VLForConditionalGeneration.from_pretrained(folder, device_map="cpu")
        there = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        )
        assert torch.equal(here(**inputs).logits, expected)
        assert error(there(**inputs).logits, expected) <= TOLERANCE


def test_a_blank_checkpoint_folder_is_read_by_both(blank_folder):
    assert Qwen2VLConfig.from_pretrained(str(blank_folder)) == Qwen2VLConfig.from_pretrained("tiny")
    theirs = transformers.AutoTokenizer.from_pretrained(blank_folder)
    ours = Qwen2VLProcessor.from_pretrained(str(blank_folder))
    text = (
        "<|im_start|>user\nA red circle, 12 crosses: naïve 雪 "
        "<|box_start|>(1,2)<|box_end|><|im_end|>\n"
    )
    assert ours(text)["input_ids"][0].tolist() == theirs(text)["input_ids"]
    config = json.loads((blank_folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen2_vl"


# ------------------------------------------------------------------------- what is held out


def scenes_of(shown: Shown) -> list[Scene]:
    """The scenes, whatever it is."""
    if shown is None:
        return []
    if isinstance(shown, Scene):
        return [shown]
    return list(shown.scenes)


def training_examples(n: int) -> Iterator[tuple[Shown, str, str]]:
    """What training shows and asks: (shown, question, answer)."""
    for stage in train.CURRICULUM:
        for kind, part in stage.mixture.items():
            for i in range(n):
                rng = random.Random(f"{kind}:{i}")
                shown = show(kind, rng, part.level)
                for task in TASKS[kind]:
                    exchange = ask(task, kind, shown, rng, part.level)
                    if exchange:
                        yield shown, exchange.question, exchange.answer


def test_training_never_shows_or_names_what_is_held_out():
    held_out_names = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    for shown, question, answer in training_examples(150):
        for name in held_out_names:
            assert name not in question and name not in answer
        for scene in scenes_of(shown):
            ratio = max(scene.width, scene.height) / min(scene.width, scene.height)
            assert not HELD_OUT_RATIO[0] <= ratio <= HELD_OUT_RATIO[1]
            for thing in scene.things:
                assert (thing.colour, thing.shape) not in HELD_OUT
                assert thing.text not in HELD_OUT_WORDS


def without_names(question: str) -> str:
    """The question with "_" for what varies from scene to scene: the phrasing alone."""
    names = [*COLOURS, *SHAPES, *RELATIONS, "bigger", "smaller", "word", "number"]
    text = f" {question} "
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "_").replace("an _", "a _")
    return "".join(character for character in text if not character.isdigit())


def test_each_task_has_a_phrasing_that_training_never_uses():
    known = set()
    held_out = set()
    for kind, task in KINDS_AND_TASKS:
        for i in range(60):
            question = evaluate.random_question(kind, task, 4 * i + 2, "phrasings")
            known.add((task, without_names(question.text)))
            question = evaluate.random_question(kind, task, 4 * i, "phrasings")
            held_out.add((task, without_names(question.text)))
    shared = known & held_out
    # What is not there is asked for in the words of several tasks, whose unseen phrasings
    # differ.
    assert not {task for task, _ in shared} - {"not there"}, shared
    assert {task for task, _ in held_out} == {task for _, task in KINDS_AND_TASKS}


def test_what_is_held_out_leaves_every_part_in_training():
    known = set(PAIRS) - HELD_OUT
    assert {colour for colour, _ in known} == set(COLOURS)
    assert {shape for _, shape in known} == set(SHAPES)
    known_letters = set("".join(set(WORDS) - HELD_OUT_WORDS))
    assert known_letters >= set("".join(HELD_OUT_WORDS))
    assert len(COLOURS) >= 10 and len(SHAPES) >= 10
    assert len(set(WORDS)) == len(WORDS)


def test_canvases_have_the_stated_sides():
    level = train.CURRICULUM[-1].mixture["image"].level
    rng = random.Random(3)
    sides = [side for _ in range(2000) for side in level.random_canvas(rng)]
    assert min(sides) == 56 and max(sides) == 336


def test_the_same_seed_shows_and_asks_the_same():
    for kind, task in KINDS_AND_TASKS:
        one = evaluate.random_question(kind, task, 5, "twice")
        other = evaluate.random_question(kind, task, 5, "twice")
        assert one == other
        for a, b in zip(scenes_of(one.shown), scenes_of(other.shown), strict=True):
            assert a.draw().tobytes() == b.draw().tobytes()


def test_evaluation_scenes_are_not_training_scenes():
    """Of some thousands of random scenes no two are the same image."""
    trained = set()
    for shown, _, _ in training_examples(200):
        trained |= {scene.draw().tobytes() for scene in scenes_of(shown) if scene.things}
    evaluated = set()
    for question in evaluate.random_questions(30):
        evaluated |= {scene.draw().tobytes() for scene in scenes_of(question.shown) if scene.things}
    assert len(trained) > 2000 and len(evaluated) > 1000
    assert not trained & evaluated


# ------------------------------------------------------------- true answers, read once more


def test_boxes_and_positions_are_those_of_the_paint():
    """Leave out one thing: the pixels that change are its box, or almost."""
    rng = random.Random("paint")
    for _ in range(150):
        scene = random_scene(rng, evaluate.LEVELS["image"])
        for thing in scene.things:
            others = tuple(other for other in scene.things if other is not thing)
            difference = ImageChops.difference(scene.draw(), replace(scene, things=others).draw())
            rows, columns = np.nonzero(np.asarray(difference).max(-1) > 8)
            painted = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert np.abs(np.subtract(painted, thing.box)).max() <= 1
            sides = np.array([scene.width, scene.height, scene.width, scene.height])
            in_pixels = np.array(scene.normalised_box(thing)) * sides / 1000
            assert np.abs(in_pixels - painted).max() <= 1.2
            left, _, right, bottom = thing.box
            assert left >= 0 and right <= scene.width and bottom <= scene.height


NUMBERS = ("No.", "One.", "Two.", "Three.", "Four.", "Five.", "Six.")


def names_in_question(question: Question) -> list[str]:
    """The names of the scene's things that the question names, in its order."""
    names = {thing.name for thing in question.shown.things}
    return sorted((name for name in names if name in question.text), key=question.text.index)


def thing_of(scene: Scene, name: str) -> Thing:
    return next(thing for thing in scene.things if thing.name == name)


def check_description(question: Question) -> None:
    names = [thing.name.lower() for thing in question.shown.things]
    answer = question.answer.lower()
    assert all(name in answer for name in names)
    # From left to right, as the scene lists them.
    positions = [answer.index(name) for name in names if names.count(name) == 1]
    assert positions == sorted(positions)


def check_presence(question: Question) -> None:
    assert (question.answer == "Yes.") == bool(names_in_question(question))


def check_count(question: Question) -> None:
    things = question.shown.things
    counted = [word for word in (*SHAPES, *COLOURS) if word in question.text]
    if counted:
        things = [thing for thing in things if thing.shape in counted or thing.colour in counted]
    assert NUMBERS.index(question.answer) == len(things)


def check_position(question: Question) -> None:
    scene = question.shown
    thing = thing_of(scene, names_in_question(question)[0])
    assert ("left" in question.answer) == (thing.x < scene.width / 3)
    assert ("right" in question.answer) == (thing.x > scene.width * 2 / 3)
    assert ("top" in question.answer) == (thing.y < scene.height / 3)
    assert ("bottom" in question.answer) == (thing.y > scene.height * 2 / 3)


def check_relation(question: Question) -> None:
    # A number for each thing that is smaller the further left (right, up, down) it is.
    distances = {
        "left of": lambda thing: thing.x,
        "right of": lambda thing: -thing.x,
        "above": lambda thing: thing.y,
        "below": lambda thing: -thing.y,
    }
    relation = next(relation for relation in RELATIONS if relation in question.text)
    distance = {thing.name: distances[relation](thing) for thing in question.shown.things}
    named = names_in_question(question)
    if question.answer in ("Yes.", "No."):
        one, other = named
        assert (distance[one] < distance[other]) == (question.answer == "Yes.")
    else:
        nearer = [name for name in distance if distance[name] < distance[named[0]]]
        assert [f"The {name}." for name in nearer] == [question.answer]


def check_size(question: Question) -> None:
    one, other = names_in_question(question)
    is_larger = thing_of(question.shown, one).size > thing_of(question.shown, other).size
    holds = is_larger == ("bigger" in question.text)
    if question.answer in ("Yes.", "No."):
        assert holds == (question.answer == "Yes.")
    else:
        assert question.answer == f"The {one if holds else other}."


def check_find(question: Question) -> None:
    (name,) = names_in_question(question)
    (box,) = find_boxes(question.answer)
    assert box.name == f"the {name}"
    assert box[:4] == question.shown.normalised_box(thing_of(question.shown, name))


def check_inside_box(question: Question) -> None:
    scene = question.shown
    (box,) = find_boxes(question.text)
    inside = [thing.name for thing in scene.things if scene.normalised_box(thing) == box[:4]]
    assert len(inside) == 1 and inside[0] in question.answer.lower()


def check_absent(question: Question) -> None:
    assert not names_in_question(question)
    assert question.answer.startswith("There is no ")
    for thing in question.shown.things:
        assert question.answer != f"There is no {thing.shape}."


def check_colour(question: Question) -> None:
    (thing,) = [one for one in question.shown.things if f" {one.shape}" in question.text]
    assert thing.colour in question.answer.lower()


def check_shape(question: Question) -> None:
    (thing,) = [one for one in question.shown.things if f" {one.colour}" in question.text]
    assert thing.shape in question.answer


def check_sign(question: Question) -> None:
    (text,) = [thing.text for thing in question.shown.things if thing.text]
    assert question.answer == f"{text}."
    assert text.isdigit() or text in HELD_OUT_WORDS


def names_by_scene(question: Question) -> list[list[str]]:
    return [[thing.name for thing in scene.things] for scene in question.shown.scenes]


def check_which_image(question: Question) -> None:
    has_it = [any(name in question.text for name in names) for names in names_by_scene(question)]
    assert has_it.count(True) == 1
    assert question.answer == f"Picture {has_it.index(True) + 1}."


def check_description_of_one(question: Question) -> None:
    number = next(int(character) for character in question.text if character.isdigit())
    for name in names_by_scene(question)[number - 1]:
        assert name in question.answer.lower()


def check_difference(question: Question) -> None:
    before, after = (set(names) for names in names_by_scene(question))
    gone = before - after
    new = after - before
    answer = question.answer
    if "gone" in answer:
        assert not new and answer == f"The {gone.pop()} is gone in picture 2."
    elif "only" in answer:
        assert not gone and new.pop() in answer
    else:
        (old_name,) = gone
        (new_name,) = new
        assert old_name in answer
        assert any(word in answer.split("is")[1] for word in new_name.split())


def check_image_count(question: Question) -> None:
    all_names = names_by_scene(question)
    shapes = [shape for shape in SHAPES if shape in question.text]
    count = len(all_names)
    if shapes:
        count = sum(any(shapes[0] in name for name in names) for names in all_names)
    assert NUMBERS.index(question.answer) == count


def things_by_frame(question: Question) -> list[dict]:
    """{name: thing} of each frame."""
    return [{thing.name: thing for thing in scene.things} for scene in question.shown.scenes]


def named_things(question: Question) -> set[str]:
    """The names of the video's things that question or answer name."""
    text = f"{question.text} {question.answer.lower()}"
    return {name for frame in things_by_frame(question) for name in frame if name in text}


def is_there(question: Question, name: str) -> list[bool]:
    """Frame by frame, whether the thing is there."""
    return [name in frame for frame in things_by_frame(question)]


def check_blinks(question: Question) -> None:
    (name,) = named_things(question)
    there = is_there(question, name)
    assert there[0] and there[-1]
    times_gone = sum(now and not then for now, then in itertools.pairwise(there))
    assert ["Never.", "Once.", "Twice.", "Three times."].index(question.answer) == times_gone


def check_direction(question: Question) -> None:
    (name,) = named_things(question)
    frames = things_by_frame(question)
    dx = frames[-1][name].x - frames[0][name].x
    dy = frames[-1][name].y - frames[0][name].y
    # One direction, plainly.
    assert abs(dx) > 5 * abs(dy) or abs(dy) > 5 * abs(dx)
    if abs(dx) > abs(dy):
        assert question.answer == ("To the right." if dx > 0 else "To the left.")
    else:
        assert question.answer == ("Down." if dy > 0 else "Up.")


def check_first(question: Question) -> None:
    first_frames = {name: is_there(question, name).index(True) for name in named_things(question)}
    assert len(first_frames) == 2
    assert question.answer == f"The {min(first_frames, key=first_frames.get)}."


def check_subject(question: Question) -> None:
    (name,) = [name for name in named_things(question) if name in question.answer]
    there = is_there(question, name)
    if " appears" in question.text:
        assert there == sorted(there) and not all(there)
    elif " disappears" in question.text:
        assert there == sorted(there, reverse=True) and not all(there)
    elif "moves" in question.text:
        frames = things_by_frame(question)
        positions = {(frame[name].x, frame[name].y) for frame in frames}
        assert len(positions) == len(frames)
    else:  # in another colour it has another name
        assert there[0] and not there[-1]


def check_event(question: Question) -> None:
    assert any(name in question.answer for name in named_things(question))


CHECKS: dict[str, Callable[[Question], None]] = {
    "describe": check_description,
    "colour": check_colour,
    "shape": check_shape,
    "how many": check_count,
    "where": check_position,
    "is there": check_presence,
    "relation": check_relation,
    "size": check_size,
    "find": check_find,
    "in the box": check_inside_box,
    "not there": check_absent,
    "read": check_sign,
    "describe a sign": check_description,
    "which picture": check_which_image,
    "what differs": check_difference,
    "describe one": check_description_of_one,
    "how many pictures": check_image_count,
    "what happens": check_event,
    "which way": check_direction,
    "what changes": check_subject,
    "what comes first": check_first,
    "how often": check_blinks,
}


@pytest.mark.parametrize(("kind", "task"), KINDS_AND_TASKS[:-1])
def test_answers_follow_from_what_is_shown(kind, task):
    """Simple rules on the words and the list of things, without code of the tasks."""
    for i in range(300 if kind == "image" else 200):
        question = evaluate.random_question(kind, task, i, "follow")
        if kind == "images":
            assert isinstance(question.shown, Images) and 2 <= len(question.shown.scenes) <= 4
        if kind == "video":
            assert isinstance(question.shown, Video)
            assert len(question.shown.scenes) in (4, 6, 8, 10)
        CHECKS[task](question)


def test_small_talk_has_one_unseen_phrasing_each():
    questions = evaluate.random_questions(1, kinds=["text"])
    assert len(questions) == sum(len(phrasings) for phrasings in SMALL_TALK.values())
    assert len({(question.text, question.answer) for question in questions}) == len(questions)
    unseen = [question for question in questions if "unseen phrasing" in question.groups]
    assert len(unseen) == len(SMALL_TALK)


# --------------------------------------------------------------------------------- training


def batch_of(kind: str, processor: Qwen2VLProcessor) -> dict[str, torch.Tensor]:
    """A small training batch about a kind of thing."""
    part = train.CURRICULUM[-1].mixture[kind]
    return train.make_batch("1", 0, 8, train.Stage(1.0, {kind: part}), processor)


@pytest.mark.parametrize("kind", TASKS)
def test_labels_are_the_assistants_words_and_nothing_else(tiny, kind):
    _, processor = tiny
    batch = batch_of(kind, processor)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        turns = processor.decode(ids).split("<|im_start|>assistant\n")[1:]
        said = [turn.split("<|im_end|>")[0] + "<|im_end|>" for turn in turns]
        assert processor.decode(labels[labels != -100]) == "".join(said)


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_of_a_batch_equals_that_of_the_plain_forward(tiny, kind):
    """Images go through the vision transformer at once, and only labels through the head."""
    model, processor = tiny
    batch = batch_of(kind, processor)
    del batch["weights"]
    with torch.no_grad():
        assert abs(train.batch_loss(model, batch) - model(**batch).loss) <= 1e-5


@pytest.mark.parametrize("kind", TASKS)
def test_an_answer_counts_by_the_root_of_its_length(tiny, kind):
    model, processor = tiny
    batch = batch_of(kind, processor)
    with torch.no_grad():
        weighted = train.batch_loss(model, batch)
        del batch["weights"]
        logits = model(**batch).logits
    total = 0.0
    norm = 0.0
    for row_labels, row_logits in zip(batch["labels"][:, 1:], logits, strict=True):
        # Each run of labels is one answer.
        labelled = [i for i, label in enumerate(row_labels.tolist()) if label != -100]
        for _, run in itertools.groupby(enumerate(labelled), key=lambda pair: pair[1] - pair[0]):
            answer = [position for _, position in run]
            losses = F.cross_entropy(row_logits[answer], row_labels[answer], reduction="none")
            total += losses.sum() / len(answer) ** 0.5
            norm += len(answer) ** 0.5
    assert abs(weighted - total / norm) <= 1e-5


def test_workers_draw_different_scenes_on_one_canvas(tiny):
    _, processor = tiny
    one = train.make_batch("7", 0, 2, train.CURRICULUM[-1], processor)
    other = train.make_batch("7", 1, 2, train.CURRICULUM[-1], processor)
    grid_key = next(key for key in one if key.endswith("thw"))
    assert torch.equal(one[grid_key][0, 1:], other[grid_key][0, 1:])
    same_shape = one["input_ids"].shape == other["input_ids"].shape
    assert not same_shape or not torch.equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize("workers", [1, 2])
def test_training_learns_stops_and_goes_on(tmp_path, blank_folder, workers):
    """The loss falls within six steps; a second call goes on where the first stopped."""
    out = tmp_path / "checkpoint"
    shutil.copytree(blank_folder, out)
    # A smaller model is enough here, and fast on any machine.
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = 1
    config["intermediate_size"] = 64
    config["vision_config"].update(depth=1, embed_dim=64, num_heads=2)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = train.Settings(out, steps=6, workers=workers, measurements=1)
    train.train(replace(settings, stop_at=0.5))
    first = torch.load(settings.state_file, weights_only=True)["run"]
    train.train(settings)
    run = torch.load(settings.state_file, weights_only=True)["run"]
    assert (first["steps"], run["steps"]) == (3, 6)
    assert run["log"][:3] == first["log"]
    losses = [loss for _, _, loss, _ in run["log"]]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert (out.with_name(f"{out.name}-stage-1") / "model.safetensors").exists()
    ((_, accuracy),) = run["marks"]
    assert set(accuracy) == {"describe", "colour", "shape"}
    # What was written is a checkpoint that answers.
    model = Qwen2VLForConditionalGeneration.from_pretrained(out, device_map="cpu")
    processor = Qwen2VLProcessor.from_pretrained(out)
    questions = evaluate.random_questions(1, kinds=["image"])
    assert len(evaluate.answer_questions(model, processor, questions)) == 11


def test_a_budget_is_minutes_or_steps():
    progress = train.Progress(seconds=30.0, steps=3)
    assert progress.share(train.Settings(Path("out"), minutes=2)) == 0.25
    assert progress.share(train.Settings(Path("out"), steps=6)) == 0.5


def test_a_short_training_stays_with_single_things():
    first, second, *_, last = train.CURRICULUM
    for short, long in (
        (train.Settings(Path("out"), minutes=10), train.Settings(Path("out"), minutes=100)),
        (train.Settings(Path("out"), steps=1000), train.Settings(Path("out"), steps=10_000)),
    ):
        assert train.stage_at(0.99, short).tasks == first.tasks
        assert train.stage_at(0.05, long).tasks == first.tasks
        assert train.stage_at(0.20, long) == second
        assert train.stage_at(0.99, long) == last


def test_the_recipe_is_eight_hours_in_stages_of_at_most_two():
    assert sum(part.minutes for part in train.PARTS.values()) <= 8 * 60
    for part in train.PARTS.values():
        starts = [0.0, *(stage.until for stage in part.curriculum)]
        assert starts[-1] == 1
        for start, end in itertools.pairwise(starts):
            assert 0 < (end - start) * part.minutes <= 120


# ------------------------------------------------------------------------------- evaluation


def test_the_embedded_model_sees(tiny):
    """A sample of what tiny/README.md states; blind, the same model does much worse."""
    model, processor = tiny
    kinds = ("image", "images", "video")
    questions = evaluate.random_questions(12, seed="sample", kinds=kinds)
    seen = evaluate.evaluate_questions(model, processor, questions)
    blind = evaluate.evaluate_questions(model, processor, evaluate.blinded(questions))
    right = {task: seen.share(task) for kind in kinds for task in TASKS[kind]}
    assert sum(right.values()) / len(right) >= 0.75, right
    assert right["describe"] >= 0.5
    assert blind.share("describe") == 0


def test_scores_are_letters_and_boxes():
    question = evaluate.random_question("image", "find", 2, "score")
    (box,) = find_boxes(question.answer)
    assert question.score(question.answer) == 1.0
    assert question.score("There is no star.") == 0.0
    assert question.score(question.answer.replace(box.name, "the wrong name")) == 0.0
    # Without its left quarter a box overlaps the true one by three quarters.
    left = box.left + (box.right - box.left) / 4
    moved = question.answer.replace(f"({box.left},", f"({left:.0f},", 1)
    assert question.score(moved) == pytest.approx(0.75, abs=0.02)
    assert question.is_right(moved)
    question = evaluate.random_question("image", "describe", 2, "score")
    assert question.score(question.answer) == 1.0
    assert question.score(question.answer.lower()) == 0.0


def test_shares_count_by_group():
    questions = evaluate.random_questions(8, kinds=["image"])
    said = [q.answer if "unseen ratio" not in q.groups else "?" for q in questions]
    result = evaluate.Result(questions, said)
    assert result.share("describe") == 0.75
    assert result.share("describe", "unseen ratio") == 0
    assert result.share("describe", "unseen phrasing") == 1
    assert result.share("read") is None


def test_a_blind_question_shows_nothing():
    questions = evaluate.random_questions(2)
    for question, blind in zip(questions, evaluate.blinded(questions), strict=True):
        assert (blind.text, blind.answer) == (question.text, question.answer)
        assert all(not scene.things for scene in scenes_of(blind.shown))


def test_later_questions_come_after_others_about_the_same_scene():
    question = evaluate.random_question("image", "colour", 2, "later")
    third = evaluate.as_later_turn(question)
    assert len(third.earlier) == 2
    assert (third.text, third.shown) == (question.text, question.shown)


# --------------------------------------------------------------------------------- examples


def test_the_examples_are_what_the_script_draws():
    for name, scene in examples.IMAGES.items():
        with Image.open(examples.FOLDER / name) as image:
            assert image.convert("RGB").tobytes() == scene.draw().tobytes(), name
    for name, scenes_of_video in examples.VIDEOS.items():
        drawn = scenes_of_video()
        with av.open(str(examples.FOLDER / name)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == len(drawn)
        for frame, scene in zip(frames[::6], drawn[::6], strict=True):
            difference = np.abs(frame.astype(int) - np.asarray(scene.draw()).astype(int))
            assert difference.mean() < 5  # what the codec loses


def test_true_answers_of_the_examples_follow_from_their_scenes():
    for example in examples.EXAMPLES:
        if example.question in ("Describe this image.", "What do you see?"):
            for thing in examples.IMAGES[example.files[0]].things:
                assert thing.name in example.answer.lower()


def test_the_gallery_shows_forty_sketches_in_every_way():
    questions = gallery.gallery_questions()
    images = [draw_sketch(question.sketch) for question in questions]
    assert len(images) == 40
    assert {q.sketch.way for q in questions} == set(ALL_WAYS)
    assert all(image.mode == "RGB" for image in images)
    assert len({image.tobytes() for image in images}) == len(images)


def test_the_answers_on_the_contact_sheet_are_those_of_this_checkpoint():
    """answers.json holds what the model said, right or wrong."""
    stated = json.loads((examples.FOLDER / "answers.json").read_text(encoding="utf-8"))
    conversations = [examples.conversation(example) for example in examples.EXAMPLES]
    said = evaluate.load_and_answer("tiny", conversations)
    assert [row["said"] for row in stated] == said
    right = 0
    for example, text in zip(examples.EXAMPLES, said, strict=True):
        right += evaluate.score_answer(example.answer, text) >= 0.5
    assert right >= 0.8 * len(said)
    with Image.open(examples.FOLDER / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 600
