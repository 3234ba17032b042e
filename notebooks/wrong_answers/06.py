"""Wrong answers to the exercises of notebook 06; tests/test_notebooks.py tries each."""


# %% greedy: reads everything again for each token
def greedy(model, inputs, n, ends):
    ids = inputs["input_ids"]
    T = ids.shape[1]
    media = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    while ids.shape[1] < T + n and int(ids[0, -1]) not in ends:
        token = model(ids, **media, logits_to_keep=1).logits[:, -1].argmax(-1)
        ids = torch.cat((ids, token[:, None]), dim=1)
    return ids[0, T:].tolist()


# %% greedy: numbers the new tokens by counting
def greedy(model, inputs, n, ends):
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


# %% greedy: it knows one end token
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = [int(out.logits[0, -1].argmax())]
    while len(new) < n and new[-1] != ends[0]:
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[new[-1]]]))
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
        new.append(int(out.logits[0, -1].argmax()))
    return new


# %% greedy: it takes the checkpoint's end token, not those that it is given
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = [int(out.logits[0, -1].argmax())]
    while len(new) < n and new[-1] != model.config.eos_token_id:
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[new[-1]]]))
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
        new.append(int(out.logits[0, -1].argmax()))
    return new


# %% greedy: the end token is left out
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = []
    while True:
        token = int(out.logits[0, -1].argmax())
        if token in ends:
            return new
        new.append(token)
        if len(new) == n:
            return new
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[token]]))
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)


# %% greedy: one step after the last token
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = []
    while len(new) < n and not set(new) & set(ends):
        new.append(int(out.logits[0, -1].argmax()))
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[new[-1]]]))
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
    return new


# %% greedy: it stops at the first token that repeats one
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = [int(out.logits[0, -1].argmax())]
    while len(new) < n and new[-1] not in ends and new[-1] not in new[:-1]:
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[new[-1]]]))
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
        new.append(int(out.logits[0, -1].argmax()))
    return new


# %% greedy: it returns the prompt, too
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = [int(out.logits[0, -1].argmax())]
    while len(new) < n and new[-1] not in ends:
        x = model.model.embed_tokens(inputs["input_ids"].new_tensor([[new[-1]]]))
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
        new.append(int(out.logits[0, -1].argmax()))
    return inputs["input_ids"][0].tolist() + new


# %% greedy: tensors in place of whole numbers
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    cache = KVCache(model.config, 1, T + n, model.device, model.dtype)
    out = model(**inputs, past_key_values=cache, logits_to_keep=1)
    deltas = out.rope_deltas
    new = [out.logits[:, -1].argmax(-1)]
    while len(new) < n and int(new[-1]) not in ends:
        x = model.model.embed_tokens(new[-1][:, None])
        out = model(inputs_embeds=x, past_key_values=cache, rope_deltas=deltas)
        new.append(out.logits[:, -1].argmax(-1))
    return new


# %% greedy: the shipped loop does the whole thing
def greedy(model, inputs, n, ends):
    T = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, max_new_tokens=n, do_sample=False, eos_token_id=ends)
    return ids[0, T:].tolist()


# %% greedy: the shipped stream does the whole thing
def greedy(model, inputs, n, ends):
    steps = model.stream(**inputs, max_new_tokens=n, do_sample=False, eos_token_id=ends)
    return [int(token) for token in steps]


# %% min_p: an absolute threshold
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill((p < share) & (p < p.max()), -math.inf).softmax(-1)


# %% min_p: what stays is not scaled to add up to 1
def min_p(logits, share):
    p = logits.softmax(-1)
    return torch.where(p < share * p.max(), 0, p)


# %% min_p: the threshold of the example is written into the code
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill(p < 0.2 * p.max(), -math.inf).softmax(-1)


# %% min_p: a share of the largest logit
def min_p(logits, share):
    kept = (logits >= share * logits.max()) | (logits == logits.max())
    return logits.masked_fill(~kept, -math.inf).softmax(-1)


# %% min_p: the most probable token has to be more probable than itself
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill(p <= share * p.max(), -math.inf).softmax(-1)


# %% min_p: top-p
def min_p(logits, share):
    return probabilities(logits, top_p=share)


# %% min_p: only the most probable token stays
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill(p < p.max(), -math.inf).softmax(-1)


# %% min_p: what stays gets equal shares
def min_p(logits, share):
    p = logits.softmax(-1)
    kept = (p >= share * p.max()).float()
    return kept / kept.sum()


# %% min_p: logits in place of probabilities
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill(p < share * p.max(), -math.inf)


# %% min_p: in double precision
def min_p(logits, share):
    p = logits.double().softmax(-1)
    return logits.double().masked_fill(p < share * p.max(), -math.inf).softmax(-1)


# %% min_p: the probabilities come sorted
def min_p(logits, share):
    p = logits.softmax(-1).sort(descending=True).values
    p = torch.where(p < share * p.max(), 0, p)
    return p / p.sum()
