"""What is drawn by hand, for training and, by other code, for measuring: paint lies where the
answers say, and no phrasing that is kept back slips in.
"""

import ast
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

from load import EMBEDDED
from qwen2vl import Qwen2VLForConditionalGeneration
from tiny import sketches, tasks, train
from tiny.drawing import FIGURES, FILLS, Camera, Hand, figure_mask, photograph
from tiny.tasks import TASKS, ask, show
from tiny.world import COLOURS, HELD_OUT, SHAPES, Background, Scene, Thing, random_scene

PLAIN = Hand("solid", 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, seed=1)
STILL = Camera((0.0,) * 8, (0, 0, 0), 0.0, 1.0, 1.0, (1, 1, 1), 0.0, 0.0, 0, False, seed=1)
LEVELS = {kind: part.level for kind, part in train.DRAWN_CURRICULUM[-1].mixture.items()}


# ----------------------------------------------------------------------------------- paint


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", FIGURES)
def test_each_shape_is_painted_in_each_way(shape, fill):
    """About as large as asked for; hatching, scribbling and crayons leave ground inside."""
    solid = np.asarray(figure_mask(shape, 80, PLAIN), dtype=float)
    mask = figure_mask(shape, 80, replace(PLAIN, fill=fill))
    left, top, right, bottom = mask.getbbox()
    assert 60 <= max(right - left, bottom - top) <= 104
    if fill in ("hatched", "scribbled", "crayon"):
        inside = np.minimum(np.asarray(mask, dtype=float), solid).sum()
        assert 0.2 * solid.sum() < inside < 0.97 * solid.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_figure_without_a_hand_is_the_shape_of_the_plain_world(shape):
    """The two descriptions of one shape cover the same pixels, or almost."""
    drawn = Thing("red", shape, 0, 0, 90, (0, 0, 0), hand=PLAIN).stencil
    plain = Thing("red", shape, 0, 0, 90, (0, 0, 0)).stencil.resize(drawn.size)
    both = np.minimum(drawn, plain).sum()
    either = np.maximum(drawn, plain).sum()
    # How deep a moon is, and how wide a cross's arms, is drawn at random.
    assert both / either > (0.6 if shape in ("moon", "cross", "arrow") else 0.8)


def test_what_a_drawing_changes_lies_in_the_box_of_its_answer():
    """Leave out one thing: the pixels that change are in its box, and reach its edges."""
    rng = random.Random("drawn boxes")
    level = replace(LEVELS["image"], drawn=1.0, untidy=0.0)
    with_camera = 0
    for _ in range(150):
        scene = random_scene(rng, level)
        index = rng.randrange(len(scene.things))
        # Noise and compression change every pixel, and shadows lie beside a thing.
        if scene.camera:
            scene = replace(scene, camera=replace(STILL, corners=scene.camera.corners))
            with_camera += 1
        bare = [replace(thing, hand=replace(thing.hand, shadow=0.0)) for thing in scene.things]
        scene = replace(scene, things=tuple(bare))
        others = tuple(bare[:index] + bare[index + 1 :])
        changed = ImageChops.difference(scene.draw(), replace(scene, things=others).draw())
        box = changed.convert("L").point([0] * 13 + [255] * 243).getbbox()
        stated = scene.seen_box(bare[index])
        assert box is not None
        tolerance = 4 + 0.12 * (stated[2] - stated[0])  # a crayon leaves edges out
        assert np.abs(np.subtract(box, stated)).max() <= tolerance
    assert with_camera > 40


def test_a_photographed_point_is_where_the_camera_says():
    scene = Scene(
        120,
        90,
        Background((255, 255, 255)),
        (Thing("red", "circle", 80, 30, 20, COLOURS["red"]),),
        replace(STILL, corners=(0.1, 0.05, 0.02, 0.0, 0.08, 0.03, 0.0, 0.1)),
    )
    red = np.asarray(scene.draw()).astype(int)
    rows, columns = np.nonzero((red[..., 0] > 180) & (red[..., 1] < 90))
    x, y = scene.seen_centre(scene.things[0])
    assert abs(columns.mean() - x) < 1 and abs(rows.mean() - y) < 1


def test_a_camera_without_faults_changes_nothing():
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    assert photograph(image.copy(), STILL).tobytes() == image.tobytes()


def test_no_drawing_shows_a_pair_that_is_kept_back():
    rng = random.Random("kept back")
    for _ in range(300):
        for kind in ("image", "words", "images", "video"):
            things = show(kind, rng, LEVELS[kind]).things
            assert not {(thing.colour, thing.shape) for thing in things} & HELD_OUT


# ------------------------------------------------------------------------------- questions


def test_people_never_ask_in_the_words_that_are_kept_back(monkeypatch):
    """Every phrasing that training chooses differs from the last of its list."""
    kept_back = []
    chosen = []
    original = tasks.choose_phrasing

    def noted(rng, level, phrasings):
        question = original(rng, level, phrasings)
        kept_back.append(tasks.letters_of(phrasings[-1]))
        chosen.append(tasks.letters_of(question))
        return question

    monkeypatch.setattr(tasks, "choose_phrasing", noted)
    rng = random.Random("people")
    for kind, names in TASKS.items():
        for task in names:
            for _ in range(150):
                ask(task, kind, show(kind, rng, LEVELS[kind]), rng, LEVELS[kind])
    assert len(chosen) > 2000
    assert len(set(chosen)) > 300
    assert all(one != other for one, other in zip(chosen, kept_back, strict=True))


def test_a_question_keeps_the_braces_of_its_names():
    rng = random.Random("braces")
    for question in (*tasks.SHORT, "Is the {} {} the {}?", "Do you see {}?"):
        for _ in range(200):
            loose = tasks.as_people_ask(rng, question)
            assert loose.count("{}") == question.count("{}"), loose


# -------------------------------------------------------------------------------- sketches


def test_sketches_are_drawn_by_code_that_training_does_not_share():
    """Neither imports the other's drawing."""
    source = Path(sketches.__file__).read_text(encoding="utf-8")
    imported = {
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    of_training = {name for name in imported if name.startswith("tiny.")}
    drawing = {name for name in of_training if name.split(".")[1] in ("world", "drawing", "tasks")}
    assert drawing == {"tiny.world.WORDS"}
    for module in ("world", "drawing", "tasks", "train"):
        text = (Path(sketches.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert "sketches" not in text


@pytest.mark.parametrize("way", sketches.WAYS)
def test_each_way_of_sketching_shows_what_its_answer_names(way):
    """Paint of the right colour covers a part of the box around each object."""
    for count in (1, 3):
        sketch = sketches.random_sketch(way, count, "test")
        assert [thing.x for thing in sketch.objects] == sorted(thing.x for thing in sketch.objects)
        pixels = np.asarray(sketches.draw_sketch(sketch)).astype(float)
        assert pixels.shape == (sketch.height, sketch.width, 3)
        bare = replace(sketch, objects=())
        ground = np.asarray(sketches.draw_sketch(bare)).astype(float)
        assert np.abs(pixels - ground).max() > 25
        for thing in sketch.objects:
            assert thing.name in sketches.description(sketch).lower()


def test_a_filled_sketch_has_its_shade_in_the_middle():
    for i in range(30):
        sketch = sketches.random_sketch("filled", 1, str(i))
        (thing,) = sketch.objects
        if thing.shape in ("ring", "moon"):
            continue
        pixel = sketches.draw_sketch(sketch).getpixel(
            (round(thing.x), round(sketch.height - thing.y))
        )
        assert np.abs(np.subtract(pixel, sketches.to_rgb(thing.shade))).max() <= 3


def test_writing_stands_alone_on_its_canvas():
    for way in sketches.WAYS_OF_WRITING:
        sketch = sketches.any_sketch(way, 1, "test")
        (question,) = sketches.ask_about(sketch)
        assert question.answer == f"{sketch.text}."
        pixels = np.asarray(sketches.draw_sketch(sketch)).astype(float)
        (blind,) = sketches.blinded([question])
        ground = np.asarray(sketches.draw_sketch(blind.sketch)).astype(float)
        changed = np.abs(pixels - ground).max(axis=2) > 25
        rows, columns = np.nonzero(changed)
        # All of it lies on the canvas, and not at its very edge.
        assert rows.min() > 0 and rows.max() < sketch.height - 1
        assert columns.min() > 0 and columns.max() < sketch.width - 1


def test_training_and_sketches_know_the_same_names():
    assert set(sketches.SHAPES) == set(FIGURES)
    assert set(sketches.SHADES) == set(COLOURS)


# -------------------------------------------------------------------------------- training


def test_attention_in_float32_is_attention_with_its_gradients():
    torch.manual_seed(0)
    q = torch.randn(2, 4, 9, 8, requires_grad=True)
    k = torch.randn(2, 2, 9, 8, requires_grad=True)
    v = torch.randn(2, 2, 9, 8, requires_grad=True)

    def attend(inputs):
        out = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
        out.float().square().sum().backward()
        gradients = [x.grad.clone() for x in (q, k, v)]
        for x in (q, k, v):
            x.grad = None
        return out.detach(), gradients

    expected, expected_gradients = attend((q, k, v))
    with train.AttentionInFloat32(), torch.autocast("cpu", torch.bfloat16):
        out, gradients = attend((q, k, v))
    assert torch.equal(out, expected)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, reference)


def test_the_second_part_goes_on_from_the_weights_that_it_is_given(tmp_path):
    settings = train.Settings(
        out=tmp_path / "drawn", steps=2, part="drawn", start=EMBEDDED, stop_at=0.0
    )
    train.train(settings)
    worker = train.Worker(0, settings)
    stored = load_file(EMBEDDED / "model.safetensors")
    own = dict(worker.model.named_parameters())
    assert torch.equal(
        own["model.embed_tokens.weight"].detach(), stored["model.embed_tokens.weight"].float()
    )
    assert train.stage_at(0.0, worker.settings) is train.DRAWN_CURRICULUM[0]
    assert all(p.requires_grad for p in worker.model.parameters())


def test_the_mean_is_stored_in_bfloat16_and_computed_in_float32(tmp_path):
    weights = load_file(EMBEDDED / "model.safetensors")
    other = tmp_path / "other"
    shutil.copytree(EMBEDDED, other)
    three_times = {name: 3 * tensor.float() for name, tensor in weights.items()}
    save_file(three_times, other / "model.safetensors")
    train.store_mean([EMBEDDED, other], tmp_path / "stored")
    stored = load_file(tmp_path / "stored" / "model.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(stored[name], (2 * tensor.float()).bfloat16()), name
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "stored")
    assert model.dtype == torch.float32
