import contextlib
import json
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from roberta_jax.errors import UsageError
from roberta_jax.training import metrics
from roberta_jax.training.metrics import Meter, MetricsWriter, read_metrics


def test_records_are_lines_of_json(tmp_path):
    with MetricsWriter(tmp_path, step=0, steps=10) as writer:
        writer.write(2, {"loss": 1.5})
        assert read_metrics(tmp_path) == [{"step": 2, "loss": 1.5}]  # without closing the file
        writer.write(4, {"loss": 1.25, "eval_loss": 2.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "loss": 1.5},
        {"step": 4, "loss": 1.25, "eval_loss": 2.0},
    ]


def test_a_resumed_run_removes_the_records_of_later_steps(tmp_path):
    with MetricsWriter(tmp_path, step=0, steps=10) as writer:
        for step in range(1, 7):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    with MetricsWriter(tmp_path, step=4, steps=10) as writer:
        writer.write(5, {"loss": 50.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        *[(s, float(s)) for s in (1, 2, 3, 4)],
        (5, 50.0),
    ]


def tensorboard_events(folder):
    """Yields the events of all files, oldest first (a TFRecord is length, CRC, data, CRC)."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            if 16 + length > len(data):  # cut short: TensorBoard reads no further
                break
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def shown_in_tensorboard(folder):
    """Returns (step, name, value) of what TensorBoard shows, in its order.

    A START event with a step makes TensorBoard drop what it has read from that step on.
    """
    shown = []
    for event in tensorboard_events(folder):
        if event.HasField("session_log"):
            assert event.session_log.status == event_pb2.SessionLog.START
            shown = [each for each in shown if each[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_drops_the_records_of_later_steps(tmp_path):
    for start, values in ((0, [1.0, 2.0, 3.0]), (2, [30.0])):
        with MetricsWriter(tmp_path, step=start, steps=10) as writer:
            for step, value in enumerate(values, start + 1):
                writer.write(step, {"loss": value})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert shown_in_tensorboard(tmp_path / "tensorboard") == [
        (1, "loss", 1.0),
        (2, "loss", 2.0),
        (3, "loss", 30.0),
    ]


@pytest.mark.parametrize("lost", range(0, 400, 7))
def test_what_a_killed_process_had_not_flushed_is_added_to_tensorboard(tmp_path, lost):
    """However much of the event file is missing at its end."""
    with MetricsWriter(tmp_path, step=0, steps=10) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": float(step), "learning_rate": 0.5})
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[: -lost or None])
    with MetricsWriter(tmp_path, step=4, steps=10) as writer:
        writer.write(5, {"loss": 50.0})
    expected = [(s, n, v) for s in range(1, 5) for n, v in (("loss", s), ("learning_rate", 0.5))]
    assert shown_in_tensorboard(tmp_path / "tensorboard") == [*expected, (5, "loss", 50.0)]


def test_a_damaged_event_file_does_not_matter(tmp_path):
    with MetricsWriter(tmp_path, step=0, steps=10) as writer:
        writer.write(1, {"loss": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(b"\xff" * 100)
    with MetricsWriter(tmp_path, step=1, steps=10) as writer:
        writer.write(2, {"loss": 2.0})
    file.unlink()
    assert [each[0] for each in shown_in_tensorboard(tmp_path / "tensorboard")] == [1, 2]


# Damage of metrics.jsonl.

GOOD = [{"step": step, "loss": step / 3, "learning_rate": 1e-3} for step in (2, 4, 6)]
LINES = [json.dumps(record) for record in GOOD]


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        '{"step": 4, "lo',
        "\0" * 40,
        "[1, 2]",
        '{"loss": 1.0}',
        '{"step": "4", "loss": 1.0}',
        '{"step": true}',
        '{"step": 4, "loss": "low"}',
        '{"step": 4, "loss": {}}',
        "[" * 100_000,
        b'{"step": 4, "l\xf3ss": 1.0}',
        '{"step": 4, "lo' + LINES[1],
    ],
)
def test_a_damaged_line_loses_no_other_record(tmp_path, caplog, damaged):
    damaged = damaged if isinstance(damaged, bytes) else damaged.encode()
    first, second, third = (line.encode() for line in LINES)
    swallowed = second in damaged
    lines = [first, damaged, third] if swallowed else [first, damaged, second, third]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert read_metrics(tmp_path) == GOOD
    if damaged:
        assert "1 damaged line(s) could not be read" in caplog.text
        assert "3 records were read" in caplog.text
    MetricsWriter(tmp_path, step=6, steps=10).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(LINES) + "\n"


def test_an_incomplete_last_line_neither_warns_nor_swallows_the_next_record(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("\n".join(LINES)[:-9])
    assert read_metrics(tmp_path) == GOOD[:2]
    with MetricsWriter(tmp_path, step=6, steps=10) as writer:
        writer.write(8, {"loss": 1.0})
    assert read_metrics(tmp_path) == [*GOOD[:2], {"step": 8, "loss": 1.0}]
    assert not caplog.text


def test_a_complete_last_line_without_its_newline_is_a_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(LINES))
    assert read_metrics(tmp_path) == GOOD


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*metrics.jsonl: Is a directory. Move it"):
        read_metrics(tmp_path)


def test_an_evaluation_that_is_made_up_for_is_recorded_once(tmp_path):
    update, evaluation = {"loss": 1.0, "learning_rate": 0.1}, {"eval_loss": 2.0}
    with MetricsWriter(tmp_path, step=0, steps=10) as writer:
        writer.write(2, update)
        writer.write(2, evaluation)
    for _ in range(3):  # each resumes before the evaluation of step 2, makes it, and is killed
        with MetricsWriter(tmp_path, step=2, steps=10, evaluation_due=True) as writer:
            assert read_metrics(tmp_path) == [{"step": 2, **update}]
            writer.write(2, evaluation)
    MetricsWriter(tmp_path, step=2, steps=10).close()
    assert read_metrics(tmp_path) == [{"step": 2, **update}, {"step": 2, **evaluation}]
    assert [name for _, name, _ in shown_in_tensorboard(tmp_path / "tensorboard")] == [
        "loss",
        "learning_rate",
        "eval_loss",
    ]


def test_nothing_is_left_of_a_rewrite_that_fails(tmp_path, monkeypatch):
    """The file stays as it was if the run is interrupted while it removes records."""
    with MetricsWriter(tmp_path, step=0, steps=10) as writer:
        writer.write(1, {"loss": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text()

    def fail(*_):
        raise OSError("interrupted")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="interrupted"):
        MetricsWriter(tmp_path, step=0, steps=10)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


@pytest.mark.parametrize("error", [None, ValueError("of the training")])
def test_after_an_error_files_are_not_published_to_a_store_that_failed(
    tmp_path, monkeypatch, error
):
    asked = []
    writer = MetricsWriter(tmp_path, step=0, steps=10)
    monkeypatch.setattr(writer._files, "close", asked.append)
    with contextlib.suppress(ValueError), writer:
        if error is not None:
            raise error
    assert asked == [error is not None]


def test_only_the_primary_process_writes(tmp_path, capsys):
    with MetricsWriter(tmp_path, step=0, steps=10, primary=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.line(1, {"loss": 1.0, "learning_rate": 1e-3}, None)
        writer.progress(1, 1.0, None)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_lines_without_a_terminal(tmp_path, capsys):
    values = {"loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 52_300.0}
    with MetricsWriter(tmp_path, step=0, steps=1000) as writer:
        writer.progress(100, 2.5, 1.0)
        writer.line(100, values, seconds_per_step=0.1)
    out = capsys.readouterr().out
    assert out == (
        "step 100/1000  loss 2.5000  learning rate 1.00e-03  52.3k tokens/s  01:30 left\n"
    )


def test_progress_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(metrics.sys.stderr, "isatty", lambda: True)
    with MetricsWriter(tmp_path, step=50, steps=100) as writer:
        writer.progress(75, 2.5, 52_300.0, seconds_per_step=0.1)
        writer.line(75, {"loss": 2.5, "learning_rate": 1e-3}, None)
        writer.say("held-out perplexity 12.3")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "75/100" in captured.err
    assert "loss 2.500, 52.3k tokens/s, 00:02 left" in captured.err
    assert "held-out perplexity 12.3\n" in captured.err


def test_the_meter_does_not_time_the_first_step_and_pauses(monkeypatch):
    clock = iter([100.0, 101.0, 102.0, 500.0, 501.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    meter = Meter(tokens_per_step=10)
    for loss in (4.0, 3.0, 2.0):
        meter.add({"loss": loss, "masked_lm_loss": loss / 2})
    meter.pause()
    for loss in (1.0, 0.0):
        meter.add({"loss": loss, "masked_lm_loss": loss / 2})
    values, seconds = meter.take()
    assert values == {"loss": 2.0, "masked_lm_loss": 1.0, "tokens_per_second": 10.0}
    assert seconds == 1.0


def test_pytorch_is_not_imported(tmp_path):
    """Also where it is installed."""
    program = (
        "import sys\n"
        "from roberta_jax.training.metrics import MetricsWriter\n"
        "with MetricsWriter(sys.argv[1], step=0, steps=1) as writer:\n"
        "    writer.write(1, {'loss': 1.0})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_meter_continues_with_the_losses_of_another_one():
    """The mean is that of a meter that saw all steps, to the last bit."""
    losses = [{"loss": 1 / n} for n in range(3, 20)]
    for stop in range(len(losses)):
        first = Meter(tokens_per_step=10)
        for each in losses[:stop]:
            first.add(each)
        second = Meter(10, json.loads(json.dumps(first.losses)))
        for each in losses[stop:]:
            second.add(each)
        assert second.take()[0]["loss"] == sum(each["loss"] for each in losses) / len(losses)


def test_meter_without_a_timed_step():
    meter = Meter(tokens_per_step=10)
    meter.add({"loss": 4.0})
    assert meter.take() == ({"loss": 4.0}, None)
    assert meter.tokens_per_second is None


def test_the_record_of_skipped_batches_is_kept_where_an_evaluation_is_made_again(tmp_path):
    with MetricsWriter(tmp_path, step=0, steps=4) as writer:
        for values in ({"skipped_batches": 3}, {"loss": 1.0, "learning_rate": 0.1}, {"score": 0.5}):
            writer.write(4, values)
    with MetricsWriter(tmp_path, step=4, steps=4, evaluation_due=True):
        pass
    assert [sorted(record) for record in read_metrics(tmp_path)] == [
        ["skipped_batches", "step"],
        ["learning_rate", "loss", "step"],
    ]
