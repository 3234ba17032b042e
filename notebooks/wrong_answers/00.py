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


# %% count_tokens: only the merger's side is written into the code
def count_tokens(height, width, patch_size, merge_size):
    return (height // patch_size) * (width // patch_size) // 4


# %% count_tokens: only the patch's side is written into the code
def count_tokens(height, width, patch_size, merge_size):
    return (height // 14) * (width // 14) // merge_size**2


# %% count_tokens: the right number, but not a whole one
def count_tokens(height, width, patch_size, merge_size):
    return height * width / (patch_size * merge_size) ** 2


# %% count_tokens: as if every image were a square
def count_tokens(height, width, patch_size, merge_size):
    return (height // (patch_size * merge_size)) ** 2


# %% count_tokens: right for the example only
def count_tokens(height, width, patch_size, merge_size):
    return 24


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


# %% generate_greedily: it forgets the prompt after the first step
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(next_logits(new or ids).argmax()))
    return new


# %% generate_greedily: each step gets the last id only
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(next_logits((ids + new)[-1:]).argmax()))
    return new


# %% generate_greedily: the new ids never come back to the model
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(next_logits(ids).argmax()))
    return new


# %% generate_greedily: the end token of the toy model of the example is written into the code
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and 4 not in new:
        new.append(int(next_logits(ids + new).argmax()))
    return new


# %% generate_greedily: one token too many
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) <= max_new_tokens and end_token not in new:
        new.append(int(next_logits(ids + new).argmax()))
    return new


# %% generate_greedily: the limit counts the prompt as well
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(ids + new) < max_new_tokens and end_token not in new:
        new.append(int(next_logits(ids + new).argmax()))
    return new


# %% generate_greedily: it returns the prompt, too
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(next_logits(ids + new).argmax()))
    return ids + new


# %% generate_greedily: tensors in place of whole numbers
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    for _ in range(max_new_tokens):
        new.append(next_logits(ids + [int(i) for i in new]).argmax())
        if int(new[-1]) == end_token:
            break
    return new


# %% generate_greedily: it draws by probability
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        probabilities = next_logits(ids + new).softmax(-1)
        new.append(int(torch.multinomial(probabilities, 1)))
    return new


# %% generate_greedily: it calls what the checker has inside
def generate_greedily(next_logits, ids, end_token, max_new_tokens):
    return next_logits.write(ids, max_new_tokens)
