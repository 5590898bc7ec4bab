"""When a run counts as making progress."""

import os

from roberta_jax.launching.progress import Watch


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def touch(path, seconds):
    path.touch()
    os.utime(path, (seconds, seconds))


def test_output_counts_until_the_first_other_sign(tmp_path):
    clock = Clock()
    watch = Watch(tmp_path / "beat", str(tmp_path), clock)
    clock.now = 10
    assert watch.idle_seconds(1) == 0
    clock.now = 15
    assert watch.idle_seconds(1) == 5
    assert not watch.started
    touch(tmp_path / "beat", 1)
    assert watch.idle_seconds(1) == 0
    assert watch.started
    clock.now = 30
    assert watch.idle_seconds(2) == 15  # output alone is no progress any more


def test_each_beat_record_and_checkpoint_is_a_sign(tmp_path):
    clock = Clock()
    watch = Watch(tmp_path / "beat", str(tmp_path), clock)
    signs = [
        lambda: touch(tmp_path / "beat", 1),
        lambda: touch(tmp_path / "beat", 2),
        lambda: (tmp_path / "metrics.jsonl").write_text("{}\n"),
        lambda: (tmp_path / "checkpoints" / "1").mkdir(parents=True),
    ]
    for number, sign in enumerate(signs, 1):
        clock.now = 10 * number
        assert watch.idle_seconds(0) == 10 if number == 1 else watch.idle_seconds(0) > 0
        sign()
        assert watch.idle_seconds(0) == 0


def test_a_workdir_on_an_object_store_is_not_read(tmp_path):
    clock = Clock()
    watch = Watch(tmp_path / "beat", "gs://bucket/run", clock)
    clock.now = 7
    assert watch.idle_seconds(0) == 7
