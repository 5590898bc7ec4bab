"""Writes the plans of the paper's models on several pods, and how the formulas predict scaling.

    python -m experiments.benchmarks.plans                           # formulas, in seconds
    python -m experiments.benchmarks.plans --compile=base_v5e-4x4    # minutes each

Each plan is the report of `python -m roberta_jax.plan`. A compiled report is kept, with its
figures by formula, until `--compile` makes it again. `scaling.md` and `scaling.png` have the
time of a step, tokens/s and efficiency of base and large from 16 to 1,024 chips; nothing in them
was measured or compiled.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from configs.pretrain import get_config
from experiments.benchmarks.arguments import some_of
from roberta_jax import cli
from roberta_jax.plan import make_plan
from roberta_jax.planning.report import Plan, markdown, was_compiled
from roberta_jax.planning.topologies import parse
from roberta_jax.storage.atomic import replace_file, write_text

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "plans"
SIZES = ("base", "large")


@dataclasses.dataclass(frozen=True)
class Pod:
    """Some chips: a topology and a number of slices."""

    topology: str
    slices: int = 1

    @property
    def name(self) -> str:
        several = f"{self.slices}x_" if self.slices > 1 else ""
        return several + self.topology.replace(":", "-").replace("gpu-", "")


PODS = (Pod("v5e:4x4"), Pod("v5e:16x16"), Pod("v5p:4x4x4"), Pod("v6e:4x4", 2), Pod("gpu:h200x8"))
PLANS = {f"{size}_{pod.name}": (size, pod) for size in SIZES for pod in PODS}

# Kind of chip -> pods of growing size. Beyond 256 chips, v5e takes several slices.
SCALING = {
    "v5e": (
        *(Pod(f"v5e:{shape}") for shape in ("4x4", "4x8", "8x8", "8x16", "16x16")),
        Pod("v5e:16x16", 2),
        Pod("v5e:16x16", 4),
    ),
    "v5p": tuple(
        Pod(f"v5p:{shape}")
        for shape in ("2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
    ),
}


def plan_of(size: str, pod: Pod, compile: bool = False) -> Plan:
    """The plan of the config of a size on a pod; all chips along `data`."""
    config, arguments = get_config(size), [f"--config=configs/pretrain.py:{size}"]
    chips = parse(pod.topology, pod.slices).chips
    if config.eval.batch_size % chips:  # a row of an evaluation batch for each chip
        with config.unlocked():
            config.eval.batch_size = chips
        arguments.append(f"--config.eval.batch_size={chips}")
    return make_plan(config, pod.topology, slices=pod.slices, compile=compile, arguments=arguments)


def write_plans(folder: pathlib.Path, compiled: Sequence[str] = ()) -> None:
    """Writes the reports of `PLANS`.

    Args:
      folder: where they are written. A compiled report that is there is kept unless `compiled`
        names it, because it takes minutes to make.
      compiled: the plans to compile. Only these are written then; without any, all are, by
        formula.
    """
    for name, (size, pod) in PLANS.items():
        path = folder / f"{name}.md"
        if compiled and name not in compiled:
            continue
        if not compiled and path.exists() and was_compiled(path.read_text()):
            print(
                f"{name}: kept, since it is compiled; --compile={name} makes it again", flush=True
            )
            continue
        write_text(path, markdown(plan_of(size, pod, compile=name in compiled)))
        print(name, flush=True)


def write_scaling(folder: pathlib.Path) -> None:
    """Writes `scaling.md` and, with Matplotlib, `scaling.png`."""
    lines = [
        "# Predicted scaling to 1,024 chips",
        "",
        "By the formulas of `python -m roberta_jax.plan` alone: nothing here was measured or "
        "compiled. Every chip is along the mesh axis `data`, the batch is the paper's 8,192 rows "
        "of 512 tokens whatever the number of chips, and microbatches have at most "
        "`train.per_device_batch_size` rows (16 for base, 8 for large), so that at 1,024 chips a "
        "chip has 8 rows per step. Efficiency is the rate of a chip relative to 16 chips. The "
        "gradients are added up once per step, and nothing hides that. Hours are those of 500,000 "
        "steps.",
        "",
        "What the formulas assume is in `roberta_jax/planning/speed.py` and `traffic.py`. They "
        "leave out what grows with the number of hosts: late or lost hosts, reading data, "
        "checkpoints, and the latency of collectives.",
        "",
    ]
    curves: dict[str, list[tuple[int, float]]] = {}
    for kind, pods in SCALING.items():
        for size in SIZES:
            lines += [
                f"## {size} on {kind}",
                "",
                "| chips | topology | rows x microbatches | s per step | of it collectives "
                "| tokens/s | efficiency | hours | chip-hours |",
                "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
            ]
            first = None
            for pod in pods:
                estimate = plan_of(size, pod).estimate
                time, work, chips = estimate.time, estimate.work, estimate.topology.chips
                rate = time.tokens_per_second / chips
                first = first or rate
                waiting = sum(each.seconds for each in estimate.collectives) / time.seconds
                hours = time.seconds * work.steps / 3600
                lines.append(
                    f"| {chips:,} | {estimate.topology} | {work.rows} x {work.accumulation} "
                    f"| {time.seconds:.3f} | {waiting:.1%} | {time.tokens_per_second / 1e6:.2f}M "
                    f"| {rate / first:.0%} | {hours:,.0f} | {hours * chips:,.0f} |"
                )
                curves.setdefault(f"{size}, {kind}", []).append((chips, rate / first))
            lines.append("")
    write_text(folder / "scaling.md", "\n".join(lines))
    print("scaling", flush=True)
    plot_scaling(curves, folder / "scaling.png")


def plot_scaling(curves: dict[str, list[tuple[int, float]]], path: pathlib.Path) -> None:
    """Plots the efficiency against the number of chips; without Matplotlib, says so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no scaling.png: install Matplotlib with pip install 'roberta_jax[plot]'")
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    chips = sorted({chips for points in curves.values() for chips, _ in points})
    axes.set_xticks(chips, [f"{number:,}" for number in chips])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("chips")
    axes.set_ylabel("predicted rate per chip, relative to 16 chips")
    axes.legend()
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compile",
        type=some_of(PLANS),
        help="only these plans, compiled as well, with commas between them; without it, all plans "
        "by formula, except those that are compiled already",
    )
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="a folder")
    arguments = parser.parse_args()
    with cli.usage_errors():
        arguments.output.mkdir(parents=True, exist_ok=True)
        compiled = arguments.compile.split(",") if arguments.compile else []
        write_plans(arguments.output, compiled)
        if not compiled:
            write_scaling(arguments.output)


if __name__ == "__main__":
    main()
