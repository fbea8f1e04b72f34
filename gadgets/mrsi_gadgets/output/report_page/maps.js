// Maps: colours, panels that share one cursor, and what is shown of them.

const stops = {
  value: ["#000004", "#160b39", "#420a68", "#6a176e", "#932667", "#bc3754", "#dd513a", "#f37819", "#fca50a", "#f6d746", "#fcffa4"],
  spread: ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"],
  signed: ["#c3e0ff", "#5f9fe0", "#2a68ab", "#173a61", "#12161c", "#54290f", "#9a4d17", "#dd8030", "#ffd6a6"],
};
const tables = Object.fromEntries(Object.entries(stops).map(([name, list]) => {
  const colours = list.map((text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16)));
  const table = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (colours.length - 1), low = Math.min(Math.floor(at), colours.length - 2);
    for (let c = 0; c < 3; c++) table[3 * i + c] = colours[low][c] + (colours[low + 1][c] - colours[low][c]) * (at - low);
  }
  return [name, table];
}));

function niceTop(values, q) {
  const sorted = Float32Array.from(values.filter(Number.isFinite)).sort();
  const wanted = quantile(sorted, q);
  if (!(wanted > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((m) => m * power).find((top) => top >= wanted * (1 - 1e-9));
}

// Maps of one echo time, unpacked when they are looked at.
function openView(view) {
  const inside = unpack(view.voxels), size = view.matrix.reduce((a, b) => a * b, 1);
  const rank = new Int32Array(size).fill(-1);
  inside.forEach((place, i) => { rank[place] = i; });
  const known = {
    ...view, inside, rank, size, screen: unpack(view.screen.index), rows: view.screen.index.shape[0],
    columns: view.screen.index.shape[1], byName: new Map(), open: new Map(), spectraOpen: new Map(),
  };
  for (const map of view.maps) {
    const cache = {};
    const length = map.whole ? size : inside.length;
    known.byName.set(map.name, {
      ...map,
      // values of one frame by place, NaN where there are none
      at(what, frame, place) {
        const index = map.whole ? place : rank[place];
        if (index < 0) return NaN;
        if (what === "relative") {
          const value = this.at("value", frame, place);
          return value > 0 ? (100 * this.at("sd", frame, place)) / value : NaN;
        }
        if (!map[what]) return NaN;
        cache[what] ??= unpack(map[what]);
        return cache[what][frame * length + index];
      },
      has: (what) => (what === "relative" ? Boolean(map.sd) : Boolean(map[what])),
    });
  }
  known.spectraOf = (frame) => {
    const packed = view.spectra[String(view.frames[frame])] ?? (frame === 0 ? view.examples : undefined);
    if (!packed) return null;
    if (!known.spectraOpen.has(frame)) {
      known.spectraOpen.clear();
      known.spectraOpen.set(frame, openSpectra(packed, view.axis));
    }
    return known.spectraOpen.get(frame);
  };
  // whether the quality mask shows a voxel of a map, as pictures and console do
  const usual = new Map();
  known.keeps = (map, frame, place) => {
    const codes = known.byName.get("quality");
    const fine = (p) => (Math.round(codes.at("value", frame, p)) & view.quality.codes) === 0;
    if (!fine(place)) return false;
    if (!view.quality.relative_sd || !map.has("sd")) return true;
    const key = `${map.name}/${frame}`;
    if (!usual.has(key)) {
      const known = (p) => fine(p) && Number.isFinite(map.at("sd", frame, p));
      const sizes = Array.from(inside).filter(known).map((p) => Math.abs(map.at("value", frame, p))).filter(Number.isFinite);
      usual.set(key, sizes.length ? quantile(Float64Array.from(sizes).sort(), 0.5) : 0);
    }
    return map.at("sd", frame, place) <= view.quality.relative_sd * usual.get(key);
  };
  known.xyz = (place) => {
    const [, ny, nz] = view.matrix;
    return [Math.floor(place / (ny * nz)), Math.floor(place / nz) % ny, place % nz];
  };
  known.mm = (place) => {
    const [x, y, z] = known.xyz(place);
    const ras = view.affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
    return [-ras[0], -ras[1], ras[2]];
  };
  return known;
}

// Rows and columns of the screen that hold fitted voxels in any slice, with a margin.
function cropOf(view) {
  const [, , nz] = view.matrix;
  let top = view.rows, bottom = -1, left = view.columns, right = -1;
  for (let i = 0; i < view.screen.length; i++) {
    let any = false;
    for (let k = 0; k < nz && !any; k++) any = view.rank[view.screen[i] + k] >= 0;
    if (!any) continue;
    const row = Math.floor(i / view.columns), column = i % view.columns;
    top = Math.min(top, row); bottom = Math.max(bottom, row); left = Math.min(left, column); right = Math.max(right, column);
  }
  if (bottom < 0) return { top: 0, left: 0, rows: view.rows, columns: view.columns };
  const margin = Math.max(1, Math.round(0.04 * Math.max(view.rows, view.columns)));
  top = Math.max(0, top - margin); left = Math.max(0, left - margin);
  return {
    top, left, rows: Math.min(view.rows, bottom + 1 + margin) - top, columns: Math.min(view.columns, right + 1 + margin) - left,
  };
}

function element(kind, options = {}, ...children) {
  const made = document.createElement(kind);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// What stands behind a map's numbers; pure numbers have no unit ("median 12.4 1" reads like two).
const unitOf = (kind, map) => (kind === "relative" ? "%" : map.unit === "1" ? "" : map.unit);

// One map with its colour bar. `state` is the page's; `act` tells it what was done.
function makePanel(view, map, state, act) {
  const crop = view.crop, canvas = element("canvas", { title: map.note }), bar = element("canvas");
  const read = element("div", { className: "read" });
  const low = element("input", { type: "number", step: "any", "aria-label": `${map.title}: lowest colour` });
  const high = element("input", { type: "number", step: "any", "aria-label": `${map.title}: highest colour` });
  const unit = element("span", { className: "unit" });
  const close = element("button", { className: "close", type: "button", text: "×", title: "hide this map", onclick: () => act.hide(map) });
  const box = element("div", { className: "panel" },
    element("div", { className: "name" }, element("span", { text: map.title, title: map.title }), element("span", {}, unit, " ", close)), canvas,
    element("div", { className: "scale" }, low, bar, high), read);
  box.dataset.map = map.name;
  const small = document.createElement("canvas");
  const windows = state.windowsOf(map);
  const what = () => (map.has(state.what) ? state.what : "value");

  const usual = {};
  function windowOf(kind) {
    if (windows[kind]) return windows[kind];
    if (kind === "value") return map.window;
    if (kind === "relative") return [0, 50];
    usual[kind] ??= [0, niceTop(Array.from(view.inside, (place) => map.at(kind, state.frame, place)), 0.95)];
    return usual[kind];
  }

  function draw() {
    const kind = what(), [bottom, top] = windowOf(kind), frame = state.frame;
    const table = kind !== "value" ? tables.spread : bottom < 0 && top > 0 ? tables.signed : tables.value;
    small.width = crop.columns;
    small.height = crop.rows;
    const context = small.getContext("2d"), pixels = context.createImageData(crop.columns, crop.rows);
    for (let row = 0; row < crop.rows; row++) {
      for (let column = 0; column < crop.columns; column++) {
        const place = view.screen[(row + crop.top) * view.columns + column + crop.left] + state.slice;
        const value = map.at(kind, frame, place), at = 4 * (row * crop.columns + column);
        if (!Number.isFinite(value)) continue;
        const good = state.shows(map, place);
        const index = Math.max(0, Math.min(255, Math.round((255 * (value - bottom)) / (top - bottom || 1))));
        for (let c = 0; c < 3; c++) pixels.data[at + c] = table[3 * index + c];
        pixels.data[at + 3] = good ? 255 : 0;
      }
    }
    context.putImageData(pixels, 0, 0);
    const ratio = window.devicePixelRatio || 1, width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const cell = width / crop.columns, height = Math.round(cell * crop.rows * view.screen.aspect);
    canvas.width = width;
    canvas.height = height;
    canvas.style.height = `${height / ratio}px`;
    const paint = canvas.getContext("2d");
    paint.imageSmoothingEnabled = false;
    paint.fillStyle = "#0a0c10";
    paint.fillRect(0, 0, width, height);
    paint.drawImage(small, 0, 0, width, height);
    marks(paint, cell, cell * view.screen.aspect, ratio);
    letters(paint, width, height, ratio);
    bar.width = 256;
    bar.height = 1;
    const strip = bar.getContext("2d"), ramp = strip.createImageData(256, 1);
    for (let i = 0; i < 256; i++) {
      for (let c = 0; c < 3; c++) ramp.data[4 * i + c] = table[3 * i + c];
      ramp.data[4 * i + 3] = 255;
    }
    strip.putImageData(ramp, 0, 0);
    if (document.activeElement !== low) low.value = rounded(bottom);
    if (document.activeElement !== high) high.value = rounded(top);
    unit.textContent = unitOf(kind, map);
    tell();
  }

  function marks(paint, width, height, ratio) {
    const outline = (place, colour, thick) => {
      const at = view.pixelOf(place, state.slice);
      if (!at) return;
      paint.strokeStyle = colour;
      paint.lineWidth = thick * ratio;
      paint.strokeRect((at[1] - crop.left) * width, (at[0] - crop.top) * height, width, height);
    };
    for (const place of state.marked) outline(place, "#ffffff66", 1);
    if (state.hover !== null) outline(state.hover, "#ffffffaa", 1);
    outline(state.voxel, "#000", 4);
    outline(state.voxel, "#fff", 2);
  }

  function letters(paint, width, height, ratio) {
    const [left, right, top, bottom] = view.screen.letters;
    paint.font = `${10 * ratio}px system-ui, sans-serif`;
    paint.fillStyle = "#ffffff99";
    paint.textAlign = "center";
    paint.textBaseline = "middle";
    paint.fillText(left, 8 * ratio, height / 2);
    paint.fillText(right, width - 8 * ratio, height / 2);
    paint.fillText(top, width / 2, 8 * ratio);
    paint.fillText(bottom, width / 2, height - 8 * ratio);
  }

  function tell() {
    const place = state.hover ?? state.voxel, kind = what();
    const value = map.at("value", state.frame, place), sd = map.has("sd") ? map.at("sd", state.frame, place) : NaN;
    if (kind === "relative" || kind === "crlb") read.textContent = `${rounded(map.at(kind, state.frame, place))} ${unitOf(kind, map)}`;
    else read.textContent = Number.isFinite(value) ? rounded(value) + (Number.isFinite(sd) ? ` ± ${rounded(sd, 2)}` : "") : "not fitted";
    if (Number.isFinite(value) && !state.shows(map, place)) read.textContent += " (hidden)";
  }

  function placeAt(event) {
    const frame = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - frame.left) / frame.width) * crop.columns) + crop.left;
    const row = Math.floor(((event.clientY - frame.top) / frame.height) * crop.rows) + crop.top;
    if (row < 0 || column < 0 || row >= view.rows || column >= view.columns) return null;
    return view.screen[row * view.columns + column] + state.slice;
  }

  const change = () => {
    const ends = [Number(low.value), Number(high.value)];
    if (ends.every(Number.isFinite) && ends[0] < ends[1]) windows[what()] = ends;
    draw();
  };
  low.addEventListener("change", change);
  high.addEventListener("change", change);
  bar.addEventListener("dblclick", () => { delete windows[what()]; draw(); });
  bar.title = "double click: the colours as they were";
  canvas.addEventListener("pointermove", (event) => act.hover(placeAt(event)));
  canvas.addEventListener("pointerleave", () => act.hover(null));
  canvas.addEventListener("click", (event) => {
    const place = placeAt(event);
    if (place !== null) act.choose(place);
  });
  return { box, draw, tell, map, what, windowOf };
}
