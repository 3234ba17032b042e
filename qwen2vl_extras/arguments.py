"""Arguments that `transformers` has and that have no place in the signatures of qwen2vl.py.

Code written for `transformers` passes many of them with the value that changes nothing. Such a
value is taken; any other is refused by name, since nothing is ever ignored.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from qwen2vl_extras.errors import shorten, suggestion

# Values that change nothing, by argument; None and an empty list are always among them. The
# names and values are those of GenerationConfig and `generate` in transformers 4.57.6.
GENERATE: dict[str, tuple] = {
    # One answer for each prompt, chosen token by token.
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "low_memory": (False,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    # No other ways to change the scores of tokens, or to end an answer.
    "logits_processor": (),
    "stopping_criteria": (),
    "prefix_allowed_tokens_fn": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "stop_strings": (),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "token_healing": (False,),
    "guidance_scale": (1.0,),
    "negative_prompt_ids": (),
    "negative_prompt_attention_mask": (),
    "watermarking_config": (),
    # Only token ids come back.
    "return_dict_in_generate": (False,),
    "return_dict": (True, False),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    # No second model.
    "assistant_model": (),
    "assistant_tokenizer": (),
    "tokenizer": (),
    "prompt_lookup_num_tokens": (),
    "max_matching_ngram_size": (),
    "assistant_early_exit": (),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    # Tokens are the same with each kind of cache and without one; there is always one here.
    "use_cache": (True, False),
    "cache_implementation": ("dynamic", "static"),
    "cache_config": (),
    "return_legacy_cache": (False, True),
    "prefill_chunk_size": (),
    "compile_config": (),
    "disable_compile": (False, True),
    "synced_gpus": (False,),
    # Settings come as arguments, or from the checkpoint's generation_config.json.
    "generation_config": (),
    "use_model_defaults": (True,),
    "custom_generate": (),
    "trust_remote_code": (False, True),
    # What `forward` takes and `generate` works out by itself.
    "inputs": (),
    "inputs_embeds": (),
    "position_ids": (),
    "cache_position": (),
    "labels": (),
    "logits_to_keep": (1,),
}
FORWARD: dict[str, tuple] = {
    # The cache that is given gets filled, in training and elsewhere.
    "use_cache": (True, False),
    "num_items_in_batch": (),
    "output_router_logits": (False,),
    "token_type_ids": (),
    "is_causal": (True,),
}
# `transformers` reads these only where there is no prompt: every value changes nothing.
UNUSED = ("bos_token_id", "decoder_start_token_id")
# Inputs that repeat what other inputs say: checks.check_redundant compares them.
REDUNDANT = ("mm_token_type_ids", "second_per_grid_ts")


def check_unlisted(
    given: Mapping[str, object],
    function: Callable[..., object],
    neutral: Mapping[str, Sequence[object]],
) -> None:
    """ValueError for the first argument that the function would have to ignore.

    given: what it was called with beyond its signature. neutral: GENERATE or FORWARD.
    """
    what = function.__name__
    for name, value in given.items():
        is_unused = neutral is GENERATE and name in UNUSED
        if is_unused or name in REDUNDANT:
            continue
        if name not in neutral:
            raise ValueError(f"{what} has no argument {name!r}{nearest(name, function, neutral)}")
        if not is_neutral(value, neutral[name]):
            values = " or ".join(repr(one) for one in neutral[name] or (None,))
            raise ValueError(f"{what} takes {name}={values} only, not {describe_value(value)}")


def is_neutral(value: object, neutral: Sequence[object]) -> bool:
    """Whether a value is None, empty or among those that change nothing."""
    if value is None:
        return True
    if isinstance(value, (list, tuple, dict)):
        return len(value) == 0
    # Tensors and arrays are never equal to a value; == of theirs is no single answer.
    return isinstance(value, (bool, int, float, str)) and value in neutral


def nearest(name: str, function: Callable[..., object], neutral: Iterable[str]) -> str:
    """The end of an error about an unknown argument: the known one most like it, or all."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    # Arguments that act come first; the many neutral ones are never listed.
    for names in (known, list(neutral)):
        if difflib.get_close_matches(name, names, n=1):
            return suggestion(name, names)
    return suggestion(name, known)


def describe_value(value: object) -> str:
    """What a value looks like, on one short line; a tensor by its shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return shorten(value)
