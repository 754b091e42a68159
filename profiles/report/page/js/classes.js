// Chart of IoU per class for the best models.

const MOST_CLASSES = 40; // drawn; the table has them all
const MOST_BARS = 5; // models that are drawn

function startClasses() {
  if (!page.classes?.rows?.length || !page.classes.names.length) return;
  const { names, rows: all } = page.classes;
  const models = all.slice(0, MOST_BARS);
  const weakness = names.map((_, i) => models.reduce((sum, model) => sum + (model.values[i] ?? 0), 0));
  const weakest = names
    .map((_, i) => i)
    .sort((a, b) => weakness[a] - weakness[b] || a - b)
    .slice(0, MOST_CLASSES);
  const drawn = names.length > MOST_CLASSES ? weakest : names.map((_, i) => i);
  const one = drawing("Intersection over union of each class", "chart-classes", () =>
    drawClasses(models, names, drawn, one),
  );
  one.figure.classList.add("wide");
  one.plot.style.minHeight = `${classesHeight(drawn, models)}px`; // nothing moves when it is drawn
  one.caption.textContent = [
    `${whole(drawn.length)} classes, ${whole(models.length)} model${models.length === 1 ? "" : "s"}.`,
    names.length > drawn.length ? `The weakest of ${whole(names.length)}; the table has them all.` : "",
    models.map((model) => extremes(model, names)).join(" "),
  ]
    .filter(Boolean)
    .join(" ");
  one.listen = () =>
    hoverLines(one, (point) => [names[drawn[point.y]], `${models[point.curveNumber].name}: ${share(point.x, 1)}`]);
  const cells = names.map((name, i) => [name, ...all.map((model) => share(model.values[i], 1))]);
  by("class-chart").append(
    one.figure,
    inNumbers("The same in numbers", ["Class", ...all.map((model) => model.name)], cells),
  );
  legendOf(
    one,
    models.map((model) => model.name),
    false,
  );
}

/** A model's best and worst class as text. */
function extremes(model, names) {
  const found = names
    .map((name, i) => [model.values[i], name])
    .filter(([value]) => known(value))
    .sort((a, b) => a[0] - b[0]);
  if (!found.length) return "";
  const [[low, worst], [high, best]] = [found[0], found[found.length - 1]];
  return `${model.name}: from ${share(low, 1)} (${worst}) to ${share(high, 1)} (${best}).`;
}

const classesHeight = (drawn, models) => 50 + drawn.length * Math.max(22, 8 * models.length + 8);

function drawClasses(models, names, drawn, one) {
  const places = drawn.map((_, i) => i);
  const traces = models.map((model, place) => ({
    type: "bar",
    orientation: "h",
    x: drawn.map((i) => model.values[i]),
    y: places,
    hoverinfo: "none",
    marker: { color: color(`series-${(place % 8) + 1}`) },
  }));
  const narrow = one.plot.clientWidth < 520;
  const ticktext = drawn.map((i) => plain(shorter(names[i], narrow ? 14 : 30)));
  const yaxis = {
    tickmode: "array",
    tickvals: places,
    ticktext,
    range: [drawn.length - 0.5, -0.5],
    fixedrange: true,
    automargin: true,
  };
  const xaxis = { range: [0, 1], tickformat: "~%", fixedrange: true, side: "top" };
  return [
    traces,
    layoutOf(classesHeight(drawn, models), {
      xaxis,
      yaxis,
      bargap: 0.25,
      dragmode: false,
      margin: { l: 60, r: 14, t: 34, b: 10 },
    }),
  ];
}
