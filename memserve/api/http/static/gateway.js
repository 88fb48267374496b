// Calls to the gateway that sent this page, and the key that they carry.

const KEY = "memserve-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

// A refusal, in the words of the gateway.
export class Refused extends Error {
  constructor(status, message, reason) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

// The address is relative: a proxy may serve the gateway below a path of its own.
async function call(path, options) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `the gateway answered ${response.status}`;
  try {
    const error = (await response.json()).error;
    message = error.param ? `${error.message} (${error.param})` : error.message;
  } catch {
    // A proxy in between has answered. The status says it.
  }
  return new Refused(response.status, message, response.headers.get("x-memserve-reason") ?? "");
}

export async function status(timeoutMs) {
  const response = await call("v1/memserve/status", { signal: AbortSignal.timeout(timeoutMs) });
  return response.json();
}

// Asks, and calls on.start(worker), on.text(piece) and on.end(last event) as the answer comes.
// The events are OpenAI's chunks. Raises Refused, also for an answer that fails on its way.
export async function ask(body, signal, on) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  on.start(response.headers.get("x-memserve-worker") ?? "");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) handle(event.replace(/^data: /, ""), on);
  }
}

function handle(event, on) {
  if (event === "[DONE]") return;
  const chunk = JSON.parse(event);
  if (chunk.error) throw new Refused(0, chunk.error.message, "");
  const choice = chunk.choices[0];
  if (choice?.delta?.content) on.text(choice.delta.content);
  if (choice?.finish_reason) on.end(chunk);
}
