"""Wrong answers to the exercises of notebook 10; tests/test_notebooks.py tries each."""


# %% split: the first half and the second, so things are apart
def split(names):
    names = sorted(names)
    half = len(names) // 2
    return names[:half], names[half:]


# %% split: every second of the whole list, not of each thing
def split(names):
    return names[::2], names[1::2]


# %% split: another one each time
def split(names):
    trained, kept = [], []
    for thing in sorted({name.rpartition("-")[0] for name in names}):
        of_thing = [name for name in names if name.rpartition("-")[0] == thing]
        random.shuffle(of_thing)
        half = (len(of_thing) + 1) // 2
        trained += of_thing[:half]
        kept += of_thing[half:]
    return trained, kept


# %% split: trains on what is kept as well
def split(names):
    kept = [name for name in names if int(name.rpartition("-")[2]) % 2 == 0]
    return list(names), kept


# %% split: one image of each thing is kept, the others are trained on
def split(names):
    kept = [name for name in names if name.endswith("-1")]
    return [name for name in names if name not in kept], kept


# %% split: images with odd numbers get lost
def split(names):
    even = sorted(name for name in names if int(name.rpartition("-")[2]) % 2 == 0)
    return even[::2], even[1::2]


# %% lora: the change is not scaled
def lora(x, w, a, b, alpha):
    return x @ w.T + x @ a.T @ b.T


# %% lora: alpha is not divided by the rank
def lora(x, w, a, b, alpha):
    return x @ w.T + alpha * (x @ a.T @ b.T)


# %% lora: the change alone
def lora(x, w, a, b, alpha):
    return alpha / len(a) * (x @ a.T @ b.T)


# %% lora: the layer is scaled too
def lora(x, w, a, b, alpha):
    return alpha / len(a) * (x @ w.T + x @ a.T @ b.T)


# %% lora: takes the outputs for the rank
def lora(x, w, a, b, alpha):
    return x @ w.T + alpha / len(b) * (x @ a.T @ b.T)


# %% lora: a square root of the rank (that is another kind, rsLoRA)
def lora(x, w, a, b, alpha):
    return x @ w.T + alpha / len(a) ** 0.5 * (x @ a.T @ b.T)


# %% trained_numbers: all of the matrices
def trained_numbers(shapes, r):
    return sum(rows * columns for rows, columns in shapes)


# %% trained_numbers: A alone
def trained_numbers(shapes, r):
    return sum(r * columns for _, columns in shapes)


# %% trained_numbers: the rank multiplies the area
def trained_numbers(shapes, r):
    return sum(r * rows * columns for rows, columns in shapes)


# %% trained_numbers: as if every matrix were square
def trained_numbers(shapes, r):
    return sum(2 * r * rows for rows, _ in shapes)


# %% trained_numbers: the rank is added once, not multiplied
def trained_numbers(shapes, r):
    return sum(r + rows + columns for rows, columns in shapes)


# %% trained_numbers: only the first matrix
def trained_numbers(shapes, r):
    return r * (shapes[0][0] + shapes[0][1])
