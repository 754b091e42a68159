// The budget form, and the recommended model as text that follows every change.

/** Build a limit field for each known cost, and the list of settings. */
function startBudget() {
  by("limits").replaceChildren(...charts.map(({ cost }) => limitField(cost)));
  const place = by("place");
  place.append(...places.map((one, i) => make("option", { value: i, selected: i === state.place }, one.label)));
  by("place-field").hidden = !places.length;
  const percentile = by("percentile");
  const some = Object.keys(PERCENTILES).filter((key) =>
    rows.some((row) => Object.values(row.times ?? {}).some((time) => known(time[key]))),
  );
  percentile.append(...some.map((key) => make("option", { value: key }, PERCENTILES[key])));
  by("percentile-field").hidden = some.length < 2;
  by("only-field").hidden = rows.length < 2;
  place.addEventListener("change", () => {
    state.place = Number(place.value);
    refresh();
  });
  percentile.addEventListener("change", () => {
    state.percentile = percentile.value;
    refresh();
  });
  by("only").addEventListener("change", (event) => {
    state.only = event.target.checked;
    refresh();
  });
  const form = by("budget");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(resetBudget));
  listeners.push(tellChoice);
}

function limitField(cost) {
  const { name, unit } = COSTS[cost];
  const id = `limit-${cost}`;
  const input = make("input", { id, type: "number", min: "0", step: "any", inputMode: "decimal", placeholder: "any" });
  if (initialLimits[cost] !== null) input.defaultValue = String(initialLimits[cost]);
  input.addEventListener(
    "input",
    calmly(() => {
      state.limits[cost] = positive(input.valueAsNumber);
      refresh();
    }, 150),
  );
  return make(
    "p",
    {},
    make("label", { htmlFor: id }, capital(name)),
    make("span", { className: "field" }, input, make("span", { className: "unit" }, unit)),
  );
}

function resetBudget() {
  Object.assign(state, { limits: { ...initialLimits }, place: page.setting, percentile: "p50", only: false });
  if (page.setting !== null) by("place").value = String(page.setting);
  refresh();
}

/** Whether limits and setting are those of the command line. */
const asGiven = () =>
  state.place === page.setting &&
  state.percentile === "p50" &&
  !state.only &&
  Object.keys(COSTS).every((cost) => state.limits[cost] === initialLimits[cost]);

function tellChoice() {
  const { pick } = view.choice;
  const name = by("pick-name");
  name.hidden = pick === null;
  by("pick-why").textContent = asGiven() && page.summary ? page.summary : why();
  by("pick-tiles").hidden = pick === null;
  const left = leftOut();
  by("pick-left").textContent = left;
  by("pick-left").hidden = !left;
  by("pick").dataset.row = pick ?? "";
  if (pick === null) return;
  const row = rows[pick];
  const marks = row.role === "teacher" ? [make("span", { className: "mark teacher" }, "teacher, not distilled")] : [];
  name.replaceChildren(
    make("span", { className: "eyebrow" }, "Ship"),
    make("bdi", {}, row.name),
    ...form(row),
    ...marks,
  );
  by("pick-tiles").replaceChildren(
    ...tiles(row).map(([value, what]) =>
      make("li", {}, make("strong", {}, ...withSmall(value)), make("span", {}, what)),
    ),
  );
}

/** Format and precision as tags; none for a PyTorch network. */
const form = (row) =>
  (row.format ? [`${formatOf(row)} ${row.precision ?? ""}`.trim()] : []).map((text) =>
    make("span", { className: "mark" }, text),
  );

/** A number, with its spread in small type. */
function withSmall(text) {
  const [number, spread] = text.split(" ± ");
  const unbroken = number.replace(" %", "\u00a0%");
  return spread ? [unbroken, make("small", {}, ` ± ${spread}`)] : [unbroken];
}

/** Key figures of the choice: [number, label]. */
function tiles(row) {
  const teacher = known(row.teacher) ? rows[row.teacher] : null;
  const found = [
    [scoreOf(row, 1), page.metric_name],
    [share(row.retained, 1), "of its teacher's"],
  ];
  for (const cost of Object.keys(COSTS)) {
    const price = COSTS[cost].of(row, state);
    const before = teacher && COSTS[cost].of(teacher, state);
    const ratio = price && before && before / price >= 1.05 ? `, ${times(before / price)} less than its teacher's` : "";
    const what = {
      latency: `${PERCENTILES[state.percentile]} latency`,
      flops: "an image",
      size: "the file",
      energy: "an image",
    }[cost];
    found.push([priced(row, cost), what + ratio]);
  }
  return found.filter(([value]) => value);
}

/** The limits as text: `2 ms and 1 MB`. */
const limitsInWords = () =>
  listed(
    Object.entries(state.limits)
      .filter(([, limit]) => limit !== null)
      .map(([cost, limit]) => `${limit} ${COSTS[cost].unit}`),
  );

/** Why this model was chosen, in the order of the rule. */
function why() {
  const { pick, held, able } = view.choice;
  const limits = limitsInWords();
  if (!able.length)
    return state.only && rows.length ? "None of the models shown was evaluated." : "No model was evaluated.";
  if (pick === null) return nothing(limits);
  const row = rows[pick];
  const top = held.reduce((best, i) => (rows[i].score > rows[best].score ? i : best), pick);
  const within = limits ? ` within ${limits}` : "";
  const text =
    held.length === 1
      ? `${nameOf(row)} is the only model${within || " there is"}.`
      : top === pick
        ? `${nameOf(row)} has the highest ${page.metric_name}, ${scoreOf(row, 1)}, of the ${models(held.length)}${within}.`
        : `Of the ${models(held.length)}${within} ${nameOf(rows[top])} is the best (${share(rows[top].score, 1)}); ${nameOf(row)} is ` +
          `${(100 * (rows[top].score - row.score)).toFixed(1)} points behind it, at most ${three(100 * page.tolerance)}, and costs less.`;
  return [text, nextTo(pick, held), doubts(row)].filter(Boolean).join(" ");
}

/** The runner-up, and whether the difference exceeds the spread of the seeds. */
function nextTo(pick, held) {
  const others = held.filter((i) => i !== pick && rows[i].score <= rows[pick].score);
  if (!others.length) return "";
  const next = others.reduce((best, i) => (rows[i].score > rows[best].score ? i : best));
  const gap = rows[pick].score - rows[next].score;
  const noise = Math.max(rows[pick].spread ?? 0, rows[next].spread ?? 0);
  const told = gap < noise ? ", within the spread of the seeds" : "";
  return `Next is ${nameOf(rows[next])}, ${gap ? `${(100 * gap).toFixed(1)} points lower` : "just as good"}${told}.`;
}

/** Caveats of the chosen model. */
function doubts(row) {
  const time = timesOf(row, state);
  const busy = time?.load_warning ? `Caution: ${time.load_warning}${/[.!?]$/.test(time.load_warning) ? "" : "."}` : "";
  return [busy, time?.valid === false ? "LoadGen calls this latency invalid." : ""].filter(Boolean).join(" ");
}

/** No model is within the limits: which values would be needed. */
function nothing(limits) {
  const known = Object.keys(COSTS)
    .filter((cost) => state.limits[cost] !== null)
    .map((cost) => [cost, least(view.choice.able, cost, state)]);
  const nearest = known
    .filter(([, i]) => i !== null)
    .map(([cost, i]) => `the ${COSTS[cost].least} is ${nameOf(rows[i])} with ${priced(rows[i], cost)}`);
  return `No model is within the budget of ${limits}${nearest.length ? `; ${listed(nearest)}` : ""}.`;
}

/** How many models each limit excludes. */
function leftOut() {
  const { held, able, over, unknown } = view.choice;
  if (held.length === able.length) return "";
  const parts = Object.keys(COSTS).flatMap((cost) => {
    const { name, unit } = COSTS[cost];
    const found = [];
    if (over[cost]) found.push(`${whole(over[cost])} by ${name} above ${state.limits[cost]} ${unit}`);
    if (unknown[cost])
      found.push(
        `${whole(unknown[cost])} without a measured ${name}${cost === "latency" || cost === "energy" ? " here" : ""}`,
      );
    return found;
  });
  const several = parts.length > 1 ? " One may be counted more than once." : "";
  return `${whole(held.length)} of ${models(able.length)} are within the budget. Excluded: ${parts.join("; ")}.${several}`;
}
