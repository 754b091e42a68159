// Details of a row, shown below it in the table.

const RUN_NAMES = {
  seed: "Seed",
  steps: "Steps",
  wall_s: "Wall clock",
  budget_s: "Budget",
  ood: "Images",
  batch_size: "Batch",
  command: "Command",
};

/** The known facts of a row: [name, text]. */
function factsOf(row, index) {
  const time = timesOf(row, state) ?? {};
  const verified = row.verified ?? null;
  const optimal = (view.optimal.get(index) ?? []).map((cost) => COSTS[cost].name);
  return [
    ["Each seed", row.scores?.length > 1 ? row.scores.map((score) => share(score)).join(", ") : ""],
    ...Object.entries(row.metrics ?? {}).map(([name, value]) => [
      capital(name.replaceAll("_", " ")),
      metricText(value),
    ]),
    ["Pareto-optimal by", optimal.length ? `${listed(optimal)}, of those shown` : ""],
    ["GMAC", positive(row.macs) === null ? "" : three(row.macs / 1e9)],
    ["Parameters", count(row.params)],
    ["Activations", count(row.activations)],
    ["Measured on", settingOf(row, state)?.label ?? ""],
    [
      "p50, p90, p99",
      [time.p50, time.p90, time.p99].some(known)
        ? `${[time.p50, time.p90, time.p99].map((ms) => three(ms) || MISSING).join(", ")} ms`
        : "",
    ],
    [
      "Mean",
      known(time.mean)
        ? `${three(time.mean)} ms${known(time.std) ? ` ± ${three(time.std)}` : ""}${known(time.runs) ? `, ${whole(time.runs)} runs` : ""}`
        : "",
    ],
    [
      "First, loading",
      known(time.first_call_ms) || known(time.load_ms)
        ? `${[time.first_call_ms, time.load_ms].map((ms) => three(ms) || MISSING).join(", ")} ms`
        : "",
    ],
    [
      "Copy in, compute, copy out",
      known(time.compute_ms)
        ? `${[time.copy_in_ms, time.compute_ms, time.copy_out_ms].map((ms) => three(ms) || MISSING).join(", ")} ms`
        : "",
    ],
    ["Images/s", three(time.ips)],
    ["Peak memory", bytes(time.peak_bytes)],
    ["Energy", known(time.energy_mj) ? `${three(time.energy_mj)} mJ an image` : ""],
    ["Caution", time.load_warning ?? ""],
    ["LoadGen", time.valid === true ? "valid" : time.valid === false ? "invalid" : ""],
    ["Verified", verified ? verifiedText(verified) : ""],
    ...Object.entries(row.run ?? {}).map(([key, value]) => [
      RUN_NAMES[key] ?? capital(key.replaceAll("_", " ")),
      runText(key, value),
    ]),
    ["Source", typeof row.source === "string" ? row.source : ""],
  ].filter(([, text]) => text !== "" && text !== undefined);
}

const metricText = (value) => (known(value) ? (value >= 0 && value <= 1 ? share(value) : three(value)) : "");

function runText(key, value) {
  if (key === "wall_s" || key === "budget_s") return duration(value);
  return ["string", "number", "boolean"].includes(typeof value) ? String(value) : "";
}

function verifiedText(verified) {
  if (verified.not_run) return `no: ${verified.not_run}`;
  const runtime = {
    onnxruntime: "ONNX Runtime",
    openvino: "OpenVINO",
    tensorrt: "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
  };
  const parts = [
    known(verified.images) ? `${whole(verified.images)} images` : "",
    verified.in ? `in ${runtime[verified.in] ?? verified.in}` : "",
    known(verified.top1_agreement) ? `${share(verified.top1_agreement)} same answers` : "",
    known(verified.miou) ? `mIoU of both ${share(verified.miou)}` : "",
    known(verified.max_abs) ? `largest difference ${verified.max_abs.toExponential(1)}` : "",
  ];
  return parts.filter(Boolean).join(", ");
}

/** The table row with the details. */
function detailsRow(index, width) {
  const facts = factsOf(rows[index], index).flatMap(([name, text]) => [
    make("dt", {}, name),
    make("dd", {}, make("bdi", {}, text)),
  ]);
  return make("tr", { className: "details", id: "details" }, make("td", { colSpan: width }, make("dl", {}, ...facts)));
}
