"""Executors on clusters: Ray tasks, and Apache Beam pipelines.

All machines of a cluster need this package, and the same folder under the same path, because what
the tasks write is not sent through the engine. The main process reads the text and joins the parts.

Ray gets each task as it is submitted, with its text, and runs it again, on another worker, after
its worker or node was lost. Beam runs whole pipelines, so tasks are collected: the text of each is
written into the shared folder, compressed, and a pipeline over many of them begins when so many
have been collected, or when no more come. How often Beam runs a task again is up to its runner.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import os
import pathlib
import pickle
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from roberta_jax.data.executors import Executor, Runner
from roberta_jax.errors import UsageError, shortened
from roberta_jax.storage.atomic import replace_file, write_json

_RAY_ATTEMPTS = 5  # after the first, for a task whose worker or node was lost
_KEPT = "Finished parts are kept: run the command again, which continues from there."
# Tasks of a Beam pipeline. With chunks of 8 MB they are 32 GB of text; starting a pipeline takes
# minutes on some runners.
PIPELINE_TASKS = 4096
_BEAM_ON_THIS_MACHINE = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@contextlib.contextmanager
def open_cluster(task: Callable[..., Any], workers: int, runner: Runner) -> Iterator[Executor]:
    """Yields an executor on a cluster; see `executors.open_executor`."""
    if runner.name == "beam":
        yield _Beam(task, workers, runner.options)
        return
    with connected_to_ray(workers):
        yield _Ray(task, workers)


@contextlib.contextmanager
def connected_to_ray(cores: int | None = None) -> Iterator[None]:
    """Connects to the cluster of RAY_ADDRESS, or one on this machine, or starts one here.

    Args:
      cores: those of a cluster that is started here, which ends with the context; None has all.

    Raises:
      UsageError: the cluster cannot be reached or started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address and address != "local":
            _check_answers(address)
            ray.init(address=address, **quiet)
        else:
            try:
                if address:
                    raise ConnectionError
                ray.init(address="auto", **quiet)
            except ConnectionError:  # none is running on this machine
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises errors of many types, also plain exceptions
        where = f"the Ray cluster {address} (RAY_ADDRESS)" if address else "Ray"
        raise UsageError(
            f"{where} cannot be used: {shortened(' '.join(str(error).split()), 300)}. Start the "
            "cluster, or unset RAY_ADDRESS to use this machine alone."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises OSError if nobody listens at an address, which Ray tries for many minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _Ray:
    """Ray tasks, one for each input."""

    def __init__(self, task: Callable[..., Any], workers: int):
        import ray

        self._ray, self._workers = ray, workers
        self._task = ray.put(task)  # sent to each node once
        self._call = ray.remote(num_cpus=1, max_retries=_RAY_ATTEMPTS)(_call)

    @property
    def max_pending(self) -> int:
        cores = int(self._ray.cluster_resources().get("CPU", 0))  # nodes can join and leave
        return 2 * max(cores, self._workers)

    def submit(self, *arguments: Any) -> concurrent.futures.Future:
        # In a list, because Ray would replace the reference itself by the function, for each task.
        return self._call.remote([self._task], *arguments).future()

    def flush(self) -> None:
        """The tasks have begun already."""

    def result(self, future: concurrent.futures.Future) -> Any:
        errors = self._ray.exceptions
        try:
            result = future.result()
        except errors.RayTaskError:
            raise  # a bug in the function
        except errors.RayError as error:
            raise UsageError(
                f"Ray gave up on a part of the text after {_RAY_ATTEMPTS + 1} attempts: "
                f"{shortened(' '.join(str(error).split()), 300)}. {_KEPT}"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


def _call(task: list[Any], *arguments: Any) -> Any:
    """Calls a function in a Ray worker; returns errors that another attempt would not mend."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks are the parallelism
    try:
        return _fetch(task[0])(*arguments)
    except (UsageError, OSError) as error:
        return error


@functools.lru_cache(maxsize=1)
def _fetch(reference: Any) -> Callable[..., Any]:
    """The function in Ray's object store, which takes half a second to unpickle."""
    import ray

    return ray.get(reference)


class _Beam:
    """Beam pipelines over inputs that are collected in the folder that is their first argument.

    A file `<number>.input` holds the arguments of a task, compressed, and `<number>.error` the
    message of its UsageError. `<random>.task` holds the function.
    """

    max_pending = PIPELINE_TASKS - 1

    def __init__(self, task: Callable[..., Any], workers: int, options: tuple[str, ...]):
        self._task = task
        self._options = list(options) or [
            f"--runner={_BEAM_ON_THIS_MACHINE}",
            f"--direct_num_workers={workers}",
            "--direct_running_mode=multi_processing",
            "--default_sdk_harness_log_level=WARNING",
        ]
        self._folder: pathlib.Path | None = None
        self._collected: dict[int, concurrent.futures.Future] = {}

    def submit(self, folder: pathlib.Path, number: int, *rest: Any) -> concurrent.futures.Future:
        if self._folder is None:
            self._folder = folder
            self._task_path = folder / f"{secrets.token_hex(8)}.task"
            _write(self._task_path, self._task)
        _error_path(folder, number).unlink(missing_ok=True)  # of a run that was killed
        _write(_input_path(folder, number), (folder, number, *rest))
        self._collected[number] = concurrent.futures.Future()
        return self._collected[number]

    def flush(self) -> None:
        """Runs a pipeline over the inputs that have been collected."""
        if not self._collected:
            return
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        numbers = sorted(self._collected)
        run_one = functools.partial(_run_collected, os.fspath(self._task_path))
        try:
            with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
                # Reshuffle keeps the runner from fusing all tasks into one.
                _ = pipeline | beam.Create(numbers) | beam.Reshuffle() | beam.Map(run_one)
        except Exception as error:  # each runner raises errors of its own
            reason = " ".join(str(error).split())
            raise UsageError(
                f"The Beam pipeline failed: {shortened(reason, 600)}. {_KEPT}"
            ) from error
        for number in numbers:
            path = _error_path(self._folder, number)
            future = self._collected.pop(number)
            if path.exists():
                future.set_exception(UsageError(json.loads(path.read_text(encoding="utf-8"))))
                path.unlink()
            else:
                future.set_result(number)
            _input_path(self._folder, number).unlink(missing_ok=True)

    def result(self, future: concurrent.futures.Future) -> Any:
        return future.result()


def _run_collected(task_path: str, number: int) -> int:
    """Runs one task in a Beam worker."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = pathlib.Path(task_path).parent
    try:
        _load_task(task_path)(*_read(_input_path(folder, number)))
    except UsageError as error:  # another attempt would not mend it
        write_json(_error_path(folder, number), str(error))
    return number


@functools.lru_cache(maxsize=1)
def _load_task(task_path: str) -> Callable[..., Any]:
    return _read(pathlib.Path(task_path))


def _input_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:08d}.input"


def _error_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:08d}.error"


def _write(path: pathlib.Path, value: Any) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(zstandard.compress(pickle.dumps(value), 1))


def _read(path: pathlib.Path) -> Any:
    return pickle.loads(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
