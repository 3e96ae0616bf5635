/** Questions that the page asks before it does what cannot be taken back. */
import { html, useEffect, useRef, useState } from "./vendor/preact.mjs";
import { t } from "./i18n.js";

/** @typedef {{title: string, text?: string, command?: string, confirm: string, danger?: boolean}} Ask */

/** @type {((ask: Ask, answer: (yes: boolean) => void) => void) | null} */
let openDialog = null;

/** Asks, and waits for the answer. @param {Ask} ask @returns {Promise<boolean>} */
export function ask(ask) {
  return new Promise((answer) => openDialog?.(ask, answer));
}

/** Where the questions appear; there is one of it. */
export function Dialogs() {
  const [open, setOpen] = useState(/** @type {{ask: Ask, answer: (yes: boolean) => void} | null} */ (null));
  useEffect(() => {
    openDialog = (ask, answer) => setOpen({ ask, answer });
    return () => (openDialog = null);
  }, []);
  if (!open) return null;
  const answer = (/** @type {boolean} */ yes) => {
    setOpen(null);
    open.answer(yes);
  };
  const { title, text, command, confirm, danger } = open.ask;
  return html`<${Modal} title=${title} close=${() => answer(false)}>
    ${text && html`<p>${text}</p>`}
    ${command && html`<p class="same">${t("The same in a terminal:")} <code>${command}</code></p>`}
    <div class="buttons">
      <button type="button" onClick=${() => answer(false)}>${t("Cancel")}</button>
      <button type="button" class=${danger ? "danger" : "primary"} onClick=${() => answer(true)}>${confirm}</button>
    </div></${Modal}>`;
}

/**
 * A window over the page, which keeps the focus; Escape closes it.
 * @param {{title: string, close: () => void, children: any, kind?: string}} props
 */
export function Modal({ title, close, children, kind = "" }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => before instanceof HTMLElement && before.focus();
  }, []);
  const cancel = (/** @type {Event} */ event) => {
    event.preventDefault();
    close();
  };
  const outside = (/** @type {Event} */ event) => event.target === dialog.current && close();
  return html`<dialog class=${kind} ref=${dialog} aria-label=${title} onCancel=${cancel} onClick=${outside}>
    <div class="inside"><h2>${title}</h2>${children}</div></dialog>`;
}
