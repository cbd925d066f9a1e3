// The page: an overview and, at #entry/ID, one request's story. Asks only its own origin, writes only text.
"use strict";

const RANGES = [
  { name: "15 minutes", last: "last 15 minutes", minutes: 15, buckets: 60 },
  { name: "1 hour", last: "last hour", minutes: 60, buckets: 60 },
  { name: "24 hours", last: "last 24 hours", minutes: 1440, buckets: 48 },
  { name: "7 days", last: "last 7 days", minutes: 10080, buckets: 56 },
  { name: "30 days", last: "last 30 days", minutes: 43200, buckets: 60 },
];
const ROUTES = ["cache", "local", "cascade", "remote"];
const GROUPS = { route: "route", model: "model", policy: "policy", tenant: "tenant" };
const REFRESH_MS = 5000;
const KEY = "sluice-key";

const view = { range: 1, group: "route", route: "", pages: [""] };
let timer = null;
let turn = 0;
let shown = "";

const main = document.getElementById("main");
// Kept out of what is redrawn every few seconds: an open list would close under the reader's hand.
const controls = document.getElementById("controls");
const content = document.getElementById("content");
const state = document.getElementById("state");

class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function api(path) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(`api/${path}`, { headers, cache: "no-store" });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, body.error ?? `the gateway answered ${response.status}`);
  return body;
}

// Overview

function overview(summary, page, policies) {
  const problem = policies.reload_problem;
  return [
    problem && element("p", { class: "banner", role: "alert" }, `The last reload of policies failed; the last good ones are in force.\n${problem}`),
    tiles(summary),
    element("div", { class: "grid" },
      element("section", { class: "half" }, element("h2", {}, `Requests by ${view.group}`), requestsChart(summary)),
      element("section", { class: "half" }, element("h2", {}, "Spent and saved"), moneyChart(summary)),
      element("section", { class: "whole" }, element("h2", {}, "Latest decisions"), decisions(page)),
      element("section", { class: "half" }, element("h2", {}, "Budgets"), budgets(summary.budgets)),
      element("section", { class: "half" }, element("h2", {}, "Policies"), policyTable(policies.policies)),
      liveSection(policies.policies)),
  ];
}

function picker(id, label, options, value, pick) {
  const choices = options.map(([key, name]) => element("option", { value: key, selected: key === String(value) }, name));
  return element("label", {}, label, element("select", { id, onchange: (event) => { pick(event.target.value); refresh(); } }, choices));
}

function buildControls() {
  const groups = Object.entries(GROUPS);
  const ranges = RANGES.map((range, index) => [String(index), range.name]);
  const routes = [["", "all routes"], ...ROUTES.map((route) => [route, route])];
  controls.append(
    picker("range", "Range", ranges, view.range, (value) => { view.range = Number(value); }),
    picker("group", "Split by", groups, view.group, (value) => { view.group = value; }),
    picker("route", "Decisions", routes, view.route, (value) => { view.route = value; view.pages = [""]; }));
}

function tile(name, value, note, title) {
  return element("div", { class: "tile" }, element("dt", {}, name), element("dd", { title }, value), element("dd", { class: "note" }, note));
}

function tiles({ total, groups }) {
  const cost = nanos(total.cost_nano_usd);
  const saved = nanos(total.saved_nano_usd);
  const baseline = nanos(total.baseline_nano_usd);
  const unsure = Object.entries(total.cost_by_basis).filter(([basis, amount]) => basis !== "reported" && amount !== "0");
  const basis = unsure.map(([word, amount]) => `${money(nanos(amount))} of it ${word}`).join(", ");
  const ok = total.by_status.ok ?? 0;
  const of = (route) => groups.find((row) => row.group === route)?.by_status.ok ?? 0;
  const own = view.group === "route" ? of("cache") + of("local") : null;
  const failed = total.requests - ok;
  return element("dl", { class: "tiles" },
    tile("Spent", money(cost), basis || (cost > 0n ? "as backends reported" : ""), exactMoney(cost)),
    tile("Saved (estimate)", money(saved), baseline > 0n ? `${percent(saved, baseline)} of ${money(baseline)} all-remote` : "", exactMoney(saved)),
    tile("Requests", count(total.requests), failed > 0 ? `${count(failed)} without an answer` : ok > 0 ? "all answered" : ""),
    own === null ? null : tile("Without the large model", percent(own, ok), `${count(of("local"))} local, ${count(of("cache"))} cached`),
    tile("Latency, median", total.requests > 0 ? duration(total.p50_ms) : "–", total.requests > 0 ? `99 % under ${duration(total.p99_ms)}` : ""),
    tile("Tokens", count(total.input_tokens + total.output_tokens), `${count(total.input_tokens)} in, ${count(total.output_tokens)} out`));
}

function groupNames({ groups }) {
  const names = groups.map((row) => row.group);
  if (view.group !== "route") return names;
  return [...ROUTES.filter((route) => names.includes(route)), ...names.filter((name) => !ROUTES.includes(name))];
}

/** What the ledger calls "" is a request that was refused before anything was decided. */
function groupLabel(name) {
  return name === "" ? "none (refused)" : name;
}

function classOf(name, index) {
  if (view.group === "route") return ROUTES.includes(name) ? name : "none";
  return name === "" ? "none" : `g${index % 5}`;
}

function bucketStarts({ from_ms: from, to_ms: to, bucket_ms: width }) {
  return Array.from({ length: Math.round((to - from) / width) }, (_, index) => from + index * width);
}

/** One value per bucket: the sum of `pick(row)` over the rows of the bucket that `keep` keeps. */
function perBucket(summary, keep, pick, zero) {
  const values = bucketStarts(summary).map(() => zero);
  for (const row of summary.rows) {
    const index = Math.floor((row.bucket_ms - summary.from_ms) / summary.bucket_ms);
    if (index >= 0 && index < values.length && keep(row)) values[index] += pick(row);
  }
  return values;
}

function bucketName(summary) {
  const withDay = RANGES[view.range].minutes > 1440;
  const withSeconds = summary.bucket_ms % 60000 !== 0;
  return (ms) => {
    const text = clock(ms, withDay);
    return withSeconds ? text : text.slice(0, -3);
  };
}

function chartSize() {
  const wide = window.innerWidth > 900;
  const width = wide ? Math.min(1408, document.documentElement.clientWidth - 32) / 2 - 35 : document.documentElement.clientWidth - 54;
  return { width: Math.max(260, Math.round(width)), height: 220 };
}

function legend(items) {
  return element("ul", { class: "legend" }, items.map(({ className, name, value }) =>
    element("li", {}, drawn("svg", { class: "dot", viewBox: "0 0 10 10", "aria-hidden": "true" }, drawn("rect", { class: className, width: 10, height: 10, rx: 2 })),
      `${name} `, element("b", {}, value))));
}

function figures(name, header, rows) {
  return element("details", { class: "figures" }, element("summary", {}, "As a table"),
    element("div", { class: "scroll" }, element("table", {},
      element("caption", {}, name),
      element("thead", {}, element("tr", {}, header.map((text, index) => element("th", { scope: "col", class: index > 0 && "number" }, text)))),
      element("tbody", {}, rows.map((cells) => element("tr", {}, cells.map((text, index) =>
        index === 0 ? element("th", { scope: "row" }, text) : element("td", { class: "number" }, text))))))));
}

function nothingYet() {
  return element("div", { class: "empty" },
    element("p", {}, `No request in the ${RANGES[view.range].last}. Send one, or choose a longer range:`),
    element("pre", { id: "try" }, `sluice ask --address ${location.origin}${sessionStorage.getItem(KEY) ? " --key-file FILE" : ""} "I was charged twice."`));
}

function requestsChart(summary) {
  if (summary.total.requests === 0) return nothingYet();
  const names = groupNames(summary);
  const starts = bucketStarts(summary);
  const time = bucketName(summary);
  const series = names.map((name, index) => ({
    name: groupLabel(name),
    className: classOf(name, index),
    values: perBucket(summary, (row) => row.group === name, (row) => row.requests, 0),
  }));
  const parts = (index) => series.filter(({ values }) => values[index] > 0).map(({ name, values }) => `${name} ${count(values[index])}`);
  const sums = groupSums(summary, names);
  return [
    stackedBars({
      ...chartSize(), starts, series, time, integers: true, axis: (value) => count(value),
      label: `Requests by ${view.group} over the ${RANGES[view.range].last}: ${sums.map(({ name, value }) => `${name} ${value}`).join(", ")}`,
      describe: (index) => `${time(starts[index])}\n${parts(index).join("\n") || "nothing"}`,
    }),
    legend(series.map(({ name, className }, index) => ({ className, name, value: sums[index].value }))),
    figures(`Requests by ${view.group}`, ["from", ...series.map(({ name }) => name)],
      starts.map((start, index) => [time(start), ...series.map(({ values }) => count(values[index]))]).filter((_, index) => parts(index).length > 0)),
  ];
}

function groupSums({ groups, total }, names) {
  return names.map((name) => {
    const requests = groups.find((row) => row.group === name)?.requests ?? 0;
    return { name: groupLabel(name), value: `${count(requests)} (${percent(requests, total.requests)})` };
  });
}

function moneyChart(summary) {
  if (summary.total.requests === 0) return element("p", { class: "soft" }, "Nothing spent, nothing saved.");
  const starts = bucketStarts(summary);
  const time = bucketName(summary);
  const spent = perBucket(summary, () => true, (row) => nanos(row.cost_nano_usd), 0n);
  const saved = perBucket(summary, () => true, (row) => nanos(row.saved_nano_usd), 0n);
  const totals = { spent: nanos(summary.total.cost_nano_usd), saved: nanos(summary.total.saved_nano_usd) };
  return [
    stackedBars({
      ...chartSize(), starts, time,
      series: [
        { name: "spent", className: "spent", values: spent.map(Number) },
        { name: "saved", className: "saved", values: saved.map(Number) },
      ],
      axis: (value) => money(BigInt(Math.round(value))),
      label: `Money over the ${RANGES[view.range].last}: spent ${money(totals.spent)}, saved ${money(totals.saved)} by estimate`,
      describe: (index) => `${time(starts[index])}\nspent ${exactMoney(spent[index])}\nsaved ${exactMoney(saved[index])} (estimate)`,
    }),
    legend([
      { className: "spent", name: "spent", value: money(totals.spent) },
      { className: "saved", name: "saved (estimate)", value: money(totals.saved) },
    ]),
    figures("Spent and saved (estimate), USD", ["from", "spent", "saved"],
      starts.map((start, index) => [time(start), exactMoney(spent[index]), exactMoney(saved[index])]).filter((_, index) => spent[index] !== 0n || saved[index] !== 0n)),
  ];
}

function routeMark(route) {
  if (!route) return element("span", { class: "soft" }, "none");
  return element("span", { class: "nowrap" }, drawn("svg", { class: "dot", viewBox: "0 0 10 10", "aria-hidden": "true" }, drawn("circle", { class: route, cx: 5, cy: 5, r: 5 })), route);
}

function cell(label, className, ...children) {
  const blank = children.flat(Infinity).every((child) => child === null || child === "" || child === undefined);
  return element("td", { "data-label": label, class: [className, blank && "blank"].filter(Boolean).join(" ") || null }, children);
}

/** The first candidate with a score: the one that the threshold was held against. */
function scored(decision) {
  return decision?.candidates.find((candidate) => candidate.score !== null) ?? null;
}

function comparison(decision) {
  const candidate = scored(decision);
  if (!candidate) return "";
  const { threshold } = decision;
  if (threshold === null) return score(candidate.score);
  return `${score(candidate.score)} ${candidate.score >= threshold ? "≥" : "<"} ${score(threshold)}`;
}

function reasonWords({ reason }) {
  return reason.code === "declined" ? "draft declined" : words(reason.code);
}

function outcome(entry) {
  if (entry.status === "ok") return entry.decision ? reasonWords(entry.decision) : "";
  return element("span", {}, element("b", { class: "bad" }, words(entry.status)), entry.error && entry.error !== entry.status ? ` ${words(entry.error)}` : "");
}

function decisions(page) {
  if (page.entries.length === 0) {
    return element("p", { class: "empty soft" }, view.route ? `No decision took the route ${view.route}.` : "No request yet.");
  }
  const header = ["Time", "Route", "Model", "Why", "Score", "Latency", "Cost"];
  const numeric = new Set(["Latency", "Cost"]);
  // Shadow runs served nobody.
  const rows = page.entries.filter((entry) => entry.shadow_of === "").map((entry) => {
    const cost = nanos(entry.cost_nano_usd);
    const today = new Date(entry.received_ms).toDateString() === new Date().toDateString();
    return element("tr", {},
      cell("Time", "nowrap", element("a", { href: `#entry/${entry.id}` }, element("time", { datetime: new Date(entry.received_ms).toISOString() }, clock(entry.received_ms, !today)))),
      cell("Route", null, routeMark(entry.decision?.route)),
      cell("Model", null, entry.decision?.model ?? ""),
      cell("Why", null, outcome(entry)),
      cell("Score", "nowrap", comparison(entry.decision)),
      cell("Latency", "number", duration(entry.latency_ms)),
      cell("Cost", "number", element("span", { title: exactMoney(cost) }, money(cost)), entry.basis === "reported" ? null : element("span", { class: "soft" }, ` ${entry.basis}`)));
  });
  const turnPage = (pages) => () => { view.pages = pages; refresh(); };
  return [
    element("div", { class: "scroll" }, element("table", { class: "cards", id: "decisions" },
      element("thead", {}, element("tr", {}, header.map((name) => element("th", { scope: "col", class: numeric.has(name) && "number" }, name)))),
      element("tbody", {}, rows))),
    element("p", { class: "bar" },
      view.pages.length > 1 ? element("button", { id: "newer", onclick: turnPage(view.pages.slice(0, -1)) }, "Newer") : null,
      page.next_page_token ? element("button", { id: "older", onclick: turnPage([...view.pages, page.next_page_token]) }, "Older") : null),
  ];
}

function budgets(list) {
  if (list.length === 0) {
    return element("p", { class: "empty soft" }, "No budget is set. Give a tenant one in the settings, or every tenant of a policy:",
      element("pre", {}, '[budget]\nper_tenant = { daily = "25 USD" }'));
  }
  return list.map((budget) => {
    const [limit, spent, held] = [nanos(budget.limit_nano_usd), nanos(budget.spent_nano_usd), nanos(budget.held_nano_usd)];
    const share = (amount) => (limit > 0n ? Number((amount * 10000n) / limit) / 10000 : 0);
    const left = limit - spent - held;
    const words = `${money(spent)} spent, ${money(held)} held of ${money(limit)}`;
    return element("div", { class: "budget" },
      element("p", {}, element("b", {}, `${budget.tenant}, ${budget.window}`), element("span", {}, words)),
      meter([{ className: "spent", share: share(spent) }, { className: "held", share: share(held) }], words),
      element("p", { class: "small soft" }, element("span", { class: left <= limit / 10n && "bad" }, `${money(left)} left`), element("span", {}, `until ${clock(budget.resets_ms, true)}`)));
  });
}

function policyTable(list) {
  return element("div", { class: "scroll" }, element("table", { class: "cards" },
    element("thead", {}, element("tr", {}, ["Policy", "Local from score", "Certificate"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, list.map((policy) => element("tr", {},
      cell("Policy", null, element("span", {}, element("b", { title: policy.description }, policy.name), policy.default ? element("span", { class: "soft" }, " default") : null)),
      cell("Local from", null, policy.threshold === null ? element("span", { class: "warn" }, "never: all remote") : score(policy.threshold)),
      cell("Certificate", "small", policy.certificate))))));
}

/** What graded requests say of the promises, where any were graded or looked at. */
function liveSection(list) {
  const rows = list.flatMap((policy) => policy.live.map((live) => ({ policy: policy.name, ...live })));
  if (rows.length === 0) return null;
  const share = (value) => `${(100 * value).toFixed(1)} %`;
  const kept = (live) => live.kept === null ? "nothing graded yet" : `${share(live.kept.value)} [${share(live.kept.low)}, ${share(live.kept.high)}]`;
  const most = (live) => live.shifts.reduce((a, b) => (a === null || b.shift > a.shift ? b : a), null);
  const drift = (live) => most(live) === null ? "too few requests" : `${most(live).feature} ${most(live).shift.toFixed(2)}`;
  const calibration = (live) => live.calibration_error === null ? "–" : `${live.calibration_error.toFixed(3)} of ${count(live.calibration_n)}`;
  const header = ["Policy", "Graded", "Promised", "Kept [interval]", "Calibration error", "Largest shift", "Standing"];
  return element("section", { class: "whole" }, element("h2", {}, "Live checks"),
    element("div", { class: "scroll" }, element("table", { class: "cards" },
      element("thead", {}, element("tr", {}, header.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map((live) => element("tr", {},
        cell("Policy", null, element("b", {}, live.policy), element("span", { class: "soft small" }, ` ${live.small} / ${live.large}`)),
        cell("Graded", null, count(live.graded)),
        cell("Promised", null, `${share(live.promised)} at ${share(live.confidence)}`),
        cell("Kept", null, kept(live)),
        cell("Calibration", null, calibration(live)),
        cell("Shift", null, element("span", { class: most(live)?.shift > live.shifted_from ? "warn" : null }, drift(live))),
        cell("Standing", "small", live.breaches.length === 0 ? live.standing
          : element("span", { class: "bad" }, `${live.standing}: ${live.breaches.map((breach) => breach.why).join("; ")}`))))))),
    element("p", { class: "small soft" }, "Kept is the share of the large model's quality in graded requests, with an interval that holds at all times together. A breach ends with a new certificate."));
}

// One request's story

function story(entry) {
  const { decision } = entry;
  const received = clock(entry.received_ms, true);
  return [
    element("p", {}, element("a", { href: "#" }, "← Overview")),
    element("h1", {}, headline(entry)),
    element("p", { class: "lead soft" }, decision ? decision.reason.detail : `It was refused before anything was decided: ${words(entry.error)}.`),
    element("div", { class: "grid" },
      decision && element("section", { class: "half" }, element("h2", {}, "Decision"), decisionFacts(decision)),
      element("section", { class: "half" }, element("h2", {}, "Request"), requestFacts(entry, received)),
      decision && decision.candidates.length > 0 && element("section", { class: "whole" }, element("h2", {}, "Candidates"), candidates(entry)),
      element("section", { class: "whole" }, element("h2", {}, "Attempts"), attempts(entry)),
      element("section", { class: "half" }, element("h2", {}, "Cost"), costFacts(entry)),
      element("section", { class: "half" }, element("h2", {}, "Feedback"), feedback(entry))),
  ];
}

function headline({ decision, status, error }) {
  if (status !== "ok") return `${words(status)[0].toUpperCase()}${words(status).slice(1)}${error && error !== status ? `: ${words(error)}` : ""}`;
  const how = { cache: "Repeated from the cache, first written by", local: "Answered in this process by", remote: "Answered remotely by", cascade: decision.reason.code === "declined" ? "Draft declined, answered by" : "Drafted and judged, answered by" };
  return `${how[decision.route] ?? "Answered by"} ${decision.model}`;
}

function facts(list) {
  return element("dl", { class: "facts" }, list.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function decisionFacts(decision) {
  const candidate = scored(decision);
  const scale = candidate && scoreScale(candidate.score, decision.threshold, `Score ${comparison(decision)}`);
  return [
    scale,
    facts([
      ["Route", routeMark(decision.route)],
      ["Model", decision.model],
      ["Reason", reasonWords(decision)],
      ["Score", candidate ? `${comparison(decision)}${decision.threshold === null ? ", no threshold applied" : ""}` : "none"],
      ["Placement", decision.placement && `${decision.placement}${decision.placement_by ? ` (${decision.placement_by})` : ""}`],
      ["Rule", decision.rule],
      ["Policy", `${decision.policy} @ ${decision.policy_hash}`],
      ["Scorer", decision.scorer],
      ["Propensity", `${decision.propensity}${decision.explored ? ", explored to learn" : ""}`],
    ]),
  ];
}

function requestFacts(entry, received) {
  const labels = Object.entries(entry.labels).map(([key, value]) => `${key} = ${value}`).join(", ");
  return facts([
    ["Entry", element("code", {}, entry.id)],
    ["Received", received],
    ["Tenant", entry.tenant],
    ["Status", element("span", { class: entry.status === "ok" ? "good" : "bad" }, words(entry.status))],
    ["Finish", words(entry.finish_reason)],
    ["Latency", `${duration(entry.latency_ms)}${entry.first_byte_ms === null ? "" : `, first byte after ${duration(entry.first_byte_ms)}`}`],
    ["Tokens", `${count(entry.input_tokens)} in, ${count(entry.output_tokens)} out`],
    ["Processor", entry.cpu_seconds > 0 ? duration(entry.cpu_seconds * 1000) : null],
    ["Labels", labels],
    ["Repeats", entry.cached_from && element("a", { href: `#entry/${entry.cached_from}` }, entry.cached_from)],
  ]);
}

/** What became of a candidate that nothing excluded. */
function fate({ decision, attempts }, { model }) {
  if (model === decision.model) return "chosen";
  const tried = attempts.findLast((attempt) => attempt.model === model);
  return tried ? `tried: ${words(tried.status)}` : "eligible, not chosen";
}

function candidates(entry) {
  const { decision } = entry;
  const rows = decision.candidates.map((candidate) => element("tr", { class: candidate.excluded_by && "excluded" },
    cell("Model", null, candidate.model === decision.model ? element("b", {}, candidate.model) : candidate.model),
    cell("Route", null, routeMark(candidate.route)),
    cell("Score", "number", score(candidate.score)),
    cell("Expected", "number", money(nanos(candidate.expected_cost_nano_usd))),
    cell("Excluded by", null, candidate.excluded_by || element("span", { class: "soft" }, fate(entry, candidate)))));
  return element("div", { class: "scroll" }, element("table", { class: "cards", id: "candidates" },
    element("thead", {}, element("tr", {}, ["Model", "Route", "Score", "Expected cost", "Excluded by, or fate"].map((name) => element("th", { scope: "col", class: /Score|cost/.test(name) && "number" }, name)))),
    element("tbody", {}, rows)));
}

function attempts(entry) {
  if (entry.attempts.length === 0) {
    return element("p", { class: "soft" }, entry.cached_from ? "None: a kept answer was repeated." : "None: nothing was sent to any backend.");
  }
  const rows = entry.attempts.map((attempt) => element("tr", {},
    cell("Started", "nowrap", `+${duration(Math.max(0, attempt.started_ms - entry.received_ms))}`),
    cell("Model", null, attempt.model),
    cell("End", null, element("span", { class: attempt.status === "ok" ? "good" : "bad" }, words(attempt.status)), attempt.error ? ` ${words(attempt.error)}` : null),
    cell("Latency", "number", attempt.status === "running" ? "–" : duration(attempt.latency_ms)),
    cell("Tokens", "number", `${count(attempt.input_tokens)} in, ${count(attempt.output_tokens)} out`),
    cell("Held", "number", money(nanos(attempt.hold_nano_usd))),
    cell("Cost", "number", element("span", { title: exactMoney(nanos(attempt.cost_nano_usd)) }, money(nanos(attempt.cost_nano_usd))), attempt.basis && attempt.basis !== "reported" ? ` ${attempt.basis}` : null, attempt.overrun ? element("b", { class: "bad" }, " above its hold") : null)));
  return element("div", { class: "scroll" }, element("table", { class: "cards", id: "attempts" },
    element("thead", {}, element("tr", {}, ["Started", "Model", "End", "Latency", "Tokens", "Held", "Cost"].map((name, index) => element("th", { scope: "col", class: index > 2 && "number" }, name)))),
    element("tbody", {}, rows)));
}

function costFacts(entry) {
  return facts([
    ["Spent", `${exactMoney(nanos(entry.cost_nano_usd))} (${entry.basis})`],
    ["All remote", `${exactMoney(nanos(entry.baseline_nano_usd))} (estimate)`],
    ["Saved", `${exactMoney(nanos(entry.saved_nano_usd))} (estimate)`],
    ["Method", element("span", { class: "small soft" }, entry.baseline_method)],
  ]);
}

function feedback(entry) {
  if (entry.feedback.length === 0) {
    return element("p", { class: "soft" }, "None yet. A service sends it with SubmitFeedback and this entry's id.");
  }
  return facts(entry.feedback.map(({ source, value }) => [source, value.toFixed(2)]));
}

// Turning the page

function trouble(error) {
  const refused = error instanceof ApiError && (error.status === 401 || error.status === 403);
  if (refused) document.getElementById("key").open = true;
  const missing = error instanceof ApiError && error.status === 404;
  const text = refused ? `${error.message}. Enter a key above that may see usage (role usage-own, usage-all or admin).`
    : missing ? `${error.message}: unknown, or another tenant's.`
      : `The figures can't be had: ${error.message}. Trying again every ${REFRESH_MS / 1000} s.`;
  return [element("p", { class: "banner", role: "alert" }, text), missing ? element("p", {}, element("a", { href: "#" }, "← Overview")) : null];
}

async function load() {
  const match = location.hash.match(/^#entry\/([0-9a-fA-F-]+)$/);
  if (match) return story(await api(`entries/${match[1]}`));
  const { minutes, buckets } = RANGES[view.range];
  const query = new URLSearchParams({ limit: window.innerWidth > 700 ? "25" : "10", route: view.route, page_token: view.pages.at(-1) });
  const [summary, page, policies] = await Promise.all([
    api(`summary?minutes=${minutes}&buckets=${buckets}&group_by=${view.group}`), api(`entries?${query}`), api("policies"),
  ]);
  return overview(summary, page, policies);
}

/** Focus and open tables survive the redraw; a reader in the middle of something is not thrown out. */
function show(nodes) {
  const focused = content.contains(document.activeElement) ? document.activeElement : null;
  const link = focused?.getAttribute("href");
  const again = focused && (focused.id ? `#${focused.id}` : link ? `a[href="${CSS.escape(link)}"]` : null);
  const open = [...content.querySelectorAll("details")].map((details) => details.open);
  controls.hidden = location.hash.startsWith("#entry/");
  content.replaceChildren(...nodes.filter(Boolean));
  content.querySelectorAll("details").forEach((details, index) => { details.open = open[index] ?? false; });
  if (again) content.querySelector(again)?.focus({ preventScroll: true });
}

async function refresh() {
  clearTimeout(timer);
  const mine = ++turn;
  let fine = true;
  const nodes = await load().catch((error) => {
    fine = false;
    return trouble(error);
  });
  if (mine !== turn) return;
  show(nodes);
  document.title = location.hash.startsWith("#entry/") ? "Entry · Sluice" : "Sluice";
  state.textContent = fine ? "" : "not up to date";
  main.dataset.ready = fine ? "yes" : "no";
  if (shown !== location.hash) {
    if (shown !== "" || location.hash !== "") window.scrollTo(0, 0);
    shown = location.hash;
  }
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MS);
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("key-field");
  sessionStorage.setItem(KEY, field.value.trim());
  field.value = "";
  document.getElementById("key").open = false;
  refresh();
});
document.getElementById("key-forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  refresh();
});
buildControls();
window.addEventListener("hashchange", refresh);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
let resized = null;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(refresh, 200);
});
refresh();
