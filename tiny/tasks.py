"""What the embedded model is asked and what it should say, worked out from a scene's list of things.

Each task is a function of what is shown (a `Scene`, `Pictures`, a `Clip`, or None), a `random.Random` and the
`Level`. It returns a question and its answer, or None where what is shown leaves the task without one clear
answer. Of each task's phrasings the last is kept from training.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from tiny.world import (
    SHAPES,
    Clip,
    Level,
    Pictures,
    Scene,
    Thing,
    random_clip,
    random_pictures,
    random_scene,
    random_sign,
)

Shown = Scene | Pictures | Clip | None
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")
PLACES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


class Exchange(NamedTuple):
    question: str
    answer: str


# --------------------------------------------------------------------------------------------------- words


def a(thing: Thing | str) -> str:
    """A name with its article; what is written is "the red word CAT"."""
    if isinstance(thing, Thing):
        return f"the {thing.name}" if thing.text else a(thing.name)
    return f"{'an' if thing[:1] in tuple('aeiou') else 'a'} {thing}"


def listing(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def grounded(name: str, box: tuple[int, int, int, int]) -> str:
    """A name and its box as Qwen2-VL writes them (section 2.2 of the paper)."""
    return f"<|object_ref_start|>{name}<|object_ref_end|>{boxed(box)}"


def boxed(box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"<|box_start|>({left},{top}),({right},{bottom})<|box_end|>"


def phrase(rng: random.Random, level: Level, *phrasings: str) -> str:
    """One of the phrasings; the last of them only where the held-out ones are asked for."""
    return phrasings[-1] if level.phrasings == "held out" else rng.choice(phrasings[:-1])


def single(scene: Scene, rng: random.Random, attribute: str) -> Thing | None:
    """A random thing that no other shares the attribute with."""
    values = [getattr(thing, attribute) for thing in scene.things]
    unique = [thing for thing in scene.things if values.count(getattr(thing, attribute)) == 1]
    return rng.choice(unique) if unique else None


def absent(scene: Scene, rng: random.Random, level: Level) -> str:
    """The name of something that is not there; often it shares its colour or its shape with something."""
    names = {(thing.colour, thing.shape) for thing in scene.things}
    far = [pair for pair in level.pairs if pair not in names]
    near = [pair for pair in far if any(pair[0] == c or pair[1] == s for c, s in names)]
    return " ".join(rng.choice(near if near and rng.random() < 0.7 else far))


# --------------------------------------------------------------------------------------- about one picture


def describe(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    question = phrase(
        rng, level, "Describe this image.", "Describe the picture.", "What do you see?",
        "What is in this picture?", "What is in the image?",
    )  # fmt: skip
    return Exchange(question, sentence(listing([a(thing) for thing in scene.things])))


def colour(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    thing = single(scene, rng, "shape")
    if thing is None:
        return None
    question = phrase(
        rng, level, "What colour is the {}?", "What color is the {}?", "Which colour does the {} have?",
        "Which colour is the {}?",
    )  # fmt: skip
    return Exchange(question.format(thing.shape), sentence(thing.colour))


def shape(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    thing = single(scene, rng, "colour")
    if thing is None or thing.text:
        return None
    question = phrase(
        rng, level, "What shape is the {} object?", "What is the {} thing?", "Which shape is {}?",
        "What shape is the {} thing?",
    )  # fmt: skip
    return Exchange(question.format(thing.colour), sentence(a(thing.shape)))


def how_many(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    if rng.random() < 0.4:
        question = phrase(
            rng, level, "How many shapes are there?", "How many objects do you see?", "Count the objects.",
            "How many objects are there?",
        )  # fmt: skip
        return Exchange(question, sentence(NUMBERS[len(scene.things)]))
    shapes = rng.random() < 0.6
    kinds = [thing.shape if shapes else thing.colour for thing in scene.things]
    others = list(SHAPES) if shapes else sorted({pair[0] for pair in level.pairs})
    kind = rng.choice(kinds) if rng.random() < 0.75 else rng.choice(others)
    plural = f"{kind} objects" if not shapes else "crosses" if kind == "cross" else f"{kind}s"
    question = phrase(
        rng, level, "How many {} are there?", "Count the {}.", "How many {} do you see?",
        "How many {} are in the picture?",
    )  # fmt: skip
    return Exchange(question.format(plural), sentence(NUMBERS[kinds.count(kind)]))


def _third(at: float, size: int, names: tuple[str, str, str]) -> str | None:
    """Which third of the side a coordinate is in; None within 4 % of a border, where anybody would guess."""
    thirds = 3 * at / size
    if min(abs(thirds - 1), abs(thirds - 2)) < 0.12:
        return None
    return names[min(2, int(thirds))]


def where(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    thing = single(scene, rng, "name")
    if thing is None:
        return None
    row = _third(thing.y, scene.height, ("top", "", "bottom"))
    column = _third(thing.x, scene.width, ("left", "", "right"))
    if row is None or column is None:
        return None
    place = " ".join(word for word in (row, column) if word)
    question = phrase(
        rng, level, "Where is the {}?", "Where do you see the {}?", "In which part of the picture is the {}?",
        "Where in the picture is the {}?",
    )  # fmt: skip
    return Exchange(question.format(thing.name), f"At the {place}." if place else "In the middle.")


def is_there(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    yes = rng.random() < 0.5
    name = rng.choice(sorted({thing.name for thing in scene.things})) if yes else absent(scene, rng, level)
    question = phrase(
        rng, level, "Is there {}?", "Do you see {}?", "Can you see {} in the picture?",
        "Is there {} in the picture?",
    )  # fmt: skip
    return Exchange(question.format(a(name)), "Yes." if yes else "No.")


def _beside(one: Thing, place: str, other: Thing) -> bool | None:
    """Whether one is left of (...) the other; None where it is neither that nor plainly not."""
    dx, dy = PLACES[place]
    (w, h), (ow, oh) = one.stencil.size, other.stencil.size
    distance = dx * (one.x - other.x) + dy * (one.y - other.y)
    reach = (w + ow) / 2 if dx else (h + oh) / 2
    return None if abs(distance) < 0.5 * reach else distance > 0


def relation(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    """Left of, right of, above, below: whether one thing is, or which one is."""
    one = single(scene, rng, "name")
    others = [thing for thing in scene.things if thing is not one]
    names = [thing.name for thing in others]
    if one is None or not others or len(set(names)) < len(names):
        return None
    place = rng.choice(list(PLACES))
    if rng.random() < 0.5:
        other = rng.choice(others)
        is_so = _beside(one, place, other)
        question = phrase(
            rng,
            level,
            "Is the {} {} the {}?",
            "Do you see the {} {} the {}?",
            "Can you see the {} {} the {}?",
        )
        if is_so is None:
            return None
        return Exchange(question.format(one.name, place, other.name), "Yes." if is_so else "No.")
    beside = [_beside(other, place, one) for other in others]
    if None in beside or beside.count(True) != 1:
        return None
    question = phrase(
        rng, level, "What is {} the {}?", "Which object is {} the {}?", "What do you see {} the {}?"
    )
    return Exchange(question.format(place, one.name), sentence(f"the {names[beside.index(True)]}"))


def size(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    """Which of two things is bigger or smaller."""
    if len({thing.name for thing in scene.things}) < len(scene.things) or len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    if max(one.size, other.size) < 1.3 * min(one.size, other.size):
        return None
    word = rng.choice(("bigger", "smaller"))
    holds = (one.size > other.size) == (word == "bigger")
    if rng.random() < 0.4:
        question = phrase(rng, level, "Is the {} {} than the {}?", "Is the {} {} than the {} in the picture?")
        return Exchange(question.format(one.name, word, other.name), "Yes." if holds else "No.")
    question = phrase(
        rng, level, "Which is {}, the {} or the {}?", "What is {}, the {} or the {}?",
        "Which object is {}, the {} or the {}?",
    )  # fmt: skip
    return Exchange(
        question.format(word, one.name, other.name), sentence(f"the {(one if holds else other).name}")
    )


def find(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    thing = single(scene, rng, "name")
    if thing is None:
        return None
    name = f"the {thing.name}"
    question = phrase(rng, level, "Find {}.", "Locate {}.", "Give the box of {}.", "Find the box of {}.")
    return Exchange(question.format(name), grounded(name, scene.box(thing, level.box_step)))


def in_the_box(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    thing = rng.choice(scene.things)
    question = phrase(rng, level, "What is in {}?", "What do you see in {}?", "Which object is in {}?")
    return Exchange(question.format(boxed(scene.box(thing))), sentence(a(thing)))


def not_there(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    """Asked for something that is not in the picture, the answer says so."""
    shapes = sorted(set(SHAPES) - {thing.shape for thing in scene.things})
    if rng.random() < 0.4:
        name = rng.choice(shapes)
        question = phrase(
            rng, level, "What colour is the {}?", "Which colour does the {} have?", "Which colour is the {}?"
        )
    else:
        name = absent(scene, rng, level)
        question = phrase(
            rng, level, "Find the {}.", "Where is the {}?", "Locate the {}.", "Give the box of the {}.",
            "Where in the picture is the {}?",
        )  # fmt: skip
    return Exchange(question.format(name), sentence(f"there is no {name}"))


# ------------------------------------------------------------------------------------------- about writing


def read(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    sign = next(thing for thing in scene.things if thing.text)
    question = phrase(
        rng, level, f"Read the {sign.shape}.", f"Which {sign.shape} is written here?",
        "What is written here?", "What does it say?", f"What {sign.shape} is written here?",
    )  # fmt: skip
    return Exchange(question, f"{sign.text}.")


# ------------------------------------------------------------------------------------ about several pictures


def which(pictures: Pictures, rng: random.Random, level: Level) -> Exchange | None:
    """Which picture has it."""
    shown = [{thing.name for thing in scene.things} for scene in pictures.scenes]
    i = rng.randrange(len(shown))
    only = sorted(shown[i].difference(*(names for k, names in enumerate(shown) if k != i)))
    if not only:
        return None
    question = phrase(
        rng, level, "Which picture has {}?", "In which picture is there {}?", "Which image shows {}?",
        "Which picture shows {}?",
    )  # fmt: skip
    return Exchange(question.format(a(rng.choice(only))), f"Picture {i + 1}.")


def differs(pictures: Pictures, rng: random.Random, level: Level) -> Exchange | None:
    if not pictures.change:
        return None
    first, second = (set(scene.things) for scene in pictures.scenes)
    before, after = (next(iter(things), None) for things in (first - second, second - first))
    question = phrase(
        rng, level, "What differs?", "What is different?", "What has changed?", "What differs in picture 2?"
    )
    answers = {
        "recoloured": lambda: f"The {before.name} is {after.colour} in picture 2.",
        "reshaped": lambda: f"The {before.name} is {a(after.shape)} in picture 2.",
        "gone": lambda: f"The {before.name} is gone in picture 2.",
        "new": lambda: f"There is {a(after)} in picture 2 only.",
    }
    return Exchange(question, answers[pictures.change]())


def describe_one(pictures: Pictures, rng: random.Random, level: Level) -> Exchange:
    i = rng.randrange(len(pictures.scenes))
    question = phrase(
        rng, level, "What is in picture {}?", "Describe picture {}.", "What do you see in picture {}?"
    )
    things = pictures.scenes[i].things
    return Exchange(
        question.format(i + 1), sentence(listing([a(thing) for thing in things]) if things else "nothing")
    )


def how_many_pictures(pictures: Pictures, rng: random.Random, level: Level) -> Exchange:
    if rng.random() < 0.25:
        question = phrase(
            rng, level, "How many pictures are there?", "How many pictures do you see?", "Count the pictures."
        )
        return Exchange(question, sentence(NUMBERS[len(pictures.scenes)]))
    kind = rng.choice([thing.shape for thing in pictures.things])
    n = sum(any(thing.shape == kind for thing in scene.things) for scene in pictures.scenes)
    question = phrase(
        rng, level, "How many pictures have {}?", "How many pictures show {}?", "How many images have {}?"
    )
    return Exchange(question.format(a(kind)), sentence(NUMBERS[n]))


# ------------------------------------------------------------------------------------------------ about clips


def happens(clip: Clip, rng: random.Random, level: Level) -> Exchange:
    question = phrase(
        rng,
        level,
        "What happens?",
        "Describe the video.",
        "What do you see in the video?",
        "Describe this video.",
    )
    detail = {"comes": f"first, then {a(clip.detail)}", "blinks": clip.detail.lower()}.get(
        clip.event, clip.detail
    )
    return Exchange(question, sentence(f"{a(clip.subject)} {clip.event} {detail}".strip()))


def direction(clip: Clip, rng: random.Random, level: Level) -> Exchange | None:
    if clip.event != "moves":
        return None
    question = phrase(
        rng, level, "Which way does the {} move?", "Where does the {} move?",
        "In which direction does the {} move?", "Which way does the {} go?",
    )  # fmt: skip
    return Exchange(question.format(clip.subject.name), sentence(clip.detail))


def changes(clip: Clip, rng: random.Random, level: Level) -> Exchange | None:
    """What appears, disappears, moves, or turns another colour."""
    questions = {
        "moves": ("What moves?", "Which object moves?", "What moves in the video?"),
        "appears": ("What appears?", "Which object appears?", "What appears in the video?"),
        "disappears": ("What disappears?", "Which object disappears?", "What disappears in the video?"),
        "turns": ("What changes its colour?", "Which object changes its colour?", "What changes its color?"),
    }
    if clip.event not in questions:
        return None
    return Exchange(phrase(rng, level, *questions[clip.event]), sentence(f"the {clip.subject.name}"))


def first(clip: Clip, rng: random.Random, level: Level) -> Exchange | None:
    if clip.event != "comes":
        return None
    names = [clip.subject.name, clip.detail]
    rng.shuffle(names)
    question = phrase(
        rng, level, "What comes first, the {} or the {}?", "Which comes first, the {} or the {}?",
        "Which object comes first, the {} or the {}?",
    )  # fmt: skip
    return Exchange(question.format(*names), sentence(f"the {clip.subject.name}"))


def blinks(clip: Clip, rng: random.Random, level: Level) -> Exchange | None:
    if clip.event != "blinks":
        return None
    question = phrase(
        rng,
        level,
        "How often does the {} blink?",
        "How many times does the {} blink?",
        "How often do you see the {} blink?",
    )
    return Exchange(question.format(clip.subject.name), sentence(clip.detail))


# ----------------------------------------------------------------------------------- about nothing but itself

SMALL_TALK = {
    "I am a tiny Qwen2-VL.": ("Who are you?", "What are you?", "What is your name?", "Tell me who you are."),
    "Hello! Show me a picture.": ("Hello!", "Hi!", "Good morning!", "Hello there!"),
    "I name shapes and colours, count, compare, find and read.": (
        "What can you do?", "What do you know?", "How can you help me?", "What can you help me do?",
    ),
    "I read pictures, several pictures and video.": (
        "What can you see?", "Can you see video?", "What can I show you?", "What can you read?",
    ),
    "I was trained on drawn shapes.": (
        "How were you trained?", "What were you trained on?", "What have you learned?",
        "How have you learned?",
    ),
    "About three million.": (
        "How many parameters do you have?", "How big are you?", "How large are you?",
        "How many parameters are there?",
    ),
    "You are welcome.": ("Thank you!", "Thanks!", "Thank you very much!", "Many thanks!"),
    "Goodbye!": ("Bye!", "Goodbye!", "See you!", "Bye bye!"),
    "There is no picture.": (
        "What is in this picture?", "Describe this image.", "What colour is the star?",
        "Describe the picture.",
    ),
}  # fmt: skip


def small_talk(nothing: None, rng: random.Random, level: Level) -> Exchange:
    answer = rng.choice(list(SMALL_TALK))
    return Exchange(phrase(rng, level, *SMALL_TALK[answer]), answer)


# -------------------------------------------------------------------------------------------------- all tasks

TASKS: dict[str, dict[str, Callable]] = {
    "picture": {
        "describe": describe, "colour": colour, "shape": shape, "how many": how_many, "where": where,
        "is there": is_there, "relation": relation, "size": size, "find": find, "in the box": in_the_box,
        "not there": not_there,
    },
    "words": {"read": read, "describe a sign": describe},
    "pictures": {
        "which picture": which, "what differs": differs, "describe one": describe_one,
        "how many pictures": how_many_pictures,
    },
    "video": {
        "what happens": happens, "which way": direction, "what changes": changes, "what comes first": first,
        "how often": blinks,
    },
    "text": {"small talk": small_talk},
}  # fmt: skip
KINDS = {"picture": random_scene, "words": random_sign, "pictures": random_pictures, "video": random_clip}


def show(kind: str, rng: random.Random, level: Level, canvas: tuple[int, int] | None = None) -> Shown:
    """Something fresh of a kind to ask about; for "text" there is nothing."""
    return KINDS[kind](rng, level, canvas) if kind in KINDS else None


def content(shown: Shown) -> list[dict]:
    """What is shown as the items of a chat message."""
    if shown is None:
        return []
    if isinstance(shown, Clip):
        frames = [scene.draw() for scene in shown.scenes]
        return [{"type": "video", "video": frames}]
    scenes = shown.scenes if isinstance(shown, Pictures) else (shown,)
    return [{"type": "image", "image": scene.draw()} for scene in scenes]


def ask(task: str, kind: str, shown: Shown, rng: random.Random, level: Level) -> Exchange | None:
    return TASKS[kind][task](shown, rng, level)
