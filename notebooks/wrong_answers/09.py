"""Wrong answers to the exercises of notebook 09; tests/test_notebooks.py tries each."""


# %% labels_of: only the last answer gets labels
def labels_of(ids, start, end, opening):
    head = [start, *opening]
    first = max(i for i in range(len(ids)) if ids[i : i + len(head)] == head) + len(head)
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


# %% whole_loss: the mean of the means
def whole_loss(parts):
    return sum(loss for loss, _ in parts) / len(parts)


# %% my_shape: too much like a square
def my_shape():
    return "box", [(-0.8, -0.9), (0.8, -0.9), (0.8, 0.9), (-0.8, 0.9)]


# %% my_shape: too thin to be seen
def my_shape():
    return "stick", [(-1, -0.05), (1, -0.05), (1, 0.05), (-1, 0.05)]
