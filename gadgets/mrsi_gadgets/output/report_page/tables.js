// Tables, histograms and the tree of the provenance. Everything is written as text, never as markup.

function table(heading, rows, numeric = 1) {
  const cell = (kind, text, i) => element(kind, { text, className: i >= numeric ? "number" : "" });
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heading.map((text, i) => cell("th", text, i)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, i) => cell("td", text, i))))));
}

// A table as a file holds it: columns without entries are left out, numbers are rounded and stand to the right.
function regionsTable([heading, ...rows]) {
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));
  const used = heading.map((_, i) => i).filter((i) => rows.some((row) => (row[i] ?? "") !== ""));
  const numeric = new Set(used.filter((i) => rows.every((row) => (row[i] ?? "") === "" || isNumber(row[i]))));
  const shown = (text, i) => (numeric.has(i) && text !== "" ? rounded(Number(text), 4) : heading[i] === "unit" ? text.split(" (")[0] : text);
  const cells = (kind, row, of) => element("tr", {}, ...used.map((i) => element(kind, { text: of(row[i] ?? "", i), className: numeric.has(i) ? "number" : "" })));
  return element("table", {},
    element("thead", {}, cells("th", heading, (text) => text.replaceAll("_", " "))),
    element("tbody", {}, ...rows.map((row) => cells("td", row, shown))));
}

function valuesTable(view, state) {
  const rows = [];
  for (const map of view.byName.values()) {
    if (chosenMap(map.base) !== map) continue;
    const value = map.at("value", state.frame, state.voxel);
    if (!Number.isFinite(value)) continue;
    const shown = (what, unit = "") => {
      const found = map.has(what) ? map.at(what, state.frame, state.voxel) : NaN;
      return Number.isFinite(found) ? rounded(found, 2) + unit : "";
    };
    rows.push([map.title, map.unit, rounded(value), shown("sd"), shown("crlb"), map.sd ? shown("relative", " %") : ""]);
  }
  return table(["map", "unit", "value", "SD", "CRLB", "SD / value"], rows, 2);
}

function mediansTable(view, state) {
  const rows = [];
  for (const map of view.byName.values()) {
    const places = Array.from(view.inside).filter((place) => state.shows(map, place));
    const sorted = (what) => Float64Array.from(places.map((place) => map.at(what, state.frame, place)).filter(Number.isFinite)).sort();
    const values = sorted("value");
    if (!values.length) continue;
    const middle = (what, unit = "") => (map.has(what) ? rounded(quantile(sorted(what), 0.5), 2) + unit : "");
    rows.push([
      map.per ? `${map.title}, ${unitName(map.per)}` : map.title, map.unit, rounded(quantile(values, 0.5)),
      `${rounded(quantile(values, 0.25))} to ${rounded(quantile(values, 0.75))}`, middle("sd"), middle("crlb"),
      map.sd ? middle("relative", " %") : "", String(values.length),
    ]);
  }
  return table(["map", "unit", "median", "middle half", "median SD", "median CRLB", "SD / value", "voxels"], rows, 2);
}

// The finite values of a panel's map in rising order; the same until frame, mask or what is shown change.
function sortedValues(panel, view, state) {
  const key = `${panel.what()}/${state.frame}/${state.masked}/${state.flagged}`;
  if (panel.sortedFor !== key) {
    const values = [];
    for (const place of view.inside) {
      const value = panel.map.at(panel.what(), state.frame, place);
      if (Number.isFinite(value) && state.shows(panel.map, place)) values.push(value);
    }
    panel.sorted = Float64Array.from(values).sort();
    panel.sortedFor = key;
  }
  return panel.sorted;
}

function histogram(panel, view, state) {
  const canvas = element("canvas"), { map } = panel, kind = panel.what();
  const sorted = sortedValues(panel, view, state), here = map.at(kind, state.frame, state.voxel);
  const unit = unitOf(kind, map);
  const label = element("p", {}, element("b", { text: map.title }), element("span", { className: "faint", text: `median ${rounded(quantile(sorted, 0.5))} ${unit}` }));
  const box = element("div", {}, label, canvas);
  box.draw = () => {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    if (!sorted.length) return;
    const [bottom, top] = panel.windowOf(kind);
    const low = Math.min(bottom, quantile(sorted, 0.005)), high = Math.max(top, quantile(sorted, 0.995)), span = high - low || 1;
    const bins = new Float64Array(48);
    for (const value of sorted) bins[Math.max(0, Math.min(47, Math.floor((48 * (value - low)) / span)))]++;
    const most = Math.max(...bins), floor = height - 16, each = width / bins.length;
    paint.fillStyle = styleOf("accent");
    paint.globalAlpha = 0.75;
    bins.forEach((count, i) => paint.fillRect(i * each + 0.5, floor - (count / most) * (floor - 4), each - 1, (count / most) * (floor - 4)));
    paint.globalAlpha = 1;
    const mark = (value, colour, dash) => {
      const x = ((value - low) / span) * width;
      if (!Number.isFinite(x) || x < 0 || x > width) return;
      paint.strokeStyle = colour;
      paint.setLineDash(dash);
      paint.lineWidth = 1.5;
      paint.beginPath();
      paint.moveTo(x, 0);
      paint.lineTo(x, floor);
      paint.stroke();
    };
    mark(quantile(sorted, 0.5), styleOf("faint"), [4, 3]);
    mark(here, styleOf("text"), []);
    paint.fillStyle = styleOf("faint");
    paint.font = "11px system-ui, sans-serif";
    paint.textAlign = "left";
    paint.fillText(rounded(low), 0, height - 3);
    paint.textAlign = "right";
    paint.fillText(rounded(high), width, height - 3);
  };
  return box;
}

function tree(name, value, open = false) {
  if (value === null || typeof value !== "object") {
    return element("div", { className: "leaf" }, element("span", { text: name }), element("span", { text: value === null ? "none" : String(value) }));
  }
  const entries = Array.isArray(value) ? value.map((item, i) => [String(i + 1), item]) : Object.entries(value);
  if (Array.isArray(value) && value.every((item) => item === null || typeof item !== "object") && value.join(", ").length < 160) {
    return tree(name, value.join(", "));
  }
  const children = () => entries.map(([key, item]) => tree(key, item));
  const node = element("details", {}, element("summary", {}, element("b", { text: name }), ` (${entries.length})`));
  let filled = false;
  const fill = () => { if (node.open && !filled) { filled = true; node.append(...children()); } };
  node.addEventListener("toggle", fill);
  if (open) { node.open = true; fill(); }
  return node;
}

function checklistTable(rows, unknown) {
  let before = "";
  return element("table", {},
    element("thead", {}, element("tr", {}, ...["", "item", "this result"].map((text) => element("th", { text })))),
    element("tbody", {}, ...rows.map((row) => {
      const group = row.group === before ? "" : row.group;
      before = row.group;
      return element("tr", {}, element("td", { className: "group", text: group }), element("td", { text: row.item }),
        element("td", { className: row.value === null ? "none" : "", text: row.value ?? unknown }));
    })));
}
