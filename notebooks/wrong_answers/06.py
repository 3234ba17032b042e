"""Wrong answers to the exercises of notebook 06; tests/test_notebooks.py tries each."""


# %% greedy: reads everything again for each token
def greedy(model, inputs, n):
    ids = inputs["input_ids"]
    T = ids.shape[1]
    media = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    while ids.shape[1] < T + n and int(ids[0, -1]) not in ends:
        token = model(ids, **media, logits_to_keep=1).logits[:, -1].argmax(-1)
        ids = torch.cat((ids, token[:, None]), dim=1)
    return ids[0, T:].tolist()


# %% greedy: numbers the new tokens by counting
def greedy(model, inputs, n):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    new = [int(out.logits[0, -1].argmax())]
    while len(new) < n and new[-1] not in ends:
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[new[-1]]]))
        deltas = torch.zeros_like(out.rope_deltas)
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
        new.append(int(out.logits[0, -1].argmax()))
    return new


# %% min_p: an absolute threshold
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill((p < share) & (p < p.max()), -math.inf).softmax(-1)


# %% min_p: what stays is not scaled to add up to 1
def min_p(logits, share):
    p = logits.softmax(-1)
    return torch.where(p < share * p.max(), 0, p)
