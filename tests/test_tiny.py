"""The embedded checkpoint and how it came to be: equal to the reference, honest about what it saw."""

import itertools
import json
import random

import av
import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageChops
from reference import TOLERANCE, error

from boxes import find_boxes
from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from tiny import evaluate, examples, gallery, train
from tiny.tasks import PLACES, SMALL_TALK, TASKS, ask, content, show
from tiny.world import (
    COLOURS,
    HELD_OUT,
    HELD_OUT_RATIO,
    HELD_OUT_WORDS,
    PAIRS,
    SHAPES,
    WORDS,
    Clip,
    Pictures,
    random_scene,
)

FOLDER = train.Path(train.__file__).parent / "checkpoint"
SINGLE = evaluate.LEVELS["picture"]
KINDS_AND_TASKS = [(kind, task) for kind, tasks in TASKS.items() for task in tasks]


@pytest.fixture(scope="module")
def reference() -> transformers.Qwen2VLForConditionalGeneration:
    """The embedded folder, loaded by transformers."""
    return transformers.Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


def chat(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def conversations(seed: int) -> dict[str, list]:
    """A text, a picture, a video and a batch of all three, about fresh scenes."""
    rng = random.Random(f"test tiny {seed}")
    question = {"type": "text", "text": "Describe this image."}
    items = {kind: content(show(kind, rng, evaluate.LEVELS[kind])) for kind in ("text", "picture", "video")}
    found = {kind: chat(*shown, question) for kind, shown in items.items()}
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
    questions = evaluate.fresh_questions(amount(2, 20), seed="greedy")
    ours, theirs = (evaluate.answers(one, processor, questions) for one in (model, reference))
    assert ours == theirs


def test_greedy_answers_in_later_turns_equal_the_reference(tiny, reference, amount):
    model, processor = tiny
    questions = [evaluate.later(q) for q in evaluate.fresh_questions(amount(2, 10), "turns", ["picture"])]
    ours, theirs = (evaluate.answers(one, processor, questions) for one in (model, reference))
    assert ours == theirs


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


def everything_shown(shown) -> list:
    """The scenes, whatever it is."""
    return [] if shown is None else list(getattr(shown, "scenes", [shown]))


def training_examples(n: int):
    """What training shows and asks: (kind, shown, question, answer)."""
    for stage in train.CURRICULUM:
        for kind, diet in stage.diets.items():
            for i in range(n):
                rng = random.Random(f"{kind}:{i}")
                shown = show(kind, rng, diet.level)
                for task in TASKS[kind]:
                    if exchange := ask(task, kind, shown, rng, diet.level):
                        yield kind, shown, *exchange


def test_training_never_shows_or_names_what_is_held_out():
    phrasings = {known: set() for known in (True, False)}
    for _, shown, question, answer in training_examples(150):
        for colour, shape in HELD_OUT:
            assert f"{colour} {shape}" not in f"{question} {answer}"
        for scene in everything_shown(shown):
            assert not HELD_OUT & {(thing.colour, thing.shape) for thing in scene.things}
            assert not HELD_OUT_WORDS & {thing.text for thing in scene.things}
            ratio = max(scene.width, scene.height) / min(scene.width, scene.height)
            assert not HELD_OUT_RATIO[0] <= ratio <= HELD_OUT_RATIO[1]
    for kind, task in KINDS_AND_TASKS:  # the questions alone, on scenes that leave the rest equal
        for i in range(60):
            for known in (True, False):
                question = evaluate.fresh_question(kind, task, 4 * i + (2 if known else 0), "phrasings")
                words = f" {question.text} "
                for name in sorted(
                    [*COLOURS, *SHAPES, *PLACES, "bigger", "smaller", "word", "number"], key=len
                )[::-1]:
                    words = words.replace(name, "_").replace("an _", "a _")
                phrasings[known].add((task, "".join(c for c in words if not c.isdigit())))
    shared = phrasings[True] & phrasings[False]
    assert not {task for task, _ in shared} - {"not there"}, shared
    assert {task for task, _ in phrasings[False]} == {task for _, task in KINDS_AND_TASKS}


def test_what_is_held_out_leaves_every_part_in_training():
    known = set(PAIRS) - HELD_OUT
    assert {colour for colour, _ in known} == set(COLOURS) and {shape for _, shape in known} == set(SHAPES)
    letters = {letter for word in set(WORDS) - HELD_OUT_WORDS for letter in word}
    assert letters >= {letter for word in HELD_OUT_WORDS for letter in word}
    assert len(COLOURS) >= 10 and len(SHAPES) >= 10 and len(set(WORDS)) == len(WORDS)


def test_canvases_have_the_stated_sides_and_ratios():
    level = train.CURRICULUM[-1].diets["picture"].level
    rng = random.Random(3)
    sides = [side for _ in range(2000) for side in level.canvas(rng)]
    assert min(sides) == 56 and max(sides) == 336


def test_the_same_seed_shows_and_asks_the_same():
    for kind, task in KINDS_AND_TASKS:
        one, other = (evaluate.fresh_question(kind, task, 5, "twice") for _ in range(2))
        assert one == other
        for a, b in zip(everything_shown(one.shown), everything_shown(other.shown), strict=True):
            assert a.draw().tobytes() == b.draw().tobytes()


def test_evaluation_scenes_are_not_training_scenes():
    """Scenes are random in a dozen real numbers; still, of some thousands none is the same picture."""
    trained = {
        scene.draw().tobytes()
        for _, shown, *_ in training_examples(200)
        for scene in everything_shown(shown)
        if scene.things
    }
    fresh = {
        scene.draw().tobytes()
        for question in evaluate.fresh_questions(30)
        for scene in everything_shown(question.shown)
        if scene.things
    }
    assert len(trained) > 2000 and len(fresh) > 1000 and not trained & fresh


def test_boxes_and_places_are_where_the_paint_is():
    """Paint each thing once more in another colour: the pixels that change are its box, or almost."""
    rng = random.Random("paint")
    for _ in range(150):
        scene = random_scene(rng, SINGLE)
        for thing in scene.things:
            others = tuple(other for other in scene.things if other is not thing)
            without = type(scene)(scene.width, scene.height, scene.background, others).draw()
            changed = np.asarray(ImageChops.difference(scene.draw(), without)).max(-1) > 8
            rows, columns = np.nonzero(changed)
            painted = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert np.abs(np.subtract(painted, thing.box)).max() <= 1
            sides = np.array([scene.width, scene.height] * 2)
            assert np.abs(np.array(scene.box(thing)) * sides / 1000 - painted).max() <= 1.2
            assert thing.box[0] >= 0 and thing.box[2] <= scene.width and thing.box[3] <= scene.height


SINGLE_TASKS = sorted(set(TASKS["picture"]) - {"in the box"})


@pytest.mark.parametrize("task", SINGLE_TASKS)
def test_answers_follow_from_the_scene(task):
    """Each answer, read back by a second pair of eyes: simple rules on the words, no code of the tasks'."""
    for i in range(300):
        question = evaluate.fresh_question("picture", task, i, "follow")
        scene, asked, answer = question.shown, question.text, question.answer
        names = [thing.name for thing in scene.things]
        by_name = {thing.name: thing for thing in scene.things}
        named = sorted((name for name in by_name if name in asked), key=asked.index)
        if task == "describe":
            places = [answer.lower().index(name) for name in names if names.count(name) == 1]
            assert places == sorted(places) and all(name in answer.lower() for name in names)
        elif task == "is there":
            assert (answer == "Yes.") == bool(named)
        elif task == "how many":
            kinds = [kind for kind in (*SHAPES, *COLOURS) if kind in asked]
            n = (
                sum(thing.shape in kinds or thing.colour in kinds for thing in scene.things)
                if kinds
                else len(names)
            )
            assert ["No.", "One.", "Two.", "Three.", "Four.", "Five.", "Six."].index(answer) == n
        elif task == "where":
            thing = by_name[named[0]]
            assert ("left" in answer) == (thing.x < scene.width / 3)
            assert ("right" in answer) == (thing.x > scene.width * 2 / 3)
            assert ("top" in answer) == (thing.y < scene.height / 3)
            assert ("bottom" in answer) == (thing.y > scene.height * 2 / 3)
        elif task == "relation":
            place = next(place for place in PLACES if place in asked)
            pick, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[
                place
            ]
            at = {name: sign * getattr(thing, pick) for name, thing in by_name.items()}
            if answer in ("Yes.", "No."):
                one, other = named
                assert (at[one] < at[other]) == (answer == "Yes.")
            else:
                assert [f"The {n}." for n in at if at[n] < at[named[0]]] == [answer]
        elif task == "size":
            one, other = named
            bigger = (by_name[one].size > by_name[other].size) == ("bigger" in asked)
            if answer in ("Yes.", "No."):
                assert bigger == (answer == "Yes.")
            else:
                assert answer == f"The {one if bigger else other}."
        elif task == "find":
            (box,) = find_boxes(answer)
            assert box.name == f"the {named[0]}" and box[:4] == scene.box(by_name[named[0]])
        elif task == "not there":
            assert not named and answer.startswith("There is no ")
            assert not any(answer == f"There is no {thing.shape}." for thing in scene.things)
        else:
            other = "shape" if task == "colour" else "colour"
            about = [thing for thing in scene.things if f" {getattr(thing, other)}" in asked]
            assert [getattr(thing, task) in answer.lower() for thing in about] == [True]


def test_what_is_in_a_box_is_what_find_would_box():
    for i in range(200):
        question = evaluate.fresh_question("picture", "in the box", i, "follow")
        (box,), scene = find_boxes(question.text), question.shown
        inside = [thing.name for thing in scene.things if scene.box(thing) == box[:4]]
        assert len(inside) == 1 and inside[0] in question.answer.lower()


def test_answers_about_several_pictures_follow_from_them():
    for task in TASKS["pictures"]:
        for i in range(200):
            question = evaluate.fresh_question("pictures", task, i, "follow")
            pictures, asked, answer = question.shown, question.text, question.answer
            assert isinstance(pictures, Pictures) and 2 <= len(pictures.scenes) <= 4
            names = [[thing.name for thing in scene.things] for scene in pictures.scenes]
            if task == "which picture":
                has = [any(name in asked for name in some) for some in names]
                assert has.count(True) == 1 and answer == f"Picture {has.index(True) + 1}."
            elif task == "describe one":
                number = next(int(c) for c in asked if c.isdigit())
                assert all(name in answer.lower() for name in names[number - 1])
            elif task == "what differs":
                before, after = map(set, names)
                assert before != after and len(before ^ after) <= 2
                gone, new = before - after, after - before
                if "gone" in answer:
                    assert answer == f"The {gone.pop()} is gone in picture 2." and not new
                elif "only" in answer:
                    assert new.pop() in answer and not gone
                else:
                    (old,), (fresh,) = gone, new
                    assert old in answer and any(word in answer.split("is")[1] for word in fresh.split())
            else:
                kinds = [shape for shape in SHAPES if shape in asked]
                n = sum(any(kind in name for kind in kinds for name in some) for some in names)
                assert ["No", "One", "Two", "Three", "Four"].index(answer[:-1]) == (
                    n if kinds else len(names)
                )


def test_answers_about_clips_follow_from_their_frames():
    for task in TASKS["video"]:
        for i in range(200):
            question = evaluate.fresh_question("video", task, i, "follow")
            clip, asked, answer = question.shown, question.text, question.answer
            assert isinstance(clip, Clip) and len(clip.scenes) in (4, 6, 8, 10)
            frames = [{thing.name: thing for thing in scene.things} for scene in clip.scenes]
            about = {name for frame in frames for name in frame if name in f"{asked} {answer.lower()}"}
            if task == "how often":
                (name,) = about
                there = [name in frame for frame in frames]
                gone = sum(a and not b for a, b in itertools.pairwise(there))
                assert (
                    there[0]
                    and there[-1]
                    and ["Never.", "Once.", "Twice.", "Three times."].index(answer) == gone
                )
            elif task == "which way":
                (name,) = about
                start, end = frames[0][name], frames[-1][name]
                dx, dy = end.x - start.x, end.y - start.y
                assert abs(dx) > 5 * abs(dy) or abs(dy) > 5 * abs(dx)
                way = (
                    ("To the right." if dx > 0 else "To the left.")
                    if abs(dx) > abs(dy)
                    else ("Down." if dy > 0 else "Up.")
                )
                assert answer == way
            elif task == "what comes first":
                since = {name: min(k for k, frame in enumerate(frames) if name in frame) for name in about}
                assert len(since) == 2 and answer == f"The {min(since, key=since.get)}."
            elif task == "what changes":
                (name,) = [name for name in about if name in answer]
                there = [name in frame for frame in frames]
                if " appears" in asked:
                    assert there == sorted(there) and not all(there)
                elif " disappears" in asked:
                    assert there == sorted(there)[::-1] and not all(there)
                elif "moves" in asked:
                    assert len({(frame[name].x, frame[name].y) for frame in frames}) == len(frames)
                else:
                    assert there[0] and not there[-1]
            else:
                assert any(name in answer for name in about)


def test_signs_carry_the_text_that_is_asked_for():
    for i in range(200):
        question = evaluate.fresh_question("words", "read", i, "follow")
        (text,) = [thing.text for thing in question.shown.things if thing.text]
        assert question.answer == f"{text}." and (text.isdigit() or text in HELD_OUT_WORDS)


def test_small_talk_has_one_unseen_phrasing_each():
    questions = evaluate.fresh_questions(1, kinds=["text"])
    assert (
        len(questions) == sum(map(len, SMALL_TALK.values())) == len({(q.text, q.answer) for q in questions})
    )
    assert sum("unseen phrasing" in question.groups for question in questions) == len(SMALL_TALK)


def batch_of(kind: str, processor: Qwen2VLProcessor, seed: str = "1") -> dict:
    """A small training batch about a kind of thing."""
    diet = train.CURRICULUM[-1].diets[kind]
    return train.make_batch(seed, 0, 8, train.Stage(1.0, {kind: diet}), processor)


@pytest.mark.parametrize("kind", TASKS)
def test_labels_are_the_assistants_words_and_nothing_else(tiny, kind):
    _, processor = tiny
    batch = batch_of(kind, processor)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = processor.decode(ids)
        said = [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>assistant\n")[1:]]
        assert processor.decode(labels[labels != -100]) == "".join(f"{one}<|im_end|>" for one in said)


@pytest.mark.parametrize("kind", TASKS)
def test_a_batch_through_the_tower_at_once_gives_the_loss_of_the_plain_forward_by_answer(tiny, kind):
    model, processor = tiny
    batch = batch_of(kind, processor)
    with torch.no_grad():
        weights = batch.pop("weights")
        plain = model(**batch)
        assert abs(train.batch_loss(model, batch) - plain.loss) <= 1e-5
        weighted = train.batch_loss(model, batch | {"weights": weights})
    total = norm = 0.0
    for labels, logits in zip(batch["labels"][:, 1:], plain.logits, strict=True):
        spoken = [i for i, label in enumerate(labels.tolist()) if label != -100]
        for _, answer in itertools.groupby(enumerate(spoken), key=lambda pair: pair[1] - pair[0]):
            places = [place for _, place in answer]
            losses = torch.nn.functional.cross_entropy(logits[places], labels[places], reduction="none")
            total += losses.sum() / len(places) ** 0.5
            norm += len(places) ** 0.5
    assert abs(weighted - total / norm) <= 1e-5


def test_workers_draw_different_scenes_on_one_canvas(tiny):
    _, processor = tiny
    one, other = (train.make_batch("7", rank, 2, train.CURRICULUM[-1], processor) for rank in (0, 1))
    grids = [next(batch[key] for key in batch if key.endswith("thw")) for batch in (one, other)]
    assert torch.equal(grids[0][0, 1:], grids[1][0, 1:])
    assert one["input_ids"].shape != other["input_ids"].shape or not torch.equal(
        one["input_ids"], other["input_ids"]
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_training_learns_stops_and_goes_on(tmp_path, workers):
    """A few seconds of the first stage: the loss falls; a second call goes on where the first was stopped."""
    out = tmp_path / "checkpoint"
    train.train(out, minutes=0.4, workers=workers, stop_after=0.15)
    first = torch.load(tmp_path / "checkpoint.run.pt", weights_only=True)["run"]
    train.train(out, minutes=0.4, workers=workers)
    run = torch.load(tmp_path / "checkpoint.run.pt", weights_only=True)["run"]
    assert run["steps"] > first["steps"] > 0 and run["seconds"] >= 24
    assert run["log"][: len(first["log"])] == first["log"]
    losses = [loss for _, _, loss, _ in run["log"]]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert run["marks"] and all(set(marks) == {"describe", "colour", "shape"} for _, marks in run["marks"])
    model = Qwen2VLForConditionalGeneration.from_pretrained(str(out), device_map="cpu")
    processor = Qwen2VLProcessor.from_pretrained(str(out))
    assert len(evaluate.answers(model, processor, evaluate.fresh_questions(1, kinds=["picture"]))) == 11


def test_a_short_training_stays_with_single_objects():
    assert train.stage_at(0.99, minutes=10).tasks == train.CURRICULUM[0].tasks
    assert train.stage_at(0.05, minutes=100).tasks == train.CURRICULUM[0].tasks
    assert train.stage_at(0.20, minutes=100) == train.CURRICULUM[1]
    assert train.stage_at(0.99, minutes=100) == train.CURRICULUM[-1]


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
    """A sample of what tiny/README.md states; blind, the same model does much worse."""
    questions = evaluate.fresh_questions(12, seed="sample", kinds=["picture", "pictures", "video"])
    seen, blind = (evaluate.run(*tiny, some) for some in (questions, evaluate.blinded(questions)))
    right = {task: seen.share(task) for kind in ("picture", "pictures", "video") for task in TASKS[kind]}
    assert sum(right.values()) / len(right) >= 0.75, right
    assert blind.share("describe") == 0 < 0.5 <= right["describe"]


def test_scores_are_letters_and_boxes():
    question = evaluate.fresh_question("picture", "find", 2, "score")
    (box,) = find_boxes(question.answer)
    assert question.score(question.answer) == 1.0 and question.score("There is no star.") == 0.0
    moved = question.answer.replace(f"({box.left},", f"({box.left + (box.right - box.left) / 4:.0f},", 1)
    assert question.score(moved) == pytest.approx(0.75, abs=0.02) and question.right(moved)
    assert question.score(question.answer.replace(box.name, "the wrong name")) == 0.0
    question = evaluate.fresh_question("picture", "describe", 2, "score")
    assert question.score(question.answer) == 1.0 and question.score(question.answer.lower()) == 0.0


def test_shares_count_by_group_and_a_blind_question_shows_nothing():
    questions = evaluate.fresh_questions(8, kinds=["picture"])
    result = evaluate.Result(
        questions, [q.answer if "unseen ratio" not in q.groups else "?" for q in questions]
    )
    assert result.share("describe") == 0.75 and result.share("describe", "unseen ratio") == 0
    assert result.share("describe", "unseen phrasing") == 1 and result.share("read") is None
    assert all(not question.shown.things for question in evaluate.blinded(questions))


def test_later_questions_come_after_others_about_the_same_scene():
    question = evaluate.fresh_question("picture", "colour", 2, "later")
    third = evaluate.later(question)
    assert len(third.earlier) == 2 and (third.text, third.shown) == (question.text, question.shown)


# ------------------------------------------------------------------------------------------------- examples


def test_the_examples_are_what_the_script_draws():
    for name, scene in examples.PICTURES.items():
        with Image.open(examples.FOLDER / name) as picture:
            assert picture.convert("RGB").tobytes() == scene.draw().tobytes(), name
    for name, frames in examples.CLIPS.items():
        drawn = frames()
        with av.open(str(examples.FOLDER / name)) as clip:
            decoded = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert len(decoded) == len(drawn)
        for shown, scene in zip(decoded[::6], drawn[::6], strict=True):  # but for the codec's losses
            assert np.abs(shown.astype(int) - np.asarray(scene.draw()).astype(int)).mean() < 5


def test_true_answers_of_the_examples_follow_from_their_scenes():
    for example in examples.EXAMPLES:
        if example.question in ("Describe this image.", "What do you see?"):
            names = [thing.name for thing in examples.PICTURES[example.files[0]].things]
            assert all(name in example.answer.lower() for name in names)


def test_the_gallery_shows_at_least_twenty_pictures_drawn_otherwise():
    pictures = [draw() for _, draw, _, _ in gallery.GALLERY]
    assert len(pictures) >= 20 and all(picture.mode == "RGB" for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_the_answers_on_the_contact_sheet_are_those_of_this_checkpoint():
    """answers.json holds what the model said, right or wrong; true answers stand in tiny/examples.py."""
    stated = json.loads((examples.FOLDER / "answers.json").read_text(encoding="utf-8"))
    said = evaluate.ask_all("tiny", [examples.message(example) for example in examples.EXAMPLES])
    assert [row["said"] for row in stated] == said
    right = [
        evaluate.judge(row.answer, text) >= 0.5 for row, text in zip(examples.EXAMPLES, said, strict=True)
    ]
    assert sum(right) >= 0.8 * len(right)
    with Image.open(examples.FOLDER / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 600
