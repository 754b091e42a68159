// The table of rows: sorted, filtered, in pages of fifty, and as CSV.

const PAGE = 50;
const costColumn = (cost, text) => ({ numeric: true, value: (row) => COSTS[cost].of(row, state), text });
const timeColumn = (key) => ({
  numeric: true,
  value: (row) => positive(timesOf(row, state)?.[key]),
  text: (row) => three(positive(timesOf(row, state)?.[key])),
});
const textColumn = (of) => ({ value: of, text: of });

/** Key (as in html_tables.py) -> sort key and label. `down`: larger is better. */
const COLUMNS = {
  name: { label: "Model", value: (row) => row.name, text: (row) => row.name },
  ...Object.fromEntries(
    Object.entries(FACETS).map(([key, facet]) => [key, { label: facet.name, ...textColumn(facet.of) }]),
  ),
  score: {
    label: capital(page.metric_name),
    numeric: true,
    down: true,
    value: (row) => row.score ?? null,
    text: (row) => scoreOf(row),
  },
  retained: {
    label: "Of teacher's",
    numeric: true,
    down: true,
    value: (row) => row.retained ?? null,
    text: (row) => share(row.retained, 1),
  },
  p50: { label: "p50 (ms)", ...timeColumn("p50") },
  p99: { label: "p99 (ms)", minor: true, ...timeColumn("p99") },
  energy: { label: "mJ/image", ...timeColumn("energy_mj") },
  flops: { label: "GFLOP", ...costColumn("flops", (row) => three(COSTS.flops.of(row, state))) },
  params: {
    label: "Parameters",
    minor: true,
    numeric: true,
    value: (row) => row.params ?? null,
    text: (row) => count(row.params),
  },
  size: { label: "Size", ...costColumn("size", (row) => bytes(row.size_bytes)) },
  agreement: {
    label: "Same predictions",
    minor: true,
    numeric: true,
    down: true,
    value: (row) => row.verified?.top1_agreement ?? null,
    text: (row) => share(row.verified?.top1_agreement),
  },
  seeds: {
    label: "Seeds",
    minor: true,
    numeric: true,
    down: true,
    value: (row) => row.seeds ?? null,
    text: (row) => String(row.seeds ?? ""),
  },
};
COLUMNS.method.minor = COLUMNS.network.minor = true; // not on paper
const shownColumns = ["name", ...page.columns].map((key) => ({ key, ...COLUMNS[key] }));
let order = []; // the shown rows as they are sorted

/** Sort the shown rows; unknown values last, equal ones by score. */
function sortRows() {
  const { key, down } = state.sort;
  const { value, numeric } = COLUMNS[key];
  const collator = new Intl.Collator("en", { numeric: true });
  const keyed = view.shown.map((i) => [value(rows[i]), i]);
  keyed.sort(([a, i], [b, j]) => {
    const [isA, isB] = [a !== null && a !== "", b !== null && b !== ""];
    if (!isA || !isB) return isB - isA || i - j;
    const found = numeric ? a - b : collator.compare(a, b);
    return (down ? -found : found) || i - j;
  });
  order = keyed.map(([, i]) => i);
}

/** Headers with sort buttons. */
function drawHeads() {
  const heads = shownColumns.map(({ key, label, numeric, minor, down }) => {
    const button = make("button", { type: "button", className: "sort" }, label);
    button.addEventListener("click", () => {
      state.sort = { key, down: state.sort.key === key ? !state.sort.down : Boolean(down) };
      state.first = 0;
      sortRows();
      tellSort();
      drawTable();
    });
    return make(
      "th",
      { scope: "col", className: `${numeric ? "number" : ""}${minor ? " minor" : ""}`, "data-key": key },
      button,
    );
  });
  document.querySelector("#table thead tr").replaceChildren(...heads);
  tellSort();
}

function tellSort() {
  for (const head of document.querySelectorAll("#table thead th")) {
    if (head.dataset.key === state.sort.key)
      head.setAttribute("aria-sort", state.sort.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

/** Render one page of rows and its position. */
function drawTable() {
  const focused = document.activeElement?.closest?.("#table tbody tr")?.dataset.row;
  const last = Math.min(state.first + PAGE, order.length);
  const body = document.querySelector("#table tbody");
  body.replaceChildren(...order.slice(state.first, last).flatMap(tableRow));
  if (!order.length) {
    const clear = make("button", { type: "button", className: "plain" }, "Show all models");
    clear.addEventListener("click", clearFilters);
    body.append(
      make("tr", {}, make("td", { colSpan: shownColumns.length }, "No model is left by these filters. ", clear)),
    );
  }
  by("range").textContent = order.length
    ? `${whole(state.first + 1)}–${whole(last)} of ${whole(order.length)}`
    : "none";
  by("earlier").disabled = state.first === 0;
  by("later").disabled = last >= order.length;
  by("earlier").hidden = by("later").hidden = order.length <= PAGE;
  if (focused !== undefined) body.querySelector(`tr[data-row="${focused}"] button`)?.focus();
}

/** Render a row, with details if it is pinned. */
function tableRow(index) {
  const row = rows[index];
  const open = state.pinned === index;
  const button = make(
    "button",
    { type: "button", className: "name", "aria-expanded": String(open) },
    make("bdi", {}, row.name),
  );
  if (open) button.setAttribute("aria-controls", "details");
  button.addEventListener("click", () => pin(index));
  button.addEventListener("focus", () => light(index));
  button.addEventListener("blur", () => light(null));
  const marks = marksOf(index).flatMap((mark) => [
    " ",
    make("span", { className: `mark ${mark.toLowerCase()}` }, mark),
  ]);
  const cells = shownColumns
    .slice(1)
    .map(({ text, numeric, minor }) =>
      make("td", { className: `${numeric ? "number" : ""}${minor ? " minor" : ""}` }, text(row) || MISSING),
    );
  const tr = make("tr", { "data-row": index }, make("th", { scope: "row" }, button, ...marks), ...cells);
  tr.classList.toggle("best", index === view.choice.pick);
  tr.classList.toggle("open", open);
  tr.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && light(index));
  tr.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && light(null));
  return open ? [tr, detailsRow(index, shownColumns.length)] : [tr];
}

function marksOf(index) {
  const marks = [
    ["deploy", index === view.choice.pick],
    ["teacher", rows[index].role === "teacher"],
    ["Pareto", view.optimal.has(index)],
  ];
  return marks.filter(([, holds]) => holds).map(([mark]) => mark);
}

/** The page of the table with a row. */
function turnTo(index) {
  const at = order.indexOf(index);
  if (at >= 0) state.first = at - (at % PAGE);
}

/** Scroll to a row and focus it. */
function showRow(index) {
  if (!view.shown.includes(index)) clearFilters();
  turnTo(index);
  drawTable();
  const button = document.querySelector(`#table tr[data-row="${index}"] button`);
  button.focus({ preventScroll: true });
  button.scrollIntoView({ block: "center" });
}

/** Move between names with the arrow keys. */
function moveAmongNames(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches("button.name")) return;
  const names = [...document.querySelectorAll("#table button.name")];
  const next = names[names.indexOf(event.target) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function startTable() {
  drawHeads();
  by("table").addEventListener("keydown", moveAmongNames);
  by("earlier").addEventListener("click", () => turnPage(-PAGE));
  by("later").addEventListener("click", () => turnPage(PAGE));
  by("csv").addEventListener("click", (event) => {
    if (event.target.href.startsWith("blob:")) URL.revokeObjectURL(event.target.href);
    event.target.href = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
  });
  listeners.push(() => {
    state.first = Math.min(state.first, Math.max(0, view.shown.length - 1));
    state.first -= state.first % PAGE;
    sortRows();
    drawTable();
  });
}

function turnPage(step) {
  state.first = Math.max(0, state.first + step);
  drawTable();
}

/** The shown rows as CSV, unrounded, one line per row and setting, as from `compress report`. */
function asCsv() {
  const own = [
    "name",
    "role",
    "method",
    "network",
    "format",
    "precision",
    "seeds",
    "score",
    "spread",
    "retained",
    "macs",
    "flops",
    "params",
    "activations",
    "size_bytes",
  ];
  const where = ["machine", "device", "runtime", "threads", "batch", "scenario"];
  const lines = [[...own, ...where, ...Object.values(page.csv_times), "command"]];
  for (const index of order) {
    const row = rows[index];
    const measured = Object.entries(row.times ?? {});
    for (const [place, time] of measured.length ? measured : [[null, {}]]) {
      const at = place === null ? {} : page.settings[Number(place)];
      lines.push([
        ...own.map((key) => row[key]),
        ...where.map((key) => at[key]),
        ...Object.keys(page.csv_times).map((key) => time[key]),
        row.run?.command,
      ]);
    }
  }
  return lines.map((line) => line.map(csvCell).join(",")).join("\n") + "\n";
}

/** A quoted cell: text on one line, with an apostrophe before what a spreadsheet takes for a formula (formatting.py). */
function csvCell(value) {
  if (value === null || value === undefined) return '""';
  if (typeof value === "boolean") return value ? '"True"' : '"False"';
  if (typeof value === "number") return `"${value}"`;
  const parts = String(value).replace(/[\p{C}\p{Z}]/gu, " ").split(";");
  const text = parts.map((part) => (/^[ "]*[=+\-@]/.test(part.normalize("NFKC")) ? `'${part}` : part)).join(";");
  return `"${text.replaceAll('"', '""')}"`;
}
