"""FlashAttention: rows packed end to end without padding give what eager attention gives.

The packing is tested on the CPU, with a kernel of plain operations; the CUDA kernels only where
there is a CUDA device.
"""

import pytest
import torch
from torch import Tensor

import qwen2vl
from qwen2vl import AttentionMask, causal_triangle
from qwen2vl_extras import flash
from tests.helpers.reference import TOLERANCE, error, random_inputs, random_pair


def plain_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
) -> Tensor:
    """What FlashAttention computes, row by row in plain operations, with its signature."""
    out = torch.empty_like(q)
    for i in range(len(cu_seqlens_q) - 1):
        queries = slice(cu_seqlens_q[i], cu_seqlens_q[i + 1])
        keys = slice(cu_seqlens_k[i], cu_seqlens_k[i + 1])
        one_q = q[queries].transpose(0, 1)[None]  # (1, H, T, d)
        one_k = k[keys].transpose(0, 1)[None]  # (1, K, S, d)
        one_v = v[keys].transpose(0, 1)[None]
        num_queries, num_keys = one_q.shape[2], one_k.shape[2]
        assert num_queries <= max_seqlen_q
        assert num_keys <= max_seqlen_k

        mask = AttentionMask()
        if causal:
            mask = AttentionMask(dense=causal_triangle(num_queries, num_keys, q.device)[None, None])
        result, _ = qwen2vl.attention(one_q, one_k, one_v, mask, "eager")  # (1, T, D)
        out[queries] = result.view(num_queries, *q.shape[1:])
    return out


def test_packed_attention_equals_eager_on_a_padded_batch():
    generator = torch.Generator().manual_seed(0)
    S = 9
    key_padding_mask = torch.ones(3, S, dtype=torch.bool)
    key_padding_mask[0, :4] = False
    key_padding_mask[2, :1] = False
    for T, causal in ((9, True), (9, False), (1, True), (3, True)):
        q = torch.randn(3, 4, T, 8, generator=generator)
        k, v = torch.randn(2, 3, 2, S, 8, generator=generator)
        for padding in (key_padding_mask, None):
            packed = flash.packed_attention(q, k, v, causal, padding, plain_kernel)
            packed = packed.transpose(1, 2)  # (B, T, H, d)

            is_key = torch.ones(3, S, dtype=torch.bool) if padding is None else padding
            dense = is_key[:, None, None].expand(3, 1, T, S)
            if causal:
                dense = dense & torch.ones(T, S).tril(S - T).bool()
            expected, _ = qwen2vl.attention(q, k, v, AttentionMask(dense=dense), "eager")
            expected = expected.view_as(packed)

            # The queries are the last tokens of each row.
            is_token = is_key[:, S - T :]
            assert error(packed[is_token], expected[is_token]) <= TOLERANCE
            assert not packed[~is_token].any()


def test_eager_sdpa_chunked_and_flash_agree_on_a_padded_batch_of_several_images(monkeypatch):
    """The whole model and twelve tokens; for flash, the packing with the plain kernel."""
    ours, _ = random_pair(4)
    inputs = random_inputs(ours.config, "mixed batch", 4)
    is_token = inputs["attention_mask"].bool()
    calls = []

    def flash_on_cpu(q, k, v, causal, key_padding_mask):
        calls.append(key_padding_mask is not None)
        return flash.packed_attention(q, k, v, causal, key_padding_mask, plain_kernel)

    monkeypatch.setattr(flash, "flash_attention", flash_on_cpu)
    logits = {}
    tokens = {}
    for name in qwen2vl.ATTENTION_IMPLEMENTATIONS:
        ours.attn_implementation = name
        with torch.no_grad():
            logits[name] = ours(**inputs).logits[is_token]
        tokens[name] = ours.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    for name in ("sdpa", "chunked", "flash_attention_2"):
        assert error(logits[name], logits["eager"]) <= TOLERANCE
        assert torch.equal(tokens[name], tokens["eager"])
    # It was called without a mask, in the vision transformer, and with one, in the decoder.
    assert set(calls) == {False, True}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernels need a CUDA device")
@torch.no_grad()
def test_flash_attention_on_cuda_equals_sdpa_within_bfloat16_error():
    ours, _ = random_pair(4)
    inputs = {}
    for name, x in random_inputs(ours.config, "mixed batch", 4).items():
        inputs[name] = x.cuda()
    is_token = inputs["attention_mask"].bool()
    exact = ours.cuda()(**inputs).logits[is_token]
    ours.bfloat16()
    errors = {}
    for name in qwen2vl.ATTENTION_IMPLEMENTATIONS:
        ours.attn_implementation = name
        difference = ours(**inputs).logits[is_token] - exact
        errors[name] = difference.square().mean().sqrt().item()
    assert 0 < errors["flash_attention_2"] <= 1.2 * errors["sdpa"]


def test_flash_attention_without_cuda_is_one_clear_line():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    ours, _ = random_pair(8)
    ours.attn_implementation = "flash_attention_2"
    expected = "flash_attention_2 needs CUDA, float16 or bfloat16; here cpu"
    with pytest.raises(ValueError, match=expected):
        ours(torch.tensor([[1, 2]]))
