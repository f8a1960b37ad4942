// The console: one user's feed and the events that change it. Plain modules, no build step.

import { call, key, listen, setKey } from "/page/api.js";
import { armLine, armsText, card, eventLine, experimentBlock, make, releaseLine, short, surfacePanel, trajectoryStep } from "/page/elements.js";
import { ruleLine, updateEntry, updateSentences, updatesOf } from "/page/loop.js";

const element = (id) => document.getElementById(id);
const state = {
  user: "", reply: null, unseen: { feed: [], queries: [], trajectory: [] }, offset: 0, pending: null, disconnect: () => {},
  features: {}, before: {}, changed: new Set(), probes: new Map(), requests: 0,
};
const FEATURES = [
  "play_count_1h", "long_view_count_1h", "like_count_1h", "order_count_1h", "query_click_count_1h",
  "play_count_all", "like_count_all", "order_count_all", "shown_count_1h",
  "engaged_video_id", "clicked_query",
];
const now = () => Math.round(Date.now() + state.offset);
const newId = () => "page-" + crypto.getRandomValues(new Uint32Array(3)).join("-");

function showNotice(text) {
  element("notice").hidden = !text;
  element("notice").textContent = text || "";
}

async function orNotice(work) {
  try {
    const value = await work();
    showNotice("");
    return value;
  } catch (error) {
    if (error.status === 401 || error.status === 403) element("key-label").hidden = false;
    showNotice(error.message);
    return null;
  }
}

// ---- feed -------------------------------------------------------------------------------

async function ask({ showMoves = false } = {}) {
  const turn = ++state.requests;
  const body = { user_id: state.user, k: 8, seed: Number(element("seed").value) || 0 };
  const reply = await orNotice(() => call("POST", "/v1/feed", body));
  if (!reply || turn !== state.requests) return;
  const oldSlots = showMoves && state.reply ? new Map(state.reply.items.map((i) => [i.item_id, i.slot])) : null;
  state.reply = reply;
  state.unseen.feed = reply.items.map((item) => ["shown", item, reply]);
  state.unseen.queries = [];
  draw(reply, oldSlots);
  for (const item of reply.items) showQueries(item, turn);
}

function draw(reply, oldSlots) {
  const slate = element("slate");
  slate.replaceChildren(...reply.items.map((item) => card(item, reply, oldSlots, actOn(reply))));
  slate.dataset.state = "ready";
  slate.dataset.request = reply.request_id;
  const notes = [`release ${reply.release}`, `${reply.candidates} candidates`];
  if (reply.removed_total) notes.push(`${reply.removed_total} removed`);
  if (reply.arm) notes.push(`arm ${reply.arm}`);
  if (reply.cold_start) notes.push("cold start");
  if (reply.stale) notes.push("last good features");
  for (const f of reply.fallbacks) notes.push(`${f.stage}: ${f.reason}`);
  element("feed-about").textContent = notes.join(" · ");
  const weights = Object.entries(reply.weights).map(([task, w]) => `${task.replace("_", " ")} ${w.toFixed(2)}`);
  const ranker = reply.models.ranker ? `ranker v${reply.models.ranker}: ` : "";
  element("weights").textContent = weights.length ? `— ${ranker}${weights.join(", ")}${reply.weights_drawn ? " (drawn to explore)" : ""}` : `— ${UNRANKED[reply.arm] || "no ranker is live: ranked by popularity and genres"}`;
}

const UNRANKED = { holdout: "this user is held out: no model ranks for them", popularity: "this user’s arm shows what is most popular, without a ranker" };

async function showQueries(item, turn) {
  const body = { user_id: state.user, item_id: item.item_id, k: 3, seed: Number(element("seed").value) || 0 };
  const reply = await call("POST", "/v1/queries", body).catch(() => null);
  const bar = document.querySelector(`[data-queries="${CSS.escape(item.item_id)}"]`);
  if (!reply || !bar || turn !== state.requests) return;
  state.unseen.queries.push(...reply.items.map((found) => ["query_shown", found, reply, { query: found.query }]));
  bar.replaceChildren(...reply.items.map((found) => {
    const button = make("button", { text: found.query, title: `log-probability ${short(found.score)} · ${found.source}` });
    button.onclick = () => actOn(reply)("query_click", found, button);
    return button;
  }));
}

// ---- events -----------------------------------------------------------------------------

// An event on an item of `reply`, for the user and surface that were asked for.
function event(kind, item, reply, more = {}) {
  return {
    event_id: newId(), user_id: reply.user_id, kind, event_time_ms: now(), item_id: item.item_id,
    surface: reply.surface, request_id: reply.request_id,
    impression: item.impression, ...(item.author_id ? { author_id: item.author_id } : {}), ...more,
  };
}

// `unseen` holds arguments of `event`. Items, queries and steps count as shown once the user acts
// on the page or leaves it, not on "Ask again".
function takeShownEvents(surfaces = Object.keys(state.unseen)) {
  const events = surfaces.flatMap((surface) => state.unseen[surface].map((shown) => event(...shown)));
  for (const surface of surfaces) state.unseen[surface] = [];
  return events;
}

const actOn = (reply) => async (kind, item, button) => {
  const more = { play: { dwell_ms: 30000 }, order: { amount_cents: 1999 }, query_click: { query: item.query } }[kind] || {};
  const own = event(kind, item, reply, more);
  button.classList.add("done");
  button.disabled = true;
  const timed = reply.user_id === state.user; // only this user's features are watched
  if (timed) {
    state.before = { ...state.features };
    state.changed.clear();
    state.pending = { id: own.event_id, since: performance.now(), kind };
    element("freshness").textContent = "…";
  }
  const sent = await orNotice(() => call("POST", "/v1/events", [...takeShownEvents(), own]));
  const refused = sent?.refused[0];
  if (refused) showNotice(`${refused.field}: ${refused.msg}`);
  if (sent && !refused) return;
  button.disabled = false;
  if (timed) { state.pending = null; element("freshness").textContent = "—"; }
};

async function sendShown(surfaces) {
  const events = takeShownEvents(surfaces);
  if (events.length) await call("POST", "/v1/events", events).catch(() => null);
}

// ---- live -------------------------------------------------------------------------------

const COUNTED = { play: "play_count_all", like: "like_count_all", order: "order_count_all", query_click: "query_click_count_all" };

function onFeature({ changed }) {
  for (const [name, [, after]] of Object.entries(changed)) {
    state.features[name] = after;
    state.changed.add(name);
  }
  const pending = state.pending;
  if (pending && COUNTED[pending.kind] in changed) {
    element("freshness").textContent = `${Math.round(performance.now() - pending.since)} ms`;
    element("freshness-about").textContent = `from your ${pending.kind.replace("_", " ")} until this page received the changed row`;
    state.pending = null;
    ask({ showMoves: true });
  }
  drawFeatures();
}

function onEvent(row) {
  prepend(element("events"), eventLine(row), 14);
  const probe = state.probes.get(row.event_id);
  if (!probe) return;
  state.probes.delete(row.event_id);
  const took = Math.round(performance.now() - probe.since);
  probe.line.replaceChildren(
    make("span", { class: `badge ${row.late ? "late" : "live"}`, text: row.late ? "late" : "on time" }),
    ` admitted after ${took} ms, counted at its event time (${clockTime(row.event_time_ms)})`,
  );
}

function onDeadLetter(record) {
  const probe = [...state.probes].find(([id]) => (record.value || "").includes(id));
  const line = probe ? probe[1].line : make("li");
  if (probe) state.probes.delete(probe[0]);
  const position = `${record.topic} ${record.partition}/${record.offset}`;
  line.replaceChildren(make("span", { class: "badge dead", text: "dead letter" }), ` ${record.cause}: ${record.detail} — kept unchanged, from ${position}`);
  if (!probe) prepend(element("admission"), line, 5);
}

function onStats(stats) {
  state.offset = stats.now_ms - Date.now();
  const figures = [`${count(stats.events)} events`, `${stats.events_per_s ?? 0}/s`, `${count(stats.late)} late`, `${count(stats.dead)} dead letters`, `${count(stats.users)} users`, `${count(stats.videos)} items`];
  element("rate").textContent = figures.join(" · ");
  element("components").replaceChildren(...Object.entries(stats.parts).map(([name, status]) => {
    const item = make("li", { text: name, title: `${name} is ${status}` });
    item.dataset.status = status;
    return item;
  }));
  drawArms(stats.experiment);
}

// Figures come with the first slates of the experiment; without one the panel stays hidden.
function drawArms(figures) {
  const known = Boolean(figures?.arms.some((each) => each.shown));
  element("arms-panel").hidden = !known;
  if (!known) return;
  const top = 1.1 * Math.max(figures.ceiling ?? 0, ...figures.arms.map((each) => each.high ?? 0));
  element("arms").replaceChildren(...figures.arms.map((each) => armLine(each, figures.ceiling, top)));
  element("arms-about").textContent = armsText(figures);
}

// Intervals hold at every look (`models/experiments`), so they are shown as they come.
async function loadExperiments() {
  const found = await call("GET", "/v1/experiments").catch(() => ({ experiments: [] }));
  element("experiments-panel").hidden = !found.experiments.length;
  element("experiments-holdout").textContent = found.holdout_share ? `${(100 * found.holdout_share).toFixed(1)} % held out` : "";
  element("experiments").replaceChildren(...found.experiments.slice(0, 4).map(experimentBlock));
}

const ON_MESSAGE = {
  feature: onFeature, event: onEvent, dead: onDeadLetter, stats: onStats,
  release: () => { loadModels(); ask({ showMoves: true }); }, update: () => loadModels(),
};

function connect() {
  state.disconnect();
  state.disconnect = listen(state.user, (kind, data) => ON_MESSAGE[kind]?.(data), (up) => {
    document.body.dataset.live = up ? "yes" : "no";
    if (!up) element("rate").textContent = "the gateway does not answer; reconnecting";
  });
}

// ---- panels -----------------------------------------------------------------------------

function drawFeatures() {
  const rows = FEATURES.filter((name) => name in state.features).map((name) => {
    const changed = state.changed.has(name);
    const row = make("tr", { class: changed ? "changed" : "" });
    row.dataset.feature = name;
    row.append(make("td", { text: name }), make("td", { text: shownValue(state.before[name]) }), make("td", { text: shownValue(state.features[name]) }));
    return row;
  });
  element("features").tBodies[0].replaceChildren(...rows);
}

async function loadFeatures() {
  const found = await orNotice(() => call("POST", "/v1/users/lookup", { user_id: state.user }));
  if (!found) return;
  state.features = found.features;
  state.before = {};
  state.changed.clear();
  element("features-about").textContent = found.cold_start ? "— no features yet" : "";
  drawFeatures();
}

async function loadModels() {
  const found = await call("GET", "/v1/models").catch(() => null);
  if (!found) return;
  element("release").textContent = found.release;
  const live = Object.entries(found.models).map(([name, version]) => `${name} v${version} (loaded ${(found.loaded[name] || []).join(", ") || "none"})`);
  element("versions").textContent = live.join(" · ") || "No model is live: replies use popularity and genres.";
  element("updates").replaceChildren(...found.releases.slice().reverse().slice(0, 6).map((each) => releaseLine(each, found.release)));
  const history = updatesOf(found);
  element("update-now").replaceChildren(...updateSentences(found, history));
  element("timeline").replaceChildren(...(history.length ? history.slice(0, 8).map((each) => updateEntry(each, found.release)) : [make("li", { class: "quiet", text: "No update has run yet: `tidemill models update ranker` runs one." })]));
}

// Without the scope of an operator the panel stays hidden.
async function loadRules() {
  const found = await call("GET", "/v1/rules").catch(() => null);
  element("rules-panel").hidden = !found;
  const rules = found?.rules || [];
  element("rules").replaceChildren(...(rules.length ? rules.map((rule) => ruleLine(rule, now())) : [make("li", { class: "quiet", text: "none" })]));
}

async function loadUsers() {
  const [latest, dormant] = await Promise.all([
    call("GET", "/v1/users?limit=60").catch(() => ({ users: [] })),
    call("GET", "/v1/users?order=dormant&limit=12").catch(() => ({ users: [] })),
  ]);
  element("users").replaceChildren(...latest.users.map((u) => make("option", { value: u.user_id })));
  const picks = latest.users.slice(0, 5).map((u) => u.user_id);
  element("picks").replaceChildren(...[...new Set([...picks, "newcomer"])].map((id) => {
    const button = make("button", { text: id });
    button.setAttribute("aria-pressed", String(id === state.user));
    button.onclick = () => selectUser(id);
    return button;
  }));
  const chosen = element("dormant").value;
  element("dormant").replaceChildren(...dormant.users.map((u) => make("option", { value: u.user_id, text: `${u.user_id} (inactive since ${day(u.last_event_ms)}, ${u.origin})` })));
  if (chosen) element("dormant").value = chosen;
  return latest.users;
}

async function showTrajectory() {
  const user = element("dormant").value || state.user;
  if (state.unseen.trajectory[0]?.[2].user_id !== user) await sendShown(["trajectory"]);
  const reply = await orNotice(() => call("POST", "/v1/reactivation", { user_id: user, k: 6 }));
  if (!reply) return;
  state.unseen.trajectory = reply.items.map((item) => ["shown", item, reply]);
  const steps = reply.items.map((item) => trajectoryStep(item, actOn(reply)));
  if (reply.goal) steps.push(make("li", { class: "goal", text: `toward: ${reply.goal.title}` }));
  for (const f of reply.fallbacks) steps.push(make("li", { class: "quiet", text: `${f.stage}: ${f.reason}` }));
  element("trajectory").replaceChildren(...steps);
}

// Panels of the surfaces for which the page has no place of its own.
async function loadPanels() {
  const found = await call("GET", "/v1/surfaces").catch(() => ({ surfaces: [] }));
  element("panels").replaceChildren(...found.surfaces.filter((each) => each.panel).map((surface) => {
    const name = `panel ${surface.surface}`;
    return surfacePanel(surface, async (fields) => {
      await sendShown(state.unseen[name] ? [name] : []);
      const reply = await orNotice(() => call("POST", `/v1/${surface.surface}`, { user_id: state.user, ...fields }));
      state.unseen[name] = (reply?.items || []).map((item) => ["shown", item, reply]);
      return (reply?.items || []).map((item) => trajectoryStep(item, actOn(reply)));
    });
  }));
}

// ---- probes -----------------------------------------------------------------------------

function probe(text) {
  const line = make("li", { text });
  prepend(element("admission"), line, 5);
  return { line, since: performance.now() };
}

async function sendLate() {
  const item = state.reply?.items[0];
  if (!item) return;
  const late = { ...event("play", item, state.reply, { dwell_ms: 1000 }), event_time_ms: now() - 2 * 3600_000, impression: undefined };
  state.probes.set(late.event_id, probe("sending a play from 2 hours ago…"));
  await orNotice(() => call("POST", "/v1/events", late));
}

async function sendBroken() {
  const id = newId();
  const broken = JSON.stringify({ event_id: id, user_id: state.user, kind: "teleport", event_time_ms: "yesterday" });
  state.probes.set(id, probe("sending an event of an unknown kind, without the gateway’s validation…"));
  await orNotice(() => call("POST", "/v1/events?admit=async", broken, true));
}

// ---- formatting -----------------------------------------------------------------------

const count = (n) => Number(n || 0).toLocaleString("en");
const clockTime = (ms) => new Date(ms).toLocaleTimeString("en-GB");
const day = (ms) => new Date(ms).toLocaleDateString("en-GB");
function shownValue(value) {
  if (value === undefined || value === null) return "";
  return Array.isArray(value) ? value.slice(0, 3).join(", ") : String(value);
}
function prepend(list, line, limit) {
  list.prepend(line);
  while (list.children.length > limit) list.lastChild.remove();
}

async function selectUser(user) {
  await sendShown();
  state.user = user;
  state.reply = null;
  state.pending = null;
  element("user").value = user;
  element("freshness").textContent = "—";
  element("slate").dataset.state = "empty";
  history.replaceState(null, "", `?user=${encodeURIComponent(user)}`);
  for (const button of element("picks").children) button.setAttribute("aria-pressed", String(button.textContent === user));
  connect();
  await Promise.all([ask(), loadFeatures()]);
}

async function start() {
  element("again").onclick = () => ask({ showMoves: true });
  element("reseed").onclick = async () => { await sendShown(); element("seed").value = Math.floor(Math.random() * 1e6); ask(); };
  element("user").onchange = () => element("user").value.trim() && selectUser(element("user").value.trim());
  element("show-trajectory").onclick = showTrajectory;
  element("send-late").onclick = sendLate;
  element("send-broken").onclick = sendBroken;
  element("key").value = key();
  element("key").onchange = () => { setKey(element("key").value); location.reload(); };
  addEventListener("pagehide", () => {
    const events = takeShownEvents();
    if (events.length && !key()) navigator.sendBeacon("/v1/events", JSON.stringify(events));
  });
  const found = await loadUsers();
  const named = new URLSearchParams(location.search).get("user");
  const ranked = found.find((user) => user.arm !== "popularity") || found[0];
  await selectUser(named || ranked?.user_id || "newcomer");
  loadModels();
  loadPanels();
  loadExperiments();
  loadRules();
  setInterval(loadExperiments, 5_000);
  setInterval(() => { loadModels(); loadRules(); }, 10_000);
  setInterval(loadUsers, 15_000);
}

start();
