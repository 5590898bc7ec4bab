"""The table of a run."""

from collections.abc import Iterable, Sequence

from experiments.benchmarks.accelerator.workload import flops_per_token, goal_of

_COLUMNS = (
    "what", "result", "tokens/s", "goal", "of goal", "of peak", "of product", "memory",
    "compile", "note",
)  # fmt: skip
_TOP = 6  # operations in the table; the file has more


def comparisons(records: Sequence[dict]) -> list[dict]:
    """For each model and length that both sides have: the fastest of each, and their ratio.

    Ratios are those of the medians: `ratio` is (tokens per second of ours / of the other).
    """
    result = []
    ours = fastest(records, "jax")
    for shape, theirs in fastest(records, "torch").items():
        if shape in ours:
            best = ours[shape]
            result.append(
                {
                    "model": shape[0],
                    "length": shape[1],
                    "jax": best["name"],
                    "torch": theirs["name"],
                    "ratio": best["tokens_per_second"] / theirs["tokens_per_second"],
                }
            )
    return result


def fastest(records: Iterable[dict], side: str) -> dict[tuple[str, int], dict]:
    """(model, length) -> the fastest measured step of a side."""
    best: dict[tuple[str, int], dict] = {}
    for record in records:
        is_step = record["part"] == "step" and record["side"] == side
        if is_step and record["status"] == "measured":
            shape = (record["model"], record["length"])
            if shape not in best or (
                record["tokens_per_second"] > best[shape]["tokens_per_second"]
            ):
                best[shape] = record
    return best


def with_shares(record: dict, machine: dict) -> dict:
    """A measured step with its goal and with its shares of the peak, the product and the goal.

    Operations are those that a step needs, also where a side makes more. Other records stay as
    they are.

    Args:
      record: of the step.
      machine: the record of the machine.
    """
    if record["status"] != "measured":
        return record
    operations = flops_per_token(record["model"], record["length"])
    rate, peak = record["tokens_per_second"], machine.get("peak_flops")
    product = machine.get("product_flops")
    goal = goal_of(machine.get("chip"), record["model"], record["length"], peak)
    return record | {
        "flops_per_token": operations,
        "share_of_peak": peak and rate * operations / peak,
        "share_of_product": product and rate * operations / product,
        "goal": goal and goal.aim,
        "moonshot": goal and goal.moonshot,
        "share_of_goal": goal and rate / goal.aim,
    }


def table(records: Sequence[dict]) -> str:
    """The records as text, one row each; of profiles, those of the fastest steps alone."""
    best = {record["name"] for record in fastest(records, "jax").values()}
    rows = [_COLUMNS]
    for record in records:
        if record["part"] == "profile":
            if record["step"] in best:
                rows += _profile_rows(record)
        else:
            rows.append(_row(record))
    for each in comparisons(records):
        what = f"{each['model']} {each['length']} best jax / best torch"
        rows.append(_cells(what=what, result=f"{each['ratio']:.2f} times"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cells(**values: str) -> tuple[str, ...]:
    values = {name.replace("_per_", "/").replace("_", " "): text for name, text in values.items()}
    return tuple(values.get(column, "") for column in _COLUMNS)


def _row(record: dict) -> tuple[str, ...]:
    status, reason = record["status"], (record.get("reason") or "").replace("\n", " ")
    if record["part"] == "machine":
        return _machine_row(record)
    if record["part"] == "step" and status == "measured":
        return _step_row(record)
    if record["part"] == "attention" and "errors" in record:
        return _cells(what=record["name"], result=status, note=reason or _exactness(record))
    if record["part"] == "embedding" and "seconds" in record:
        note = reason or f"error {record['error']:.1e}, {1e3 * record['seconds']:.2f} ms"
        return _cells(what=record["name"], result=status, note=note)
    return _cells(what=record["name"], result=status, note=reason[:300])


def _machine_row(record: dict) -> tuple[str, ...]:
    rate = record.get("product_flops")
    measured = f"{rate / 1e12:.1f} TFLOP/s" if rate else ""
    if rate and record["peak_flops"]:
        measured += f" of {record['peak_flops'] / 1e12:.0f}"
    versions = ", ".join(f"{name} {each}" for name, each in record["versions"].items() if each)
    width = record.get("product_width")
    note = f"the rate is that of bfloat16 products of width {width}; " if rate else ""
    note += f"Python {record['python']}, {versions}"
    return _cells(what=f"{record['device']} ({record['platform']})", result=measured, note=note)


def _exactness(record: dict) -> str:
    note = f"{record['cases']} cases, largest error {max(record['errors'].values()):.1e}"
    note += f" of {record['tolerance']:.0e}; dropped elements equal"
    shares = ", ".join(f"{share:.4f} at {rate}" for rate, share in record["dropped"].items())
    note += f" ({shares})" if shares else ""
    for case, reason in record["refused"].items():
        note += f"; {case}: refused, {reason}"
    return note


def _step_row(record: dict) -> tuple[str, ...]:
    rates = record["tokens_per_second_of_rounds"]
    note = f"{record['rows']} rows; rounds {min(rates):,.0f} to {max(rates):,.0f}"
    for each in record.get("too_large", []):
        note += f"; {each['rows']} rows do not fit"
    goal = record.get("goal")
    moonshot = f" ({record['moonshot']:,.0f})" if record.get("moonshot") else ""
    memory = record.get("peak_bytes") or record.get("program_bytes")
    return _cells(
        what=record["name"],
        result=record["status"],
        tokens_per_s=f"{record['tokens_per_second']:,.0f}",
        goal=f"{goal:,.0f}{moonshot}" if goal else "-",
        of_goal=_percent(record.get("share_of_goal")),
        of_peak=_percent(record.get("share_of_peak")),
        of_product=_percent(record.get("share_of_product")),
        memory=f"{memory / 2**30:.1f} GiB" if memory else "-",
        compile=f"{record['compile_seconds']:.0f} s",
        note=note,
    )


def _profile_rows(record: dict) -> list[tuple[str, ...]]:
    if record["status"] != "measured":
        return [_cells(what=record["name"], result=record["status"], note=record["reason"])]
    what = f"{record['name']}"
    rows = [_cells(what=what, result=f"{1e3 * record['busy_seconds']:.2f} ms busy")]
    for each in record["operations"][:_TOP]:
        place = f"{each['place']} " if each["place"] else ""
        rows.append(
            _cells(
                what=f"  {each['operation'][:60]}",
                result=f"{1e3 * each['seconds']:.2f} ms",
                of_product="",
                note=f"{each['share']:.1%}, {each['calls']:.0f} calls; {place}({each['kind']})",
            )
        )
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
