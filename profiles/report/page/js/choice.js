// What a row costs, which rows no other beats, and which one to ship. The rule is that of profiles/report/recommendation.py.

const DEVICES = { cpu: "CPU", cuda: "CUDA" };
const PERCENTILES = {
  p50: "median",
  p90: "90th percentile",
  p99: "99th percentile",
};

/** What can be limited and drawn: `of` is null where a row does not know it. `at`: {place, percentile}. */
const COSTS = {
  latency: {
    name: "latency",
    unit: "ms",
    key: "latency_ms",
    scale: 1,
    least: "fastest",
    of: (row, at) => positive(timesOf(row, at)?.[at.percentile]),
  },
  flops: {
    name: "arithmetic",
    unit: "GFLOP",
    key: "gflop",
    scale: 1,
    least: "leanest",
    of: (row) => {
      const found = positive(row.flops) ?? (positive(row.macs) === null ? null : 2 * row.macs);
      return found === null ? null : found / 1e9;
    },
  },
  size: {
    name: "size",
    unit: "MB",
    key: "size_bytes",
    scale: 1e6,
    least: "smallest",
    of: (row) => (positive(row.size_bytes) === null ? null : row.size_bytes / 1e6),
  },
  energy: {
    name: "energy",
    unit: "mJ",
    key: "energy_mj",
    scale: 1,
    least: "thriftiest",
    of: (row, at) => positive(timesOf(row, at)?.energy_mj),
  },
};

/**
 * Where latencies were measured: the settings of the records, and behind them the same settings whatever the runtime, so
 * that files of different formats can be compared. `members`: indices of the records' settings.
 */
const places = [...page.settings.map((one, i) => ({ label: one.label, members: [i] })), ...acrossRuntimes(page.settings)];

function acrossRuntimes(settings) {
  const found = new Map();
  settings.forEach((one, i) => {
    const key = JSON.stringify([one.machine, one.device, one.threads, one.batch, one.scenario]);
    found.set(key, [...(found.get(key) ?? []), i]);
  });
  return [...found.values()]
    .filter((members) => members.length > 1)
    .map((members) => {
      const { machine, device, threads, batch, scenario } = settings[members[0]];
      const known = [
        machine,
        DEVICES[device] ?? device,
        threads === null ? "" : `${threads} thread${threads === 1 ? "" : "s"}`,
        `batch ${batch}`,
        scenario === "quick" ? "" : scenario,
        "any runtime",
      ];
      return { label: known.filter(Boolean).join(", "), members };
    });
}

/** What was measured of a row at the place; the fastest where that are several runtimes; null where nothing was. */
function timesOf(row, at) {
  if (at.place === null || !row.times) return null;
  let found = null;
  for (const member of places[at.place].members) {
    const time = row.times[String(member)];
    if (time && (found === null || time.p50 < found.p50)) found = time;
  }
  return found;
}

/** The setting at which that was; null where nothing was. */
const settingOf = (row, at) =>
  page.settings.find((_, i) => row.times?.[String(i)] && row.times[String(i)] === timesOf(row, at)) ?? null;

/**
 * The rows of `indices` that no other beats: none is as cheap and as good, and better in one. Cheapest first; equal ones
 * are all kept.
 */
function front(indices, cost, at) {
  const points = [];
  for (const index of indices) {
    const price = COSTS[cost].of(rows[index], at);
    if (price !== null && known(rows[index].score)) points.push([price, rows[index].score, index]);
  }
  points.sort((a, b) => a[0] - b[0] || b[1] - a[1] || a[2] - b[2]);
  const kept = [];
  for (const point of points) {
    const last = kept[kept.length - 1];
    if (!last || point[1] > last[1] || (point[0] === last[0] && point[1] === last[1])) kept.push(point);
  }
  return kept.map((point) => point[2]);
}

/**
 * The row to ship: of those that hold all limits and come within the tolerance of the best of them the cheapest, by
 * latency, then arithmetic, then size, as far as all of them know it. A teacher is taken only within a budget, or where
 * there is no other; of a model that was exported its files, not its network. What is not known holds no limit.
 *
 * Returns {pick, held, able, over, unknown}: the row's index or null; the rows that may be chosen and those among them that
 * hold the limits; how many break each limit, and of how many it is not known.
 */
function choose(indices, limits, at) {
  const wanted = Object.entries(limits).filter(([, limit]) => limit !== null);
  const scored = indices.filter((i) => known(rows[i].score) && !rows[i].superseded);
  const students = scored.filter((i) => rows[i].role !== "teacher");
  const able = wanted.length || !students.length ? scored : students;
  const over = {};
  const unknown = {};
  const held = able.filter((i) => {
    let holds = true;
    for (const [cost, limit] of wanted) {
      const price = COSTS[cost].of(rows[i], at);
      if (price !== null && price <= limit) continue;
      const tally = price === null ? unknown : over;
      tally[cost] = (tally[cost] ?? 0) + 1;
      holds = false;
    }
    return holds;
  });
  return { pick: cheapest(held, at), held, able, over, unknown };
}

/** Of the rows within the tolerance of the best score the cheapest; null of none. */
function cheapest(held, at) {
  if (!held.length) return null;
  const best = held.reduce((most, i) => Math.max(most, rows[i].score), -Infinity);
  const good = held.filter((i) => rows[i].score >= best - (page.tolerance ?? 0));
  const compared = ["latency", "flops", "size"].filter((cost) =>
    good.every((i) => COSTS[cost].of(rows[i], at) !== null),
  );
  const price = (i) => [...compared.map((cost) => COSTS[cost].of(rows[i], at)), -rows[i].score];
  return good.reduce((least, i) => (lower(price(i), price(least)) ? i : least));
}

/** Whether one list of numbers comes before another. */
function lower(one, other) {
  const i = one.findIndex((value, j) => value !== other[j]);
  return i >= 0 && one[i] < other[i];
}

/** The row that costs least, of those that know it; null of none. */
function least(indices, cost, at) {
  let found = null;
  for (const i of indices) {
    const price = COSTS[cost].of(rows[i], at);
    if (price !== null && (found === null || price < COSTS[cost].of(rows[found], at))) found = i;
  }
  return found;
}
