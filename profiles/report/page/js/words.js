// Numbers as text, as in profiles/formatting.py.

const MISSING = "–";
const FORMATS = {
  "": "PyTorch",
  onnx: "ONNX",
  openvino: "OpenVINO",
  tensorrt: "TensorRT",
  "tensorrt-rtx": "TensorRT-RTX",
};

const known = (value) => typeof value === "number" && Number.isFinite(value);
const positive = (value) => (known(value) && value >= 1e-12 ? value : null); // smaller ones are no measurements

/** Three significant digits, without an exponent unless tiny. */
function three(value) {
  if (!known(value)) return "";
  if (Math.abs(value) >= 999.5) return value.toFixed(0);
  // As Python formats it: an exponent of two digits below 0.0001.
  const tiny = value !== 0 && Math.abs(value) < 1e-4;
  return tiny ? value.toExponential(2).replace(/e-(\d)$/, "e-0$1") : value.toPrecision(3);
}

/** A share in [0, 1] as a percentage. */
const share = (value, digits = 2) => (known(value) ? `${(100 * value).toFixed(digits)} %` : "");

/** A count: 180 k, 23.5 M. */
function count(value) {
  if (!known(value)) return "";
  for (const [size, unit] of [
    [1e9, " G"],
    [1e6, " M"],
    [1e3, " k"],
  ]) {
    if (Math.abs(value) >= 0.9995 * size) return three(value / size) + unit;
  }
  return value.toFixed(0);
}

const bytes = (value) => (positive(value) === null ? "" : `${count(value)}B`);

/** A factor: 4.2×. */
function times(value) {
  if (!known(value)) return "";
  const text = value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(value < 10 ? 2 : 3)));
  return `${text}×`;
}

/** A duration in a suitable unit. */
function duration(value) {
  if (!known(value)) return "";
  if (value < 100) return `${three(value)} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 120) return `${(value / 60).toFixed(1)} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** An integer with thousands separators. */
const whole = (value) => value.toLocaleString("en");

/** `1 model`, `12 models`. */
const models = (n) => `${whole(n)} model${n === 1 ? "" : "s"}`;

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** `a, b and c`. */
const listed = (items) =>
  items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`;

const formatOf = (row) => FORMATS[row.format ?? ""] ?? row.format;

/** A row's name, with format and precision of an exported file. */
const nameOf = (row) => (row.format ? `${row.name} · ${formatOf(row)} ${row.precision ?? ""}`.trim() : row.name);

/** `80.50 % ± 0.40`: mean over the seeds and sample standard deviation. */
function scoreOf(row, digits = 2) {
  if (!known(row.score)) return "";
  return share(row.score, digits) + (known(row.spread) ? ` ± ${(100 * row.spread).toFixed(digits)}` : "");
}

/** Escape text for Plotly, which interprets some tags. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** Shorten a long name in the middle. */
function shorter(text, most) {
  const signs = Array.from(String(text));
  if (signs.length <= most) return signs.join("");
  const half = Math.floor((most - 1) / 2);
  return `${signs.slice(0, most - 1 - half).join("")}…${signs.slice(-half).join("")}`;
}
