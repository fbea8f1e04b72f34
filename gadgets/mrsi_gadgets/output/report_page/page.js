// The page: its state, its controls, and who is told when something changes.

const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);
const views = content.views.map(openView);
for (const view of views) {
  view.crop = cropOf(view);
  const pixel = new Int32Array(view.size).fill(-1);
  view.screen.forEach((place, i) => { pixel[place] = i; });
  // row and column of a voxel on the screen, null where another slice holds it
  view.pixelOf = (place, slice) => {
    const i = place - slice >= 0 && place % view.matrix[2] === slice ? pixel[place - slice] : -1;
    return i < 0 ? null : [Math.floor(i / view.columns), i % view.columns];
  };
  view.screen.letters = content.views[views.indexOf(view)].screen.letters;
  view.screen.aspect = content.views[views.indexOf(view)].screen.aspect;
}

const state = {
  held: null, view: views[0], frame: 0, slice: views[0].slice, voxel: views[0].first, hover: null, what: "value", per: "", masked: true, flagged: false,
  names: [], parts: new Set(), broadening: 0, range: null, lift: 1, marked: [],
  show: { data: true, fit: true, nuisance: true, residual: true },
  windows: new Map(),
  // ends of the colours that were set by hand, by what is shown
  windowsOf(map) {
    if (!state.windows.has(map.name)) state.windows.set(map.name, {});
    return state.windows.get(map.name);
  },
  // whether a voxel of a map is shown: quality mask and flags hide voxels of molecules, not those of what tells of quality
  shows(map, place) {
    if (map.whole || !map.judged) return true;
    if (state.flagged && isFlagged(place)) return false;
    return !state.masked || !state.view.quality || state.view.keeps(map, state.frame, place);
  },
};
let panels = [], waiting = 0;

const act = {
  hover(place) {
    if (place === state.hover) return;
    state.hover = place !== null && state.view.rank[place] < 0 && !panels.some((panel) => panel.map.whole) ? null : place;
    panels.forEach((panel) => panel.draw());
  },
  choose(place) {
    state.voxel = place;
    state.hover = null;
    const slice = place % state.view.matrix[2];
    if (slice !== state.slice) { state.slice = slice; makeControls(); }
    showVoxel();
  },
  hide(map) {
    state.names = state.names.filter((name) => name !== map.name);
    makePanels();
  },
  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      const at = state.view.pixelOf(state.voxel, state.slice);
      if (!at) return false;
      const [row, column] = [at[0] + step[0], at[1] + step[1]];
      if (row < 0 || column < 0 || row >= state.view.rows || column >= state.view.columns) return true;
      act.choose(state.view.screen[row * state.view.columns + column] + state.slice);
      return true;
    }
    if (event.key === "PageUp" || event.key === "PageDown") return changeSlice(state.slice + (event.key === "PageUp" ? 1 : -1));
    return false;
  },
};

function changeSlice(slice) {
  if (slice < 0 || slice >= state.view.matrix[2]) return false;
  state.voxel += slice - state.slice;
  state.slice = slice;
  makeControls();
  showVoxel();
  return true;
}

const spectrum = makeSpectrum(byId("spectrum"), state, act);

// Which map a base name stands for in the chosen unit: NAME_mM, NAME_per_water, NAME_per_tCr or NAME itself.
function chosenMap(base) {
  const { byName } = state.view;
  const all = [...byName.values()].filter((map) => map.base === base);
  return all.find((map) => map.per === state.per) ?? byName.get(base) ?? all[0];
}

function bases() {
  return [...new Set([...state.view.byName.values()].map((map) => map.base))];
}

function firstNames() {
  const known = bases(), shown = content.shown.map((name) => state.view.byName.get(name)?.base);
  const lines = state.view.maps.filter((map) => map.unknown).map((map) => map.base);
  const more = ["quality", ...flags, "model_score", "residual", "snr", "linewidth", "B0"].filter((name) => known.includes(name));
  return [...new Set([...shown, ...lines])].filter((name) => known.includes(name)).slice(0, 9).concat(more);
}

// Maps that flag a voxel with a 1: the fit, or a learned model, does not describe it.
const flags = ["fit_flag", "outside_model"];

function isFlagged(place) {
  return flags.some((name) => state.view.byName.get(name)?.at("value", state.frame, place) > 0.5);
}

// How the button of a unit is called.
function unitName(per) {
  const known = { "": "amount", mM: "mM", molal: "molal" };
  return known[per] ?? `per ${per}`;
}

function segments(label, choices, current, choose) {
  const box = element("div", { className: "segments", role: "group", "aria-label": label });
  for (const [value, text, enabled] of choices) {
    box.append(element("button", { type: "button", text, disabled: enabled === false, "aria-pressed": String(value === current), onclick: () => choose(value), "data-choice": value }));
  }
  return box;
}

function slider(label, count, current, text, choose) {
  const output = element("span", { text: text(current) });
  return element("label", {}, label, element("input", { type: "range", min: 0, max: count - 1, value: current, "aria-label": label,
    oninput: (event) => { output.textContent = text(Number(event.target.value)); choose(Number(event.target.value)); } }), output);
}

function makeControls() {
  const { view } = state, maps = [...view.byName.values()], bar = byId("controls");
  const any = (what) => maps.some((map) => map.has(what));
  const open = bar.querySelector(".picker")?.open ?? false;
  const parts = [segments("what the maps show", [["value", "value"], ["sd", "SD", any("sd")], ["crlb", "CRLB", any("crlb")], ["relative", "SD %", any("sd")]], state.what,
    (what) => { state.what = what; makeControls(); redraw(); })];
  const references = [...new Set(maps.map((map) => map.per))];
  if (references.length > 1) {
    parts.push(segments("reference", references.map((per) => [per, unitName(per)]), state.per, (per) => { state.per = per; makeControls(); makePanels(); }));
  }
  if (views.length > 1) {
    parts.push(element("label", {}, "echo", element("select", { onchange: (event) => changeView(Number(event.target.value)) },
      ...views.map((one, i) => element("option", { value: i, text: one.name, selected: one === view })))));
  }
  if (view.matrix[2] > 1) parts.push(slider("slice", view.matrix[2], state.slice, (k) => `${k + 1} / ${view.matrix[2]}`, changeSlice));
  if (view.frames.length > 1) {
    parts.push(slider("frame", view.frames.length, state.frame, (k) => `${view.frames[k] + 1} / ${view.frames[view.frames.length - 1] + 1}`, (frame) => { state.frame = frame; redraw(); showVoxel(); }));
  }
  const toggle = (name, text, title) => element("label", { title }, element("input", { type: "checkbox", id: name, checked: state[name],
    onchange: (event) => { state[name] = event.target.checked; redraw(); } }), text);
  if (view.quality) parts.push(toggle("masked", "quality mask", `shown: ${view.quality.rule}`));
  if (flags.some((name) => view.byName.has(name))) parts.push(toggle("flagged", "hide flagged", "voxels that the fit or a learned model does not describe"));
  const list = element("div");
  for (const base of bases()) {
    list.append(element("label", {}, element("input", { type: "checkbox", checked: state.names.includes(base), onchange: (event) => {
      state.names = event.target.checked ? [...state.names, base] : state.names.filter((name) => name !== base);
      makePanels();
    } }), chosenMap(base)?.title ?? base));
  }
  const picker = element("details", { className: "picker" }, element("summary", { text: "choose maps" }), list);
  picker.open = open;
  parts.push(picker);
  bar.replaceChildren(...parts);
}

function changeView(index) {
  state.view = views[index];
  state.frame = Math.min(state.frame, state.view.frames.length - 1);
  if (state.view.rank[state.voxel] === undefined || state.view.rank[state.voxel] < 0) state.voxel = state.view.first;
  state.slice = state.voxel % state.view.matrix[2];
  makeControls();
  makePanels();
  makeMolecules();
}

function makePanels() {
  const made = [];
  for (const base of state.names) {
    const map = chosenMap(base);
    if (map) made.push(makePanel(state.view, map, state, { ...act, hide: () => { state.names = state.names.filter((name) => name !== base); makeControls(); makePanels(); } }));
  }
  panels = made;
  byId("panels").replaceChildren(...panels.map((panel) => panel.box));
  const spectra = state.view.spectraOf(state.frame);
  state.marked = state.view.examples && spectra ? [...spectra.places.keys()] : [];
  redraw();
  showVoxel();
}

function redraw() {
  panels.forEach((panel) => panel.draw());
  drawHistograms();
  // many maps of many voxels take a moment: everything else comes first
  clearTimeout(waiting);
  waiting = setTimeout(() => byId("medians").replaceChildren(mediansTable(state.view, state)), 0);
}

function drawHistograms() {
  const boxes = panels.map((panel) => histogram(panel, state.view, state));
  byId("histograms").replaceChildren(...boxes);
  boxes.forEach((box) => box.draw());
  byId("histogramnote").textContent = "of the maps above; dashed: median, line: the chosen voxel";
}

function showVoxel() {
  const { view } = state, [x, y, z] = view.xyz(state.voxel), mm = view.mm(state.voxel);
  byId("voxel").textContent = `Voxel ${x}, ${y}, ${z}`;
  byId("place").textContent = `LPS ${mm.map((value) => (Math.round(value) + 0).toString()).join(", ")} mm`;
  byId("values").replaceChildren(valuesTable(view, state));
  panels.forEach((panel) => panel.draw());
  drawHistograms();
  spectrum.draw();
}

function makeCurves() {
  const keys = { data: ["data", "data"], fit: ["fit", "accent"], nuisance: ["baseline", "nuisance"], residual: ["residual", "residual"] };
  const bar = byId("curves");
  bar.replaceChildren(...Object.entries(keys).map(([name, [text, colour]]) => {
    const key = element("span", { className: "key" });
    key.style.borderColor = `var(--${colour})`;
    if (name === "nuisance") key.style.borderTopStyle = "dashed";
    const title = name === "nuisance" ? "all of the fit that is no molecule: baseline, residual water, lipids" : "";
    return element("label", { title }, element("input", { type: "checkbox", checked: state.show[name], "data-curve": name, onchange: (event) => { state.show[name] = event.target.checked; spectrum.draw(); } }), key, text);
  }), element("label", {}, "filter", element("select", { "aria-label": "line broadening", onchange: (event) => { state.broadening = Number(event.target.value); spectrum.draw(); } },
    ...[0, 1, 2, 4, 8].map((hz) => element("option", { value: hz, text: hz ? `${hz} Hz` : "none" })))),
  element("button", { type: "button", id: "hold", "aria-pressed": String(Boolean(state.held)), text: state.held ? `drop ${state.held.name}` : "hold", title: "keep this voxel's data in the picture, to compare others with it", onclick: () => {
    const curves = spectrum.curves();
    state.held = state.held || !curves ? null : { ppm: curves.ppm, data: curves.data, name: byId("voxel").textContent.toLowerCase() };
    makeCurves();
    spectrum.draw();
  } }));
}

function makeMolecules() {
  const spectra = state.view.spectraOf(state.frame), box = byId("molecules");
  const hint = byId("spectrumhint");
  if (!spectra || !spectra.strength) {
    box.replaceChildren();
    hint.textContent = spectra ? "The result holds the spectra of a few voxels only (framed in the maps), without the parts of their fits: make it with mrsi replay --spectra all." : "";
    return;
  }
  hint.textContent = "Drag: zoom. Wheel: height. Double click: all of it. Molecules below switch their parts of the fit on and off.";
  const chip = (name, index) => {
    const dot = element("i");
    const made = element("button", { type: "button", className: "chip", "data-molecule": name, "aria-pressed": String(state.parts.has(name)), onclick: () => {
      if (state.parts.has(name)) state.parts.delete(name);
      else state.parts.add(name);
      makeMolecules();
      spectrum.draw();
    } }, dot, name);
    if (state.parts.has(name)) dot.style.background = partColour(index);
    return made;
  };
  const every = spectra.molecules.length === [...state.parts].filter((name) => spectra.molecules.includes(name)).length;
  box.replaceChildren(...spectra.molecules.map(chip), element("button", { type: "button", className: "chip", id: "allparts", text: every ? "none" : "all", onclick: () => {
    state.parts = new Set(every ? [] : spectra.molecules);
    makeMolecules();
    spectrum.draw();
  } }));
}

function makeTexts() {
  byId("facts").textContent = content.heading.facts.join("  ·  ");
  const warnings = byId("warnings");
  warnings.hidden = !content.warnings.length;
  warnings.replaceChildren(...content.warnings.map((sentence) => element("p", { className: "warning", role: "alert", text: `⚠ ${sentence}` })));
  byId("checklist").replaceChildren(checklistTable(content.checklist, content.unknown));
  byId("citation").textContent = content.citation;
  const seconds = Object.fromEntries(Object.entries(content.seconds).map(([name, value]) => [name, `${rounded(Number(value), 3)} s`]));
  const rest = { ...content.provenance };
  byId("provenance").replaceChildren(...Object.entries(rest).map(([name, value]) => tree(name, value)),
    ...(Object.keys(seconds).length ? [tree("time", seconds)] : []), ...(content.machine ? [tree("machine", content.machine)] : []));
  if (content.regions.length) {
    byId("regioncard").hidden = false;
    byId("regions").replaceChildren(regionsTable(content.regions));
  }
  byId("foot").replaceChildren(element("b", { text: "Research software, not a medical device." }), ` Not for diagnosis. Made by mrsi-gadgets ${content.version}; this file holds everything it shows and asks no other machine for anything.`);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  redraw();
  spectrum.draw();
}

byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
document.documentElement.dataset.theme = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
document.addEventListener("keydown", (event) => {
  if (!(event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement || event.target === byId("spectrum")) && act.key(event)) event.preventDefault();
});
window.addEventListener("resize", () => { redraw(); spectrum.draw(); });
const references = new Set([...state.view.byName.values()].map((map) => map.per));
state.per = ["mM", "molal", "water"].find((per) => references.has(per)) ?? "";
state.names = firstNames();
makeTexts();
makeControls();
makeCurves();
makePanels();
makeMolecules();

// What a test asks the page: where it is, and the curves it has drawn.
window.report = {
  voxel: () => state.view.xyz(state.voxel),
  curves: () => spectrum.curves(),
  panels: () => panels.map((panel) => panel.map.name),
  slice: () => state.slice,
  // where a voxel lies in the maps, as parts of their width and height from the upper left corner
  place(x, y, z) {
    const { view } = state, [, ny, nz] = view.matrix, at = view.pixelOf((x * ny + y) * nz + z, state.slice);
    return at && [(at[1] - view.crop.left + 0.5) / view.crop.columns, (at[0] - view.crop.top + 0.5) / view.crop.rows];
  },
};
