// The console: one user's feed and what moves it. Plain modules, no build step.

import { call, key, listen, setKey } from "/page/api.js";
import { bars, card, eventLine, make, pathStep, short, updateLine } from "/page/parts.js";

const at = (id) => document.getElementById(id);
const state = {
  user: "", reply: null, unseen: new Set(), offset: 0, pending: null, hangUp: () => {},
  features: {}, before: {}, changed: new Set(), probes: new Map(), asked: 0,
};
const FEATURES = [
  "play_count_1h", "long_view_count_1h", "like_count_1h", "order_count_1h", "query_click_count_1h",
  "play_count_all", "like_count_all", "order_count_all", "shown_count_1h",
  "engaged_video_id", "clicked_query",
];
const now = () => Math.round(Date.now() + state.offset);
const newId = () => "page-" + crypto.getRandomValues(new Uint32Array(3)).join("-");

function say(text) {
  at("notice").hidden = !text;
  at("notice").textContent = text || "";
}

async function guarded(work) {
  try {
    const value = await work();
    say("");
    return value;
  } catch (error) {
    if (error.status === 401 || error.status === 403) at("key-label").hidden = false;
    say(error.message);
    return null;
  }
}

// ---- feed -------------------------------------------------------------------------------

async function ask({ keepPlaces = false } = {}) {
  const turn = ++state.asked;
  const body = { user_id: state.user, k: 8, seed: Number(at("seed").value) || 0 };
  const reply = await guarded(() => call("POST", "/v1/feed", body));
  if (!reply || turn !== state.asked) return;
  const places = keepPlaces && state.reply ? new Map(state.reply.items.map((i) => [i.video_id, i.slot])) : null;
  state.reply = reply;
  state.unseen = new Set(reply.items);
  draw(reply, places);
  for (const item of reply.items) queriesUnder(item, turn);
}

function draw(reply, places) {
  const slate = at("slate");
  slate.replaceChildren(...reply.items.map((item) => card(item, reply, places, act)));
  slate.dataset.state = "ready";
  slate.dataset.request = reply.request_id;
  const notes = [`release ${reply.release}`, `${reply.candidates} candidates`];
  if (reply.removed_total) notes.push(`${reply.removed_total} left out`);
  if (reply.cold_start) notes.push("cold start");
  if (reply.stale) notes.push("from last good features");
  for (const f of reply.fallbacks) notes.push(`${f.stage}: ${f.reason}`);
  at("feed-about").textContent = notes.join(" · ");
  const weights = Object.entries(reply.weights).map(([task, w]) => `${task.replace("_", " ")} ${w.toFixed(2)}`);
  const ranker = reply.models.ranker ? `ranker v${reply.models.ranker}: ` : "";
  at("weights").textContent = weights.length ? `— ${ranker}${weights.join(", ")}${reply.weights_drawn ? " (drawn to explore)" : ""}` : "— no ranker yet: popularity and taste";
}

async function queriesUnder(item, turn) {
  const body = { user_id: state.user, video_id: item.video_id, k: 3, seed: Number(at("seed").value) || 0 };
  const reply = await call("POST", "/v1/queries", body).catch(() => null);
  const bar = document.querySelector(`[data-queries="${CSS.escape(item.video_id)}"]`);
  if (!reply || !bar || turn !== state.asked) return;
  bar.replaceChildren(...reply.items.map((found) => {
    const button = make("button", { text: found.query, title: `log-probability ${short(found.score)} · ${found.source}` });
    button.onclick = () => act("query_click", found, button);
    return button;
  }));
}

// ---- events -----------------------------------------------------------------------------

function event(kind, item, more = {}) {
  return {
    event_id: newId(), user_id: state.user, kind, event_time_ms: now(), video_id: item.video_id,
    surface: kind === "query_click" ? "queries" : "feed", request_id: state.reply.request_id,
    impression: item.impression, ...(item.author_id ? { author_id: item.author_id } : {}), ...more,
  };
}

// A slate counts as shown when the user acts on it or leaves it; asking again is neither.
function shown() {
  const events = [...state.unseen].map((item) => event("shown", item));
  state.unseen.clear();
  return events;
}

async function act(kind, item, button) {
  const more = { play: { dwell_ms: 30000 }, order: { amount_cents: 1999 }, query_click: { query: item.query } }[kind] || {};
  const own = event(kind, item, more);
  state.before = { ...state.features };
  state.changed.clear();
  state.pending = { id: own.event_id, since: performance.now(), kind };
  at("freshness").textContent = "…";
  button.classList.add("done");
  button.disabled = true;
  const sent = await guarded(() => call("POST", "/v1/events", [...shown(), own]));
  if (!sent) { state.pending = null; button.disabled = false; at("freshness").textContent = "—"; }
}

async function leave() {
  if (!state.reply || !state.unseen.size) return;
  await call("POST", "/v1/events", shown()).catch(() => null);
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
    at("freshness").textContent = `${Math.round(performance.now() - pending.since)} ms`;
    at("freshness-about").textContent = `from your ${pending.kind.replace("_", " ")} to the changed row, read back and told to this page`;
    state.pending = null;
    ask({ keepPlaces: true });
  }
  drawFeatures();
}

function onEvent(row) {
  prepend(at("events"), eventLine(row), 14);
  const probe = state.probes.get(row.event_id);
  if (!probe) return;
  state.probes.delete(row.event_id);
  const took = Math.round(performance.now() - probe.since);
  probe.line.replaceChildren(
    make("span", { class: `badge ${row.late ? "late" : "live"}`, text: row.late ? "late" : "in time" }),
    ` admitted after ${took} ms, counted at its own time (${clockTime(row.event_time_ms)}), not now`,
  );
}

function onDead(letter) {
  const probe = [...state.probes].find(([id]) => (letter.value || "").includes(id));
  const line = probe ? probe[1].line : make("li");
  if (probe) state.probes.delete(probe[0]);
  const place = `${letter.topic} ${letter.partition}/${letter.offset}`;
  line.replaceChildren(make("span", { class: "badge dead", text: "dead letter" }), ` ${letter.cause}: ${letter.detail} — kept whole, from ${place}`);
  if (!probe) prepend(at("door"), line, 5);
}

function onStats(stats) {
  state.offset = stats.now_ms - Date.now();
  const figures = [`${count(stats.events)} events`, `${stats.events_per_s ?? 0}/s`, `${count(stats.late)} late`, `${count(stats.dead)} dead letters`, `${count(stats.users)} users`, `${count(stats.videos)} videos`];
  at("rate").textContent = figures.join(" · ");
  at("parts").replaceChildren(...Object.entries(stats.parts).map(([name, status]) => {
    const item = make("li", { text: name, title: `${name} is ${status}` });
    item.dataset.status = status;
    return item;
  }));
}

const TAKE = {
  feature: onFeature, event: onEvent, dead: onDead, stats: onStats,
  release: () => { models(); ask({ keepPlaces: true }); }, update: () => models(),
};

function connect() {
  state.hangUp();
  state.hangUp = listen(state.user, (kind, data) => TAKE[kind]?.(data), (up) => {
    document.body.dataset.live = up ? "yes" : "no";
    if (!up) at("rate").textContent = "the gateway does not answer; trying again";
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
  at("features").tBodies[0].replaceChildren(...rows);
}

async function features() {
  const found = await guarded(() => call("GET", `/v1/users/${encodeURIComponent(state.user)}`));
  if (!found) return;
  state.features = found.features;
  state.before = {};
  state.changed.clear();
  at("features-about").textContent = found.cold_start ? "— nobody we know yet" : "";
  drawFeatures();
}

async function models() {
  const found = await call("GET", "/v1/models").catch(() => null);
  if (!found) return;
  at("release").textContent = found.release;
  const live = Object.entries(found.models).map(([name, version]) => `${name} v${version} (loaded ${(found.loaded[name] || []).join(", ") || "none"})`);
  at("versions").textContent = live.join(" · ") || "No model is live yet: answers come from popularity and taste.";
  at("updates").replaceChildren(...found.releases.slice().reverse().slice(0, 6).map((each) => updateLine(each, found.release)));
}

async function people() {
  const [latest, dormant] = await Promise.all([
    call("GET", "/v1/users?limit=60").catch(() => ({ users: [] })),
    call("GET", "/v1/users?order=dormant&limit=12").catch(() => ({ users: [] })),
  ]);
  at("users").replaceChildren(...latest.users.map((u) => make("option", { value: u.user_id })));
  const picks = latest.users.slice(0, 5).map((u) => u.user_id);
  at("picks").replaceChildren(...[...new Set([...picks, "newcomer"])].map((id) => {
    const button = make("button", { text: id });
    button.setAttribute("aria-pressed", String(id === state.user));
    button.onclick = () => choose(id);
    return button;
  }));
  const chosen = at("dormant").value;
  at("dormant").replaceChildren(...dormant.users.map((u) => make("option", { value: u.user_id, text: `${u.user_id} (silent since ${day(u.last_event_ms)}, ${u.origin})` })));
  if (chosen) at("dormant").value = chosen;
  return latest.users;
}

async function way() {
  const user = at("dormant").value || state.user;
  const reply = await guarded(() => call("POST", "/v1/reactivation", { user_id: user, k: 6 }));
  if (!reply) return;
  const steps = reply.items.map((item) => pathStep(item));
  if (reply.goal) steps.push(make("li", { class: "goal", text: `toward: ${reply.goal.title}` }));
  for (const f of reply.fallbacks) steps.push(make("li", { class: "quiet", text: `${f.stage}: ${f.reason}` }));
  at("path").replaceChildren(...steps);
}

// ---- probes -----------------------------------------------------------------------------

function probe(text) {
  const line = make("li", { text });
  prepend(at("door"), line, 5);
  return { line, since: performance.now() };
}

async function sendLate() {
  const item = state.reply?.items[0];
  if (!item) return;
  const late = { ...event("play", item, { dwell_ms: 1000 }), event_time_ms: now() - 2 * 3600_000, impression: undefined };
  state.probes.set(late.event_id, probe("a play that happened two hours ago is on its way…"));
  await guarded(() => call("POST", "/v1/events", late));
}

async function sendBroken() {
  const id = newId();
  const broken = JSON.stringify({ event_id: id, user_id: state.user, kind: "teleport", event_time_ms: "yesterday" });
  state.probes.set(id, probe("an event of a kind that does not exist is on its way, past the gateway’s check…"));
  await guarded(() => call("POST", "/v1/events?admit=async", broken, true));
}

// ---- small things -----------------------------------------------------------------------

const count = (n) => Number(n || 0).toLocaleString("en");
const clockTime = (ms) => new Date(ms).toLocaleTimeString("en-GB");
const day = (ms) => new Date(ms).toLocaleDateString("en-GB");
function shownValue(value) {
  if (value === undefined || value === null) return "";
  return Array.isArray(value) ? value.slice(0, 3).join(", ") : String(value);
}
function prepend(list, line, most) {
  list.prepend(line);
  while (list.children.length > most) list.lastChild.remove();
}

async function choose(user) {
  await leave();
  state.user = user;
  state.reply = null;
  state.pending = null;
  at("user").value = user;
  at("freshness").textContent = "—";
  at("slate").dataset.state = "empty";
  history.replaceState(null, "", `?user=${encodeURIComponent(user)}`);
  for (const button of at("picks").children) button.setAttribute("aria-pressed", String(button.textContent === user));
  connect();
  await Promise.all([ask(), features()]);
}

async function start() {
  at("again").onclick = () => ask({ keepPlaces: true });
  at("reseed").onclick = async () => { await leave(); at("seed").value = Math.floor(Math.random() * 1e6); ask(); };
  at("user").onchange = () => at("user").value.trim() && choose(at("user").value.trim());
  at("way").onclick = way;
  at("send-late").onclick = sendLate;
  at("send-broken").onclick = sendBroken;
  at("key").value = key();
  at("key").onchange = () => { setKey(at("key").value); location.reload(); };
  addEventListener("pagehide", () => {
    const events = state.reply ? shown() : [];
    if (events.length && !key()) navigator.sendBeacon("/v1/events", JSON.stringify(events));
  });
  const found = await people();
  const named = new URLSearchParams(location.search).get("user");
  await choose(named || found[0]?.user_id || "newcomer");
  models();
  setInterval(people, 15_000);
}

start();
