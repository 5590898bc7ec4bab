"""Pretraining: `--config=configs/pretrain.py:SIZE`, SIZE one of tiny, small, base, large.

The size sets the model, the batch and the recipe; everything else is changed on the command line,
as in `--config.train.steps=2000`. The vocabulary's size is the tokenizer's and the number of
positions follows from `seq_len`; neither is a key.

`tiny`: the whole road in minutes, on a laptop.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny

  Needs nothing: the text is Python's own documentation. It compares its held-out perplexity with
  those of a unigram and a bigram model, which a model that has learned to read must beat. On 2
  cores about six minutes of training (19k tokens/s, 24k with AVX-512); perplexity 40.0, unigram
  713.6, bigram 109.3.

`small`: a small model on real text of yours, on a CPU or a single GPU.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:small --workdir=runs/small \\
        '--config.data.files=text/*.jsonl.gz'

  Needs some 100 MB of text or more (plain text with blank lines between documents, or JSON lines).
  On 2 cores: 4k tokens/s; after 8 million tokens of Wikipedia and books perplexity 126, unigram
  1085, bigram 121 (experiments/results/small.md).

`base`, `large`: the paper's models with the paper's recipe (Liu et al. 2019, Table 9): 8192 rows of
512 tokens a step, for 500k steps.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:base --workdir=gs://bucket/base \\
        '--config.data.files=/data/corpus/*.jsonl.zst' --config.tokenizer=/data/roberta_bpe

  Needs a pod or many GPUs, and up to 160 GB of text. Any number of devices that divides the batch
  takes the same steps: `train.per_device_batch_size` bounds the rows per device and microbatch, and
  the rest is accumulated. Where the parameters do not fit one device, split them:
  `--config.mesh.data=1 --config.mesh.fsdp=-1`. On several hosts start the command on each, with
  `--distributed`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(size: str = "tiny") -> ConfigDict:
    """Returns the locked config of a size.

    Raises:
      ValueError: no such size.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: configs/pretrain.py has {', '.join(SIZES)}")
    config = _defaults()
    config.update(SIZES[size])
    config.lock()
    return config


def _defaults() -> ConfigDict:
    """Every key, with the values of the paper's base model."""
    config = ConfigDict()
    config.seed = 0
    config.seq_len = 512  # tokens a row, <s> and </s> included
    # A folder with a tokenizer, or a hub id; none trains one on the corpus, with new_tokenizer's
    # settings.
    config.tokenizer = placeholder(str)
    # Weights to go on from, with their shape and tokenizer: a workdir, a folder or a hub id.
    # Of `model` only the dropouts are used then.
    config.init_from = placeholder(str)

    config.new_tokenizer = ConfigDict()
    config.new_tokenizer.vocab_size = 50265
    config.new_tokenizer.min_frequency = 2

    config.data = ConfigDict()
    config.data.source = "files"  # "builtin" (Python's documentation), "files" or "tfds"
    config.data.files = placeholder(str)  # a glob: text or JSON lines; plain, gz, bz2, xz or zst
    config.data.text_field = "text"  # of JSON lines
    config.data.sentences = "split"  # "split", or "lines" where each line is a sentence
    config.data.language = "en"  # for the splitter
    config.data.tfds_name = placeholder(str)
    config.data.tfds_split = placeholder(str)
    config.data.tfds_field = placeholder(str)
    config.data.tfds_data_dir = placeholder(str)
    config.data.validation_fraction = 0.001  # of the documents
    config.data.cache_dir = placeholder(str)  # of tokenised text; none: the user's cache folder
    config.data.num_workers = placeholder(int)  # processes that tokenise; none: one a core
    config.data.engine = "auto"  # "tf" (tf.data), "numpy" (threads), or tf where it is installed
    # What a row holds (Liu et al. 2019, section 4.2): "full_sentences", "doc_sentences",
    # "segment_pair", "sentence_pair", or "sentences", each one for itself.
    config.data.format = "full_sentences"
    config.data.max_tokens = placeholder(int)  # train on the first documents alone, up to so many
    # Of pairs: how often they are sampled anew (the epochs take the samples in turn), the share of
    # documents with shorter segments, and the `</s>`s between the two texts.
    config.data.dupe_factor = 10
    config.data.short_seq_prob = 0.1
    config.data.num_separators = 2
    # More corpora beside the one above: dicts of the keys `source` to `tfds_data_dir` and
    # `max_tokens`, and `weight`: how often their rows are seen for once that one's are, 1 if not
    # said. What is held out is of the one above. See experiments/studies/table4_data.py.
    config.data.mixture = ()

    config.objective = ConfigDict()
    config.objective.next_sentence = False  # predict whether a pair's texts follow each other

    config.masking = ConfigDict()
    config.masking.rate = 0.15
    config.masking.mask_replace_prob = 0.8
    config.masking.random_replace_prob = 0.1
    config.masking.mask_special_tokens = True  # <s> and </s> may be masked, as in fairseq
    config.masking.scheme = "token"  # "token", "whole_word", or "span" (SpanBERT)
    config.masking.geometric_p = 0.2  # of the spans' geometric lengths
    config.masking.max_span_length = 10  # words
    # How many masks a row has: none is dynamic masking, a new one each epoch; the paper's static
    # masking is 10.
    config.masking.dupe_factor = placeholder(int)

    config.model = ConfigDict()
    config.model.hidden_size = 768
    config.model.num_hidden_layers = 12
    config.model.num_attention_heads = 12
    config.model.intermediate_size = 3072
    config.model.hidden_act = "gelu"
    config.model.hidden_dropout_prob = 0.1
    config.model.attention_probs_dropout_prob = 0.1
    config.model.initializer_range = 0.02
    config.model.layer_norm_eps = 1e-5
    config.model.type_vocab_size = 1

    config.execution = ConfigDict()
    config.execution.dtype = "auto"  # "float32", "bfloat16", or bfloat16 except on a CPU
    config.execution.scan_layers = True
    config.execution.scan_unroll = 1
    # What the backward pass computes again: "dots", all but matrix products; "full"; "none".
    config.execution.remat = "dots"

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or "lamb"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_mask = "all"  # or "bert": not biases and layer norms
    config.optimizer.bias_correction = True
    config.optimizer.clip_norm = 0.0  # 0: none

    config.schedule = ConfigDict()
    config.schedule.warmup_steps = 24_000
    config.schedule.decay_steps = placeholder(int)  # none: train.steps
    config.schedule.power = 1.0
    config.schedule.end_learning_rate = 0.0

    config.train = ConfigDict()
    config.train.steps = 500_000
    config.train.batch_size = 8192  # rows, over all devices
    config.train.per_device_batch_size = 16  # at once, at most; the rest is accumulated. None: all
    config.train.log_every = 100
    config.train.eval_every = 5000
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 3
    config.train.deterministic = False  # the same bits from run to run on a GPU too, but slower

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.seed = 0
    config.eval.max_rows = 8192  # none: every held-out row
    config.eval.short_inputs = False  # score single sentences, too
    config.eval.ngram_baselines = False

    config.mesh = ConfigDict()
    config.mesh.data = -1  # the devices that are left
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    # Keys that may be nothing, also where a value stands above.
    for group, key in (("train", "per_device_batch_size"), ("eval", "max_rows")):
        value = config[group][key]
        del config[group][key]
        config[group][key] = placeholder(int)
        config[group][key] = value
    return config


SIZES = {
    "tiny": {
        "seq_len": 32,
        "new_tokenizer": {"vocab_size": 4096},
        "data": {"source": "builtin", "validation_fraction": 0.05},
        "model": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            # A narrow model needs larger weights for its signal to be seen at all: with 0.02 it
            # learns several times more slowly.
            "initializer_range": 0.08,
        },
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"warmup_steps": 500},
        "train": {
            "steps": 7_000,
            "batch_size": 32,
            "per_device_batch_size": None,
            "log_every": 100,
            "eval_every": 2500,
            "checkpoint_every": 1000,
            "keep_checkpoints": 2,
        },
        "eval": {"batch_size": 64, "max_rows": None, "ngram_baselines": True},
    },
    "small": {
        "seq_len": 64,
        "new_tokenizer": {"vocab_size": 8192},
        "data": {"validation_fraction": 0.01},
        "model": {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.06,
        },
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_steps": 500},
        "train": {
            "steps": 20_000,
            "batch_size": 64,
            "per_device_batch_size": None,
            "log_every": 50,
            "eval_every": 1000,
            "checkpoint_every": 500,
            "keep_checkpoints": 2,
        },
        "eval": {"batch_size": 64, "max_rows": 4096, "ngram_baselines": True},
    },
    "base": {},
    "large": {
        "model": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        "optimizer": {"learning_rate": 4e-4},
        "schedule": {"warmup_steps": 30_000},
        "train": {"per_device_batch_size": 8},
    },
}
