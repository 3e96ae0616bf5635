/**
 * What the console knows, and the streams that keep it true.
 *
 * Views read the state with `useStore`, and say with `useFigures` whose figures they show; the stream asks for these
 * and no others. A hidden tab has no stream.
 */
import { useEffect, useState } from "./vendor/preact.mjs";
import { pause, Problem, read, readEvents, watchStatus } from "./api.js";

/**
 * @typedef {"connecting" | "live" | "lost" | "login"} Link `lost`: the manager does not answer; `login`: it wants one
 * @typedef {{
 *   link: Link,
 *   me: any,
 *   services: Map<string, any>,
 *   loaded: boolean,
 *   overview: any,
 *   figures: Map<string, any>,
 *   traces: Map<string, Record<string, number>[]>,
 *   events: any[],
 *   earlier: boolean,
 *   lostAt: number,
 * }} State
 */

/** @type {State} */
const state = {
  link: "connecting",
  me: JSON.parse(/** @type {HTMLMetaElement} */ (document.querySelector("meta[name=agentmgr-console]")).content),
  services: new Map(), // light rows, by id
  loaded: false, // the rows are here
  overview: null,
  figures: new Map(), // the newest of each service that is on screen, by id
  traces: new Map(), // the last minutes of these, for what moves
  events: [], // the newest last
  earlier: false, // those from before the page was open are among them
  lostAt: 0,
};

const HOUR_MS = 3_600_000; // an event's id begins as the milliseconds of its time
const EVENTS_KEPT = 20_000; // the manager keeps 10,000
const TRACE_KEPT = 300; // samples: five minutes

/** @type {Set<() => void>} */
const listeners = new Set();
let announced = false;

/** Redraws the views once for all changes of a frame. */
function changed() {
  if (announced) return;
  announced = true;
  requestAnimationFrame(() => {
    announced = false;
    for (const listener of [...listeners]) listener();
  });
}

/**
 * A part of the state; the view is drawn again when it changes. Parts are replaced, never changed in place.
 * @template T
 * @param {(state: State) => T} part
 * @returns {T}
 */
export function useStore(part) {
  const [, redraw] = useState(0);
  const now = part(state);
  useEffect(() => {
    let seen = now;
    const listener = () => {
      const next = part(state);
      if (next !== seen) {
        seen = next;
        redraw((count) => count + 1);
      }
    };
    listeners.add(listener);
    listener();
    return () => void listeners.delete(listener);
  }, []);
  return now;
}

/** May the user do what needs this scope? @param {"read" | "sessions" | "connect" | "admin"} scope */
export const can = (scope) => Boolean(state.me?.scopes?.includes(scope));

/** What is known now, without following it. */
export const snapshot = () => state;

// What the views on screen want figures of, counted: two may want the same.

/** @type {Map<string, number>} */
const wanted = new Map();

/**
 * The figures of services, once a second while this view is there, by id.
 * @param {string[]} ids
 * @returns {Map<string, any>}
 */
export function useFigures(ids) {
  const names = ids.slice(0, 200);
  useEffect(() => {
    for (const name of names) wanted.set(name, (wanted.get(name) ?? 0) + 1);
    askSoon();
    return () => {
      for (const name of names) {
        const left = /** @type {number} */ (wanted.get(name)) - 1;
        if (left) wanted.set(name, left);
        else wanted.delete(name);
      }
      askSoon();
    };
  }, [names.join()]);
  return useStore((all) => all.figures);
}

// The streams: one for as long as the page is seen, and one of figures, which is begun anew for other services.

let stream = new AbortController();
let figures = new AbortController();
let timer = 0;
let last = /** @type {string | null} */ (null); // the newest event's id
/** @type {(() => void) | null} */
let wake = null;

/** A table that is scrolled wants other rows many times a second. */
function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    figures.abort();
    figures = new AbortController();
    if (wanted.size && state.link === "live") void readFigures([...wanted.keys()].join(), figures.signal);
  }, 150);
}

/** @param {string} ids @param {AbortSignal} signal */
async function readFigures(ids, signal) {
  try {
    for await (const { event, data } of readEvents("/events", { sample: ids }, signal)) {
      if (event === "sample") take(data);
    }
  } catch (error) {
    if (!signal.aborted && !(error instanceof Problem)) throw error; // the other stream sees to it
  }
}

/** Keeps the state true for as long as the page is open. */
export async function live() {
  watchStatus((status) => {
    if (status === 401) setLink("login");
    else if (status === 0) setLink("lost");
  });
  addEventListener("visibilitychange", () => {
    if (!document.hidden) return wake?.();
    stream.abort();
    figures.abort();
  });
  for (let failures = 0; ; ) {
    if (document.hidden) await woken();
    stream = new AbortController();
    try {
      // A link from elsewhere brought no cookie along; a request of this page does.
      if (state.link === "lost" || state.link === "login" || !state.me.authenticated) await whoAmI();
      if (state.me.login_required && !state.me.authenticated) {
        setLink("login");
        await woken();
        continue;
      }
      const query = { sample: "overview,services", since: last ?? Date.now() - HOUR_MS };
      for await (const { id, event, data } of readEvents("/events", query, stream.signal)) {
        failures = 0;
        if (event === "sample") take(data);
        else if (id) remember(id, data);
        setLink("live");
      }
      await pause(200, stream.signal); // it ended in order: the manager stops, or a token was revoked
    } catch (error) {
      if (stream.signal.aborted) continue;
      if (!(error instanceof Problem)) throw error;
      failures += 1;
      await pause(Math.min(250 * 2 ** failures, 3000), stream.signal);
    }
  }
}

/** Waits until the tab is seen, or the user signed in. @returns {Promise<void>} */
function woken() {
  return new Promise((done) => {
    wake = () => {
      wake = null;
      done();
    };
  });
}

/** Asks again who the user is: after a login, or a change of rights. */
export async function signedIn() {
  await whoAmI();
  wake?.();
}

async function whoAmI() {
  state.me = await read("/console");
  changed();
}

/** @param {Link} link */
function setLink(link) {
  if (state.link === link) return;
  if (link === "lost") state.lostAt = Date.now();
  state.link = link;
  if (link === "live") askSoon();
  changed();
}

/** @param {any} sample */
function take(sample) {
  if (sample.overview) state.overview = sample.overview;
  if (sample.services) {
    // The first of a stream has all rows, those that follow have what changed.
    const rows = new Map(sample.services.all ? [] : state.services);
    for (const row of sample.services.rows) rows.set(row.service_id, row);
    for (const id of sample.services.gone) rows.delete(id);
    state.services = rows;
    state.loaded = true;
  }
  if (sample.figures) {
    const at = Date.parse(sample.at);
    state.figures = new Map(Object.entries(sample.figures));
    const traces = new Map();
    for (const [id, one] of state.figures) {
      if (!one) continue; // it was unregistered
      const { cpu, memory_bytes, connections, sessions, restarts, first_byte } = one;
      const trace = (state.traces.get(id) ?? []).slice(1 - TRACE_KEPT);
      traces.set(id, [...trace, { at, cpu, memory_bytes, connections, sessions, restarts,
        first_byte_p50_s: first_byte.p50_s, first_byte_p95_s: first_byte.p95_s }]);
    }
    state.traces = traces;
  }
  changed();
}

/** @param {string} id @param {any} event */
function remember(id, event) {
  last = id;
  state.events = [...state.events.slice(1 - EVENTS_KEPT), event];
  changed();
}

/** The events before those that the stream brought. @param {any[]} earlier the newest last */
export function rememberEarlier(earlier) {
  const first = state.events[0]?.event_id ?? Infinity;
  state.events = [...earlier.filter((one) => one.event_id < first), ...state.events].slice(-EVENTS_KEPT);
  state.earlier = true;
  changed();
}
