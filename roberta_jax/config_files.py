"""Loads config files: Python files that define `get_config`, with or without a size."""

import inspect
import os
import sys
import traceback
import types
from typing import NoReturn

from ml_collections import ConfigDict

from roberta_jax.errors import UsageError, shortened
from roberta_jax.project_files import EXAMPLE_CONFIG


def load(config: str) -> ConfigDict:
    """Runs the `get_config` of a config file and returns the locked config.

    Args:
      config: FILE or FILE:SIZE; SIZE is the argument of `get_config`.

    Raises:
      UsageError: There is no such file, it cannot be run, or it does not return a config.
    """
    file, size = split_size(config)
    if not os.path.isfile(file):
        name = repr(shortened(file))
        found = f"{name} is a folder" if os.path.isdir(file) else f"no config file {name}"
        raise UsageError(
            f"{found} in {os.getcwd()!r}: pass the path of an existing file, such as "
            f"--config={EXAMPLE_CONFIG}"
        )
    module = types.ModuleType(f"config_file_{os.path.basename(file).removesuffix('.py')}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and pickle look it up
    try:
        with open(file, "rb") as source:
            exec(compile(source.read(), file, "exec"), vars(module))
        result = _call(module, size, file)
    except (Exception, SystemExit) as error:
        _refuse(error, config, file)
    if not isinstance(result, ConfigDict):
        raise UsageError(
            f"--config={config}: its get_config returns {type(result).__name__}, but it must "
            "return an ml_collections.ConfigDict."
        )
    return result.lock()


def split_size(config: str) -> tuple[str, str]:
    """Splits FILE:SIZE into FILE and :SIZE, which is empty if there is no size."""
    if os.path.lexists(config):
        return config, ""
    # The last colon precedes the size; an earlier one may belong to a Windows drive.
    file, colon, size = config.rpartition(":")
    return (file, colon + size) if colon else (config, "")


def _call(module: types.ModuleType, size: str, file: str) -> object:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UsageError(
            f"{file} is no config file: it does not define get_config. Use one that does, such as "
            f"--config={EXAMPLE_CONFIG}"
        )
    arguments = [size.removeprefix(":")] if size else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        takes = "takes no size: leave it out" if size else "takes a size: add one"
        form = f"--config={file}" if size else f"--config={file}:SIZE"
        raise UsageError(f"the get_config of {file} {takes}, as in {form}.") from None
    return get_config(*arguments)


def failure(error: BaseException, file: str) -> str:
    """Describes an exception that running a Python file raised: its line, type and message."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line, reason = lines[-1] if lines else None, str(error)
    if isinstance(error, SyntaxError) and error.filename == file:
        line, reason = error.lineno, error.msg
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {shortened(reason, 300)}"


def _refuse(error: BaseException, config: str, file: str) -> NoReturn:
    """Raises a UsageError that says where the config file failed."""
    if isinstance(error, UsageError):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    if type(error) is ValueError and frames[-1].filename == file:
        raise UsageError(str(error)) from error  # the file's own message about its size
    raise UsageError(
        f"--config={shortened(config, 300)} cannot be loaded: {failure(error, file)}. Correct the "
        f"file, or use another one, such as --config={EXAMPLE_CONFIG}"
    ) from error
