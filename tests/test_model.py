"""The model against transformers 4.57.6 on random small models.

Compared are hidden states, logits, positions, loss and gradients. The negative controls show that
the comparisons can fail: one thing done wrong must miss by 100 tolerances.
"""

import random

import pytest
import torch
from torch import Tensor

import qwen2vl
from qwen2vl import AttentionMask, KVCache, Qwen2VLConfig, get_rope_index
from tests.helpers.reference import (
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

MISS = 100 * TOLERANCE
WRONG = "negative controls, relative error"
EXACT_IMPLEMENTATIONS = ["eager", "sdpa", "chunked"]  # those that run on a CPU


@torch.no_grad()
def compare(ours, theirs, inputs: dict[str, Tensor], **changes: Tensor | None) -> float:
    """The largest relative error over all hidden states and the logits, padding left out.

    changes: inputs that only ours gets.
    """
    is_token = inputs["attention_mask"].bool()
    changed = dict(inputs)
    changed.update(changes)
    a = ours(**changed, output_hidden_states=True)
    b = theirs(**inputs, output_hidden_states=True)
    errors = [error(a.logits[is_token], b.logits[is_token])]
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        errors.append(error(x[is_token], y[is_token]))
    return max(errors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attn", EXACT_IMPLEMENTATIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_and_logits_equal_the_reference(kind, attn, tied, amount, figure):
    for seed in range(amount(3, 30)):
        ours, theirs = random_pair(seed, tied, attn)
        inputs = random_inputs(ours.config, kind, seed)
        found = compare(ours, theirs, inputs)
        assert figure("hidden states and logits, relative error", found) <= TOLERANCE, (
            f"seed {seed}"
        )


@pytest.mark.parametrize("attn", EXACT_IMPLEMENTATIONS)
@torch.no_grad()
def test_vision_features_equal_the_reference(attn, amount, figure):
    for seed in range(amount(3, 30)):
        ours, theirs = random_pair(seed, attn=attn)
        inputs = random_inputs(ours.config, "mixed batch", seed)
        for pixels, grid in (
            (inputs["pixel_values"], inputs["image_grid_thw"]),
            (inputs["pixel_values_videos"], inputs["video_grid_thw"]),
        ):
            a = ours.visual(pixels, grid, attn)
            b = theirs.model.visual(pixels, grid)
            found = error(a, b)
            assert figure("vision features, relative error", found) <= TOLERANCE, f"seed {seed}"


# ------------------------------------------------------------------------------ negative controls


class TestNegativeControls:
    """What must not pass: each of these is a bug that somebody has shipped."""

    def test_rows_and_columns_swapped_in_mrope(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "image", 1)
        positions, _ = ours.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])
        time, row, column = positions
        swapped = torch.stack((time, column, row))
        assert figure(WRONG, compare(ours, theirs, inputs, position_ids=swapped)) >= MISS

    def test_one_dimensional_positions(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "image", 1)
        length = inputs["input_ids"].shape[1]
        flat = torch.arange(length).expand(3, 1, -1)
        assert figure(WRONG, compare(ours, theirs, inputs, position_ids=flat)) >= MISS

    def test_unmasked_padding(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "mixed batch", 1)
        positions, _ = ours.get_rope_index(
            inputs["input_ids"],
            inputs["image_grid_thw"],
            inputs["video_grid_thw"],
            inputs["attention_mask"],
        )
        found = compare(ours, theirs, inputs, position_ids=positions, attention_mask=None)
        assert figure(WRONG, found) >= MISS

    def test_no_vision_rotary(self, figure, monkeypatch):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "image", 1)

        def no_rotation(h, w, device):
            return torch.ones(h * w, 1), torch.zeros(h * w, 1)

        monkeypatch.setattr(ours.visual, "rotary_table", no_rotation)
        assert figure(WRONG, compare(ours, theirs, inputs)) >= MISS

    def attend_to_all(self, monkeypatch) -> None:
        """Let the frames or images of a batch in the vision transformer attend to each other."""
        apart = qwen2vl.attention

        def together(q, k, v, mask, implementation):
            if mask.causal:  # the decoder
                return apart(q, k, v, mask, implementation)
            t, _, P, _ = q.shape
            # All frames as one sequence: (t, H, P, d) to (1, H, t * P, d).
            q = q.transpose(0, 1).flatten(1, 2)[None]
            k = k.transpose(0, 1).flatten(1, 2)[None]
            v = v.transpose(0, 1).flatten(1, 2)[None]
            out, weights = apart(q, k, v, mask, implementation)  # (1, t * P, D)
            return out.view(t, P, -1), weights

        monkeypatch.setattr(qwen2vl, "attention", together)

    def test_frames_attending_to_each_other(self, figure, monkeypatch):
        ours, theirs = random_pair(1)
        video = [ours.config.vision_start_token_id, *[ours.config.video_token_id] * 12]
        row = Row(ids=[5, *video, 6], images=[], videos=[[3, 4, 4]])
        inputs = collate([row], ours.config, 1)
        assert compare(ours, theirs, inputs) <= TOLERANCE
        self.attend_to_all(monkeypatch)
        assert figure(WRONG, compare(ours, theirs, inputs)) >= MISS

    def test_images_attending_to_each_other(self, figure, monkeypatch):
        ours, theirs = random_pair(1)
        image = [ours.config.vision_start_token_id, *[ours.config.image_token_id] * 4]
        row = Row(ids=[5, *image, 6, *image, 7], images=[[1, 4, 4], [1, 4, 4]], videos=[])
        inputs = collate([row], ours.config, 1)
        assert compare(ours, theirs, inputs) <= TOLERANCE

        def encode_as_one_video(pixel_values, grid_thw, implementation):
            return ours.visual.encode(pixel_values, 2, 4, 4, implementation)

        self.attend_to_all(monkeypatch)
        monkeypatch.setattr(ours.visual, "forward", encode_as_one_video)
        assert figure(WRONG, compare(ours, theirs, inputs)) >= MISS

    @torch.no_grad()
    def test_delta_one_too_large(self, figure):
        ours, theirs = random_pair(1)
        inputs = random_inputs(ours.config, "image", 1)
        length = inputs["input_ids"].shape[1]
        token = torch.tensor([[3]])

        # The reference reads prompt and token in one pass.
        longer = dict(inputs)
        longer["input_ids"] = torch.cat((inputs["input_ids"], token), dim=1)
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        expected = theirs(**longer).logits[:, -1]

        # Ours reads the token behind the cache, with the right delta and with a wrong one.
        cache = KVCache(ours.config, 1, length + 1)
        deltas = ours(**inputs, past_key_values=cache).rope_deltas
        right = ours(token, past_key_values=cache, rope_deltas=deltas).logits[:, -1]
        cache.length = length
        wrong = ours(token, past_key_values=cache, rope_deltas=deltas + 1).logits[:, -1]
        assert error(right, expected) <= TOLERANCE
        assert figure(WRONG, error(wrong, expected)) >= MISS


# -------------------------------------------------------------------------------------- positions


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
        layout = (inputs["input_ids"], inputs.get("image_grid_thw"), inputs.get("video_grid_thw"))
        mask = inputs["attention_mask"]
        positions, deltas = get_rope_index(config, *layout, attention_mask=mask)
        expected, expected_deltas = theirs.model.get_rope_index(*layout, attention_mask=mask)
        assert torch.equal(positions, expected), f"seed {seed}"
        assert torch.equal(deltas, expected_deltas), f"seed {seed}"


def test_text_after_a_long_video_starts_at_the_largest_position_plus_one():
    """A video of 6 x 2 x 2 tokens behind 3 text tokens, and 3 behind it: 30 tokens."""
    config = Qwen2VLConfig.from_dict(random_pair(0)[1].config.to_dict())
    ids = torch.tensor([[1, 2, 3, *[config.video_token_id] * 24, 4, 5, 6]])
    positions, deltas = get_rope_index(config, ids, video_grid_thw=torch.tensor([[6, 4, 4]]))
    # In time it reaches from 3 to 8, so the text goes on at 9. The next position is 12 = 30 - 18.
    assert positions[0, 0, 3:27].tolist() == [t for t in range(3, 9) for _ in range(4)]
    assert positions[:, 0, 27].tolist() == [9, 9, 9]
    assert deltas.tolist() == [[-18]]


# ----------------------------------------------------------------------------- loss and gradients


def test_loss_and_gradient_norms_equal_the_reference(amount, figure):
    for seed in range(amount(3, 20)):
        ours, theirs = random_pair(seed)
        inputs = random_inputs(ours.config, "mixed batch", seed)
        # No loss for padding, nor for the first token of a row: padding would predict it, and
        # what padding attends to is left open.
        is_unpredicted = inputs["attention_mask"].cumsum(-1) <= 1
        labels = inputs["input_ids"].masked_fill(is_unpredicted, -100)

        a = ours(**inputs, labels=labels).loss
        b = theirs(**inputs, labels=labels).loss
        loss_error = (abs(a - b) / abs(b)).item()
        assert figure("loss, relative error", loss_error) <= 1e-6

        a.backward()
        b.backward()
        gradients = official_names({name: p.grad for name, p in theirs.named_parameters()})
        for name, gradient in gradients.items():
            found = ours.get_parameter(name).grad.norm().item()
            expected = gradient.norm().item()
            # A key's bias shifts all scores of a query alike: its gradient is rounding only.
            if expected > 1e-6:
                norm_error = abs(found - expected) / expected
                assert figure("gradient norms, relative error", norm_error) <= 1e-5, name


# --------------------------------------------------------------------- what the forward pass does


@torch.no_grad()
def test_features_of_two_images_are_the_features_of_each_bit_for_bit():
    ours, _ = random_pair(2)
    generator = torch.Generator().manual_seed(0)
    for grids in ([[1, 4, 6], [1, 8, 2]], [[1, 4, 4], [1, 4, 4]], [[3, 4, 4], [1, 6, 6]]):
        grids = torch.tensor(grids)
        pixels = torch.randn(int(grids.prod(-1).sum()), 1176, generator=generator)
        n = int(grids[0].prod())
        both = ours.visual(pixels, grids)
        first = ours.visual(pixels[:n], grids[:1])
        second = ours.visual(pixels[n:], grids[1:])
        assert torch.equal(both, torch.cat((first, second)))


@pytest.mark.parametrize("attn", EXACT_IMPLEMENTATIONS)
@torch.no_grad()
def test_a_changed_token_changes_no_logit_before_it(attn):
    ours, _ = random_pair(3, attn=attn)
    inputs = random_inputs(ours.config, "image", 3)
    embeds = ours.embed(inputs["input_ids"], inputs["pixel_values"], inputs["image_grid_thw"])
    positions, _ = ours.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])
    before = ours(inputs_embeds=embeds, position_ids=positions).logits
    for k in range(embeds.shape[1]):  # tokens of the image as well
        changed = embeds.clone()
        changed[:, k] += 1
        after = ours(inputs_embeds=changed, position_ids=positions).logits
        if k:
            assert error(after[:, :k], before[:, :k]) <= TOLERANCE
        assert error(after[:, k], before[:, k]) >= MISS


@torch.no_grad()
def test_a_padded_batch_gives_the_logits_of_its_rows_alone():
    ours, _ = random_pair(4)
    rows = random_rows(random.Random(4), ours.config, "mixed batch")
    inputs = collate(rows, ours.config, 4)
    batch = ours(**inputs).logits
    for i, alone in enumerate(rows_alone(rows, inputs, ours.config)):
        length = len(rows[i].ids)
        assert error(batch[i, -length:], ours(**alone).logits[0]) <= TOLERANCE


@pytest.mark.parametrize("change", [1, -1])
def test_more_or_fewer_images_than_placeholders_is_an_error_with_both_counts(change):
    ours, _ = random_pair(5)
    inputs = random_inputs(ours.config, "image", 5)
    n = int((inputs["input_ids"] == ours.config.image_token_id).sum())
    if change > 0:  # an image more, of a single token
        grids = inputs["image_grid_thw"], torch.tensor([[1, 2, 2]])
        pixels = inputs["pixel_values"], torch.randn(4, 1176)
        inputs["image_grid_thw"] = torch.cat(grids)
        inputs["pixel_values"] = torch.cat(pixels)
        expected = f"{n} image tokens, the images give {n + 1}"
    else:
        del inputs["image_grid_thw"], inputs["pixel_values"]
        expected = f"{n} image tokens, the images give 0"
    with pytest.raises(ValueError, match=expected):
        ours(**inputs)


@torch.no_grad()
def test_only_the_asked_logits_are_computed():
    ours, _ = random_pair(6)
    inputs = random_inputs(ours.config, "mixed batch", 6)
    every = ours(**inputs).logits
    last = ours(**inputs, logits_to_keep=3).logits
    assert last.shape[1] == 3
    assert error(last, every[:, -3:]) <= TOLERANCE


@torch.no_grad()
def test_attention_weights_are_those_of_the_reference():
    ours, theirs = random_pair(7, attn="eager")
    inputs = random_inputs(ours.config, "images", 7)
    a = ours(**inputs, output_attentions=True).attentions
    b = theirs(**inputs, output_attentions=True).attentions
    assert len(a) == len(b) == ours.config.num_hidden_layers
    for x, y in zip(a, b, strict=True):
        assert error(x, y) <= TOLERANCE

    ours.attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="sdpa keeps no attention weights"):
        ours(**inputs, output_attentions=True)


@torch.no_grad()
def test_the_patch_embedding_is_the_conv3d_whose_weight_it_holds():
    ours, _ = random_pair(10)
    pixels = torch.randn(50, 1176, generator=torch.Generator().manual_seed(0))
    embed = ours.visual.patch_embed
    slow = embed.proj(pixels.view(50, 3, 2, 14, 14)).flatten(1)
    assert error(embed(pixels), slow) <= TOLERANCE


# -------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (3, 7), (1, 6)])
def test_causal_attention_needs_no_mask_from_its_caller(num_queries, num_keys):
    """Query i attends to keys up to S - T + i; PyTorch's causal flag is right for T = S only."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, num_queries, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, num_keys, 8, generator=generator)

    dense = torch.zeros(1, 1, num_queries, num_keys, dtype=torch.bool)
    for i in range(num_queries):
        for j in range(num_keys):
            dense[0, 0, i, j] = j <= num_keys - num_queries + i
    expected, _ = qwen2vl.attention(q, k, v, AttentionMask(dense=dense), "eager")
    for name in EXACT_IMPLEMENTATIONS:
        found, _ = qwen2vl.attention(q, k, v, AttentionMask(causal=True), name)
        assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 3, 6, 64])
def test_chunks_of_any_size_give_the_same_attention(monkeypatch, rows):
    monkeypatch.setattr(qwen2vl, "MIN_CHUNK_ROWS", rows)
    monkeypatch.setattr(qwen2vl, "CHUNK_SCORES", 1)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 7, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 11, 8, generator=generator)
    dense = torch.rand(2, 1, 7, 11, generator=generator) < 0.7
    dense[..., 0] = True
    for mask in (
        AttentionMask(),
        AttentionMask(causal=True),
        AttentionMask(dense=dense),
        AttentionMask(causal=True, dense=dense),
    ):
        expected, _ = qwen2vl.attention(q, k, v, mask, "eager")
        found, _ = qwen2vl.attention(q, k, v, mask, "chunked")
        assert error(found, expected) <= TOLERANCE


def test_an_unknown_attention_is_refused_with_the_known_ones():
    ours, _ = random_pair(8)
    ours.attn_implementation = "flash"
    expected = "attention 'flash' is none of eager, sdpa, chunked, flash_attention_2"
    with pytest.raises(ValueError, match=expected):
        ours(torch.tensor([[1, 2]]))


# -------------------------------------------------------------------------------- what is refused


def test_labels_with_fewer_logits_are_refused():
    ours, _ = random_pair(9)
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="labels need all logits, logits_to_keep is 1"):
        ours(ids, labels=ids, logits_to_keep=1)


def test_sections_that_do_not_fill_the_head_are_refused():
    config = random_pair(0)[0].config.to_dict()
    config["rope_scaling"]["mrope_section"] = [1, 1, 1]
    with pytest.raises(ValueError, match=r"mrope_section is \[1, 1, 1\]; .* half the size of"):
        Qwen2VLConfig.from_dict(config)


def test_a_cache_that_is_too_short_is_an_error_with_both_numbers():
    ours, _ = random_pair(9)
    with pytest.raises(ValueError, match="holds 2 tokens, 3 are needed"):
        ours(torch.tensor([[1, 2, 3]]), past_key_values=KVCache(ours.config, 1, 2))


def test_a_config_field_that_is_missing_is_named():
    config = random_pair(0)[0].config.to_dict()
    del config["rope_theta"], config["num_hidden_layers"]
    with pytest.raises(ValueError, match="lacks num_hidden_layers, rope_theta"):
        Qwen2VLConfig.from_dict(config)
