"""Command-line parsing for all commands: config files, overrides, `--help` and error messages.

A command with a config is a module with a plain function of the config, which notebooks and sweeps
call, and a `main(config, flags)`, which `run_config_job` calls if the module runs as a command.
"""

import ast
import atexit
import contextlib
import functools
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from roberta_jax import project_files
from roberta_jax.dotted_keys import flatten, nearest
from roberta_jax.errors import UsageError, shortened
from roberta_jax.project_files import EXAMPLE_CONFIG
from roberta_jax.training import preemption
from roberta_jax.training.ending import ask_for_restart, end_within

Job = Callable[[ConfigDict, flags.FlagValues], None]
DefineFlags = Callable[[flags.FlagValues], None]

_EXIT_SECONDS = 20.0  # that the exit of the interpreter may take after an error


def run_config_job(
    job: Job,
    define_flags: DefineFlags | None = None,
    argv: Sequence[str] | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
    example: str = EXAMPLE_CONFIG,
) -> None:
    """Parses the command line and runs `job(config, flags)`; ends as `usage_errors` says.

    Args:
      job: The command. `--help` prints its docstring.
      define_flags: Defines the flags that the command has besides `--config`.
      argv: The command line, starting with the program name. Default: `sys.argv`.
      renamed: {former name: present name} of renamed config keys, for error messages.
      example: A config of this command, for `--help` and error messages.
    """
    is_command = argv is None
    argv = list(sys.argv if is_command else argv)
    # At INFO, libraries log every routine event.
    logging.set_verbosity(logging.WARNING)
    with contextlib.ExitStack() as stack:
        if is_command:
            stack.push(_bound_end)
            stack.callback(atexit.register, preemption.end_quietly)
        stack.enter_context(usage_errors("Stopping; the same command continues from here."))
        if {"-h", "--help"} & set(argv[1:]):
            print(_help(job, define_flags, argv, example))
            return
        values = parse(argv, define_flags, renamed=renamed, example=example)
        if is_command and "jax" in sys.modules:
            from roberta_jax.training.host_memory import use_one_heap  # imports JAX

            use_one_heap()
        job(values.config, values)


def _bound_end(kind: object, error: BaseException | None, traceback: object) -> None:
    """Ends a command after its message, though threads may wait for a store that is gone."""
    if isinstance(error, SystemExit) and error.code == 2:
        end_within(_EXIT_SECONDS, 2)


@contextlib.contextmanager
def usage_errors(interrupted: str = "Stopping.") -> Iterator[None]:
    """Ends a command without a traceback where no bug is at fault.

    A `UsageError` prints its message on stderr and exits with status 2. Ctrl-C prints `interrupted`
    and exits with 130; a second one ends the process at once. If the output cannot be written,
    because its reader has ended (`... | head`), the status is 141. Characters that the output
    cannot encode are printed as escape sequences.
    """
    escape_unprintable()
    notice = f"{interrupted} Ctrl-C again quits at once."
    with preemption.interruptible_command(notice), preemption.checked_output(), usage_messages():
        yield


def escape_unprintable() -> None:
    """Makes stdout and stderr print what they cannot encode as escape sequences.

    A terminal may lack a token's characters, and the name of a file need not be UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # not a text file
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def usage_messages() -> Iterator[None]:
    """Prints the message of a `UsageError` on stderr, without a traceback, and exits with 2.

    A supervisor is told if the command may succeed when it is started again.
    """
    try:
        yield
    except UsageError as error:
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        if error.restart:
            ask_for_restart(str(error))
        sys.exit(2)


def parse(
    argv: Sequence[str],
    define_flags: DefineFlags | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
    example: str = EXAMPLE_CONFIG,
) -> flags.FlagValues:
    """Parses a command line into flag values; `values.config` is the locked config.

    Args:
      argv: The command line, starting with the program name.
      define_flags: Defines the flags that the command has besides `--config`.
      renamed: {former name: present name} of renamed config keys, for error messages.
      example: A config of this command, for error messages.

    Raises:
      UsageError: The config file is missing or cannot be loaded, a flag or config key is unknown or
        was renamed, a value has the wrong type, or there is a positional argument.
    """
    from roberta_jax import config_files  # here, because only commands need it

    arguments, overrides, others = list(argv[1:]), [], []
    config_file = _take_config(arguments, example)
    for argument in arguments:
        prefix = next((each for each in ("--config.", "-config.") if argument.startswith(each)), "")
        (overrides if prefix else others).append(argument.removeprefix(prefix))
    config = config_files.load(_resolved(config_file))
    keys = flatten(config)
    for override in overrides:
        name, value = _parsed_override(override, config, keys, renamed or {})
        *groups, last = name.split(".")
        with config.unlocked():
            functools.reduce(lambda group, each: group[each], groups, config)[last] = value
    return _parse_flags(argv[0], others, define_flags, config)


def _parse_flags(
    program: str, arguments: Sequence[str], define_flags: DefineFlags | None, config: ConfigDict
) -> flags.FlagValues:
    """Parses the flags other than `--config`; the values have `config` as it is."""
    values = flags.FlagValues()
    if define_flags is not None:
        define_flags(values)
    try:
        rest = values([program, *arguments])
        # Defined after parsing, because the arguments are not overrides of it.
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[program])
        values.mark_as_parsed()
    except (flags.Error, ValueError, OSError) as error:
        reason = shortened(" ".join(str(error).split()) or repr(error), 400)
        raise UsageError(f"{reason}\nRun with --help for a list of all flags.") from error
    if len(rest) > 1:
        raise UsageError(
            f"unexpected argument {shortened(rest[1])!r}: arguments have the form --name=value."
            + _advice(rest[1])
        )
    return values


def _advice(argument: str) -> str:
    """What was probably meant with an argument that is none."""
    if argument.startswith(("\u2013", "\u2014", "\u2212")):
        return " It begins with a dash; type two hyphens."
    if os.path.exists(argument):
        return (
            " It is a file: quote patterns, as in '--config.data.files=text/*.txt', so that the "
            "shell does not expand them."
        )
    return ""


def _take_config(arguments: list[str], example: str) -> str:
    """Removes `--config=FILE` or `--config FILE` from the arguments and returns FILE.

    Raises:
      UsageError: It is missing or given twice, or FILE is missing.
    """
    taken = []
    for index, argument in reversed(list(enumerate(arguments))):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            if not equals:
                value = "".join(arguments[index + 1 : index + 2])
                value = "" if value.startswith("-") else value
            del arguments[index : index + (1 if equals else 2)]
            taken.append(value)
    if len(taken) > 1:
        raise UsageError(
            f"--config is given {len(taken)} times. Give it once, such as --config={example}"
        )
    if not taken or not taken[0].strip():
        raise UsageError(f"no config: pass one, such as --config={example}")
    return taken[0]


def _resolved(config: str) -> str:
    """Returns FILE:SIZE with the full path of a file that exists only in the project's root.

    `--config=configs/pretrain.py:tiny` thus works in any folder. A note on stderr names the file.
    """
    from roberta_jax import config_files

    file, size = config_files.split_size(config)
    if os.path.lexists(file):
        return config
    path = project_files.find_file(file)
    if path is None:
        return config
    print(f"Using {path}", file=sys.stderr)
    return f"{path}{size}"


def _parsed_override(
    override: str, config: ConfigDict, keys: Mapping[str, object], renamed: Mapping[str, str]
) -> tuple[str, object]:
    """Parses KEY=VALUE into the dotted key and a value of the key's type."""
    name, equals, text = override.partition("=")
    if name not in keys:
        raise UsageError(_unknown_key(name, keys, renamed))
    if not equals:
        raise UsageError(f"--config.{name} has no value: write --config.{name}=VALUE.")
    *groups, last = name.split(".")
    group = functools.reduce(lambda group, each: group[each], groups, config)
    kind = group.get_type(last)
    if text.lower() == "none" and (kind in (int, float) or keys[name] is None):
        return name, None  # the reader of the config checks whether the key may be unset
    try:
        return name, _PARSERS.get(kind, ast.literal_eval)(text)
    except (ValueError, KeyError, SyntaxError, TypeError, MemoryError, RecursionError):
        takes = _TAKES.get(kind, f"a value like {keys[name]!r}")
        raise UsageError(f"--config.{name} takes {takes}, not {shortened(text)!r}.") from None


def _unknown_key(name: str, keys: Mapping[str, object], renamed: Mapping[str, str]) -> str:
    if renamed.get(name) in keys:
        return f"--config.{name} was renamed: use --config.{renamed[name]}."
    children = [key for key in keys if key.startswith(f"{name}.")]
    hint = nearest(name, list(keys))
    if children:
        message = (
            f"--config.{name} is a group of keys and takes no value. Its keys are "
            f"{', '.join(children)}, as in --config.{children[0]}=VALUE."
        )
    else:
        message = f"unknown config key --config.{shortened(name)}: " + (
            f"did you mean --config.{hint}?" if hint else f"the keys are: {', '.join(keys)}."
        )
    return "\n".join(textwrap.wrap(message, 100, break_on_hyphens=False))


def _integer(text: str) -> int:
    """Parses a decimal integer; unlike `int` only ASCII digits, and not thousands of them."""
    if not re.fullmatch(r"[+-]?[0-9](_?[0-9]){0,99}", text.strip()):
        raise ValueError
    return int(text)


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _tuple(text: str) -> tuple:
    value = ast.literal_eval(text.strip())
    if not isinstance(value, tuple | list):
        raise ValueError
    return tuple(value)


_PARSERS = {int: _integer, float: float, bool: _boolean, str: str, tuple: _tuple}
_TAKES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    tuple: "a tuple such as '()'",
}


def _help(
    job: Job, define_flags: DefineFlags | None, argv: Sequence[str], example: str = EXAMPLE_CONFIG
) -> str:
    """Returns the docstring of `job`, its flags, and the keys of the config in `argv`."""
    from roberta_jax import config_files, config_help

    values = flags.FlagValues()
    if define_flags is not None:
        define_flags(values)
    lines = [textwrap.dedent(job.__doc__ or "").strip(), "", "Flags:"]
    lines += config_help.entry("--config=FILE:SIZE", f"The config file, such as {example}.")
    lines += config_help.entry("--config.KEY=VALUE", "Overrides one of the config keys below.")
    for name in values:
        lines += config_help.entry(f"--{name}", values[name].help)
    given = any(each.partition("=")[0] in ("--config", "-config") for each in argv[1:])
    config = _take_config(list(argv[1:]), example) if given else example
    file = _resolved(config)
    keys = flatten(config_files.load(file))
    path = pathlib.Path(config_files.split_size(file)[0])
    source = path.read_text(encoding="utf-8", errors="replace")
    comments = config_help.key_comments(source)
    about_keys = (
        f"Config keys, with the defaults of {config}. For those of another size or file, pass "
        "--config=FILE:SIZE --help."
    )
    lines += ["", *textwrap.wrap(about_keys, config_help.WIDTH, break_on_hyphens=False)]
    return "\n".join(lines) + "\n" + config_help.format_keys(keys, comments)
