"""Runs a training on all hosts of Cloud TPU slices, through queued resources.

    python -m experiments.launch.tpu_pod keep --name=base --zone=us-west4-a --type=v5litepod-256 \\
        --spot --package=gs://BUCKET/roberta_jax-0.2.0-py3-none-any.whl \\
        --compile_cache=gs://BUCKET/jax_cache \\
        -- pretrain --config=configs/pretrain.py:base --workdir=gs://BUCKET/base ...

ACTION is one of
  create   request the slices; they may be granted hours later
  install  install the package on all hosts, in an environment of their own; a host whose Python is
           older than 3.11 gets a newer one from uv
  doctor   check all hosts (python -m roberta_jax.doctor --distributed), with the run's --workdir
  start    start the run on all hosts; it goes on when this machine is switched off
  logs     show the end of the log of each host
  stop     stop the run; it saves a checkpoint
  delete   delete the slices
  keep     do all of it until the run has ended: request the slices, wait for them, install, start,
           start again on hosts that were rebooted, and request the slices anew when they were
           preempted. It can be interrupted and started again with the same command at any time: a
           run that is running is left alone.

`keep` deletes the slices when the run has finished or failed, and when it could not be installed or
started on all hosts in 5 attempts. It leaves them, and says that they are still billed, when the
run was stopped, when another command is running on them, when hosts that it did not request itself
do not answer, and when they cannot be deleted. It does not delete anything when it is interrupted.
Slices that somebody else deletes are not requested again.

It needs gcloud, logged in. For slices of several hosts gcloud needs an ssh-agent with its key:
  eval $(ssh-agent); ssh-add ~/.ssh/google_compute_engine
All commands with their options are printed by --dry_run.
"""

import re
import sys
from collections.abc import Sequence

from experiments.command_line import command
from experiments.launch import supervised
from experiments.launch.keeping import keep
from experiments.launch.pod import Pod
from roberta_jax.launch import whole
from roberta_jax.launching import command as launched


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    own, words = launched.split(sys.argv[1:] if argv is None else argv)
    parser = supervised.parser("tpu_pod", __doc__)
    actions = ("create", "install", "doctor", "start", "logs", "stop", "delete", "keep")
    parser.add_argument("action", metavar="ACTION", choices=actions, help=", ".join(actions))
    parser.add_argument("--name", required=True, help="of the slices")
    parser.add_argument("--zone", required=True, help="such as us-west4-a")
    parser.add_argument("--project", help="of Google Cloud (default: gcloud's)")
    parser.add_argument("--type", default="v5litepod-16", help="of a slice (default: %(default)s)")
    parser.add_argument("--runtime", help="software of the hosts (default: that of the type)")
    parser.add_argument("--slices", type=whole(1), default=1, metavar="N")
    parser.add_argument("--spot", action="store_true", help="cheaper slices that can be preempted")
    parser.add_argument("--package", help="what to install: a wheel on gs://, or pip's name for it")
    parser.add_argument(
        "--extras", default="tpu,gcs,data", help="its extras (default: %(default)s)"
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="what `install` runs first on each host, such as a mount of the text (repeatable). "
        "`keep` runs it again on a host that was rebooted",
    )
    parser.add_argument(
        "--every",
        type=whole(1),
        default=60,
        metavar="SECONDS",
        help="how often `keep` looks (default: %(default)s)",
    )
    with command():
        arguments = parser.parse_args(own)
        if not re.fullmatch("[a-z][a-z0-9-]{0,60}", arguments.name):
            parser.error(f"--name={arguments.name}: use small letters, digits and hyphens")
        pod = Pod(arguments)
        if arguments.action == "keep":
            if status := keep(pod, words, every=arguments.every, dry_run=arguments.dry_run):
                sys.exit(status)
            return
        takes_words = arguments.action in ("start", "doctor")
        commands = getattr(pod, arguments.action)(*([words] if takes_words else []))
        supervised.run(commands, dry_run=arguments.dry_run)


if __name__ == "__main__":
    main()
