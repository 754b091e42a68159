// Highlight a row in all charts and in the table: while hovered or focused, or while pinned.

const tip = by("tip");
let lit = null; // the row that is marked for the moment

/** Tooltip beside a point. `anchor`: a rectangle in the window, or null to hide it. */
function showTip(index, anchor) {
  tip.hidden = anchor === null;
  if (anchor === null) return;
  const row = rows[index];
  const facts = Object.entries(COSTS).map(([name, cost]) => [capital(cost.name), priced(row, name)]);
  const time = timesOf(row, state);
  const lines = [
    [capital(page.metric_name), scoreOf(row) + (row.seeds > 1 ? ` (${row.seeds} seeds)` : "")],
    ["Of its teacher's", share(row.retained, 1)],
    ...facts,
    ["Optimal by", (view.optimal.get(index) ?? []).map((cost) => COSTS[cost].name).join(", ")],
    ["Caution", time?.load_warning ?? ""],
    ["LoadGen", time?.valid === false ? "invalid" : ""],
  ].filter(([, text]) => text);
  const kind = [row.role, row.method, row.network, formatOf(row), row.precision].filter(Boolean).join(" · ");
  tip.replaceChildren(
    make("strong", {}, make("bdi", {}, row.name)),
    make("span", { className: "kind" }, kind),
    make("dl", {}, ...lines.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])),
  );
  put(tip, anchor);
}

/** Position a box beside a rectangle, inside the window. */
function put(box, anchor) {
  const { width, height } = box.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const right = anchor.right + 14 + width < room;
  const left = right ? anchor.right + 14 : Math.max(6, anchor.left - 14 - width);
  const fits = right || anchor.left - 14 - width > 0;
  const middle = (anchor.top + anchor.bottom) / 2 - height / 2;
  const top = fits ? middle : anchor.bottom + 14;
  box.style.left = `${Math.min(left, room - width - 6)}px`;
  box.style.top = `${Math.max(6, Math.min(top, innerHeight - height - 6))}px`;
}

/** Cost of a row with its unit. */
function priced(row, cost) {
  if (cost === "size") return bytes(row.size_bytes);
  const value = COSTS[cost].of(row, state);
  return value === null ? "" : `${three(value)} ${COSTS[cost].unit}`;
}

/** Highlight a row temporarily; null: none. */
function light(index, anchor = null) {
  if (anchor !== null || tip.hidden === false) showTip(index, anchor);
  if (index === lit) return;
  lit = index;
  charts.forEach((chart) => mark(chart));
  for (const tr of document.querySelectorAll("#table tbody tr[data-row]")) {
    tr.classList.toggle("lit", Number(tr.dataset.row) === lit);
  }
}

/** Pin a row; null: none. */
function pin(index) {
  state.pinned = index === state.pinned ? null : index;
  charts.forEach((chart) => mark(chart));
  tellPinned();
  if (state.pinned !== null) turnTo(state.pinned);
  drawTable();
}

/** The status line above the charts. */
function tellPinned() {
  const line = by("pinned");
  if (state.pinned === null) {
    line.replaceChildren(
      `${FINGER ? "Tap" : "Click"} a point, or open a name in the table, to mark it in every chart.`,
    );
    return;
  }
  const row = rows[state.pinned];
  const facts = [scoreOf(row), ...Object.keys(COSTS).map((cost) => priced(row, cost))].filter(Boolean).join(" · ");
  const there = make("button", { type: "button", className: "plain" }, "Show in the table");
  there.addEventListener("click", () => showRow(state.pinned));
  const away = make("button", { type: "button", className: "plain" }, "Let go");
  away.addEventListener("click", () => pin(state.pinned));
  line.replaceChildren(make("span", {}, make("strong", {}, make("bdi", {}, nameOf(row))), ` ${facts}`), there, away);
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") light(null);
});
