// Costs, Pareto fronts, and the recommended row, by the rule of profiles/report/recommendation.py.

const DEVICES = { cpu: "CPU", cuda: "CUDA" };
const PERCENTILES = {
  p50: "median",
  p90: "90th percentile",
  p99: "99th percentile",
};

/** Costs that can be limited and drawn. `of` returns null if unknown. `at`: {place, percentile}. */
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
 * Settings of the records, followed by the same settings for any runtime, so
 * that files of different formats can be compared. `members`: indices of settings.
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

/** The latency of a row at a setting, the fastest of several runtimes; null if none. */
function timesOf(row, at) {
  if (at.place === null || !row.times) return null;
  let found = null;
  for (const member of places[at.place].members) {
    const time = row.times[String(member)];
    if (time && (found === null || time.p50 < found.p50)) found = time;
  }
  return found;
}

/** The setting of that latency; null if none. */
const settingOf = (row, at) =>
  page.settings.find((_, i) => row.times?.[String(i)] && row.times[String(i)] === timesOf(row, at)) ?? null;

/**
 * The Pareto-optimal rows among `indices`, cheapest first; equal ones
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
 * The recommended row: among those within all limits and within the tolerance of the best, the cheapest by
 * latency, then arithmetic, then size, as far as known for all. A teacher is recommended only with limits, or if
 * there is no other model. For an exported model its files are recommended. An unknown cost exceeds its limit.
 *
 * Returns {pick, held, able, over, unknown}: index of the row or null; rows within the limits, and eligible rows;
 * per limit the number of rows that exceed it, and of rows with an unknown cost.
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

/** The cheapest row within the tolerance of the best score; null if there is none. */
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

/** Whether one list of numbers sorts before another. */
function lower(one, other) {
  const i = one.findIndex((value, j) => value !== other[j]);
  return i >= 0 && one[i] < other[i];
}

/** The row with the lowest known cost; null if there is none. */
function least(indices, cost, at) {
  let found = null;
  for (const i of indices) {
    const price = COSTS[cost].of(rows[i], at);
    if (price !== null && (found === null || price < COSTS[cost].of(rows[found], at))) found = i;
  }
  return found;
}
