"""Prepares text for pretraining: trains the tokenizer unless one is named, and builds the stores.

    python -m roberta_jax.prepare --config=configs/pretrain.py:tiny [--verify] [--runner=ray]

`roberta_jax.pretrain` does the same at its start. As a command of its own it can run beforehand, on
a machine without accelerators, or on a cluster. `pretraining.text` says what is written and where.
"""

import shlex

from absl import flags
from ml_collections import ConfigDict

from roberta_jax import cli
from roberta_jax.data.executors import Runner, check_runner
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.config_keys import RENAMED
from roberta_jax.pretraining.text import check_sources, prepare, summary
from roberta_jax.pretraining.text_spec import read_text_spec


def main(config: ConfigDict, values: flags.FlagValues) -> None:
    """Prepares text for pretraining: a tokenizer, unless one is named, and the token stores.

    python -m roberta_jax.prepare --config=configs/pretrain.py:tiny

    --runner=ray and --runner=beam tokenise on a cluster and write the same stores. All its machines
    need this package (with the extra `ray` or `beam`), and --config.data.cache_dir must be a folder
    that they share, not gs://. The text is read on this machine only. After an interruption the
    same command continues, with any runner.

    With --runner=ray the tasks run on the cluster in RAY_ADDRESS, on one that was started on this
    machine, or on this machine's cores. With --runner=beam they run on this machine, or where
    --beam_options says, such as --beam_options='--runner=FlinkRunner --flink_master=HOST:8081'.
    """
    spec = read_text_spec(config)
    runner = _runner(values)
    check_sources(spec, runner)
    prepared = prepare(spec, verify=values.verify, runner=runner)
    print(summary(prepared))
    if not prepared.is_new:
        print("All of this was already prepared; nothing was written.")
    if values.verify:
        print("Verified: the stores and the text have not changed since they were prepared.")


def _runner(values: flags.FlagValues) -> Runner:
    try:
        options = tuple(shlex.split(values.beam_options))
    except ValueError as error:
        raise UsageError(
            f"--beam_options={values.beam_options} cannot be parsed: {error}"
        ) from None
    runner = Runner(values.runner, options)
    check_runner(runner)
    return runner


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "verify",
        False,
        "Read stores, packing indices and text again and compare their hashes.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "runner",
        "local",
        "What tokenises: local (processes on this machine), ray or beam (clusters).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "beam_options",
        "",
        "Options of the Beam pipelines, with --runner=beam.",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run_config_job(main, _flags, renamed=RENAMED)
