"""Wrong answers to the exercises of notebook 04; tests/test_notebooks.py tries each."""


# %% axis_of: pairs are neighbours, not i and i + d/2
def axis_of(sections):
    axes = []
    for axis, size in enumerate(sections):
        axes += [axis] * (2 * size)
    return axes


# %% axis_of: the pairs, once
def axis_of(sections):
    axes = []
    for axis, size in enumerate(sections):
        axes += [axis] * size
    return axes


# %% axis_of: the official sections are written into the code
def axis_of(sections):
    return ([0] * 16 + [1] * 24 + [2] * 24) * 2


# %% rope_delta: the next number ignores the time
def rope_delta(grids, merge_size):
    total = 0
    for t, h, w in grids:
        h, w = h // merge_size, w // merge_size
        total += max(h, w) - t * h * w
    return total


# %% rope_delta: counts in patches
def rope_delta(grids, merge_size):
    return sum(max(t, h, w) - t * h * w for t, h, w in grids)


# %% rope_delta: the sign is turned round
def rope_delta(grids, merge_size):
    total = 0
    for t, h, w in grids:
        h, w = h // merge_size, w // merge_size
        total += t * h * w - max(t, h, w)
    return total
