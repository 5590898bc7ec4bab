"""What is measured: models, batches, and the speeds that are aimed for.

Array names carry their shape: B rows, L tokens of a row, N masked tokens of a row.
"""

import dataclasses

import numpy as np

from roberta_jax.data.masking import num_slots
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.flops import training_flops

RATE = 0.15  # of the tokens are masked

# Values of the model config, which Hugging Face's has as well. "tiny" is for trying the command.
_RELEASED = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "vocab_size": 50265,
}
CONFIGS = {
    "large": _RELEASED
    | {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "base": _RELEASED,
    "tiny": _RELEASED
    | {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 512,
    },
}
LONGEST = _RELEASED["max_position_embeddings"] - 2  # tokens of a row


@dataclasses.dataclass(frozen=True)
class Goal:
    """Tokens per second of one chip that are aimed for: `aim`, and `moonshot` if there is one."""

    aim: float
    moonshot: float | None = None


# (chip, model, tokens of a row) -> goal. None of these was measured with this package. Large on an
# H200 is 60% of the 790 TFLOP/s that an H200 reaches on large bfloat16 products; the moonshot is
# the rate of NVIDIA's MLPerf results for BERT-large, which use 8-bit floats.
GOALS = {
    ("h200", "large", 512): Goal(236_000, 255_000),
    ("h200", "base", 512): Goal(657_000),
}
# Chip -> share of the peak rate that is aimed for with any model.
SHARES = {"v5e": 0.5, "v6e": 0.5}


def slots_of(length: int) -> int:
    """K, the slots for masked tokens of a row of pretraining."""
    return num_slots(length, RATE, max_inputs=1)


def flops_per_token(model: str, length: int) -> float:
    """Operations of a training step for each token, by formula; those of both sides."""
    config = RobertaConfig(**CONFIGS[model])
    return training_flops(config, 1, length, slots_of(length)) / length


def goal_of(chip: str | None, model: str, length: int, peak: float | None) -> Goal | None:
    """The goal of a step on a chip, or None if there is none.

    Args:
      chip: a name of `planning.chips.CHIPS`, or None.
      model: a key of `CONFIGS`.
      length: tokens of a row.
      peak: operations per second of the chip, or None.
    """
    if chip in SHARES and peak:
        return Goal(SHARES[chip] * peak / flops_per_token(model, length))
    return GOALS.get((chip, model, length))


def masked_rows(model: str, rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random masked rows, which differ in nothing that affects the speed from those of a corpus.

    Ids are distributed as words are (Zipf), and four fifths of the masked tokens are one id: the
    gradient of the word embeddings adds many rows to the same few.

    Returns:
      (ids [B, L], masked positions [B, N] in ascending order, labels [B, N]), int32.
    """
    words = CONFIGS[model]["vocab_size"]
    mask_id = words - 1
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(1 / (np.arange(words - 5) + 2.7))
    draws = rng.random((rows, length)) * cumulative[-1]
    ids_BL = 4 + np.searchsorted(cumulative, draws).astype(np.int32)
    number = max(1, int(RATE * length))
    positions_BN = np.sort(rng.random((rows, length)).argsort(axis=1)[:, :number], axis=1)
    labels_BN = np.take_along_axis(ids_BL, positions_BN, axis=1)
    shown_BN = np.where(rng.random(labels_BN.shape) < 0.8, mask_id, labels_BN)
    np.put_along_axis(ids_BL, positions_BN, shown_BN.astype(np.int32), axis=1)
    return ids_BL, positions_BN.astype(np.int32), labels_BN


def rungs(tokens: list[int], length: int) -> list[int]:
    """Rows of the microbatches to try, descending: those of about `tokens` tokens each."""
    return sorted({max(1, each // length) for each in tokens}, reverse=True)
