"""Wrong answers to the exercises of notebook 01; tests/test_notebooks.py tries each."""


# %% patch_index: row by row, the squares are forgotten
def patch_index(row, column, w, merge_size):
    return row * w + column


# %% patch_index: square by square, but column by column inside a square
def patch_index(row, column, w, merge_size):
    above = row // merge_size * merge_size * w
    before = column // merge_size * merge_size**2
    return above + before + column % merge_size * merge_size + row % merge_size


# %% patch_index: the width of the plot is written into the code
def patch_index(row, column, w, merge_size):
    above = row // merge_size * merge_size * 12
    before = column // merge_size * merge_size**2
    return above + before + row % merge_size * merge_size + column % merge_size


# %% patch_index: squares of 2 x 2 are written into the code
def patch_index(row, column, w, merge_size):
    return row // 2 * 2 * w + column // 2 * 4 + row % 2 * 2 + column % 2


# %% patch_index: a square is taken to hold merge_size patches
def patch_index(row, column, w, merge_size):
    above = row // merge_size * merge_size * w
    before = column // merge_size * merge_size
    return above + before + row % merge_size * merge_size + column % merge_size


# %% patch_index: a row of squares is taken to hold w patches
def patch_index(row, column, w, merge_size):
    before = column // merge_size * merge_size**2
    return row // merge_size * w + before + row % merge_size * merge_size + column % merge_size


# %% patch_index: the right number, but not a whole one
def patch_index(row, column, w, merge_size):
    above = (row - row % merge_size) * w
    before = (column - column % merge_size) / merge_size * merge_size**2
    return above + before + row % merge_size * merge_size + column % merge_size


# %% patch_index: the shipped function does the whole thing
def patch_index(row, column, w, merge_size):
    h = (row // merge_size + 1) * merge_size
    numbered = torch.arange(h * w).view(1, 1, h, w)
    order = patchify(numbered, 1, 1, merge_size)[0].flatten().tolist()
    return order.index(row * w + column)


# %% unpatchify: the two middle pairs of axes are not swapped back
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    patch_size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = patches.view(len(patches), 3, -1) * std + mean
    x = x.view(h, w, 3, depth, patch_size, patch_size)[:, :, :, 0]
    return x.permute(2, 0, 3, 1, 4).reshape(3, h * patch_size, w * patch_size)


# %% unpatchify: the values stay normalised
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, merge = image_processor.patch_size, image_processor.merge_size
    x = patches.view(h // merge, w // merge, merge, merge, 3, -1, size, size)[:, :, :, :, :, 0]
    return x.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, h * size, w * size)


# %% unpatchify: squares of 2 x 2 are written into the code
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = 2 if h % 2 == 0 and w % 2 == 0 else 1
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, h * size, w * size)


# %% unpatchify: this model's mean and spread are written into the code
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, h * size, w * size)


# %% unpatchify: one mean and spread for all colours
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor(image_processor.image_mean[:1] * 3)[:, None]
    std = torch.tensor(image_processor.image_std[:1] * 3)[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, h * size, w * size)


# %% unpatchify: the mean is added before the spread is undone
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = (patches.view(h * w, 3, -1) + mean) * std
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, h * size, w * size)


# %% unpatchify: rows and columns of a patch are swapped
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 6, 1, 3, 5)
    return x.reshape(3, h * size, w * size)


# %% unpatchify: channels come last, as other libraries have them
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, h * size, w * size).permute(1, 2, 0)


# %% unpatchify: whole levels in place of values from 0 to 1
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return (255 * x.reshape(3, h * size, w * size)).round().byte()


# %% unpatchify: in double precision
def unpatchify(patches, grid, image_processor):
    _, h, w = grid
    size, depth = image_processor.patch_size, image_processor.temporal_patch_size
    merge = image_processor.merge_size
    mean = torch.tensor(image_processor.image_mean)[:, None]
    std = torch.tensor(image_processor.image_std)[:, None]
    x = patches.view(h * w, 3, -1) * std + mean
    x = x.view(h // merge, w // merge, merge, merge, 3, depth, size, size)[:, :, :, :, :, 0]
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, h * size, w * size).double()


# %% unpatchify: what the course has ready does the whole thing
def unpatchify(patches, grid, image_processor):
    return course.image_from_patches(patches, grid, image_processor)
