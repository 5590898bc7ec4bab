"""Attributes that every config of transformers has, besides a model's shape, with their defaults.

Names and values are those of `PretrainedConfig` in transformers 4.57. Only what the drop-in classes
read has an effect; the others are held, saved and loaded.
"""

from typing import Any

import numpy as np

Dtype = Any  # a name such as "float32", or a dtype of NumPy, JAX or PyTorch

# Options of `generate`, which older configs hold.
GENERATION: dict[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}

ATTRIBUTES: dict[str, Any] = {
    "architectures": None,
    "finetuning_task": None,
    "task_specific_params": None,
    "problem_type": None,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "torchscript": False,
    "dtype": None,
    "tokenizer_class": None,
    "prefix": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "transformers_version": None,
} | GENERATION


def dtype_name(dtype: Dtype) -> Any:
    """Returns the name of a dtype, such as "float32"; nothing else is changed."""
    if isinstance(dtype, str | int | dict):
        return dtype
    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype).rpartition(".")[2]  # torch.float32
