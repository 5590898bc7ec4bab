"""Prepares text for pretraining: trains the tokenizer unless one is named, and builds the stores.

    python -m roberta_jax.prepare --config=configs/pretrain.py:tiny [--verify]

`roberta_jax.pretrain` does the same at its start. As a command of its own it can run beforehand, on
a machine without accelerators. `pretraining.text` says what is written and where.
"""

from absl import flags
from ml_collections import ConfigDict

from roberta_jax import cli
from roberta_jax.pretraining.config_keys import RENAMED
from roberta_jax.pretraining.text import check_sources, prepare, summary
from roberta_jax.pretraining.text_spec import read_text_spec


def main(config: ConfigDict, values: flags.FlagValues) -> None:
    """Prepares text for pretraining: a tokenizer, unless one is named, and the token stores.

    python -m roberta_jax.prepare --config=configs/pretrain.py:tiny
    """
    spec = read_text_spec(config)
    check_sources(spec)
    prepared = prepare(spec, verify=values.verify)
    print(summary(prepared))
    if not prepared.is_new:
        print("All of this was already prepared; nothing was written.")
    if values.verify:
        print("Verified: the stores and the text have not changed since they were prepared.")


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "verify",
        False,
        "Read stores, packing indices and text again and compare their hashes.",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run_config_job(main, _flags, renamed=RENAMED)
