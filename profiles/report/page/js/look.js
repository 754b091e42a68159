// Colors from CSS variables, and common settings of all charts.

const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "x", "hexagon", "triangle-down"];
const SIGNS = ["●", "◆", "■", "▲", "✚", "✖", "⬢", "▼"];
const CONFIG = { displayModeBar: false, doubleClick: "reset", showTips: false, responsive: false };
const FINGER = matchMedia("(pointer: coarse)").matches;

/** The current color of a variable of theme.css. */
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Index of a value in its facet -> color and symbols; further values are gray. */
const lookOf = (place) =>
  place >= 0 && place < SYMBOLS.length
    ? {
        color: color(`series-${place + 1}`),
        symbol: SYMBOLS[place],
        sign: SIGNS[place],
        variable: `--series-${place + 1}`,
      }
    : { color: color("faint"), symbol: "circle-open", sign: "○", variable: "--faint" };

/** Plotly layout of all charts. No zooming by drag on touch screens, where it would prevent scrolling. */
function layoutOf(height, extra) {
  const axis = {
    gridcolor: color("line"),
    linecolor: color("faint"),
    zeroline: false,
    ticks: "",
    fixedrange: FINGER,
  };
  const { xaxis, yaxis, ...rest } = extra;
  return {
    height,
    autosize: true,
    margin: { l: 56, r: 14, t: 10, b: 50 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("soft") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    dragmode: FINGER ? false : "zoom",
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...rest,
  };
}

/** Ticks of a logarithmic axis between two exponents: a few round numbers. */
function logTicks(from, to, most) {
  const steps = [
    [1],
    [1, 3],
    [1, 2, 5],
    [1, 1.5, 2, 3, 5, 7],
    [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9],
  ];
  let found = [];
  for (const digits of steps) {
    const ticks = [];
    for (let power = Math.floor(from); power <= Math.ceil(to); power++) {
      for (const digit of digits) {
        const value = digit * 10 ** power;
        if (value >= 10 ** from * 0.999 && value <= 10 ** to * 1.001) ticks.push(Number(value.toPrecision(6)));
      }
    }
    if (ticks.length > most && found.length) break;
    found = ticks;
    if (found.length >= Math.min(5, most)) break;
  }
  return found;
}

/** Charts are drawn when they come near the window, and again after changes. */
const drawings = [];

/**
 * Create a figure. `draw(plot)` returns [traces, layout], or null if there is nothing to draw.
 * Returns {figure, plot, caption, stale()}.
 */
function drawing(title, id, draw, after = () => {}) {
  const heading = make("h3", { id: `${id}-title` }, title);
  const plot = make("div", {
    className: "plot",
    id,
    role: "img",
    "aria-labelledby": `${id}-title`,
    "aria-describedby": `${id}-words`,
  });
  const caption = make("figcaption", { id: `${id}-words` });
  const figure = make("figure", { className: "chart" }, heading, make("div", { className: "stage" }, plot), caption);
  const one = { figure, plot, caption, near: false, isStale: true, drawn: false };
  one.stale = () => {
    one.isStale = true;
    if (one.near) setTimeout(() => one.isStale && one.render());
  };
  one.render = () => {
    one.isStale = false;
    const made = draw(one);
    figure.hidden = made === null;
    if (made === null) return null;
    const drawn = one.drawn ? Plotly.react(plot, ...made, CONFIG) : Plotly.newPlot(plot, ...made, CONFIG);
    if (!one.drawn) one.listen?.();
    one.drawn = true;
    after(one);
    return drawn;
  };
  drawings.push(one);
  return one;
}

/** Start drawing charts near the window. */
function watchDrawings() {
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const one = drawings.find((drawing) => drawing.figure === entry.target);
        one.near = entry.isIntersecting;
        if (one.near && one.isStale) setTimeout(() => one.isStale && one.render());
      }
    },
    { rootMargin: "200px" },
  );
  drawings.forEach((one) => watcher.observe(one.figure));
}

const redrawAll = () => drawings.forEach((one) => one.stale());

/** For printing, draw all charts in light colors and page width. */
function drawForPaper(printing) {
  if (printing === "printing" in document.documentElement.dataset) return;
  if (printing) document.documentElement.dataset.printing = "";
  else delete document.documentElement.dataset.printing;
  drawings.forEach((one) => (printing || one.near ? one.render() : one.stale()));
}
