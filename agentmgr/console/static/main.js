/** The frame around the views: where one can go, how the connection is, and what answers to the keyboard. */
import { html, render, useEffect, useRef, useState } from "./vendor/preact.mjs";
import { Dialogs } from "./dialog.js";
import { chooseLanguage, language, t } from "./i18n.js";
import { Login, tradeTicket } from "./login.js";
import { Notices } from "./notices.js";
import { Palette } from "./palette.js";
import { address, useRoute } from "./router.js";
import { can, live, useStore } from "./store.js";
import { Head } from "./ui.js";
import { VIEWS } from "./views.js";
import { LogOut, ShownKey } from "./views/access.js";

/** What the sidebar shows, in this order. */
function Sidebar() {
  const { path } = useRoute();
  const questions = useStore((all) => all.overview?.questions ?? 0);
  const here = path[0] ?? "overview";
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => list.current?.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }), [here]); // a row, where narrow
  return html`<nav class="sidebar" aria-label=${t("Console")}>
    <a class="brand" href="#/">agentmgr</a>
    <ul ref=${list}>${VIEWS.filter((view) => view.label && can(view.scope ?? "read")).map((view) => html`<li key=${view.name}>
      <a href=${address(view.name === "overview" ? [] : [view.name])}
        aria-current=${view.name === here ? "page" : undefined}>
        <span class="icon" aria-hidden="true">${view.icon}</span>${t(/** @type {string} */ (view.label))}
        ${view.name === "questions" && questions > 0 && html`<span class="badge">${questions}</span>`}</a></li>`)}</ul>
    <${Choices} /></nav>`;
}

/** Colours and language. */
function Choices() {
  const [theme, setTheme] = useState(localStorage.getItem("agentmgr.theme") ?? "");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("agentmgr.theme", theme);
  }, [theme]);
  const version = useStore((all) => all.me?.version);
  return html`<div class="choices">
    <select aria-label=${t("Colours")} value=${theme} onChange=${(/** @type {any} */ e) => setTheme(e.target.value)}>
      <option value="">${t("as the system")}</option><option value="light">${t("light")}</option>
      <option value="dark">${t("dark")}</option></select>
    <select aria-label=${t("Language")} value=${language()}
      onChange=${(/** @type {any} */ e) => chooseLanguage(e.target.value)}>
      <option value="en">English</option><option value="zh">中文</option></select>
    <${LogOut} /><small>${version && `agentmgr ${version}`}</small></div>`;
}

/** Says it when what is shown is not what is. */
function LinkState() {
  const link = useStore((all) => all.link);
  if (link !== "lost") return null;
  return html`<p class="lost" role="alert"><strong>${t("The manager does not answer.")}</strong>${" "}
    ${t("This page shows the last known state, and reconnects by itself; `agentmgr info` says whether the manager runs.")}</p>`;
}

function View() {
  const route = useRoute();
  const name = route.path[0] ?? "overview";
  const view = VIEWS.find((one) => one.name === name);
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  const place = route.path.join("/");
  useEffect(() => {
    const heading = main.current?.querySelector("h1");
    heading?.focus({ preventScroll: true }); // so that a screen reader says where it is
    scrollTo(0, 0);
  }, [place]);
  const waiting = useStore((all) => all.overview?.questions ?? 0); // as it was when the tab was last seen
  useEffect(() => {
    const heading = main.current?.querySelector("h1")?.textContent ?? "";
    document.title = `${waiting ? `(${waiting}) ` : ""}${heading} · agentmgr`;
  }, [place, waiting]);
  return html`<main id="main" ref=${main} key=${place}>${
    view && can(view.scope ?? "read")
      ? html`<${view.View} route=${route} />`
      : html`<${Head} title=${view ? t("Your token does not open this page.") : t("There is no such page.")} /><p><a href="#/">${t("Overview")}</a></p>`}</main>`;
}

function Console() {
  const link = useStore((all) => all.link);
  useEffect(() => {
    const find = (/** @type {KeyboardEvent} */ event) => {
      const typing = event.target instanceof Element && event.target.closest("input, textarea, select, dialog");
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      const filter = document.querySelector("main input[type=search]");
      if (!(filter instanceof HTMLElement)) return;
      event.preventDefault();
      filter.focus();
    };
    addEventListener("keydown", find);
    return () => removeEventListener("keydown", find);
  }, []);
  if (link === "login") return html`<${Login} /><${ShownKey} key="login" />`;
  return html`<a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => {
      event.preventDefault();
      document.querySelector("main h1") instanceof HTMLElement
        && /** @type {HTMLElement} */ (document.querySelector("main h1")).focus();
    }}>${t("Skip to the content")}</a>
    <${Sidebar} /><div class="page"><${LinkState} /><${View} /></div>
    <${Palette} /><${Dialogs} /><${ShownKey} /><${Notices} />`;
}

async function start() {
  await tradeTicket();
  addEventListener("hashchange", () => void tradeTicket()); // the link, put into the bar of this very page
  render(html`<${Console} />`, /** @type {HTMLElement} */ (document.getElementById("page")));
  await live();
}

start();
