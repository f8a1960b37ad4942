// What the loop did: updates with their verdicts, and the rules in force. Knows the DOM and the
// replies of /v1/models and /v1/rules. Does not know how they are fetched.

import { make, short } from "/page/elements.js";

const badge = (text, kind = "") => make("span", { class: `badge ${kind}`, text });
const when = (ms) => new Date(ms).toLocaleString("en-GB", { dateStyle: "short", timeStyle: "short" });
const number = (n) => Number(n || 0).toLocaleString("en");
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(4)}`;
const ENDINGS = {
  promoted: "is live or was", refused: "did not go live; its feedback is kept for the next attempt",
  waiting: "was not trained: too little feedback", failed: "ended with an error; its feedback is kept",
  interrupted: "was stopped; its feedback is kept", superseded: "was overtaken: another version went live meanwhile",
};

// Every update, newest first: those that proposed a release, and each model's last attempt.
export function updatesOf({ releases, updates }) {
  const found = releases.filter((each) => each.gate?.model).map((each) => ({
    model: each.gate.model, release: each.release_id, version: each.models[each.gate.model],
    ending: each.gate.promoted ? "promoted" : "refused", reasons: each.gate.reasons || [],
    since: each.gate.since_ms, until: each.gate.until_ms, at: each.created_ms, gate: each.gate,
  }));
  for (const [model, { last }] of Object.entries(updates)) {
    if (!last) continue;
    const known = found.find((each) => each.model === model && each.release === last.release);
    const more = { impressions: last.impressions, number: last.number, incumbent: last.incumbent };
    if (known) Object.assign(known, more);
    else found.push({ model, ending: last.ending || "running", reasons: last.reasons, since: last.since_ms, until: last.until_ms, at: last.started_ms, gate: {}, version: last.version, ...more });
  }
  return found.sort((a, b) => b.at - a.at);
}

// One sentence for each model: what its last update did and why, and what comes next.
export function updateSentences({ updates }, history) {
  return Object.entries(updates).map(([model, report]) => {
    const line = make("li"), last = history.find((each) => each.model === model);
    line.dataset.model = model;
    line.append(make("b", { text: model }), ` ${last ? lastText(last) : "was never updated."} `);
    const due = report.next_due_ms ? `, next at ${when(report.next_due_ms)}` : "";
    const share = report.share === undefined ? "" : ` ${Math.round(100 * report.share)} %, ${report.step}`;
    line.append(make("span", { class: "quiet", text: `Now: ${report.phase}${share}${report.why ? ` (${report.why})` : ""}${due}.` }));
    if (report.problem) line.append(badge(report.problem, "refused"));
    return line;
  });
}

function lastText({ ending, reasons, version }) {
  if (ending === "running") return "is being updated.";
  const what = ending === "promoted" ? `went live as version ${version}` : ending;
  return `— the last update ${ending === "promoted" ? what : `was ${what}`}: ${reasons.join("; ") || "no reason was stated"}.`;
}

export function updateEntry(each, liveId) {
  const line = make("li"), head = make("div");
  line.dataset.ending = each.ending;
  head.append(badge(each.ending, each.ending === "promoted" ? "passed" : each.ending === "refused" ? "refused" : ""));
  const versions = each.version ? `${each.incumbent ? `version ${each.incumbent} → ` : "version "}${each.version}` : "";
  head.append(" ", make("b", { text: each.model }), ` ${versions} `);
  head.append(make("time", { class: "quiet", text: when(each.at), datetime: new Date(each.at).toISOString() }));
  const outcome = each.release === liveId ? "is live" : ENDINGS[each.ending] || "runs now";
  const release = each.release ? `release ${each.release} ` : "it ";
  const impressions = each.impressions === undefined ? "" : ` (${number(each.impressions)} impressions)`;
  const from = each.since ? `from ${when(each.since)} ` : "";
  line.append(head, make("div", { class: "quiet", text: `${release}${outcome} · feedback ${from}to ${when(each.until)}${impressions}` }));
  line.append(...each.reasons.map((reason) => make("div", { class: "reason", text: reason })));
  const rows = intervalsOf(each.gate);
  if (rows.length) line.append(intervalList(rows));
  return line;
}

// The gate's comparisons: all of its entries that hold a difference with its interval.
function intervalsOf(gate) {
  return Object.entries(gate).filter(([, value]) => Array.isArray(value?.difference) && value.difference.every(Number.isFinite))
    .map(([name, value]) => ({ name: value.metric || value.method || name, difference: value.difference }));
}

function intervalList(rows) {
  const list = make("ul", { class: "arms intervals", "aria-label": "Challenger minus incumbent, 95 % intervals" });
  list.append(...rows.map(({ name, difference: [mean, low, high] }) => {
    const line = make("li"), track = make("span", { class: "track" });
    const span = 1.1 * Math.max(Math.abs(low), Math.abs(high), 1e-9), at = (x) => `${50 + (50 * x) / span}%`;
    const zero = make("i", { class: "ceiling" }), band = make("i", { class: "band" }), dot = make("i", { class: "dot" });
    zero.style.left = "50%";
    band.style.left = at(low);
    band.style.width = `${(50 * (high - low)) / span}%`;
    dot.style.left = at(mean);
    track.append(band, zero, dot);
    line.append(make("span", { text: name }), track, make("b", { text: signed(mean) }));
    line.append(make("span", { class: "quiet about", text: `challenger − incumbent, 95 % interval [${signed(low)}, ${signed(high)}]; line: no difference` }));
    return line;
  }));
  return list;
}

const SAYS = {
  filter: (rule) => (rule.keep ? `keeps only ${rule.keep}` : `removes ${rule.exclude}`),
  boost: (rule) => `${rule.strength < 0 ? "buries" : "promotes"} ${rule.when} by ${short(Math.abs(rule.strength))} σ`,
  pin: (rule) => `puts ${[rule.item, rule.when].filter(Boolean).join(" when ")} into slot ${rule.slot + 1}`,
  exclude_own: () => "removes a user’s own items",
  exclude_seen: (rule) => `removes items shown ${rule.times ?? 1} times or more`,
  group: (rule) => `at most ${rule.at_most ?? 1} of one ${rule.by ?? "item.group"}`,
  share: (rule) => `${Math.round(100 * (rule.minimum ?? 0))} to ${Math.round(100 * (rule.maximum ?? 1))} % of the slots: ${rule.when}`,
};

export function ruleLine(rule, nowMs) {
  const line = make("li"), name = rule.name;
  const from = rule.from ? Date.parse(rule.from) : -Infinity, until = rule.until ? Date.parse(rule.until) : Infinity;
  const acts = rule.enabled !== false && from <= nowMs && nowMs < until;
  line.append(badge(acts ? "acts" : rule.enabled === false ? "off" : nowMs < from ? "later" : "over", acts ? "live" : ""));
  const where = rule.surfaces?.length ? ` on ${rule.surfaces.join(", ")}` : "";
  const ends = rule.until ? ` until ${when(until)}` : "";
  line.append(" ", make("b", { text: name }), ` ${SAYS[rule.kind]?.(rule) ?? rule.kind}`, make("span", { class: "quiet", text: `${where}${ends}` }));
  return line;
}
