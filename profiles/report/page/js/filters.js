// Filters: checkboxes per facet and the search text; colors of the charts and their legend.

/** Build the checkboxes of every facet with more than one value. */
function buildFacets() {
  const several = Object.keys(FACETS).filter((name) => facetValues[name].length > 1);
  by("facets").replaceChildren(...several.map(facetGroup));
  by("filters").hidden = false;
  const chooser = by("color");
  chooser.replaceChildren(
    ...several.map((name) => make("option", { value: name, selected: name === state.color }, FACETS[name].name)),
  );
  by("color-field").hidden = several.length < 2;
  chooser.addEventListener("change", () => {
    state.color = chooser.value;
    drawLegend();
    charts.forEach((chart) => chart.stale());
  });
}

function facetGroup(name) {
  const boxes = facetValues[name].map((value) => {
    const box = make("input", { type: "checkbox", checked: true, value });
    box.addEventListener("change", () => {
      if (box.checked) state.off[name].delete(value);
      else state.off[name].add(value);
      filtered();
    });
    return make("label", {}, box, make("bdi", {}, value || MISSING));
  });
  const group = make("fieldset", { "data-facet": name }, make("legend", {}, FACETS[name].name));
  const values = make("div", { className: "values" }, ...boxes);
  if (boxes.length > 5) {
    for (const [words, on] of [
      ["all", true],
      ["none", false],
    ]) {
      const button = make("button", { type: "button", className: "plain small" }, words);
      button.addEventListener("click", () => {
        state.off[name] = new Set(on ? [] : facetValues[name]);
        tick();
        filtered();
      });
      values.append(button);
    }
  }
  group.append(values);
  return group;
}

/** Legend of the charts. Further values share one symbol. */
function drawLegend() {
  const values = facetValues[state.color];
  const items = values.slice(0, SIGNS.length).map((value, place) => [lookOf(place), value || MISSING]);
  if (values.length > SIGNS.length) items.push([lookOf(-1), `${whole(values.length - SIGNS.length)} more`]);
  if (rows.some((row) => row.role === "teacher")) items.push([{ sign: "★", variable: "--soft" }, "a teacher"]);
  items.push([{ sign: "◯", variable: "--good" }, "the one to deploy"]);
  by("legend").replaceChildren(
    ...items.map(([look, text]) => {
      const sign = make("span", { className: "sign", "aria-hidden": "true" }, look.sign);
      sign.style.color = `var(${look.variable})`;
      return make("li", {}, sign, make("bdi", {}, text));
    }),
  );
}

/** Set the checkboxes from `state`. */
function tick() {
  for (const group of document.querySelectorAll("#facets fieldset")) {
    for (const box of group.querySelectorAll("input")) box.checked = !state.off[group.dataset.facet].has(box.value);
  }
}

function filtered() {
  state.first = 0;
  refresh();
}

function clearFilters() {
  Object.values(state.off).forEach((off) => off.clear());
  state.text = by("find").value = "";
  tick();
  filtered();
}

/** Number of shown rows. */
function tellShown() {
  const some = view.shown.length < rows.length;
  by("shown").textContent = some
    ? `${whole(view.shown.length)} of ${models(rows.length)}, as filtered`
    : rows.length === 1
      ? "1 model"
      : `All ${models(rows.length)}`;
  by("unfilter").disabled = unfiltered();
}

function startFilters() {
  buildFacets();
  drawLegend();
  if (matchMedia("(max-width: 640px)").matches) by("filters").open = false;
  const find = by("find");
  find.addEventListener(
    "input",
    calmly(() => {
      state.text = find.value;
      filtered();
    }, 120),
  );
  const log = by("log");
  log.checked = state.log = charts.some((chart) => isWide(chart.cost));
  log.addEventListener("change", () => {
    state.log = log.checked;
    charts.forEach((chart) => chart.stale());
  });
  by("unzoom").addEventListener("click", () => charts.forEach((chart) => chart.stale()));
  by("unfilter").addEventListener("click", clearFilters);
  listeners.push(tellShown, tellCharts);
}

/** Whether a cost spans more than a decade. */
function isWide(cost) {
  const [low, high] = extent(rows.map((row) => COSTS[cost].of(row, state)).filter((value) => value !== null));
  return high > 10 * low;
}
