// An answer's receipt: what of the prompt was cached, which passages and modules, and why this worker.

import { bar, el, legend, ms, number, percent, plural, table } from "./draw.js";

const RECALL = {
  not_asked: "No namespace was asked for.",
  empty: "Nothing in these namespaces fits the question.",
  late: "Recall was not in time: the answer was made without passages.",
  unavailable: "The vector store did not answer: the answer was made without passages.",
  skipped: "Passages were left out, so that the answer was not refused.",
};
const TERMS = [
  ["queue_ms", "queue", "prompts that go before this one"],
  ["slot_ms", "slot", "a slot for the adapter"],
  ["memory_ms", "memory", "room in the KV memory"],
  ["fetch_ms", "fetch", "KV that comes from Redis"],
  ["prefill_ms", "prefill", "the prompt itself"],
  ["load_ms", "load", "the request's modules"],
  ["learned_ms", "learned", "what predictions were wrong by lately"],
];

export function drawReceipt(box, receipt) {
  box.hidden = false;
  box.replaceChildren(
    el("h3", {}, "Receipt ", el("small", { class: "name" }, receipt.request_id)),
    drawPrompt(receipt), drawPassages(receipt), drawModules(receipt), drawWorker(receipt), drawTimes(receipt));
}

const part = (title, ...children) => el("div", { class: "part" }, el("h4", {}, title), ...children);

function drawPrompt(receipt) {
  const { device, host, redis } = receipt.cached_tokens, whole = receipt.prompt_tokens;
  const cached = device + host + redis;
  const parts = [
    { name: `${number(device)} on the worker`, value: device, kind: "device" },
    { name: `${number(host)} in host memory`, value: host, kind: "host" },
    { name: `${number(redis)} from Redis`, value: redis, kind: "redis" },
    { name: `${number(whole - cached)} computed`, value: whole - cached, kind: "computed" },
  ];
  return part("Prompt",
    el("p", {}, el("strong", { id: "cached-share" }, percent(cached, whole)),
      ` of ${plural(whole, "prompt token")} cached`),
    bar(parts, whole, `${percent(cached, whole)} of the prompt was cached`), legend(parts));
}

function drawPassages(receipt) {
  const passages = receipt.passages.map((passage) => el("li", {},
    el("p", { class: "passage" }, passage.text),
    el("p", { class: "hint" }, `${passage.source || "no source"} · ${passage.namespace} · `
      + `score ${passage.score.toFixed(3)}`)));
  return part("Passages", passages.length ? el("ol", { id: "passages", class: "passages" }, passages)
    : el("p", { class: "hint" }, RECALL[receipt.recall_outcome] ?? receipt.recall_outcome));
}

function drawModules(receipt) {
  const modules = receipt.modules.map((module) => el("li", {},
    el("strong", { class: "name" }, `${module.name}@${module.version}`),
    ` ${module.kind}${module.alpha ? `, strength ${module.alpha}` : ""}: ${module.reason}`));
  return part("Modules", modules.length ? el("ul", { id: "modules-used", class: "plain-list" }, modules)
    : el("p", { class: "hint" }, "None: the base model alone."));
}

// The terms as they follow each other: ttft = max(queue + slot + memory, fetch) + prefill + load + learned.
function drawnTerms(candidate) {
  const waits = candidate.queue_ms + candidate.slot_ms + candidate.memory_ms >= candidate.fetch_ms
    ? ["queue_ms", "slot_ms", "memory_ms"] : ["fetch_ms"];
  return TERMS.filter(([field]) => waits.includes(field) || /prefill|load|learned/.test(field))
    .map(([field, name, what]) => ({
      name, value: candidate[field], kind: `term-${name}`, title: `${name} ${ms(candidate[field])}: ${what}`,
    }));
}

function drawWorker(receipt) {
  const most = Math.max(...receipt.candidates.map((candidate) => candidate.ttft_ms), 0.001);
  const candidates = receipt.candidates.map((candidate) => {
    const chosen = candidate.worker_id === receipt.worker_id;
    return el("li", { class: chosen ? "chosen" : "" },
      el("span", { class: "name" }, `${candidate.worker_id}${chosen ? " (chosen)" : ""}`),
      bar(drawnTerms(candidate), most, `predicted time to first token ${ms(candidate.ttft_ms)}`),
      el("span", { class: "words" }, ms(candidate.ttft_ms)));
  });
  const shown = new Set(receipt.candidates.flatMap((candidate) =>
    drawnTerms(candidate).filter((term) => term.value > 0).map((term) => term.name)));
  const excluded = receipt.excluded.map((worker) =>
    el("li", {}, el("span", { class: "name" }, worker.worker_id), `: ${worker.reason}`));
  return part("Worker", el("p", { id: "why" }, receipt.reason),
    el("ul", { id: "candidates", class: "candidates" }, candidates),
    legend(TERMS.filter(([, name]) => shown.has(name)).map(([, name, what]) =>
      ({ name: `${name}: ${what}`, kind: `term-${name}` }))),
    excluded.length ? el("ul", { class: "plain-list hint" }, excluded) : null,
    el("details", {}, el("summary", {}, "Every candidate, term by term"), drawTerms(receipt)));
}

function drawTerms(receipt) {
  const headings = ["worker", "predicted", ...TERMS.map(([, name]) => name), "cached", "queued", "running"];
  const rows = receipt.candidates.map((candidate) => ({
    class: candidate.worker_id === receipt.worker_id ? "chosen" : null,
    cells: [candidate.worker_id, ms(candidate.ttft_ms), ...TERMS.map(([field]) => ms(candidate[field])),
      number(candidate.cached_tokens), number(candidate.queued_tokens), number(candidate.running)],
  }));
  return table(headings, rows, "Predicted time to first token of every candidate");
}

function drawTimes(receipt) {
  const facts = [
    ["predicted", `${ms(receipt.predicted_ttft_ms)} ± ${ms(receipt.predicted_within_ms)}`],
    ["first token", ms(receipt.ttft_ms)],
    ["each further", receipt.tpot_ms === null ? "–" : ms(receipt.tpot_ms)],
  ];
  return part("Time", el("dl", { class: "facts-list" }, facts.map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}
