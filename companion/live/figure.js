// The front end of every live figure: it draws, has controls and repeats steps. It holds no formula: numbers come from
// an engine `evaluate(graph, inputs) -> outputs`, which is torch in the kernel, or ONNX Runtime on a page without one.
// Tensors are {shape: number[], data: Float32Array}. The same module runs in JupyterLab and from embedded widget state.

const PATIENCE = 200; // ms that a computation may run on when newer values wait
const BREATH = 24; // ms of work between two pauses that let the page answer its reader
const SLOW = 700; // ms after which the reader is told that something is going on
const RUNTIME = "vendor/onnxruntime-web/";
const HANDLE_STEPS = 100; // arrow-key steps across a panel
const [PAINTED, BARE] = ["#", "."]; // the cells of a mask, as its rows of text write them

// --- small helpers ---------------------------------------------------------------------------------------------------

/** Make an element: attributes that are functions listen, others are set; children are nodes or text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const pause = () => new Promise((resolve) => setTimeout(resolve));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const product = (shape) => shape.reduce((a, b) => a * b, 1);
const scalar = (value) => ({ shape: [], data: Float32Array.of(value) });
const withMinus = (text) => text.replace("-", "−");

/** How many decimals show every multiple of `step`. */
function decimalsOf(step) {
  const power = Math.floor(Math.log10(step) + 1e-9);
  const lead = step / 10 ** power;
  const half = Math.abs(lead - Math.round(lead)) > 1e-6;
  return clamp(-power + (half ? 1 : 0), 0, 6);
}

/** A number with `digits` significant digits, in plain notation where that is readable. */
function significant(value, digits) {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const isCount = Number.isInteger(value) && Math.abs(value) >= 10 && Math.abs(value) < 1e6;
  if (isCount) return withMinus(String(value));
  const size = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
  const text = size < -4 || size > 6 ? value.toExponential(digits - 1) : value.toFixed(clamp(digits - 1 - size, 0, 12));
  return withMinus(text);
}

/** A tensor from what a test or a caller has at hand: a number, nested arrays, or a tensor. */
function asTensor(value) {
  if (value.data) return { shape: value.shape, data: Float32Array.from(value.data) };
  const shape = [];
  for (let level = value; Array.isArray(level); level = level[0]) shape.push(level.length);
  return { shape, data: Float32Array.from([value].flat(Infinity)) };
}

/** Cut the constants out of the one buffer they travel in. */
function unpack(buffer, index) {
  const bytes = new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
  const floats = new Float32Array(bytes.slice().buffer);
  const cut = ({ shape, offset }) => ({ shape, data: floats.subarray(offset, offset + product(shape)) });
  return Object.fromEntries(index.map((entry) => [entry.name, cut(entry)]));
}

// --- engines ---------------------------------------------------------------------------------------------------------

/** Ask the kernel. Constants stay there; an answer finds its question by id, since all views hear all answers. */
function kernelEngine(model, spec) {
  const waiting = new Map();
  const own = Math.random().toString(36).slice(2);
  let count = 0;
  const listen = (content, buffers) => {
    const question = waiting.get(content.id);
    if (!question) return;
    waiting.delete(content.id);
    if (content.error) question.reject(new Error(content.error));
    else question.resolve(Object.fromEntries(content.outputs.map((entry, i) => named(entry, buffers[i]))));
  };
  const named = ({ name, shape }, view) => [name, received(shape, view)];
  const received = (shape, view) => {
    const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
    return { shape, data: new Float32Array(bytes) };
  };
  model.on("msg:custom", listen);
  return {
    label: "torch, in the kernel",
    slow: "Waiting for the kernel. If it was restarted, run this cell again.",
    prepare: async () => {},
    evaluate(graph, inputs) {
      const sent = spec.graphs[graph].inputs.filter((name) => inputs[name] && !inputs[name].constant);
      const shapes = sent.map((name) => ({ name, shape: inputs[name].shape }));
      const content = { op: "evaluate", id: `${own}:${count++}`, graph, inputs: shapes };
      return new Promise((resolve, reject) => {
        waiting.set(content.id, { resolve, reject });
        model.send(content, undefined, sent.map((name) => inputs[name].data.slice().buffer));
      });
    },
    close: () => model.off("msg:custom", listen),
  };
}

/** One thing at a time on the whole page: ONNX Runtime's WebAssembly is one instance, shared by all figures. */
function inTurn(task) {
  const key = Symbol.for("companion.live.turn");
  const result = (globalThis[key] ?? Promise.resolve()).then(task);
  globalThis[key] = result.catch(() => {});
  return result;
}

/** Ask ONNX Runtime in this page; it and the graphs are files of this site below `base`. */
function runtimeEngine(base, spec) {
  let runtime;
  const sessions = {};
  const load = async () => {
    if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly, which computes the figure");
    const ort = await import(`${base}${RUNTIME}ort.wasm.min.mjs`);
    ort.env.wasm.wasmPaths = `${base}${RUNTIME}`;
    ort.env.wasm.numThreads = 1;
    return ort;
  };
  const open = async (graph) => {
    const ort = await (runtime ??= load());
    const response = await fetch(`${base}live/${spec.name}/${graph}.onnx`);
    if (!response.ok) throw new Error(`the graph ${spec.name}/${graph}.onnx is missing (${response.status})`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    return inTurn(() => ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] }));
  };
  return {
    label: "ONNX Runtime, in this page",
    slow: "Loading the figure’s engine (once for this site) …",
    prepare: async (graph) => void (await (sessions[graph] ??= open(graph))),
    async evaluate(graph, inputs) {
      const ort = await (runtime ??= load());
      const session = await (sessions[graph] ??= open(graph));
      const tensor = ({ shape, data }) => new ort.Tensor("float32", data, shape);
      const feeds = Object.fromEntries(session.inputNames.map((name) => [name, tensor(inputs[name])]));
      const answer = await inTurn(() => session.run(feeds));
      const read = (name) => ({ shape: [...answer[name].dims], data: answer[name].data });
      return Object.fromEntries(session.outputNames.map((name) => [name, read(name)]));
    },
    close: () => Object.values(sessions).forEach((session) => session.then((s) => s.release()).catch(() => {})),
  };
}

// --- the loop --------------------------------------------------------------------------------------------------------

/** A control's value as `evaluate` gets it: a choice is the index of its option, a mask rows of zeros and ones. */
function tensorOf(control, value) {
  if (control.kind === "choice") return scalar(control.options.findIndex(([key]) => key === value));
  if (control.kind === "paint") return asTensor(value.map((row) => [...row].map((cell) => Number(cell === PAINTED))));
  return control.kind === "point" ? asTensor(value) : scalar(Number(value));
}

/** All inputs that stay the same through the steps. */
function settings(spec, constants, values) {
  const inputs = {};
  for (const [name, tensor] of Object.entries(constants)) inputs[name] = { ...tensor, constant: true };
  for (const control of spec.controls) inputs[control.name] = tensorOf(control, values[control.name]);
  if (spec.repeat) inputs[spec.repeat.total] = scalar(stepsOf(spec, values));
  return inputs;
}

const graphOf = (spec, values) => spec.select.map((name) => values[name]).join("-") || "evaluate";

function stepsOf({ repeat }, values) {
  if (!repeat) return 1;
  return typeof repeat.count === "string" ? Math.round(values[repeat.count]) : repeat.count;
}

/** Call the engine once, or step after step. Resolves to {values, calls, states}, or to null when `stale()` says so. */
async function compute(engine, spec, constants, values, stale, progress) {
  const graph = graphOf(spec, values);
  const total = stepsOf(spec, values);
  let inputs = settings(spec, constants, values);
  const carried = Object.entries(spec.repeat?.carry ?? {});
  const states = [Object.fromEntries(carried.map(([name]) => [name, inputs[name]]))];
  const calls = [];
  await engine.prepare(graph);
  const started = performance.now();
  let breath = started;
  for (let k = 0; k < total; k++) {
    if (spec.repeat) inputs = { ...inputs, [spec.repeat.index]: scalar(k) };
    calls.push(await engine.evaluate(graph, inputs));
    states.push(Object.fromEntries(carried.map(([name, source]) => [name, calls[k][source]])));
    inputs = { ...inputs, ...states[k + 1] };
    if (performance.now() - breath < BREATH) continue;
    progress(k + 1, total);
    await pause();
    breath = performance.now();
    if (stale()) return null;
  }
  return { values, graph, total, calls, states, milliseconds: performance.now() - started };
}

// --- drawing ---------------------------------------------------------------------------------------------------------

/** The colors that the page's theme gives, read from the style sheet. */
function readTheme(root) {
  const style = getComputedStyle(root);
  const get = (name) => style.getPropertyValue(`--live-${name}`).trim();
  const ramp = (name) => get(name).split(/\s+/).map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return {
    palette: Array.from({ length: 8 }, (_, i) => get(`color-${i}`)),
    ink: get("ink"), muted: get("muted"), grid: get("grid"), edge: get("edge"), surface: get("surface"),
    sequential: ramp("sequential"), diverging: ramp("diverging"), font: style.fontFamily,
  };
}

/** The color at `part` in [0, 1] of a ramp of [r, g, b]. */
function rampColor(ramp, part) {
  const place = clamp(Number.isFinite(part) ? part : 0, 0, 1) * (ramp.length - 1);
  const i = Math.min(Math.floor(place), ramp.length - 2);
  return ramp[i].map((from, c) => Math.round(from + (ramp[i + 1][c] - from) * (place - i)));
}

/** Round tick positions, about one every `gap` pixels. */
function ticks(low, high, pixels, gap) {
  const rough = ((high - low) * gap) / Math.max(pixels, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-6);
  const last = Math.floor(high / step + 1e-6);
  const decimals = decimalsOf(step);
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const value = (first + i) * step;
    return { value, text: withMinus(value.toFixed(decimals).replace(/^-0(\.0+)?$/, (zero) => zero.slice(1))) };
  });
}

/** The extremes of the finite values. */
function extremes(data) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of data) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low < high ? [low, high] : [low - 0.5 || 0, low + 0.5 || 1];
}

/** Pixels of `values` through `color`, as a canvas that can be scaled. */
function bitmap(width, height, color) {
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...color(i), 255], 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

/** One draw function per kind of mark: (brush, mark, get) where get(name) is the tensor to be drawn. */
const MARKS = {
  points({ context, px, py, colors }, mark, get) {
    const { data } = get(mark.at);
    const color = colors(mark, data.length / 2);
    for (let i = 0; i < data.length / 2; i++) {
      context.fillStyle = color(i);
      context.beginPath();
      context.arc(px(data[2 * i]), py(data[2 * i + 1]), mark.size, 0, 2 * Math.PI);
      context.fill();
    }
  },
  line(brush, mark, get) {
    const [x, y] = [get(mark.x), get(mark.y)];
    const n = y.shape.at(-1);
    const rows = y.data.length / n;
    const color = brush.colors(mark, rows);
    brush.context.lineWidth = mark.width;
    if (mark.dash) brush.context.setLineDash([6, 4]);
    for (let row = 0; row < rows; row++) {
      const start = x.shape.length > 1 ? row * n : 0;
      brush.context.strokeStyle = color(row);
      brush.polyline(n, (i) => x.data[start + i], (i) => y.data[row * n + i]);
    }
  },
  area({ context, px, py, colors }, mark, get) {
    const [x, y] = [get(mark.x).data, get(mark.y).data];
    const base = mark.base ? get(mark.base).data : new Float32Array(y.length);
    context.fillStyle = colors(mark, 1)(0);
    context.beginPath();
    for (let i = 0; i < x.length; i++) context.lineTo(px(x[i]), py(Number.isFinite(y[i]) ? y[i] : base[i]));
    for (let i = x.length - 1; i >= 0; i--) context.lineTo(px(x[i]), py(base[i]));
    context.fill();
  },
  bars({ context, px, py, colors }, mark, get) {
    const [x, y] = [get(mark.x).data, get(mark.y).data];
    const color = colors(mark, x.length);
    const width = Math.max(1, Math.abs(px(x[1] ?? x[0] + 1) - px(x[0])) - 1);
    for (let i = 0; i < x.length; i++) {
      context.fillStyle = color(i);
      context.fillRect(px(x[i]) - width / 2, py(y[i]), width, py(0) - py(y[i]));
    }
  },
  arrows({ context, px, py, colors }, mark, get) {
    const [at, by] = [get(mark.at).data, get(mark.by).data];
    const color = colors(mark, at.length / 2);
    context.lineWidth = mark.width;
    for (let i = 0; i < at.length; i += 2) {
      const from = [px(at[i]), py(at[i + 1])];
      const to = [px(at[i] + mark.scale * by[i]), py(at[i + 1] + mark.scale * by[i + 1])];
      context.strokeStyle = context.fillStyle = color(i / 2);
      arrow(context, from, to, 3 + 2 * mark.width);
    }
  },
  segments({ context, px, py, colors }, mark, get) {
    const [start, end] = [get(mark.start).data, get(mark.end).data];
    const color = colors(mark, start.length / 2);
    context.lineWidth = mark.width;
    for (let i = 0; i < start.length; i += 2) {
      context.strokeStyle = color(i / 2);
      context.beginPath();
      context.moveTo(px(start[i]), py(start[i + 1]));
      context.lineTo(px(end[i]), py(end[i + 1]));
      context.stroke();
    }
  },
  trails(brush, mark, get) {
    const { times, n, x, y } = track(mark, get);
    const color = brush.colors(mark, n);
    brush.context.lineWidth = mark.width;
    for (let i = 0; i < n; i++) {
      brush.context.strokeStyle = color(i);
      brush.polyline(times, (k) => x(k, i), (k) => y(k, i));
    }
  },
  heat({ context, frame, theme }, mark, get) {
    const { shape: [height, width], data } = get(mark.values);
    const [low, high] = mark.limits ?? extremes(data);
    const reach = Math.max(Math.abs(low), Math.abs(high));
    const part = mark.diverging ? (v) => 0.5 + v / (2 * reach) : (v) => (v - low) / (high - low);
    const ramp = mark.diverging ? theme.diverging : theme.sequential;
    const row = (i) => height - 1 - Math.floor(i / width); // the first row lies at the bottom
    const pixels = bitmap(width, height, (i) => rampColor(ramp, part(data[row(i) * width + (i % width)])));
    context.imageSmoothingEnabled = mark.smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(pixels, frame.left, frame.top, frame.width, frame.height);
  },
  /** One channel is ink on paper, as in the printed figures: the lower limit is white, on dark pages too. */
  images({ context, frame, theme }, mark, get) {
    const { shape, data } = get(mark.images);
    const [n, channels] = [shape[0], shape.length === 4 ? shape[1] : 1];
    const [height, width] = shape.slice(-2);
    const [low, high] = mark.limits ?? extremes(data);
    const [dark, bright] = channels === 1 ? [high, low] : [low, high];
    const level = (v) => Math.round(clamp((v - dark) / (bright - dark), 0, 1) * 255) || 0;
    context.imageSmoothingEnabled = false;
    context.lineWidth = 1;
    context.strokeStyle = theme.edge;
    for (let k = 0; k < n; k++) {
      const value = (i, c) => level(data[(k * channels + Math.min(c, channels - 1)) * height * width + i]);
      const pixels = bitmap(width, height, (i) => [value(i, 0), value(i, 1), value(i, 2)]);
      const [left, top, wide, tall] = imageBox(frame, mark.columns, height / width, k);
      context.drawImage(pixels, left, top, wide, tall);
      context.strokeRect(left - 0.5, top - 0.5, wide + 1, tall + 1);
    }
  },
};

/** [left, top, width, height] of the k-th image in a grid of so many columns, one pixel away from its neighbors. */
function imageBox(frame, columns, ratio, k) {
  const tile = frame.width / columns;
  const tall = tile * ratio;
  const [column, row] = [k % columns, Math.floor(k / columns)];
  return [frame.left + column * tile + 1, frame.top + row * tall + 1, tile - 2, tall - 2];
}

/** An arrow with a filled head; one shorter than a pixel is a dot. */
function arrow(context, from, to, head) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(dx, dy);
  if (!Number.isFinite(length)) return;
  if (length < 1) return context.fillRect(from[0] - 0.5, from[1] - 0.5, 1, 1);
  const size = Math.min(head, 0.5 * length);
  const [ux, uy] = [(dx / length) * size, (dy / length) * size];
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(to[0] - ux / 2, to[1] - uy / 2);
  context.stroke();
  context.beginPath();
  context.moveTo(...to);
  context.lineTo(to[0] - ux - uy / 2, to[1] - uy + ux / 2);
  context.lineTo(to[0] - ux + uy / 2, to[1] - uy - ux / 2);
  context.fill();
}

/** The ways of all points: from the history of a state, or from one tensor (times, n, 2). */
function track(mark, get) {
  const history = get.history(mark.of);
  if (!history) {
    const { shape: [times, n], data } = get(mark.of);
    return { times, n, x: (k, i) => data[2 * (k * n + i)], y: (k, i) => data[2 * (k * n + i) + 1] };
  }
  const flat = history.tensors[0].shape.at(-1) !== 2;
  const n = product(history.tensors[0].shape) / (flat ? 1 : 2);
  const times = history.tensors.length;
  const pair = (axis) => (k, i) => history.tensors[k].data[2 * i + axis];
  if (!flat) return { times, n, x: pair(0), y: pair(1) };
  const [from, to] = mark.span;
  return { times, n, x: (k) => from + (to - from) * history.times[k], y: (k, i) => history.tensors[k].data[i] };
}

/** One panel: a canvas with axes and marks, handles for the points that are dragged in it, and a legend. */
class Panel {
  constructor(figure, spec, index) {
    Object.assign(this, { figure, spec, index });
    this.points = figure.spec.controls.filter((control) => control.kind === "point" && control.panel === index);
    const label = [figure.spec.title, spec.title].filter(Boolean).join(": ");
    const words = { role: "img", "aria-label": label, "aria-describedby": figure.id("description") };
    this.canvas = make("canvas", { ...words, pointerdown: (event) => this.grab(event) });
    this.handles = this.points.map((control) => this.makeHandle(control));
    const paint = figure.spec.controls.find((control) => control.kind === "paint" && control.panel === index);
    this.mask = paint && new Mask(figure, paint);
    const [overlay, hint] = paint ? [[this.mask.element], [this.mask.hint]] : [[], []];
    this.plot = make("div", { class: "live-plot" }, this.canvas, ...this.handles, ...overlay);
    this.legend = make("ul", { class: "live-legend" });
    const title = spec.title ? [make("p", { class: "live-panel-title" }, spec.title)] : [];
    this.element = make("div", { class: "live-panel" }, ...title, this.plot, ...hint, this.legend);
    this.entries = spec.marks.filter((mark) => mark.label).map((mark) => this.makeEntry(mark));
    this.legend.hidden = !this.entries.length;
  }

  makeEntry(mark) {
    const kind = `live-swatch live-swatch-${mark.kind}${mark.dash ? " live-dash" : ""}`;
    const swatch = make("span", { class: kind, "aria-hidden": "true" });
    if (typeof mark.color === "number") swatch.style.setProperty("--swatch", `var(--live-color-${mark.color})`);
    const item = make("li", {}, swatch, mark.label);
    this.legend.append(item);
    return { mark, item };
  }

  makeHandle(control) {
    const handle = make("button", {
      type: "button", class: "live-handle", "data-handle": control.name,
      pointerdown: (event) => this.drag(event, control, handle),
      keydown: (event) => this.nudge(event, control),
    });
    handle.style.setProperty("--swatch", `var(--live-color-${control.color})`);
    return handle;
  }

  /** Where the axes lie for the present width. */
  layout(context) {
    const { spec, plot } = this;
    const width = plot.clientWidth;
    if (!spec.x) return this.layoutImages(width);
    const labels = ticks(...spec.y, 400, 34).map((tick) => context.measureText(tick.text).width);
    const left = Math.ceil(Math.max(...labels, 8)) + 9 + (spec.ylabel ? 18 : 0);
    const [top, right, bottom] = [8, 12, 22 + (spec.xlabel ? 17 : 0)];
    let inner = Math.max(width - left - right, 40);
    let height = clamp(0.66 * inner, 170, 340);
    if (spec.aspect) {
      const ratio = ((spec.y[1] - spec.y[0]) / (spec.x[1] - spec.x[0])) * spec.aspect;
      inner = Math.min(inner, 440 / ratio);
      height = inner * ratio;
    }
    const shift = Math.max(0, (width - left - right - inner) / 2);
    this.frame = { left: left + shift, top, width: inner, height };
    return { width, height: height + top + bottom };
  }

  xTicks() {
    return ticks(...this.spec.x, this.frame.width, 46);
  }

  yTicks() {
    return ticks(...this.spec.y, this.frame.height, 34);
  }

  layoutImages(width) {
    let height = 0;
    for (const mark of this.spec.marks) {
      const shape = this.figure.shapeOf(mark.images);
      const rows = Math.ceil(shape[0] / mark.columns);
      height = Math.max(height, (rows * (width / mark.columns) * shape.at(-2)) / shape.at(-1));
    }
    this.frame = { left: 0, top: 0, width, height };
    return { width, height };
  }

  draw(theme, get) {
    const { canvas, spec } = this;
    const context = canvas.getContext("2d");
    context.font = `12px ${theme.font}`;
    const size = this.layout(context);
    const density = Math.max(1, window.devicePixelRatio || 1);
    canvas.width = Math.round(size.width * density);
    canvas.height = Math.round(size.height * density);
    canvas.style.height = `${size.height}px`;
    context.scale(density, density);
    context.font = `12px ${theme.font}`;
    const brush = this.brush(context, theme, get);
    if (spec.x) this.drawGrid(brush);
    if (get) for (const mark of spec.marks) if (this.figure.isShown(mark)) this.drawMark(brush, mark, get);
    if (spec.x) this.drawAxes(brush);
    for (const { mark, item } of this.entries) item.hidden = !this.figure.isShown(mark);
    this.placeHandles(brush);
    if (this.mask) this.placeMask();
  }

  brush(context, theme, get) {
    const { frame, spec } = this;
    const [x, y] = [spec.x ?? [0, 1], spec.y ?? [0, 1]];
    const px = (value) => frame.left + ((value - x[0]) / (x[1] - x[0])) * frame.width;
    const py = (value) => frame.top + ((y[1] - value) / (y[1] - y[0])) * frame.height;
    const polyline = (n, xs, ys) => {
      context.beginPath();
      let broken = true;
      for (let i = 0; i < n; i++) {
        const [a, b] = [px(xs(i)), py(ys(i))];
        const finite = Number.isFinite(a) && Number.isFinite(b);
        if (finite && broken) context.moveTo(a, b);
        else if (finite) context.lineTo(clamp(a, -1e5, 1e5), clamp(b, -1e5, 1e5));
        broken = !finite;
      }
      context.stroke();
    };
    const colors = (mark) => {
      if (typeof mark.color === "number") return () => theme.palette[mark.color];
      const { data } = get(mark.color);
      if (!mark.limits) return (i) => theme.palette[(((Math.round(data[i]) || 0) % 8) + 8) % 8];
      const [low, high] = mark.limits;
      return (i) => `rgb(${rampColor(theme.sequential.slice(1), (data[i] - low) / (high - low))})`;
    };
    return { context, theme, frame, px, py, polyline, colors };
  }

  drawMark(brush, mark, get) {
    const { context, frame } = brush;
    context.save();
    context.beginPath();
    context.rect(frame.left, frame.top, frame.width, frame.height);
    context.clip();
    context.globalAlpha = mark.alpha;
    context.lineJoin = context.lineCap = "round";
    MARKS[mark.kind](brush, mark, get);
    context.restore();
  }

  drawGrid({ context, theme, frame, px, py }) {
    context.strokeStyle = theme.grid;
    context.lineWidth = 1;
    const [right, bottom] = [frame.left + frame.width, frame.top + frame.height];
    for (const { value } of this.xTicks()) stroke(context, [px(value), frame.top], [px(value), bottom]);
    for (const { value } of this.yTicks()) stroke(context, [frame.left, py(value)], [right, py(value)]);
  }

  drawAxes({ context, theme, frame, px, py }) {
    const { spec } = this;
    const bottom = frame.top + frame.height;
    context.strokeStyle = theme.muted;
    context.lineWidth = 1;
    context.strokeRect(frame.left, frame.top, frame.width, frame.height);
    context.fillStyle = theme.muted;
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const { value, text } of this.xTicks()) context.fillText(text, px(value), bottom + 6);
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const { value, text } of this.yTicks()) context.fillText(text, frame.left - 6, py(value));
    context.fillStyle = theme.ink;
    context.textAlign = "center";
    if (spec.xlabel) context.fillText(spec.xlabel, frame.left + frame.width / 2, bottom + 30);
    if (!spec.ylabel) return;
    context.save();
    context.translate(frame.left - (this.labelGap(context) + 12), frame.top + frame.height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(spec.ylabel, 0, 0);
    context.restore();
  }

  labelGap(context) {
    return Math.max(...this.yTicks().map((tick) => context.measureText(tick.text).width), 8) + 6;
  }

  placeHandles({ px, py }) {
    this.points.forEach((control, i) => {
      const [x, y] = this.figure.values[control.name];
      this.handles[i].style.left = `${px(x)}px`;
      this.handles[i].style.top = `${py(y)}px`;
      const words = `${control.label}, at ${this.figure.format(control.name)}: drag, or press the arrow keys`;
      this.handles[i].setAttribute("aria-label", words);
    });
  }

  /** The mask lies over the first image of the panel. */
  placeMask() {
    const mark = this.spec.marks.find(({ kind }) => kind === "images");
    const [height, width] = this.figure.shapeOf(mark.images).slice(-2);
    this.mask.place(imageBox(this.frame, mark.columns, height / width, 0));
  }

  /** Data coordinates of a pointer, kept inside the axes and on the grid that the keyboard walks. */
  locate(event) {
    const box = this.canvas.getBoundingClientRect();
    const { frame, spec } = this;
    const x = (event.clientX - box.left - frame.left) / frame.width;
    const y = 1 - (event.clientY - box.top - frame.top) / frame.height;
    return [snap(spec.x, x), snap(spec.y, y)];
  }

  /** A mouse press on the picture takes the nearest point along (a finger must stay free to scroll). */
  grab(event) {
    if (!this.points.length || event.pointerType === "touch") return;
    const target = this.locate(event);
    const spans = [this.spec.x, this.spec.y].map(([low, high]) => high - low);
    const away = ({ name }) => Math.hypot(...this.figure.values[name].map((v, i) => (v - target[i]) / spans[i]));
    const nearest = this.points.reduce((a, b) => (away(a) <= away(b) ? a : b));
    this.drag(event, nearest, this.handles[this.points.indexOf(nearest)]);
  }

  drag(event, control, handle) {
    event.preventDefault();
    handle.focus({ preventScroll: true });
    handle.setPointerCapture(event.pointerId);
    const move = (next) => this.figure.change(control.name, this.locate(next));
    const stop = () => {
      handle.removeEventListener("pointermove", move);
      handle.removeEventListener("pointerup", stop);
      handle.removeEventListener("pointercancel", stop);
    };
    handle.addEventListener("pointermove", move);
    handle.addEventListener("pointerup", stop);
    handle.addEventListener("pointercancel", stop);
    if (event.currentTarget === this.canvas) move(event);
  }

  nudge(event, control) {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
    if (!direction) return;
    event.preventDefault();
    const stride = event.shiftKey ? 10 : 1;
    const value = this.figure.values[control.name].map((v, i) => {
      const range = i ? this.spec.y : this.spec.x;
      return snap(range, (v - range[0]) / (range[1] - range[0]) + (direction[i] * stride) / HANDLE_STEPS);
    });
    this.figure.change(control.name, value);
  }
}

/**
 * The cells that the reader paints: a grid over an image. It is one stop for the keyboard, whose arrows move a cursor.
 * A stroke of mouse, pen or finger sets or clears all cells that it crosses, as the first one says.
 */
class Mask {
  constructor(figure, control) {
    Object.assign(this, { figure, control, at: [0, 0] });
    const cell = (i, j) => make("div", {
      role: "gridcell", class: "live-cell", id: figure.id(`${control.name}-${i}-${j}`),
      "aria-label": `row ${i + 1}, column ${j + 1}`,
    });
    this.cells = Array.from({ length: control.rows }, (_, i) =>
      Array.from({ length: control.columns }, (_, j) => cell(i, j)));
    const hint = figure.id(`${control.name}-hint`);
    const words = "Paint: drag over the picture, or use the arrow keys and space.";
    const more = make("span", { class: "live-unseen" }, " Painted cells are selected. Shift with an arrow key paints on.");
    this.hint = make("p", { class: "live-hint", id: hint }, words, more);
    this.element = make("div", {
      role: "grid", class: "live-mask", tabindex: 0, "data-paint": control.name, "aria-multiselectable": "true",
      "aria-label": control.label, "aria-describedby": hint,
      pointerdown: (event) => this.stroke(event), keydown: (event) => this.key(event),
    }, ...this.cells.map((row) => make("div", { role: "row", class: "live-row" }, ...row)));
    this.element.style.setProperty("--columns", control.columns);
    this.element.style.setProperty("--rows", control.rows);
    this.moveTo(...this.at);
  }

  get value() {
    return this.figure.values[this.control.name];
  }

  show(value) {
    this.cells.forEach((row, i) => row.forEach((cell, j) => {
      cell.setAttribute("aria-selected", String(value[i][j] === PAINTED));
    }));
  }

  place(box) {
    ["left", "top", "width", "height"].forEach((side, i) => { this.element.style[side] = `${box[i]}px`; });
  }

  isPainted([i, j]) {
    return this.value[i][j] === PAINTED;
  }

  /** Set or clear some cells; those outside the picture are passed over. */
  put(places, painted) {
    const rows = this.value.map((row) => [...row]);
    for (const [i, j] of places) if (rows[i]?.[j]) rows[i][j] = painted ? PAINTED : BARE;
    this.figure.change(this.control.name, rows.map((row) => row.join("")));
  }

  /** The keyboard's cursor. */
  moveTo(i, j) {
    this.cells[this.at[0]][this.at[1]].classList.remove("live-cursor");
    this.at = [clamp(i, 0, this.control.rows - 1), clamp(j, 0, this.control.columns - 1)];
    const cell = this.cells[this.at[0]][this.at[1]];
    cell.classList.add("live-cursor");
    this.element.setAttribute("aria-activedescendant", cell.id);
  }

  key(event) {
    if (event.altKey || event.metaKey) return;
    const [i, j] = this.at;
    const [bottom, right] = [this.control.rows - 1, this.control.columns - 1];
    const target = {
      ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [event.ctrlKey ? 0 : i, 0], End: [event.ctrlKey ? bottom : i, right],
      " ": this.at, Enter: this.at,
    }[event.key];
    if (!target) return;
    event.preventDefault();
    this.element.classList.add("live-keyed");
    const painted = this.isPainted(this.at);
    this.moveTo(...target);
    if (target[0] === i && target[1] === j && [" ", "Enter"].includes(event.key)) this.put([this.at], !painted);
    else if (event.shiftKey) this.put(line([i, j], this.at), painted);
  }

  /** The cell below a pointer; outside the picture its numbers lie outside the grid. */
  locate(event) {
    const box = this.element.getBoundingClientRect();
    const part = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    return [Math.floor(part[0] * this.control.rows), Math.floor(part[1] * this.control.columns)];
  }

  stroke(event) {
    if (event.button || !event.isPrimary) return;
    event.preventDefault();
    const { element } = this;
    element.focus({ preventScroll: true });
    element.classList.remove("live-keyed");
    element.setPointerCapture(event.pointerId);
    const before = this.value;
    let last = this.locate(event);
    this.moveTo(...last);
    const painted = !this.isPainted(this.at);
    this.put([this.at], painted);
    const move = (next) => {
      for (const each of next.getCoalescedEvents?.() ?? [next]) {
        const cell = this.locate(each);
        this.put(line(last, cell), painted);
        last = cell;
      }
      this.moveTo(...last);
    };
    const stop = (end) => {
      for (const [kind, listener] of Object.entries(listeners)) element.removeEventListener(kind, listener);
      if (end.type === "pointercancel") this.figure.change(this.control.name, before); // two fingers zoom the page
    };
    const listeners = { pointermove: move, pointerup: stop, pointercancel: stop };
    for (const [kind, listener] of Object.entries(listeners)) element.addEventListener(kind, listener);
  }
}

/** The cells of a straight stroke: a quick hand skips none. */
function line([i0, j0], [i1, j1]) {
  const length = Math.max(Math.abs(i1 - i0), Math.abs(j1 - j0), 1);
  const at = (from, to, k) => Math.round(from + ((to - from) * k) / length);
  return Array.from({ length: length + 1 }, (_, k) => [at(i0, i1, k), at(j0, j1, k)]);
}

function stroke(context, from, to) {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

/** The value at `part` in [0, 1] of a range, on its grid of HANDLE_STEPS. */
function snap([low, high], part) {
  return Number((low + (Math.round(clamp(part, 0, 1) * HANDLE_STEPS) / HANDLE_STEPS) * (high - low)).toPrecision(7));
}

// --- controls --------------------------------------------------------------------------------------------------------

/** One builder per kind of control: returns {element, show(value)}; every input is a native one with a label. */
const CONTROLS = {
  slider(figure, control) {
    const id = figure.id(control.name);
    const output = make("span", { class: "live-value", "aria-hidden": "true" });
    const input = make("input", {
      type: "range", id, min: control.low, max: control.high, step: control.step,
      input: () => figure.change(control.name, clamp(Number(input.value), control.low, control.high)),
    });
    const show = (value) => {
      input.value = value;
      output.textContent = figure.format(control.name);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    return { element: make("div", {}, make("label", { for: id }, control.label), input, output), show };
  },
  choice(figure, control) {
    const letters = control.options.reduce((sum, [, label]) => sum + label.length + 3, 0);
    return (control.options.length <= 4 && letters <= 48 ? radios : menu)(figure, control);
  },
  toggle(figure, control) {
    const input = make("input", { type: "checkbox", change: () => figure.change(control.name, input.checked) });
    const show = (value) => { input.checked = value; };
    return { element: make("div", {}, make("label", {}, input, control.label)), show };
  },
  point(figure, control) {
    const panel = figure.spec.panels[control.panel];
    const inputs = [0, 1].map((axis) => {
      const [low, high] = axis ? panel.y : panel.x;
      const moved = () => Number(Number(input.value).toPrecision(7));
      const input = make("input", {
        type: "range", min: low, max: high, step: (high - low) / HANDLE_STEPS,
        input: () => figure.change(control.name, figure.values[control.name].map((v, i) => (i === axis ? moved() : v))),
      });
      return input;
    });
    const names = [panel.xlabel || "x", panel.ylabel || "y"];
    const rows = inputs.map((input, axis) => make("label", { class: "live-coordinate" }, names[axis], input));
    const output = make("span", { class: "live-value", "aria-hidden": "true" });
    const show = (value) => {
      inputs.forEach((input, axis) => { input.value = value[axis]; });
      output.textContent = figure.format(control.name);
    };
    return { element: make("fieldset", {}, make("legend", {}, control.label), ...rows, output), show };
  },
  paint(figure, control) {
    const count = make("span", { class: "live-count", "aria-live": "polite" });
    const bare = Array.from({ length: control.rows }, () => BARE.repeat(control.columns));
    const clear = make("button", {
      type: "button", class: "live-button", "aria-label": `Clear: ${control.label}`,
      click: () => figure.change(control.name, bare),
    }, "Clear");
    const show = (value) => {
      count.textContent = countOf(control, value);
      figure.panels[control.panel].mask.show(value);
    };
    return { element: make("div", {}, make("span", {}, control.label), count, clear), show };
  },
};

/** "12 of 64 cells are painted": said while the reader paints. */
function countOf({ rows, columns }, value) {
  const painted = value.join("").split(PAINTED).length - 1;
  return `${painted} of ${rows * columns} cells ${painted === 1 ? "is" : "are"} painted`;
}

/** The count and, for those who do not see the picture, where: "…, in rows 3 to 5 and columns 2 to 8". */
function wordsOf(control, value) {
  const rows = value.flatMap((row, i) => (row.includes(PAINTED) ? [i + 1] : []));
  const columns = [...value[0]].flatMap((_, j) => (value.some((row) => row[j] === PAINTED) ? [j + 1] : []));
  const span = (word, all) => (all.length > 1 ? `${word}s ${all[0]} to ${all.at(-1)}` : `${word} ${all[0]}`);
  const place = rows.length ? `, in ${span("row", rows)} and ${span("column", columns)}` : "";
  return countOf(control, value) + place;
}

function radios(figure, control) {
  const inputs = control.options.map(([key]) => make("input", {
    type: "radio", name: figure.id(control.name), value: key, change: () => figure.change(control.name, key),
  }));
  const labels = control.options.map(([, text], i) => make("label", {}, inputs[i], make("span", {}, text)));
  const legend = make("legend", {}, control.label);
  const element = make("fieldset", { class: "live-radios" }, legend, make("div", {}, ...labels));
  return { element, show: (value) => inputs.forEach((input) => { input.checked = input.value === value; }) };
}

function menu(figure, control) {
  const id = figure.id(control.name);
  const options = control.options.map(([key, text]) => make("option", { value: key }, text));
  const select = make("select", { id, change: () => figure.change(control.name, select.value) }, ...options);
  const show = (value) => { select.value = value; };
  return { element: make("div", {}, make("label", { for: id }, control.label), select), show };
}

// --- the figure ------------------------------------------------------------------------------------------------------

class Figure {
  constructor(model, root) {
    this.model = model;
    this.spec = model.get("spec");
    this.values = structuredClone(model.get("values"));
    this.constants = unpack(model.get("constants"), this.spec.constants);
    this.prefix = `live-${Math.random().toString(36).slice(2, 8)}`;
    const base = model.companionStatic; // where a page without a kernel keeps its files
    this.engine = base ? runtimeEngine(base, this.spec) : kernelEngine(model, this.spec);
    this.position = Infinity; // the step that is shown, of result.total
    this.working = false;
    this.begun = new Promise((resolve) => { this.begin = resolve; });
    this.ready = new Promise((resolve) => { this.becomeReady = resolve; });
    this.build(root);
  }

  id(name) {
    return `${this.prefix}-${name}`;
  }

  // -- document

  build(root) {
    const { spec } = this;
    const built = (control) => ({ control, ...CONTROLS[control.kind](this, control) });
    this.controls = Object.fromEntries(spec.controls.map((control) => [control.name, built(control)]));
    for (const { control, element } of Object.values(this.controls)) {
      element.classList.add("live-control", `live-${control.kind}`);
      element.dataset.control = control.name;
    }
    this.panels = spec.panels.map((panel, i) => new Panel(this, panel, i));
    this.readouts = spec.readouts.map((readout) => ({ readout, cell: make("dd", {}, "…") }));
    this.description = make("p", { class: "live-unseen", id: this.id("description") });
    this.status = make("p", { class: "live-status", role: "status" });
    this.note = make("span", { class: "live-note" });
    const numbers = this.readouts.map(({ readout, cell }) => make("div", {}, make("dt", {}, readout.label), cell));
    const button = { type: "button", class: "live-button live-reset", click: () => this.reset() };
    const reset = make("button", button, "Reset");
    const panels = make("div", { class: "live-panels" }, ...this.panels.map((panel) => panel.element));
    panels.style.setProperty("--live-share", `calc((100% - ${spec.columns - 1}rem) / ${spec.columns} - 1px)`);
    this.root = make(
      "section", { class: "live-figure", "aria-labelledby": this.id("title"), "data-figure": spec.name },
      make("p", { class: "live-title", id: this.id("title") }, spec.title),
      make("div", { class: "live-controls" }, ...Object.values(this.controls).map((entry) => entry.element), reset),
      panels,
      ...(spec.repeat?.scrub ? [this.buildScrubber()] : []),
      ...(spec.readouts.length ? [make("dl", { class: "live-readouts" }, ...numbers)] : []),
      this.description,
      make("div", { class: "live-foot" }, this.status, this.note),
    );
    root.append(this.root);
    this.showValues();
    this.describe();
  }

  buildScrubber() {
    const id = this.id("scrub");
    const output = make("span", { class: "live-value", "aria-hidden": "true" });
    const walk = () => { this.stop(); this.moveTo(Number(input.value)); };
    const input = make("input", { type: "range", id, min: 0, max: 1, step: 1, input: walk });
    const switchOver = () => (this.playing ? this.stop() : this.play());
    const play = make("button", { type: "button", class: "live-button live-play", click: switchOver }, "Play");
    this.scrubber = { input, output, play };
    const label = make("label", { for: id }, "shown step");
    return make("div", { class: "live-scrub live-control", "data-scrub": "" }, play, label, input, output);
  }

  // -- values

  control(name) {
    return this.spec.controls.find((entry) => entry.name === name);
  }

  /** A control's value as words, for labels and the description. */
  format(name, value = this.values[name]) {
    const control = this.control(name);
    if (control.kind === "paint") return wordsOf(control, value);
    if (control.kind === "choice") return control.options.find(([key]) => key === value)[1];
    if (control.kind === "toggle") return value ? "on" : "off";
    if (control.kind === "slider") return withMinus(Number(value).toFixed(decimalsOf(control.step)));
    const panel = this.spec.panels[control.panel];
    const digits = [panel.x, panel.y].map(([low, high]) => decimalsOf((high - low) / HANDLE_STEPS));
    return `(${value.map((v, i) => withMinus(v.toFixed(Math.min(digits[i], 3)))).join(", ")})`;
  }

  isShown(mark) {
    if (!mark.show) return true;
    return Array.isArray(mark.show) ? this.values[mark.show[0]] === mark.show[1] : this.values[mark.show];
  }

  /** Take a new value: draw at once what needs no numbers, ask the engine for the rest. */
  change(name, value) {
    if (JSON.stringify(this.values[name]) === JSON.stringify(value)) return;
    this.values = { ...this.values, [name]: value };
    this.showValues();
    this.requestDraw();
    this.request();
    this.share();
  }

  reset() {
    this.stop();
    this.position = Infinity;
    const first = (control) => structuredClone(control.value);
    this.values = Object.fromEntries(this.spec.controls.map((control) => [control.name, first(control)]));
    this.showValues();
    this.requestDraw();
    this.request();
    this.share();
  }

  showValues() {
    for (const [name, { show }] of Object.entries(this.controls)) show(this.values[name]);
  }

  /** Tell the kernel (and through it other views) what the controls say, once the hand rests. */
  share() {
    clearTimeout(this.sharing);
    this.sharing = setTimeout(() => {
      this.model.set("values", this.values);
      this.model.save_changes();
    }, 250);
  }

  /** The kernel or another view has other values. */
  adopt() {
    const values = this.model.get("values");
    if (JSON.stringify(values) === JSON.stringify(this.values)) return;
    this.values = structuredClone(values);
    this.showValues();
    this.requestDraw();
    this.request();
  }

  // -- numbers

  start() {
    this.started = true;
    this.request();
    this.begin();
  }

  request() {
    if (!this.started || this.working) return;
    this.working = true;
    this.work = this.follow();
  }

  /** Compute until the picture belongs to the latest values; what came in between is skipped. */
  async follow() {
    while (this.settled !== this.values) {
      const values = this.values;
      const began = performance.now();
      const stale = () => this.values !== values && performance.now() - began > PATIENCE;
      const slow = setTimeout(() => this.say(this.engine.slow, "busy"), SLOW);
      try {
        if (!this.needsNumbers(values)) this.accept({ ...this.result, values });
        else {
          const progress = (k, n) => performance.now() - began > SLOW && this.say(`step ${k} of ${n}`, "busy");
          const result = await compute(this.engine, this.spec, this.constants, values, stale, progress);
          if (result) this.accept(result);
        }
      } catch (problem) {
        this.settled = values;
        this.failed = problem;
        this.say(`This figure could not be computed: ${problem.message}`, "error");
      } finally {
        clearTimeout(slow);
      }
    }
    this.working = false;
  }

  /** Toggles and the like that only show or hide marks leave the numbers as they are. */
  needsNumbers(values) {
    if (!this.result || this.failed) return true;
    const graph = graphOf(this.spec, values);
    const { repeat, select, graphs, controls } = this.spec;
    const asked = new Set([...graphs[graph].inputs, ...select, ...Object.keys(repeat?.carry ?? {}), repeat?.count]);
    const moved = (name) => JSON.stringify(values[name]) !== JSON.stringify(this.result.values[name]);
    return controls.some(({ name }) => asked.has(name) && moved(name));
  }

  accept(result) {
    const before = this.result?.total;
    const atEnd = !before || this.position >= before;
    this.position = atEnd ? result.total : Math.round((this.position / before) * result.total);
    this.result = result;
    this.settled = result.values;
    this.failed = null;
    this.note.textContent = `Computed by ${this.engine.label}`;
    this.root.dataset.state = "ready";
    this.moveTo(this.position);
    this.say("", "ready");
    this.becomeReady(true);
  }

  /** Resolves when the picture belongs to the present values. */
  async settle() {
    await this.begun;
    while (this.working) await this.work;
  }

  /** The tensors at the shown step: get(name), and get.history(name) for trails. */
  look() {
    const { result, spec, position } = this;
    const carry = spec.repeat?.carry ?? {};
    const step = clamp(position, 0, result.total);
    const get = (name) => {
      if (name in carry) return result.states[step][name];
      if (name in spec.outputs) return result.calls[Math.max(step - 1, 0)][name];
      return this.constants[name] ?? tensorOf(this.control(name), this.values[name]);
    };
    get.history = (name) => {
      if (!spec.repeat || !(name in carry || name in spec.outputs)) return null;
      const [records, first] = name in carry ? [result.states, 0] : [result.calls, 1];
      const tensors = records.slice(0, Math.max(step + 1 - first, 1)).map((record) => record[name]);
      if (tensors[0].shape.length === 3) return null;
      return { tensors, times: tensors.map((_, k) => (k + first) / result.total) };
    };
    return get;
  }

  shapeOf(name) {
    return this.spec.outputs[name] ?? this.constants[name].shape;
  }

  // -- pictures and words

  moveTo(step) {
    this.position = step;
    if (this.scrubber && this.result) {
      const { input, output } = this.scrubber;
      input.max = this.result.total;
      input.value = step;
      output.textContent = `${clamp(step, 0, this.result.total)} of ${this.result.total}`;
      input.setAttribute("aria-valuetext", output.textContent);
    }
    this.requestDraw();
    this.describe();
  }

  requestDraw() {
    this.drawing ??= requestAnimationFrame(() => { this.drawing = null; this.draw(); });
  }

  draw() {
    if (!this.root.isConnected) return;
    const theme = readTheme(this.root);
    const get = this.result && this.look();
    for (const panel of this.panels) panel.draw(theme, get);
  }

  /** Rewrite readouts and the text alternative; say the readouts once the hand rests. */
  describe() {
    const values = this.result?.values ?? this.values; // the words belong to the picture, not to the hand
    const words = Object.fromEntries(this.spec.controls.map(({ name }) => [name, this.format(name, values[name])]));
    const get = this.result && this.look();
    for (const { readout, cell } of this.readouts) {
      words[readout.name] = get ? significant(get(readout.output).data[0], readout.digits) : "not yet computed";
      cell.textContent = get ? words[readout.name] : "…";
    }
    this.description.textContent = this.spec.description.replace(/{(\w+)}/g, (_, name) => words[name]);
    clearTimeout(this.saying);
    if (get) this.saying = setTimeout(() => this.announce(words), 900);
  }

  announce(words) {
    if (this.status.dataset.state !== "ready") return;
    this.status.textContent = this.readouts.map(({ readout }) => `${readout.label}: ${words[readout.name]}`).join("; ");
  }

  /** One line for eyes and screen readers; silent while all is well. */
  say(text, state) {
    this.status.dataset.state = state;
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  // -- playing the steps

  play() {
    if (!this.result) return;
    const { total } = this.result;
    const first = this.position >= total ? 0 : this.position;
    const pace = clamp(2500 / total, 40, 400); // ms a step
    const began = performance.now();
    this.scrubber.play.textContent = "Pause";
    const next = () => {
      const step = Math.min(this.result.total, first + Math.floor((performance.now() - began) / pace));
      if (step !== this.position) this.moveTo(step);
      if (step >= this.result.total) return this.stop();
      this.playing = requestAnimationFrame(next);
    };
    this.playing = requestAnimationFrame(next);
  }

  stop() {
    cancelAnimationFrame(this.playing);
    this.playing = null;
    if (this.scrubber) this.scrubber.play.textContent = "Play";
  }

  /** What tests (and curious readers) can hold: names as in companion.live, numbers as the engine gave them. */
  handle() {
    const figure = this;
    return {
      name: this.spec.name,
      spec: this.spec,
      engine: this.engine.label,
      ready: this.ready,
      get values() { return figure.values; },
      get shown() { return figure.result?.values; },
      get busy() { return figure.working || Boolean(figure.drawing); },
      get failed() { return figure.failed?.message; },
      get milliseconds() { return figure.result?.milliseconds; },
      get outputs() { return figure.result && { ...figure.result.calls.at(-1), ...figure.result.states.at(-1) }; },
      settle: () => figure.settle(),
      set(name, value) { figure.change(name, value); return figure.settle(); },
      async evaluate(graph, inputs) {
        await figure.engine.prepare(graph);
        const given = Object.fromEntries(Object.entries(inputs).map(([name, value]) => [name, asTensor(value)]));
        return figure.engine.evaluate(graph, { ...settings(figure.spec, figure.constants, figure.values), ...given });
      },
    };
  }
}

/** Redraw when the width or the theme changes; start when the figure comes into view. Returns how to stop. */
function watch(figure) {
  const redraw = () => figure.requestDraw();
  const size = new ResizeObserver(redraw);
  for (const panel of figure.panels) size.observe(panel.plot);
  const theme = new MutationObserver(redraw);
  const filter = { attributes: true, attributeFilter: ["data-theme", "data-jp-theme-light", "data-jp-theme-name"] };
  for (const element of [document.documentElement, document.body]) theme.observe(element, filter);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", redraw);
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    figure.start();
  }, { rootMargin: "200px" });
  seen.observe(figure.root);
  const adopt = () => figure.adopt();
  figure.model.on("change:values", adopt);
  return () => {
    [size, theme, seen].forEach((observer) => observer.disconnect());
    dark.removeEventListener("change", redraw);
    figure.model.off("change:values", adopt);
    figure.stop();
    figure.engine.close();
  };
}

function render({ model, el }) {
  const figure = new Figure(model, el);
  figure.root.liveFigure = el.liveFigure = figure.handle();
  return watch(figure);
}

export default { render };
