/** Finds lines in the whole log of an instance: the server looks, the newest first. */
import { html, useEffect, useState } from "./vendor/preact.mjs";
import { plainLine } from "./ansi.js";
import { Problem, read } from "./api.js";
import { countText, visibleText } from "./format.js";
import { t } from "./i18n.js";
import { address, currentRoute, goQuery } from "./router.js";

const FOUND_CHARS = 300;

/** @param {{path: string, instance: string, wanted: string, at: string | null}} props */
export function LogSearch({ path, instance, wanted, at }) {
  const [found, setFound] = useState(/** @type {any[] | null} */ (null));
  const [next, setNext] = useState(/** @type {number | null} */ (null));
  const [problem, setProblem] = useState("");
  const look = async (/** @type {any[]} */ known, /** @type {number | null} */ before, /** @type {AbortSignal} */ signal) => {
    try {
      const page = await read(`${path}/matches`, { instance, q: wanted, limit: 200, before }, signal);
      setFound([...known, ...page.items]);
      setNext(page.before);
      setProblem("");
    } catch (error) {
      if (signal?.aborted) return;
      if (!(error instanceof Problem)) throw error;
      setProblem(error.message);
    }
  };
  useEffect(() => {
    setFound(null);
    if (!wanted) return;
    const leaving = new AbortController();
    const timer = setTimeout(() => void look([], null, leaving.signal), 250);
    return () => (clearTimeout(timer), leaving.abort());
  }, [path, instance, wanted]);
  return html`<div class="logsearch"><input type="search" value=${wanted} placeholder=${t("Find in the whole log ( / )")} aria-label=${t("Find in the whole log ( / )")}
      onInput=${(/** @type {any} */ event) => goQuery({ q: event.target.value })} />
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${wanted && found && html`<p class="hint" role="status">${found.length ? t("{count} lines match.", { count: countText(found.length) }) : t("No line matches.")}
        ${next !== null && html`${" "}<button type="button" class="link" onClick=${() => look(found, next, new AbortController().signal)}>${t("Look further back")}</button>`}</p>
      <ol class="found">${found.map((one) => html`<li key=${one.at}><a href=${address(currentRoute().path, { ...Object.fromEntries(currentRoute().query), at: one.at })}
        aria-current=${String(one.at) === at ? "true" : undefined}><${Match} ...${one} length=${wanted.length} /></a></li>`)}</ol>`}</div>`;
}

/** A line with what was found in it marked. @param {{text: string, start: number, length: number}} props */
function Match({ text, start, length }) {
  const from = Math.max(0, start - FOUND_CHARS / 3);
  const shown = (/** @type {number} */ begin, /** @type {number} */ end) => visibleText(plainLine(text.slice(begin, end)));
  return html`${from > 0 && "…"}${shown(from, start)}<mark>${shown(start, start + length)}</mark>${shown(start + length, from + FOUND_CHARS)}`;
}
