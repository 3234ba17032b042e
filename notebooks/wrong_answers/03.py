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


# %% to_text: spaces at both ends are taken away
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    raw = bytes(byte_of[character] for token in tokens for character in token)
    return raw.decode("utf-8", errors="replace").strip()


# %% to_text: only the space and the new line are written back
def to_text(tokens):
    return "".join(tokens).replace("Ġ", " ").replace("Ċ", "\n")


# %% to_text: a space between the tokens
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    raw = b" ".join(bytes(byte_of[character] for character in token) for token in tokens)
    return raw.decode("utf-8", errors="replace")


# %% to_text: every byte is a character
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    raw = bytes(byte_of[character] for token in tokens for character in token)
    return raw.decode("latin-1")


# %% to_text: bytes in place of a text
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    return bytes(byte_of[character] for token in tokens for character in token)


# %% to_text: damaged bytes are written as escapes
def to_text(tokens):
    byte_of = {character: byte for byte, character in character_of.items()}
    raw = bytes(byte_of[character] for token in tokens for character in token)
    return raw.decode("utf-8", errors="backslashreplace")


# %% to_text: the library's own decoder does the whole thing
def to_text(tokens):
    from tokenizers.decoders import ByteLevel

    return ByteLevel().decode(tokens)


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


# %% expand_placeholders: the first grid for every image
def expand_placeholders(ids, grids, placeholder, merge_size):
    expanded = []
    for token in ids:
        repeats = 1
        if token == placeholder:
            t, h, w = grids[0]
            repeats = t * h * w // merge_size**2
        expanded += [token] * repeats
    return expanded


# %% expand_placeholders: squares of 2 x 2 are written into the code
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = iter(t * h * w // 4 for t, h, w in grids)
    expanded = []
    for token in ids:
        repeats = next(counts) if token == placeholder else 1
        expanded += [token] * repeats
    return expanded


# %% expand_placeholders: the placeholder of the first cases is written into the code
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = iter(t * h * w // merge_size**2 for t, h, w in grids)
    expanded = []
    for token in ids:
        repeats = next(counts, 1) if token == 9 else 1
        expanded += [token] * repeats
    return expanded


# %% expand_placeholders: this model's placeholder is written into the code
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = iter(t * h * w // merge_size**2 for t, h, w in grids)
    expanded = []
    for token in ids:
        repeats = next(counts, 1) if token == config.image_token_id else 1
        expanded += [token] * repeats
    return expanded


# %% expand_placeholders: the grids are taken from the last to the first
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = [t * h * w // merge_size**2 for t, h, w in grids]
    expanded = []
    for token in ids:
        repeats = counts.pop() if token == placeholder else 1
        expanded += [token] * repeats
    return expanded


# %% expand_placeholders: all images together at the first placeholder
def expand_placeholders(ids, grids, placeholder, merge_size):
    total = sum(t * h * w // merge_size**2 for t, h, w in grids)
    expanded = []
    for token in ids:
        if token != placeholder:
            expanded.append(token)
        elif total:
            expanded += [token] * total
            total = 0
    return expanded


# %% expand_placeholders: one more than the image has tokens
def expand_placeholders(ids, grids, placeholder, merge_size):
    counts = iter(t * h * w // merge_size**2 for t, h, w in grids)
    expanded = []
    for token in ids:
        expanded.append(token)
        if token == placeholder:
            expanded += [token] * next(counts)
    return expanded


# %% expand_placeholders: the shipped function does the whole thing
def expand_placeholders(ids, grids, placeholder, merge_size):
    import processor

    counts = iter(t * h * w // merge_size**2 for t, h, w in grids)
    return processor.expand_placeholders(ids, {placeholder: counts})


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


# %% encode_pieces: the text behind the last control token is lost
def encode_pieces(pieces):
    ids, text = [], ""
    for piece, is_control in pieces:
        if not is_control:
            text += piece
            continue
        ids += processor.encode_text(text)
        ids.append(processor.special_tokens[piece])
        text = ""
    return ids


# %% encode_pieces: text is not begun anew behind a control token
def encode_pieces(pieces):
    ids, text = [], ""
    for piece, is_control in pieces:
        if not is_control:
            text += piece
            continue
        ids += processor.encode_text(text)
        ids.append(processor.special_tokens[piece])
    return ids + processor.encode_text(text)


# %% encode_pieces: looks at the spelling of a piece, not at its mark
def encode_pieces(pieces):
    ids, text = [], ""
    for piece, _ in pieces:
        if piece not in processor.special_tokens:
            text += piece
            continue
        ids += processor.encode_text(text)
        ids.append(processor.special_tokens[piece])
        text = ""
    return ids + processor.encode_text(text)


# %% encode_pieces: all is text, also what the template has set
def encode_pieces(pieces):
    return processor.encode_text("".join(text for text, _ in pieces))


# %% encode_pieces: removes what a user forged
def encode_pieces(pieces):
    ids, text = [], ""
    for piece, is_control in pieces:
        if not is_control:
            for control in processor.special_tokens:
                piece = piece.replace(control, "")
            text += piece
            continue
        ids += processor.encode_text(text)
        ids.append(processor.special_tokens[piece])
        text = ""
    return ids + processor.encode_text(text)


# %% encode_pieces: spaces at the ends of a text are lost
def encode_pieces(pieces):
    ids, text = [], ""
    for piece, is_control in pieces:
        if not is_control:
            text += piece
            continue
        ids += processor.encode_text(text.strip())
        ids.append(processor.special_tokens[piece])
        text = ""
    return ids + processor.encode_text(text.strip())


# %% encode_pieces: the shipped encoder does the whole thing
def encode_pieces(pieces):
    return processor.encode(pieces)
