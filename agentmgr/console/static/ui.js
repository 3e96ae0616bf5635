/** The parts of which the views are made. */
import { html, useEffect, useRef, useState } from "./vendor/preact.mjs";
import { Problem } from "./api.js";
import { agoText, clockText, cutText, visibleText } from "./format.js";
import { t } from "./i18n.js";
import { can } from "./store.js";
import { inform } from "./notices.js";

/** @typedef {any} Node what `html` gives */

/** A mark of each status: its form says it, besides the colour. */
const MARKS = /** @type {Record<string, [string, string]>} */ ({
  running: ["●", "good"], healthy: ["●", "good"], live: ["●", "good"], completed: ["✓", "good"], scheduled: ["◷", "idle"], interrupted: ["▲", "warn"],
  starting: ["◐", "busy"], stopping: ["◑", "busy"], draining: ["◑", "busy"], restarting: ["◐", "busy"],
  backoff: ["▲", "warn"], degraded: ["▲", "warn"], unhealthy: ["▲", "warn"], waiting: ["▲", "warn"],
  failed: ["✕", "bad"], error: ["✕", "bad"], crashed: ["✕", "bad"], lost: ["✕", "bad"],
  stopped: ["○", "idle"], registered: ["○", "idle"], stored: ["○", "idle"], asleep: ["☾", "idle"],
});

/** How it is, in a word with a mark. @param {{value: string, text?: string}} props @returns {Node} */
export function Status({ value, text }) {
  const [mark, kind] = MARKS[value] ?? ["○", "idle"];
  return html`<span class="status ${kind}"><span aria-hidden="true">${mark}</span> ${text ?? t(value)}</span>`;
}

/** A stranger's text: harmless for the eye, cut where it is too long, with the rest on a click.
 * @param {{text: string | null | undefined, most?: number}} props @returns {Node} */
export function Foreign({ text, most = 20_000 }) {
  const [whole, setWhole] = useState(false);
  if (!text) return null;
  const [shown, left] = whole ? [text, 0] : cutText(text, most);
  return html`<span class="foreign" dir="auto">${visibleText(shown)}</span>${
    left > 0 && html`<button class="link" onClick=${() => setWhole(true)}>
      ${t("… {count} more characters", { count: left })}</button>`}`;
}

/** A link, where its address is one of the web. @param {{href: string, children?: any}} props @returns {Node} */
export function Link({ href, children }) {
  if (!/^https?:\/\//i.test(href)) return html`<span>${children}</span>`;
  return html`<a href=${href} target="_blank" rel="noopener noreferrer">${children}</a>`;
}

/** Draws again every so many seconds, while the tab is seen; a count that goes up. @param {number} seconds */
export function useEvery(seconds) {
  const [count, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || tick((now) => now + 1), 1000 * seconds);
    return () => clearInterval(timer);
  }, []);
  return count;
}

/** A time, as how long ago; the clock's on pointing. @param {{at: string | null | undefined}} props */
export function Ago({ at }) {
  useEvery(5);
  if (!at) return html`<span class="none">–</span>`;
  return html`<time datetime=${at} title=${clockText(at)}>${agoText(at)}</time>`;
}

/**
 * A button that does one thing, and says which command line does the same. Without the scope it is not there.
 * @param {{label: Node, command?: string, run: () => Promise<unknown>, scope?: "admin" | "sessions" | "connect" | "read",
 *   danger?: boolean, primary?: boolean, ask?: string, disabled?: boolean, done?: string}} props
 * @returns {Node}
 */
export function Action({ label, command, run, scope = "admin", danger, primary, ask, disabled, done }) {
  const [busy, setBusy] = useState(false);
  if (!can(scope)) return null;
  const press = async () => {
    if (ask && !confirm(command ? `${ask}\n\n${command}` : ask)) return;
    setBusy(true);
    await attempt(run, { command, done });
    setBusy(false);
  };
  return html`<button type="button" class=${danger ? "danger" : primary ? "primary" : ""} aria-busy=${busy}
    disabled=${busy || disabled} title=${command} onClick=${press}>${label}</button>`;
}

/**
 * Does something; what came of it is shown below, with the command line that does the same.
 * @param {() => Promise<unknown>} run
 * @param {{command?: string, done?: string}} [say]
 * @returns {Promise<boolean>}
 */
export async function attempt(run, { command, done } = {}) {
  try {
    await run();
    inform("good", done ?? t("Done."), command);
    return true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    const fields = [...error.fields].map(([field, problem]) => `${field}: ${problem}`);
    inform("bad", [error.message, ...fields].join("\n"));
    return false;
  }
}

/** Text that a click copies. @param {{text: string, label?: string}} props @returns {Node} */
export function Copy({ text, label }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
  };
  return html`<button type="button" class="quiet" onClick=${copy} onBlur=${() => setCopied(false)}>
    ${copied ? t("Copied") : label ?? t("Copy")}</button>`;
}

/** A command line, to be copied. @param {{text: string}} props @returns {Node} */
export const CommandLine = ({ text }) =>
  html`<div class="command"><code>${text}</code><${Copy} text=${text} /></div>`;

/**
 * A field of a form, with the API's own words where it is wrong.
 * @param {{label: string, name: string, problem?: string, hint?: string, children: any}} props
 * @returns {Node}
 */
export function Field({ label, name, problem, hint, children }) {
  return html`<div class="field ${problem ? "wrong" : ""}">
    <label for=${name}>${label}</label>${children}
    ${problem && html`<p class="problem" id="${name}-problem" role="alert">${problem}</p>`}
    ${hint && html`<p class="hint">${hint}</p>`}</div>`;
}

/** A part of a page. @param {{title: Node, actions?: any, children: any}} props @returns {Node} */
export const Panel = ({ title, actions, children }) =>
  html`<section class="panel"><header><h2>${title}</h2>${actions}</header>${children}</section>`;

/** The head of a page. @param {{title: Node, back?: Node, children?: any}} props @returns {Node} */
export const Head = ({ title, back, children }) =>
  html`<header class="head">${back}<h1 tabindex="-1">${title}</h1><div class="actions">${children}</div></header>`;

/** What stands where there is nothing. @param {{children: any}} props @returns {Node} */
export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

/** What went wrong, in place of what was asked for. @param {{problem: Problem, again?: () => void}} props */
export const Failed = ({ problem, again }) => html`<div class="failed" role="alert"><p>${problem.message}</p>${
  again && html`<button onClick=${again}>${t("Try again")}</button>`}</div>`;

/**
 * Tabs, as links: each is in the address.
 * @param {{tabs: [string, string, string][], now: string, label: string}} props each: name, text, address
 * @returns {Node}
 */
export const Tabs = ({ tabs, now, label }) => html`<nav class="tabs" aria-label=${label}>${tabs.map(
  ([name, text, href]) => html`<a href=${href} aria-current=${name === now ? "page" : undefined}>${text}</a>`)}</nav>`;

/**
 * What is loaded for a view: `[value, problem, again]`; it is loaded again when one of `inputs` changes.
 * @template T
 * @param {(signal: AbortSignal) => Promise<T>} load
 * @param {unknown[]} inputs
 * @returns {[T | undefined, Problem | null, () => void]}
 */
export function useLoaded(load, inputs) {
  const [value, setValue] = useState(/** @type {T | undefined} */ (undefined));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [round, setRound] = useState(0);
  const current = useRef(load);
  current.current = load;
  useEffect(() => {
    const leaving = new AbortController();
    current.current(leaving.signal).then(
      (loaded) => {
        if (leaving.signal.aborted) return;
        setValue(() => loaded);
        setProblem(null);
      },
      (error) => {
        if (leaving.signal.aborted) return;
        if (!(error instanceof Problem)) throw error;
        setProblem(error);
      },
    );
    return () => leaving.abort();
  }, [...inputs, round]);
  return [value, problem, () => setRound((count) => count + 1)];
}
