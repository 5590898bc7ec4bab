"""Wrong calls of the commands without a config, from `fill_mask` to the benchmarks."""

from collections.abc import Iterator

from experiments.robustness.forked_runs import CLOSED_PIPE
from experiments.robustness.wrong_call import Call
from experiments.robustness.wrong_files import HOSTILE_CONFIGS, STUDIES

_LONG = "x" * 5000

# Folders and files that hold no sound model.
BAD_MODELS = (
    "", " ", "no-such-model", "no-such-owner/no-such-model", "a/b/c/d", "../..", "~nobody/x", _LONG,
    "gs://bucket/model", "https://example.org/model", "\udcff", "two\nlines",
    "{files}/empty-folder", "{files}/full-folder", "{files}/corpus.txt", "{files}/binary.txt",
    "{files}/empty.txt", "{files}/loop", "{files}/dangling", "{files}/pipe", "/dev/null",
    "/dev/zero", "/dev/full", "/proc/self/mem", "{files}/run/checkpoints",
    "{files}/run/config.json", "{files}/run/metrics.jsonl", "{files}/run/hf/tokenizer.json",
    "{files}/runs/unfinished",
    "{files}/runs/damaged-export",
    *(f"{{files}}/models/{name}" for name in HOSTILE_CONFIGS),
    *(
        f"{{files}}/models/{name}"
        for name in (
            "config-nested", "config-empty", "config-list", "config-number", "config-cut",
            "config-binary", "config-missing", "config-folder", "config-loop",
            "weights-empty", "weights-short", "weights-cut", "weights-zeros", "weights-long-header",
            "weights-no-json", "weights-header-list", "weights-header-nested",
            "weights-other-dtype", "weights-no-dtype", "weights-other-shape", "weights-huge-shape",
            "weights-negative-shape", "weights-offsets-beyond", "weights-offsets-reversed",
            "weights-tensor-missing", "weights-nan", "weights-missing", "weights-folder",
            "torch-garbage", "torch-empty", "flax-garbage", "flax-empty", "fairseq-garbage",
            "index-garbage", "index-of-nothing", "index-of-numbers",
        )
    ),
)  # fmt: skip

BAD_TOKENIZERS = tuple(
    f"{{files}}/models/{name}"
    for name in (
        "no-tokenizer", "tokenizer-cut", "tokenizer-empty", "tokenizer-list", "tokenizer-binary",
        "tokenizer-options-list", "tokenizer-options-cut",
    )
)  # fmt: skip

BAD_FOLDERS = (
    "", "{files}/full-folder", "{files}/corpus.txt", "{files}/corpus.txt/x", "{files}/loop",
    "{files}/loop/x", "{files}/pipe", "/proc/x", "/proc/self/x", "/dev/full", "/dev/full/x",
    "/dev/null", "/sys/x", _LONG, "{files}/run", "{files}/run/hf", ".", "\udcff/\udcff",
)  # fmt: skip


def tool_calls() -> Iterator[Call]:
    """Wrong calls of `roberta-jax`, `fill_mask`, `convert` and `export`."""
    for arguments in (
        ("train",), ("pretrian",), ("",), (" ",), ("--versoin",), ("-v",), ("-",), ("--",),
        ("PRETRAIN",), ("pretrain.py",), ("roberta_jax.pretrain",), ("help", "pretrian"), (_LONG,),
        ("\udcff",), ("pretrain",), ("prepare",), ("fill-mask",), ("convert",), ("export",),
        ("sweep",), ("report",), ("plot-metrics",), ("pretrain", "--workdir={out}"),
        ("sweep", "table2:tiny"), ("convert", "{files}/run"),
        ("--config=configs/pretrain.py:tiny",),
    ):  # fmt: skip
        yield Call("roberta-jax", arguments, "flags")

    model, text = "{files}/run", "The cat <mask>."
    for source in (*BAD_MODELS, *BAD_TOKENIZERS):
        yield Call("fill_mask", (source, text), "model")
        yield Call("convert", (source, "{out}", "--to=flax"), "model")
        yield Call("export", (source, "{out}"), "model")
    for texts in (
        ("no mask",), ("",), (" ",), ("<mask>" * 400,), (f"<mask> {_LONG}",), (text, "no mask"),
        ("<mask>",), ("\udcff <mask>",), ("a\0b <mask>".replace("\0", "\\0"),), ("<MASK>",),
        ("[MASK]",), ("\U0010ffff <mask>",),
    ):  # fmt: skip
        yield Call("fill_mask", (model, *texts), "text")
    for stdin in (
        b"", b"\n\n", "Un \xe9t\xe9 <mask>\n".encode("latin-1"), b"\xff\xfe<\0m\0", b"\0 <mask>\n",
        b"no mask\n", b"<mask>\nno mask\n", b"x" * 10**6, b"\xef\xbb\xbf<mask>\n",
    ):  # fmt: skip
        yield Call("fill_mask", (model,), "stdin", stdin=stdin)
    for top_k in ("0", "-1", "1.5", "many", "", "nan", str(10**9), str(10**20), "true"):
        yield Call("fill_mask", (model, text, f"--top_k={top_k}"), "flags")
    for arguments in ((), ("--top_k=3",), (model, text, "--topk=3"), (model, "--help=3")):
        yield Call("fill_mask", arguments, "flags")
    for stdout in ("/dev/full", CLOSED_PIPE):
        yield Call("fill_mask", (model, text), "output", stdout=stdout)
        yield Call("roberta-jax", ("--help",), "output", stdout=stdout)

    for folder in BAD_FOLDERS:
        for to in ("hf", "flax", "fairseq"):
            yield Call("convert", (model, folder, f"--to={to}"), "unwritable output")
        yield Call("export", (model, folder), "unwritable output")
    yield Call("export", ("{files}/full-folder", "{files}/full-folder"), "unwritable output")
    for flags in (
        ("--to=tf",), ("--to=",), ("--to",), (), ("--to=hf", "--dtype=int8"), ("--to=HF",),
        ("--to=hf", "--dtype="), ("--to=hf", "--model_class=Nothing"),
        ("--to=hf", "--model_class="), ("--to=hf", "--revision="), ("--to=hf", "stray"),
        ("--to=hf", "--model_class=RobertaForMultipleChoice"), ("--to=hf", "--unknown"),
        ("--to=hf", "--model_class=FlaxRobertaModel"), ("--to=hf", "--revision=v1"),
    ):  # fmt: skip
        yield Call("convert", (model, "{out}", *flags), "flags")
    for arguments in ((), (model,), ("--to=hf",), (model, "--to=hf")):
        yield Call("convert", arguments, "flags")
    for arguments in (
        (), (model,), (model, "{out}", "--to=tf"), (model, "{out}", "--to="), (model, "{out}", "x"),
        (model, "{out}", "--too=stablehlo"),
    ):  # fmt: skip
        yield Call("export", arguments, "flags")
    for to in ("stablehlo", "saved_model"):
        yield Call("export", ("no-such-model", "{out}", f"--to={to}"), "model")


def cluster_calls() -> Iterator[Call]:
    """Wrong calls of `plan`, `doctor` and `launch`."""
    config, topology = "--config={root}/configs/pretrain.py:tiny", "--topology=v5e:4x4"
    for name in (
        "", " ", "v5e", "v5e:", "v5e:0x4", "v5e:3x3", "v5e:4x4x4", "v5e:-4x4", "v5e:4by4", "v9:4x4",
        "V5E:4x4", "v5p:4x4", "gpu:", "gpu:h200", "gpu:h200x0", "gpu:h200x12", "gpu:none8", "cpu",
        "gpu:h200x9999999999", f"v5e:{10**30}x4", "local:3", _LONG, "\udcff",
    ):  # fmt: skip
        yield Call("plan", (config, f"--topology={name}"), "flags")
    for flags in (
        ("--slices=0",), ("--slices=-1",), ("--slices=many",), (f"--slices={10**20}",),
        ("--slices=1025",), ("--mesh=data",), ("--mesh=data=",), ("--mesh=data=x",), ("--mesh=,=",),
        ("--mesh=data=4,data=4",), ("--mesh=rows=4",), ("--mesh=data=0",), ("--mesh=data=-2",),
        ("--mesh=data=-1,fsdp=-1",), ("--mesh=data=5",), ("--mesh=data=1,fsdp=16", "--slices=2"),
        (f"--mesh=data={10**30}",), ("--largest",), ("--compile=3",), ("--unknown=3",), ("stray",),
        ("--output=",), ("--output={files}",), ("--output=/nonexistent/plan.md",),
        ("--config.mesh.slices=2",), ("--config.mesh.slices=2", "--slices=4"),
        ("--config.data.order=windowed", "--config.data.order_streams=5"), ("--config.seq_len=0",),
    ):  # fmt: skip
        yield Call("plan", (config, topology, *flags), "flags")
    for arguments in ((), (config,), (topology,), ("--config=none.py", topology)):
        yield Call("plan", arguments, "flags")
    yield Call("plan", (config, "--topology=local", "--slices=2"), "flags")
    yield Call("plan", (config, "--topology=gpu:h200x8", "--compile"), "flags")
    yield Call("plan", (config, "--topology=gpu:h200x16", "--slices=2"), "flags")

    for arguments in (
        ("--workdir=",), ("--workdir= ",), ("--workdir",), ("--work=x",), ("--unknown=3",),
        ("stray",), ("--distributed=3",), ("--",  "pretrain"),
    ):  # fmt: skip
        yield Call("doctor", arguments, "flags")

    for flag in ("processes", "max_restarts", "backoff", "stalled_after", "stalled_at_start"):
        for value in ("-1", "many", "", "nan", "-inf"):
            yield Call("launch", (f"--{flag}={value}", "--", "true"), "flags")
    for arguments in (
        (), ("--",), ("pretrain",), ("--dry_run",), ("--", ""), ("--", " "), ("--", "pretrian"),
        ("--", "/nonexistent/program"), ("--", "{files}/corpus.txt"), ("--", _LONG),
        ("--processes=0", "--", "true"), ("--processes=1.5", "--", "true"), ("--", "\udcff"),
        ("--flags=all", "--", "true"), ("--flags=", "--", "true"), ("--unknown=3", "--", "true"),
        ("stray", "--", "true"), ("--process=2", "--", "true"), ("--backoff", "--", "true"),
    ):  # fmt: skip
        yield Call("launch", arguments, "flags")


def study_calls() -> Iterator[Call]:
    """Wrong calls of `sweep`, `report` and `plot_metrics`."""
    studies = (
        "", " ", ":", ":tiny", "table", "table9", "table2:", "table2:huge", "table2:tiny:tiny",
        "_recipes", "{root}/experiments/studies", "none.py", "none.py:tiny", "{files}/corpus.txt",
        "{files}/loop", "/dev/null", _LONG, "\udcff", "{root}/experiments/studies/_recipes.py",
        "experiments.studies.table2_formats", "{root}/configs/pretrain.py",
        *(f"{{files}}/study-{name}.py" for name in (*STUDIES, "binary", "latin1", "folder")),
    )  # fmt: skip
    for study in studies:
        yield Call("sweep", (study, "--out={out}", "--list"), "study")
        yield Call("report", (study, "--runs={files}/empty-folder", "--out={out}"), "study")
    sound = ("table2:tiny", "--out={out}", "--list")
    for flags in (
        ("--seeds=",), ("--seeds=a",), ("--seeds=1,1",), ("--seeds=-1",), ("--seeds=1.5",),
        (f"--seeds={2**70}",), ("--seeds=nan",), ("--seeds=0,",), ("--seeds",), ("--set",),
        ("--set=",), ("--set=train.steps",), ("--set=train.steps=",), ("--set=train.steps=many",),
        ("--set=train.steps=0.5",), ("--set=train.stepz=3",), ("--set=train=3",), ("--set==3",),
        ("--set=data.format=sentences",), ("--set=seed=3",), ("--set=mesh.rules=(",),
        ("--set=eval.short_inputs=maybe",), ("--shard=0/3",), ("--shard=4/3",), ("--shard=a/b",),
        ("--shard=1",), ("--shard=",), ("--shard=-1/3",), ("--shard=1/3/5",), ("--point=none",),
        ("--point=",), ("--point=none", "--shard=1/2"), ("--processes=0",), ("--processes=-1",),
        ("--processes=many",), ("--processes=1e9",), ("--print=sge",), ("--prepare",),
        ("--print=slurm",), ("--distributed",), ("stray",), ("--unknown=3",),
        ("--config.train.steps=3",),
    ):  # fmt: skip
        yield Call("sweep", (*sound, *flags), "flags")
    for value in (
        "train.steps=0", "train.steps=-1", f"train.steps={10**20}", "schedule.power=nan",
        "masking.rate=2", "train.batch_size=0", "model.num_attention_heads=7", "mesh.data=64",
        "optimizer.learning_rate=inf", "new_tokenizer.vocab_size=3", "model.hidden_act=none",
        "init_from=no-such-model", "tokenizer=no-such-tokenizer",
    ):  # fmt: skip
        arguments = ("table1:tiny", "--out={out}", f"--set={value}", "--set=data.cache_dir={out}c")
        yield Call("sweep", arguments, "config value")
    for out in (
        "{files}/corpus.txt",
        "/proc/x",
        "/dev/null",
        "/dev/full/x",
        "{files}/loop",
        "",
        _LONG,
    ):
        arguments = ("table1:tiny", f"--out={out}", "--set=train.steps=0")
        yield Call("sweep", arguments, "unwritable output")
        yield Call("sweep", ("table1:tiny", f"--out={out}", "--list"), "unwritable output")
    yield Call("sweep", ("table1:tiny",), "flags")
    yield Call("sweep", (), "flags")

    for runs in (
        "missing", "", "{files}/corpus.txt", "{files}/loop", "{files}/run", "/dev/null", _LONG,
        "{files}/runs", "{files}/empty-folder",
    ):  # fmt: skip
        yield Call("report", ("table1:tiny", f"--runs={runs}", "--out={out}"), "file")
    for out in BAD_FOLDERS:
        arguments = ("table1:tiny", "--runs={files}/runs", f"--out={out}")
        yield Call("report", arguments, "unwritable output")
    for arguments in ((), ("table1:tiny",), ("--runs=x",), ("table1:tiny", "--runs=x", "--foo")):
        yield Call("report", arguments, "flags")

    plot, out = "plot_metrics", "--out={out}.png"
    for workdirs in (
        ("",), ("missing",), ("{files}/corpus.txt",), ("{files}/empty-folder",), ("{files}/loop",),
        ("{files}/run", "{files}/run"), ("{files}/run", "missing"), ("/dev/null",), (_LONG,),
        ("{files}/pipe",), ("\udcff",), ("{files}/run/metrics.jsonl",),
        *(
            (f"{{files}}/runs/metrics-{name}",)
            for name in ("binary", "list", "no-step", "empty", "words", "folder")
        ),
    ):  # fmt: skip
        yield Call(plot, (*workdirs, out), "file")
    for target in (
        "", "{out}.xyz", "{out}", "{files}/corpus.txt/x.png", "/proc/x.png", "/dev/full",
        "{files}/full-folder", "missing/x.png", f"{_LONG}.png", "{files}/loop.png/x.png", ".png",
    ):  # fmt: skip
        yield Call(plot, ("{files}/run", f"--out={target}"), "unwritable output")
    for arguments in ((), ("--out=x.png",), ("{files}/run", "--dpi=3"), ("{files}/run", "--out")):
        yield Call(plot, arguments, "flags")


def benchmark_calls() -> Iterator[Call]:
    """Wrong calls of the benchmarks."""
    for command, flags in (
        ("batch_pipeline", ("rows", "seq_len", "rounds")),
        ("load_weights", ("rounds",)),
        ("pack_rows", ("rounds",)),
        ("train_step", ("rounds", "steps")),
    ):
        for flag in flags:
            for value in ("0", "-1", "many", "1.5", "", "nan"):
                yield Call(command, (f"--{flag}={value}",), "flags")
        for extra in ("stray", "--unknown=3", "--rounds"):
            yield Call(command, (extra,), "flags")
    for arguments in (
        ("--format=nothing",), ("--format=",), ("--seq_len=1",), ("--seq_len=2", "--rows=0"),
    ):  # fmt: skip
        yield Call("batch_pipeline", arguments, "flags")
    for arguments in (("--side=none",), ("--side=", "--rounds=1"), ("--folder=/nonexistent",)):
        yield Call("load_weights", (*arguments, "--rounds=0"), "flags")
    for millions in ("0", "-1", "", "ten", "1,", "nan", "0.00000001", "inf"):
        yield Call("pack_rows", (f"--millions={millions}",), "flags")
    yield Call("pack_rows", ("--child", "/nonexistent", "full_sentences"), "flags")
    yield Call("pack_rows", ("--child", "x"), "flags")
    for shapes in ("", "nothing", "base", ",", "4x128"):
        yield Call("train_step", (f"--shapes={shapes}", "--rounds=0"), "flags")
    text, tokenizer = "--text={files}/corpus.txt", "--tokenizer={files}/run/hf"
    for arguments in (
        (), (text,), (tokenizer,), (text, tokenizer, "--rounds=0"), ("--text=", tokenizer),
        (text, tokenizer, "--rounds=-1"), (text, tokenizer, "--workers=0"),
        (text, tokenizer, "--workers=-1"), (text, tokenizer, "--workers=many"),
        (text, "--tokenizer=missing"), (text, "--tokenizer="), ("--text=missing/*.txt", tokenizer),
        ("--text={files}/empty.txt", tokenizer), ("--text={files}/binary.txt", tokenizer),
        (text, "--tokenizer={files}/models/tokenizer-cut"), (text, tokenizer, "stray"),
    ):  # fmt: skip
        yield Call("prepare_text", arguments, "flags")
