// Start: the table first, then the first chart; the others when they come near.

/** Set a performance mark after the browser has painted. */
const reached = (name) => requestAnimationFrame(() => setTimeout(() => performance.mark(name)));

/** Copy the commands, or select them if the browser does not allow copying. */
async function copyCommands() {
  const told = by("copied");
  try {
    await navigator.clipboard.writeText(by("commands").textContent);
    told.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(by("commands"));
    told.textContent = "Marked; copy it with the keyboard.";
  }
}

function start() {
  by("copy")?.addEventListener("click", copyCommands);
  if (rows.length) {
    startTable();
    startFilters();
    startBudget();
    by("charts").append(...charts.map((chart) => chart.figure));
    by("tradeoffs").hidden = !charts.length;
    refresh();
    tellPinned();
    reached("compress-table");
    charts[0]?.render();
    reached("compress-chart");
  }
  startCourses();
  startClasses();
  watchDrawings();
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", redrawAll);
  addEventListener("resize", calmly(redrawAll, 150));
  addEventListener("beforeprint", () => drawForPaper(true));
  addEventListener("afterprint", () => drawForPaper(false));
  matchMedia("print").addEventListener("change", (event) => drawForPaper(event.matches));
  addEventListener("scroll", () => showTip(null, null), { passive: true });
}

start();
