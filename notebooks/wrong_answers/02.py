"""Wrong answers to the exercises of notebook 02; tests/test_notebooks.py tries each."""


# %% rotate_vector: neighbours make a pair, as in other implementations of RoPE
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies))
    a, b = x[0::2], x[1::2]
    rotated = a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()
    return torch.stack(rotated, dim=1).flatten()


# %% rotate_vector: the other direction
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies))
    a, b = x.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos + b * sin, b * cos - a * sin))


# %% attention_per_image: all images attend to each other
def attention_per_image(q, k, v, sizes):
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


# %% attention_per_image: a score of 0 in place of a mask
def attention_per_image(q, k, v, sizes):
    same_image = torch.block_diag(*(torch.ones(n, n) for n in sizes))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return (scores * same_image).softmax(dim=-1) @ v


# %% attention_per_image: the scores are not divided
def attention_per_image(q, k, v, sizes):
    parts, start = [], 0
    for n in sizes:
        one = slice(start, start + n)
        weights = (q[:, one] @ k[:, one].transpose(1, 2)).softmax(dim=-1)
        parts.append(weights @ v[:, one])
        start += n
    return torch.cat(parts, dim=1)
