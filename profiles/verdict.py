"""What LoadGen's log says: the numbers of a scenario, whether it counts as valid, and if not, why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOG = "mlperf_log_detail.txt"
MARK = ":::MLLOG"
#: scenario -> between the name of a percentile and "_latency_ns"
OF_QUERIES = {"MultiStream": "_per_query"}
#: what LoadGen checks -> how it is said that it did not hold
CHECKS = {
    "result_perf_constraints_met": "too many answers came later than the bound allows",
    "result_min_duration_met": "it ended before its least duration",
    "result_min_queries_met": "it had fewer queries than it needs",
}


class LogError(Exception):
    """A log of LoadGen's that is not as expected."""

    exit_code = 1


def read_log(folder: Path, scenario: str) -> dict[str, Any]:
    """Key -> value, of the lines of LoadGen's detailed log. Raises LogError where it has no result."""
    found: dict[str, Any] = {}
    path = folder / LOG
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        if line.startswith(MARK):
            try:
                entry = json.loads(line.removeprefix(MARK))
            except ValueError:
                continue  # such as one that another thread's line has cut in two
            found[entry["key"]] = entry["value"]
    if "result_validity" not in found:
        why = next((str(found[key]) for key in found if key.startswith("error_")), "its log has no verdict")
        raise LogError(f"LoadGen came to no result in {scenario} ({why}).")
    return found


def numbers(found: dict[str, Any], scenario: str, *, samples: int = 8) -> dict[str, Any]:
    """The fields of Latency that the log knows. `samples`: images of a query of MultiStream."""
    kind = OF_QUERIES.get(scenario, "")
    tails = {p: found[f"result_{p}.00_percentile{kind}_latency_ns"] / 1e6 for p in (50, 90, 99)}
    mean = found["result_mean_query_latency_ns" if kind else "result_mean_latency_ns"] / 1e6
    speeds = {
        "SingleStream": lambda: found["result_qps_with_loadgen_overhead"],
        "MultiStream": lambda: 1e3 * samples / mean,
        "Offline": lambda: found["result_samples_per_second"],
        "Server": lambda: found["result_completed_samples_per_sec"],
    }
    return {
        "latency_ms_p50": tails[50],
        "latency_ms_p90": tails[90],
        "latency_ms_p99": tails[99],
        "latency_ms_mean": mean,
        "throughput_ips": float(speeds[scenario]()),
        "runs": int(found["result_query_count"]),
        "valid": found["result_validity"] == "VALID",
        "invalid_because": because(found),
    }


def because(found: dict[str, Any]) -> str:
    """Why LoadGen's verdict is that the result does not count; empty where it does."""
    if found["result_validity"] == "VALID":
        return ""
    failed = [text for key, text in CHECKS.items() if found.get(key) is False]
    if found.get("early_stopping_met") is False:
        said = " ".join(str(found.get("early_stopping_result", "")).replace("*", " ").split())
        failed.append(f"too few queries to be sure of its percentile ({said.rstrip('.')})")
    return "; ".join(failed) or str(found.get("result_invalid_reason") or "LoadGen does not say why")
