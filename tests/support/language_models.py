"""Small masked language models with random parameters, and documents to score them on."""

import functools

import jax
import numpy as np

from roberta_jax.inference.loading import MaskedLanguageModel
from roberta_jax.language_modeling.documents import Document
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.weights.parameters import parameter_shapes
from tests.support import texts

# The longest sentence has more tokens than a row.
SENTENCES = (
    ("the cat sees a dog at home.", "Every child likes the teacher."),
    ("A bird.",),
    ("my old friend remembers the cat in the garden 17 times.", "A dog paints.", "Naïve 猫!"),
    (" ".join(["that bird hears every child near the school"] * 5),),
)


@functools.cache
def tokenizer(vocab_size: int = 320) -> RobertaTokenizer:
    """A tokenizer of this size, trained on generated text."""
    return RobertaTokenizer.train(texts.documents(50), vocab_size=vocab_size)


def language_model(seed: int = 0, vocab_size: int = 320, **changes) -> MaskedLanguageModel:
    """A model whose parameters are drawn from the seed; `changes` are fields of its config."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 34,
        "type_vocab_size": 1,
    }
    config = RobertaConfig.base(vocab_size=len(tokenizer(vocab_size)), **{**sizes, **changes})
    model = RobertaForMaskedLM(config)
    draw = np.random.default_rng(seed).normal
    params = jax.tree.map(
        lambda x: draw(0, 0.3, x.shape).astype(np.float32), parameter_shapes(model)
    )
    # Likely predictions, so that accuracies are not 0.
    params["lm_head"]["bias"][[tokenizer().bos_token_id, tokenizer().eos_token_id]] += 4
    return MaskedLanguageModel(model, params, tokenizer(vocab_size))


def documents() -> list[Document]:
    """The documents of `SENTENCES`."""
    return [Document(f"text#{n}", sentences) for n, sentences in enumerate(SENTENCES, start=1)]
