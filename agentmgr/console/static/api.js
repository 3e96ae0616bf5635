/** The REST API and its streams. Whatever fails throws a `Problem`, with the API's own words. */

const BASE = "/api/v1";

/** What the API says when it cannot; RFC 9457. Status 0: it was not reached. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {{code?: string, detail?: string, title?: string, errors?: {path: string, message: string}[]}} body
   */
  constructor(status, body) {
    super(body.detail ?? body.title ?? `HTTP ${status}`);
    this.status = status;
    this.code = body.code ?? "";
    /** @type {Map<string, string>} the problem of each field that is wrong */
    this.fields = new Map((body.errors ?? []).map((one) => [one.path, one.message]));
  }
}

/** Called with each answer's status: 0 where there was none. @type {(status: number) => void} */
let onStatus = () => {};

/** @param {(status: number) => void} listener */
export function watchStatus(listener) {
  onStatus = listener;
}

/**
 * @typedef {{body?: unknown, query?: Record<string, unknown>, version?: number, signal?: AbortSignal, base?: string}}
 *   RequestOptions
 */

/**
 * @param {string} method
 * @param {string} path below `base`, which is `/api/v1`
 * @param {RequestOptions} options
 * @returns {Promise<Response>}
 */
async function fetched(method, path, { body, query = {}, version, signal, base = BASE }) {
  /** @type {Record<string, string>} */
  const headers = { "X-Agentmgr-Console": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (version !== undefined) headers["If-Match"] = `"${version}"`;
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  let response;
  try {
    response = await fetch(base + path + (search && "?" + search), {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    onStatus(0);
    throw new Problem(0, { code: "unreachable", detail: "The manager does not answer." });
  }
  onStatus(response.status);
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return response;
}

/**
 * One request; its answer, parsed, or null where it has none.
 * @param {string} method
 * @param {string} path
 * @param {RequestOptions} [options]
 * @returns {Promise<any>}
 */
export async function call(method, path, options = {}) {
  const response = await fetched(method, path, options);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** @param {string} path @param {Record<string, unknown>} [query] @param {AbortSignal} [signal] */
export const read = (path, query, signal) => call("GET", path, { query, signal });

/**
 * All pages of a list.
 * @param {string} path
 * @param {Record<string, unknown>} [query]
 * @param {{signal?: AbortSignal, atMost?: number}} [limits]
 * @returns {Promise<any[]>}
 */
export async function readAll(path, query = {}, { signal, atMost = 10_000 } = {}) {
  const items = [];
  for (let cursor; ; ) {
    const page = await read(path, { limit: 1000, ...query, cursor }, signal);
    items.push(...page.items);
    cursor = page.next_cursor;
    if (!cursor || items.length >= atMost) return items;
  }
}

/**
 * The text of an answer that goes on, piece by piece, as it comes.
 * @param {string} path
 * @param {Record<string, unknown>} query
 * @param {AbortSignal} signal
 */
export async function* readText(path, query, signal) {
  const response = await fetched("GET", path, { query, signal });
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body)
    .pipeThrough(/** @type {any} */ (new TextDecoderStream()))
    .getReader();
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      onStatus(0);
      throw new Problem(0, { code: "cut", detail: "The manager ended this stream." });
    }
    if (piece.done) return;
    yield /** @type {string} */ (/** @type {unknown} */ (piece.value));
  }
}

/**
 * Server-sent events, as `{id, event, data}` with `data` parsed.
 * @param {string} path
 * @param {Record<string, unknown>} query
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{id: string | null, event: string, data: any}>}
 */
export async function* readEvents(path, query, signal) {
  let rest = "";
  for await (const piece of readText(path, query, signal)) {
    const frames = (rest + piece).split("\n\n");
    rest = /** @type {string} */ (frames.pop());
    for (const frame of frames) {
      const fields = new Map(frame.split("\n").map((line) => {
        const colon = line.indexOf(": ");
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      const data = fields.get("data");
      if (data === undefined) continue; // a comment, which keeps the connection alive
      yield { id: fields.get("id") ?? null, event: fields.get("event") ?? "message", data: JSON.parse(data) };
    }
  }
}

/**
 * Waits for milliseconds, or less: until it is called off.
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export function pause(ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}
