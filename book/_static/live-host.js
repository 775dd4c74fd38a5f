// Live figures on a page without a kernel: find the widget state that the notebook carries, give each figure a model
// that remembers values and tells of changes, and let the figure's own module draw. Numbers come from the site's files.

const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';
const OURS = "LiveFigure";
const HERE = new URL("./", import.meta.url).href; // …/_static/

const parsed = [...document.querySelectorAll(STATE)].map((script) => JSON.parse(script.textContent).state);
const states = Object.assign({}, ...parsed);
const modules = {};
const styles = new Set();

/** Bytes travel as base64 beside the state: put each back in its place. */
function withBuffers({ state, buffers = [] }) {
  for (const { path, data } of buffers) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const parent = path.slice(0, -1).reduce((place, key) => place[key], state);
    parent[path.at(-1)] = new DataView(bytes.buffer);
  }
  return state;
}

/** What an anywidget asks of its model, without a kernel behind it. */
function modelOf(state) {
  const listeners = {};
  const fire = (event) => [...(listeners[event] ?? [])].forEach((listener) => listener());
  return {
    companionStatic: HERE,
    get: (key) => state[key],
    set(key, value) {
      if (state[key] === value) return;
      state[key] = value;
      fire(`change:${key}`);
    },
    on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
    off: (event, listener) => (listener ? listeners[event]?.delete(listener) : delete listeners[event]),
    save_changes() {},
    send() {},
  };
}

/** The widget's module, once for all figures that carry the same text. */
function moduleOf(text) {
  modules[text] ??= (async () => {
    const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    try {
      return (await import(url)).default;
    } finally {
      URL.revokeObjectURL(url);
    }
  })();
  return modules[text];
}

function addStyle(text) {
  if (!text || styles.has(text)) return;
  styles.add(text);
  document.head.append(Object.assign(document.createElement("style"), { textContent: text }));
}

async function show(script, widget) {
  const place = document.createElement("div");
  script.before(place);
  try {
    const state = withBuffers(structuredClone(widget));
    addStyle(state._css);
    const { render } = await moduleOf(state._esm);
    await render({ model: modelOf(state), el: place });
  } catch (problem) {
    place.setAttribute("role", "alert");
    place.textContent = `This live figure could not be shown: ${problem.message}`;
  }
}

for (const script of document.querySelectorAll(VIEW)) {
  const widget = states[JSON.parse(script.textContent).model_id];
  if (widget?.state?._esm && widget.state._anywidget_id?.endsWith(OURS)) show(script, widget);
}
