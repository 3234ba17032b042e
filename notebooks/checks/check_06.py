"""What the exercises of notebook 06 are checked with, and how some of its pictures are drawn."""

import math

import matplotlib.pyplot as plt
import torch
from course import Wrong
from matplotlib.patches import Patch

from checks.check_05 import bars as bars
from checks.check_05 import lines as lines
from checks.check_05 import table as table


def reference_probabilities(logits, seen, knobs):
    """What the reference's own classes make of logits (n,) after the tokens seen (S,): probabilities (n,)."""
    from transformers.generation import logits_process as parts

    kinds = {
        "repetition_penalty": parts.RepetitionPenaltyLogitsProcessor,
        "temperature": parts.TemperatureLogitsWarper,
        "top_k": parts.TopKLogitsWarper,
        "top_p": parts.TopPLogitsWarper,
    }
    scores = logits[None].clone()
    for name, value in knobs.items():
        scores = kinds[name](value)(seen[None], scores)
    return scores.softmax(-1)[0]


def draw_work(T, steps):
    """Attention scores of each step: computed now (dark), before (light), or masked (white)."""
    _, panels = plt.subplots(2, steps, figsize=(2 * steps + 1.5, 4.3))
    for line, name in zip(panels, ("without a cache", "with a cache"), strict=True):
        for i, axes in enumerate(line):
            S = T + i
            work = torch.ones(S, S)
            if name == "with a cache" and i:
                work[:-1] = 0.4
            axes.imshow(work.tril(), vmin=0, vmax=1.5)
            axes.set(xticks=range(S), yticks=range(S))
            axes.tick_params(labelsize=8)
            axes.grid(False)
            now = int((work.tril() == 1).sum())
            axes.set_title(f"step {i + 1}: {now} scores", fontsize=9)
        line[0].set_ylabel(f"{name}\nquery of token", fontsize=9)
    for axes in panels[1]:
        axes.set_xlabel("key of token", fontsize=9)
    plt.suptitle("Scores of one head: dark = computed in this step, light = not needed again", fontsize=10)
    plt.show()


def draw_choices(words, settings, probabilities, shares):
    """A panel for each setting: probabilities as bars, counted shares as crosses."""
    _, panels = plt.subplots(1, len(settings), figsize=(11, 3.2), sharey=True)
    for axes, name, p, share in zip(panels, settings, probabilities, shares, strict=True):
        n = len(words)
        axes.bar(range(n), p[:n], color="0.8", edgecolor="black", label="probability")
        axes.plot(range(n), share[:n], "x", color="black", markersize=8, markeredgewidth=2, label="counted")
        axes.set_xticks(range(n), words, rotation=60, fontsize=9)
        axes.set_title(name.replace(", ", ",\n"), fontsize=10)
    panels[0].set_ylabel("share of 2,000 draws")
    panels[0].legend(fontsize=9)
    plt.show()


def draw_rows(config, batches, names):
    """Where padding, text and pictures lie in each row."""
    _, panels = plt.subplots(len(batches), 1, figsize=(9, 1.75 * len(batches)), sharex=True)
    for axes, (title, batch) in zip(panels, batches.items(), strict=True):
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu()
        kinds = torch.full(ids.shape, 0.1).masked_fill(ids == config.image_token_id, 0.4)
        kinds = kinds.masked_fill(mask == 0, 0.9)
        axes.imshow(kinds, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.axvline(ids.shape[1] - 1.5, color="#d55e00", linewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title)
        axes.grid(False)
    panels[-1].set_xlabel("column (the next token is asked for behind the last one, right of the line)")
    shades = {"text": "0.9", "picture": "0.6", "padding": "0.1"}
    legend = [Patch(facecolor=shade, edgecolor="black", label=kind) for kind, shade in shades.items()]
    panels[0].legend(handles=legend, loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


# ------------------------------------------------------------------------------------------------- exercises


def greedy(answer, model, prompts):
    """Exercise 1: greedy generation with a cache; how many tokens go through the decoder is counted."""
    first = []
    for inputs in prompts:
        T, n = inputs["input_ids"].shape[1], 10
        right = model.generate(**inputs, max_new_tokens=n, do_sample=False)[0, T:].tolist()
        for most in (n, 1):
            passes = []
            hook = model.model.register_forward_pre_hook(
                lambda _, args, to=passes: to.append(args[0].shape[1])
            )
            try:
                found = answer(model, inputs, most)
            finally:
                hook.remove()
            compare(found, right[:most], passes, T)
            first = first or passes
    draw_passes(first, None)


def passes_wanted(T, m):
    return [T] + [1] * (m - 1)


def compare(found, right, passes, T):
    """One answer's tokens, and the tokens of each pass through the decoder."""
    if not isinstance(found, list) or not all(isinstance(token, int) for token in found):
        raise Wrong(f"it gives {type(found).__name__}, wanted is a list of int: {found!r:.99}")
    if found != right:
        places = zip(found, right, strict=False)
        at = next((i for i, (a, b) in enumerate(places) if a != b), min(len(found), len(right)))
        if at == len(right):
            raise Wrong(f"it should have stopped behind {right}, yours goes on: {found}")
        if at == len(found):
            raise Wrong(f"it stops behind {found}, but the answer is {right}")
        said = f"behind {at} right tokens comes {found[at]}, it should be {right[at]}"
        raise Wrong(f"{said}: look at positions and cache (yours {found}, wanted {right})")
    if sum(passes) != T + len(right) - 1:
        draw_passes(passes, passes_wanted(T, len(right)))
        raise Wrong(
            f"the tokens are right, but {sum(passes)} went through the decoder; with {T} in the prompt "
            f"and {len(right)} new, {T + len(right) - 1} are enough: the prompt once, then one at a time"
        )


def draw_passes(yours, wanted):
    """How many tokens each pass reads."""
    _, axes = plt.subplots(figsize=(7, 2.8))
    axes.plot(range(1, len(yours) + 1), yours, "s", color="black", markersize=8, label="yours")
    if wanted:
        axes.plot(range(1, len(wanted) + 1), wanted, "x", color="#d55e00", markersize=9, label="enough")
    axes.set(title="Tokens read in each pass", xlabel="pass", ylabel="tokens", yscale="log")
    axes.legend()
    plt.show()


def min_p(answer):
    """Exercise 2: min-p on a few distributions."""
    generator = torch.Generator().manual_seed(0)
    examples = [(torch.tensor([2.0, 1.0, 0.0]), share) for share in (0.3, 0.2, 0.5)]
    examples += [(4 * torch.randn(12, generator=generator), share) for share in (0.01, 0.1, 0.3, 1.0)]
    examples += [(torch.zeros(8), 0.9), (torch.tensor([0.3, 0.0, 0.1, -0.2, 0.2, -2.0]), 0.4)]
    for logits, share in examples:
        p = logits.softmax(-1)
        right = torch.where(p >= share * p.max(), p, 0)
        right = right / right.sum()
        found = torch.as_tensor(answer(logits.clone(), share))
        case = f"for logits {[round(x, 1) for x in logits.tolist()]} and share {share}"
        if found.shape != right.shape:
            raise Wrong(f"{case} it gives {tuple(found.shape)}, wanted is {tuple(right.shape)}")
        if found.isnan().any():
            raise Wrong(f"{case} it is NaN: the likeliest itself has to stay (at least, not more than)")
        if not math.isclose(float(found.sum()), 1, abs_tol=1e-4):
            raise Wrong(f"{case} the probabilities add up to {float(found.sum()):.3f}, not to 1")
        if (found - right).abs().max() > 1e-5:
            draw_cut(p, share, found, right)
            most = float(p.max())
            if torch.equal(found > 0, right > 0):
                raise Wrong(
                    f"{case} the right ones stay, but among themselves they should keep their proportions"
                )
            raise Wrong(
                f"{case}: the likeliest has {most:.3f}, so the bar is {share} · {most:.3f} = "
                f"{share * most:.3f}; {int((right > 0).sum())} stay, yours keeps {int((found > 0).sum())}"
            )
    logits, share = examples[4]
    draw_cut(logits.softmax(-1), share, torch.as_tensor(answer(logits, share)), None)


def draw_cut(p, share, found, right):
    """Probabilities before and after the cut, and the bar."""
    order = p.argsort(descending=True)
    _, axes = plt.subplots(figsize=(7, 3))
    axes.bar(range(len(p)), p[order], color="0.9", edgecolor="black", label="before")
    axes.plot(range(len(p)), found[order], "s", color="black", label="yours")
    if right is not None:
        axes.plot(range(len(p)), right[order], "x", color="#d55e00", markersize=9, label="right")
    axes.axhline(
        share * float(p.max()), color="0.3", linestyle="--", label=f"the bar: {share} of the likeliest"
    )
    axes.set(title="min-p", xlabel="tokens, likeliest first", ylabel="probability", xticks=range(len(p)))
    axes.legend()
    plt.show()


WRONG = [
    """
def greedy(model, inputs, n):
    T, ids = inputs["input_ids"].shape[1], inputs["input_ids"]
    media = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    while ids.shape[1] < T + n and int(ids[0, -1]) not in ends:
        token = model(ids, **media, logits_to_keep=1).logits[:, -1].argmax(-1)  # everything again
        ids = torch.cat((ids, token[:, None]), dim=1)
    return ids[0, T:].tolist()
""",
    """
def min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill((p < share) & (p < p.max()), -math.inf).softmax(-1)  # an absolute bar
""",
]
