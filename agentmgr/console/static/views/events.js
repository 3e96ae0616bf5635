/** What the manager has noted of its services, clients, rules and tokens: find it, follow it, look into it. */
import { html, useMemo } from "../vendor/preact.mjs";
import { readEvents } from "../api.js";
import { eventName, eventStatus, eventText } from "../eventtext.js";
import { clockText, countText } from "../format.js";
import { t } from "../i18n.js";
import { address, currentRoute, goQuery } from "../router.js";
import { rememberEarlier, snapshot, useStore } from "../store.js";
import { Table } from "../table.js";
import { Ago, CommandLine, Copy, Failed, Foreign, Head, Panel, Status, useLoaded } from "../ui.js";

/** Kinds that a person may have to look after. */
const TROUBLE_KINDS = new Set(["instance.backoff", "instance.error", "instance.unhealthy"]);

/** @param {any} event */
const isTrouble = ({ kind, detail = {} }) =>
  TROUBLE_KINDS.has(kind) || (kind === "instance.health" && detail.health !== "healthy");

/** All that the manager still keeps, once; what comes afterwards the page's own stream brings. */
async function loadEarlier(/** @type {AbortSignal} */ signal) {
  if (snapshot().earlier) return;
  const earlier = [];
  for await (const { id, data } of readEvents("/events", { since: 0, follow: false }, signal)) {
    if (id) earlier.push(data);
  }
  rememberEarlier(earlier);
}

/** @param {{route: import("../router.js").Route}} props */
export function Events({ route }) {
  const events = useStore((all) => all.events);
  const services = useStore((all) => all.services);
  const earlier = useStore((all) => all.earlier);
  const [, problem, again] = useLoaded(loadEarlier, []);
  const wanted = Object.fromEntries(["q", "kind", "service", "until", "event"].map((name) => [name, route.query.get(name) ?? ""]));
  const rows = useEventRows(events, services);
  const kinds = useMemo(() => [...new Set(events.map((event) => event.kind))].sort(), [events]);
  const until = Number(wanted.until) || Infinity;
  const shown = useMemo(() => {
    const text = wanted.q.toLowerCase();
    const service = wanted.service.toLowerCase();
    return rows.filter((row) => row.id <= until
      && (!wanted.kind || (wanted.kind === "trouble" ? isTrouble(row.event) : row.event.kind === wanted.kind))
      && (!service || row.name.toLowerCase().includes(service))
      && (!text || row.lower.includes(text)));
  }, [rows, wanted.q, wanted.kind, wanted.service, until]);
  const missed = until === Infinity ? 0 : rows.reduce((count, row) => count + (row.id > until ? 1 : 0), 0);
  const open = wanted.event && rows.find((row) => String(row.id) === wanted.event);
  return html`<${Head} title=${t("Events")}><${Follow} missed=${missed} until=${until} newest=${rows.at(-1)?.id} /></${Head}>
    ${problem && html`<${Failed} problem=${problem} again=${again} />`}
    <div class="filters">
      <input type="search" placeholder=${t("Text ( / )")} aria-label=${t("Text ( / )")} value=${wanted.q}
        onInput=${(/** @type {any} */ event) => goQuery({ q: event.target.value })} />
      <input type="search" placeholder=${t("Service")} aria-label=${t("Service")} value=${wanted.service}
        onInput=${(/** @type {any} */ event) => goQuery({ service: event.target.value })} />
      <select aria-label=${t("Kind")} value=${wanted.kind}
        onChange=${(/** @type {any} */ event) => goQuery({ kind: event.target.value }, { replace: false })}>
        <option value="">${t("Every kind")}</option><option value="trouble">${t("Trouble only")}</option>
        ${kinds.map((kind) => html`<option value=${kind}>${kind}</option>`)}</select>
      <span class="hint" role="status">${t("{shown} of {count} events", { shown: countText(shown.length), count: countText(rows.length) })}</span></div>
    ${open && html`<${EventDetail} row=${open} />`}
    <div><${Table} label=${t("Events")} columns=${eventColumns()} rows=${shown} sort="-when" keyOf=${(/** @type {any} */ row) => String(row.id)}
      empty=${earlier || problem ? t("No event matches.") : t("Loading …")} /></div>
    <p class="hint">${t("The same in a terminal:")}</p><${CommandLine} text="agentmgr events --follow" />`;
}

/** @param {{missed: number, until: number, newest: number | undefined}} props */
function Follow({ missed, until, newest }) {
  if (until === Infinity) {
    return html`<button onClick=${() => goQuery({ until: newest })}>${t("Pause")}</button>`;
  }
  return html`<button class="primary" onClick=${() => goQuery({ until: null })}>
    ${missed ? t("Follow ({count} new)", { count: countText(missed) }) : t("Follow")}</button>`;
}

/** @returns {import("../table.js").Column[]} */
const eventColumns = () => [
  { name: "when", label: t("Time"), by: (row) => row.id,
    cell: (row) => html`<time datetime=${row.event.at} title=${row.event.at}>${clockText(row.event.at)}</time>` },
  { name: "what", label: t("What happened"), kind: "fill sentence",
    cell: (row) => html`<div><${Status} value=${row.status} text=${html`<a href=${withEvent(row.id)} title=${row.text}>${row.text}</a>`} /></div>` },
  { name: "service", label: t("Service"), kind: "wide", by: (row) => row.name,
    cell: (row) => row.event.service_id && html`<a href=${address(["services", row.name])}>${row.name}</a>` },
];

/** The address of an event's details, with the filters that are set. @param {number | null} id */
function withEvent(id) {
  const { query } = currentRoute();
  return address(["events"], { ...Object.fromEntries(query), event: id });
}

/** @param {{row: EventRow}} props */
function EventDetail({ row: { event, text, name } }) {
  const json = JSON.stringify(event, null, 2);
  const close = html`<div class="actions"><${Copy} text=${json} label=${t("Copy JSON")} />
    <a class="button" href=${withEvent(null)}>${t("Close")}</a></div>`;
  return html`<${Panel} title=${event.kind} actions=${close}>
    <p><${Ago} at=${event.at} /> · <${Foreign} text=${text} /></p>
    ${event.service_id && html`<p><a href=${address(["services", name])}>${name}</a> ·${" "}
      <a href=${address(["services", name], { tab: "logs" })}>${t("Logs")}</a></p>`}
    ${event.detail?.error_message && html`<h3>${t("As recorded")}</h3><pre class="code"><${Foreign} text=${event.detail.error_message} /></pre>`}
    <h3>JSON</h3><pre class="code"><${Foreign} text=${json} /></pre></${Panel}>`;
}

/** @typedef {{id: number, event: any, name: string, text: string, lower: string, status: string, key: string}} EventRow */

/** @type {WeakMap<any, EventRow>} a sentence is made once, for thousands of events and a page that lives for days */
const eventRows = new WeakMap();

/** @param {any[]} events @param {Map<string, any>} services @returns {EventRow[]} */
function useEventRows(events, services) {
  // Also of services that are gone: the log itself says how they were called.
  const names = useMemo(() => new Map(events.filter((event) => event.service_id && event.detail?.name)
    .map((event) => [event.service_id, { name: event.detail.name, instances: 1 }])), [events]);
  return useMemo(() => {
    const known = new Map([...names, ...services]);
    return events.map((event) => {
      const service = known.get(event.service_id);
      const key = `${service?.name} ${service?.instances > 1}`;
      const made = eventRows.get(event);
      if (made?.key === key) return made;
      const text = eventText(event, known);
      const name = eventName(event, known);
      const row = { id: event.event_id, event, name, text, key, status: eventStatus(event),
        lower: `${text} ${event.kind} ${event.detail?.error_message ?? ""} ${event.detail?.connection_id ?? ""}`.toLowerCase() };
      eventRows.set(event, row);
      return row;
    });
  }, [events, services]);
}
