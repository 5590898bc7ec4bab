"""From prepared text to rows: what a run trains on, and what all runs are scored on.

What is trained on is as the config says: format, masking, mixture. What is held out is scored in
the same way whatever the training's, so that the scores of different settings may be compared:
FULL-SENTENCES and, if asked for, single sentences, with fairseq's masking at the paper's rate.
"""

import dataclasses

from ml_collections import ConfigDict

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.mixture import Mixture
from roberta_jax.data.packing.index import PairOptions, load_or_pack
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.sources import list_sources
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.text import Prepared
from roberta_jax.tokenizer import RobertaTokenizer

Maker = PackedDataset | Mixture


def training_rows(
    config: ConfigDict,
    prepared: Prepared,
    masking: Masking,
    pairs: PairOptions,
    *,
    token_types: bool,
) -> Maker:
    """The rows to train on.

    Args:
      config: as `configs/pretrain.py` has it.
      prepared: the text.
      masking: what is masked and how.
      pairs: how pairs are sampled.
      token_types: whether the model has more than one token type.

    Raises:
      UsageError: the text does not do for the format or for one batch.
    """
    datasets = []
    sources = list_sources(config.data)
    for source, store in zip(sources, (prepared.train, *prepared.more), strict=True):
        if source.max_tokens is not None:
            store = store.first(source.max_tokens)
        datasets.append(
            _maker(
                store,
                prepared.tokenizer,
                config.data.format,
                config.seq_len,
                masking,
                config.seed,
                pairs,
                token_types=token_types,
                next_sentence=config.objective.next_sentence,
            )
        )
    dataset = datasets[0]
    if len(datasets) > 1:
        dataset = Mixture(datasets, [source.weight for source in sources], config.seed)
    rows, batch_size = dataset.num_rows // len(dataset.epoch_ends), config.train.batch_size
    if rows < batch_size:
        raise UsageError(
            f"the corpus fills {rows} rows of {config.seq_len} tokens, fewer than one batch "
            f"(train.batch_size={batch_size}). Give it more text, or lower train.batch_size to "
            f"{rows} or less."
        )
    return dataset


def held_out_rows(
    config: ConfigDict, prepared: Prepared, pairs: PairOptions, *, token_types: bool
) -> dict[str, PackedDataset]:
    """The rows to score, by what they are: "full", "short", "pairs"; none without held-out text.

    "full" are FULL-SENTENCES, "short" single sentences (with `eval.short_inputs`), and "pairs" what
    next-sentence prediction is scored on, in the format that is trained on.
    """
    store = prepared.heldout
    if not store.num_tokens:
        if config.data.validation_fraction:
            raise UsageError(
                f"data.validation_fraction={config.data.validation_fraction} holds out none of the "
                f"{prepared.train.num_documents} documents, so there is nothing to evaluate on. "
                "Raise it, or set it to 0 to train without evaluation."
            )
        return {}

    def make(format: str, **options) -> PackedDataset:
        once = dataclasses.replace(pairs, dupe_factor=1, seed=config.eval.seed)
        return _maker(
            store,
            prepared.tokenizer,
            format,
            config.seq_len,
            Masking(),
            config.eval.seed,
            once,
            **options,
        )

    found = {"full": make("full_sentences")}
    if config.eval.short_inputs:
        found["short"] = make("sentences")
    if config.objective.next_sentence:
        found["pairs"] = make(config.data.format, token_types=token_types, next_sentence=True)
    return found


def _maker(
    store: TokenStore,
    tokenizer: RobertaTokenizer,
    format: str,
    seq_len: int,
    masking: Masking,
    seed: int,
    pairs: PairOptions,
    **options: bool,
) -> PackedDataset:
    return PackedDataset(
        store,
        load_or_pack(store, format, seq_len, pairs),
        masking,
        seed,
        vocab_size=len(tokenizer),
        bos_id=tokenizer.bos_token_id,
        pad_id=tokenizer.pad_token_id,
        mask_id=tokenizer.mask_token_id,
        special_ids=tokenizer.all_special_ids,
        word_starts=tokenizer.word_start_table() if masking.scheme != "token" else None,
        **options,
    )
