// Workers, memories, and what is wrong.

import { bar, byId, bytes, el, number, percent, plural, seconds, show, sparkline } from "./draw.js";

const HISTORY = 120;
const history = new Map();

export function drawStatus(state) {
  byId("model").textContent = state.model;
  byId("caller").textContent = `tenant ${state.tenant}, role ${state.role}`;
  byId("about").textContent = `memserve ${state.version}, ${number(state.max_context_tokens)} tokens of context`;
  show("health", drawHealth(problems(state)));
  drawWorkers(state);
  byId("tenant-count").textContent = `of tenant ${state.tenant}`;
  show("memories", drawModules(state.modules), drawPrefixes(state.prefixes), drawTexts(state.texts));
}

// What an operator has to know first. Each is [weight, text].
function problems(state) {
  const ready = state.workers.filter((worker) => worker.ready).length, found = [];
  if (ready === 0) found.push(["bad", "No worker is ready: requests are refused until one is."]);
  else if (ready < state.workers.length) {
    found.push(["warn", `${ready} of ${plural(state.workers.length, "worker")} ready.`]);
  }
  if (!state.registry_ok) found.push(["bad", "The registry's Redis does not answer. Known workers stay."]);
  if (!state.vector_store_ok) {
    found.push(["bad", "The vector store does not answer: answers come without recalled passages."]);
  }
  if (state.texts === null) found.push(["warn", "The journal of text memories does not answer."]);
  if (state.prefixes === null) found.push(["warn", "The cache's Redis does not answer: prompts are computed."]);
  if (state.texts?.lost) {
    found.push(["bad", `${plural(state.texts.lost, "memory", "memories")} lost: memserve restore helps.`]);
  }
  if (state.short_disk) found.push(["bad", `${state.short_disk} is nearly full: changes are refused.`]);
  for (const worker of state.workers) {
    if (!worker.shares_kv) {
      found.push(["warn", `${worker.worker_id} shares no KV: its golden prefix came back different.`]);
    }
  }
  return found;
}

function drawHealth(found) {
  if (found.length === 0) return el("p", { class: "notice good" }, "All parts answer.");
  return el("ul", { class: "notices" }, found.map(([weight, text]) =>
    el("li", { class: `notice ${weight}` }, text)));
}

function drawWorkers(state) {
  const ready = state.workers.filter((worker) => worker.ready).length;
  byId("workers-count").textContent = `${ready} of ${state.workers.length} ready`
    + (state.workers_left_out ? `, ${state.workers_left_out} not shown` : "");
  for (const name of history.keys()) {
    if (!state.workers.some((worker) => worker.worker_id === name)) history.delete(name);
  }
  const cards = state.workers.map(drawWorker);
  show("workers", cards.length ? cards : el("p", { class: "card empty" }, "No worker is known. "
    + "One registers itself when its engine is ready; memserve up starts two."));
}

function drawWorker(worker) {
  const lately = history.get(worker.worker_id) ?? [];
  lately.push(worker.running + worker.waiting);
  history.set(worker.worker_id, lately.slice(-HISTORY));
  const place = worker.ready ? ["good", "ready"]
    : worker.silent_s === null ? ["warn", "never heard"] : ["bad", `silent ${seconds(worker.silent_s)}`];
  return el("article", { class: "card worker" },
    el("h3", {}, el("span", { class: "name" }, worker.worker_id),
      el("span", { class: `pill ${place[0]}` }, place[1])),
    measure("Batch", worker.running, worker.max_concurrent, `${worker.running} of ${worker.max_concurrent}`),
    queue(worker),
    kvUse(worker),
    el("div", { class: "measure" }, el("span", { class: "what" }, "Adapters"), drawAdapters(worker)),
    el("div", { class: "measure" }, el("span", { class: "what" }, "Lately"),
      sparkline(lately.length > 1 ? lately : [0, ...lately], "requests here over the last two minutes"),
      el("span", { class: "words" }, `at most ${number(Math.max(...lately))}`)),
    worker.limits ? el("p", { class: "hint" }, worker.limits) : null);
}

function measure(what, value, whole, words) {
  const kind = whole > 0 && value >= 0.9 * whole ? "hot" : "use";
  return el("div", { class: "measure" }, el("span", { class: "what" }, what),
    bar([{ name: what, value, kind }], whole, `${what}: ${words}`), el("span", { class: "words" }, words));
}

function queue(worker) {
  const words = worker.waiting || worker.queued_tokens
    ? `${number(worker.waiting)} waiting, ${plural(worker.queued_tokens, "token")}` : "empty";
  return measure("Queue", worker.waiting, Math.max(worker.max_concurrent, worker.waiting), words);
}

function kvUse(worker) {
  const held = worker.known_blocks * worker.block_tokens;
  const cached = `${number(held)} tokens cached`;
  if (worker.kv_tokens === null) return measure("KV", 0, 1, cached);
  const whole = worker.kv_tokens + worker.free_kv_tokens;
  const row = measure("KV", worker.kv_tokens, whole, `${percent(worker.kv_tokens, whole)}, ${number(held)} cached`);
  row.title = `in use: ${number(worker.kv_tokens)} of ${number(whole)} tokens; ${cached}`;
  return row;
}

function drawAdapters(worker) {
  const chips = worker.modules.map((module) =>
    el("li", { class: "chip", title: `held in ${module.place}` }, module.reference,
      module.place === "device" ? null : el("small", {}, ` ${module.place}`)));
  if (worker.modules_left_out) chips.push(el("li", {}, `${worker.modules_left_out} more`));
  if (worker.others_modules) chips.push(el("li", {}, `${worker.others_modules} of other tenants`));
  return chips.length ? el("ul", { class: "chips" }, chips) : el("span", { class: "words" }, "none resident");
}

function memory(title, what, figure, unit, ...details) {
  return el("article", { class: "card memory" }, el("h3", {}, title),
    el("p", { class: "figure" }, figure, el("small", {}, ` ${unit}`)),
    el("p", { class: "hint" }, what), ...details);
}

const gone = (title, what) => memory(title, what, "?", "the store does not answer");

function list(rows, leftOut) {
  if (rows.length === 0) return null;
  return el("ul", { class: "rows" }, rows.slice(0, 8).map(([name, words]) =>
    el("li", {}, el("span", { class: "name" }, name), el("span", { class: "words" }, words))),
    leftOut + Math.max(0, rows.length - 8)
      ? el("li", { class: "hint" }, `${number(leftOut + Math.max(0, rows.length - 8))} more`) : null);
}

function drawModules(modules) {
  const title = "Modules";
  const what = "Parametric memory: knowledge in weights, in versions behind aliases.";
  if (modules === null) return gone(title, what);
  const rows = modules.modules.map((module) => [module.name, module.aliases.length
    ? module.aliases.map((alias) => `${alias.name} → ${alias.versions.join(", ")}`).join("; ")
    : plural(module.versions, "version")]);
  return memory(title, what, number(modules.total), modules.total === 1 ? "module" : "modules",
    list(rows, modules.left_out));
}

function drawPrefixes(prefixes) {
  const title = "Prefixes";
  const what = "Activation memory: KV of prompts in Redis, computed once and shared.";
  if (prefixes === null) return gone(title, what);
  const rows = [["chunks", number(prefixes.chunks)], ["pinned", bytes(prefixes.pinned_bytes)]];
  if (prefixes.cache_stored_bytes !== null) {
    rows.push(["all tenants", prefixes.cache_quota_bytes
      ? `${bytes(prefixes.cache_stored_bytes)}, ${percent(prefixes.cache_stored_bytes, prefixes.cache_quota_bytes)}`
      : bytes(prefixes.cache_stored_bytes)]);
  }
  const [figure, unit] = bytes(prefixes.stored_bytes).split(" ");
  const quota = prefixes.quota_bytes
    ? bar([{ name: "KV", value: prefixes.stored_bytes, kind: "use" }], prefixes.quota_bytes,
      `${percent(prefixes.stored_bytes, prefixes.quota_bytes)} of the quota`) : null;
  return memory(title, what, figure, prefixes.quota_bytes ? `${unit} of ${bytes(prefixes.quota_bytes)}` : unit,
    quota, list(rows, 0));
}

function drawTexts(texts) {
  const title = "Texts";
  const what = "Vector memory: passages that a question finds by meaning and by word.";
  if (texts === null) return gone(title, what);
  const rows = texts.namespaces.map((space) => [space.name, number(space.memories)]);
  return memory(title, what, number(texts.total), texts.total === 1 ? "text" : "texts",
    list(rows, texts.left_out));
}
