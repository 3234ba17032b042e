"""Wrong answers to the exercises of notebook 01; tests/test_notebooks.py tries each."""


# %% patch_index: row by row, the squares are forgotten
def patch_index(row, column, w, merge_size):
    return row * w + column


# %% patch_index: square by square, but column by column inside a square
def patch_index(row, column, w, merge_size):
    above = row // merge_size * merge_size * w
    before = column // merge_size * merge_size**2
    return above + before + column % merge_size * merge_size + row % merge_size


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
