"""Change valid input at random: bytes of a file, values of a JSON document."""

import copy
import random
import string

# Values that people and broken tools write where a number, a text or a list belongs.
ODD_VALUES: list[object] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    13,
    2**31,
    -(2**63),
    10**30,
    0.5,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "auto",
    "../x",
    "/dev/zero",
    "\ud800",
    "<|im_end|>",
    "a" * 10_000,
    [],
    [1],
    [None],
    [[[]]],
    {},
    {"a": 1},
    {"": {}},
]
MAX_NESTING = 150  # lists in lists; more than this `copy.deepcopy` can hardly copy


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to eight changes: bits, bytes, blocks doubled, cut out or moved, the end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if not data:
            return b""
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice([1, 2, 4, 16, 256]))
        change = rng.choice(["bit", "bytes", "edge", "double", "cut", "swap", "end"])
        if change == "bit":
            data[start] ^= 1 << rng.randrange(8)
        elif change == "bytes":
            data[start:end] = rng.randbytes(end - start)
        elif change == "edge":  # the largest or smallest value of a field
            data[start:end] = rng.choice([b"\0", b"\xff"]) * (end - start)
        elif change == "double":
            data[start:start] = data[start:end] * rng.randint(1, 4)
        elif change == "cut":
            del data[start:end]
        elif change == "swap":
            other = rng.randrange(len(data))
            data[start], data[other] = data[other], data[start]
        elif rng.random() < 0.2:  # seldom, since little is left to look at
            del data[start:]
    return bytes(data)


def mutate_value(value: object, rng: random.Random) -> object:
    """A copy of a JSON value in which one value, at any depth, is another, is gone or is new."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        changed = copy.deepcopy(value)
        key = rng.choice(list(changed))
        action = rng.random()
        if action < 0.15:
            del changed[key]
        elif action < 0.25:
            changed[misspell(str(key), rng)] = changed.pop(key)
        else:
            changed[key] = mutate_value(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        changed_list = copy.deepcopy(value)
        i = rng.randrange(len(changed_list))
        action = rng.random()
        if action < 0.2:
            del changed_list[i]
        elif action < 0.4:
            changed_list.insert(i, copy.deepcopy(changed_list[i]))
        else:
            changed_list[i] = mutate_value(changed_list[i], rng)
        return changed_list
    return odd_value(value, rng)


def odd_value(value: object, rng: random.Random) -> object:
    """Something else in place of a value: near to it, or of another kind."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, -value, value * 2, value / 3, str(value)])
    if isinstance(value, str) and value and rng.random() < 0.5:
        return misspell(value, rng)
    if rng.random() < 0.02:
        return nested(rng.randint(2, MAX_NESTING))
    return copy.deepcopy(rng.choice(ODD_VALUES))


def misspell(text: str, rng: random.Random) -> str:
    """A text with one character more, less or another."""
    i = rng.randrange(len(text) + 1)
    letter = rng.choice(string.ascii_letters + "_<|>é\0 ")
    return rng.choice([text[:i] + letter + text[i:], text[:i] + text[i + 1 :], text.upper()])


def nested(depth: int) -> object:
    """Lists in lists."""
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value
