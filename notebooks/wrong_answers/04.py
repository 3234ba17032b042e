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


# %% axis_of: this model's sections are written into the code
def axis_of(sections):
    time, row, column = config.mrope_section
    return ([0] * time + [1] * row + [2] * column) * 2


# %% axis_of: sections of one size
def axis_of(sections):
    size = sum(sections) // 3
    return ([0] * size + [1] * size + [2] * (sum(sections) - 2 * size)) * 2


# %% axis_of: row and column are swapped
def axis_of(sections):
    time, row, column = sections
    return ([0] * time + [2] * row + [1] * column) * 2


# %% axis_of: the second half runs backwards
def axis_of(sections):
    pairs = []
    for axis, size in enumerate(sections):
        pairs += [axis] * size
    return pairs + pairs[::-1]


# %% axis_of: a tensor in place of a list
def axis_of(sections):
    return torch.arange(3).repeat_interleave(torch.tensor(sections)).repeat(2)


# %% axis_of: the axes take turns, as in later models
def axis_of(sections):
    return [i % 3 for i in range(sum(sections))] * 2


# %% axis_of: the shipped table does the whole thing
def axis_of(sections):
    positions = torch.eye(3, dtype=torch.long)[:, None].to(model.device)
    _, sines = model.model.rotary_table(positions, torch.float32)
    return sines[0, 0].abs().argmax(dim=0).tolist()


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


# %% rope_delta: squares of 2 x 2 are written into the code
def rope_delta(grids, merge_size):
    total = 0
    for t, h, w in grids:
        h, w = h // 2, w // 2
        total += max(t, h, w) - t * h * w
    return total


# %% rope_delta: the first image only
def rope_delta(grids, merge_size):
    if not grids:
        return 0
    t, h, w = grids[0]
    h, w = h // merge_size, w // merge_size
    return max(t, h, w) - t * h * w


# %% rope_delta: time is merged, too
def rope_delta(grids, merge_size):
    total = 0
    for t, h, w in grids:
        t, h, w = t // merge_size, h // merge_size, w // merge_size
        total += max(t, h, w) - t * h * w
    return total


# %% rope_delta: the width is taken for the largest side
def rope_delta(grids, merge_size):
    total = 0
    for t, h, w in grids:
        h, w = h // merge_size, w // merge_size
        total += w - t * h * w
    return total


# %% rope_delta: off by one for each image
def rope_delta(grids, merge_size):
    total = 0
    for t, h, w in grids:
        h, w = h // merge_size, w // merge_size
        total += max(t, h, w) - 1 - t * h * w
    return total


# %% rope_delta: the right number, but not a whole one
def rope_delta(grids, merge_size):
    total = 0.0
    for t, h, w in grids:
        total += max(t, h / merge_size, w / merge_size) - t * h * w / merge_size**2
    return total


# %% rope_delta: right for the prompt of the text only
def rope_delta(grids, merge_size):
    return -18 if grids else 0


# %% rope_delta: the shipped function does the whole thing
def rope_delta(grids, merge_size):
    ids = [0]
    for t, h, w in grids:
        ids += [config.video_token_id] * (t * h * w // merge_size**2) + [0]
    if not grids:
        return 0
    _, deltas = get_rope_index(config, torch.tensor([ids]), None, torch.tensor(grids))
    return int(deltas)
