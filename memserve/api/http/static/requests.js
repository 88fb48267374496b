// Requests with their eight numbered steps, and the seconds in each.

import { ago, byId, el, number, plural, seconds, show } from "./draw.js";

export function drawRequests(state) {
  const requests = state.requests, others = requests.others;
  byId("requests-count").textContent = `${number(requests.under_way.length + requests.left_out)} under way`
    + (others ? `, ${number(others)} of other tenants` : "");
  const rows = [...requests.under_way, ...requests.ended].map(drawRequest);
  if (rows.length === 0) {
    rows.push(el("li", { class: "empty" }, "Nothing is under way. Ask something, and its steps show here."));
  }
  show("requests", drawNames(state.steps), el("ul", { class: "requests" }, rows),
    requests.left_out ? el("p", { class: "hint" }, `${plural(requests.left_out, "more request")}`) : null);
}

function drawNames(names) {
  return el("ol", { class: "steps names" }, names.map((name) => el("li", {}, name)));
}

function drawRequest(request) {
  const ended = request.ended_ago_s !== null;
  const good = request.outcome === "under way" || request.outcome === "answered";
  const facts = [
    request.worker_id, request.modules.join(" + "),
    request.prompt_tokens ? plural(request.prompt_tokens, "prompt token") : "",
  ].filter(Boolean);
  return el("li", { class: ended ? "request ended" : "request" },
    el("div", { class: "head" },
      el("span", { class: "name" }, `#${request.number}`),
      el("span", { class: "facts" }, facts.join(" · ")),
      el("span", { class: good ? "outcome" : "outcome failed", title: request.request_id },
        ended ? `${request.outcome} ${ago(request.ended_ago_s)}` : `in step ${request.step}`),
      el("span", { class: "total" }, seconds(request.seconds))),
    el("ol", { class: "steps" }, request.step_seconds.map((spent, place) =>
      drawStep(place + 1, spent, request, ended))));
}

function drawStep(step, spent, request, ended) {
  const now = !ended && step === request.step;
  const place = now ? "now" : step <= request.step ? "done" : "ahead";
  const failed = ended && step === request.step && request.outcome !== "answered" ? " failed" : "";
  const words = step === 1 ? "done" : step > request.step && spent === 0 ? "" : seconds(spent);
  const cell = el("li", { class: place + failed, "aria-current": now ? "step" : null },
    el("span", { class: "number" }, step), el("span", { class: "spent" }, words));
  // The share of the request's time, as a line below the step.
  const share = el("span", { class: "share", "aria-hidden": "true" });
  share.style.width = `${request.seconds > 0 ? 100 * spent / request.seconds : 0}%`;
  cell.append(share);
  return cell;
}
