"""Command-line parsing for all commands: config files, overrides, `--help` and error messages.

A command with a config is a module with a plain function of the config, which notebooks and sweeps
call, and a `main(config, flags)`, which `run_config_job` calls if the module runs as a command.
"""

import contextlib
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from roberta_jax import project_files
from roberta_jax.dotted_keys import flatten, nearest
from roberta_jax.errors import UsageError
from roberta_jax.training import preemption

Job = Callable[[ConfigDict, flags.FlagValues], None]
DefineFlags = Callable[[flags.FlagValues], None]

EXAMPLE_CONFIG = "configs/pretrain.py:tiny"


def run_config_job(
    job: Job,
    define_flags: DefineFlags | None = None,
    argv: Sequence[str] | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Parses the command line and runs `job(config, flags)`; ends as `usage_errors` says.

    Args:
      job: The command. `--help` prints its docstring.
      define_flags: Defines the flags that the command has besides `--config`.
      argv: The command line, starting with the program name. Default: `sys.argv`.
      renamed: {former name: present name} of renamed config keys, for error messages.
    """
    argv = list(sys.argv if argv is None else argv)
    # At INFO, libraries log every routine event.
    logging.set_verbosity(logging.WARNING)
    with usage_errors("Stopping; the same command continues from here."):
        if {"-h", "--help"} & set(argv[1:]):
            print(_help(job, define_flags, argv))
            return
        values = parse(argv, define_flags, renamed=renamed)
        job(values.config, values)


@contextlib.contextmanager
def usage_errors(interrupted: str = "Stopping.") -> Iterator[None]:
    """Ends a command without a traceback where no bug is at fault.

    A `UsageError` prints its message on stderr and exits with status 2. Ctrl-C prints `interrupted`
    and exits with 130; a second one ends the process at once. If the output cannot be written,
    because its reader has ended (`... | head`), the status is 141.
    """
    notice = f"{interrupted} Ctrl-C again quits at once."
    with preemption.interruptible_command(notice), preemption.checked_output():
        try:
            yield
        except UsageError as error:
            with contextlib.suppress(OSError):
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)


def parse(
    argv: Sequence[str],
    define_flags: DefineFlags | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
) -> flags.FlagValues:
    """Parses a command line into flag values; `values.config` is the locked config.

    Args:
      argv: The command line, starting with the program name.
      define_flags: Defines the flags that the command has besides `--config`.
      renamed: {former name: present name} of renamed config keys, for error messages.

    Raises:
      UsageError: The config file is missing or cannot be loaded, a flag or config key is unknown or
        was renamed, a value has the wrong type, or there is a positional argument.
    """
    # The config is loaded without the overrides first, so that an unknown key can be compared with
    # all keys of the config. The flag library compares it with those of a single group.
    overrides = [argument for argument in argv[1:] if argument.startswith("--config.")]
    others = [argument for argument in argv[1:] if not argument.startswith("--config.")]
    others = _with_resolved_config(others)
    without_overrides = _parse(argv[0], others, define_flags)
    _check_config_file(without_overrides)
    keys = flatten(without_overrides.config)
    for override in overrides:
        _check_override(override, keys, renamed or {})
    return _parse(argv[0], [*others, *overrides], define_flags)


def _parse(
    program: str, arguments: Sequence[str], define_flags: DefineFlags | None
) -> flags.FlagValues:
    argv = [program, *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    if define_flags is not None:
        define_flags(values)
    try:
        rest = values(argv)
    except flags.Error as error:
        # An error raised by a config file contains its traceback, whose last line is the message.
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = lines[-1].strip().removeprefix("ValueError: ") if lines else repr(error)
        raise UsageError(f"{reason}\nRun with --help for a list of all flags.") from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: arguments have the form --name=value.")
    return values


def _with_resolved_config(arguments: Sequence[str]) -> list[str]:
    """Replaces a config file that exists only in the project's root by its full path.

    `--config=configs/pretrain.py:tiny` thus works in any folder. A note on stderr names the file.
    """
    arguments = list(arguments)
    config = _config_argument(arguments)
    if config is None or _resolve(config) == config:
        return arguments
    print(f"Using {_split_size(_resolve(config))[0]}", file=sys.stderr)
    replacements = {config: _resolve(config), f"--config={config}": f"--config={_resolve(config)}"}
    return [replacements.get(argument, argument) for argument in arguments]


def _config_argument(arguments: Sequence[str]) -> str | None:
    """Returns the value of `--config`, or None if it is not given."""
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config" and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def _resolve(config: str) -> str:
    """Returns FILE:SIZE with the path of the file that exists, or unchanged if there is none."""
    file, size = _split_size(config)
    path = project_files.find_file(file)
    return config if path is None or os.path.exists(file) else f"{path}{size}"


def _split_size(config: str) -> tuple[str, str]:
    """Splits FILE:SIZE into FILE and :SIZE, which is empty if there is no size."""
    if os.path.exists(config):
        return config, ""
    # The last colon precedes the size; an earlier one may belong to a Windows drive.
    file, colon, size = config.rpartition(":")
    return (file, colon + size) if colon else (config, "")


def _check_config_file(values: flags.FlagValues) -> None:
    if not values["config"].present:
        raise UsageError(f"no config: pass one, such as --config={EXAMPLE_CONFIG}")
    file, _ = _split_size(values["config"].config_filename)
    if not os.path.isfile(file):
        raise UsageError(
            f"no config file {file!r} in {os.getcwd()!r}: pass the path of an existing file, such "
            f"as --config={EXAMPLE_CONFIG}"
        )


def _check_override(override: str, keys: Mapping[str, object], renamed: Mapping[str, str]) -> None:
    name, equals, value = override.removeprefix("--config.").partition("=")
    if name not in keys:
        if renamed.get(name) in keys:
            raise UsageError(f"--config.{name} was renamed: use --config.{renamed[name]}.")
        hint = nearest(name, list(keys))
        children = [key for key in keys if key.startswith(f"{name}.")]
        if hint:
            advice = f"did you mean --config.{hint}?"
        elif children:
            advice = f"it is a group of keys: {', '.join(children)}."
        else:
            advice = f"the keys are: {', '.join(keys)}."
        message = f"unknown config key --config.{name}: {advice}"
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


def _help(job: Job, define_flags: DefineFlags | None, argv: Sequence[str]) -> str:
    """Returns the docstring of `job`, its flags, and the keys of the config in `argv`."""
    from roberta_jax import config_help

    values = flags.FlagValues()
    if define_flags is not None:
        define_flags(values)
    lines = [textwrap.dedent(job.__doc__ or "").strip(), "", "Flags:"]
    lines += config_help.entry("--config=FILE:SIZE", f"The config file, such as {EXAMPLE_CONFIG}.")
    lines += config_help.entry("--config.KEY=VALUE", "Overrides one of the config keys below.")
    for name in values:
        lines += config_help.entry(f"--{name}", values[name].help)
    config = _config_argument(argv[1:]) or EXAMPLE_CONFIG
    arguments = [f"--config={_resolve(config)}"]
    values = _parse(argv[0], arguments, None)
    _check_config_file(values)
    file, _ = _split_size(values["config"].config_filename)
    comments = config_help.key_comments(pathlib.Path(file).read_text(encoding="utf-8"))
    about_keys = (
        f"Config keys, with the defaults of {config}. For those of another size or file, pass "
        "--config=FILE:SIZE --help."
    )
    lines += ["", *textwrap.wrap(about_keys, config_help.WIDTH, break_on_hyphens=False)]
    return "\n".join(lines) + "\n" + config_help.format_keys(flatten(values.config), comments)
