// Asks the gateway, and nobody else. Paths are relative, so the page works below any prefix.

const KEY = "firn-token";
let token = sessionStorage.getItem(KEY) ?? "";
let asking = null;

/** An answer that is an error. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message || `the gateway answered with HTTP ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
    this.code = error?.code ?? null;
  }

  /** The gateway is of a version that has no such route. */
  get isAbsent() {
    return this.status === 501 || this.status === 405 || (this.status === 404 && (this.code === "unknown_url" || this.code === null));
  }
}

export const hasToken = () => token !== "";

/** Asks for the token once, however many calls wait for it. */
function askToken(wasRefused) {
  asking ??= new Promise((resolve) => {
    const box = document.getElementById("token-dialog"), input = document.getElementById("token");
    document.getElementById("token-problem").hidden = !wasRefused;
    input.value = "";
    box.addEventListener("close", () => {
      asking = null;
      const given = box.returnValue === "ok" ? input.value.trim() : "";
      input.value = "";
      if (given) {
        token = given;
        sessionStorage.setItem(KEY, token);
      }
      resolve(given !== "");
    }, { once: true });
    box.returnValue = "";
    box.showModal();
  });
  return asking;
}

async function problem(response) {
  const body = await response.json().catch(() => null);
  return new ApiError(response.status, body?.error);
}

/** One call; throws what went wrong. */
export async function call(path, { method, json, body, signal, headers = {}, isQuiet = false } = {}) {
  for (;;) {
    const sent = token;
    const all = { ...headers, ...(sent ? { Authorization: `Bearer ${sent}` } : {}) };
    if (json !== undefined) all["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method: method ?? (json === undefined && body === undefined ? "GET" : "POST"),
        headers: all, body: json === undefined ? body : JSON.stringify(json), signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "the gateway does not answer; is it running?" });
    }
    if (response.ok) return response;
    if (response.status === 401 && sent !== token) continue;
    if (response.status === 401 && !isQuiet && (await askToken(sent !== ""))) continue;
    throw await problem(response);
  }
}

export const get = async (path, options) => (await call(path, options)).json();
export const send = async (path, json, options) => (await call(path, { json, ...options })).json();

/** All pages of a list, to a limit that no person reads beyond. */
export async function list(path, options) {
  const all = [];
  for (let next = ""; ;) {
    const page = await get(`${path}?page_size=200${next && `&page_token=${encodeURIComponent(next)}`}`, options);
    all.push(...(page.data ?? []));
    next = page.next_page_token ?? "";
    if (!next || all.length >= 1000) return all;
  }
}

/** Server-sent events of a response. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = { type: "message", data: [], id: null };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data.length) yield { ...event, data: event.data.join("\n") };
          event = { type: "message", data: [], id: null };
          continue;
        }
        const [, name, data] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (name === "data") event.data.push(data);
        else if (name === "event") event.type = data;
        else if (name === "id") event.id = data;
      }
    }
  } finally { reader.cancel().catch(() => {}); }
}

/**
 * Streams an answer: `{ text, tokens }` as they come, then `{ done: { usage, firn, reason } }`. `tokens` is there if
 * `logprobs` was asked for.
 */
export async function* answer(body, signal) {
  const response = await call("v1/chat/completions", {
    json: { ...body, stream: true, stream_options: { include_usage: true } }, signal,
  });
  const done = { usage: null, firn: null, reason: null };
  let isWhole = false;
  for await (const { data } of events(response)) {
    if (data === "[DONE]") { isWhole = true; break; }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, chunk.error);
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? "", tokens = choice?.logprobs?.content ?? null;
    if (text || tokens?.length) yield { text, tokens };
    done.reason = choice?.finish_reason ?? done.reason;
    done.firn = chunk.firn ?? done.firn;
    done.usage = chunk.usage ?? done.usage;
  }
  if (!isWhole && done.reason === null) throw new ApiError(0, { message: "the answer was cut off" });
  yield { text: "", tokens: null, done };
}
