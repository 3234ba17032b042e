"""A kept cache: every turn of a conversation gives what the whole, read at once, gives."""

import copy
import random

import pytest
import torch
from torch import Tensor

import processor as processor_file
from processor import Item, Message, Qwen2VLProcessor
from qwen2vl import KVCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_app.conversation import ContextFull, Conversation
from tests.helpers.drawn_media import noise, write_video
from tests.helpers.reference import (
    KINDS,
    TOLERANCE,
    Row,
    collate,
    count_patches,
    error,
    fill_randomly,
    random_pair,
    random_rows,
)

# ---------------------------------------------------------- generate and stream on a filled cache


@pytest.mark.parametrize("kind", KINDS)
def test_generate_goes_on_from_a_filled_cache(kind, amount):
    """A prompt in two parts, with media in both, gives the tokens of the whole."""
    for seed in range(amount(3, 20)):
        ours, _ = random_pair(seed)
        rng = random.Random(seed)
        first, second, whole = prompt_in_two_parts(rng, ours.config, kind)
        settings = {"max_new_tokens": 8, "eos_token_id": -1, "repetition_penalty": 1.2}
        settings.update(rng.choice([{"do_sample": False}, {"seed": 7, "top_k": 5}]))
        expected = ours.generate(**whole, **settings)

        batch, length = first["input_ids"].shape
        cache = KVCache(ours.config, batch, length)
        with torch.no_grad():
            deltas = ours(**first, past_key_values=cache).rope_deltas
        found = ours.generate(**second, past_key_values=cache, rope_deltas=deltas, **settings)
        assert torch.equal(found, expected), f"seed {seed}"
        assert cache.length == found.shape[1] - 1

        # Once more, with a part of the cache that is forgotten again.
        cache.crop(length)
        found = ours.generate(**second, past_key_values=cache, rope_deltas=deltas, **settings)
        assert torch.equal(found, expected), f"seed {seed}, cropped"


def prompt_in_two_parts(rng: random.Random, config: Qwen2VLConfig, kind: str) -> tuple:
    """Inputs of the first part, inputs of a call that goes on from it, and those of the whole.

    Rows of different lengths are padded on the left in both parts.
    """
    first_rows, second_rows = random_rows(rng, config, kind), random_rows(rng, config, kind)
    first, second = collate(first_rows, config, 1), collate(second_rows, config, 2)
    whole = {}
    for name in ("input_ids", "attention_mask"):
        whole[name] = torch.cat((first[name], second[name]), dim=1)
    for pixels, grids, images in (
        ("pixel_values", "image_grid_thw", "images"),
        ("pixel_values_videos", "video_grid_thw", "videos"),
    ):
        if pixels in first:
            whole[pixels], whole[grids] = in_order_of_rows(
                [(first, first_rows), (second, second_rows)], pixels, grids, images
            )
    second = {**second, "input_ids": whole["input_ids"], "attention_mask": whole["attention_mask"]}
    return first, second, whole


def in_order_of_rows(
    parts: list[tuple[dict[str, Tensor], list[Row]]], pixels: str, grids: str, images: str
) -> tuple[Tensor, Tensor]:
    """Patches and grids of both parts: those of the first row, of the second, and so on."""
    values, shapes = [], []
    taken = [0 for _ in parts]  # patches, of each part
    for row in range(len(parts[0][1])):
        for i, (inputs, rows) in enumerate(parts):
            own = getattr(rows[row], images)
            end = taken[i] + count_patches(own)
            values.append(inputs[pixels][taken[i] : end])
            shapes += own
            taken[i] = end
    return torch.cat(values), torch.tensor(shapes)


def test_a_cache_that_does_not_fit_is_refused_at_once(tiny):
    model, _ = tiny
    ids = torch.arange(12)[None]
    cache = KVCache(model.config, 1, 30)
    deltas = model(ids, past_key_values=cache).rope_deltas
    longer = torch.arange(14)[None]
    right = {"past_key_values": cache, "rope_deltas": deltas}
    calls = [
        (ids, right, "holds 12 tokens, input_ids has 12: at least 1 more is needed"),
        (ids[:, :5], right, "holds 12 tokens, input_ids has 5"),
        (longer, {"past_key_values": cache}, "rope_deltas are needed with it"),
        (longer, {"rope_deltas": deltas}, "the cache holds 0 tokens"),
        (longer, {**right, "rope_deltas": deltas[0]}, r"rope_deltas has shape \(1,\)"),
        (longer.expand(2, -1), right, "past_key_values has shape"),
        (longer, {**right, "past_key_values": [1]}, "is a list, a KVCache is needed"),
    ]
    for input_ids, given, message in calls:
        with pytest.raises(ValueError, match=message):
            model.stream(input_ids, **given)
    for length in (-1, 13, 2.0, True):
        with pytest.raises(ValueError, match="length is"):
            cache.crop(length)
    assert cache.length == 12
    # What was refused has changed nothing.
    found = model.generate(longer, **right, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, model.generate(longer, max_new_tokens=3, do_sample=False))


def test_a_cache_that_grows_keeps_what_it_holds(tiny):
    model, _ = tiny
    ids = torch.arange(20)[None]
    cache = KVCache(model.config, 1, 0)
    for capacity in (12, 12, 5, 40):
        cache.reserve(capacity)
        assert cache.capacity == cache.keys.shape[3] == cache.values.shape[3] == max(12, capacity)
        if cache.length == 0:
            model(ids[:, :12], past_key_values=cache)
    fresh = KVCache(model.config, 1, 12)
    model(ids[:, :12], past_key_values=fresh)
    assert torch.equal(cache.keys[:, :, :, :12], fresh.keys)
    assert torch.equal(cache.values[:, :, :, :12], fresh.values)


# ------------------------------------------------------------------------------ conversations


@pytest.fixture(scope="module")
def rambling(tiny) -> Qwen2VLForConditionalGeneration:
    """A model of the shape of `tiny` that answers with random tokens, control tokens too.

    Never with a placeholder: of those nobody could say, in the conversation as a whole, whether
    an image stands there.
    """
    model, processor = tiny
    config = Qwen2VLConfig.from_dict({**model.config.to_dict(), "tie_word_embeddings": False})
    rambling = Qwen2VLForConditionalGeneration(config).eval()
    fill_randomly(rambling, 5)
    placeholders = [processor.image_token_id, processor.video_token_id]
    rambling.lm_head.weight.data[placeholders] = 0
    return rambling


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> list[Item]:
    """Items of images and videos: on disk, in memory, two of the same pixels."""
    folder = tmp_path_factory.mktemp("media")
    noise(60, 90, 1).save(folder / "a.png")
    noise(60, 90, 1).save(folder / "same.png")
    noise(90, 60, 2).save(folder / "b.png")
    write_video(folder / "clip.mp4", 8)
    return [
        {"type": "image", "path": str(folder / "a.png")},
        {"type": "image", "image": str(folder / "same.png")},
        {"type": "image", "image": str(folder / "b.png"), "max_pixels": 60 * 60},
        {"type": "image", "image": noise(56, 56, 3)},
        {"type": "video", "video": str(folder / "clip.mp4"), "fps": 4.0},
        {"type": "video", "video": [noise(56, 84, seed) for seed in range(4)]},
    ]


def tokens_of_the_whole(
    processor: Qwen2VLProcessor, messages: list[Message]
) -> tuple[list[int], dict[str, Tensor]]:
    """Ids of a conversation up to the next answer, written out here by hand, and its media."""
    control = processor.special_tokens
    start, end = control["<|im_start|>"], control["<|im_end|>"]
    marks = control["<|vision_start|>"], control["<|vision_end|>"]
    newline = processor.encode_text("\n")
    ids: list[int] = []
    inputs: dict[str, list[Tensor]] = {}
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
    for message in messages:
        ids += [start, *processor.encode_text(message["role"] + "\n")]
        content = message["content"]
        if "token_ids" in message:
            ids += message["token_ids"]
            content = ""
        for item in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if item["type"] == "text":
                ids += processor.encode_text(item["text"])
                continue
            if item["type"] == "image":
                found = processor.image_processor([item])
                placeholder = processor.image_token_id
            else:
                found = processor.process_videos([item], [{}])
                placeholder = processor.video_token_id
            for name, value in found.items():
                inputs.setdefault(name, []).append(value)
            (grid,) = found[f"{item['type']}_grid_thw"]
            ids += [marks[0], *[placeholder] * (int(grid.prod()) // 4), marks[1]]
        ids += [end, *newline]
    ids += [start, *processor.encode_text("assistant\n")]
    return ids, {name: torch.cat(values) for name, values in inputs.items()}


class Recorder:
    """The logits of each token that a model writes, and how many tokens its decoder reads."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        self.logits: list[Tensor] = []
        self.num_read = 0
        self.hooks = [
            model.lm_head.register_forward_hook(self.after_head),
            model.model.layers[0].register_forward_pre_hook(self.before_layer),
        ]

    def after_head(self, module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        self.logits.append(output.flatten(0, -2)[-1])

    def before_layer(self, module: torch.nn.Module, args: tuple) -> None:
        self.num_read += args[0].shape[1]

    def take(self) -> tuple[Tensor, int]:
        """What was recorded since the last call."""
        taken = torch.stack(self.logits), self.num_read
        self.logits, self.num_read = [], 0
        return taken

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def random_question(rng: random.Random, media: list[Item]) -> list[Item]:
    """Words, and in front of them, between them or behind them up to two images or videos."""
    items: list[Item] = [dict(item) for item in rng.sample(media, rng.choice([0, 0, 1, 1, 2]))]
    for _ in range(rng.choice([1, 1, 2])):
        words = rng.choice(
            ["What is it?", "And now?", "How many\n\n", " red <|im_end|> or", "é 🙂"]
        )
        items.insert(rng.randint(0, len(items)), {"type": "text", "text": words})
    return items


def edit(rng: random.Random, conversation: Conversation, media: list[Item]) -> str:
    """Something that may happen to a conversation between two questions; its name."""
    messages = conversation.messages
    done = rng.choice(
        ["nothing"] * 4 + ["copy", "undo", "reset", "text", "answer", "image", "drop"]
    )
    if done == "copy":
        conversation.messages = copy.deepcopy(messages)
    elif done == "undo":
        conversation.undo()
    elif done == "reset":
        conversation.reset()
    elif done == "text":
        question = rng.choice([one for one in messages if one["role"] == "user"])
        question["content"] = [*question["content"], {"type": "text", "text": "!"}]
    elif done == "answer":
        answer = rng.choice([one for one in messages if one["role"] == "assistant"])
        answer.pop("token_ids", None)
        answer["content"] = "Something else."
    elif done == "image":
        question = rng.choice([one for one in messages if one["role"] == "user"])
        question["content"] = [dict(rng.choice(media)), *question["content"]]
    elif done == "drop":
        place = rng.randrange(0, len(messages), 2)
        messages[:] = [one for one in messages if one["role"] == "system"] + messages[place:]
        messages[:] = [m for i, m in enumerate(messages) if m["role"] != "system" or i == 0]
    return done


def test_every_turn_gives_the_tokens_and_logits_of_the_whole(tiny, rambling, media, amount, figure):
    """Random conversations of 2 to 6 turns, with images and clips in any turn, answers broken off,
    and edits between the turns.
    """
    _, processor = tiny
    recorder = Recorder(rambling)
    for seed in range(amount(8, 200)):
        rng = random.Random(seed)
        begin = rng.choice([[], [], [{"role": "system", "content": "Be brief."}]])
        conversation = Conversation(rambling, processor, begin)
        for turn in range(rng.randint(2, 6)):
            done = edit(rng, conversation, media) if turn else "begin"
            if not conversation.messages[len(begin) :]:
                done += ", nothing before"
            question = random_question(rng, media)
            before = [*conversation.messages, {"role": "user", "content": question}]
            ids, inputs = tokens_of_the_whole(processor, before)

            settings = rng.choice(
                [{"do_sample": False}, {"seed": turn, "top_k": 9, "repetition_penalty": 1.1}]
            )
            # Sometimes not all of the answer is taken.
            num_tokens = rng.randint(1, 6)
            answer = conversation.tokens(question, max_new_tokens=rng.randint(1, 6), **settings)
            found = [int(token) for _, token in zip(range(num_tokens), answer, strict=False)]
            answer.close()
            logits, _ = recorder.take()

            whole = rambling.generate(
                torch.tensor([ids]), **inputs, max_new_tokens=len(found), **settings
            )
            expected, _ = recorder.take()
            where = f"seed {seed}, turn {turn}, {done}"
            assert found == whole[0, len(ids) :].tolist(), where
            size = len(found)
            apart = figure("kept caches, relative error", error(logits[:size], expected[:size]))
            assert apart < TOLERANCE, where
    recorder.remove()


def test_a_turn_reads_its_own_tokens_and_encodes_its_own_images_alone(
    tiny, rambling, media, monkeypatch
):
    _, processor = tiny
    opened, encoded = [], []
    open_image, encode = processor_file.load_image, rambling.visual.encode

    def count_opened(source: object) -> object:
        opened.append(source)
        return open_image(source)

    def count_encoded(*args: object) -> Tensor:
        encoded.append(args)
        return encode(*args)

    monkeypatch.setattr(processor_file, "load_image", count_opened)
    monkeypatch.setattr(rambling.visual, "encode", count_encoded)
    recorder = Recorder(rambling)
    conversation = Conversation(rambling, processor)
    image, same, other = media[:3]
    # What is asked, and how many images are opened and encoded for it.
    turns: list[tuple[list[Item], int, int]] = [
        ([image, {"type": "text", "text": "What is it?"}], 1, 1),
        ([{"type": "text", "text": "What colour?"}], 0, 0),
        ([image, {"type": "text", "text": "And here?"}], 0, 0),
        ([same, {"type": "text", "text": "And in this file?"}], 1, 0),
        ([{"type": "text", "text": "And "}, other, image], 1, 1),
        ([{"type": "text", "text": "Why?"}], 0, 0),
    ]
    cached = 0
    for question, num_opened, num_encoded in turns:
        opened.clear()
        encoded.clear()
        before = [*conversation.messages, {"role": "user", "content": question}]
        ids, _ = tokens_of_the_whole(processor, before)
        opened_here = len(opened)
        settings = {"max_new_tokens": 4, "eos_token_id": -1, "do_sample": False}
        answer = list(conversation.tokens(question, **settings))
        assert (len(opened) - opened_here, len(encoded)) == (num_opened, num_encoded), question
        # The last token that was written is not in the cache. Each of the others was read once.
        _, num_read = recorder.take()
        assert num_read == len(ids) - cached + len(answer) - 1, question
        cached = len(ids) + len(answer) - 1
        assert conversation.cache.length == cached
    recorder.remove()


def test_an_answer_goes_on_as_it_was_spelled_and_its_text_is_what_was_said(tiny, rambling):
    """The tokens of an answer stand in the cache, though the tokenizer would spell it in others."""
    _, processor = tiny
    conversation = Conversation(rambling, processor)
    said = "".join(conversation.ask("What is it?", max_new_tokens=12, eos_token_id=-1))
    answer = conversation.messages[-1]
    spelled = answer["token_ids"]
    assert answer["content"] == said == processor.decode(spelled, skip_special_tokens=True)
    assert processor.encode_text(said) != spelled
    list(conversation.ask("Why?", max_new_tokens=1))
    assert conversation.keys[: conversation.cache.length].count(spelled[0]) > 0
    ids, _ = tokens_of_the_whole(processor, conversation.messages[:3])
    assert conversation.keys[: len(ids)] == ids

    # A text that was edited is read as text.
    answer["content"] = "Yes."
    list(conversation.ask("Why?", max_new_tokens=1))
    del answer["token_ids"]
    ids, _ = tokens_of_the_whole(processor, conversation.messages[:3])
    assert conversation.keys[: len(ids)] == ids


def test_the_tokens_of_a_message_from_elsewhere_hold_no_control_tokens(tiny, rambling):
    """A file may state any tokens as those of an answer: control tokens would forge a turn."""
    _, processor = tiny
    end = processor.special_tokens["<|im_end|>"]
    yes = processor.encode_text("Yes.")
    stated = [(yes, True), ([*yes, end], False), ([10**9], False), (["a"], False)]
    for token_ids, is_taken in stated:
        answer = {"role": "assistant", "content": "Yes.", "token_ids": token_ids}
        conversation = Conversation(rambling, processor)
        conversation.messages = [{"role": "user", "content": "Is it?"}, answer]
        assert (conversation.writer.own_tokens(answer) == token_ids) == is_taken
        list(conversation.ask("Why?", max_new_tokens=1))
        # One behind the system prompt, each question and the answer.
        assert conversation.keys.count(end) == 4


def test_what_goes_wrong_costs_its_question_and_nothing_else(tiny, rambling, media, tmp_path):
    model, processor = tiny
    conversation = Conversation(model, processor)
    image = media[0]
    first = "".join(conversation.ask([image, {"type": "text", "text": "Describe this image."}]))
    messages = copy.deepcopy(conversation.messages)
    (tmp_path / "broken.png").write_bytes(b"no image")
    many = "word " * model.config.max_position_embeddings
    wrong = [
        ([{"type": "image", "image": "nowhere.png"}], {}, OSError, "nowhere.png"),
        ([{"type": "image", "image": str(tmp_path / "broken.png")}], {}, ValueError, "broken.png"),
        ([{"type": "text", "txt": "a"}], {}, ValueError, "txt"),
        ("Why?", {"temperature": -1.0}, ValueError, "temperature=-1"),
        ("Why?", {"max_new_tokens": 0}, ValueError, "max_new_tokens is 0"),
        ("Why?", {"seed": 2**70}, ValueError, "seed is"),
        ("Why?", {"num_beam": 2}, (TypeError, ValueError), "num_beam"),
        (many, {}, ContextFull, "this model's context takes 4095 before an answer"),
        ({"role": "assistant", "content": "a"}, {}, ValueError, "a question is a text"),
        (7, {}, ValueError, "a question is a text"),
    ]
    for question, options, kind, message in wrong:
        with pytest.raises(kind, match=message):
            conversation.ask(question, **options)
        assert conversation.messages == messages, message
    again = Conversation(model, processor)
    list(again.ask([image, {"type": "text", "text": "Describe this image."}]))
    settings = {"do_sample": False, "max_new_tokens": 5}
    assert list(conversation.ask("Why?", **settings)) == list(again.ask("Why?", **settings))
    assert first == again.messages[1]["content"]


def test_an_answer_is_over_when_the_next_question_is_asked(tiny, rambling):
    _, processor = tiny
    conversation = Conversation(rambling, processor)
    settings = {"max_new_tokens": 5, "eos_token_id": -1}
    left = conversation.ask("One?", **settings)
    next(left)
    assert len(conversation.messages) == 2
    conversation.ask("Two?", **settings)  # nothing of it is read
    with pytest.raises(ValueError, match="the conversation has gone on"):
        next(left)
    assert len(conversation.messages) == 2
    unread = conversation.ask("Two?", **settings)
    assert len(list(conversation.ask("Three?", **settings))) == 5
    with pytest.raises(ValueError, match="the conversation has gone on"):
        next(unread)
    conversation.reset()
    assert conversation.messages == []
    with pytest.raises(ValueError, match="no question to take back"):
        conversation.undo()


def test_the_space_that_is_left_is_used(tiny, rambling):
    """A prompt that leaves no room for the answer asked for gets as much of it as there is."""
    _, processor = tiny
    conversation = Conversation(rambling, processor)
    limit = rambling.config.max_position_embeddings
    ids, _ = tokens_of_the_whole(processor, [{"role": "user", "content": "x"}])
    text = "!" * (limit - len(ids) - 6)
    ids, _ = tokens_of_the_whole(processor, [{"role": "user", "content": text}])
    room = limit - len(ids)
    assert 0 < room < 50
    said = list(conversation.tokens(text, max_new_tokens=50, eos_token_id=-1))
    assert len(said) == room and conversation.tokens_left == 0
    with pytest.raises(ContextFull):
        conversation.ask("And?")
    conversation.undo()
    assert len(list(conversation.tokens("And?", max_new_tokens=5, eos_token_id=-1))) == 5


# -------------------------------------------------------------------- one image, many questions


def test_an_image_of_several_questions_is_opened_and_encoded_once(tiny, media, monkeypatch):
    """In a batch too; and each row is what it is alone."""
    model, processor = tiny
    opened, encoded = [], []
    open_image, encode = processor_file.load_image, model.visual.encode
    questions = ["Describe this image.", "How many objects do you see?", "What is it?"]
    for item in media:
        rows = [
            [{"role": "user", "content": [dict(item), {"type": "text", "text": question}]}]
            for question in questions
        ]
        alone = []
        for row in rows:
            inputs = processor.apply_chat_template(
                row, tokenize=True, add_generation_prompt=True, return_dict=True
            )
            alone.append(model(**inputs).logits[0, -1])
        with monkeypatch.context() as patch:
            patch.setattr(processor_file, "load_image", lambda s: opened.append(s) or open_image(s))
            patch.setattr(model.visual, "encode", lambda *a: encoded.append(a) or encode(*a))
            opened.clear()
            encoded.clear()
            inputs = processor.apply_chat_template(
                rows, tokenize=True, add_generation_prompt=True, return_dict=True, padding=True
            )
            logits = model(**inputs).logits[:, -1]
        assert len(encoded) == 1, item
        assert len(opened) <= 1, item
        assert error(logits, torch.stack(alone)) < TOLERANCE, item


def test_what_only_looks_alike_is_encoded_for_itself(rambling):
    """Equal sums, equal sizes, or the same patches under another grid: other images."""
    generator = torch.Generator().manual_seed(0)
    width = 3 * 2 * 14 * 14
    patches = torch.randn(16, width, generator=generator)
    shuffled = patches[torch.randperm(16, generator=generator)]
    images = [patches, shuffled, patches.clone(), patches]
    grids = [[1, 4, 4], [1, 4, 4], [1, 4, 4], [1, 2, 8]]
    together = rambling.visual(torch.cat(images), torch.tensor(grids))
    start = 0
    for image, grid in zip(images, grids, strict=True):
        alone = rambling.visual(image, torch.tensor([grid]))
        assert error(together[start : start + 4], alone) < TOLERANCE
        start += 4
    assert error(together[:4], together[4:8]) > 0.01
    assert error(together[:4], together[12:]) > 0.01
