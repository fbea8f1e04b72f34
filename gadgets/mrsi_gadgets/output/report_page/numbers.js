// Numbers out of base64, complex arithmetic on FIDs, and the transform to a spectrum.
// Complex signals are Float64Array of length 2 n: real, imaginary, real, imaginary, ...

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

const halves = new Float32Array(65536);
for (let i = 0; i < 65536; i++) {
  const exponent = (i >> 10) & 31, fraction = i & 1023, sign = i >> 15 ? -1 : 1;
  if (exponent === 31) halves[i] = fraction ? NaN : sign * Infinity;
  else halves[i] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

const readers = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };

function unpack(packed) {
  const bytes = bytesOf(packed.data);
  if (packed.type === "f2") {
    const codes = new Uint16Array(bytes.buffer), values = new Float32Array(codes.length), scale = packed.scale ?? 1;
    for (let i = 0; i < codes.length; i++) values[i] = halves[codes[i]] * scale;
    return values;
  }
  return new readers[packed.type](bytes.buffer);
}

// Rows of integers with a scale each: returns row(i) as complex numbers.
function rowsOf(packed) {
  const whole = unpack(packed), scales = unpack(packed.scales), length = packed.shape[1] * 2;
  return {
    count: packed.shape[0],
    length: packed.shape[1],
    row(i) {
      const found = new Float64Array(length), scale = scales[i];
      for (let j = 0; j < length; j++) found[j] = whole[i * length + j] * scale;
      return found;
    },
  };
}

// FIDs, stored as they are or as weights times patterns.
function signalsOf(packed) {
  const rows = rowsOf(packed.rows);
  if (!packed.patterns) return rows;
  const patterns = matrixOf(packed.patterns);
  return { count: rows.count, length: patterns[0].length / 2, row: (i) => combined(rows.row(i), patterns) };
}

function matrixOf(packed) {
  const rows = rowsOf(packed);
  return Array.from({ length: rows.count }, (_, i) => rows.row(i));
}

// Sum of patterns, each times its complex weight.
function combined(weights, patterns) {
  const sum = new Float64Array(patterns[0].length);
  for (let k = 0; k < patterns.length; k++) {
    const re = weights[2 * k], im = weights[2 * k + 1], pattern = patterns[k];
    if (re === 0 && im === 0) continue;
    for (let j = 0; j < sum.length; j += 2) {
      sum[j] += re * pattern[j] - im * pattern[j + 1];
      sum[j + 1] += re * pattern[j + 1] + im * pattern[j];
    }
  }
  return sum;
}

function multiplied(a, b) {
  const product = new Float64Array(a.length);
  for (let j = 0; j < a.length; j += 2) {
    product[j] = a[j] * b[j] - a[j + 1] * b[j + 1];
    product[j + 1] = a[j] * b[j + 1] + a[j + 1] * b[j];
  }
  return product;
}

function added(a, b, sign = 1) {
  const sum = new Float64Array(a.length);
  for (let j = 0; j < a.length; j++) sum[j] = a[j] + sign * b[j];
  return sum;
}

// What of a signal lies in the space of orthonormal rows.
function projected(signal, rows) {
  const weights = new Float64Array(2 * rows.length);
  rows.forEach((row, k) => {
    for (let j = 0; j < signal.length; j += 2) {
      weights[2 * k] += signal[j] * row[j] + signal[j + 1] * row[j + 1];
      weights[2 * k + 1] += signal[j + 1] * row[j] - signal[j] * row[j + 1];
    }
  });
  return combined(weights, rows);
}

// Radix-2 transform in place; the length is a power of two.
function transform(values) {
  const n = values.length / 2;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [values[2 * i], values[2 * j]] = [values[2 * j], values[2 * i]];
      [values[2 * i + 1], values[2 * j + 1]] = [values[2 * j + 1], values[2 * i + 1]];
    }
  }
  for (let size = 2; size <= n; size <<= 1) {
    const half = size >> 1, step = (-2 * Math.PI) / size;
    for (let k = 0; k < half; k++) {
      const c = Math.cos(step * k), s = Math.sin(step * k);
      for (let i = k; i < n; i += size) {
        const a = 2 * i, b = 2 * (i + half);
        const re = values[b] * c - values[b + 1] * s, im = values[b] * s + values[b + 1] * c;
        values[b] = values[a] - re;
        values[b + 1] = values[a + 1] - im;
        values[a] += re;
        values[a + 1] += im;
      }
    }
  }
}

// Places of a spectrum over rising ppm, and what turns an FID into its real part there.
function spectralAxis(axis, points) {
  let length = 1;
  while (length < 4 * points) length <<= 1;
  const mhz = axis.transmit_frequency_hz * 1e-6;
  const hz = Float64Array.from({ length }, (_, i) => (i - length / 2) / (length * axis.dwell_s));
  const ppm = hz.map((f) => axis.reference_ppm + f / mhz);
  const turns = hz.map((f) => -2 * Math.PI * f * axis.acquisition_delay_s);
  const halved = axis.acquisition_delay_s < axis.dwell_s / 2;
  return {
    ppm,
    // The first sample counts half where it lies at t = 0; the phase of the delay is taken out.
    real(fid, broadening) {
      const values = new Float64Array(2 * length);
      for (let i = 0; i < points; i++) {
        const decay = Math.exp(-Math.PI * broadening * i * axis.dwell_s) * (i === 0 && halved ? 0.5 : 1);
        values[2 * i] = fid[2 * i] * decay;
        values[2 * i + 1] = fid[2 * i + 1] * decay;
      }
      transform(values);
      const real = new Float64Array(length);
      for (let i = 0; i < length; i++) {
        const from = (i + length / 2) % length;
        real[i] = values[2 * from] * Math.cos(turns[i]) - values[2 * from + 1] * Math.sin(turns[i]);
      }
      return real;
    },
  };
}

// The spectra of a frame: every voxel with the parts of its fit, or a few with sums only.
function openSpectra(packed, axis) {
  const data = signalsOf(packed.data), nuisance = signalsOf(packed.nuisance);
  const places = new Map(Array.from(unpack(packed.voxels), (place, row) => [place, row]));
  const known = { places, points: data.length, molecules: packed.molecules ?? [] };
  if (packed.fit) {
    const fit = signalsOf(packed.fit);
    known.of = (row) => ({ data: data.row(row), fit: fit.row(row), nuisance: nuisance.row(row), part: null });
    return known;
  }
  const lineshape = signalsOf(packed.lineshape), columns = matrixOf(packed.columns);
  const amplitudes = unpack(packed.amplitudes), exponents = packed.exponents ? unpack(packed.exponents) : null;
  const basis = packed.basis ? matrixOf(packed.basis) : null, count = columns.length;
  const molecule = packed.names.map((name) => name.split(":")[0]);
  const through = (signal) => (basis ? projected(signal, basis) : signal);
  function moved(column, exponent) {
    const [rate, turn] = exponent;
    if (!rate && !turn) return column;
    const own = new Float64Array(column.length);
    for (let i = 0; i < own.length / 2; i++) {
      const t = axis.acquisition_delay_s + i * axis.dwell_s, size = Math.exp(rate * t);
      own[2 * i] = size * Math.cos(turn * t);
      own[2 * i + 1] = size * Math.sin(turn * t);
    }
    return multiplied(column, own);
  }
  function molecules(row, which) {
    const weights = [], patterns = [];
    for (let m = 0; m < count; m++) {
      if (which !== null && molecule[m] !== which) continue;
      const at = 2 * (row * count + m);
      weights.push(amplitudes[at], amplitudes[at + 1]);
      patterns.push(exponents ? moved(columns[m], [exponents[at], exponents[at + 1]]) : columns[m]);
    }
    return through(multiplied(combined(weights, patterns), lineshape.row(row)));
  }
  known.of = (row) => {
    const rest = nuisance.row(row);
    return { data: data.row(row), fit: added(molecules(row, null), rest), nuisance: rest, part: (name) => molecules(row, name) };
  };
  known.strength = (row, name) => {
    let sum = 0;
    for (let m = 0; m < count; m++) if (molecule[m] === name) sum += Math.hypot(amplitudes[2 * (row * count + m)], amplitudes[2 * (row * count + m) + 1]);
    return sum;
  };
  return known;
}

function rounded(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(digits - 1);
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}

function quantile(sorted, q) {
  if (!sorted.length) return NaN;
  const at = q * (sorted.length - 1), low = Math.floor(at), high = Math.ceil(at);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}
