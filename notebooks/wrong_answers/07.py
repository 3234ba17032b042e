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


# %% patches_to_frames: squares of 2 x 2 are written into the code
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    m = 2 if h % 2 == 0 and w % 2 == 0 else 1
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    return x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: all first frames come before all second ones
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(6, 0, 5, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: the pixels of a patch are transposed
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 1, 3, 8, 2, 4, 7)
    return x.reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: the patches in a square are transposed
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 1, 4, 7, 2, 3, 8)
    return x.reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: the squares are transposed and reshaped as if they were not
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 2, 3, 7, 1, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: frames and channels are mixed up
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 5, 6, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side)


# %% patches_to_frames: blue comes first
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side).flip(1)


# %% patches_to_frames: channels come last
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side).permute(0, 2, 3, 1)


# %% patches_to_frames: whole levels in place of floats
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side).long()


# %% patches_to_frames: the last pair is lost
def patches_to_frames(patches, grid, side, depth, m):
    t, h, w = grid
    x = patches.view(t, h // m, w // m, m, m, 3, depth, side, side)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, 3, h * side, w * side)[: max(1, t - 1) * depth]


# %% patches_to_frames: the shipped function, turned round, does the whole thing
def patches_to_frames(patches, grid, side, depth, m):
    from processor import patchify

    t, h, w = grid
    shape = (t * depth, 3, h * side, w * side)
    source, _ = patchify(torch.arange(patches.numel()).view(shape), side, depth, m)
    frames = torch.empty(patches.numel(), dtype=patches.dtype)
    frames[source.flatten()] = patches.flatten()
    return frames.view(shape)


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


# %% locate_token: squares of 2 x 2 are written into the code
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    rows, columns = max(1, h // 2), max(1, w // 2)
    pair, rest = divmod(k, rows * columns)
    pair = min(pair, len(chosen) // 2 - 1)
    begin, end = chosen[2 * pair] / rate, chosen[2 * pair + 1] / rate
    return begin, end, rest // columns, rest % columns


# %% locate_token: the rate of the example is written into the code
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[2 * pair] / 8, chosen[2 * pair + 1] / 8
    return begin, end, rest // (w // m), rest % (w // m)


# %% locate_token: the numbers of frames in place of seconds
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    return chosen[2 * pair], chosen[2 * pair + 1], rest // (w // m), rest % (w // m)


# %% locate_token: the pair's number is taken for a frame's
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[pair] / rate, chosen[pair + 1] / rate
    return begin, end, rest // (w // m), rest % (w // m)


# %% locate_token: the pair ends where the next one begins
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[2 * pair] / rate, chosen[min(2 * pair + 2, len(chosen) - 1)] / rate
    return begin, end, rest // (w // m), rest % (w // m)


# %% locate_token: column by column
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[2 * pair] / rate, chosen[2 * pair + 1] / rate
    return begin, end, rest % (h // m), rest // (h // m)


# %% locate_token: row and column are swapped
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[2 * pair] / rate, chosen[2 * pair + 1] / rate
    return begin, end, rest % (w // m), rest // (w // m)


# %% locate_token: the row is counted through the whole video
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair = k // (h // m * (w // m))
    begin, end = chosen[2 * pair] / rate, chosen[2 * pair + 1] / rate
    return begin, end, k // (w // m), k % (w // m)


# %% locate_token: counted from 1
def locate_token(k, grid, m, chosen, rate):
    _, h, w = grid
    pair, rest = divmod(k, h // m * (w // m))
    begin, end = chosen[2 * pair] / rate, chosen[2 * pair + 1] / rate
    return begin, end, rest // (w // m) + 1, rest % (w // m) + 1


# %% longest_video: stops at the first number of frames that doesn't fit
def longest_video(room, height, width):
    n = 2
    while n <= 768:
        tokens, _ = video_tokens(n, height, width)
        if tokens > room:
            break
        n += 2
    return (n - 2, video_tokens(n - 2, height, width)[1]) if n > 2 else (0, None)


# %% longest_video: counts two frames as two
def longest_video(room, height, width):
    best = (0, None)
    for n in range(2, 769, 2):
        tokens, size = video_tokens(n, height, width)
        if 2 * tokens <= room:
            best = (n, size)
    return best


# %% longest_video: a binary search, as if more frames always cost more
def longest_video(room, height, width):
    low, high = 0, 384  # in pairs; `low` fits
    while low < high:
        middle = (low + high + 1) // 2
        if video_tokens(2 * middle, height, width)[0] <= room:
            low = middle
        else:
            high = middle - 1
    return (2 * low, video_tokens(2 * low, height, width)[1]) if low else (0, None)


# %% longest_video: height and width are swapped
def longest_video(room, height, width):
    best = (0, None)
    for n in range(2, 769, 2):
        tokens, size = video_tokens(n, width, height)
        if tokens <= room:
            best = (n, size)
    return best


# %% longest_video: the frames keep their size
def longest_video(room, height, width):
    best = (0, None)
    for n in range(2, 769, 2):
        size = smart_resize(height, width, min_pixels=1, max_pixels=10**9)
        if n // 2 * (size[0] // 28) * (size[1] // 28) <= room:
            best = (n, size)
    return best


# %% longest_video: the last number of frames is forgotten
def longest_video(room, height, width):
    best = (0, None)
    for n in range(2, 768, 2):
        tokens, size = video_tokens(n, height, width)
        if tokens <= room:
            best = (n, size)
    return best


# %% longest_video: one frame too many
def longest_video(room, height, width):
    best = (0, None)
    for n in range(1, 769):
        tokens, size = video_tokens(n, height, width)
        if tokens <= room:
            best = (n, size)
    return best


# %% longest_video: less room than there is
def longest_video(room, height, width):
    best = (0, None)
    for n in range(2, 769, 2):
        tokens, size = video_tokens(n, height, width)
        if tokens < room:
            best = (n, size)
    return best


# %% longest_video: two frames where nothing fits
def longest_video(room, height, width):
    best = (2, video_tokens(2, height, width)[1])
    for n in range(2, 769, 2):
        tokens, size = video_tokens(n, height, width)
        if tokens <= room:
            best = (n, size)
    return best


# %% longest_video: the most expensive video, not the longest one
def longest_video(room, height, width):
    fitting = [(0, 0, None)]
    for n in range(2, 769, 2):
        tokens, size = video_tokens(n, height, width)
        if tokens <= room:
            fitting.append((tokens, n, size))
    _, n, size = max(fitting, key=lambda one: one[0])
    return n, size


# %% longest_video: the size of the frames as they were
def longest_video(room, height, width):
    longest = 0
    for n in range(2, 769, 2):
        if video_tokens(n, height, width)[0] <= room:
            longest = n
    return longest, (height, width)
