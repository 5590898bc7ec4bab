"""Writes scalars for TensorBoard, so that a resumed run shows each value once.

An event file cannot be rewritten while TensorBoard may be reading it. A resumed run therefore opens
a new file, which begins with an event that makes TensorBoard drop the later steps of the earlier
files, and adds the values that a killed process had not written to disk.
"""

import pathlib
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

_FLUSH_SECONDS = 10  # between writes to disk


class EventLog:
    """Writes one event file in a folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        next_step: int,
        earlier: Sequence[epath.Path] = (),
        records: Sequence[Mapping[str, Any]] = (),
    ):
        """Opens a new file in the folder, which is created if it does not exist.

        Args:
          folder: the local folder of the event file.
          earlier: the event files of the run so far, in order.
          next_step: the values of this step and later ones in earlier files are dropped.
          records: what was recorded before, {"step": step, name: value, ...}. Values that the
            earlier files lack are added, so that all of them are shown.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._proto, events_writer = _tensorboardx()
        shown = self._shown(earlier, next_step)
        # The number keeps two files of the same second apart, in order.
        self._file = events_writer(str(folder / "events"), f".{len(earlier):04d}")
        session = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(step=next_step, session_log=session)
        self._last_flush = 0.0
        for record in records:
            names = {name for name in record if (record["step"], name) not in shown} - {"step"}
            self.add(record["step"], {name: record[name] for name in record if name in names})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step."""
        for name, value in values.items():
            self._write(step=step, summary={"value": [{"tag": name, "simple_value": value}]})
        if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes everything to disk."""
        self._file.flush()
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Writes everything to disk and closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._file.write_event(self._proto.Event(wall_time=time.time(), **fields))

    def _shown(self, files: Sequence[epath.Path], next_step: int) -> set[tuple[int, str]]:
        """The (step, name) of all values in files that TensorBoard shows from `next_step` on."""
        shown: set[tuple[int, str]] = set()
        for file in files:
            for data in _tf_records(file.read_bytes()):
                try:
                    event = self._proto.Event.FromString(data)
                except Exception:  # protobuf's DecodeError; TensorBoard reads no further, either
                    break
                if event.HasField("session_log"):
                    shown = {each for each in shown if each[0] < event.step}
                shown |= {(event.step, value.tag) for value in event.summary.value}
        return {each for each in shown if each[0] < next_step}


def _tf_records(data: bytes) -> Iterator[bytes]:
    """Splits a TFRecord file (length, its checksum, data, its checksum); stops where it ends."""
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length + 4
        if end > len(data):
            return
        yield data[start + 12 : end - 4]
        start = end


def _tensorboardx() -> tuple[Any, Any]:
    """Returns tensorboardX's module of event messages and its `EventsWriter`.

    `EventsWriter` writes in this thread. `SummaryWriter` hands its events to another thread through
    a bounded queue; on a full disk that thread ends and the queue blocks.

    tensorboardX imports PyTorch if it is installed, only to recognise tensors. That would take
    seconds and hundreds of megabytes, so PyTorch is hidden from it.
    """
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return event_pb2, EventsWriter
