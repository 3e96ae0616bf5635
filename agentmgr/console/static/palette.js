/** Ctrl-K: go anywhere, do anything, by typing a part of its name. */
import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact.mjs";
import { call } from "./api.js";
import { Modal } from "./dialog.js";
import { commandText } from "./format.js";
import { t } from "./i18n.js";
import { address, go } from "./router.js";
import { can, snapshot, useStore } from "./store.js";
import { attempt } from "./ui.js";
import { VIEWS } from "./views.js";

/** @typedef {{text: string, hint: string, run: () => void}} Entry */

const MOST = 12;

/** @returns {Entry[]} */
function entries() {
  /** @type {Entry[]} */
  const found = VIEWS.filter((view) => view.label && can(view.scope ?? "read")).map((view) => ({
    text: t(/** @type {string} */ (view.label)),
    hint: "",
    run: () => go(address(view.name === "overview" ? [] : [view.name])),
  }));
  for (const { name } of snapshot().services.values()) {
    found.push({ text: name, hint: t("service"), run: () => go(address(["services", name])) });
    found.push({ text: name, hint: t("logs"), run: () => go(address(["services", name], { tab: "logs" })) });
    if (!can("admin")) continue;
    for (const verb of ["start", "stop", "restart"]) {
      const run = () => call("POST", `/services/${encodeURIComponent(name)}/${verb}`);
      const command = commandText(verb, name);
      found.push({ text: command, hint: "", run: () => void attempt(run, { command }) });
    }
  }
  return found;
}

export function Palette() {
  const [open, setOpen] = useState(false);
  useEffect(() => {
    const toggle = (/** @type {KeyboardEvent} */ event) => {
      if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      setOpen((now) => !now);
    };
    addEventListener("keydown", toggle);
    return () => removeEventListener("keydown", toggle);
  }, []);
  return open && html`<${Finder} close=${() => setOpen(false)} />`;
}

/** @param {{close: () => void}} props */
function Finder({ close }) {
  const [typed, setTyped] = useState("");
  const [at, setAt] = useState(0);
  const services = useStore((all) => all.services);
  const all = useMemo(entries, [services]);
  const found = useMemo(() => {
    const parts = typed.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (/** @type {Entry} */ { text, hint }) =>
      parts.every((part) => text.toLowerCase().includes(part) || hint.toLowerCase().includes(part));
    return all.filter(fits).slice(0, MOST);
  }, [all, typed]);
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => input.current?.focus(), []);
  const choose = (/** @type {Entry | undefined} */ entry) => {
    if (!entry) return;
    close();
    entry.run();
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) setAt((found.length + at + step) % Math.max(found.length, 1));
    else if (event.key === "Enter") choose(found[at]);
    else return;
    event.preventDefault();
  };
  return html`<${Modal} title=${t("Go to, or do")} kind="palette" close=${close}>
    <input ref=${input} type="text" role="combobox" aria-expanded="true" aria-controls="found" value=${typed}
      aria-activedescendant=${found.length ? `found-${at}` : undefined} aria-label=${t("Go to, or do")} onKeyDown=${keys}
      onInput=${(/** @type {any} */ event) => (setTyped(event.target.value), setAt(0))} />
    <ul id="found" role="listbox" aria-label=${t("Found")}>${found.map((entry, index) => html`<li role="option"
      key=${entry.hint + entry.text} id="found-${index}" aria-selected=${index === at} onClick=${() => choose(entry)}>
      <span>${entry.text}</span><small>${entry.hint}</small></li>`)}</ul>
    ${found.length === 0 && html`<p class="empty">${t("Nothing matches.")}</p>`}</${Modal}>`;
}
