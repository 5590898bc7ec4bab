"""Fine-tuning. Use as `--config=configs/finetune.py:TASK`, for example

    python -m roberta_jax.finetune --config=configs/finetune.py:rte \\
        --config.init_from=FacebookAI/roberta-base --config.data.folder=glue/RTE --workdir=runs/rte

TASK is a row of the table in roberta_jax/tasks/table.py, which has GLUE, SQuAD, RACE and others, or
`csv`, `tsv` or `jsonl` for your own files:

    python -m roberta_jax.finetune --config=configs/finetune.py:csv --workdir=runs/reviews \\
        --config.data.train=reviews.csv --config.data.validation=0.1 \\
        --config.init_from=FacebookAI/roberta-base

The recipe is the task's in the paper (Liu et al. 2019, Table 10) and in fairseq: learning rate,
batch, epochs, warmup. Any key can be overridden on the command line, for example
`--config.optimizer.learning_rate=2e-5`; `=none` unsets a value. `python -m roberta_jax.finetune
--help` lists all keys.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from roberta_jax.tasks.table import TASKS


def get_config(task: str = "rte") -> ConfigDict:
    """Returns the locked config of a task.

    Raises:
      ValueError: The task is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: there are {', '.join(TASKS)}")
    config = _defaults()
    recipe = TASKS[task].recipe
    config.task = task
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.weight_decay = recipe.weight_decay
    config.schedule.warmup_ratio = recipe.warmup_ratio
    config.train.batch_size = recipe.batch_size
    config.train.epochs = recipe.epochs
    config.train.steps = recipe.steps
    config.lock()
    return config


def _defaults() -> ConfigDict:
    """Returns every key; `get_config` puts in the task's recipe.

    The comment of a key, above it or behind it, is what `--help` prints.
    """
    config = ConfigDict()
    config.task = "rte"  # The task, as after the colon of the config file.
    # Seed of the new head's parameters, the dropout and the order of the examples.
    config.seed = 0
    # The model to fine-tune: a workdir of this project, a folder in Hugging Face's or fairseq's
    # format, or a hub id. It must be given.
    config.init_from = placeholder(str)
    # Take only the config and the tokenizer of `init_from`, and start from random values in place
    # of its weights: what training on the task alone gives, to compare a pretrained model with.
    config.random_init = False
    # Folder or hub id of a tokenizer. None uses the one of `init_from`.
    config.tokenizer = placeholder(str)

    config.data = ConfigDict()  # The examples.
    # Folder with the task's official files. None reads the task from TensorFlow Datasets.
    config.data.folder = placeholder(str)
    # Folder of the prepared TFDS datasets; None is TFDS's default.
    config.data.tfds_data_dir = placeholder(str)
    # File of the training examples, instead of the one in `folder`. Needed for csv, tsv and jsonl.
    config.data.train = placeholder(str)
    # File of the validation examples, or the share of the training examples to hold out ("0.1").
    config.data.validation = placeholder(str)
    # File of the examples to predict after the training. None takes the ones in `folder`, if any.
    config.data.test = placeholder(str)
    # csv, tsv, jsonl: what is predicted: "classification", "multi_label", "regression", "tokens" or
    # "choice". None guesses it from the columns.
    config.data.kind = placeholder(str)
    # Names of the labels in the order of their ids, such as ("negative", "positive"). () takes
    # those of the task, or of the training examples in alphabetical order.
    config.data.labels = ()
    config.data.text_column = placeholder(str)  # csv, tsv, jsonl: the text. None guesses it.
    # csv, tsv, jsonl: the second text of a pair. None guesses it.
    config.data.pair_column = placeholder(str)
    # csv, tsv, jsonl: the label, or several columns of 0 and 1 ("toxic,insult"). None guesses it.
    config.data.label_column = placeholder(str)
    config.data.id_column = placeholder(str)  # csv, tsv, jsonl: the id. None numbers the examples.
    # csv, tsv, jsonl: the columns of the choices, such as ("ending0", "ending1"). () guesses them.
    config.data.choice_columns = ()
    # Train on a random sample of so many examples; None trains on all.
    config.data.max_train_examples = placeholder(int)
    # Lengths that batches are padded to, at most; each is compiled once. They are chosen so that
    # the padding is least.
    config.data.num_lengths = 6
    # Folder for encoded examples; None is roberta_jax in the user's cache folder.
    config.data.cache_dir = placeholder(str)
    # Input pipeline: "numpy" (threads), "tf" (tf.data), or "auto" for tf.data if TensorFlow is
    # installed. All give the same batches; importing TensorFlow takes seconds and 0.6 GB.
    config.data.engine = "numpy"

    config.format = ConfigDict()  # From example to input; None is the task's own value.
    # Tokens per input, special tokens included; longer ones are cut. At most what the model takes.
    config.format.max_length = placeholder(int)
    # Number of </s> between the two texts of a pair: 2, or 1.
    config.format.separators = placeholder(int)
    # Multiple choice: tokens of a question with its option.
    config.format.max_option_length = placeholder(int)
    # Questions: tokens from the start of one window of the passage to the next.
    config.format.doc_stride = placeholder(int)
    config.format.max_query_length = placeholder(int)  # Questions: tokens of the question.
    config.format.max_answer_length = placeholder(int)  # Questions: tokens of an answer.
    config.format.n_best = placeholder(int)  # Questions: answers to keep for each question.
    # Questions: predict no answer where its score exceeds that of the best answer by more than
    # this. None chooses the best threshold on the validation examples.
    config.format.null_threshold = placeholder(float)

    config.model = ConfigDict()  # Dropout rates; None is that of the model to start from.
    config.model.hidden_dropout_prob = placeholder(float)  # After embeddings and in each layer.
    config.model.attention_probs_dropout_prob = placeholder(float)  # Of attention probabilities.
    config.model.classifier_dropout = placeholder(float)  # Before the classifier.

    config.adapt = ConfigDict()  # What is trained, and how fast.
    # The learning rate of a layer is that of the layer above it times this; 1 is one rate for all.
    config.adapt.layer_decay = 1.0
    # Number of top layers that start from new random values (Zhang et al. 2021).
    config.adapt.reinit_layers = 0
    # Number of lowest layers that keep their values; the embeddings then keep theirs as well. It
    # saves memory, and with execution.scan_layers=false also computation.
    config.adapt.frozen_layers = 0
    config.adapt.freeze_embeddings = False  # Keep the values of the embeddings.
    # Rank of low-rank adapters (LoRA, Hu et al. 2021), which are trained with the head in place of
    # the model; 0 trains the model itself.
    config.adapt.lora_rank = 0
    config.adapt.lora_alpha = 16.0  # LoRA: the adapters are scaled by lora_alpha / lora_rank.
    # LoRA: the layers that get adapters, named as in Hugging Face's RoBERTa.
    config.adapt.lora_targets = ("query", "value")

    config.execution = ConfigDict()  # Dtype, scanning and rematerialization of the model.
    # Dtype of activations and matrix products: "float32", "bfloat16", or "auto" for bfloat16 except
    # on CPU. Parameters are float32.
    config.execution.dtype = "auto"
    # Stack the layers' parameters and scan over them, which compiles faster than unrolled layers.
    config.execution.scan_layers = True
    config.execution.scan_unroll = 1  # Layers per scan iteration.
    # What the backward pass recomputes: "none"; "dots", everything but matrix products; "full".
    config.execution.remat = "dots"
    # Attention kernel: "pallas_tpu" and "pallas_gpu" keep the scores on the chip; "xla" stores no
    # probabilities for the backward pass; "reference" is the plain definition, for comparison.
    # "auto": the fastest of the platform.
    config.execution.attention = "auto"
    # Kernel of dropout, residual and LayerNorm: "pallas_tpu", "xla", or "auto" as above.
    config.execution.layer_norm = "auto"

    config.optimizer = ConfigDict()  # The optimizer.
    config.optimizer.name = "adamw"  # "adamw" or "lamb".
    config.optimizer.learning_rate = 1e-5  # Peak learning rate.
    config.optimizer.beta1 = 0.9  # Decay rate of the first moment.
    config.optimizer.beta2 = 0.98  # Decay rate of the second moment.
    config.optimizer.eps = 1e-6  # Epsilon of the update's denominator.
    config.optimizer.weight_decay = 0.1  # Decoupled weight decay, multiplied by the learning rate.
    # Parameters to decay: "all" (fairseq), or "bert" for all but biases and layer norms.
    config.optimizer.decay_mask = "all"
    config.optimizer.bias_correction = True  # Adam's bias correction; BERT has none.
    config.optimizer.clip_norm = 0.0  # Largest global gradient norm; 0 disables clipping.

    config.schedule = ConfigDict()  # Learning rate: linear warmup from 0, then decay to the end.
    config.schedule.name = "polynomial"  # Decay: "polynomial", "cosine" or "constant" (none).
    config.schedule.warmup_ratio = 0.06  # Share of the steps that the warmup takes.
    # Schedule polynomial: exponent of the decay; None is 1, linear decay.
    config.schedule.power = placeholder(float)
    config.schedule.end_learning_rate = 0.0  # Learning rate at the end of the decay.

    config.train = ConfigDict()  # The training loop.
    # Passes over the training examples. None where `steps` is given.
    config.train.epochs = placeholder(float)
    # Number of updates. None where `epochs` is given.
    config.train.steps = placeholder(int)
    config.train.batch_size = 32  # Examples per update, over all devices.
    # Rows per device per microbatch, at most; gradients are accumulated over the microbatches. Each
    # microbatch draws its own random bits for dropout. None disables accumulation.
    config.train.per_device_batch_size = placeholder(int)
    config.train.log_every = 20  # Steps between log records.
    # Steps between evaluations on the validation examples; None evaluates after each epoch, or if
    # there are more than 25 epochs, 25 times.
    config.train.eval_every = placeholder(int)
    # Evaluations without a better score after which the run ends; 0 trains to the last step. The
    # model with the best score is exported in either case.
    config.train.patience = 0
    # Steps between checkpoints; None saves after each evaluation.
    config.train.checkpoint_every = placeholder(int)
    config.train.keep_checkpoints = 1  # Number of newest checkpoints to keep.
    # Checkpoints whose step is a multiple of this are kept for ever; 0 has none.
    config.train.keep_every = 0
    # Use deterministic GPU kernels: bit-identical results from run to run, but slower.
    config.train.deterministic = False

    config.eval = ConfigDict()  # Evaluation.
    config.eval.batch_size = 64  # Examples per evaluation step, over all devices.

    config.spikes = ConfigDict()  # What to do if the training loss jumps.
    # "none"; "stop" ends the run with an error; "skip" goes back to the last checkpoint, and skips
    # the batches from there to that of the jump and `skip_batches` more.
    config.spikes.policy = "none"
    # A loss is a spike if it exceeds the median of the losses of this number of steps by more than
    # `min_increase` and `deviations`. With policy "skip", one that is not finite always is.
    config.spikes.window = 100
    # Standard deviations of these losses, estimated by their median absolute deviation.
    config.spikes.deviations = 6.0
    config.spikes.min_increase = 0.5  # Smallest increase of a spike.
    config.spikes.skip_batches = 100  # Policy skip: batches to skip after that of the spike.
    config.spikes.max_rewinds = 3  # Policy skip: how many times a run may go back.

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
    return config
