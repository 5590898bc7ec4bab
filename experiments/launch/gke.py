"""Runs a training on TPU slices or GPU nodes of a GKE cluster, through xpk.

    python -m experiments.launch.gke --cluster=CLUSTER --zone=us-west4-a --name=base \\
        --type=v5litepod-256 --image=IMAGE --compile_cache=gs://BUCKET/jax_cache \\
        -- pretrain --config=configs/pretrain.py:base --workdir=gs://BUCKET/base ...

xpk (https://github.com/AI-Hypercomputer/xpk) writes a JobSet and submits it to the cluster, which
`xpk cluster create` made, with --spot for cheaper nodes. The launcher in each container restarts
what crashes there. What it cannot restart, a node that is lost or preempted, the JobSet starts anew
on all nodes, at most --max_restarts times; xpk does so after the exit statuses 127 to 255, thus
not after a mistake (2) and not after success. The image needs Python and roberta_jax with the
extras tpu (or cuda13), gcs and data.
"""

import re
import shlex
import sys
from collections.abc import Sequence

from experiments.command_line import command
from experiments.launch import supervised
from experiments.launch.supervised import Commands
from roberta_jax.launch import whole
from roberta_jax.launching import command as launched


def commands(arguments, words: Sequence[str]) -> Commands:
    """Returns the command that submits the workload."""
    supervised.check_shared(words)
    gpus = re.fullmatch(r"[a-z0-9-]*(a100|h100|h200|b200|l4)[a-z0-9-]*", arguments.type)
    # One node with GPUs is a process of its own. How many hosts a TPU slice has is found there.
    several = not gpus or arguments.slices > 1
    full = supervised.supervised(
        words, python="python3", cache=arguments.compile_cache, distributed=several
    )
    kind = "--device-type" if gpus else "--tpu-type"
    count = "--num-nodes" if gpus else "--num-slices"
    where = [f"--cluster={arguments.cluster}", f"--zone={arguments.zone}"]
    if arguments.project:
        where.append(f"--project={arguments.project}")
    return [
        [
            *("xpk", "workload", "create"),
            f"--workload={arguments.name}",
            *where,
            f"{kind}={arguments.type}",
            f"{count}={arguments.slices}",
            f"--docker-image={arguments.image}",
            f"--max-restarts={arguments.max_restarts}",
            f"--command={shlex.join(full)}",
        ]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    own, words = launched.split(sys.argv[1:] if argv is None else argv)
    parser = supervised.parser("gke", __doc__)
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="of Google Cloud (default: gcloud's)")
    parser.add_argument("--name", required=True, help="of the workload")
    parser.add_argument("--type", required=True, help="such as v5litepod-256 or h200-141gb-8")
    parser.add_argument(
        "--slices", type=whole(1), default=1, metavar="N", help="or nodes with GPUs"
    )
    parser.add_argument("--image", required=True, help="the container's image")
    parser.add_argument("--max_restarts", type=whole(0), default=50, help="(default: %(default)s)")
    with command():
        arguments = parser.parse_args(own)
        supervised.run(commands(arguments, words), dry_run=arguments.dry_run)


if __name__ == "__main__":
    main()
