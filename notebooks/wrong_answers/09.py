"""Wrong answers to the exercises of notebook 09; tests/test_notebooks.py tries each."""


# %% labels_of: only the last answer gets labels
def labels_of(ids, start, end, opening):
    head = [start, *opening]
    first = max(i for i in range(len(ids)) if ids[i : i + len(head)] == head) + len(head)
    last = ids.index(end, first) + 1
    return [-100] * first + ids[first:last] + [-100] * (len(ids) - last)


# %% labels_of: only the first answer gets labels
def labels_of(ids, start, end, opening):
    head = [start, *opening]
    first = min(i for i in range(len(ids)) if ids[i : i + len(head)] == head) + len(head)
    last = ids.index(end, first) + 1
    return [-100] * first + ids[first:last] + [-100] * (len(ids) - last)


# %% labels_of: the end of an answer gets no label
def labels_of(ids, start, end, opening):
    labels = [-100] * len(ids)
    head = [start, *opening]
    for i in range(len(ids)):
        if ids[i : i + len(head)] == head:
            first = i + len(head)
            last = ids.index(end, first)
            labels[first:last] = ids[first:last]
    return labels


# %% labels_of: the opening gets labels, too
def labels_of(ids, start, end, opening):
    labels = [-100] * len(ids)
    head = [start, *opening]
    for i in range(len(ids)):
        if ids[i : i + len(head)] == head:
            last = ids.index(end, i) + 1
            labels[i:last] = ids[i:last]
    return labels


# %% labels_of: the opening without the start is enough
def labels_of(ids, start, end, opening):
    labels = [-100] * len(ids)
    for i in range(len(ids)):
        if ids[i : i + len(opening)] == opening:
            first = i + len(opening)
            last = ids.index(end, first) + 1
            labels[first:last] = ids[first:last]
    return labels


# %% labels_of: every turn gets labels
def labels_of(ids, start, end, opening):
    labels = [-100] * len(ids)
    for i in range(len(ids)):
        if ids[i] == start:
            first = i + 1 + len(opening)
            last = ids.index(end, i) + 1
            labels[first:last] = ids[first:last]
    return labels


# %% labels_of: a label stands one position before its token
def labels_of(ids, start, end, opening):
    labels = [-100] * len(ids)
    head = [start, *opening]
    for i in range(len(ids)):
        if ids[i : i + len(head)] == head:
            first = i + len(head)
            last = ids.index(end, first) + 1
            labels[first - 1 : last - 1] = ids[first:last]
    return labels


# %% labels_of: 0 in place of -100
def labels_of(ids, start, end, opening):
    labels = [0] * len(ids)
    head = [start, *opening]
    for i in range(len(ids)):
        if ids[i : i + len(head)] == head:
            first = i + len(head)
            last = ids.index(end, first) + 1
            labels[first:last] = ids[first:last]
    return labels


# %% labels_of: this tokenizer's opening is written into the code
def labels_of(ids, start, end, opening):
    start = processor.tokenizer.token_to_id("<|im_start|>")
    end = processor.tokenizer.token_to_id("<|im_end|>")
    head = [start, *processor.tokenizer.encode("assistant\n").ids]
    labels = [-100] * len(ids)
    for i in range(len(ids)):
        if ids[i : i + len(head)] == head:
            first = i + len(head)
            last = ids.index(end, first) + 1
            labels[first:last] = ids[first:last]
    return labels


# %% labels_of: only the labels, without the positions between them
def labels_of(ids, start, end, opening):
    labels = []
    head = [start, *opening]
    for i in range(len(ids)):
        if ids[i : i + len(head)] == head:
            first = i + len(head)
            labels += ids[first : ids.index(end, first) + 1]
    return labels


# %% labels_of: the shipped function does the whole thing
def labels_of(ids, start, end, opening):
    return recipe.answer_labels(torch.tensor([ids]), processor)[0].tolist()


# %% whole_loss: the mean of the means
def whole_loss(parts):
    return sum(loss for loss, _ in parts) / len(parts)


# %% whole_loss: the sum over all tokens
def whole_loss(parts):
    return sum(loss * count for loss, count in parts)


# %% whole_loss: the sum of the means
def whole_loss(parts):
    return sum(loss for loss, _ in parts)


# %% whole_loss: two parts are written into the code
def whole_loss(parts):
    (a, m), (b, n) = parts[0], parts[-1]
    return (a * m + b * n) / (m + n)


# %% whole_loss: weighted by the loss, not by the number of labels
def whole_loss(parts):
    return sum(loss * loss for loss, _ in parts) / sum(loss for loss, _ in parts)


# %% whole_loss: the largest part speaks for all
def whole_loss(parts):
    return max(parts, key=lambda part: part[1])[0]


# %% whole_loss: each part is divided by its labels once more
def whole_loss(parts):
    return sum(loss / count for loss, count in parts) / sum(1 / count for _, count in parts)


# %% whole_loss: one label too many
def whole_loss(parts):
    return sum(loss * count for loss, count in parts) / (1 + sum(count for _, count in parts))


# %% my_shape: too much like a square
def my_shape():
    return "box", [(-0.8, -0.9), (0.8, -0.9), (0.8, 0.9), (-0.8, 0.9)]


# %% my_shape: too thin to be seen
def my_shape():
    return "stick", [(-1, -0.05), (1, -0.05), (1, 0.05), (-1, 0.05)]


# %% my_shape: the name of a shape that it knows
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return "star", [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: the name of a shape that only people draw
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return "house", [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: the name of a colour
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return "red", [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: a word that the tokenizer has a token for
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return "picture", [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: two words
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return "my crown", [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: a capital letter
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return "Crown", [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: corners outside of the square
def my_shape():
    return "crown", [(-100, -60), (0, 10), (100, -60), (85, 80), (-85, 80)]


# %% my_shape: two corners
def my_shape():
    return "line", [(-1, -1), (1, 1)]


# %% my_shape: corners without a name
def my_shape():
    points = [(-1, -0.6), (-0.5, 0.1), (0, -0.8), (0.5, 0.1), (1, -0.6)]
    return [*points, (0.85, 0.8), (-0.85, 0.8)]


# %% my_shape: a star of its own
def my_shape():
    import math

    corners = []
    for i in range(10):
        r, angle = (1 if i % 2 == 0 else 0.4), math.pi * i / 5
        corners.append((r * math.sin(angle), -r * math.cos(angle)))
    return "spark", corners
