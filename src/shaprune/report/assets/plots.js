// Plots by Plotly, in the page's colours. Its script is read once the page stands, so that the slider need not wait.
const DOTS = 300; // players with whiskers of their own; above, whiskers would hide each other
const plots = new Map(); // id -> what draws it
let ready = false;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Plotly reads a little HTML in texts: names are no markup.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function layout(x, y, more) {
  const axis = { gridcolor: colour("rule"), zerolinecolor: colour("muted"), linecolor: colour("rule"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("ink"), size: 13 },
    margin: { l: 48, r: 12, t: 12, b: 44 }, hovermode: "closest", legend: { orientation: "h", y: 1, yanchor: "bottom" },
    ...more, xaxis: { ...axis, title: { text: x }, ...(more || {}).xaxis }, yaxis: { ...axis, title: { text: y }, ...(more || {}).yaxis },
  };
}

function draw(id) {
  if (!ready || !$(id)) return;
  const [traces, its] = plots.get(id)();
  window.Plotly.react(id, traces, its, { responsive: true, displaylogo: false, displayModeBar: false });
}

let valuesDrawn = { order: [], group: null };
function valueTraces() {
  const all = order(chosen(), PLAYER.value, false);
  valuesDrawn = { order: all };
  const trace = {
    type: "scatter", mode: "markers", x: all.map((_, i) => i + 1), y: all.map((i) => D.value[i]),
    text: all.map((i) => plain(D.names[i])), hovertemplate: "%{text}: %{y}<extra></extra>",
    marker: { size: all.length > DOTS ? 4 : 7, color: dots(), line: { width: 0 } }, showlegend: false,
  };
  if (all.length <= DOTS) {
    trace.error_y = { type: "data", array: all.map((i) => wide(i) || 0), color: colour("muted"), thickness: 1, width: 0 };
  }
  const line = { type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, cliponaxis: true, line: { color: colour("ink"), width: 1, dash: "dash" } };
  const [high, low] = [Math.max(0, ...all.map((i) => D.high[i] ?? D.value[i])), Math.min(0, ...all.map((i) => D.low[i] ?? D.value[i]))];
  return [[trace, { ...line, y: [low, high], x: cut() }], layout("players, the most valuable first", "value", { height: 300 })];
}
const dots = () => {
  const [stays, leaves] = [colour("kept"), colour("gone")];
  return valuesDrawn.order.map((i) => (state.gone[i] ? leaves : stays));
};

// The cut: a line, where those who stay are the most valuable.
function cut() {
  const all = valuesDrawn.order;
  const first = all.findIndex((i) => state.gone[i]);
  const clean = first > 0 && all.slice(first).every((i) => state.gone[i]);
  return clean ? [first + 0.5, first + 0.5] : [null, null];
}

// Only what is on the screen follows the slider at once; the rest when it comes into view.
const seen = new Set();
const late = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) seen.delete(target.id);
    else {
      seen.add(target.id);
      if (late.delete(target.id)) refresh[target.id]();
    }
  }
});
function follows(id) {
  if (!ready || !$(id) || !$(id).data) return;
  if (seen.has(id)) refresh[id]();
  else late.add(id);
}
const refresh = {
  "plot-values": () => window.Plotly.restyle("plot-values", { "marker.color": [dots(), colour("ink")], x: [valuesDrawn.order.map((_, i) => i + 1), cut()] }),
  "plot-frontier": () => {
    const { x, y } = here();
    window.Plotly.restyle("plot-frontier", { x: [x], y: [y] }, [$("plot-frontier").data.length - 1]);
  },
};

const share = (path, name) => path.cost[name].map((cost) => cost / D.dense[name]);
const LINES = () => [colour("kept"), colour("norm"), colour("muted"), "#8a5bb5", "#2a9d8f", "#c0392b"];

function frontierTraces() {
  const lines = LINES();
  const traces = Object.entries(D.frontiers).filter(([, points]) => points.some((p) => p.quality !== null)).map(([name, points], i) => ({
    type: "scatter", mode: "lines+markers", name: plain(name), line: { color: lines[i % lines.length] },
    x: points.map((p) => p.shares[state.resource]), y: points.map((p) => p.quality),
  }));
  const path = ahead();
  if (path.quality) {
    const x = share(path, state.resource);
    traces.push({ type: "scatter", mode: "lines", name: "predicted", line: { color: colour("ink"), dash: "dot", width: 1.5 }, x, y: path.quality });
  }
  traces.push({ type: "scatter", mode: "markers", name: "the slider", marker: { symbol: "diamond", size: 11, color: colour("ink") }, ...here() });
  const x = `${RESOURCES[state.resource]} that stay`;
  return [traces, layout(x, "quality", { height: 340, xaxis: { tickformat: ".0%" } })];
}
function here() {
  const x = state.path.cost[state.resource][state.k] / D.dense[state.resource];
  if (state.path.quality) return { x: [x], y: [state.path.quality[state.k]] };
  const measured = Object.values(D.frontiers).map((points) => points.filter((p) => p.quality !== null)).find((points) => points.length);
  if (!measured) return { x: [], y: [] };
  return { x: [x], y: [between(measured.map((p) => [p.shares[state.resource], p.quality]).sort((a, b) => a[0] - b[0]), x)] };
}
// Linear between measured points, and their ends beyond.
function between(points, x) {
  if (x <= points[0][0]) return points[0][1];
  for (let i = 1; i < points.length; i++) {
    const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
    if (x <= x1) return y0 + ((y1 - y0) * (x - x0)) / (x1 - x0 || 1);
  }
  return points[points.length - 1][1];
}
function sensitivityTraces() {
  const ranked = Object.entries(D.sensitivity).sort((a, b) => Math.max(...b[1].loss) - Math.max(...a[1].loss));
  const lines = LINES();
  const traces = ranked.map(([name, curve], i) => ({
    type: "scatter", mode: "lines", name: plain(name), x: curve.share, y: curve.loss, showlegend: i < lines.length,
    line: i < lines.length ? { color: lines[i], width: 2 } : { color: colour("gone"), width: 1 },
  }));
  return [traces, layout("players of the group that have left", `loss in ${plain(D.quality)}`, { height: 360, xaxis: { tickformat: ".0%" } })];
}

function removalTraces() {
  const colours = { values: colour("kept"), "weight norm": colour("norm"), random: colour("gone") };
  const traces = [];
  for (const [name, found] of Object.entries(D.removal.orders)) {
    const line = { color: colours[name] || colour("muted") };
    if (found.low.some((low, i) => low !== found.high[i])) {
      const bound = { type: "scatter", mode: "lines", x: D.removal.share, line: { width: 0 }, showlegend: false, hoverinfo: "skip" };
      traces.push({ ...bound, y: found.low }, { ...bound, y: found.high, fill: "tonexty", fillcolor: "rgba(128,128,128,.2)" });
    }
    traces.push({ type: "scatter", mode: "lines+markers", name: plain(name), x: D.removal.share, y: found.mean, line });
  }
  return [traces, layout("players that have left", "test accuracy", { height: 340, xaxis: { tickformat: ".0%" }, yaxis: { tickformat: ".0%" } })];
}

function errorTraces() {
  const known = D.diagnostics.filter((d) => d.error !== null && d.error > 0);
  const rules = [...new Set(known.map((d) => d.stopped_by))];
  const lines = LINES();
  const traces = rules.map((rule, i) => {
    const own = known.filter((d) => d.stopped_by === rule);
    return { type: "scatter", mode: "markers", name: plain(`ended by ${rule}`), x: own.map((d) => d.evaluations), y: own.map((d) => d.error),
      text: own.map((d) => plain(d.group)), hovertemplate: "%{text}: %{y:.3g} after %{x:,}<extra></extra>", marker: { size: 8, color: lines[i % lines.length] } };
  });
  if (known.length) {
    const middle = [...known].sort((a, b) => a.error - b.error)[known.length >> 1];
    const times = [0.1, 0.3, 1, 3, 10];
    traces.push({ type: "scatter", mode: "lines", name: `as ${plain(middle.group)}`, line: { dash: "dash", color: colour("muted"), width: 1 }, hoverinfo: "skip",
      x: times.map((t) => t * middle.evaluations), y: times.map((t) => middle.error / Math.sqrt(t)) });
  }
  return [traces, layout("evaluations", "relative standard error", { height: 320, xaxis: { type: "log" }, yaxis: { type: "log", exponentformat: "power" } })];
}

plots.set("plot-values", valueTraces);
plots.set("plot-frontier", frontierTraces);
plots.set("plot-sensitivity", sensitivityTraces);
plots.set("plot-removal", removalTraces);
plots.set("plot-error", errorTraces);

const every = () => { for (const id of plots.keys()) draw(id); };
async function load() {
  const letters = atob($("plotly").textContent);
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
  ready = true;
  const rest = [...plots.keys()].filter($);
  for (const id of Object.keys(refresh)) if ($(id)) watch.observe($(id));
  // One plot per frame: the page answers in between.
  const next = () => {
    document.documentElement.dataset.plots = rest.length ? "begun" : "drawn";
    if (rest.length) { draw(rest.shift()); setTimeout(next); }
  };
  next();
}
