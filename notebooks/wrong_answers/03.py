"""Wrong answers to the exercises of notebook 03; tests/test_notebooks.py tries each."""


# %% to_text: each token is decoded alone
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    text = ""
    for token in tokens:
        raw = bytes(byte_of[character] for character in token)
        text += raw.decode("utf-8", errors="replace")
    return text


# %% to_text: a character that is cut off is left out
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    raw = bytes(byte_of[character] for token in tokens for character in token)
    return raw.decode("utf-8", errors="ignore")


# %% expand_placeholders: once for every patch, not for every token
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = iter(t * h * w for t, h, w in grids)
    expanded = []
    for token in ids:
        repeats = next(counts) if token == placeholder else 1
        expanded += [token] * repeats
    return expanded


# %% expand_placeholders: the frames of a video are forgotten
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = iter(h * w // merge_size**2 for t, h, w in grids)
    expanded = []
    for token in ids:
        repeats = next(counts) if token == placeholder else 1
        expanded += [token] * repeats
    return expanded


# %% encode_pieces: joins all to one string and looks for control tokens in it
def encode_pieces(pieces):
    return naive("".join(text for text, _ in pieces))


# %% encode_pieces: encodes each piece of text alone
def encode_pieces(pieces):
    ids = []
    for piece, is_control in pieces:
        if is_control:
            ids.append(processor.special_tokens[piece])
        else:
            ids += processor.encode_text(piece)
    return ids
