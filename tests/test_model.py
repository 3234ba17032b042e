"""The model against transformers 4.57.6 on random small models: hidden states, logits, positions, loss.

The negative controls show that the comparisons can fail: one thing done wrong must miss by 100 tolerances.
"""

import random

import pytest
import torch
from reference import (
    KINDS,
    TOLERANCE,
    Row,
    collate,
    error,
    official_names,
    random_inputs,
    random_pair,
    random_row,
    random_rows,
    rows_alone,
)

import fast
import qwen2vl
from qwen2vl import KVCache, Qwen2VLConfig, get_rope_index

MISS = 100 * TOLERANCE
WRONG = "negative controls, relative error"


@torch.no_grad()
def compare(ours, theirs, inputs, **changes) -> float:
    """The largest relative error over all hidden states and the logits of tokens that are not padding."""
    real = inputs["attention_mask"].bool()
    a = ours(**(inputs | changes), output_hidden_states=True)
    b = theirs(**inputs, output_hidden_states=True)
    pairs = [(a.logits, b.logits), *zip(a.hidden_states, b.hidden_states, strict=True)]
    return max(error(x[real], y[real]) for x, y in pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attn", ["eager", "sdpa", "blocks"])
@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_and_logits_equal_the_reference(kind, attn, tied, amount, figure):
    for seed in range(amount(3, 30)):
        ours, theirs = random_pair(seed, tied, attn)
        inputs = random_inputs(ours.config, kind, seed)
        found = compare(ours, theirs, inputs)
        assert figure("hidden states and logits, relative error", found) <= TOLERANCE, f"seed {seed}"


@pytest.mark.parametrize("attn", ["eager", "sdpa", "blocks"])
def test_vision_features_equal_the_reference(attn, amount, figure):
    for seed in range(amount(3, 30)):
        ours, theirs = random_pair(seed, attn=attn)
        inputs = random_inputs(ours.config, "mixed batch", seed)
        for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            with torch.no_grad():
                a = ours.visual(inputs[pixels], inputs[grid], attn)
                b = theirs.model.visual(inputs[pixels], inputs[grid])
            assert figure("vision features, relative error", error(a, b)) <= TOLERANCE, f"seed {seed}"


class TestNegativeControls:
    """What must not pass: each of these is a bug that somebody has shipped."""

    def test_rows_and_columns_swapped_in_mrope(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "picture", 1)
        t, h, w = ours.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])[0]
        assert figure(WRONG, compare(ours, theirs, inputs, position_ids=torch.stack((t, w, h)))) >= MISS

    def test_one_dimensional_positions(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "picture", 1)
        flat = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
        assert figure(WRONG, compare(ours, theirs, inputs, position_ids=flat)) >= MISS

    def test_unmasked_padding(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "mixed batch", 1)
        grids = inputs["image_grid_thw"], inputs["video_grid_thw"], inputs["attention_mask"]
        positions, _ = ours.get_rope_index(inputs["input_ids"], *grids)
        changes = {"position_ids": positions, "attention_mask": None}
        assert figure(WRONG, compare(ours, theirs, inputs, **changes)) >= MISS

    def test_no_vision_rotary(self, figure, monkeypatch):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "picture", 1)
        monkeypatch.setattr(
            ours.visual, "rotary_table", lambda h, w, device: (torch.ones(h * w, 1), torch.zeros(h * w, 1))
        )
        assert figure(WRONG, compare(ours, theirs, inputs)) >= MISS

    def attend_to_all(self, monkeypatch) -> None:
        """Let the frames or pictures of a batch in the vision transformer see each other."""
        apart = qwen2vl.attention

        def together(q, k, v, *how, **more):
            if more.get("causal"):
                return apart(q, k, v, *how, **more)
            t, _, P, _ = q.shape
            q, k, v = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v))  # (1, H, t * P, d)
            out, weights = apart(q, k, v, *how)
            return out.view(t, P, -1), weights

        monkeypatch.setattr(qwen2vl, "attention", together)

    def test_frames_attending_to_each_other(self, figure, monkeypatch):
        ours, theirs = random_pair(1)
        row = Row(
            [5, ours.config.vision_start_token_id, *[ours.config.video_token_id] * 12, 6], [], [[3, 4, 4]]
        )
        inputs = collate([row], ours.config, 1)
        assert compare(ours, theirs, inputs) <= TOLERANCE
        self.attend_to_all(monkeypatch)
        assert figure(WRONG, compare(ours, theirs, inputs)) >= MISS

    def test_pictures_attending_to_each_other(self, figure, monkeypatch):
        ours, theirs = random_pair(1)
        picture = [ours.config.vision_start_token_id, *[ours.config.image_token_id] * 4]
        inputs = collate([Row([5, *picture, 6, *picture, 7], [[1, 4, 4]] * 2, [])], ours.config, 1)
        assert compare(ours, theirs, inputs) <= TOLERANCE
        self.attend_to_all(monkeypatch)
        monkeypatch.setattr(
            ours.visual, "forward", lambda pixels, grid, how: ours.visual.encode(pixels, 2, 4, 4, how)
        )
        assert figure(WRONG, compare(ours, theirs, inputs)) >= MISS

    def test_delta_one_too_large(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "picture", 1)
        T = inputs["input_ids"].shape[1]
        token = torch.tensor([[3]])
        with torch.no_grad():
            cache = KVCache(ours.config, 1, T + 1)
            deltas = ours(**inputs, past_key_values=cache).rope_deltas
            grown = inputs | {"input_ids": torch.cat((inputs["input_ids"], token), 1)}
            grown["attention_mask"] = torch.ones_like(grown["input_ids"])
            reference = theirs(**grown).logits[:, -1]
            right = ours(token, past_key_values=cache, rope_deltas=deltas).logits[:, -1]
            cache.length = T
            wrong = ours(token, past_key_values=cache, rope_deltas=deltas + 1).logits[:, -1]
        assert error(right, reference) <= TOLERANCE
        assert figure(WRONG, error(wrong, reference)) >= MISS


# -------------------------------------------------------------------------------------------- positions


def test_positions_and_deltas_equal_the_reference(amount):
    _, theirs = random_pair(0)
    config = Qwen2VLConfig.from_dict(theirs.config.to_dict())
    for seed in range(amount(100, 500)):
        rng = random.Random(seed)
        rows = []
        for _ in range(rng.randint(1, 4)):
            media = rng.choices(["image", "video"], k=rng.randint(0, 4))
            rows.append(random_row(rng, config, media, longest=rng.choice([4, 50])))
        inputs = collate(rows, config, seed)
        grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
        mask = inputs["attention_mask"]
        positions, deltas = get_rope_index(config, inputs["input_ids"], **grids, attention_mask=mask)
        expected, expected_deltas = theirs.model.get_rope_index(
            inputs["input_ids"], **grids, attention_mask=mask
        )
        assert torch.equal(positions, expected) and torch.equal(deltas, expected_deltas), f"seed {seed}"


def test_text_after_a_long_video_starts_at_the_largest_position_plus_one():
    """The example of a grid 6, 2, 2 behind 3 text tokens: 3 to 8 in time, then 9; delta -18 for 30 tokens."""
    config = Qwen2VLConfig.from_dict(random_pair(0)[1].config.to_dict())
    ids = torch.tensor([[1, 2, 3, *[config.video_token_id] * 24, 4, 5, 6]])
    positions, deltas = get_rope_index(config, ids, video_grid_thw=torch.tensor([[6, 4, 4]]))
    assert positions[0, 0, 3:27].tolist() == [t for t in range(3, 9) for _ in range(4)]
    assert positions[:, 0, 27].tolist() == [9, 9, 9]
    assert deltas.tolist() == [[-18]]


# ------------------------------------------------------------------------------------- loss and gradients


def test_loss_and_gradient_norms_equal_the_reference(amount, figure):
    for seed in range(amount(3, 20)):
        ours, theirs = random_pair(seed)
        inputs = random_inputs(ours.config, "mixed batch", seed)
        # Nor the first real token: padding would predict it, and what padding sees is nobody's promise.
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(-1) <= 1, -100)
        a, b = ours(**inputs, labels=labels).loss, theirs(**inputs, labels=labels).loss
        assert figure("loss, relative error", (abs(a - b) / abs(b)).item()) <= 1e-6
        a.backward()
        b.backward()
        named = {name: p.grad for name, p in theirs.named_parameters()}
        for name, expected in official_names(named).items():
            norm, wanted = ours.get_parameter(name).grad.norm().item(), expected.norm().item()
            if wanted > 1e-6:  # a key's bias shifts all scores alike, so its gradient is rounding only
                assert figure("gradient norms, relative error", abs(norm - wanted) / wanted) <= 1e-5, name


# -------------------------------------------------------------------------- promises of the forward pass


def test_features_of_two_pictures_are_the_features_of_each_bit_for_bit():
    ours, _ = random_pair(2)
    generator = torch.Generator().manual_seed(0)
    for grids in ([[1, 4, 6], [1, 8, 2]], [[1, 4, 4], [1, 4, 4]], [[3, 4, 4], [1, 6, 6]]):
        grids = torch.tensor(grids)
        pixels = torch.randn(int(grids.prod(-1).sum()), 1176, generator=generator)
        n = int(grids[0].prod())
        with torch.no_grad():
            both = ours.visual(pixels, grids)
            alone = [ours.visual(pixels[:n], grids[:1]), ours.visual(pixels[n:], grids[1:])]
        assert torch.equal(both, torch.cat(alone))


@pytest.mark.parametrize("attn", ["eager", "sdpa", "blocks"])
def test_a_changed_token_changes_no_logit_before_it(attn):
    ours, _ = random_pair(3, attn=attn)
    inputs = random_inputs(ours.config, "picture", 3)
    embeds = ours.embed(inputs["input_ids"], (inputs["pixel_values"], inputs["image_grid_thw"])).detach()
    positions, _ = ours.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])
    with torch.no_grad():
        before = ours(inputs_embeds=embeds, position_ids=positions).logits
        for k in range(embeds.shape[1]):  # inside the picture as well
            changed = embeds.clone()
            changed[:, k] += 1
            after = ours(inputs_embeds=changed, position_ids=positions).logits
            assert error(after[:, :k], before[:, :k]) <= TOLERANCE if k else True
            assert error(after[:, k], before[:, k]) >= MISS


def test_a_padded_batch_gives_the_logits_of_its_rows_alone():
    ours, _ = random_pair(4)
    rows = random_rows(random.Random(4), ours.config, "mixed batch")
    inputs = collate(rows, ours.config, 4)
    with torch.no_grad():
        batch = ours(**inputs).logits
        for i, (row, alone) in enumerate(zip(rows, rows_alone(rows, inputs, ours.config), strict=True)):
            assert error(batch[i, -len(row.ids) :], ours(**alone).logits[0]) <= TOLERANCE


@pytest.mark.parametrize("change", [1, -1])
def test_more_or_fewer_pictures_than_slots_is_an_error_with_both_counts(change):
    ours, _ = random_pair(5)
    inputs = random_inputs(ours.config, "picture", 5)
    n = int((inputs["input_ids"] == ours.config.image_token_id).sum())
    grid = inputs["image_grid_thw"]
    if change > 0:
        inputs["image_grid_thw"] = torch.cat((grid, torch.tensor([[1, 2, 2]])))
        inputs["pixel_values"] = torch.cat((inputs["pixel_values"], torch.randn(4, 1176)))
        found = f"{n} image tokens, the images give {n + 1}"
    else:
        del inputs["image_grid_thw"], inputs["pixel_values"]
        found = f"{n} image tokens, the images give 0"
    with pytest.raises(ValueError, match=found):
        ours(**inputs)


def test_only_the_asked_logits_are_computed():
    ours, _ = random_pair(6)
    inputs = random_inputs(ours.config, "mixed batch", 6)
    with torch.no_grad():
        every, last = ours(**inputs).logits, ours(**inputs, logits_to_keep=3).logits
    assert last.shape[1] == 3
    assert error(last, every[:, -3:]) <= TOLERANCE


def test_attention_weights_are_those_of_the_reference():
    ours, theirs = random_pair(7, attn="eager")
    inputs = random_inputs(ours.config, "pictures", 7)
    with torch.no_grad():
        a = ours(**inputs, output_attentions=True).attentions
        b = theirs(**inputs, output_attentions=True).attentions
    assert len(a) == len(b) == ours.config.num_hidden_layers
    assert max(error(x, y) for x, y in zip(a, b, strict=True)) <= TOLERANCE
    ours.attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="sdpa keeps no attention weights"):
        ours(**inputs, output_attentions=True)


def plain_kernel(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    """What FlashAttention computes, row by row in plain operations, with its signature."""
    out = torch.empty_like(q)
    for i in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        n, m = int(cu_q[i + 1] - cu_q[i]), int(cu_k[i + 1] - cu_k[i])
        assert n <= max_q and m <= max_k
        visible = torch.ones(n, m).tril(m - n).bool()[None, None] if causal else None
        one = (x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
        out[rows] = qwen2vl.attention(*one, "eager", visible=visible)[0].view(n, *q.shape[1:])
    return out


def test_packed_attention_equals_eager_on_a_padded_batch():
    generator = torch.Generator().manual_seed(0)
    real = torch.ones(3, 9, dtype=torch.bool)
    real[0, :4] = real[2, :1] = False
    for T, causal in ((9, True), (9, False), (1, True), (3, True)):
        q = torch.randn(3, 4, T, 8, generator=generator)
        k, v = torch.randn(2, 3, 2, 9, 8, generator=generator)
        packed = fast.packed_attention(q, k, v, causal, real, plain_kernel).transpose(1, 2)
        visible = real[:, None, None].expand(3, 1, T, 9)
        if causal:
            visible = visible & torch.ones(T, 9).tril(9 - T).bool()
        expected = qwen2vl.attention(q, k, v, "eager", visible=visible)[0].view_as(packed)
        asks = real[:, 9 - T :]
        assert error(packed[asks], expected[asks]) <= TOLERANCE
        assert not packed[~asks].any()


def test_eager_sdpa_and_flash_agree_on_a_padded_batch_of_several_pictures(monkeypatch):
    """The whole model and twelve tokens; for flash, the packing with the plain kernel in its place."""
    ours, _ = random_pair(4)
    inputs = random_inputs(ours.config, "mixed batch", 4)
    real = inputs["attention_mask"].bool()
    plain = qwen2vl.attention

    def with_flash(q, k, v, implementation, causal=False, visible=None, real=None):
        if implementation != "flash_attention_2":
            return plain(q, k, v, implementation, causal, visible, real)
        out = fast.packed_attention(q, k, v, causal, real, plain_kernel)
        return out.transpose(1, 2).flatten(2), None

    monkeypatch.setattr(qwen2vl, "attention", with_flash)
    logits, tokens = {}, {}
    for name in qwen2vl.IMPLEMENTATIONS:
        ours.attn_implementation = name
        with torch.no_grad():
            logits[name] = ours(**inputs).logits[real]
        tokens[name] = ours.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    for name in ("sdpa", "blocks", "flash_attention_2"):
        assert error(logits[name], logits["eager"]) <= TOLERANCE
        assert torch.equal(tokens[name], tokens["eager"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention's kernels need a CUDA device")
def test_flash_attention_on_cuda_equals_sdpa_within_bfloat16_error():
    ours, _ = random_pair(4)
    inputs = {name: x.cuda() for name, x in random_inputs(ours.config, "mixed batch", 4).items()}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        exact = ours.cuda()(**inputs).logits[real]
        ours.bfloat16()
        errors = {}
        for name in qwen2vl.IMPLEMENTATIONS:
            ours.attn_implementation = name
            errors[name] = (ours(**inputs).logits[real] - exact).square().mean().sqrt().item()
    assert 0 < errors["flash_attention_2"] <= 1.2 * errors["sdpa"]


def test_the_patch_embedding_is_the_conv3d_whose_weight_it_holds():
    ours, _ = random_pair(10)
    pixels = torch.randn(50, 1176, generator=torch.Generator().manual_seed(0))
    embed = ours.visual.patch_embed
    with torch.no_grad():
        slow = embed.proj(pixels.view(50, 3, 2, 14, 14)).flatten(1)
        assert error(embed(pixels), slow) <= TOLERANCE


def test_flash_attention_without_cuda_is_one_clear_line():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    ours, _ = random_pair(8)
    ours.attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 needs CUDA, float16 or bfloat16; here cpu"):
        ours(torch.tensor([[1, 2]]))
    ours.attn_implementation = "flash"
    with pytest.raises(
        ValueError, match="attention 'flash' is none of eager, sdpa, blocks, flash_attention_2"
    ):
        ours(torch.tensor([[1, 2]]))


@pytest.mark.parametrize(("T", "S"), [(5, 5), (3, 7), (1, 6)])
def test_causal_attention_needs_no_mask_from_its_caller(T, S):
    """Query i sees keys up to S - T + i: in sdpa's own causal mask that holds for T = S only."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, T, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, S, 8, generator=generator)
    visible = torch.tensor([[j <= S - T + i for j in range(S)] for i in range(T)])[None, None]
    expected, _ = qwen2vl.attention(q, k, v, "eager", visible=visible)
    for name in ("eager", "sdpa", "blocks"):
        assert error(qwen2vl.attention(q, k, v, name, causal=True)[0], expected) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_blocks_of_any_size_give_the_same_attention(monkeypatch, rows):
    monkeypatch.setattr(fast, "BLOCK_ROWS", rows)
    monkeypatch.setattr(fast, "BLOCK_SCORES", 1)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 7, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 11, 8, generator=generator)
    visible = torch.rand(2, 1, 7, 11, generator=generator) < 0.7
    visible[..., 0] = True
    for how in ({}, {"causal": True}, {"visible": visible}, {"causal": True, "visible": visible}):
        expected, _ = qwen2vl.attention(q, k, v, "eager", **how)
        assert error(qwen2vl.attention(q, k, v, "blocks", **how)[0], expected) <= TOLERANCE


def test_labels_with_fewer_logits_are_refused():
    ours, _ = random_pair(9)
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="labels need all logits, logits_to_keep is 1"):
        ours(ids, labels=ids, logits_to_keep=1)


def test_sections_that_do_not_fill_the_head_are_refused():
    config = random_pair(0)[0].config.to_dict()
    config["rope_scaling"]["mrope_section"] = [1, 1, 1]
    with pytest.raises(ValueError, match=r"mrope_section \[1, 1, 1\] must add up to half of"):
        Qwen2VLConfig.from_dict(config)


def test_a_cache_that_is_too_short_is_an_error_with_both_numbers():
    ours, _ = random_pair(9)
    with pytest.raises(ValueError, match="holds 2 tokens, 3 are needed"):
        ours(torch.tensor([[1, 2, 3]]), past_key_values=KVCache(ours.config, 1, 2))


def test_a_config_field_that_is_missing_is_named():
    config = random_pair(0)[0].config.to_dict()
    del config["rope_theta"], config["vision_config"]["depth"]
    with pytest.raises(ValueError, match=r"lacks rope_theta, vision_config\.depth"):
        Qwen2VLConfig.from_dict(config)
