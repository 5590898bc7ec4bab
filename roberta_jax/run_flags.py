"""The flags of the commands that train: `pretrain` and `finetune`."""

from absl import flags

from roberta_jax.training.checkpoints import ON_DAMAGE


class _ModeParser(flags.ArgumentParser):
    """Parses --distributed=MODE; a bare --distributed is "on", and --nodistributed "off"."""

    syntactic_help = "auto, on or off"

    def parse(self, argument: str | bool) -> str:
        text = {"true": "on", "1": "on", "false": "off", "0": "off"}.get(
            str(argument).lower(), str(argument).lower()
        )
        if text not in ("auto", "on", "off"):
            raise ValueError(f"must be auto, on or off, not {argument!r}")
        return text

    def flag_type(self) -> str:
        return "auto, on or off"


def define_run_flags(values: flags.FlagValues) -> None:
    """Defines --workdir, --distributed and --on_damage."""
    flags.DEFINE_string("workdir", None, "The folder of the run.", flag_values=values)
    flag = flags.Flag(
        _ModeParser(),
        None,
        "distributed",
        "auto",
        'Whether this is one of several processes of the run: "on", "off", or "auto" to detect it '
        "from the environment.",
        boolean=True,
    )
    flags.DEFINE_flag(flag, flag_values=values)
    flags.DEFINE_enum(
        "on_damage",
        ON_DAMAGE[0],
        ON_DAMAGE,
        "What to do if the newest checkpoint is damaged: stop with an error that names the newest "
        "intact one, or continue from that one and rename the folders of the damaged ones.",
        flag_values=values,
    )
