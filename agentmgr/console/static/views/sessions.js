/** All sessions of all services, or of one, the last used first: find them, and open one. */
import { html } from "../vendor/preact.mjs";
import { read } from "../api.js";
import { countText } from "../format.js";
import { t } from "../i18n.js";
import { address, goQuery } from "../router.js";
import { can, useStore } from "../store.js";
import { Table } from "../table.js";
import { Ago, Empty, Failed, Foreign, Head, useEvery, useLoaded } from "../ui.js";
import { Session, SessionStatus, shortId } from "./session.js";

const PAGE_ROWS = 100;
const STATES = ["running", "asking", "idle", "hibernated", "ended"];

/** @param {{route: import("../router.js").Route}} props */
export function Sessions({ route }) {
  const id = route.path[1];
  return id ? html`<${Session} id=${id} />` : html`<${SessionList} query=${route.query} />`;
}

/** @type {import("../table.js").Column[]} */
const SESSION_COLUMNS = [
  { name: "session", label: "Session", kind: "fill", cell: (row) => html`<${SessionName} row=${row} />` },
  { name: "service", label: "Service", kind: "wide", cell: (row) => html`<a href=${address(["services", row.service])}>${row.service}</a>` },
  { name: "state", label: "State", cell: (row) => html`<${SessionStatus} value=${row.state} />` },
  { name: "owner", label: "Owner", kind: "wide", cell: (row) => row.owner ?? html`<span class="none">–</span>` },
  { name: "turns", label: "Turns", kind: "number wide", cell: (row) => countText(row.turns) },
  { name: "tokens", label: "Tokens, in + out", kind: "number wide", cell: (row) => countText(row.input_tokens + row.output_tokens || null) },
  { name: "used", label: "Last used", cell: (row) => html`<${Ago} at=${row.last_used_at} />` },
  { name: "begun", label: "Begun", kind: "wide", cell: (row) => html`<${Ago} at=${row.created_at} />` },
];

/** A link, for who may see what was said. @param {{row: any}} props */
function SessionName({ row }) {
  const name = row.name ? html`<${Foreign} text=${row.name} most=${60} />` : html`<code>${shortId(row.session_id)}</code>`;
  return can("sessions") ? html`<a href=${address(["sessions", row.session_id])}>${name}</a>` : name;
}

/** @param {{query: URLSearchParams}} props */
function SessionList({ query }) {
  const services = useStore((all) => all.services);
  const given = Object.fromEntries(["service", "state", "owner", "q", "cursor"].map((name) => [name, query.get(name) ?? ""]));
  const round = useEvery(5);
  const asked = new URLSearchParams(given).toString();
  const [page, problem, again] = useLoaded((signal) => read("/sessions", { ...given, limit: PAGE_ROWS }, signal), [asked, round]);
  const choose = (/** @type {string} */ name) => (/** @type {any} */ event) =>
    goQuery({ [name]: event.target.value, cursor: "" }, { replace: event.type === "input" });
  const names = [...services.values()].map((row) => row.name).sort();
  const narrowed = given.service || given.state || given.owner || given.q;
  const columns = SESSION_COLUMNS.map((column) => ({ ...column, label: t(column.label) }));
  return html`<${Head} title=${t("Sessions")} />
    <div class="filters">
      ${can("sessions") && html`<input type="search" placeholder=${t("Name or id ( / )")} aria-label=${t("Name or id ( / )")}
        value=${given.q} onInput=${choose("q")} />`}
      <select aria-label=${t("Service")} value=${given.service} onChange=${choose("service")}>
        <option value="">${t("Every service")}</option>
        ${given.service && !names.includes(given.service) && html`<option value=${given.service}>${given.service}</option>`}
        ${names.map((name) => html`<option value=${name}>${name}</option>`)}</select>
      <select aria-label=${t("State")} value=${given.state} onChange=${choose("state")}>
        <option value="">${t("Every state")}</option>
        ${STATES.map((state) => html`<option value=${state}>${t(state)}</option>`)}</select>
      <input type="text" class="narrow" placeholder=${t("Owner")} aria-label=${t("Owner")} value=${given.owner} onInput=${choose("owner")} /></div>
    ${problem && html`<${Failed} problem=${problem} again=${again} />`}
    ${page?.unreadable.length > 0 && html`<p class="failed">${t("The sessions of these services cannot be read now: {names}",
      { names: page.unreadable.join(", ") })}</p>`}
    ${page && !page.items.length && !narrowed
      ? html`<${Empty}>${t("No sessions are kept. One begins with a client's first message; what is in memory only is not listed.")}</${Empty}>`
      : (page || !problem) && html`<${Table} label=${t("Sessions")} columns=${columns} rows=${page?.items ?? []} keyOf=${keyOfSession}
          empty=${page ? t("No session matches.") : t("Loading …")} />`}
    <nav class="pages" aria-label=${t("Pages")}>
      ${given.cursor && html`<a href=${address(["sessions"], { ...given, cursor: "" })}>${t("← the last used")}</a>`}
      ${page?.next_cursor && html`<a class="button" href=${address(["sessions"], { ...given, cursor: page.next_cursor })}>
        ${t("{count} before these →", { count: PAGE_ROWS })}</a>`}</nav>`;
}

/** @param {any} row */
const keyOfSession = (row) => `${row.session_id} ${row.created_at}`;
