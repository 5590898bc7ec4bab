"""What the commands share: `--config=FILE:SIZE --config.key=value` in, readable errors out.

A job file holds a plain function of a config, which notebooks and sweeps call, and one line that
hands the function to `run_config_job` when the file runs as a command.
"""

import contextlib
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from roberta_jax.errors import UsageError

Job = Callable[[ConfigDict, flags.FlagValues], None]


def run_config_job(
    job: Job,
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parses the command line and runs `job(config, flags)`; exits with status 2 on wrong input.

    Args:
      job: The work. Its docstring is what `--help` prints.
      define_flags: Defines the flags that this command has beside `--config`.
      argv: The command line, the program's name first. Default: `sys.argv`.
    """
    argv = list(sys.argv if argv is None else argv)
    if {"-h", "--help"} & set(argv[1:]):
        print(_help(job, define_flags))
        return
    # Libraries log every routine event at INFO; a user reads the progress bar instead.
    logging.set_verbosity(logging.WARNING)
    with usage_errors():
        values = parse(argv, define_flags)
        job(values.config, values)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns a `UsageError` into its message on stderr and exit status 2, without a traceback."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse(
    argv: Sequence[str],
    define_flags: Callable[[flags.FlagValues], None] | None = None,
) -> flags.FlagValues:
    """Parses a command line into flags, `values.config` being the locked ConfigDict.

    Raises:
      UsageError: No or an unreadable config file, an unknown flag or config key (the nearest right
        one is named), a value of the wrong type, a stray argument.
    """
    # A first pass without the overrides gives the keys there are, for better suggestions than the
    # flag library's own, which compares one level of the tree at a time.
    overrides = [argument for argument in argv[1:] if argument.startswith("--config.")]
    others = [argument for argument in argv[1:] if not argument.startswith("--config.")]
    plain = _parse(argv[0], others, define_flags)
    _check_config_file(plain)
    keys = flatten(plain.config)
    for override in overrides:
        _check_override(override, keys)
    return _parse(argv[0], [*others, *overrides], define_flags)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns the config's leaves as {dotted key: value}, in the config's own order."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def nearest(wrong: str, right: Sequence[str]) -> str | None:
    """Returns the key of `right` that `wrong` was most likely meant to be, or None."""
    found = difflib.get_close_matches(wrong, right, n=1, cutoff=0.75)
    if found:
        return found[0]
    # A right name at the wrong place: `steps` for `train.steps`.
    last = wrong.rsplit(".", 1)[-1]
    by_name = {key.rsplit(".", 1)[-1]: key for key in right}
    found = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.75)
    return by_name[found[0]] if found else None


def _parse(program, arguments, define_flags) -> flags.FlagValues:
    argv = [program, *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    if define_flags is not None:
        define_flags(values)
    try:
        rest = values(argv)
    except flags.Error as error:
        # Errors raised by a config file arrive with their whole traceback; its last line says it.
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = lines[-1].strip().removeprefix("ValueError: ") if lines else repr(error)
        raise UsageError(f"{reason}\nRun with --help to see what this command takes.") from error
    if len(rest) > 1:
        raise UsageError(
            f"unexpected argument {rest[1]!r}: every argument has the form --name=value."
        )
    return values


def _check_config_file(values: flags.FlagValues) -> None:
    if not values["config"].present:
        raise UsageError("no config: pass one, such as --config=configs/pretrain.py:tiny")
    path = values["config"].config_filename
    # A Windows drive's colon never comes last, so the last colon parts file and size.
    file = path if os.path.exists(path) else path.rsplit(":", 1)[0]
    if not os.path.isfile(file):
        raise UsageError(
            f"no config file {file!r} in {os.getcwd()!r}: run the command from the root of the "
            "clone, or give the path of the file."
        )


def _check_override(override: str, keys: dict[str, object]) -> None:
    name, equals, value = override.removeprefix("--config.").partition("=")
    if name not in keys:
        hint = nearest(name, list(keys))
        children = [key for key in keys if key.startswith(f"{name}.")]
        if hint:
            advice = f"did you mean --config.{hint}?"
        elif children:
            advice = f"it is a group of keys: {', '.join(children)}."
        else:
            advice = f"the keys are: {', '.join(keys)}."
        message = f"unknown config key {name!r}: {advice}"
        raise UsageError("\n".join(textwrap.wrap(message, 100, break_on_hyphens=False)))
    if not equals:
        raise UsageError(f"--config.{name} has no value: write --config.{name}=VALUE.")
    kind = type(keys[name])
    if kind in (int, float):
        try:
            kind(value)
        except ValueError:
            article = "an integer" if kind is int else "a number"
            raise UsageError(f"--config.{name} takes {article}, not {value!r}.") from None
    if kind is bool and value.lower() not in ("true", "false", "1", "0"):
        raise UsageError(f"--config.{name} takes true or false, not {value!r}.")


def _help(job: Job, define_flags) -> str:
    values = flags.FlagValues()
    if define_flags is not None:
        define_flags(values)
    lines = [textwrap.dedent(job.__doc__ or "").strip(), ""]
    lines.append("  --config=FILE:SIZE    the config file, such as configs/pretrain.py:tiny")
    lines.append("  --config.KEY=VALUE    changes one value of it")
    lines += [f"  --{name:<19} {values[name].help}" for name in values]
    return "\n".join(lines)
