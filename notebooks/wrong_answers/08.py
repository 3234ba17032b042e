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


# %% to_bfloat16: cut off, not rounded
def to_bfloat16(x):
    m, e = torch.frexp(x)
    return torch.ldexp(torch.trunc(m * 256) / 256, e)


# %% to_bfloat16: ties are rounded up
def to_bfloat16(x):
    m, e = torch.frexp(x)
    return torch.ldexp(torch.floor(m * 256 + 0.5) / 256, e)
