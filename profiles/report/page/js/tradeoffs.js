// Charts of score against cost: points, Pareto front, limits and highlights.

const MOST_LISTED = 40; // of a front, in words
const MANY = 1500; // points from which the dimmed ones are small, faint and without their spread
const anyPlace = places.length ? places.map((_, place) => ({ place, percentile: "p50" })) : [state];
const charts = Object.keys(COSTS)
  .filter((cost) => rows.some((row) => known(row.score) && anyPlace.some((at) => COSTS[cost].of(row, at) !== null)))
  .map((cost) => {
    const one = drawing(heading(cost), `chart-${cost}`, () => drawTradeoff(cost, one), mark);
    return Object.assign(one, { cost, listen: () => listenTo(one) });
  });

/** Label of the axis. */
function axisName(cost) {
  if (cost === "flops") return "GFLOP an image";
  if (cost === "size") return "MB of the file";
  if (cost === "energy") return "mJ an image";
  const percentile = state.percentile === "p50" ? "Median" : capital(PERCENTILES[state.percentile]);
  return `${percentile} latency of one batch, ms`;
}

function heading(cost) {
  return `${capital(page.metric_name)} against ${cost === "flops" ? "GFLOP" : COSTS[cost].name}`;
}

/** The shown rows with a score and this cost. */
const pointsOf = (cost) => view.shown.filter((i) => known(rows[i].score) && COSTS[cost].of(rows[i], state) !== null);

/** Text at once, because it needs space; points when the chart is near. */
function tellCharts() {
  for (const chart of charts) {
    const points = pointsOf(chart.cost);
    chart.figure.hidden = !points.length;
    describe(chart.cost, chart, points);
    chart.stale();
  }
}

/** [traces, layout] of one chart; null if no row has both values. */
function drawTradeoff(cost, one) {
  const points = pointsOf(cost);
  if (!points.length) return null;
  const x = (i) => COSTS[cost].of(rows[i], state);
  const best = new Set(view.fronts[cost]);
  const many = points.length > MANY;
  const traces = groups(points.filter((i) => !best.has(i))).map((group) => markers(group, x, many, true));
  traces.push(stairs(view.fronts[cost], x));
  traces.push(...groups(view.fronts[cost]).map((group) => markers(group, x, false, false)));
  return [traces, tradeoffLayout(cost, points, x, one)];
}

/** Rows by color and symbol: [{look, star, rows}]. */
function groups(indices) {
  const facet = FACETS[state.color];
  const values = facetValues[state.color];
  const places = new Map(values.map((value, place) => [value, place]));
  const found = new Map();
  for (const i of indices) {
    const place = places.get(facet.of(rows[i]));
    const star = rows[i].role === "teacher";
    const key = `${place} ${star}`;
    if (!found.has(key)) found.set(key, { look: lookOf(place), star, rows: [] });
    found.get(key).rows.push(i);
  }
  return [...found.values()];
}

/** The points of one group. Plotly gets numbers only; names are in our tooltip. */
function markers(group, x, many, dim) {
  const size = (dim ? (many ? 5 : 8) : 10) + (group.star ? 5 : 0);
  const trace = {
    type: "scatter",
    mode: "markers",
    x: group.rows.map(x),
    y: group.rows.map((i) => rows[i].score),
    customdata: group.rows,
    hoverinfo: "none",
    marker: {
      size,
      symbol: group.star ? "star" : group.look.symbol,
      color: group.look.color,
      opacity: dim ? (many ? 0.28 : 0.42) : 1,
      line: { width: dim && many ? 0 : 1, color: color("paper") },
    },
  };
  if (!many && group.rows.some((i) => known(rows[i].spread))) {
    const array = group.rows.map((i) => rows[i].spread);
    trace.error_y = { type: "data", array, thickness: dim ? 1 : 1.4, width: 0, color: color(dim ? "faint" : "soft") };
  }
  return trace;
}

/** The Pareto front as a step line. */
function stairs(indices, x) {
  return {
    type: "scatter",
    mode: "lines",
    x: indices.map(x),
    y: indices.map((i) => rows[i].score),
    line: { shape: "hv", width: 1.6, color: color("soft") },
    hoverinfo: "skip",
  };
}

function tradeoffLayout(cost, points, x, one) {
  const [low, high] = extent(points.map(x));
  const lows = points.map((i) => rows[i].score - (points.length > MANY ? 0 : (rows[i].spread ?? 0)));
  const highs = points.map((i) => rows[i].score + (points.length > MANY ? 0 : (rows[i].spread ?? 0)));
  const [bottom, top] = [extent(lows)[0], extent(highs)[1]];
  const pad = Math.max(0.06 * (top - bottom), 0.004);
  const xaxis = { title: { text: axisName(cost), standoff: 8 }, ...costAxis(low, high, one.plot.clientWidth) };
  const yaxis = {
    title: { text: plain(capital(page.metric_name)), standoff: 6 },
    range: [bottom - pad, top + pad],
    tickformat: "~%",
  };
  return layoutOf(one.plot.clientWidth < 420 ? 300 : 360, { xaxis, yaxis });
}

/** Range and ticks of the axis of a cost. */
function costAxis(low, high, width) {
  if (!state.log)
    return {
      type: "linear",
      range: [Math.max(0, low - 0.06 * (high - low || low)), high + 0.06 * (high - low || high)],
      nticks: width < 420 ? 5 : 8,
    };
  const pad = 0.05 * (Math.log10(high / low) || 1);
  const range = [Math.log10(low) - pad, Math.log10(high) + pad];
  return { type: "log", range, ...ticksOf(range, width) };
}

function ticksOf(range, width) {
  const tickvals = logTicks(range[0], range[1], width < 420 ? 6 : 9);
  return { tickmode: "array", tickvals, ticktext: tickvals.map((value) => String(value)) };
}

/** Minimum and maximum. */
function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Description of the chart, with the Pareto front as a collapsible list. */
function describe(cost, one, points) {
  const best = view.fronts[cost];
  const spread = points.some((i) => known(rows[i].spread));
  const missing = view.shown.length - points.length;
  one.caption.textContent = [
    `${models(points.length)}, ${whole(best.length)} of them on the Pareto front (the line).`,
    spread ? `Bars: the spread over seeds${points.length > MANY ? ", of so many on the front only" : ""}.` : "",
    missing ? `${whole(missing)} more ${missing === 1 ? "has" : "have"} no number here.` : "",
  ]
    .filter(Boolean)
    .join(" ");
  if (!one.list) {
    one.list = make("ol", {});
    one.figure.append(
      make("details", { className: "front" }, make("summary", {}, "The front, cheapest first"), one.list),
    );
  }
  const shown = best
    .slice(0, MOST_LISTED)
    .map((i) =>
      make("li", {}, make("bdi", {}, nameOf(rows[i])), `: ${scoreOf(rows[i], 1)} at ${priced(rows[i], cost)}`),
    );
  const rest = best.length - shown.length;
  one.list.replaceChildren(...shown, ...(rest ? [make("li", {}, `and ${whole(rest)} more`)] : []));
}

/** Overlay of a chart: the area beyond the limit, and rings around chosen, pinned and hovered rows. */
function mark(chart) {
  if (!chart.plot._fullLayout) return;
  const { xaxis, yaxis } = chart.plot._fullLayout;
  const over = (chart.over ??= overlay(chart));
  Object.assign(over.style, {
    left: `${xaxis._offset}px`,
    top: `${yaxis._offset}px`,
    width: `${xaxis._length}px`,
    height: `${yaxis._length}px`,
  });
  const limit = state.limits[chart.cost];
  const from = limit === null ? xaxis._length : Math.max(0, xaxis.d2p(Math.max(limit, 1e-12)));
  chart.shade.hidden = !(from < xaxis._length);
  if (!chart.shade.hidden) chart.shade.style.left = `${from}px`;
  for (const [name, index] of [
    ["choice", view.choice.pick],
    ["pinned", state.pinned],
    ["lit", lit],
  ]) {
    const ring = chart.rings[name];
    const price = index === null ? null : COSTS[chart.cost].of(rows[index], state);
    ring.hidden = price === null || !known(rows[index].score) || (name !== "choice" && !view.shown.includes(index));
    if (ring.hidden) continue;
    const [left, top] = [xaxis.d2p(price), yaxis.d2p(rows[index].score)];
    ring.hidden = !(left > -1 && left < xaxis._length + 1 && top > -1 && top < yaxis._length + 1);
    Object.assign(ring.style, { left: `${left}px`, top: `${top}px` });
    ring.classList.toggle("leftward", left > xaxis._length - 60);
    ring.classList.toggle("downward", top < 30);
  }
}

/** Create the overlay of a chart. */
function overlay(chart) {
  chart.shade = make("div", { className: "shade" }, make("span", {}, "over budget"));
  chart.rings = Object.fromEntries(
    ["choice", "pinned", "lit"].map((name) => [name, make("div", { className: `ring ${name}`, hidden: true })]),
  );
  chart.rings.choice.append(make("span", {}, "deploy"));
  const over = make("div", { className: "over", "aria-hidden": "true" }, chart.shade, ...Object.values(chart.rings));
  chart.plot.parentElement.append(over);
  return over;
}

/** Pointer and zoom events. */
function listenTo(chart) {
  chart.plot.on("plotly_hover", (event) => {
    const point = event.points.find((one) => typeof one.customdata === "number");
    if (!point) return;
    const { left, top } = chart.plot.getBoundingClientRect();
    const { x0, x1, y0, y1 } = point.bbox;
    light(point.customdata, { left: left + x0, right: left + x1, top: top + y0, bottom: top + y1 });
  });
  chart.plot.on("plotly_unhover", () => light(null));
  chart.plot.on("plotly_click", (event) => {
    const point = event.points.find((one) => typeof one.customdata === "number");
    if (point) pin(point.customdata);
  });
  chart.plot.on("plotly_relayout", (change) => {
    const axis = chart.plot._fullLayout.xaxis;
    if ("xaxis.range[0]" in change && axis.type === "log") {
      Plotly.relayout(
        chart.plot,
        Object.fromEntries(
          Object.entries(ticksOf(axis.range, axis._length)).map(([key, value]) => [`xaxis.${key}`, value]),
        ),
      );
    }
    mark(chart);
  });
}
