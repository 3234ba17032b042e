"""What the embedded model is asked and what it should say, worked out from a scene's list
of things.

Each task is a function of what is shown (a `Scene`, `Images`, a `Video`, or None), a
`random.Random` and the `Level`. It returns a question and its answer, or None where what is
shown leaves the task without one clear answer. Of each task's phrasings the last is kept
from training.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tiny.drawing import FIGURES
from tiny.world import (
    Images,
    Level,
    Scene,
    Thing,
    Video,
    random_images,
    random_scene,
    random_sign,
    random_video,
)

Shown = Scene | Images | Video | None
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


class Exchange(NamedTuple):
    question: str
    answer: str


# ------------------------------------------------------------------------------------ words


def with_article(name: str) -> str:
    """ "a red circle", "an orange star"."""
    article = "an" if name.startswith(tuple("aeiou")) else "a"
    return f"{article} {name}"


def thing_with_article(thing: Thing) -> str:
    """ "a red circle"; of what is written, "the red word CAT"."""
    return f"the {thing.name}" if thing.text else with_article(thing.name)


def join_names(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def box_text(box: tuple[int, int, int, int]) -> str:
    """A box as Qwen2-VL writes it (section 2.2 of the paper)."""
    left, top, right, bottom = box
    return f"<|box_start|>({left},{top}),({right},{bottom})<|box_end|>"


def box_with_name(name: str, box: tuple[int, int, int, int]) -> str:
    """A name and its box as Qwen2-VL writes them."""
    return f"<|object_ref_start|>{name}<|object_ref_end|>{box_text(box)}"


def choose_phrasing(rng: random.Random, level: Level, phrasings: Sequence[str]) -> str:
    """One of the phrasings; the last of them only where the held-out ones are asked for."""
    if level.phrasings == "held out":
        return phrasings[-1]
    chosen = rng.choice(phrasings[:-1])
    if level.asking == "people":
        loose = as_people_ask(rng, chosen)
        if letters_of(loose) != letters_of(phrasings[-1]):
            return loose
    return chosen


def letters_of(question: str) -> str:
    return "".join(character for character in question.lower() if character.isalpha())


# Words that people take for one another, either way.
SYNONYMS = (
    ("picture", "image", "drawing", "photo"),
    ("object", "thing", "shape"),
    ("do you see", "can you see", "is there", "is shown"),
    ("which", "what"),
    ("colour", "color"),
    ("find", "locate", "show", "point to"),
)
SHORT = {
    "Describe this image.": (
        "what's this",
        "what is this?",
        "what",
        "look",
        "describe",
        "and this?",
    ),
    "Describe the picture.": ("whats this", "what do you see here", "tell me what you see"),
    "What colour is the {}?": ("colour of the {}?", "{} colour?", "the {}?", "color {}"),
    "What shape is the {} object?": ("shape of the {} thing?", "{} shape?"),
    "How many shapes are there?": ("how many?", "how many", "count", "how much", "count them"),
    "How many {} are there?": ("how many {}", "{}?", "number of {}", "and {}?"),
    "Where is the {}?": ("where's the {}", "where {}", "the {} is where?", "wheres the {}"),
    "Is there {}?": ("{}?", "any {}?", "is {} there?", "there is {}, right?", "is {} in it"),
    "Is the {} {} the {}?": ("the {} is {} the {}?",),
    "What is {} the {}?": ("{} the {}?", "what's {} the {}"),
    "Which is {}, the {} or the {}?": ("{}: {} or {}?", "what's {}: the {} or the {}"),
    "Find {}.": ("box of {}", "{} box", "draw a box around {}", "where exactly is {}?"),
    "What is in {}?": ("what's in {}", "{}?", "what is here: {}"),
    "Read the word.": ("read", "read it", "read this", "what word", "the word?"),
    "Read the number.": ("read", "read it", "what number", "the number?"),
    "What does it say?": ("what does this say", "say it", "whats written", "text?"),
    "Which picture has {}?": ("which has {}?", "which one has {}", "where is {}", "{}?"),
    "What differs?": (
        "what's different?",
        "the difference?",
        "compare",
        "whats new",
        "what changed?",
        "what is new in picture 2",
        "spot the difference",
    ),
    "What is in picture {}?": ("picture {}?", "and picture {}", "what's in number {}"),
    "How many pictures are there?": ("how many images", "how many pictures", "how many photos?"),
    "What happens?": ("what's happening?", "what happens here", "describe", "and now?", "what"),
    "Which way does the {} move?": (
        "where does the {} go",
        "the {} moves where?",
        "direction of the {}?",
    ),
    "What moves?": ("what's moving?", "who moves", "which one moves?", "which thing is moving?"),
    "What comes first, the {} or the {}?": ("first: the {} or the {}?", "{} or {} first?"),
    "How often does the {} blink?": ("how often blinks the {}", "blinks of the {}?"),
}


def as_people_ask(rng: random.Random, question: str) -> str:
    """The same question as somebody in a hurry may type it."""
    if question in SHORT and rng.random() < 0.35:
        return rng.choice(SHORT[question])
    for words in SYNONYMS:
        for word in words:
            if word in question and rng.random() < 0.3:
                question = question.replace(word, rng.choice(words), 1)
                break
    if question[-1:] == "?" and " in " not in question and rng.random() < 0.25:
        place = rng.choice(("picture", "image", "drawing", "photo"))
        question = f"{question[:-1]} in {rng.choice(('the', 'this', 'my'))} {place}?"
    if rng.random() < 0.12:
        question = f"{rng.choice(('Please', 'Tell me', 'Now', 'Ok', 'And', 'Hey'))}: {question}"
    if rng.random() < 0.45:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.35:
        question = question.rstrip("?.")
    if rng.random() < 0.12:
        question = with_typo(rng, question)
    return question


def with_typo(rng: random.Random, question: str) -> str:
    """Two letters change places, or one is missing; braces stay."""
    spots = [i for i in range(len(question) - 1) if question[i : i + 2].isalpha()]
    if not spots:
        return question
    i = rng.choice(spots)
    swapped = question[i + 1] + question[i] if rng.random() < 0.5 else question[i]
    return question[:i] + swapped + question[i + 2 :]


def shapes_of(level: Level) -> list[str]:
    """The shapes that a level shows, in the order of FIGURES."""
    shown = {shape for _, shape in level.pairs}
    return [shape for shape in FIGURES if shape in shown]


def unique_thing(scene: Scene, rng: random.Random, attribute: str) -> Thing | None:
    """A random thing that no other shares the attribute with."""
    values = [getattr(thing, attribute) for thing in scene.things]
    unique = [thing for thing in scene.things if values.count(getattr(thing, attribute)) == 1]
    return rng.choice(unique) if unique else None


def absent_name(scene: Scene, rng: random.Random, level: Level) -> str:
    """The name of something that is not there; often one part of it is."""
    shown = {(thing.colour, thing.shape) for thing in scene.things}
    colours = {colour for colour, _ in shown}
    shapes = {shape for _, shape in shown}
    absent = [pair for pair in level.pairs if pair not in shown]
    similar = [pair for pair in absent if pair[0] in colours or pair[1] in shapes]
    if similar and rng.random() < 0.7:
        return " ".join(rng.choice(similar))
    return " ".join(rng.choice(absent))


# -------------------------------------------------------------------------- about one image


def ask_description(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    phrasings = [
        "Describe this image.",
        "Describe the picture.",
        "What do you see?",
        "What is in this picture?",
        "What is in the image?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    names = [thing_with_article(thing) for thing in scene.things]
    return Exchange(question, sentence(join_names(names)))


def ask_colour(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    thing = unique_thing(scene, rng, "shape")
    if thing is None:
        return None
    phrasings = [
        "What colour is the {}?",
        "What color is the {}?",
        "Which colour does the {} have?",
        "Which colour is the {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(thing.shape), sentence(thing.colour))


def ask_shape(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    thing = unique_thing(scene, rng, "colour")
    if thing is None or thing.text:
        return None
    phrasings = [
        "What shape is the {} object?",
        "What is the {} thing?",
        "Which shape is {}?",
        "What shape is the {} thing?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(thing.colour), sentence(with_article(thing.shape)))


def ask_count(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    """How many things there are, of one shape, of one colour or in all."""
    if rng.random() < 0.4:
        phrasings = [
            "How many shapes are there?",
            "How many objects do you see?",
            "Count the objects.",
            "How many objects are there?",
        ]
        question = choose_phrasing(rng, level, phrasings)
        return Exchange(question, sentence(NUMBERS[len(scene.things)]))
    by_shape = rng.random() < 0.6
    if by_shape:
        shown = [thing.shape for thing in scene.things]
        known = shapes_of(level)
    else:
        shown = [thing.colour for thing in scene.things]
        known = sorted({colour for colour, _ in level.pairs})
    # One question in four is about any shape or colour, which may not be there.
    counted = rng.choice(shown) if rng.random() < 0.75 else rng.choice(known)
    phrasings = [
        "How many {} are there?",
        "Count the {}.",
        "How many {} do you see?",
        "How many {} are in the picture?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    names = _plural(counted) if by_shape else f"{counted} objects"
    return Exchange(question.format(names), sentence(NUMBERS[shown.count(counted)]))


def _plural(shape: str) -> str:
    return {"cross": "crosses", "fish": "fish"}.get(shape, f"{shape}s")


def _third(position: float, side: int, names: tuple[str, str, str]) -> str | None:
    """Which third of a side; None within 4 % of a border, where anybody would guess."""
    thirds = 3 * position / side
    if min(abs(thirds - 1), abs(thirds - 2)) < 0.12:
        return None
    return names[min(2, int(thirds))]


def ask_position(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    """In which of nine parts of the image a thing is."""
    thing = unique_thing(scene, rng, "name")
    if thing is None:
        return None
    x, y = scene.seen_centre(thing)
    row = _third(y, scene.height, ("top", "", "bottom"))
    column = _third(x, scene.width, ("left", "", "right"))
    if row is None or column is None:
        return None
    part = f"{row} {column}".strip()
    phrasings = [
        "Where is the {}?",
        "Where do you see the {}?",
        "In which part of the picture is the {}?",
        "Where in the picture is the {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(thing.name), f"At the {part}." if part else "In the middle.")


def ask_presence(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    """Whether something is there; half of the time it is."""
    is_there = rng.random() < 0.5
    if is_there:
        name = rng.choice(sorted({thing.name for thing in scene.things}))
    else:
        name = absent_name(scene, rng, level)
    phrasings = [
        "Is there {}?",
        "Do you see {}?",
        "Can you see {} in the picture?",
        "Is there {} in the picture?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(with_article(name)), "Yes." if is_there else "No.")


def _holds(thing: Thing, relation: str, other: Thing) -> bool | None:
    """Whether a thing is left of (...) another; None where that is not plain."""
    dx, dy = RELATIONS[relation]
    width, height = thing.stencil.size
    other_width, other_height = other.stencil.size
    distance = dx * (thing.x - other.x) + dy * (thing.y - other.y)
    reach = (width + other_width) / 2 if dx else (height + other_height) / 2
    if abs(distance) < 0.5 * reach:
        return None
    return distance > 0


def ask_relation(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    """Left of, right of, above, below: whether one thing is, or which one is."""
    thing = unique_thing(scene, rng, "name")
    others = [other for other in scene.things if other is not thing]
    names = [other.name for other in others]
    if thing is None or not others or len(set(names)) < len(names):
        return None
    relation = rng.choice(list(RELATIONS))
    if rng.random() < 0.5:
        return _whether_relation_holds(thing, relation, rng.choice(others), rng, level)
    # Which of the others it is: only asked where it is plainly one of them.
    holds = [_holds(other, relation, thing) for other in others]
    if None in holds or holds.count(True) != 1:
        return None
    phrasings = ["What is {} the {}?", "Which object is {} the {}?", "What do you see {} the {}?"]
    question = choose_phrasing(rng, level, phrasings)
    answer = sentence(f"the {names[holds.index(True)]}")
    return Exchange(question.format(relation, thing.name), answer)


def _whether_relation_holds(
    thing: Thing, relation: str, other: Thing, rng: random.Random, level: Level
) -> Exchange | None:
    holds = _holds(thing, relation, other)
    phrasings = [
        "Is the {} {} the {}?",
        "Do you see the {} {} the {}?",
        "Can you see the {} {} the {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    if holds is None:
        return None
    return Exchange(question.format(thing.name, relation, other.name), "Yes." if holds else "No.")


def ask_size(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    """Which of two things is bigger or smaller, or whether one is."""
    names = {thing.name for thing in scene.things}
    if len(names) < len(scene.things) or len(scene.things) < 2:
        return None
    thing, other = rng.sample(scene.things, 2)
    if max(thing.size, other.size) < 1.3 * min(thing.size, other.size):
        return None
    word = rng.choice(("bigger", "smaller"))
    holds = (thing.size > other.size) == (word == "bigger")
    if rng.random() < 0.4:
        phrasings = ["Is the {} {} than the {}?", "Is the {} {} than the {} in the picture?"]
        question = choose_phrasing(rng, level, phrasings)
        return Exchange(question.format(thing.name, word, other.name), "Yes." if holds else "No.")
    phrasings = [
        "Which is {}, the {} or the {}?",
        "What is {}, the {} or the {}?",
        "Which object is {}, the {} or the {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    answer = thing.name if holds else other.name
    return Exchange(question.format(word, thing.name, other.name), sentence(f"the {answer}"))


def ask_box(scene: Scene, rng: random.Random, level: Level) -> Exchange | None:
    """The box of a thing."""
    thing = unique_thing(scene, rng, "name")
    if thing is None:
        return None
    name = f"the {thing.name}"
    phrasings = ["Find {}.", "Locate {}.", "Give the box of {}.", "Find the box of {}."]
    question = choose_phrasing(rng, level, phrasings)
    box = scene.normalised_box(thing, level.box_step)
    return Exchange(question.format(name), box_with_name(name, box))


def ask_inside_box(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    """What a box holds."""
    thing = rng.choice(scene.things)
    phrasings = ["What is in {}?", "What do you see in {}?", "Which object is in {}?"]
    question = choose_phrasing(rng, level, phrasings)
    box = box_text(scene.normalised_box(thing))
    return Exchange(question.format(box), sentence(thing_with_article(thing)))


def ask_absent(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    """A question about something that is not in the image: the answer says so."""
    absent_shapes = sorted(set(shapes_of(level)) - {thing.shape for thing in scene.things})
    if rng.random() < 0.4:
        name = rng.choice(absent_shapes)
        phrasings = [
            "What colour is the {}?",
            "Which colour does the {} have?",
            "Which colour is the {}?",
        ]
    else:
        name = absent_name(scene, rng, level)
        phrasings = [
            "Find the {}.",
            "Where is the {}?",
            "Locate the {}.",
            "Give the box of the {}.",
            "Where in the picture is the {}?",
        ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(name), sentence(f"there is no {name}"))


# ---------------------------------------------------------------------------- about writing


def ask_reading(scene: Scene, rng: random.Random, level: Level) -> Exchange:
    sign = next(thing for thing in scene.things if thing.text)
    phrasings = [
        f"Read the {sign.shape}.",
        f"Which {sign.shape} is written here?",
        "What is written here?",
        "What does it say?",
        f"What {sign.shape} is written here?",
    ]
    return Exchange(choose_phrasing(rng, level, phrasings), f"{sign.text}.")


# --------------------------------------------------------------------- about several images


def ask_which_image(images: Images, rng: random.Random, level: Level) -> Exchange | None:
    """Which image has something that no other has."""
    names = [{thing.name for thing in scene.things} for scene in images.scenes]
    chosen = rng.randrange(len(names))
    elsewhere: set[str] = set()
    for i, names_of_image in enumerate(names):
        if i != chosen:
            elsewhere |= names_of_image
    only_here = sorted(names[chosen] - elsewhere)
    if not only_here:
        return None
    phrasings = [
        "Which picture has {}?",
        "In which picture is there {}?",
        "Which image shows {}?",
        "Which picture shows {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    name = with_article(rng.choice(only_here))
    return Exchange(question.format(name), f"Picture {chosen + 1}.")


def ask_difference(images: Images, rng: random.Random, level: Level) -> Exchange | None:
    """How the second image differs from the first."""
    if not images.change:
        return None
    phrasings = [
        "What differs?",
        "What is different?",
        "What has changed?",
        "What has changed in picture 2?",
        "How does picture 2 differ?",
        "How do the pictures differ?",
        "What differs in picture 2?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    first, second = (set(scene.things) for scene in images.scenes)
    # One thing is new, or has changed: then it is not the same thing in both.
    if images.change == "new":
        (new,) = second - first
        return Exchange(question, f"There is {thing_with_article(new)} in picture 2 only.")
    (old,) = first - second
    if images.change == "gone":
        return Exchange(question, f"The {old.name} is gone in picture 2.")
    (new,) = second - first
    now = new.colour if images.change == "recoloured" else with_article(new.shape)
    return Exchange(question, f"The {old.name} is {now} in picture 2.")


def ask_description_of_one(images: Images, rng: random.Random, level: Level) -> Exchange:
    """What is in one of the images, which the question names by its number."""
    i = rng.randrange(len(images.scenes))
    phrasings = ["What is in picture {}?", "Describe picture {}.", "What do you see in picture {}?"]
    question = choose_phrasing(rng, level, phrasings)
    names = [thing_with_article(thing) for thing in images.scenes[i].things]
    return Exchange(question.format(i + 1), sentence(join_names(names or ["nothing"])))


def ask_image_count(images: Images, rng: random.Random, level: Level) -> Exchange:
    """How many images there are, or how many of them have a shape."""
    if rng.random() < 0.25:
        phrasings = [
            "How many pictures are there?",
            "How many pictures do you see?",
            "Count the pictures.",
        ]
        question = choose_phrasing(rng, level, phrasings)
        return Exchange(question, sentence(NUMBERS[len(images.scenes)]))
    shape = rng.choice([thing.shape for thing in images.things])
    shapes_of_images = [{thing.shape for thing in scene.things} for scene in images.scenes]
    count = sum(shape in shapes for shapes in shapes_of_images)
    phrasings = [
        "How many pictures have {}?",
        "How many pictures show {}?",
        "How many images have {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(with_article(shape)), sentence(NUMBERS[count]))


# ----------------------------------------------------------------------------- about videos


def ask_event(video: Video, rng: random.Random, level: Level) -> Exchange:
    """What happens."""
    phrasings = [
        "What happens?",
        "Describe the video.",
        "What do you see in the video?",
        "Describe this video.",
    ]
    question = choose_phrasing(rng, level, phrasings)
    detail = video.detail
    if video.event == "comes":
        detail = f"first, then {with_article(video.detail)}"
    elif video.event == "blinks":
        detail = video.detail.lower()
    subject = thing_with_article(video.subject)
    return Exchange(question, sentence(f"{subject} {video.event} {detail}".strip()))


def ask_direction(video: Video, rng: random.Random, level: Level) -> Exchange | None:
    if video.event != "moves":
        return None
    phrasings = [
        "Which way does the {} move?",
        "Where does the {} move?",
        "In which direction does the {} move?",
        "Which way does the {} go?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(video.subject.name), sentence(video.detail))


def ask_subject(video: Video, rng: random.Random, level: Level) -> Exchange | None:
    """What appears, disappears, moves, or turns another colour."""
    phrasings = {
        "moves": ["What moves?", "Which object moves?", "What moves in the video?"],
        "appears": ["What appears?", "Which object appears?", "What appears in the video?"],
        "disappears": [
            "What disappears?",
            "Which object disappears?",
            "What disappears in the video?",
        ],
        "turns": [
            "What changes its colour?",
            "Which object changes its colour?",
            "What changes its color?",
        ],
    }
    if video.event not in phrasings:
        return None
    question = choose_phrasing(rng, level, phrasings[video.event])
    return Exchange(question, sentence(f"the {video.subject.name}"))


def ask_first(video: Video, rng: random.Random, level: Level) -> Exchange | None:
    """Which of two things comes first."""
    if video.event != "comes":
        return None
    names = [video.subject.name, video.detail]
    rng.shuffle(names)
    phrasings = [
        "What comes first, the {} or the {}?",
        "Which comes first, the {} or the {}?",
        "Which object comes first, the {} or the {}?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(*names), sentence(f"the {video.subject.name}"))


def ask_blinks(video: Video, rng: random.Random, level: Level) -> Exchange | None:
    if video.event != "blinks":
        return None
    phrasings = [
        "How often does the {} blink?",
        "How many times does the {} blink?",
        "How often do you see the {} blink?",
    ]
    question = choose_phrasing(rng, level, phrasings)
    return Exchange(question.format(video.subject.name), sentence(video.detail))


# ----------------------------------------------------------------- about nothing but itself

SMALL_TALK = {
    "I am a tiny Qwen2-VL.": (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me who you are.",
    ),
    "Hello! Show me a picture.": ("Hello!", "Hi!", "Good morning!", "Hello there!"),
    "I name shapes and colours, count, compare, find and read.": (
        "What can you do?",
        "What do you know?",
        "How can you help me?",
        "What can you help me do?",
    ),
    "I read pictures, several pictures and video.": (
        "What can you see?",
        "Can you see video?",
        "What can I show you?",
        "What can you read?",
    ),
    "I was trained on drawn shapes.": (
        "How were you trained?",
        "What were you trained on?",
        "What have you learned?",
        "How have you learned?",
    ),
    "About three million.": (
        "How many parameters do you have?",
        "How big are you?",
        "How large are you?",
        "How many parameters are there?",
    ),
    "You are welcome.": ("Thank you!", "Thanks!", "Thank you very much!", "Many thanks!"),
    "Goodbye!": ("Bye!", "Goodbye!", "See you!", "Bye bye!"),
    "There is no picture.": (
        "What is in this picture?",
        "Describe this image.",
        "What colour is the star?",
        "Describe the picture.",
    ),
}


def ask_small_talk(nothing: None, rng: random.Random, level: Level) -> Exchange:
    answer = rng.choice(list(SMALL_TALK))
    return Exchange(choose_phrasing(rng, level, SMALL_TALK[answer]), answer)


# -------------------------------------------------------------------------------- all tasks

# The kinds of things shown, and the tasks about each.
TASKS: dict[str, dict[str, Callable]] = {
    "image": {
        "describe": ask_description,
        "colour": ask_colour,
        "shape": ask_shape,
        "how many": ask_count,
        "where": ask_position,
        "is there": ask_presence,
        "relation": ask_relation,
        "size": ask_size,
        "find": ask_box,
        "in the box": ask_inside_box,
        "not there": ask_absent,
    },
    "words": {"read": ask_reading, "describe a sign": ask_description},
    "images": {
        "which picture": ask_which_image,
        "what differs": ask_difference,
        "describe one": ask_description_of_one,
        "how many pictures": ask_image_count,
    },
    "video": {
        "what happens": ask_event,
        "which way": ask_direction,
        "what changes": ask_subject,
        "what comes first": ask_first,
        "how often": ask_blinks,
    },
    "text": {"small talk": ask_small_talk},
}
RANDOM_SHOWN: dict[str, Callable] = {
    "image": random_scene,
    "words": random_sign,
    "images": random_images,
    "video": random_video,
}


def show(
    kind: str, rng: random.Random, level: Level, canvas: tuple[int, int] | None = None
) -> Shown:
    """Something random of a kind to ask about; for "text" there is nothing."""
    if kind == "text":
        return None
    return RANDOM_SHOWN[kind](rng, level, canvas)


def content(shown: Shown) -> list[dict]:
    """What is shown, as the items of a chat message."""
    if shown is None:
        return []
    if isinstance(shown, Video):
        frames = [scene.draw() for scene in shown.scenes]
        return [{"type": "video", "video": frames}]
    scenes = shown.scenes if isinstance(shown, Images) else (shown,)
    return [{"type": "image", "image": scene.draw()} for scene in scenes]


def ask(task: str, kind: str, shown: Shown, rng: random.Random, level: Level) -> Exchange | None:
    """A question of a task and its answer; None where what is shown leaves no clear answer."""
    return TASKS[kind][task](shown, rng, level)
