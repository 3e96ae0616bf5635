/** What came of an action, at the edge of the page for a while, and read out. */
import { html, useEffect, useState } from "./vendor/preact.mjs";
import { t } from "./i18n.js";

/** @typedef {{id: number, kind: "good" | "bad", text: string, command?: string}} Notice */

/** @type {Notice[]} */
let notices = [];
/** @type {(() => void) | null} */
let redrawNotices = null;
let noticeCount = 0;

/** @param {Notice[]} next */
function setNotices(next) {
  notices = next;
  redrawNotices?.();
}

/** @param {number} id */
const dismiss = (id) => setNotices(notices.filter((one) => one.id !== id));

/**
 * A failure stays until it is dismissed.
 * @param {"good" | "bad"} kind
 * @param {string} text
 * @param {string} [command] that does the same
 */
export function inform(kind, text, command) {
  const id = (noticeCount += 1);
  setNotices([...notices.slice(-3), { id, kind, text, command }]);
  if (kind === "good") setTimeout(() => dismiss(id), 6000);
}

export function Notices() {
  const [, redraw] = useState(0);
  useEffect(() => {
    redrawNotices = () => redraw((count) => count + 1);
    return () => (redrawNotices = null);
  }, []);
  return html`<div class="notices" role="status" aria-live="polite">${notices.map(
    (one) => html`<div class="notice ${one.kind}" key=${one.id}>
      <p>${one.text}</p>${one.command && html`<code>${one.command}</code>`}
      <button class="quiet" aria-label=${t("Dismiss")} onClick=${() => dismiss(one.id)}>✕</button></div>`)}</div>`;
}
