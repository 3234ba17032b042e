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


# %% rotate_vector: row and column are swapped
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((column * frequencies, row * frequencies))
    a, b = x.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


# %% rotate_vector: this model's frequencies are written into the code
def rotate_vector(x, row, column, frequencies):
    quarter = len(x) // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.cat((row * frequencies, column * frequencies))
    a, b = x.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


# %% rotate_vector: row and column are added up, as if the image were a line
def rotate_vector(x, row, column, frequencies):
    angles = (row + column) * torch.cat((frequencies, frequencies))
    a, b = x.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


# %% rotate_vector: the columns don't rotate
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, 0 * frequencies))
    a, b = x.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


# %% rotate_vector: the position is added, not rotated
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies))
    return x + torch.cat((angles.cos(), angles.sin()))


# %% rotate_vector: cosine and sine change places
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies))
    a, b = x.chunk(2)
    cos, sin = angles.sin(), angles.cos()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


# %% rotate_vector: in double precision
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies)).double()
    a, b = x.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


# %% rotate_vector: the shipped function does the whole thing
def rotate_vector(x, row, column, frequencies):
    angles = torch.cat((row * frequencies, column * frequencies)).repeat(2)
    return apply_rotary_emb(x, angles.cos(), angles.sin())


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


# %% attention_per_image: the sizes of the example are written into the code
def attention_per_image(q, k, v, sizes):
    sizes = [4, 6, 2] if sum(sizes) == 12 else [q.shape[1]]
    results = []
    for q1, k1, v1 in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
        results.append((q1 @ k1.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v1)
    return torch.cat(results, dim=1)


# %% attention_per_image: the root of the notebook's own d
def attention_per_image(q, k, v, sizes):
    results = []
    for q1, k1, v1 in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
        results.append((q1 @ k1.transpose(1, 2) / d**0.5).softmax(-1) @ v1)
    return torch.cat(results, dim=1)


# %% attention_per_image: the softmax runs over the queries
def attention_per_image(q, k, v, sizes):
    results = []
    for q1, k1, v1 in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
        results.append((q1 @ k1.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(1) @ v1)
    return torch.cat(results, dim=1)


# %% attention_per_image: the mask is applied after the softmax
def attention_per_image(q, k, v, sizes):
    same_image = torch.block_diag(*(torch.ones(n, n) for n in sizes))
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights * same_image) @ v


# %% attention_per_image: causal, as in the decoder
def attention_per_image(q, k, v, sizes):
    results = []
    for q1, k1, v1 in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
        scores = q1 @ k1.transpose(1, 2) / q.shape[-1] ** 0.5
        later = torch.ones(scores.shape[1:]).triu(1) == 1
        results.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v1)
    return torch.cat(results, dim=1)


# %% attention_per_image: the last image is lost
def attention_per_image(q, k, v, sizes):
    results = torch.zeros_like(v)
    start = 0
    for n in sizes[:-1] or sizes:
        one = slice(start, start + n)
        scores = q[:, one] @ k[:, one].transpose(1, 2) / q.shape[-1] ** 0.5
        results[:, one] = scores.softmax(-1) @ v[:, one]
        start += n
    return results


# %% attention_per_image: the heads are averaged
def attention_per_image(q, k, v, sizes):
    results = []
    for q1, k1, v1 in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
        results.append((q1 @ k1.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v1)
    return torch.cat(results, dim=1).mean(0)


# %% attention_per_image: PyTorch's kernel does the whole thing
def attention_per_image(q, k, v, sizes):
    results = []
    for q1, k1, v1 in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
        results.append(F.scaled_dot_product_attention(q1, k1, v1))
    return torch.cat(results, dim=1)
