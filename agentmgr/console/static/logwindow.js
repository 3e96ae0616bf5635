/**
 * The output of a service, as it is written.
 *
 * Only the rows that are seen are drawn, at most twenty times a second, however much comes. The last lines are
 * followed until the user scrolls up; then the window stays where it is, and a button says how many are new.
 */
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.mjs";
import { coloured, loadColours, plainLine } from "./ansi.js";
import { pause, Problem, read, readText } from "./api.js";
import { Modal } from "./dialog.js";
import { commandText, countText, mostInstances } from "./format.js";
import { t } from "./i18n.js";
import { LogLines } from "./loglines.js";
import { goQuery } from "./router.js";
import { LogSearch } from "./logsearch.js";
import { Copy, Foreign } from "./ui.js";

const LOG_ROW_PX = 20; // as in styles/logs.css
const SPARE_LINES = 12; // drawn above and below what is seen
const REPAINT_MS = 50;
const SHOWN_CHARS = 2000; // of a line; all of it on a click
const FIRST_LINES = 10_000;
const WINDOW_LINES = 5000; // as many as the API gives at once
const BUSY_MS = 25; // then the page gets its turn

/** @typedef {{lines: LogLines, problem: Problem | null, loaded: boolean, before: number | null, after: number | null}} Log
 *  `before`, `after`: positions in the file, from which there is more */

/**
 * The lines of a log: those at a position, or the last ones, which are followed while the tab is seen.
 * It calls `changed` after each piece.
 * @param {string} path
 * @param {{instance: string, at: string | null}} query
 * @param {() => void} changed
 */
function useLog(path, { instance, at }, changed) {
  const log = useRef(/** @type {Log} */ (emptyLog()));
  useEffect(() => {
    let leaving = new AbortController();
    const follow = async (/** @type {AbortSignal} */ signal) => {
      for (let failures = 0; !signal.aborted; failures += 1) {
        try {
          await loadColours();
          const now = emptyLog();
          /** @type {Record<string, unknown>} */
          let query = { tail: FIRST_LINES, follow: true };
          if (instance !== "") {
            const page = await read(`${path}/lines`, { instance, at, limit: WINDOW_LINES }, signal);
            now.lines.append(windowText(page));
            now.before = page.before > page.begin ? page.before : null;
            now.after = at !== null && page.after < page.end ? page.after : null;
            query = { tail: 0, follow: true, instance, since: page.after };
          }
          const show = () => {
            now.loaded = true;
            log.current = now;
            changed();
          };
          if (instance !== "" || now.lines.count) show();
          if (now.after !== null) return;
          const shown = setTimeout(show, 300); // it may be empty, and then nothing comes
          let began = performance.now();
          for await (const piece of readText(path, query, signal)) {
            clearTimeout(shown);
            now.lines.append(piece);
            show();
            failures = 0;
            if (performance.now() - began < BUSY_MS) continue;
            await pause(0, signal); // a flood must not keep the page from drawing
            began = performance.now();
          }
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof Problem)) throw error;
          if (error.status) log.current = { ...log.current, problem: error };
          changed();
        }
        await pause(Math.min(500 * 2 ** failures, 5000), signal);
      }
    };
    const seen = () => {
      leaving.abort();
      leaving = new AbortController();
      if (!document.hidden) void follow(leaving.signal);
    };
    log.current = emptyLog();
    seen();
    addEventListener("visibilitychange", seen);
    return () => {
      leaving.abort();
      removeEventListener("visibilitychange", seen);
    };
  }, [path, instance, at]);
  const more = async (/** @type {"before" | "after"} */ side) => {
    const { current: now } = log;
    const page = await read(`${path}/lines`, { instance, [side]: now[side], limit: WINDOW_LINES });
    const text = windowText(page);
    if (side === "before") {
      now.lines.prepend(text.endsWith("\n") ? text : text + "\n");
      now.before = page.before > page.begin ? page.before : null;
    } else {
      now.lines.append(text);
      now.after = page.after < page.end ? page.after : null;
    }
    changed();
  };
  return { ...log.current, more };
}

/** @returns {Log} */
const emptyLog = () => ({ lines: new LogLines(), problem: null, loaded: false, before: null, after: null });

/** What was cut goes on in the next one. @param {{lines: {text: string, cut: boolean}[]}} page */
const windowText = (page) => page.lines.map(({ text, cut }) => (cut ? text : text + "\n")).join("");

/** Draws again, soon: never more often than is worth it. @returns {() => void} */
function useRepaint() {
  const [, redraw] = useState(0);
  const state = useRef({ timer: 0, last: 0 });
  useEffect(() => () => clearTimeout(state.current.timer), []);
  const { current: now } = state;
  return () => {
    if (now.timer) return;
    now.timer = setTimeout(() => {
      now.timer = 0;
      now.last = performance.now();
      redraw((count) => count + 1);
    }, Math.max(0, now.last + REPAINT_MS - performance.now()));
  };
}

/** @param {{service: any, route: import("./router.js").Route}} props */
export function LogWindow({ service, route }) {
  const instance = (route.query.get("instance") ?? "0").trim(); // empty: all of them
  const at = route.query.get("at");
  const path = `/services/${service.service_id}/logs`;
  const repaint = useRepaint();
  const { lines, problem, loaded, before, after, more } = useLog(path, { instance, at }, repaint);
  const [whole, setWhole] = useState(/** @type {string | null} */ (null));
  const follow = useFollow(lines, at === null, repaint);
  const { box, first, last, scrolled, fresh, toEnd } = follow;
  const rows = [];
  for (let number = first; number < last; number += 1) {
    rows.push(html`<${LogRow} key=${number} line=${lines.line(number)} open=${setWhole} />`);
  }
  const place = instance === "" ? [] : ["--instance", instance];
  const most = mostInstances(service.config.instances);
  return html`<section class="logs" aria-label=${t("Log of {name}", { name: service.name })}>
    <div class="filters">
      ${most > 1 && html`<select aria-label=${t("Instance")} value=${instance || " "}
          onChange=${(/** @type {any} */ event) => goQuery({ instance: event.target.value, at: null })}>
        <option value=" ">${t("All instances")}</option>
        ${[...Array(most).keys()].map((slot) => html`<option value=${slot}>${t("instance {slot}", { slot })}</option>`)}</select>`}
      <span class="state" aria-live="off">${t("{count} lines", { count: countText(lines.count) })}</span>
      ${at === null
        ? html`<label class="inline"><input type="checkbox" checked=${follow.following} onChange=${follow.toggle} /> ${t("Follow")}</label>`
        : html`<button type="button" onClick=${() => goQuery({ at: null }, { replace: false })}>${t("To the end, and follow")}</button>`}
      <a class="button" href="/api/v1${path}/file?instance=${instance || 0}" download="${service.name}.log">${t("Download")}</a></div>
    ${instance !== "" && html`<${LogSearch} path=${path} instance=${instance} wanted=${route.query.get("q") ?? ""} at=${at} />`}
    ${problem && html`<p class="failed" role="alert">${problem.message}</p>`}
    <div class="logbox">
      <div class="loglines" ref=${box} onScroll=${scrolled} tabindex="0" role="region" aria-label=${t("Lines")}>
        ${lines.dropped > 0 ? html`<p class="hint cut">${t("Earlier lines are left out here; the file has them: Download.")}</p>`
          : before !== null && html`<p class="cut"><button type="button" class="link" onClick=${() => more("before")}>↑ ${t("Earlier lines")}</button></p>`}
        ${loaded && lines.count === 0 && html`<p class="empty">${t("It has written nothing yet.")}</p>`}
        ${!loaded && !problem && html`<p class="empty">${t("Loading …")}</p>`}
        <div class="all" style=${{ height: `${lines.count * LOG_ROW_PX}px` }}>
          <div class="seen" style=${{ transform: `translateY(${(first - lines.first) * LOG_ROW_PX}px)` }}>${rows}</div></div>
        ${after !== null && html`<p class="cut"><button type="button" class="link" onClick=${() => more("after")}>↓ ${t("Later lines")}</button></p>`}</div>
      ${fresh > 0 && html`<button type="button" class="primary fresh" onClick=${toEnd}>↓ ${t("{count} new lines", { count: countText(fresh) })}</button>`}</div>
    <p class="same hint">${t("The same in a terminal:")} <code>${commandText("logs", service.name, "--follow", ...place)}</code></p>
    ${whole !== null && html`<${Modal} title=${t("The whole line")} kind="wholeline" close=${() => setWhole(null)}>
      <p><${Foreign} text=${plainLine(whole)} most=${50_000} /></p>
      <div class="buttons"><${Copy} text=${whole} /><button type="button" onClick=${() => setWhole(null)}>${t("Close")}</button></div></${Modal}>`}
  </section>`;
}

/** @param {{line: string, open: (line: string) => void}} props */
function LogRow({ line, open }) {
  const left = line.length - SHOWN_CHARS;
  return html`<div class="line">${coloured(left > 0 ? line.slice(0, SHOWN_CHARS) : line)}${
    left > 0 && html`<button type="button" class="link" onClick=${() => open(line)}>${t("… {count} more characters", { count: left })}</button>`}</div>`;
}

/**
 * Which lines are on screen, and whether the window goes with the last of them.
 * @param {LogLines} lines
 * @param {boolean} live are these the last lines?
 * @param {() => void} repaint
 */
function useFollow(lines, live, repaint) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const state = useRef({ following: live, top: 0, seen: 0, first: 0, lines });
  const { current: now } = state;
  if (now.lines !== lines) {
    Object.assign(now, { lines, seen: lines.first + lines.count, first: lines.first, following: live, top: 0 });
  }
  const height = box.current?.clientHeight ?? 600;
  const count = lines.count;
  const bottom = Math.max(0, count * LOG_ROW_PX - height);
  // Lines that were dropped above must not move those that are read.
  const top = now.following ? bottom : Math.max(0, Math.min(now.top - (lines.first - now.first) * LOG_ROW_PX, bottom));
  useLayoutEffect(() => {
    if (now.following) now.seen = lines.first + lines.count;
    now.first = lines.first;
    if (!box.current || (Math.abs(box.current.scrollTop - top) < 1)) return;
    if (now.following || top !== now.top) {
      box.current.scrollTop = top;
      now.top = box.current.scrollTop;
    }
  });
  const scrolled = () => {
    if (!box.current) return;
    const { scrollTop } = box.current;
    const atEnd = scrollTop >= box.current.scrollHeight - box.current.clientHeight - LOG_ROW_PX;
    // While lines come, the end moves on: only a way up is the user's.
    if (scrollTop < now.top - 1) now.following = false;
    else if (atEnd && live) now.following = true;
    now.top = scrollTop;
    repaint();
  };
  const toEnd = () => {
    now.following = true;
    box.current?.focus();
    repaint();
  };
  const toggle = () => {
    now.following = !now.following;
    repaint();
  };
  const begin = lines.first + Math.max(0, Math.floor(top / LOG_ROW_PX) - SPARE_LINES);
  return {
    box, scrolled, toEnd, toggle,
    following: now.following,
    first: Math.min(begin, lines.first + count),
    last: Math.min(lines.first + count, begin + Math.ceil(height / LOG_ROW_PX) + 2 * SPARE_LINES),
    fresh: now.following || !live ? 0 : Math.max(0, lines.first + count - now.seen),
  };
}
