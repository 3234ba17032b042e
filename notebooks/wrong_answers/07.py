"""Wrong answers to the exercises of notebook 07; tests/test_notebooks.py tries each."""


# %% patches_to_frames: the squares of 2 x 2 patches are forgotten
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h, w, 3, depth, side, side)
    return x.permute(0, 4, 3, 1, 5, 2, 6).reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: both frames of a pair are the first one
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x[:, :, :, :, :, :, :1].expand(-1, -1, -1, -1, -1, -1, depth, -1, -1)
    return x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * depth, 3, h * side, w * side)


# %% locate_token: as if every video were sampled twice a second
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    rows, columns = h // m, w // m
    pair, rest = divmod(k, rows * columns)
    return pair, pair + 0.5, rest // columns, rest % columns


# %% locate_token: rows and columns are counted in patches
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[2 * pair] / rate, chosen[2 * pair + 1] / rate
    return begin, end, rest // w, rest % w


# %% longest_video: stops at the first number of frames that doesn't fit
def longest_video(room, height, width):
    n = 2
    while n <= 768:
        tokens, _ = video_tokens(n, height, width)
        if tokens > room:
            break
        n += 2
    return n - 2


# %% longest_video: counts two frames as two
def longest_video(room, height, width):
    fitting = [0]
    for n in range(2, 769, 2):
        tokens, _ = video_tokens(n, height, width)
        if 2 * tokens <= room:
            fitting.append(n)
    return max(fitting)
