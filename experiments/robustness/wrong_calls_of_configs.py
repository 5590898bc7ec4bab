"""Wrong calls of the commands with a config: `pretrain` and `prepare`.

Every key of the config gets every bad value of its type, so that a key which is added later is
called wrongly, too.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.pretrain import get_config
from experiments.robustness.wrong_call import Call
from experiments.robustness.wrong_files import CONFIG_FILES, HOSTILE_CONFIGS
from roberta_jax.dotted_keys import flatten

# A run of two steps of a very small model. `{files}` and `{out}` are replaced by folders.
SMALL = {
    "seq_len": 16,
    "new_tokenizer.vocab_size": 300,
    "data.source": "files",
    "data.files": "{files}/corpus.jsonl",
    "data.validation_fraction": 0.1,
    "data.cache_dir": "{files}/cache",
    "data.num_workers": 1,
    "data.engine": "numpy",
    "model.hidden_size": 16,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "schedule.warmup_steps": 1,
    "train.steps": 2,
    "train.batch_size": 8,
    "eval.batch_size": 8,
    "eval.max_rows": 8,
    "eval.ngram_baselines": "false",
}

_LONG = "x" * 5000
BAD_INTEGERS = (
    "nan", "-1", "0", "1e30", str(10**20), str(2**70), "0.5", "true", "", "none", "9" * 5000,
)  # fmt: skip
BAD_NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e30", "1e-300", "true", "", "none", _LONG)
BAD_TRUTHS = ("maybe", "2", "", "none")
BAD_TEXTS = ("", _LONG, "no-such-value", "\udcff\udcfe", "3")
BAD_TUPLES = ("", "5", "(1,2)", "(", "{'a': 1}", "none", _LONG)

_KINDS = {int: BAD_INTEGERS, float: BAD_NUMBERS, bool: BAD_TRUTHS, str: BAD_TEXTS}


def small_run(command: str = "pretrain", **changes: object) -> tuple[str, ...]:
    """The arguments of a run that works, with some of its keys changed."""
    values = {**SMALL, **changes}
    arguments = ["--config=configs/pretrain.py:tiny"]
    if command == "pretrain":
        arguments.append("--workdir={out}")
    return (*arguments, *(f"--config.{key}={value}" for key, value in values.items()))


def bad_values(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Each key of a config with each bad value of its type."""
    for key in flatten(config):
        *groups, name = key.split(".")
        group = config
        for each in groups:
            group = group[each]
        for value in _KINDS.get(group.get_type(name), BAD_TUPLES):
            yield key, value


def config_values() -> Iterator[Call]:
    """Each key of the config with each bad value of its type."""
    config = get_config("tiny")
    for key, value in bad_values(config):
        yield Call("pretrain", small_run(**{key: value}), "config value")
    for key in flatten(config):
        if key.startswith(("data.num", "data.val", "data.max_tokens", "new_tokenizer.")):
            values = BAD_INTEGERS if "fraction" not in key else BAD_NUMBERS
            for value in values:
                yield Call("prepare", small_run("prepare", **{key: value}), "config value")


COMBINATIONS = (
    {"model.num_attention_heads": 3},
    {"model.num_attention_heads": 32},
    {"model.hidden_size": 10**6, "model.num_attention_heads": 1},
    {"model.num_hidden_layers": 10**6},
    {"model.num_hidden_layers": 10**6, "execution.scan_layers": "false"},
    {"model.num_hidden_layers": 3, "execution.scan_unroll": 2},
    {"model.intermediate_size": 10**9},
    {"seq_len": 60_000},
    {"train.batch_size": 10**7},
    {"eval.batch_size": 10**7},
    {"schedule.warmup_steps": 2},
    {"schedule.warmup_steps": 3},
    {"schedule.warmup_steps": 5, "schedule.decay_steps": 4},
    {"schedule.end_learning_rate": 1},
    {"schedule.name": "cosine", "schedule.power": 2},
    {"schedule.name": "constant", "schedule.end_learning_rate": 1e-4},
    {"schedule.power": 1e5},
    {"optimizer.learning_rate": 1e30},
    {"optimizer.learning_rate": 1e38},
    {"optimizer.name": "lamb", "optimizer.beta1": 1},
    {"optimizer.eps": 1e-60},
    {"masking.mask_replace_prob": 0.9, "masking.random_replace_prob": 0.2},
    {"masking.rate": 0.999999},
    {"masking.rate": 1e-9},
    {"masking.scheme": "span", "masking.geometric_p": 0},
    {"masking.scheme": "span", "masking.max_span_length": 0},
    {"masking.scheme": "span", "masking.max_span_length": 10**9},
    {"masking.dupe_factor": 0},
    {"objective.next_sentence": "true"},
    {"objective.next_sentence": "true", "data.format": "sentences"},
    {"data.format": "segment_pair", "seq_len": 5},
    {"data.format": "segment_pair", "data.dupe_factor": 0},
    {"data.format": "segment_pair", "data.dupe_factor": 10**9},
    {"data.format": "segment_pair", "data.num_separators": 3},
    {"data.format": "segment_pair", "data.files": "{files}/one-document.txt"},
    {"data.format": "sentence_pair", "data.short_seq_prob": 2},
    {"mesh.data": 2},
    {"mesh.data": -1, "mesh.fsdp": -1},
    {"mesh.tensor": 8},
    {"mesh.rules": "(('embed','tensor'),)"},
    {"mesh.rules": "(('nothing',None),)"},
    {"data.mixture": "({'files': 3},)"},
    {"data.mixture": "({'file': 'x'},)"},
    {"data.mixture": "({'weight': float('nan')},)"},
    {"data.mixture": "({'source': 'files', 'files': 'none/*.txt'},)"},
    {"data.mixture": "({'max_tokens': 0},)"},
    {"data.source": "tfds"},
    {"data.source": "tfds", "data.tfds_name": "no_such_dataset"},
    {"data.source": "builtin", "data.files": "{files}/corpus.jsonl"},
    {"new_tokenizer.vocab_size": 10**9},
    {"new_tokenizer.vocab_size": 260},
    {"new_tokenizer.vocab_size": 5000},
    {"new_tokenizer.min_frequency": 10**9},
    {"train.per_device_batch_size": 3},
    {"train.per_device_batch_size": 10**9},
    {"data.validation_fraction": 0.99999},
    {"data.validation_fraction": 1e-12},
    {"data.max_tokens": 1},
    {"data.num_workers": 10**6},
)

SOURCES = (
    "missing/*.txt", "{files}/empty.txt", "{files}/blank.txt", "{files}/latin1.txt",
    "{files}/utf16.txt", "{files}/binary.txt", "{files}/nul.txt", "{files}/broken.jsonl",
    "{files}/other-field.jsonl", "{files}/numbers.jsonl", "{files}/lists.jsonl",
    "{files}/no-gzip.jsonl.gz", "{files}/cut.jsonl.gz", "{files}/no-zst.txt.zst",
    "{files}/no-xz.txt.xz", "{files}/no-bz2.txt.bz2", "{files}/corpus.parquet", "{files}",
    "{files}/loop", "{files}/dangling", "{files}/pipe", "/dev/zero", "/dev/null", "/dev/full",
    "/proc/self/mem", "[", "**", ",", "{files}/one-document.txt", "{files}/run",
    "~no_such_user/x.txt", "s3://bucket/*.txt",
)  # fmt: skip

_BAD_MODELS = (
    "no-such-model", "no-such-owner/no-such-model", "a/b/c", "{files}/empty-folder",
    "{files}/corpus.txt", "{files}/loop", "{files}/dangling", "{files}/pipe", "/dev/zero",
    "{files}/run/checkpoints", "{files}/runs/unfinished", "{files}/runs/damaged-export",
    *(f"{{files}}/models/{name}" for name in HOSTILE_CONFIGS),
    *(
        f"{{files}}/models/{name}"
        for name in (
            "config-nested", "config-missing", "weights-cut", "weights-nan", "weights-zeros",
            "weights-missing", "weights-other-shape", "torch-garbage", "flax-garbage",
            "fairseq-garbage", "no-tokenizer", "tokenizer-cut",
        )
    ),
)  # fmt: skip

_BAD_TOKENIZERS = (
    "no-such-model", "{files}/empty-folder", "{files}/corpus.txt", "{files}/loop",
    "{files}/pipe", "/dev/zero", "{files}/models/tokenizer-cut", "{files}/models/tokenizer-list",
    "{files}/models/tokenizer-empty", "{files}/models/tokenizer-binary",
    "{files}/models/tokenizer-options-list", "{files}/models/no-tokenizer",
)  # fmt: skip


def config_calls() -> Iterator[Call]:
    """Wrong files, flags, combinations of values and workdirs."""
    sound = small_run()
    for changes in COMBINATIONS:
        yield Call("pretrain", small_run(**changes), "combination")
    for source in SOURCES:
        yield Call("pretrain", small_run(**{"data.files": source}), "corpus")
        yield Call("prepare", small_run("prepare", **{"data.files": source}), "corpus")
    for model in _BAD_MODELS:
        yield Call("pretrain", small_run(init_from=model), "model")
    for tokenizer in _BAD_TOKENIZERS:
        yield Call("prepare", small_run("prepare", tokenizer=tokenizer), "tokenizer")
    for name in (*CONFIG_FILES, "binary", "latin1", "folder"):
        file = f"{{files}}/config-{name}.py"
        yield Call("pretrain", (f"--config={file}:tiny", *sound[1:]), "config file")
        if name in ("syntax-error", "returns-none", "binary", "folder"):
            yield Call("prepare", (f"--config={file}:tiny",), "config file")
            yield Call("pretrain", (f"--config={file}:tiny", "--help"), "config file")
    for config in (
        "", ":", ":tiny", "none.py", "none.py:tiny", "configs/pretrain.py:huge",
        "configs/pretrain.py:", "configs/pretrain.py:tiny:tiny", "{root}/configs", "/dev/null",
        "/dev/zero", "{files}/loop", "{files}/pipe", "{files}/corpus.txt", "{files}/run",
        "{files}/run/config.json", "configs.pretrain", _LONG, "configs/pretrain.py tiny",
    ):  # fmt: skip
        yield Call("pretrain", (f"--config={config}", *sound[1:]), "config file")
    for arguments in _wrong_flags(sound):
        yield Call("pretrain", arguments, "flags")
    yield Call("prepare", (), "flags")
    yield Call("prepare", (*small_run("prepare"), "--workdir={out}"), "flags")
    yield Call("prepare", (*small_run("prepare"), "--verify=maybe"), "flags")
    yield Call("prepare", (*small_run("prepare"), "verify"), "flags")
    for folder in ("/proc/cache", "/dev/null", "{files}/corpus.txt", "{files}/loop", "/sys", _LONG):
        for command in ("pretrain", "prepare"):
            changed = small_run(command, **{"data.cache_dir": folder})
            yield Call(command, changed, "unwritable output")
    for workdir in (
        "/proc/run", "/dev/null", "/dev/full/run", "/sys/run", "{files}/corpus.txt",
        "{files}/corpus.txt/run", "{files}/loop", "{files}/loop/run", "{files}/dangling",
        "{files}/pipe", _LONG, "\udcff",
    ):  # fmt: skip
        changed = (sound[0], f"--workdir={workdir}", *sound[2:])
        yield Call("pretrain", changed, "unwritable output")
    for name in (
        "run", "run/hf", "models/weights-nan", "full-folder", "runs/config-cut", "runs/config-list",
        "runs/config-empty", "runs/config-of-another-job", "runs/config-group-is-a-number",
        "runs/metrics-binary", "runs/metrics-list", "runs/metrics-no-step", "runs/metrics-words",
        "runs/metrics-folder", "runs/checkpoints-file", "runs/checkpoints-file-unfinished",
        "runs/damaged-export", "cache",
    ):  # fmt: skip
        changed = (sound[0], f"--workdir={{files}}/{name}", *sound[2:], "--config.seed=9")
        yield Call("pretrain", changed, "workdir of another kind")
    for name in (
        "metrics-binary", "metrics-list", "metrics-no-step", "metrics-words", "metrics-folder",
        "damaged-export", "checkpoints-file-unfinished",
    ):  # fmt: skip
        # The run's own config: what is damaged is what is read.
        changed = (sound[0], f"--workdir={{files}}/runs/{name}", *sound[2:])
        yield Call("pretrain", changed, "workdir of another kind")
    yield Call("pretrain", ("--help",), "output", stdout="/dev/full")
    yield Call("prepare", small_run("prepare"), "output", stdout="/dev/full")


def _wrong_flags(sound: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    config = sound[0]
    yield ()
    yield ("--workdir={out}",)
    yield ("--config",)
    yield (config,)
    yield (config, "--workdir=")
    yield (config, "--workdir")
    yield ("--config", "--workdir={out}")
    yield ("configs/pretrain.py:tiny",)
    yield ("configs/pretrain.py:tiny", "--workdir={out}")
    for extra in (
        "stray", "--", "-", "", "--wrokdir=x", "-workdir", "--workdir.x=3", "--distributed=maybe",
        "--nodistributed=1", "--config.data=3", "--config.data", "--config.data=", "--config.=3",
        "--config.train.stepz=3", "--config.steps=3", "--config.TRAIN.STEPS=3",
        "--config.train.steps.x=3", "--config.train..steps=3", "--config.train.steps",
        "--config.train.steps =3", "--config.train.steps= 3x", "--config.zebra=1",
        "--config.data.workers=2", "--config.train.rows_per_device=2", "--config.train",
        "--config.mesh.rules=((", "--config.mesh.rules='", '--config.data.mixture="',
        "--configs.train.steps=3", "--conf=configs/pretrain.py:tiny", "--seed=3",
        "--config.seed=1,2", "--config.seed=0x10", "--config.seed=1 2", "--config.seed=\u0663",
        "--config.data.files", "--config.model.hidden_act=GELU", "--config.data.format=Sentences",
        "--config.optimizer.name=AdamW", "--config.execution.dtype=fp16", "--flagfile=/nonexistent",
        "--flagfile={files}/binary.txt", "--undefok", "--config.masking.rate=15%",
        "--config.masking.rate=0,15", "--config.eval.short_inputs", "--noconfig.seed",
        "--config.data.num_workers=None", "--config.train.batch_size=None",
        "--config.train.batch_size=none", "--config.schedule.power=none",
    ):  # fmt: skip
        yield (*sound, extra)
    for repeated in (
        "--config.train.steps=3", "--config.train.steps=2", "--workdir={out}2",
        "--config=configs/pretrain.py:small", "--config=none.py",
    ):  # fmt: skip
        yield (*sound, repeated)
