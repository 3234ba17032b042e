"""Wrong answers to the exercises of notebook 08; tests/test_notebooks.py tries each."""


# %% first_wrong_stage: the difference is absolute, and NaN is not noticed
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if (ours[name] - reference).abs().max() > tolerance:
            return name
    return None


# %% first_wrong_stage: NaN is not noticed
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if (ours[name] - reference).abs().max() / reference.abs().max() > tolerance:
            return name
    return None


# %% first_wrong_stage: a tolerance is written into the code
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if not (ours[name] - reference).abs().max() / reference.abs().max() <= 1e-5:
            return name
    return None


# %% first_wrong_stage: relative to ours
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if not (ours[name] - reference).abs().max() / ours[name].abs().max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: each number relative to itself
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if not ((ours[name] - reference) / reference).abs().max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: the mean in place of the largest difference
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if not (ours[name] - reference).abs().mean() / reference.abs().max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: the sign of a difference is forgotten
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if not (ours[name] - reference).max() / reference.abs().max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: divided by the largest number, which may be negative
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        if not (ours[name] - reference).abs().max() / reference.max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: the last wrong stage
def first_wrong_stage(ours, theirs, tolerance):
    found = None
    for name, reference in theirs.items():
        difference = (ours[name] - reference).abs().max() / reference.abs().max()
        if not difference <= tolerance:
            found = name
    return found


# %% first_wrong_stage: the worst stage
def first_wrong_stage(ours, theirs, tolerance):
    worst, found = tolerance, None
    for name, reference in theirs.items():
        if ours[name].shape != reference.shape:
            return name
        difference = (ours[name] - reference).abs().max() / reference.abs().max()
        if not difference <= worst:
            worst, found = difference, name
    return found


# %% first_wrong_stage: in the order of the alphabet
def first_wrong_stage(ours, theirs, tolerance):
    for name in sorted(theirs):
        reference = theirs[name]
        if ours[name].shape != reference.shape:
            return name
        if not (ours[name] - reference).abs().max() / reference.abs().max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: another shape is cut to fit
def first_wrong_stage(ours, theirs, tolerance):
    for name, reference in theirs.items():
        n = min(len(ours[name]), len(reference))
        difference = (ours[name][:n] - reference[:n]).abs().max()
        if not difference / reference.abs().max() <= tolerance:
            return name
    return None


# %% first_wrong_stage: its number in place of its name
def first_wrong_stage(ours, theirs, tolerance):
    for i, (name, reference) in enumerate(theirs.items()):
        if ours[name].shape != reference.shape:
            return i
        if not (ours[name] - reference).abs().max() / reference.abs().max() <= tolerance:
            return i
    return None


# %% to_bfloat16: cut off, not rounded
def to_bfloat16(x):
    m, e = torch.frexp(x)
    return torch.ldexp(torch.trunc(m * 256) / 256, e)


# %% to_bfloat16: ties are rounded up
def to_bfloat16(x):
    m, e = torch.frexp(x)
    return torch.ldexp(torch.floor(m * 256 + 0.5) / 256, e)


# %% to_bfloat16: PyTorch's own bfloat16 does the whole thing
def to_bfloat16(x):
    return x.to(torch.bfloat16).float()


# %% to_bfloat16: the method does the whole thing
def to_bfloat16(x):
    return x.bfloat16().to(x.dtype)


# %% to_bfloat16: right near 1 only
def to_bfloat16(x):
    return torch.round(x * 128) / 128


# %% to_bfloat16: 7 bits
def to_bfloat16(x):
    m, e = torch.frexp(x)
    return torch.ldexp(torch.round(m * 128) / 128, e)


# %% to_bfloat16: float16 has more bits and a smaller range
def to_bfloat16(x):
    return x.half().float()


# %% to_bfloat16: the lower half of the bits is cut off
def to_bfloat16(x):
    return (x.view(torch.int32) & -65536).view(torch.float32)


# %% to_bfloat16: ties away from 0
def to_bfloat16(x):
    bits = x.contiguous().view(torch.int32) + 0x8000
    return (bits & -65536).view(torch.float32)


# %% to_bfloat16: three decimal digits in place of eight bits
def to_bfloat16(x):
    return torch.tensor([float(f"{v:.3g}") for v in x.flatten().tolist()]).view(x.shape)


# %% to_bfloat16: the sign is lost
def to_bfloat16(x):
    m, e = torch.frexp(x.abs())
    return torch.ldexp(torch.round(m * 256) / 256, e)


# %% to_bfloat16: in double precision
def to_bfloat16(x):
    m, e = torch.frexp(x.double())
    return torch.ldexp(torch.round(m * 256) / 256, e)
