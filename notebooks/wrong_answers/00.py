"""Wrong answers to the exercises of notebook 00; tests/test_notebooks.py tries each."""


# %% count_tokens: these are patches, not tokens
def count_tokens(height, width, patch_size, merge_size):
    return (height // patch_size) * (width // patch_size)


# %% count_tokens: the squares of one side are forgotten
def count_tokens(height, width, patch_size, merge_size):
    return (height // (patch_size * merge_size)) * (width // patch_size)


# %% count_tokens: the sizes of the official model are written into the code
def count_tokens(height, width, patch_size, merge_size):
    return (height // 28) * (width // 28)


# %% generate_greedily: it never looks for the end token
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    for _ in range(max_new_tokens):
        new.append(int(next_logits(ids + new).argmax()))
    return new


# %% generate_greedily: it looks for the end token in the prompt, too
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and end_token not in ids + new:
        new.append(int(next_logits(ids + new).argmax()))
    return new


# %% generate_greedily: the end token is left out of the answer
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens:
        token = int(next_logits(ids + new).argmax())
        if token == end_token:
            break
        new.append(token)
    return new
