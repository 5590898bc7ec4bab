"""Keeps a run going on TPU slices that are granted late, preempted and rebooted, until it ends."""

import re
import shlex
import sys
import time
from collections.abc import Sequence

from experiments.launch import supervised
from experiments.launch.pod import ANSWER, IDLE, OTHER, RUNNING, Pod
from experiments.launch.supervised import Commands
from roberta_jax.errors import UsageError
from roberta_jax.launching.supervisor import STOP_STATUSES

# The states of a queued resource: https://cloud.google.com/tpu/docs/queued-resources
MISSING, ACTIVE, DELETING, FAILED = "MISSING", "ACTIVE", "DELETING", "FAILED"
LOST = {"SUSPENDED", FAILED}  # preempted, or not granted
UNKNOWN = "unknown"  # gcloud does not say; all other states are waited for

ATTEMPTS = 5  # of gcloud in a row that fail, before it gives up
# In a row, since what one look shows may be about to change: the hosts of a slice that is being
# preempted stop and fail before the state says so.
LOOKS_AFTER_STOP = 5  # until a run that was stopped counts as stopped by a person
LOOKS_AFTER_FAILURE = 3  # until a run counts as failed
LOOKS_WHEN_IDLE = 3  # until the run is started again on a host where nothing is running
LOOKS_WHEN_DELETED = 3  # until slices that are gone count as deleted by a person
# Of hosts that do not answer: until it gives up if the run was not started or has failed on others,
# or says so.
LOOKS_WITHOUT_ANSWER = 15

# How long gcloud may take, in seconds.
LOOK_SECONDS = 300.0
REQUEST_SECONDS = 900.0  # to create or delete
INSTALL_SECONDS = 3600.0
START_SECONDS = 600.0

_pause = time.sleep


def keep(pod: Pod, words: Sequence[str], *, every: float, dry_run: bool) -> int:
    """Requests, installs, starts and requests again until the run has ended.

    Args:
      pod: the commands of the slices.
      words: the command of the run.
      every: seconds between two looks at the state.
      dry_run: prints the commands in their order.

    Returns:
      The exit status: 0 if the run finished, else that of the run; 1 if it finished and the slices
      could not be deleted.

    Raises:
      UsageError: it gave up; the message says whether slices are left.
    """
    if dry_run:
        print("# until the run has ended; again from the top when the slices were preempted:")
        start = [pod.install(unless_running=True), pod.start(words)]
        answers = pod.answers(words)
        for commands in (pod.create(), pod.describe(), answers, *start, answers, pod.delete()):
            supervised.run(commands, dry_run=True)
        return 0
    return _Keeper(pod, words, every).run()


class _Keeper:
    """What is known of the slices and the run, from one look to the next."""

    def __init__(self, pod: Pod, words: Sequence[str], every: float):
        self._pod, self._words, self._every = pod, words, every
        # Wrong options are errors now, before slices are billed.
        pod.install()
        pod.start(words)
        self._errors = {}  # the last ones of gcloud, which are printed once
        self._told = False  # whether gcloud has ever told the state
        self._shown = ""
        self._failed_looks = self._failed_requests = self._deleted_looks = 0
        self._seen = False  # whether the request has existed since it was made
        self._requested = False  # whether these slices were requested here
        self._reset()

    def _reset(self) -> None:
        """Forgets the hosts, after the slices are gone."""
        self._started = False
        self._begins = self._idle = self._ended = self._unanswered = 0

    def run(self) -> int:
        """Looks at the state and does what it needs, until the run has ended."""
        while True:
            state = self._state()
            if state == UNKNOWN:
                self._wait_for_gcloud()
            elif state == MISSING:
                self._request()
            elif state in LOST:
                if not self._deleted():
                    raise UsageError(f"gave up deleting {self._pod.name}. {self._left()}")
                self._seen = self._requested = False
                self._reset()
            elif state == ACTIVE and (status := self._attend()) is not None:
                return self._end(status)
            _pause(self._every)

    def _state(self) -> str:
        """Returns the state of the request, which is printed when it has changed."""
        (result,) = supervised.results(self._pod.describe(), seconds=LOOK_SECONDS)
        state = UNKNOWN
        if result.returncode == 0:
            words = re.findall("[A-Z_]{6,}", result.stdout)
            state = words[0] if words else UNKNOWN
        elif _is_missing(result.stderr, self._pod.name):
            state = MISSING
        if state == UNKNOWN:  # such as a network that is down for a moment
            self._show_error("state", result.stderr)
        else:
            self._told, self._failed_looks = True, 0
            self._errors.pop("state", None)
        # A deletion of its own may go on for a moment after gcloud has reported it.
        if state not in (MISSING, UNKNOWN, DELETING):
            self._seen, self._failed_requests, self._deleted_looks = True, 0, 0
        if state != self._shown:
            reason = self._reason() if state == FAILED else ""
            self._say(f"{state}{reason}")
            self._shown = state
        return state

    def _reason(self) -> str:
        """Returns why a request failed, as far as gcloud says it."""
        field = self._pod.describe("state.failedData.error.message")
        (result,) = supervised.results(field, seconds=LOOK_SECONDS)
        return f": {result.stdout.strip()}" if result.stdout.strip() else ""

    def _wait_for_gcloud(self) -> None:
        """Waits, unless gcloud has never told the state: then the command is wrong."""
        self._failed_looks += 1
        if self._failed_looks >= ATTEMPTS and not self._told:
            raise UsageError(
                f"gcloud did not tell the state of {self._pod.name} {ATTEMPTS} times in a row; the "
                "cause is above. Nothing was requested or deleted. Check --zone and --project, and "
                "that gcloud is logged in."
            )

    def _request(self) -> None:
        """Requests the slices, unless somebody has deleted them meanwhile."""
        if self._seen:
            self._deleted_looks += 1
            if self._deleted_looks >= LOOKS_WHEN_DELETED:
                raise UsageError(
                    f"{self._pod.name} was deleted, not by this command, and is not requested "
                    "again. Run the same command to request it and to continue the run."
                )
        elif self._failed_requests >= ATTEMPTS:
            raise UsageError(
                f"gave up requesting {self._pod.name} after {ATTEMPTS} attempts; the cause is "
                "above. There are no slices."
            )
        else:
            self._requested = True
            done = self._tried(self._pod.create(), REQUEST_SECONDS)
            self._failed_requests = 0 if done else self._failed_requests + 1

    def _attend(self) -> int | None:
        """Looks at the hosts and starts the run where it is not running.

        Returns:
          The exit status of the run once it has ended: 0 if it has finished on all hosts, or that
          of a host. None before.
        """
        answers, complete = self._answers()
        if OTHER in answers:
            raise UsageError(
                f"another command is running on {self._pod.name}. Stop it first, with the action "
                f"`stop`. {self._left()}"
            )
        statuses = [int(answer) for answer in answers if answer.isdigit()]
        failed = sorted(status for status in statuses if status)
        self._unanswered = 0 if complete else self._unanswered + 1
        if not complete and self._unanswered % LOOKS_WITHOUT_ANSWER == 0:
            self._report_silence()
        if not self._started:
            if not complete:
                return None
            if failed or IDLE in answers:
                if failed:
                    self._say(f"an earlier start ended with status {failed[0]}; starting again")
                self._begin()
                return None
            self._say("the run was started before")
            self._started = True
        if failed:
            self._ended += 1
            # The cause, where others were told to stop.
            status = next((each for each in failed if each not in STOP_STATUSES), failed[0])
            if status in STOP_STATUSES:
                return status if self._ended >= LOOKS_AFTER_STOP else None
            # A run that has lost a host fails on the others. It goes on when that host is back.
            lost = not complete or IDLE in answers
            if self._ended >= (LOOKS_WITHOUT_ANSWER if lost else LOOKS_AFTER_FAILURE):
                return status
        else:
            self._ended = 0
        if IDLE in answers:
            self._idle += 1
            if self._idle >= LOOKS_WHEN_IDLE:
                number = answers.count(IDLE)
                self._say(f"nothing is running on {number} of the hosts; starting the run there")
                self._begin()
        elif complete and not failed:
            self._idle = self._begins = 0
            if RUNNING not in answers:
                return 0
        return None

    def _answers(self) -> tuple[list[str], bool]:
        """Returns what the hosts say of the run, and whether all have answered."""
        answers, complete = [], True
        for result in supervised.results(self._pod.answers(self._words), seconds=LOOK_SECONDS):
            words = re.findall(rf"{ANSWER}(\w+)", result.stdout)
            answers += words
            if result.returncode or not words:
                complete = False
                self._show_error("hosts", result.stderr)
        if complete:
            self._errors.pop("hosts", None)
        return answers, complete

    def _report_silence(self) -> None:
        """Says that hosts do not answer, or gives up if the run was never started there.

        Raises:
          UsageError: it gave up.
        """
        times = f"hosts of {self._pod.name} did not answer {self._unanswered} times in a row"
        if self._started:
            self._say(f"{times}. {self._left()}")
            return
        self._give_up(
            f"{times}; the cause is above. Is the key in the ssh-agent (see --help)?",
            # Unless they were requested here, a run may be running on them.
            delete=self._requested,
        )

    def _begin(self) -> None:
        """Installs and starts on the hosts where nothing is running.

        Raises:
          UsageError: it has failed too often; the slices were deleted, if that was possible.
        """
        if self._begins >= ATTEMPTS:
            self._give_up(
                f"the run could not be started on all hosts of {self._pod.name} in {ATTEMPTS} "
                "attempts; the cause is above.",
                delete=True,
            )
        self._begins += 1
        self._idle = self._ended = 0
        install = self._pod.install(unless_running=True)
        self._started = self._tried(install, INSTALL_SECONDS) and self._tried(
            self._pod.start(self._words), START_SECONDS
        )

    def _give_up(self, why: str, *, delete: bool) -> None:
        deleted = delete and self._deleted()
        raise UsageError(
            f"gave up: {why} "
            + (
                "The slices were deleted. Run the same command again when the cause is corrected."
                if deleted
                else self._left()
            )
        )

    def _end(self, status: int) -> int:
        """Deletes the slices of a run that has ended, and returns the exit status."""
        if status in STOP_STATUSES:
            self._say(f"the run was stopped. {self._left()} The same command continues the run.")
            return status
        if status:
            self._tried(self._pod.logs(), LOOK_SECONDS)
            self._say(f"the run failed with status {status}")
        else:
            self._say("the run has finished")
        if self._deleted():
            return status
        print(f"error: gave up deleting the slices. {self._left()}", file=sys.stderr, flush=True)
        return status or 1

    def _deleted(self) -> bool:
        """Deletes the slices and the request; returns whether they are gone."""
        for attempt in range(ATTEMPTS):
            if attempt:
                _pause(self._every)
                while (state := self._state()) == DELETING:
                    _pause(self._every)
                if state == MISSING:
                    return True
            if self._tried(self._pod.delete(), REQUEST_SECONDS):
                return True
        return False

    def _left(self) -> str:
        """Says that slices are left, and how to delete them."""
        (command,) = self._pod.delete()
        return f"The slices are kept and still billed; to delete them: {shlex.join(command)}"

    def _tried(self, commands: Commands, seconds: float) -> bool:
        """Runs commands that may fail for a moment; returns whether they did not."""
        try:
            supervised.run(commands, dry_run=False, seconds=seconds)
        except UsageError as error:
            print(error, file=sys.stderr, flush=True)
            return False
        return True

    def _show_error(self, action: str, error: str) -> None:
        """Prints why gcloud failed, once for the same reason."""
        end = error.strip()[-1000:] or "no answer"
        if end != self._errors.get(action):
            print(f"gcloud: {end}", file=sys.stderr, flush=True)
            self._errors[action] = end

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self._pod.name}: {text}", flush=True)


def _is_missing(error: str, name: str) -> bool:
    """Whether an error of `describe` says that there is no such request."""
    return "NOT_FOUND" in error or ("not found" in error.lower() and name in error)
