"""Which model to ship: within what the target can afford the best, and of those as good as it the cheapest."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.comparison import Comparison, Cost, positive
from profiles.record import Record
from profiles.tables import form
from profiles.wording import count, gains, listed, rivalry, share, three

#: shares of the score within which two models count as equally good; the cheaper one is then the better
TOLERANCE = 0.01
#: what a cost is called, and its unit
COSTS: dict[Cost, tuple[str, str]] = {
    "latency": ("latency", "ms"), "flops": ("arithmetic", "GFLOP"), "size": ("size", "MB"), "energy": ("energy", "mJ"),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """The most that a model may cost; None: any."""

    latency: float | None = None  #: median, ms, at the setting that is compared
    flops: float | None = None  #: GFLOP of one image
    size: float | None = None  #: MB of the file
    energy: float | None = None  #: mJ an image

    @property
    def limits(self) -> dict[Cost, float]:
        """Those that are set."""
        found: dict[Cost, float | None] = {
            "latency": self.latency, "flops": self.flops, "size": self.size, "energy": self.energy,
        }  # fmt: skip
        return {name: limit for name, limit in found.items() if limit is not None}

    def __str__(self) -> str:
        return listed([f"{three(limit)} {COSTS[cost][1]}" for cost, limit in self.limits.items()])


@dataclass(frozen=True)
class Advice:
    """The model to ship, and why."""

    record: Record | None  #: None where none holds the budget
    sentence: str


def superseded(comparison: Comparison) -> set[int]:
    """`id` of the networks that were exported: what is shipped of them is a file."""
    files = {(record.name, record.role, record.method) for record in comparison.records if record.format}
    networks = [record for record in comparison.records if not record.format]
    return {id(record) for record in networks if (record.name, record.role, record.method) in files}


def excess(comparison: Comparison, record: Record, budget: Budget) -> str:
    """The first limit that a record breaks, in words; empty where it holds them all. What is not known holds none."""
    for cost, limit in budget.limits.items():
        price = comparison.cost(record, cost)
        name, unit = COSTS[cost]
        if price is None:
            return f"{name} not measured"
        if price > limit:
            return f"{name} {three(price)} {unit}"
    return ""


def advise(comparison: Comparison, budget: Budget | None = None) -> Advice:
    """The cheapest of the models that hold the budget and are within a point of the best of them.

    Cheapest: by latency where it is known of all, else by arithmetic, else by size. Of a model that was exported its
    files are advised, not the network. A teacher is advised only if it holds a budget that is given: without one there
    would be nothing to do.
    """
    budget = budget or Budget()
    replaced = superseded(comparison)
    known = [record for record in comparison.records if id(record) not in replaced]
    scored = [record for record in known if comparison.score(record) is not None]
    students = [record for record in scored if record.role != "teacher"]
    able = scored if budget.limits or not students else students
    held = [record for record in able if not excess(comparison, record, budget)]
    if not held:
        return Advice(None, nothing(comparison, able, budget))
    best = max(comparison.score(record) or 0.0 for record in held)
    good = [record for record in held if (comparison.score(record) or 0.0) >= best - TOLERANCE]
    compared: list[Cost] = ["latency", "flops", "size"]
    shared: list[Cost] = [cost for cost in compared if all(comparison.cost(one, cost) is not None for one in good)]

    def price(record: Record) -> tuple[float, ...]:
        return (*(comparison.cost(record, cost) or 0.0 for cost in shared), -(comparison.score(record) or 0.0))

    chosen = min(good, key=price)
    return Advice(chosen, reasons(comparison, chosen, held, able, budget))


def nothing(comparison: Comparison, able: list[Record], budget: Budget) -> str:
    """Why there is nothing to ship."""
    if not able:
        return "No model was evaluated." if comparison.records else "There are no results yet."
    nearest = max(able, key=lambda record: comparison.score(record) or 0.0)
    return (
        f"No model holds the budget ({budget}): {form(nearest)}, the best of {len(able)}, does not by its "
        f"{excess(comparison, nearest, budget)}."
    )


def reasons(comparison: Comparison, chosen: Record, held: list[Record], able: list[Record], budget: Budget) -> str:
    """The advice in a few sentences."""
    score, name = comparison.score(chosen), form(chosen)
    alone = len(comparison.records) == 1
    text = f"{name} reaches" if alone else f"Ship {name}:"
    text += f" {share(score, 1)} {comparison.metric_name}"
    teacher, kept = comparison.teacher(chosen), comparison.retained(chosen)
    if teacher is not None and kept is not None:
        text += f", {share(kept, 1)} of its teacher's {share(comparison.score(teacher), 1)}"
    text += f", with {saved}." if (saved := gains(comparison, chosen)) else "."
    order: list[Cost] = list(COSTS)
    costs = [priced(comparison, chosen, cost) for cost in order if comparison.cost(chosen, cost) is not None]
    text += f" It costs {listed(costs)}." if costs else ""
    rank = "" if len(able) < 2 else ranking(comparison, chosen, held, able, budget)
    return " ".join(part for part in (text, rank, rivalry(comparison, chosen)) if part)


def ranking(comparison: Comparison, chosen: Record, held: list[Record], able: list[Record], budget: Budget) -> str:
    """How the chosen one stands among those that hold the budget, and what the others cost."""
    score = comparison.score(chosen) or 0.0
    top = max(held, key=lambda record: comparison.score(record) or 0.0)
    within = f"{len(held)} within {budget}" if budget.limits else f"{len(held)} models"
    if (comparison.score(top) or 0.0) <= score:
        text = f"It is the best of {within}." if len(held) > 1 else f"It is the only one within {budget}."
    else:
        points = 100 * ((comparison.score(top) or 0.0) - score)
        text = (
            f"Of {within} {form(top)} is the best ({share(comparison.score(top), 1)}); this one is {points:.1f} points "
            "behind it, at most one, and costs less."
        )
    over = [record for record in able if excess(comparison, record, budget)]
    if not over:
        return text
    better = max(over, key=lambda record: comparison.score(record) or 0.0)
    others = f"{len(over)} of {len(able)} are over the budget, the best of them {form(better)}"
    return f"{text} {others}: {share(comparison.score(better), 1)}, {excess(comparison, better, budget)}."


def priced(comparison: Comparison, record: Record, cost: Cost) -> str:
    """A cost with its unit: `0.4 ms a batch`, `0.05 GFLOP`, `720 kB`."""
    value = comparison.cost(record, cost)
    if cost == "size":
        return f"{count(positive(record.size_bytes))}B"
    if cost == "latency" and comparison.setting is not None:
        return f"{three(value)} ms ({comparison.label(comparison.setting)})"
    return f"{three(value)} {COSTS[cost][1]}" + (" an image" if cost == "energy" else "")
