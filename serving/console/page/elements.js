// Elements of the page. Knows the DOM. Does not know calls or state. Text is never set as HTML.

export function make(tag, { text, class: name, ...attributes } = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export const short = (n) => (n === null || n === undefined ? "—" : Math.abs(n) >= 10 ? n.toFixed(1) : n.toFixed(3));
const badge = (text, kind = "") => make("span", { class: `badge ${kind}`, text });

export function card(item, reply, oldSlots, act) {
  const element = make("li", { class: "card" });
  element.dataset.item = item.item_id;
  const title = make("h3");
  title.append(make("span", { class: "slot", text: String(item.slot + 1) }), item.title);
  const badges = make("div", { class: "badges" });
  badges.append(badge(item.source), ...item.categories.map((genre) => badge(genre)));
  if (item.explored) badges.append(badge("explored", "explored"));
  badges.append(badge(`p ${short(item.propensity)}`));
  const move = oldSlots ? slotChange(item, oldSlots) : "";
  if (move) { badges.prepend(badge(move, "move")); element.classList.add("moved"); }
  const queries = make("div", { class: "queries", "aria-label": "Search next" });
  queries.dataset.queries = item.item_id;
  element.append(title, badges, bars(item, reply), queries, actionButtons(item, act));
  return element;
}

function actionButtons(item, act) {
  const actions = make("div", { class: "actions" });
  for (const [kind, label] of [["play", "▶ Play"], ["like", "♥ Like"], ["order", "Buy"]]) {
    const button = make("button", { text: label });
    button.dataset.act = kind;
    button.onclick = () => act(kind, item, button);
    actions.append(button);
  }
  return actions;
}

function slotChange(item, oldSlots) {
  if (!oldSlots.has(item.item_id)) return "new";
  const up = oldSlots.get(item.item_id) - item.slot;
  return up > 0 ? `↑ ${up}` : up < 0 ? `↓ ${-up}` : "";
}

// One row per task. Pale: P(action). Full colour: the task's share of the score, which is
// P(action) ÷ population rate × the user's weight.
export function bars(item, { weights, rates }) {
  const grid = make("div", { class: "bars" });
  const tasks = Object.keys(item.p);
  if (!tasks.length) grid.append(make("span", { text: "score" }), make("span"), make("span", { text: short(item.score) }));
  for (const task of tasks) {
    const p = item.p[task] ?? 0, w = weights[task] ?? 0, rate = rates[task] || 1;
    const part = (p / rate) * w;
    const formula = `P(${task}) ${short(p)} ÷ rate ${short(rate)} × weight ${short(w)} = ${short(part)} of ${short(item.score)}`;
    const bar = make("span", { class: "bar", title: formula });
    const pale = make("i"), full = make("i", { class: "w" });
    pale.style.width = `${100 * p}%`;
    full.style.width = `${item.score > 0 ? Math.min(100, 100 * part / item.score) : 0}%`;
    bar.append(pale, full);
    grid.append(make("span", { text: task.replace("_", " ") }), bar, make("span", { text: short(p) }));
  }
  return grid;
}

const percent = (share) => (share === null ? "—" : `${(100 * share).toFixed(1)} %`);

// One arm's clicks per item shown: a dot in its 95 % interval, on a scale up to the ceiling.
export function armLine({ arm, clicks, low, high, shown }, ceiling, top) {
  const line = make("li");
  line.dataset.arm = arm;
  const at = (share) => `${Math.min(100, (100 * share) / top)}%`;
  const track = make("span", { class: "track" });
  if (clicks !== null) {
    const band = make("i", { class: "band" }), dot = make("i", { class: "dot" });
    band.style.left = at(low);
    band.style.width = at(high - low);
    dot.style.left = at(clicks);
    track.append(band, dot);
    track.title = `${percent(clicks)} of ${shown.toLocaleString("en")} items shown were played, 95 % interval ${percent(low)} to ${percent(high)}`;
  }
  if (ceiling !== null) {
    const mark = make("i", { class: "ceiling" });
    mark.style.left = at(ceiling);
    track.append(mark);
  }
  line.append(make("span", { text: arm }), track, make("b", { text: percent(clicks) }));
  return line;
}

export function armsText({ arms, difference, ceiling }) {
  const shown = arms.map(({ arm, low, high, shown }) => `${arm} [${percent(low)}, ${percent(high)}] of ${shown.toLocaleString("en")} shown`);
  const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;
  const gap = difference.clicks === null ? "" : `Ranker − popularity: ${points(difference.clicks)} points [${points(difference.low)}, ${points(difference.high)}]. `;
  return `${gap}Simulated clicks per item shown, 95 % intervals over users: ${shown.join(", ")}. Line: the oracle’s ceiling on the same visits, ${percent(ceiling)}.`;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

// One experiment: each arm's reward per slate in its interval, and what the difference shows.
export function experimentBlock({ name, surface, reward, running, reason, guard, results }) {
  const block = make("div");
  block.dataset.experiment = name;
  const title = make("p");
  title.append(badge(running ? "runs" : "stopped", running ? "live" : ""), ` ${name} `, make("span", { class: "quiet", text: `${surface}, ${reward} per slate${guard ? `, guarded by ${guard.metric}` : ""}` }));
  block.append(title);
  if (reason) block.append(make("p", { class: "quiet", text: reason }));
  if (!results) return block;
  const top = 1.1 * Math.max(1e-9, ...results.arms.map(({ rate }) => rate.high ?? rate.value ?? 0));
  const list = make("ul", { class: "arms" });
  list.append(...results.arms.map((arm) => experimentArm(arm, top)));
  block.append(list);
  if (results.mismatch) block.append(make("p", { text: "The arms do not have the users of their shares: do not trust the comparison." }));
  return block;
}

function experimentArm({ name, users, slates, rate, lift, preference, verdict }, top) {
  const line = make("li"), track = make("span", { class: "track" }), judged = preference || lift;
  line.dataset.arm = name;
  const at = (value) => `${Math.max(0, Math.min(100, (100 * value) / top))}%`;
  if (rate.value !== null) {
    const dot = make("i", { class: "dot" });
    dot.style.left = at(rate.value);
    if (rate.low !== null) {
      const band = make("i", { class: "band" });
      band.style.left = at(rate.low);
      band.style.width = at(rate.high - Math.max(0, rate.low));
      track.append(band);
    }
    track.append(dot);
  }
  const ends = judged && judged.low !== null ? ` [${signed(judged.low)}, ${signed(judged.high)}]` : "";
  const what = judged && judged.value !== null ? `${preference ? "team b − team a" : "minus the control"}: ${signed(judged.value)}${ends}, ${verdict} · ` : "";
  line.append(make("span", { text: name }), track, make("b", { text: rate.value === null ? "—" : short(rate.value) }));
  line.append(make("span", { class: "quiet about", text: `${what}${users.toLocaleString("en")} users, ${slates.toLocaleString("en")} slates` }));
  return line;
}

export function eventLine(row) {
  const line = make("li");
  line.append(badge(row.origin, row.origin));
  if (row.late) line.append(badge("late", "late"));
  if (row.duplicate) line.append(badge("duplicate", "duplicate"));
  const what = row.query ? `“${row.query}”` : row.item_id || "";
  line.append(` ${row.user_id} ${row.kind.replace("_", " ")} ${what}`);
  return line;
}

export function trajectoryStep(item, act) {
  const step = make("li");
  step.dataset.item = item.item_id;
  step.append(badge(item.role || item.source, "move"), ` ${item.title} `);
  if (item.p_convert !== undefined) step.append(make("span", { class: "quiet", text: `P(convert) ${short(item.p_convert)}` }));
  step.append(actionButtons(item, act));
  return step;
}

const COMMON = ["surface", "user_id", "k", "seed", "request_id", "context", "explore"]; // fields of every request

// A surface's panel: an input for each field of its own, a button, and the items of its reply.
export function surfacePanel({ surface, panel, about, request }, ask) {
  const section = make("section", { class: "panel", "aria-label": panel });
  section.dataset.surface = surface;
  const list = make("ol", { class: "trajectory" }), row = make("div", { class: "row" });
  const own = Object.keys(request.properties).filter((name) => !COMMON.includes(name));
  const inputs = own.map((name) => make("input", { name, placeholder: name, "aria-label": name }));
  const button = make("button", { text: "Ask" });
  button.onclick = async () => {
    const stated = inputs.filter((input) => input.value).map((input) => [input.name, input.value]);
    list.replaceChildren(...await ask(Object.fromEntries(stated)));
  };
  row.append(...inputs, button);
  section.append(make("h2", { text: panel }), make("p", { class: "quiet", text: about }), row, list);
  return section;
}

export function releaseLine(release, liveId) {
  const line = make("li");
  const gate = release.gate || {};
  const passed = gate.passed ?? gate.ok ?? gate.promoted;
  const status = release.release_id === liveId ? "live" : passed === false ? "refused" : "";
  line.append(badge(status || "release", status));
  line.append(` ${release.release_id} `);
  const models = Object.entries(release.models).map(([name, version]) => `${name} ${version}`).join(", ");
  line.append(make("span", { class: "quiet", text: models }));
  const facts = Object.entries(gate).filter(([, v]) => ["string", "number", "boolean"].includes(typeof v));
  if (facts.length) line.append(make("div", { class: "quiet", text: `gate — ${facts.map(([k, v]) => `${k} ${typeof v === "number" ? short(v) : v}`).join(", ")}` }));
  return line;
}
