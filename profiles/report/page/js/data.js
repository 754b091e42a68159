// The data of the page, read-only. A row is one model in one format and precision.

/** Unpack a column (html.py). Objects have no prototype, so that any key is possible. */
function unpack(column, length) {
  if (column === null) return Array(length).fill(null);
  if (Array.isArray(column)) return column;
  if (column.words) return column.index.map((i) => (i < 0 ? null : column.words[i]));
  const at = column.at ?? Array.from({ length }, (_, i) => i);
  const objects = at.map(() => Object.create(null));
  for (const [key, inner] of Object.entries(column.of)) {
    unpack(inner, at.length).forEach((value, i) => {
      if (value !== null) objects[i][key] = value;
    });
  }
  const found = Array(length).fill(null);
  at.forEach((place, i) => {
    found[place] = objects[i];
  });
  return found;
}

const page = JSON.parse(document.getElementById("page-data").textContent);
const rows = unpack(page.rows.column, page.rows.length);

/** The element with that id. */
const by = (id) => document.getElementById(id);

/**
 * Create an element with properties, attributes (names with a dash) and children. Text is never
 * parsed as markup.
 */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.includes("-") || name === "role" || name === "for" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Debounce: call once `wait` ms have passed without another call. */
function calmly(action, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
}
