// The page: asks the gateway for its state once a second, and says how old the figures are.

import { prepareAsking, offer } from "./ask.js";
import { byId } from "./draw.js";
import { key, Refused, status } from "./gateway.js";
import { drawRequests } from "./requests.js";
import { drawStatus } from "./status.js";

const EVERY_MS = 1000, FAILED_EVERY_MS = 2000, TIMEOUT_MS = 4000;
const STALE_MS = 3500;

let heardMs = null;
let failure = null;
let wake = () => {};

const pause = (forMs) => new Promise((resolve) => {
  wake = resolve;
  setTimeout(resolve, forMs);
});

async function look() {
  try {
    const state = await status(TIMEOUT_MS);
    heardMs = performance.now();
    failure = null;
    wantKey(false);
    draw(state);
  } catch (error) {
    failure = error;
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) wantKey(true, error);
  }
  drawLink();
}

function draw(state) {
  byId("main").hidden = false;
  offer(state);
  // Whoever copies text out of the page keeps it under the pointer.
  const selection = document.getSelection();
  if (selection !== null && !selection.isCollapsed && byId("main").contains(selection.anchorNode)) return;
  drawStatus(state);
  drawRequests(state);
}

function wantKey(wanted, error) {
  byId("key").hidden = !wanted;
  byId("forget").hidden = wanted || key.get() === "";
  if (!wanted) return;
  byId("main").hidden = true;
  if (key.get() === "") return;
  byId("key-error").textContent = `This key does not open the page: ${error.message}`;
  key.forget();
}

// How old the figures are, whatever the calls do.
function drawLink() {
  const ageMs = heardMs === null ? null : performance.now() - heardMs;
  const old = ageMs === null || ageMs > STALE_MS;
  const [kind, words] = linkWords(ageMs, old);
  const link = byId("link");
  document.body.classList.toggle("stale", old && heardMs !== null);
  if (link.textContent !== words) link.textContent = words;
  link.dataset.link = kind;
  document.title = kind === "live" ? "memserve" : `(!) memserve: ${kind}`;
}

function linkWords(ageMs, old) {
  const age = ageMs === null ? "" : `; figures are ${ageWords(ageMs / 1000)} old`;
  if (failure === null) return old && ageMs !== null ? ["stale", `no answer yet${age}`]
    : ageMs === null ? ["waiting", "connecting"] : ["live", "live"];
  if (!(failure instanceof Refused)) return ["unreachable", `gateway not reachable${age}`];
  if (failure.status === 401 || failure.status === 403) return ["key", "a key is needed"];
  if (failure.reason === "starting") return ["starting", `gateway is starting${age}`];
  return ["refused", `${failure.message}${age}`];
}

// In steps, so that a screen reader does not read a new age every second.
function ageWords(ageS) {
  if (ageS < 10) return "a few seconds";
  return ageS < 120 ? `${10 * Math.floor(ageS / 10)} s` : `${Math.floor(ageS / 60)} min`;
}

function prepareKey() {
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(byId("key-text").value.trim());
    byId("key-text").value = "";
    byId("key-error").textContent = "";
    wake();
  });
  byId("forget").addEventListener("click", () => {
    key.forget();
    location.reload();
  });
}

async function follow() {
  for (;;) {
    if (document.hidden) {
      await pause(60_000);
      if (document.hidden) continue;
    }
    await look();
    await pause(failure === null ? EVERY_MS : FAILED_EVERY_MS);
  }
}

prepareKey();
prepareAsking();
document.addEventListener("visibilitychange", () => wake());
setInterval(drawLink, 500);
follow();
