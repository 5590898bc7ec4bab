"""Pretraining. Use as `--config=configs/pretrain.py:SIZE`; SIZE is tiny, small, base or large.

The size selects the model, the batch and the recipe. Any key can be overridden on the command line,
for example `--config.train.steps=2000`; `=none` unsets a value. `python -m roberta_jax.pretrain
--help` lists all keys. Two values are derived and therefore have no key: the vocabulary size comes
from the tokenizer, and the number of positions from `seq_len`.

`tiny`: pretrains end to end in a few minutes on a laptop CPU.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny

  Needs no data: the corpus is Python's own documentation. At the end it prints the validation
  perplexity next to those of a unigram and a bigram model. On 2 cores training takes about six
  minutes (19k tokens/s, or 24k with AVX-512). On held-out FULL-SENTENCES rows it reaches perplexity
  42.4 (unigram 706, bigram 128), and on single sentences 28.8.

`small`: a small model on your own text, on a CPU or a single GPU.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:small --workdir=runs/small \\
        '--config.data.files=text/*.jsonl.gz'

  Needs at least 100 MB of text: plain text with blank lines between documents, or JSON lines. On 2
  cores it trains on 4k tokens/s. After 8 million tokens of Wikipedia and books the perplexity is
  126 (unigram 1085, bigram 121); see experiments/results/small.md.

`base`, `large`: the models and the recipe of the paper (Liu et al. 2019, Table 9), 500k steps of
8192 rows of 512 tokens.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:base --workdir=/shared/runs/base \\
        '--config.data.files=/data/corpus/*.jsonl.zst' --config.tokenizer=/data/roberta_bpe

  Needs a TPU pod or many GPUs, and up to 160 GB of text. The number of devices does not change the
  training steps, as long as it divides the batch size: each device computes microbatches of at most
  `train.per_device_batch_size` rows and accumulates their gradients. The losses differ by rounding;
  with dropout, another number of microbatches also draws other random bits. With
  `--config.train.per_device_batch_size=-1 --config.execution.remat=auto` the microbatch is what
  fits into the memory of a device. If the parameters do not fit on one device, shard them with
  `--config.mesh.data=1 --config.mesh.fsdp=-1`. To train on several hosts, start the same command on
  each of them. They must share the workdir, and each must have the same text files and tokenizer;
  `data.cache_dir` may be shared or not.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(size: str = "tiny") -> ConfigDict:
    """Returns the locked config of a size.

    Raises:
      ValueError: The size is unknown.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: configs/pretrain.py has {', '.join(SIZES)}")
    config = _defaults()
    config.update(SIZES[size])
    config.lock()
    return config


def _defaults() -> ConfigDict:
    """Returns every key with its value for the paper's base model.

    The comment of a key, above it or behind it, is what `--help` prints.
    """
    config = ConfigDict()
    # Seed of the parameter initialization, dropout, masking and row order.
    config.seed = 0
    config.seq_len = 512  # Tokens per row, including <s> and </s>.
    # Folder or hub id of a tokenizer. None trains one on the corpus, see `new_tokenizer`.
    config.tokenizer = placeholder(str)
    # Pretrained weights to start from: a workdir, a folder or a hub id. The model shape and the
    # tokenizer come from there; of `model`, only the dropout rates are used.
    config.init_from = placeholder(str)

    config.new_tokenizer = ConfigDict()  # Training of a byte-level BPE tokenizer.
    config.new_tokenizer.vocab_size = 50265  # Vocabulary size, including special tokens.
    config.new_tokenizer.min_frequency = 2  # Occurrences a pair needs to be merged.

    config.data = ConfigDict()  # The corpus, and how it is packed into rows.
    # Where the text comes from: "files", "tfds", or "builtin" (Python's documentation).
    config.data.source = "files"
    # Glob of text files (blank line between documents) or JSON-lines files (one document per line);
    # uncompressed, gz, bz2, xz or zst.
    config.data.files = placeholder(str)
    config.data.text_field = "text"  # JSON field that holds the text.
    # "split" splits the text into sentences; "lines" takes each line as one sentence.
    config.data.sentences = "split"
    config.data.language = "en"  # Language code for the sentence splitter.
    config.data.tfds_name = placeholder(str)  # Name of the TFDS dataset, for source "tfds".
    config.data.tfds_split = placeholder(str)  # Split of the TFDS dataset.
    config.data.tfds_field = placeholder(str)  # Feature of the TFDS dataset that holds the text.
    # Folder of the prepared TFDS datasets; None is TFDS's default.
    config.data.tfds_data_dir = placeholder(str)
    config.data.validation_fraction = 0.001  # Fraction of the documents held out for validation.
    # Validation documents of which a larger fraction also occurs in the training text (in runs of
    # 13 tokens) are not scored; 1 scores all.
    config.data.validation_max_overlap = 0.5
    # Folder for tokenized text and trained tokenizers; None is roberta_jax in the user's cache
    # folder. With gs://BUCKET/FOLDER the user's cache folder is used, and each machine copies from
    # the bucket what another one has prepared.
    config.data.cache_dir = placeholder(str)
    config.data.num_workers = placeholder(int)  # Tokenizing processes; None is one per CPU core.
    # Input pipeline: "tf" (tf.data), "numpy" (threads), or "auto" for tf.data if TensorFlow is
    # installed. Both give the same batches.
    config.data.engine = "auto"
    # Order of the rows in an epoch: "full" is a random permutation of all rows, which reads pages
    # from all over the store. "windowed" shuffles blocks of consecutive rows, and the rows within
    # windows of several blocks, and so reads whole blocks.
    config.data.order = "full"
    config.data.order_block_tokens = 1 << 22  # Order windowed: tokens per block, about 8 MB.
    # Order windowed: blocks whose rows are shuffled together. A larger window is closer to the full
    # order, and more of the store is read at the same time.
    config.data.order_window_blocks = 16
    # Order windowed: equal parts of a batch with a window each. A host reads only the blocks of the
    # parts that its rows are in.
    config.data.order_streams = 16
    # Input format (Liu et al. 2019, section 4.2): "full_sentences", "doc_sentences",
    # "segment_pair", "sentence_pair", or "sentences" for single sentences.
    config.data.format = "full_sentences"
    # Train on the first documents only, up to this number of tokens; None uses the whole corpus.
    config.data.max_tokens = placeholder(int)
    # Pair formats: how many times the corpus is sampled into pairs; the epochs cycle through the
    # samples.
    config.data.dupe_factor = 10
    # Format segment_pair: fraction of the documents sampled with a shorter target length.
    config.data.short_seq_prob = 0.1
    config.data.num_separators = 2  # Pair formats: </s> tokens between the two texts, 1 or 2.
    # Further corpora: a tuple of dicts with the keys `source` to `tfds_data_dir`, `max_tokens`, and
    # `weight`, the sampling weight relative to the first corpus (default 1). Validation documents
    # come from the first corpus only. Example: experiments/studies/table4_data.py.
    config.data.mixture = ()

    config.objective = ConfigDict()  # Training objectives beside masked language modeling.
    # Add next-sentence prediction; needs a pair format.
    config.objective.next_sentence = False

    config.masking = ConfigDict()  # Which tokens are masked, and how.
    config.masking.rate = 0.15  # Fraction of the tokens selected for prediction.
    config.masking.mask_replace_prob = 0.8  # Fraction of the selected tokens replaced by <mask>.
    # Fraction of the selected tokens replaced by a random token; the remaining ones are unchanged.
    config.masking.random_replace_prob = 0.1
    # Whether <s> and </s> may be masked: true as in fairseq, false as in Hugging Face's collator.
    config.masking.mask_special_tokens = True
    # What is masked as a unit: "token", "whole_word", or "span" (consecutive words, SpanBERT).
    config.masking.scheme = "token"
    # Scheme span: parameter of the geometric distribution of span lengths.
    config.masking.geometric_p = 0.2
    config.masking.max_span_length = 10  # Scheme span: longest span, in words.
    # None is dynamic masking: a new mask in each epoch. A number is static masking: the number of
    # masks per row, used in turn, one per epoch (10 in the paper).
    config.masking.dupe_factor = placeholder(int)

    config.model = ConfigDict()  # Model shape, named as in Hugging Face's RobertaConfig.
    config.model.hidden_size = 768  # Width of the encoder.
    config.model.num_hidden_layers = 12  # Encoder layers.
    config.model.num_attention_heads = 12  # Attention heads per layer; must divide hidden_size.
    config.model.intermediate_size = 3072  # Width of the feed-forward layers.
    config.model.hidden_act = "gelu"  # Activation function, named as in transformers.
    config.model.hidden_dropout_prob = 0.1  # Dropout after the embeddings and in each layer.
    config.model.attention_probs_dropout_prob = 0.1  # Dropout of the attention probabilities.
    config.model.initializer_range = 0.02  # Standard deviation of the initial weights.
    config.model.layer_norm_eps = 1e-5  # Epsilon of layer normalization.
    # Token types: 1, or 2 to mark the two texts of a pair as BERT does.
    config.model.type_vocab_size = 1

    config.execution = ConfigDict()  # Dtype, scanning and rematerialization of the model.
    # Dtype of activations and matrix products: "float32", "bfloat16", or "auto" for bfloat16 except
    # on CPU. Parameters are float32.
    config.execution.dtype = "auto"
    # Stack the layers' parameters and scan over them, which compiles faster than unrolled layers.
    config.execution.scan_layers = True
    # Layers per scan iteration; -1 is all. Without a loop a step is faster, because what is kept
    # for the backward pass is not copied into and out of arrays of all layers, and compiling takes
    # several times as long. XLA then decides itself what "dots" recomputes. None is -1, or 1 if
    # mesh.fsdp splits the parameters, which XLA without a loop would gather for all layers at once.
    config.execution.scan_unroll = placeholder(int)
    # What the backward pass recomputes: "none"; "dots", everything but matrix products; "full"; or
    # "auto", "dots" if enough rows fit into the memory of a device with it, else "full". The step
    # is compiled once or a few times to decide.
    config.execution.remat = "dots"
    # Attention kernel: "pallas_tpu" and "pallas_gpu" keep the scores on the chip; "xla" stores no
    # probabilities for the backward pass; "reference" is the plain definition, for comparison.
    # "auto": the fastest of the platform.
    config.execution.attention = "auto"
    # Kernel of dropout, residual and LayerNorm: "pallas_tpu", "xla", or "auto" as above.
    config.execution.layer_norm = "auto"

    config.optimizer = ConfigDict()  # The optimizer.
    config.optimizer.name = "adamw"  # "adamw" or "lamb".
    config.optimizer.learning_rate = 6e-4  # Peak learning rate.
    config.optimizer.beta1 = 0.9  # Decay rate of the first moment.
    config.optimizer.beta2 = 0.98  # Decay rate of the second moment.
    config.optimizer.eps = 1e-6  # Epsilon of the update's denominator.
    config.optimizer.weight_decay = 0.01  # Decoupled weight decay, multiplied by the learning rate.
    # Parameters to decay: "all" (fairseq), or "bert" for all but biases and layer norms.
    config.optimizer.decay_mask = "all"
    config.optimizer.bias_correction = True  # Adam's bias correction; BERT has none.
    config.optimizer.clip_norm = 0.0  # Largest global gradient norm; 0 disables clipping.

    config.schedule = ConfigDict()  # Learning rate: linear warmup from 0, then decay.
    config.schedule.name = "polynomial"  # Decay: "polynomial", "cosine" or "constant" (none).
    config.schedule.warmup_steps = 24_000  # Steps of the linear warmup.
    # Step at which the decay ends, counted from step 0; None is train.steps.
    config.schedule.decay_steps = placeholder(int)
    # Schedule polynomial: exponent of the decay; None is 1, linear decay.
    config.schedule.power = placeholder(float)
    config.schedule.end_learning_rate = 0.0  # Learning rate at the end of the decay.

    config.train = ConfigDict()  # The training loop.
    config.train.steps = 500_000  # Number of updates.
    config.train.batch_size = 8192  # Rows per step, over all devices.
    # Rows per device per microbatch, at most; gradients are accumulated over the microbatches. Each
    # microbatch draws its own random bits for dropout. None disables accumulation; -1 is what fits
    # into the memory of a device, as for execution.remat.
    config.train.per_device_batch_size = 16
    config.train.log_every = 100  # Steps between log records.
    config.train.eval_every = 5000  # Steps between evaluations; 0 evaluates only at the end.
    config.train.checkpoint_every = 1000  # Steps between checkpoints; 0 saves only at the end.
    config.train.keep_checkpoints = 3  # Number of newest checkpoints to keep.
    # Checkpoints whose step is a multiple of this are milestones, which are kept; 0 has none. Only
    # a run that goes back because of a spike deletes those after the step that it goes back to.
    config.train.keep_every = 0
    # Use deterministic GPU kernels: bit-identical results from run to run, but slower.
    config.train.deterministic = False

    config.spikes = ConfigDict()  # What to do if the training loss jumps.
    # "none"; "stop" ends the run with an error; "skip" goes back to the last checkpoint, and skips
    # the batches from there to that of the jump and `skip_batches` more.
    config.spikes.policy = "none"
    # A loss is a spike if it exceeds the median of the losses of this number of steps by more than
    # `min_increase` and `deviations`. With policy "skip", one that is not finite always is.
    config.spikes.window = 100
    # Standard deviations of these losses, estimated by their median absolute deviation.
    config.spikes.deviations = 6.0
    config.spikes.min_increase = 0.5  # Smallest increase of a spike, in nats per token.
    config.spikes.skip_batches = 100  # Policy skip: batches to skip after that of the spike.
    config.spikes.max_rewinds = 3  # Policy skip: how many times a run may go back.

    config.eval = ConfigDict()  # Evaluation on the validation documents.
    config.eval.batch_size = 256  # Rows per evaluation step, over all devices.
    config.eval.seed = 0  # Seed of the evaluation masks.
    config.eval.max_rows = 8192  # Rows to score; None scores all validation rows.
    config.eval.short_inputs = False  # Also score single sentences.
    # At the end, also report the perplexity of a unigram and a bigram model.
    config.eval.ngram_baselines = False

    config.mesh = ConfigDict()  # Devices along each axis of the mesh; -1 is all remaining devices.
    config.mesh.data = -1  # Data parallelism.
    config.mesh.fsdp = 1  # Data parallelism with sharded parameters and optimizer state.
    config.mesh.tensor = 1  # Tensor parallelism.
    # Number of slices, groups of devices that only the axis `data` connects. None is the number of
    # TPU slices, and 1 on other devices.
    config.mesh.slices = placeholder(int)
    # Split the optimizer state over `data` as well (ZeRO stage 1).
    config.mesh.shard_optimizer_state = False
    # Changes to the sharding rules: a tuple of (logical axis, mesh axis or None) pairs, such as
    # (("embed", None),). The rules are in roberta_jax/training/partitioning.py.
    config.mesh.rules = ()

    config.distributed = ConfigDict()  # Runs of several processes; all times are in seconds.
    config.distributed.start_timeout = 300.0  # Time for all processes to start.
    # Time without a sign of life after which a process counts as lost and the others end.
    config.distributed.heartbeat_timeout = 40.0
    # Time that a live process may stay behind the others before they end; six times as long before
    # its first step, which it may have to compile.
    config.distributed.late_timeout = 600.0

    # These keys accept None although their default is a number.
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
        # Single sentences share rows without padding. FULL-SENTENCES would leave 22% of such short
        # rows empty.
        "data": {"source": "builtin", "format": "sentences", "validation_fraction": 0.05},
        "model": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            # Narrow models need larger initial weights: with 0.02 this one learns several times
            # more slowly.
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
        "eval": {
            "batch_size": 64,
            "max_rows": None,
            "short_inputs": True,
            "ngram_baselines": True,
        },
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
