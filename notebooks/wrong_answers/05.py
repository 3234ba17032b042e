"""Wrong answers to the exercises of notebook 05; tests/test_notebooks.py tries each."""


# %% grouped: deals the heads out in turn
def grouped(q, k, v):
    H, T, d = q.shape[1:]
    K, S = k.shape[1:3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    heads = []
    for h in range(H):
        scores = q[:, h] @ k[:, h % K].transpose(-2, -1) / math.sqrt(d)
        heads.append(scores.masked_fill(~mask, -math.inf).softmax(-1) @ v[:, h % K])
    return torch.stack(heads, dim=2).flatten(2)


# %% grouped: copies keys and values
def grouped(q, k, v):
    return attend(q, k, v)[0]


# %% grouped: no mask
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: the mask is not shifted
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril()
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: the scores are not divided
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: divided by the width that the model's own heads have
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(config.head_dim)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: divided by d, not by its root
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / d).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: a score of 0 in place of a mask
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, 0.0).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: a token does not attend to itself
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T - 1)
    weights = scores.masked_fill(~mask, -1e9).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: heads and tokens stay in the wrong order
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, T, H * d)


# %% grouped: the heads are not put side by side
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d)


# %% grouped: in double precision
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, d)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, K, H // K, T, S)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, d).transpose(1, 2).flatten(2).double()


# %% grouped: copies by indexing
def grouped(q, k, v):
    heads = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
    k, v = k[:, heads], v[:, heads]
    T, S, d = q.shape[2], k.shape[2], q.shape[3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# %% grouped: copies by a function of the module, not a method
def grouped(q, k, v):
    G = q.shape[1] // k.shape[1]
    k, v = torch.repeat_interleave(k, G, 1), torch.repeat_interleave(v, G, 1)
    T, S, d = q.shape[2], k.shape[2], q.shape[3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# %% grouped: copies by broadcast_to
def grouped(q, k, v):
    B, K, S, d = k.shape
    G = q.shape[1] // K
    k = torch.broadcast_to(k[:, :, None], (B, K, G, S, d)).flatten(1, 2)
    v = torch.broadcast_to(v[:, :, None], (B, K, G, S, d)).flatten(1, 2)
    T, S, d = q.shape[2], k.shape[2], q.shape[3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# %% grouped: copies by stacking
def grouped(q, k, v):
    G = q.shape[1] // k.shape[1]
    k = torch.stack([k] * G, dim=2).flatten(1, 2)
    v = torch.stack([v] * G, dim=2).flatten(1, 2)
    T, S, d = q.shape[2], k.shape[2], q.shape[3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# %% grouped: copies by a product with ones
def grouped(q, k, v):
    K = k.shape[1]
    ones = torch.ones(1, 1, q.shape[1] // K, 1, 1)
    k = (k[:, :, None] * ones).flatten(1, 2)
    v = (v[:, :, None] * ones).flatten(1, 2)
    T, S, d = q.shape[2], k.shape[2], q.shape[3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# %% grouped: copies by numpy
def grouped(q, k, v):
    G = q.shape[1] // k.shape[1]
    k = torch.from_numpy(k.numpy().repeat(G, axis=1))
    v = torch.from_numpy(v.numpy().repeat(G, axis=1))
    T, S, d = q.shape[2], k.shape[2], q.shape[3]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# %% grouped: the product copies, for it broadcasts
def grouped(q, k, v):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    q = q.view(B, K, H // K, T, d)
    scores = q @ k[:, :, None].transpose(-2, -1) / math.sqrt(d)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights @ v[:, :, None]).view(B, H, T, d).transpose(1, 2).flatten(2)


# %% grouped: PyTorch's kernel does the whole thing
def grouped(q, k, v):
    T, S = q.shape[2], k.shape[2]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2).flatten(2)


# %% grouped: the shipped function does the whole thing
def grouped(q, k, v):
    from qwen2vl import eager_attention

    out, _ = eager_attention(q, k, v, AttentionMask(causal=True))
    return out.transpose(1, 2).flatten(2)


# %% first_final_row: the first row with the final token, though it may be lost again
def first_final_row(tokens):
    return (tokens == tokens[-1]).long().argmax(0)


# %% first_final_row: how many rows have the final token
def first_final_row(tokens):
    return len(tokens) - (tokens == tokens[-1]).sum(0)


# %% first_final_row: rows are counted from the end
def first_final_row(tokens):
    is_final = (tokens == tokens[-1]).long()
    return is_final.flip(0).cumprod(0).sum(0)


# %% first_final_row: the row before it became final
def first_final_row(tokens):
    is_final = (tokens == tokens[-1]).long()
    return len(tokens) - is_final.flip(0).cumprod(0).sum(0) - 1


# %% first_final_row: always the last row
def first_final_row(tokens):
    return torch.full((tokens.shape[1],), len(tokens) - 1)


# %% first_final_row: a list in place of a tensor
def first_final_row(tokens):
    is_final = (tokens == tokens[-1]).long()
    return (len(tokens) - is_final.flip(0).cumprod(0).sum(0)).tolist()


# %% first_final_row: the right rows, but not as whole numbers
def first_final_row(tokens):
    is_final = (tokens == tokens[-1]).float()
    return len(tokens) - is_final.flip(0).cumprod(0).sum(0)


# %% first_final_row: one row for all steps
def first_final_row(tokens):
    is_final = (tokens == tokens[-1]).all(1).long()
    row = len(tokens) - is_final.flip(0).cumprod(0).sum(0)
    return row.repeat(tokens.shape[1])


# %% first_final_row: four rows are written into the code
def first_final_row(tokens):
    is_final = (tokens[-4:] == tokens[-1]).long()
    return 4 - is_final.flip(0).cumprod(0).sum(0)
