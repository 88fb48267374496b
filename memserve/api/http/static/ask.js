// The question box: what may be chosen, the answer as it comes, and its receipt.

import { byId, el, number } from "./draw.js";
import { ask, Refused } from "./gateway.js";
import { drawReceipt } from "./receipt.js";

let model = "";
let offered = "";
let asking = null;

// What the tenant has to choose from. Choices that stay keep what was chosen.
export function offer(state) {
  model = state.model;
  const names = (state.texts?.namespaces ?? []).map((space) => [space.name, space.memories]);
  const references = (state.modules?.modules ?? []).flatMap((module) =>
    module.aliases.map((alias) => [`${module.name}@${alias.name}`, module.kind]));
  const now = JSON.stringify([names, references]);
  if (now === offered) return;
  offered = now;
  offerNamespaces(names);
  const select = byId("module"), chosen = select.value;
  select.replaceChildren(el("option", { value: "" }, "none"), ...references.map(([reference, kind]) =>
    el("option", { value: reference }, kind === "lora" ? reference : `${reference} (${kind})`)));
  select.value = references.some(([reference]) => reference === chosen) ? chosen : "";
}

function offerNamespaces(names) {
  const chosen = new Set(chosenNamespaces());
  byId("namespaces-box").hidden = names.length === 0;
  const focused = document.activeElement?.id;
  byId("namespaces").replaceChildren(...names.map(([name, memories], place) => {
    const box = el("input", { type: "checkbox", id: `namespace-${place}`, value: name });
    box.checked = chosen.has(name);
    return el("label", { for: box.id }, box, ` ${name} `, el("small", {}, number(memories)));
  }));
  if (focused?.startsWith("namespace-")) byId(focused)?.focus();
}

const chosenNamespaces = () =>
  [...byId("namespaces").querySelectorAll("input:checked")].map((box) => box.value);

export function prepareAsking() {
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (asking === null) put();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("ask-form").requestSubmit();
    }
  });
  byId("stop").addEventListener("click", () => asking?.abort());
}

function body() {
  const memserve = { namespaces: chosenNamespaces() };
  if (byId("module").value) memserve.modules = [{ reference: byId("module").value }];
  return {
    model,
    messages: [{ role: "user", content: byId("question").value }],
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: 0,
    memserve,
  };
}

async function put() {
  asking = new AbortController();
  busy(true);
  const answer = byId("answer");
  let pieces = 0;
  try {
    await ask(body(), asking.signal, {
      start: (worker) => { byId("answer-by").textContent = worker ? `from ${worker}` : ""; },
      text: (piece) => { answer.append(piece); pieces += 1; },
      end: (chunk) => {
        if (pieces === 0) answer.append("(no text)");
        drawReceipt(byId("receipt"), chunk.memserve);
      },
    });
  } catch (error) {
    fail(error);
  }
  asking = null;
  busy(false);
}

// The focus stays on a button that is there.
function busy(is) {
  const [shown, gone] = is ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const focused = document.activeElement === gone;
  shown.hidden = false;
  if (focused) shown.focus();
  gone.hidden = true;
  byId("answer").setAttribute("aria-busy", String(is));
  if (!is) { byId("answer-box").classList.remove("writing"); return; }
  byId("ask-error").hidden = true;
  byId("receipt").hidden = true;
  byId("answer").replaceChildren();
  byId("answer-by").textContent = "";
  byId("answer-box").hidden = false;
  byId("answer-box").classList.add("writing");
}

function fail(error) {
  const box = byId("ask-error");
  box.hidden = false;
  if (error.name === "AbortError") box.textContent = "Stopped. The engine's work on it has ended.";
  else if (error instanceof Refused) box.textContent = error.message;
  else box.textContent = `The gateway was not reached, or the answer was cut off (${error.message}).`;
}
