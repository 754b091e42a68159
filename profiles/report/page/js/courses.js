// Quality over training time.

const MOST_COURSES = 30;
const DASHES = ["solid", "dash", "dot", "dashdot"];

function startCourses() {
  const curves = (page.curves ?? []).filter(
    (curve) => curve.seconds?.length && curve.seconds.length === curve.scores?.length,
  );
  if (!curves.length) return;
  const drawn = curves.slice(0, MOST_COURSES);
  const all = page.curves_in_all ?? curves.length;
  const one = drawing(`${capital(page.metric_name)} over training time`, "chart-training", () =>
    drawCourses(drawn, one),
  );
  one.figure.classList.add("wide");
  const few = all > drawn.length ? ` ${whole(drawn.length)} of ${whole(all)} runs, the best at their end.` : "";
  const last = (curve) => curve.scores[curve.scores.length - 1];
  const best = drawn.reduce((top, curve) => (last(curve) > last(top) ? curve : top));
  one.caption.textContent = `${whole(drawn.length)} run${drawn.length === 1 ? "" : "s"}; ${best.name} ends highest, at ${share(last(best), 1)}.${few}`;
  one.listen = () =>
    hoverLines(one, (point) => [drawn[point.curveNumber].name, `${share(point.y, 1)} after ${duration(point.x)}`]);
  const header = ["Run", "Evaluations", "Time", "Best", "At the end"];
  const cells = drawn.map((curve) => [
    curve.name,
    whole(curve.scores.length),
    duration(curve.seconds[curve.seconds.length - 1]),
    share(Math.max(...curve.scores)),
    share(last(curve)),
  ]);
  by("courses").append(one.figure, inNumbers("The same in numbers", header, cells));
  legendOf(
    one,
    drawn.map((curve) => curve.name),
    true,
  );
}

const courseLook = (place) => ({
  variable: `--series-${(place % 8) + 1}`,
  dash: DASHES[Math.floor(place / 8) % DASHES.length],
});

function drawCourses(curves, one) {
  const traces = curves.map((curve, place) => ({
    type: "scatter",
    mode: curve.scores.length > 40 ? "lines" : "lines+markers",
    x: curve.seconds,
    y: curve.scores,
    hoverinfo: "none",
    line: { width: 1.8, color: color(courseLook(place).variable.slice(2)), dash: courseLook(place).dash },
    marker: { size: 4 },
  }));
  const xaxis = {
    title: { text: "Seconds of training", standoff: 8 },
    rangemode: "tozero",
    nticks: one.plot.clientWidth < 420 ? 5 : 10,
  };
  const yaxis = { title: { text: plain(capital(page.metric_name)), standoff: 6 }, tickformat: "~%" };
  return [traces, layoutOf(one.plot.clientWidth < 420 ? 300 : 380, { xaxis, yaxis })];
}

/** Legend. `lines`: symbols are strokes. */
function legendOf(one, names, lines) {
  const items = names.map((name, place) => {
    const look = lines ? courseLook(place) : { variable: `--series-${(place % 8) + 1}`, dash: "fill" };
    const sign = make("span", { className: `stroke ${look.dash}`, "aria-hidden": "true" });
    sign.style.color = `var(${look.variable})`;
    return make("li", {}, sign, make("bdi", {}, name));
  });
  one.plot.parentElement.after(make("ul", { className: "legend" }, ...items));
}

/** Tooltip beside a point of a chart without rows. */
function hoverLines(one, words) {
  one.plot.on("plotly_hover", ({ points: [point] }) => {
    const [name, text] = words(point);
    tip.replaceChildren(make("strong", {}, make("bdi", {}, name)), make("span", { className: "kind" }, text));
    tip.hidden = false;
    const { left, top } = one.plot.getBoundingClientRect();
    const { x0, x1, y0, y1 } = point.bbox;
    put(tip, { left: left + x0, right: left + x1, top: top + y0, bottom: top + y1 });
  });
  one.plot.on("plotly_unhover", () => {
    tip.hidden = true;
  });
}

/** A chart's numbers as a collapsible table. */
function inNumbers(title, header, cells) {
  const head = make(
    "thead",
    {},
    make("tr", {}, ...header.map((name, i) => make("th", { scope: "col", className: i ? "number" : "" }, name))),
  );
  const line = (texts) =>
    make(
      "tr",
      {},
      ...texts.map((text, i) =>
        i ? make("td", { className: "number" }, text || MISSING) : make("th", { scope: "row" }, make("bdi", {}, text)),
      ),
    );
  const table = make("table", {}, head, make("tbody", {}, ...cells.map(line)));
  const scroll = make("div", { className: "scroll", role: "region", "aria-label": title, tabIndex: 0 }, table);
  return make("details", {}, make("summary", {}, title), scroll);
}
