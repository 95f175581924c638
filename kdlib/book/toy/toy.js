// The illustrative example of Sec. 6 (Fig. 7, left), to be touched. One ES module without dependencies: a page calls `render` with
// a model of its own, and so does anywidget. The mathematics is that of kdlib/toy.py, formula by formula; a test compares the two.

// ---- mathematics: theta = [w1, w2, b], logit z = w.x + b, class 1 with probability sigmoid(z / tau) ------------------------------

const PENALTY = 0.01, ROUNDING = 1e-12;

export function stream(seed) { // mulberry32
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = ((t + Math.imul(t ^ (t >>> 7), t | 61)) | 0) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export function normals(seed, n) {
  const next = stream(seed);
  return Array.from({ length: n }, () => {
    let sum = 0;
    for (let k = 0; k < 12; k++) sum += next();
    return sum - 6;
  });
}

export function start(seed) {
  const next = stream(seed);
  return [2 * next() - 1, 2 * next() - 1, 2 * next() - 1];
}

export const logit = (theta, p) => theta[0] * p.x + theta[1] * p.y + theta[2];
export const distance = (theta, p) => logit(theta, p) / Math.hypot(theta[0], theta[1]);
const sigmoid = z => 1 / (1 + Math.exp(-z));
const softplus = z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))); // -log sigmoid(-z)
const crossEntropy = (z, label) => softplus(label ? -z : z);

// The penalised logistic regression of all points: Newton's method, halving a step that makes the objective grow
// by more than rounding.
export function teacher(points, penalty = PENALTY) {
  let theta = [0, 0, 0];
  if (!points.length) return theta;
  const n = points.length;
  const objective = t => points.reduce((sum, p) => sum + crossEntropy(logit(t, p), p.label), 0) / n
    + penalty / 2 * (t[0] ** 2 + t[1] ** 2 + t[2] ** 2);
  let value = objective(theta);
  for (let round = 0; round < 100; round++) {
    const g = [0, 0, 0];
    let [xx, xy, yy, x1, y1, one] = [0, 0, 0, 0, 0, 0];
    for (const p of points) {
      const q = sigmoid(logit(theta, p)), d = q - p.label, h = q * (1 - q);
      g[0] += d * p.x; g[1] += d * p.y; g[2] += d;
      xx += h * p.x * p.x; xy += h * p.x * p.y; yy += h * p.y * p.y; x1 += h * p.x; y1 += h * p.y; one += h;
    }
    for (let k = 0; k < 3; k++) g[k] = g[k] / n + penalty * theta[k];
    if (Math.max(...g.map(Math.abs)) < 1e-10) break;
    let step = solve(xx / n + penalty, xy / n, x1 / n, yy / n + penalty, y1 / n, one / n + penalty, g);
    const moved = () => theta.map((t, k) => t - step[k]);
    let next = objective(moved());
    for (let half = 0; half < 30 && next > value * (1 + ROUNDING); half++) {
      step = step.map(s => s / 2);
      next = objective(moved());
    }
    theta = moved();
    value = next;
  }
  return theta;
}

// The symmetric system [[a, b, c], [b, d, e], [c, e, f]] s = g, by cofactors.
function solve(a, b, c, d, e, f, g) {
  const A = d * f - e * e, B = c * e - b * f, C = b * e - c * d, det = a * A + b * B + c * C;
  return [
    (A * g[0] + B * g[1] + C * g[2]) / det,
    (B * g[0] + (a * f - c * c) * g[1] + (b * c - a * e) * g[2]) / det,
    (C * g[0] + (b * c - a * e) * g[1] + (a * d - b * b) * g[2]) / det,
  ];
}

export function stepSize(points, { gamma, alpha }) {
  if (!points.length || !(gamma + alpha > 0)) return 0;
  return 4 / ((gamma + alpha) * points.reduce((sum, p) => sum + p.x * p.x + p.y * p.y + 1, 0) / points.length);
}

// Full-batch gradient descent on mean [gamma CE + alpha tau^2 KL]: a function that takes `steps` steps from `theta`. Points carry
// `label` and `target`.
export function trainer(points, { lr, gamma = 0, alpha = 0, tau = 1 }) {
  const n = points.length, x = Float64Array.from(points, p => p.x), y = Float64Array.from(points, p => p.y);
  const label = Float64Array.from(points, p => p.label), told = Float64Array.from(points, p => alpha ? sigmoid(p.target / tau) : 0);
  return ([w1, w2, b], steps) => {
    if (!n || !(gamma || alpha)) return [w1, w2, b];
    for (let step = 0; step < steps; step++) {
      let g1 = 0, g2 = 0, g0 = 0;
      for (let i = 0; i < n; i++) {
        const z = w1 * x[i] + w2 * y[i] + b;
        let g = 0;
        if (gamma) g += gamma * (1 / (1 + Math.exp(-z)) - label[i]);
        if (alpha) g += alpha * tau * (1 / (1 + Math.exp(-z / tau)) - told[i]);
        g1 += g * x[i]; g2 += g * y[i]; g0 += g;
      }
      w1 -= lr * (g1 / n); w2 -= lr * (g2 / n); b -= lr * (g0 / n);
    }
    return [w1, w2, b];
  };
}
export const train = (points, theta, { steps, ...how }) => trainer(points, how)(theta, steps);

export function losses(theta, points, { gamma, alpha, tau }) {
  return points.map(p => {
    const z = logit(theta, p), s = z / tau, t = p.target / tau;
    const kl = sigmoid(t) * (softplus(-s) - softplus(-t)) + sigmoid(-t) * (softplus(s) - softplus(t));
    return gamma * crossEntropy(z, p.label) + alpha * tau ** 2 * kl;
  });
}

// A sample of the lines that separate the classes: directions divide the arc that is possible, offsets the gap along each.
export function fan(points, directions = 15, offsets = 1) {
  const zero = points.filter(p => !p.label), one = points.filter(p => p.label);
  if (!zero.length || !one.length) return [];
  const ux = one[0].x - zero[0].x, uy = one[0].y - zero[0].y;
  let low = Infinity, high = -Infinity;
  for (const p of one) {
    for (const q of zero) {
      const dx = p.x - q.x, dy = p.y - q.y, angle = Math.atan2(ux * dy - uy * dx, dx * ux + dy * uy);
      if (!dx && !dy) return [];
      if (angle < low) low = angle;
      if (angle > high) high = angle;
    }
  }
  if (high - low > Math.PI - 1e-9) return [];
  const first = Math.atan2(uy, ux) + high - Math.PI / 2, width = Math.PI - (high - low), lines = [];
  for (let k = 0; k < directions; k++) {
    const angle = first + width * (k + 0.5) / directions, w1 = Math.cos(angle), w2 = Math.sin(angle);
    const near = zero.reduce((top, p) => Math.max(top, w1 * p.x + w2 * p.y), -Infinity);
    const far = one.reduce((least, p) => Math.min(least, w1 * p.x + w2 * p.y), Infinity);
    for (let j = 0; j < offsets; j++) lines.push([w1, w2, -(near + (far - near) * (j + 0.5) / offsets)]);
  }
  return lines;
}

// Rank of the (x, 1): 3 determines a line's theta. Coordinates are hundredths, so the products are exact in whole numbers.
export function rank(points) {
  const [first, ...rest] = points.map(p => [Math.round(100 * p.x), Math.round(100 * p.y)]);
  if (!first) return 0;
  const away = rest.map(([x, y]) => [x - first[0], y - first[1]]).filter(([x, y]) => x || y);
  if (!away.length) return 1;
  return away.some(([x, y]) => x * away[0][1] !== y * away[0][0]) ? 3 : 2;
}

// ---- the state: everything that the picture depends on, and its form in a link ----------------------------------------------------

export const X = 5, Y = 4, MOST = 200; // the picture shows [-5, 5] x [-4, 4]
const NUMBERS = { // lowest, highest, decimals
  gamma: [0, 1, 2], alpha: [0, 1, 2], tau: [0.1, 20, 2], noise: [0, 5, 2], draw: [1, 999999, 0], start: [1, 999999, 0],
  steps: [0, 1000, 0],
};
const round = (value, decimals) => Number(value.toFixed(decimals)) + 0; // never -0

// A copy of a state that holds what it must and nothing else; an Error that says what is wrong with it.
export function check(given) {
  const state = { scene: String(given.scene), points: [] };
  if (!/^[a-z]{1,20}$/.test(state.scene)) throw new Error("the scene's name must be a few small letters");
  for (const [name, [low, high, decimals]] of Object.entries(NUMBERS)) {
    const value = given[name];
    if (typeof value !== "number" || !(value >= low && value <= high)) throw new Error(`${name} must lie between ${low} and ${high}`);
    state[name] = round(value, decimals);
  }
  if (!Array.isArray(given.points) || given.points.length > MOST) throw new Error(`there can be at most ${MOST} points`);
  state.points = given.points.map(p => {
    if (![p.x, p.y].every(Number.isFinite) || Math.abs(p.x) > X || Math.abs(p.y) > Y) throw new Error("a point lies outside the picture");
    if (![0, 1].includes(p.label)) throw new Error("a point's class must be 0 or 1");
    return { x: round(p.x, 2), y: round(p.y, 2), label: p.label, seen: Boolean(p.seen) };
  });
  return state;
}

// v=1&scene=three&gamma=0&...&points=-300.140.2_...: hundredths of x and y, then the class, plus 2 if the student sees the point.
export function encode(state) {
  const points = state.points.map(p => `${Math.round(100 * p.x)}.${Math.round(100 * p.y)}.${p.label + 2 * p.seen}`).join("_");
  return `v=1&scene=${state.scene}&${Object.keys(NUMBERS).map(name => `${name}=${state[name]}`).join("&")}&points=${points}`;
}

// The state of a link, and whether to hide the controls. A link may leave out what its scene has. Error where it can't be read.
export function decode(text, scenes) {
  if (text.length > 6000) throw new Error("it is too long");
  const given = Object.create(null);
  for (const part of text.split("&").filter(Boolean)) {
    const [name, value = "", ...more] = part.split("=");
    if (more.length || Object.hasOwn(given, name)) throw new Error(`“${part.slice(0, 30)}” is not understood`);
    given[name] = value;
  }
  const { v = "1", embed = "", scene = scenes[0].scene, points, ...rest } = given;
  if (v !== "1") throw new Error("it belongs to another version of this page");
  if (!["", "1"].includes(embed)) throw new Error("embed takes no value");
  const state = { ...scenes.find(s => s.scene === scene) };
  if (!state.scene) throw new Error(`there is no scene “${scene.slice(0, 20)}”`);
  for (const [name, value] of Object.entries(rest)) {
    if (!Object.hasOwn(NUMBERS, name)) throw new Error(`“${name.slice(0, 20)}” is not understood`);
    if (!/^\d{1,6}(\.\d{1,2})?$/.test(value)) throw new Error(`${name} must be a plain number`);
    state[name] = Number(value);
  }
  if (points !== undefined) {
    state.points = points.split("_").filter(Boolean).map(text => {
      const found = /^(-?\d{1,3})\.(-?\d{1,3})\.([0-3])$/.exec(text);
      if (!found) throw new Error(`the point “${text.slice(0, 20)}” is not understood`);
      return { x: found[1] / 100, y: found[2] / 100, label: found[3] % 2, seen: found[3] > 1 };
    });
  }
  return { state: check(state), embed: Object.hasOwn(given, "embed") };
}

// ---- the view -----------------------------------------------------------------------------------------------------------------------

const TAUS = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 14, 20];
const SHAPES = ["M0-8.5 8 6H-8Z", "M-6.5-6.5H6.5V6.5H-6.5Z"], CLASSES = ["triangle", "square"], SIGNS = ["▲", "■"];
const LINES = [["independent", "independent student"], ["teacher", "teacher"], ["distilled", "distilled student"]];
let ids = 0;
const SLICE = 1, LOOK = 2000; // ms of training in a frame, by a clock that is looked at after so many points; the rest goes on in the next

function make(namespace, tag, attributes = {}, ...children) {
  const node = namespace ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const html = (...of) => make(false, ...of), svg = (...of) => make(true, ...of);

function set(node, attributes) { // touches the page only where something changes
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
}
function changed(part, ...of) { // whether what a part of the page is made of is anything else than when this was last asked
  const before = part.of;
  part.of = of;
  return !before || of.some((value, k) => value !== before[k]);
}
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Where a boundary crosses the picture's frame: two points, or null.
function ends([w1, w2, b]) {
  const size = w1 * w1 + w2 * w2;
  if (!(size > 0)) return null;
  const px = -b * w1 / size, py = -b * w2 / size, dx = -w2 / Math.sqrt(size), dy = w1 / Math.sqrt(size);
  let from = -Infinity, to = Infinity;
  for (const [p, d, limit] of [[px, dx, X], [py, dy, Y]]) {
    if (d === 0) {
      if (Math.abs(p) > limit) return null;
    } else {
      const [s, t] = [(-limit - p) / d, (limit - p) / d];
      from = Math.max(from, Math.min(s, t));
      to = Math.min(to, Math.max(s, t));
    }
  }
  return from < to ? [{ x: px + from * dx, y: py + from * dy }, { x: px + to * dx, y: py + to * dy }] : null;
}

const degrees = (a, b) => {
  const [s, t] = [Math.hypot(a[0], a[1]), Math.hypot(b[0], b[1])];
  return s && t ? Math.acos(Math.min(1, Math.max(-1, (a[0] * b[0] + a[1] * b[1]) / s / t))) * 180 / Math.PI : null;
};

// What `state` says of teacher and targets, and the two students, trained from one start as far as `advance` has come.
function lesson(state) {
  const chosen = teacher(state.points), slope = Math.hypot(chosen[0], chosen[1]);
  const noise = state.noise ? normals(state.draw, state.points.length) : [];
  const points = state.points.map((p, i) => ({ ...p, target: logit(chosen, p) + (state.noise ? state.noise * noise[i] : 0) }));
  const seen = points.filter(p => p.seen), soft = { gamma: state.gamma, alpha: state.alpha, tau: state.tau }, hard = { gamma: 1, alpha: 0 };
  const [harder, softer] = [hard, soft].map(how => trainer(seen, { ...how, lr: stepSize(seen, how) }));
  return {
    state, points, seen, soft, slope, teacher: chosen, fan: fan(seen), rank: rank(seen), done: 0,
    independent: start(state.start), distilled: start(state.start),
    advance(steps) { // the same steps in the same order, however the clock divides them
      const began = performance.now(), most = Math.max(1, Math.floor(LOOK / Math.max(1, seen.length)));
      do {
        const now = Math.min(steps - this.done, most);
        this.independent = harder(this.independent, now);
        this.distilled = softer(this.distilled, now);
        this.done += now;
      } while (this.done < steps && performance.now() - began < SLICE);
    },
  };
}

// Whether two states differ in more than the number of steps.
const other = (a, b) => Object.keys(a).some(name => name !== "steps" && name !== "scene" && a[name] !== b[name]);

// How far, at most, a line's distances from points are off those that the teacher's answers tell.
const gap = (theta, seen, slope) => Math.max(...seen.map(p => Math.abs(Math.abs(distance(theta, p)) - Math.abs(p.target) / slope)));

function note({ state, rank, seen, distilled, teacher, slope, done }) {
  const off = degrees(distilled, teacher), dots = n => `${n} point${n === 1 ? "" : "s"}`;
  if (!seen.length) return "The student sees no point, so it stays where training starts.";
  if (!done) return "Before the first step both students stand at the same random start.";
  if (!state.gamma && !state.alpha) return "Both loss weights are 0, so the distilled student learns nothing.";
  if (!state.alpha) return "Told hard labels only, the distilled student learns what the independent student learns: one line among many.";
  if (rank < 3) {
    return `The student’s ${dots(seen.length)} ${rank < 2 ? "" : seen.length > 2 ? "lie on one line and " : ""}do${seen.length === 1 ? "es" : ""}`
      + " not determine a boundary. What they leave open is still as it was at the random start.";
  }
  if (state.gamma) return "The hard labels always ask for more confidence, so together the two pull the student off the teacher’s answers.";
  if (off === null) return "The teacher has no boundary: it needs points of both classes.";
  if (state.noise) return `The student fits the noise in the teacher’s answers: its line is ${off.toFixed(1)}° off. More points average it out.`;
  if (off > 1) return `The teacher’s boundary fits all ${seen.length} answers, but after ${done} steps the student is still ${off.toFixed(1)}° off.`;
  if (gap(distilled, seen, slope) > 0.05) {
    return `The teacher’s boundary fits all ${seen.length} answers, but after ${done} steps the student’s distances are still up to ${gap(distilled, seen, slope).toFixed(2)} off.`;
  }
  return `${dots(seen.length)} not on one line: only the teacher’s boundary fits all of the teacher’s answers, and the student has found it.`;
}

export function render({ model, el }) {
  const scenes = model.get("scenes"), embed = Boolean(model.get("embed"));
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let state = check(model.get("state") ?? scenes[0]), current = lesson(state), shown = null;
  let past = [], gesture = null, count = 0, drag = null, hovered = null, selected = null, playing = false, waiting = 0, timer = 0;
  let kept = state, scale = 60;
  const updates = [], lines = {}, words = {};

  // -- what changes the state. Changes of one gesture (a drag, keys on one point, a slider's way) are undone together.
  function change(patch, name = null) {
    const next = check({ ...state, ...patch });
    if (!name || name !== gesture) past = [...past.slice(-99), state];
    gesture = name;
    state = next;
    syncPoints();
    later();
  }
  function changePoint(i, patch, name) {
    change({ points: state.points.map((p, k) => k === i ? { ...p, ...patch } : p) }, name);
  }
  const move = (i, x, y, name) => changePoint(i, {
    x: round(Math.min(X, Math.max(-X, x)), 2), y: round(Math.min(Y, Math.max(-Y, y)), 2) }, name);
  function add(x, y) {
    if (state.points.length >= MOST) return say(status, `There can be at most ${MOST} points.`);
    change({ points: [...state.points, { x: round(x, 2), y: round(y, 2), label: x + y > 0 ? 1 : 0, seen: true }] });
    choose(state.points.length - 1, true);
  }
  function remove(i) {
    drag = null;
    const next = Math.min(i, state.points.length - 2);
    change({ points: state.points.filter((_, k) => k !== i) });
    choose(next < 0 ? null : next, true);
  }
  function undo() {
    if (!past.length) return;
    stop();
    drag = null;
    state = past.pop();
    gesture = null;
    syncPoints();
    choose(selected !== null && selected < state.points.length ? selected : null);
    later();
  }
  function open(scene) {
    stop();
    drag = null;
    change(check(scene));
    begin();
  }
  function begin() { // with the scene's control open, and the student's first point chosen
    const { panel } = scenes.find(s => s.scene === state.scene) ?? scenes[0], first = state.points.findIndex(p => p.seen);
    panels[panel].open = true;
    choose(first < 0 ? null : first);
  }
  function choose(i, focus = false) {
    selected = i;
    hovered = null;
    if (focus && i !== null) dots[i].node.focus();
    later();
  }

  // -- play: the number of steps grows by a share of itself each frame, so that the first steps can be watched
  function stop() {
    playing = false;
  }
  function play() {
    if (playing) return stop(), later();
    if (still.matches) return change({ steps: 1000 });
    change({ steps: state.steps >= 1000 ? 0 : state.steps }, `play ${++count}`);
    playing = true;
    later();
  }

  // -- the page's parts
  const q = name => `kdtoy-${name}`;
  const button = (text, click, attributes = {}) => html("button", { type: "button", onclick: click, ...attributes }, text);
  const picture = svg("svg", { class: q("picture"), role: "application", "aria-roledescription": "picture of movable points",
    "aria-label": "Two classes of points in the plane, with the boundaries of teacher and students" });
  const layer = (name, tag = "path") => picture.appendChild(svg(tag, { class: q(name) }));
  layer("ground", "rect");
  const fanPath = layer("fan"), circlePath = layer("circles"), radiusPath = layer("radii");
  const paths = Object.fromEntries(LINES.map(([name]) => [name, layer(`line ${q(name)}`)]));
  const labels = [["fan", "other lines that fit the labels"], ...LINES].map(([name, text]) => {
    const node = picture.appendChild(svg("text", { class: `${q("label")} ${q(name)}`, "aria-hidden": "true" }, text));
    return { name, node, last: -1 };
  });
  const pointLayer = layer("points", "g"), dots = [];

  const status = html("p", { class: q("note"), role: "status" });
  const table = html("tbody");
  const rows = ["distilled", "independent"].map(name => {
    const cells = [0, 1, 2].map(() => html("td"));
    table.append(html("tr", { class: q(name) }, html("th", { scope: "row" }, `${name} student`), ...cells));
    return { name, cells };
  });
  const results = html("table", { class: q("results") }, html("caption", {}, "How close each student comes to the teacher"),
    html("thead", {}, html("tr", {}, html("td"), ...["turned from the teacher by", "hidden points on the teacher’s side", "largest gap to a circle"]
      .map(text => html("th", { scope: "col" }, text)))), table);

  const aboutTitle = html("p", { class: q("about-title") }), aboutShare = html("p", { class: q("share") });
  const bars = ["teacher", "distilled", "independent"].map(name => {
    const bar = html("span", { class: q("bar") }), value = html("span", { class: q("value") });
    return { name, bar, value, row: html("div", { class: `${q("row")} ${q(name)}` },
      html("span", { class: q("who") }, name), html("span", { class: q("track"), "aria-hidden": "true" }, bar), value) };
  });
  const act = f => () => selected !== null && f(selected);
  const flipButton = button("Change class", act(i => changePoint(i, { label: 1 - state.points[i].label })));
  const seeButton = button("", act(i => changePoint(i, { seen: !state.points[i].seen })));
  const actions = html("div", { class: q("actions") }, flipButton, seeButton, button("Remove", act(remove)));
  const about = html("section", { class: q("about"), "aria-label": "The chosen point" }, aboutTitle, ...bars.map(b => b.row), aboutShare, actions);

  function slider(label, name, { min, max, step, read = v => v, write = v => v, text = String }) {
    const id = `kdtoy-${++ids}`, value = html("output", { for: id });
    const input = html("input", { id, type: "range", min, max, step, oninput: () => {
      stop();
      change({ [name]: read(Number(input.value)) }, `slider ${name}`);
    }, onchange: () => { gesture = null; } });
    updates.push(() => {
      const at = String(write(state[name]));
      if (input.value !== at) input.value = at;
      say(value, text(state[name]));
      set(input, { "aria-valuetext": text(state[name]) });
    });
    return html("div", { class: q("slider") }, html("label", { for: id }, label), value, input);
  }
  function panel(title, text, ...content) {
    return html("details", { name: "kdtoy-panel", class: q("panel") }, html("summary", {}, title), ...(text ? [html("p", {}, text)] : []), ...content);
  }
  const told = [["hard labels", 1, 0], ["soft targets", 0, 1], ["both", 0.5, 0.5]].map(([text, gamma, alpha]) => {
    const b = button(text, () => change({ gamma, alpha }));
    updates.push(() => set(b, { "aria-pressed": `${state.gamma > 0 === gamma > 0 && state.alpha > 0 === alpha > 0}` }));
    return b;
  });
  const playButton = button("Play", play);
  const nearest = tau => TAUS.reduce((best, t, k) => Math.abs(Math.log(t / tau)) < Math.abs(Math.log(TAUS[best] / tau)) ? k : best, 0);
  const seeAll = seen => () => change({ points: state.points.map(p => ({ ...p, seen })) });
  const panels = {
    told: panel("What is the student told?", "Hard labels say which class a point has. Soft targets say how sure the teacher is of it, "
      + "and so how far the point lies from the teacher’s boundary.",
      html("div", { class: q("choice"), role: "group", "aria-label": "What the student is told" }, ...told),
      slider("weight of the hard labels, γ", "gamma", { min: 0, max: 1, step: 0.05, text: v => v.toFixed(2) }),
      slider("weight of the soft targets, α", "alpha", { min: 0, max: 1, step: 0.05, text: v => v.toFixed(2) }),
      html("p", { class: q("small") }, "Loss: γ × cross entropy + α × τ² × KL divergence. The step size is divided by γ + α, so only their ratio matters.")),
    points: panel("Which points?", "Drag any point. The student sees filled points, the teacher sees all. Choose a point to change its class, "
      + "to show it to the student or hide it, or to remove it. Double-click an empty place to add one there.",
      html("div", { class: q("choice") }, button("Add a point", () => add(0.5 + 0.25 * (state.points.length % 5), 0.5)),
        button("Show all to the student", seeAll(true)), button("Hide all", seeAll(false)))),
    training: panel("How long does it train?", "Both students start at the same random line and take equally many steps of gradient descent.",
      html("div", { class: q("choice") }, playButton, button("One step", () => (stop(), change({ steps: Math.min(1000, state.steps + 1) }, "one step"))),
        button("To step 0", () => (stop(), change({ steps: 0 })))),
      slider("steps", "steps", { min: 0, max: 100, step: 1, read: v => Math.round(1000 * (v / 100) ** 3), write: v => Math.round(100 * Math.cbrt(v / 1000)) }),
      html("div", { class: q("choice") }, button("New random start", () => change({ start: state.start % 999999 + 1 })))),
    temperature: panel("At which temperature?", "The teacher’s answer is sigmoid(z / τ). At a low temperature τ every answer is nearly 0 or 1 and says "
      + "little more than the label. At a higher one the answers differ by distance, and can be matched.",
      slider("temperature τ", "tau", { min: 0, max: TAUS.length - 1, step: 1, read: v => TAUS[v], write: nearest })),
    noise: panel("How reliable is the teacher?", "Noise is added to each of the teacher’s answers (logits). The circles show the distances that "
      + "the student is told, which are then wrong.",
      slider("noise, standard deviation", "noise", { min: 0, max: 5, step: 0.25, text: v => v.toFixed(2) }),
      html("div", { class: q("choice") }, button("Draw other noise", () => change({ draw: state.draw % 999999 + 1 })))),
    keys: panel("Keys", "", html("dl", {}, ...[["Tab", "go to the next point or control"], ["Arrow keys", "move the point by 0.1; with Shift by 0.5"],
      ["Space", "change its class"], ["Enter", "show it to the student, or hide it"], ["Delete", "remove it"], ["Ctrl+Z", "undo"]]
      .flatMap(([key, text]) => [html("dt", {}, key), html("dd", {}, text)]))),
  };

  const sceneTitle = html("strong"), sceneText = html("span"), sceneQuestion = html("em");
  const sceneButtons = scenes.map(scene => {
    const b = button(scene.name, () => open(scene));
    updates.push(() => set(b, { "aria-pressed": `${scene.scene === state.scene}` }));
    return b;
  });
  const undoButton = button("Undo", undo), message = html("p", { class: q("message"), role: "alert", hidden: true });
  const startOver = button("Start over", () => open(scenes.find(s => s.scene === state.scene) ?? scenes[0]));
  const skip = html("a", { class: q("skip"), href: "#", onclick: event => {
    event.preventDefault();
    (selected === null ? startOver : flipButton).focus();
  } }, "Skip the points");
  const caption = html("p", { class: q("caption") }, html("b", {}, "Filled"), " points are the student’s; hollow ones only the teacher has seen. "
    + "Thin grey lines are others that fit the labels of the student’s points. A circle’s radius is the distance to the teacher’s boundary, as its answer tells it: a line that keeps these distances touches every circle.");
  const figure = html("div", { class: q("figure") }, ...embed ? [] : [skip], picture);
  el.classList.add("kdtoy");
  el.classList.toggle("kdtoy-embed", embed);
  el.replaceChildren(message, html("div", { class: q("scenes") }, html("div", { class: q("top") },
    html("div", { class: q("choice"), role: "group", "aria-label": "Scenes" }, ...sceneButtons),
    html("div", { class: q("choice") }, undoButton, startOver)),
    html("p", { class: q("scene") }, sceneTitle, " ", sceneText, " ", sceneQuestion)),
  html("div", { class: q("columns") }, html("div", { class: q("main") }, figure, status, caption, results),
    html("div", { class: q("side") }, about, html("div", { class: q("controls") }, ...Object.values(panels)))));
  if (embed) el.querySelectorAll(".kdtoy-scenes, .kdtoy-side, .kdtoy-results").forEach(part => { part.hidden = true; });

  // -- points: one node each
  const px = x => (X + x) * scale, py = y => (Y - y) * scale;
  function syncPoints() {
    while (dots.length > state.points.length) dots.pop().node.remove();
    while (dots.length < state.points.length) {
      const i = dots.length, shape = svg("path", { class: q("shape") });
      const node = svg("g", { class: q("point"), tabindex: 0, role: "button", "aria-roledescription": "movable point",
        onpointerdown: event => take(event, i), onpointerenter: () => hover(i), onpointerleave: () => hover(null),
        onfocus: () => { if (selected !== i) choose(i); }, onblur: () => { if (!drag) gesture = null; }, onkeydown: event => key(event, i) },
      svg("circle", { class: q("hit"), r: 17 }), svg("circle", { class: q("ring"), r: 14 }), shape);
      dots.push({ node: pointLayer.appendChild(node), shape });
    }
  }
  function hover(i) {
    hovered = i;
    later();
  }
  function take(event, i) {
    if (event.button) return;
    event.preventDefault();
    stop();
    const box = picture.getBoundingClientRect(), p = state.points[i];
    drag = { i, id: event.pointerId, name: `drag ${++count}`, dx: px(p.x) - (event.clientX - box.left), dy: py(p.y) - (event.clientY - box.top) };
    choose(i, true);
    picture.setPointerCapture(event.pointerId);
  }
  picture.addEventListener("pointermove", event => {
    if (!drag || event.pointerId !== drag.id) return;
    const box = picture.getBoundingClientRect();
    move(drag.i, (event.clientX - box.left + drag.dx) / scale - X, Y - (event.clientY - box.top + drag.dy) / scale, drag.name);
  });
  for (const name of ["pointerup", "pointercancel"]) picture.addEventListener(name, event => {
    if (drag && event.pointerId === drag.id) drag = gesture = null;
  });
  picture.addEventListener("touchstart", event => { // touch-action has no effect inside an SVG
    if (event.target.closest(".kdtoy-point")) event.preventDefault();
  }, { passive: false });
  picture.addEventListener("dblclick", event => {
    if (event.target.closest(".kdtoy-point")) return;
    const box = picture.getBoundingClientRect();
    add((event.clientX - box.left) / scale - X, Y - (event.clientY - box.top) / scale);
  });
  function key(event, i) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = event.shiftKey ? 0.5 : 0.1, p = state.points[i];
    const way = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, by], ArrowDown: [0, -by] }[event.key];
    if (way) move(i, p.x + way[0], p.y + way[1], `keys ${i}`);
    else if (event.key === " ") changePoint(i, { label: 1 - p.label });
    else if (event.key === "Enter") changePoint(i, { seen: !p.seen });
    else if (event.key === "Delete" || event.key === "Backspace") remove(i);
    else return;
    stop();
    event.preventDefault();
  }
  el.addEventListener("keydown", event => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") {
      event.preventDefault();
      undo();
    }
  });

  // -- drawing, at most once a frame
  function later() {
    waiting ||= requestAnimationFrame(frame);
  }
  function frame() {
    waiting = 0;
    if (playing) {
      state = { ...state, steps: Math.min(1000, state.steps + Math.max(1, Math.round(0.03 * state.steps))) };
      playing = state.steps < 1000;
    }
    // Training that takes more than a frame is finished for the state that it began with, so that a drag shows something on its way.
    const fresh = current === shown || !other(current.state, state);
    if (fresh && (other(current.state, state) || current.done > state.steps)) current = lesson(state);
    current.goal = fresh ? state.steps : current.state.steps;
    if (current.done < current.goal) current.advance(current.goal);
    if (current.done >= current.goal || !shown) shown = current;
    const busy = playing || shown !== current || current.done < state.steps || other(current.state, state);
    draw();
    set(picture, { "aria-busy": `${busy}` });
    if (busy) later();
    clearTimeout(timer);
    timer = setTimeout(settle, 200);
  }
  function draw() {
    state.points.forEach((p, i) => {
      if (!changed(dots[i], p.x, p.y, p.label, p.seen, i === selected, scale)) return;
      set(dots[i].node, { transform: `translate(${px(p.x).toFixed(1)} ${py(p.y).toFixed(1)})`,
        class: `kdtoy-point kdtoy-${CLASSES[p.label]}${p.seen ? " kdtoy-seen" : ""}${i === selected ? " kdtoy-selected" : ""}` });
      set(dots[i].shape, { d: SHAPES[p.label] });
    });
    if (changed(lines, shown, shown.done, scale)) trace();
    if (changed(words, shown, shown.done, hovered, selected, state.tau)) tell();
    for (const update of updates) update();
    const scene = scenes.find(s => s.scene === state.scene) ?? scenes[0];
    say(sceneTitle, scene.title);
    say(sceneText, scene.text);
    say(sceneQuestion, `Try it: ${scene.question}`);
    say(playButton, playing ? "Pause" : "Play");
    undoButton.disabled = !past.length;
  }
  function trace() {
    const segment = theta => {
      const two = ends(theta);
      return two ? `M${px(two[0].x).toFixed(1)} ${py(two[0].y).toFixed(1)}L${px(two[1].x).toFixed(1)} ${py(two[1].y).toFixed(1)}` : "";
    };
    set(fanPath, { d: shown.fan.map(segment).join("") });
    for (const [name] of LINES) set(paths[name], { d: segment(shown[name]) });
    let circles = "", radii = "";
    if (shown.slope > 1e-9) {
      for (const p of shown.seen) {
        const r = Math.abs(p.target) / shown.slope * scale, x = px(p.x), y = py(p.y), far = p.target / shown.slope ** 2;
        const arc = way => `a${r.toFixed(1)} ${r.toFixed(1)} 0 1 0 ${(way * 2 * r).toFixed(1)} 0`;
        circles += `M${(x - r).toFixed(1)} ${y.toFixed(1)}${arc(1)}${arc(-1)}`;
        radii += `M${x.toFixed(1)} ${y.toFixed(1)}L${px(p.x - far * shown.teacher[0]).toFixed(1)} ${py(p.y - far * shown.teacher[1]).toFixed(1)}`;
      }
    }
    set(circlePath, { d: circles });
    set(radiusPath, { d: radii });
    place();
  }

  // Labels go beside their lines where they cover least; a place once taken is left only for a clearly better one.
  function place() {
    const width = 2 * X * scale, height = 2 * Y * scale, taken = [], { points } = shown;
    const us = Float64Array.from(points, p => px(p.x)), vs = Float64Array.from(points, p => py(p.y));
    const lines = Object.fromEntries([["fan", shown.fan[0] ?? [0, 0, 1]], ...LINES.map(([name]) => [name, shown[name]])]
      .map(([name, theta]) => [name, ends(theta)?.map(p => [px(p.x), py(p.y)])]));
    for (const label of [...labels].reverse()) {
      const line = lines[label.name];
      set(label.node, { visibility: line ? "visible" : "hidden" });
      if (!line) continue;
      label.width ||= label.node.getComputedTextLength();
      const [[ax, ay], [bx, by]] = line, length = Math.hypot(bx - ax, by - ay) || 1, nx = (ay - by) / length, ny = (bx - ax) / length;
      const w = label.width / 2 + 8, h = 10;
      let best = null;
      [0.08, 0.92, 0.2, 0.8, 0.35, 0.65].forEach((f, k) => [1, -1].forEach((side, j) => {
        const off = side * (Math.abs(nx) * w + Math.abs(ny) * h + 3), id = 2 * k + j;
        const x = Math.min(width - w, Math.max(w, ax + f * (bx - ax) + off * nx));
        const y = Math.min(height - h, Math.max(h, ay + f * (by - ay) + off * ny));
        const over = ([u, v, uw, vh]) => Math.abs(u - x) < uw + w && Math.abs(v - y) < vh + h;
        let cost = k - (id === label.last ? 4 : 0);
        for (const box of taken) if (over(box)) cost += 100;
        for (let i = 0; i < us.length; i++) if (Math.abs(us[i] - x) < w + 9 && Math.abs(vs[i] - y) < h + 9) cost += 8;
        for (const [name, two] of Object.entries(lines)) {
          if (!two || name === "fan") continue;
          const [[cx, cy], [dx, dy]] = two, size = Math.hypot(dx - cx, dy - cy) || 1, mx = (cy - dy) / size, my = (dx - cx) / size;
          if (Math.abs((x - cx) * mx + (y - cy) * my) < Math.abs(mx) * w + Math.abs(my) * h) cost += 5;
        }
        if (!best || cost < best.cost) best = { cost, x, y, id };
      }));
      if (label.name === "fan" && best.cost > 7) { // it would cover something, and the caption names these lines too
        set(label.node, { visibility: "hidden" });
        continue;
      }
      label.last = best.id;
      taken.push([best.x, best.y, w, h]);
      set(label.node, { x: best.x.toFixed(1), y: (best.y + 5).toFixed(1) });
    }
  }

  // The table, and what is said of the point under the pointer or, else, the chosen one.
  function tell() {
    const hidden = shown.points.filter(p => !p.seen), named = theta => Math.hypot(theta[0], theta[1]) > 0;
    for (const { name, cells } of rows) {
      const theta = shown[name], angle = degrees(theta, shown.teacher);
      const agree = hidden.filter(p => logit(theta, p) > 0 === logit(shown.teacher, p) > 0).length;
      say(cells[0], angle === null ? "–" : `${angle.toFixed(1)}°`);
      say(cells[1], hidden.length ? `${agree} of ${hidden.length}` : "–");
      say(cells[2], shown.seen.length && shown.slope && named(theta) ? gap(theta, shown.seen, shown.slope).toFixed(2) : "–");
    }
    const i = hovered ?? selected, p = i === null ? null : shown.points[i];
    actions.hidden = !p;
    actions.style.visibility = i === selected ? "visible" : "hidden"; // its place is kept, so that nothing jumps
    for (const b of bars) b.row.hidden = !p;
    if (!p) {
      say(aboutTitle, "Point at a point, or choose one, to see what teacher and students say about it.");
      say(aboutShare, "");
      return;
    }
    say(aboutTitle, `Point ${i + 1}, a ${CLASSES[p.label]}${p.seen ? "" : ", hidden from the student"}. `
      + `Probability of ${SIGNS[1]} at temperature ${state.tau}:`);
    for (const { name, bar, value } of bars) {
      const z = name === "teacher" ? p.target : logit(shown[name], p), share = sigmoid(z / state.tau);
      bar.style.width = `${(100 * share).toFixed(1)}%`;
      say(value, share.toFixed(3));
    }
    say(seeButton, p.seen ? "Hide from the student" : "Show to the student");
    if (!p.seen) return say(aboutShare, "It has no part in the student’s loss.");
    if (!state.gamma && !state.alpha) return say(aboutShare, "Both loss weights are 0, so there is no loss to share.");
    const all = losses(shown.distilled, shown.seen, shown.soft), mine = all[shown.seen.indexOf(p)], sum = all.reduce((a, b) => a + b, 0);
    say(aboutShare, sum > 1e-9 ? `Its share of the distilled student’s loss: ${(100 * mine / sum).toFixed(0)} % of ${(sum / all.length).toPrecision(2)}.`
      : "The distilled student’s loss is 0 to nine digits: every answer is matched.");
  }

  // Once things are at rest: words for those who listen, and the state for who keeps it (the link, Python).
  function settle() {
    if (picture.getAttribute("aria-busy") === "true") return;
    shown.points.forEach((p, i) => set(dots[i].node, { "aria-label": `Point ${i + 1}, ${CLASSES[p.label]}, ${p.seen ? "seen by" : "hidden from"} `
      + `the student, at ${p.x.toFixed(1)}, ${p.y.toFixed(1)}` }));
    say(status, note(shown));
    if (kept !== state) {
      kept = state;
      model.set("state", state);
      model.save_changes();
    }
  }

  // -- the outside
  function resize() {
    const room = figure.clientWidth || 600;
    const width = Math.max(240, Math.min(room, embed ? 1200 : 720, Math.max(embed ? 0 : 400, innerHeight - (embed ? 150 : 340)) * X / Y));
    scale = width / (2 * X);
    set(picture, { width: width.toFixed(0), height: (width * Y / X).toFixed(0), viewBox: `0 0 ${width.toFixed(0)} ${(width * Y / X).toFixed(0)}` });
    set(picture.firstChild, { width: (2 * X * scale).toFixed(1), height: (2 * Y * scale).toFixed(1) });
    later();
  }
  function outside() {
    if (model.get("state") === kept) return;
    stop();
    try {
      change(model.get("state"));
      kept = state;
      begin();
    } catch (error) {
      complain(`This state cannot be shown: ${error.message}.`);
    }
  }
  function complain(text) {
    say(message, text);
    message.hidden = !text;
  }
  const remark = () => complain(model.get("message") ?? "");
  const observer = new ResizeObserver(resize);
  observer.observe(figure);
  model.on("change:state", outside);
  model.on("change:message", remark);
  syncPoints();
  begin();
  remark();
  resize();
  return () => {
    observer.disconnect();
    cancelAnimationFrame(waiting);
    clearTimeout(timer);
    model.off?.("change:state", outside);
    model.off?.("change:message", remark);
  };
}

export default { render };
