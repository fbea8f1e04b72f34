// One voxel's spectrum: data, fit, baseline, residual and the parts of the fit; ppm falls from left to right.

const partColour = (index) => `hsl(${(index * 137.5 + 20) % 360} 62% 55%)`;
const peaks1H = { NAA: 2.01, tCr: 3.03, tCho: 3.21, Ins: 3.56 };

function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function makeSpectrum(canvas, state, act) {
  const spectralAxes = new Map();
  let drawn = null, drag = null, curves = null, pointer = null;

  function axisOf(view, points) {
    const key = `${view.name}/${points}`;
    if (!spectralAxes.has(key)) spectralAxes.set(key, spectralAxis(view.axis, points));
    return spectralAxes.get(key);
  }

  // Real parts over ppm of the chosen voxel, or null where it has no spectrum.
  function compute() {
    const view = state.view, spectra = view.spectraOf(state.frame);
    if (!spectra || !spectra.places.has(state.voxel)) return null;
    const row = spectra.places.get(state.voxel), signals = spectra.of(row), along = axisOf(view, spectra.points);
    const real = (fid) => along.real(fid, state.broadening);
    const found = {
      ppm: along.ppm, data: real(signals.data), fit: real(signals.fit), nuisance: real(signals.nuisance), parts: [],
    };
    found.residual = added(found.data, found.fit, -1);
    if (signals.part) {
      spectra.molecules.forEach((name, index) => {
        if (state.parts.has(name)) found.parts.push({ name, index, values: real(signals.part(name)) });
      });
    }
    return found;
  }

  function fullRange(ppm) {
    const shown = state.view.axis.shown_ppm;
    return shown ? [shown[0], shown[1]] : [ppm[0], ppm[ppm.length - 1]];
  }

  function extent(list, ppm, [low, high]) {
    let least = Infinity, most = -Infinity;
    for (let i = 0; i < ppm.length; i++) {
      if (ppm[i] < low || ppm[i] > high) continue;
      for (const values of list) {
        least = Math.min(least, values[i]);
        most = Math.max(most, values[i]);
      }
    }
    return least <= most ? [least, most] : [-1, 1];
  }

  function draw() {
    curves = compute();
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    paint.clearRect(0, 0, width, height);
    paint.font = "12px system-ui, sans-serif";
    if (!curves) {
      drawn = null;
      paint.fillStyle = styleOf("faint");
      paint.textAlign = "center";
      paint.fillText(state.view.spectraOf(state.frame) ? "no spectrum of this voxel" : "the result holds no spectra", width / 2, height / 2);
      return;
    }
    const range = state.range ?? fullRange(curves.ppm), [low, high] = range;
    const strip = state.show.residual ? 0.17 * height : 0, foot = 30, left = 10, right = width - 10;
    const top = strip + 14, bottom = height - foot;
    const x = (ppm) => left + ((high - ppm) / (high - low)) * (right - left);
    const inner = state.view.axis.height_ppm;
    const near = inner && Math.min(high, inner[1]) > Math.max(low, inner[0]) ? [Math.max(low, inner[0]), Math.min(high, inner[1])] : range;
    const held = state.held && state.held.ppm.length === curves.ppm.length ? [state.held.data] : [];
    let [least, most] = extent([curves.data, curves.fit, ...held], curves.ppm, near);
    const size = most - least || 1;
    const all = extent([curves.data, curves.fit, curves.nuisance, ...held], curves.ppm, range);
    least = Math.max(Math.min(all[0], 0), least - 0.35 * size);
    most = Math.min(all[1], most + 0.5 * size);
    const lift = 1 / state.lift;
    const span = (most - least) * lift * 1.06, zero = bottom + ((least * lift - 0.03 * span) / span) * (bottom - top);
    const y = (value) => zero - (value / span) * (bottom - top);
    drawn = { x, y, range, left, right, top, bottom };

    grid(paint, { low, high, x, left, right, bottom, strip, zero, height });
    const line = (values, colour, thick, place, dash = []) => {
      paint.beginPath();
      let begun = false;
      for (let i = 0; i < curves.ppm.length; i++) {
        const ppm = curves.ppm[i];
        if (ppm < low - 0.05 || ppm > high + 0.05) continue;
        if (begun) paint.lineTo(x(ppm), place(values[i]));
        else paint.moveTo(x(ppm), place(values[i]));
        begun = true;
      }
      paint.setLineDash(dash);
      paint.strokeStyle = colour;
      paint.lineWidth = thick;
      paint.lineJoin = "round";
      paint.stroke();
      paint.setLineDash([]);
    };
    const clipped = (from, to, work) => {
      paint.save();
      paint.beginPath();
      paint.rect(left, from, right - left, to - from);
      paint.clip();
      work();
      paint.restore();
    };
    if (state.show.residual) {
      clipped(2, strip, () => line(curves.residual, styleOf("residual"), 1, (value) => strip / 2 - (value / span) * (bottom - top)));
      paint.fillStyle = styleOf("faint");
      paint.textAlign = "left";
      paint.fillText("residual", left + 2, 13);
    }
    clipped(top - 10, bottom, () => {
      for (const data of held) line(data, styleOf("held"), 1.6, y);
      for (const part of curves.parts) line(part.values, partColour(part.index), 1.5, y);
      if (state.show.nuisance) line(curves.nuisance, styleOf("nuisance"), 1.4, y, [5, 3]);
      if (state.show.data) line(curves.data, styleOf("data"), 1.1, y);
      if (state.show.fit) line(curves.fit, styleOf("accent"), 1.9, y);
      names(paint, { low, high, x, y, top });
    });
    if (drag && drag.moved) {
      paint.fillStyle = styleOf("accent-soft");
      paint.fillRect(Math.min(drag.from, drag.to), 0, Math.abs(drag.to - drag.from), bottom);
    } else if (pointer !== null) {
      paint.fillStyle = styleOf("faint");
      paint.fillRect(pointer, 0, 0.7, bottom);
      paint.textAlign = pointer > width - 90 ? "right" : "left";
      const ppm = high - ((pointer - left) / (right - left)) * (high - low);
      paint.fillText(`${ppm.toFixed(2)} ppm`, pointer + (pointer > width - 90 ? -5 : 5), bottom - 6);
    }
  }

  function grid(paint, { low, high, x, left, right, bottom, strip, zero, height }) {
    const span = high - low, step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((s) => span / s <= 10) ?? 100;
    paint.strokeStyle = styleOf("line");
    paint.fillStyle = styleOf("faint");
    paint.lineWidth = 1;
    paint.textAlign = "center";
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9; k++) {
      const at = x(k * step);
      paint.beginPath();
      paint.moveTo(at, 0);
      paint.lineTo(at, bottom + 4);
      paint.stroke();
      paint.fillText(String(Number((k * step).toFixed(3))), Math.max(left + 8, Math.min(right - 8, at)), bottom + 16);
    }
    paint.textAlign = "right";
    paint.fillText("ppm", right, height - 2);
    for (const at of [bottom, strip, zero]) {
      if (at <= 0 || at > bottom) continue;
      paint.beginPath();
      paint.moveTo(left, at);
      paint.lineTo(right, at);
      paint.stroke();
    }
  }

  // A text with a rim of the background, readable over lines.
  function written(paint, text, x, y, colour) {
    paint.strokeStyle = styleOf("inset");
    paint.lineWidth = 3.5;
    paint.strokeText(text, x, y);
    paint.fillStyle = colour;
    paint.fillText(text, x, y);
  }

  // Names of the shown parts at their tops, or of well known peaks.
  function names(paint, { low, high, x, y, top }) {
    paint.textAlign = "center";
    if (curves.parts.length) {
      const taken = [];
      for (const part of curves.parts) {
        let best = -1;
        for (let i = 0; i < curves.ppm.length; i++) {
          if (curves.ppm[i] >= low && curves.ppm[i] <= high && (best < 0 || part.values[i] > part.values[best])) best = i;
        }
        if (best < 0) continue;
        const at = x(curves.ppm[best]);
        let height = Math.max(top, y(part.values[best]) - 4);
        while (taken.some(([a, b]) => Math.abs(a - at) < 34 && Math.abs(b - height) < 12)) height -= 12;
        taken.push([at, height]);
        written(paint, part.name, at, height, partColour(part.index));
      }
      return;
    }
    if (state.view.axis.nucleus !== "1H") return;
    for (const [name, ppm] of Object.entries(peaks1H)) {
      if (ppm < low || ppm > high) continue;
      const [, most] = extent([curves.data, curves.fit], curves.ppm, [ppm - 0.05, ppm + 0.05]);
      written(paint, name, x(ppm), Math.max(top, y(most) - 6), styleOf("faint"));
    }
  }

  const at = (event) => event.clientX - canvas.getBoundingClientRect().left;
  canvas.addEventListener("pointerdown", (event) => {
    if (!drawn) return;
    drag = { from: at(event), to: at(event), moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    pointer = at(event);
    if (drag) {
      drag.to = pointer;
      drag.moved ||= Math.abs(drag.to - drag.from) > 5;
    }
    draw();
  });
  canvas.addEventListener("pointerup", () => {
    if (drag && drag.moved && drawn) {
      const { range: [low, high], left, right } = drawn;
      const ppm = (place) => high - ((place - left) / (right - left)) * (high - low);
      const ends = [ppm(Math.max(drag.from, drag.to)), ppm(Math.min(drag.from, drag.to))];
      if (ends[1] - ends[0] > 0.02) state.range = ends;
    }
    drag = null;
    draw();
  });
  canvas.addEventListener("pointerleave", () => { pointer = null; drag = null; draw(); });
  canvas.addEventListener("dblclick", () => { state.range = null; state.lift = 1; draw(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    state.lift = Math.max(0.2, Math.min(50, state.lift * 1.15 ** Math.sign(-event.deltaY)));
    draw();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => { if (act.key(event)) event.preventDefault(); });
  return { draw, curves: () => curves };
}
