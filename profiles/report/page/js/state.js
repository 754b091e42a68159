// The reader's settings (`state`) and what follows from them (`view`). `refresh` updates all views.

/** Properties by which rows are filtered and colored. */
const FACETS = {
  role: { name: "Role", of: (row) => row.role ?? "" },
  method: { name: "Method", of: (row) => row.method ?? "" },
  network: { name: "Network", of: (row) => row.network ?? "" },
  format: { name: "Format", of: (row) => formatOf(row) },
  precision: { name: "Precision", of: (row) => row.precision ?? "" },
};

/** Facet -> its values in a fixed order, which determines their colors. */
const facetValues = Object.fromEntries(
  Object.entries(FACETS).map(([name, facet]) => [
    name,
    [...new Set(rows.map(facet.of))].sort((a, b) => a.localeCompare(b, "en", { numeric: true })),
  ]),
);

const initialLimits = Object.fromEntries(
  Object.entries(COSTS).map(([name, cost]) => {
    const given = page.limits?.[cost.key] ?? null;
    return [name, given === null ? null : given / cost.scale];
  }),
);

const state = {
  place: page.setting,
  percentile: "p50",
  limits: { ...initialLimits },
  only: false, // choose among the shown rows only
  off: Object.fromEntries(Object.keys(FACETS).map((name) => [name, new Set()])),
  text: "",
  color: ["method", "network", "precision", "format", "role"].find((name) => facetValues[name].length > 1) ?? "method",
  log: false,
  sort: { key: "score", down: true },
  first: 0, // of the table's page
  pinned: null,
};

/** Derived from `state`: indices of the shown rows, their Pareto fronts, and the choice. */
const view = { shown: [], fronts: {}, optimal: new Map(), choice: null };

/** Searchable text of each row in lower case, created at the first search. */
let haystacks = null;

function matches(words) {
  haystacks ??= rows.map((row) =>
    [row.name, row.role, row.method, row.network, formatOf(row), row.format, row.precision].join(" ").toLowerCase(),
  );
  return (i) => words.every((word) => haystacks[i].includes(word));
}

/** Update `view` and call the listeners. */
function refresh() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? matches(words) : () => true;
  const active = Object.entries(FACETS).filter(([name]) => state.off[name].size);
  view.shown = [];
  rows.forEach((row, i) => {
    if (active.every(([name, facet]) => !state.off[name].has(facet.of(row))) && found(i)) view.shown.push(i);
  });
  view.optimal = new Map();
  for (const cost of Object.keys(COSTS)) {
    view.fronts[cost] = front(view.shown, cost, state);
    for (const i of view.fronts[cost]) view.optimal.set(i, [...(view.optimal.get(i) ?? []), cost]);
  }
  view.choice = choose(state.only ? view.shown : rows.map((_, i) => i), state.limits, state);
  listeners.forEach((listener) => listener());
}

/** Functions called after every change, in this order. */
const listeners = [];

/** Whether no filter is active. */
const unfiltered = () => !state.text.trim() && Object.values(state.off).every((off) => !off.size);
