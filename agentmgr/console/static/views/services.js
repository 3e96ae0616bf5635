/** All services in a table: find, sort, choose several, and steer them. */
import { html, useMemo, useState } from "../vendor/preact.mjs";
import { call } from "../api.js";
import { Spark, useHistory } from "../charts.js";
import { ask } from "../dialog.js";
import { bytesText, commandText, countText, cpuText } from "../format.js";
import { t } from "../i18n.js";
import { address, goQuery } from "../router.js";
import { can, useFigures, useStore } from "../store.js";
import { Table } from "../table.js";
import { Action, Ago, attempt, Foreign, Head, Status } from "../ui.js";
import { stopService } from "./service_actions.js";

/** @param {string} name @param {string} verb @param {object} [query] */
const steer = (name, verb, query = {}) =>
  call("POST", `/services/${encodeURIComponent(name)}/${verb}`, { query: /** @type {any} */ (query) });

/** The buttons of one service. @param {{row: any}} props */
export function ServiceActions({ row }) {
  const { name } = row;
  const down = row.desired_status === "stopped" || row.status === "completed";
  return html`${down
    ? html`<${Action} label=${t("Start")} command=${commandText("start", name)} run=${() => steer(name, "start")} primary />`
    : html`<${Action} label=${t("Restart")} command=${commandText("restart", name)}
          run=${() => steer(name, "restart")} />
        <button type="button" title=${commandText("stop", name)} onClick=${() => stopService(row)}>${t("Stop")}</button>`}`;
}

/** A service that runs is as its health says. @param {any} row @returns {string} */
export const stateOf = (row) => (row.status === "running" && row.health !== "unknown" && row.health !== "healthy" ? row.health : row.status);

/** @type {(figures: Map<string, any>, history: any) => import("../table.js").Column[]} */
const columns = (figures, history) => [
  { name: "name", label: t("Name"), kind: "fill", by: (row) => row.name,
    cell: (row) => html`<a href=${address(["services", row.name])}>${row.name}</a>` },
  { name: "status", label: t("Status"), by: (row) => stateOf(row), cell: (row) => html`<${Status} value=${stateOf(row)} />` },
  { name: "instances", label: t("Instances"), kind: "number wide", by: (row) => row.instances,
    cell: (row) => `${row.ready} / ${row.instances}` },
  { name: "connections", label: t("Connections"), kind: "number wide", by: (row) => row.connections,
    cell: (row) => countText(figures.get(row.service_id)?.connections ?? row.connections) },
  { name: "trace", label: t("Last hour"), kind: "wide",
    cell: (row) => html`<${Spark} values=${history?.services?.[row.service_id]?.connections} />` },
  { name: "cpu", label: t("Processor"), kind: "number wide", by: (row) => figures.get(row.service_id)?.cpu ?? -1,
    cell: (row) => cpuText(figures.get(row.service_id)?.cpu) },
  { name: "memory", label: t("Memory"), kind: "number wide",
    by: (row) => figures.get(row.service_id)?.memory_bytes ?? -1,
    cell: (row) => bytesText(figures.get(row.service_id)?.memory_bytes) },
  { name: "restarts", label: t("Restarts"), kind: "number wide", by: (row) => row.restart_count,
    cell: (row) => countText(row.restart_count) },
  { name: "since", label: t("Since"), kind: "wide", by: (row) => row.started_at && -Date.parse(row.started_at), cell: (row) => html`<${Ago} at=${row.started_at} />` },
  { name: "why", label: t("Reason"), kind: "wide reason", cell: (row) => html`<${Foreign} text=${row.error_message} most=${300} />` },
];

/** @param {{route: import("../router.js").Route}} props */
export function Services({ route }) {
  const services = useStore((all) => all.services);
  const loaded = useStore((all) => all.loaded);
  const [visible, setVisible] = useState(/** @type {string[]} */ ([]));
  const [chosen, choose] = useState(/** @type {Set<string>} */ (new Set()));
  const figures = useFigures(visible);
  const history = useHistory(visible);
  const wanted = route.query.get("q") ?? "";
  const status = route.query.get("status") ?? "";
  const rows = useMemo(() => {
    const text = wanted.toLowerCase();
    return [...services.values()].filter((row) => (!status || stateOf(row) === status)
      && (!text || row.name.toLowerCase().includes(text) || row.tags.some((/** @type {string} */ tag) => tag.toLowerCase().includes(text))));
  }, [services, wanted, status]);
  const statuses = useMemo(() => [...new Set([...services.values()].map(stateOf))].sort(), [services]);
  return html`<${Head} title=${t("Services")}>
      ${can("admin") && html`<a class="button primary" href="#/register">${t("Register a service")}</a>`}</${Head}>
    <div class="filters">
      <input type="search" placeholder=${t("Name or tag ( / )")} aria-label=${t("Name or tag ( / )")} value=${wanted}
        onInput=${(/** @type {any} */ event) => goQuery({ q: event.target.value })} />
      <select aria-label=${t("Status")} value=${status}
        onChange=${(/** @type {any} */ event) => goQuery({ status: event.target.value }, { replace: false })}>
        <option value="">${t("Every status")}</option>
        ${statuses.map((one) => html`<option value=${one}>${t(one)}</option>`)}</select>
      <${Several} rows=${rows.filter((row) => chosen.has(row.service_id))} figures=${figures} /></div>
    <${Table} label=${t("Services")} columns=${columns(figures, history)} rows=${rows} sort="name"
      keyOf=${(/** @type {any} */ row) => row.service_id} chosen=${chosen} choose=${can("admin") ? choose : undefined}
      onVisible=${setVisible} empty=${loaded ? t("No service matches.") : t("Loading …")} />`;
}

/** What can be done with several services at once. @param {{rows: any[], figures: Map<string, any>}} props */
function Several({ rows, figures }) {
  if (!rows.length) return null;
  const names = rows.map((row) => row.name);
  const open = rows.reduce((sum, row) => sum + (figures.get(row.service_id)?.connections ?? row.connections), 0);
  const all = (/** @type {string} */ verb, /** @type {string} */ label) => async () => {
    const command = commandText(verb, ...names);
    const title = t("{label}: {count} services", { label, count: names.length });
    const cost = verb === "stop" && open > 0 ? ` · ${t("{count} connections are open; they are closed.", { count: open })}` : "";
    if (!(await ask({ title, text: names.join(", ") + cost, command, confirm: label, danger: verb === "stop" }))) return;
    await attempt(() => Promise.all(names.map((name) => steer(name, verb))), { command });
  };
  return html`<span class="several" role="group" aria-label=${t("The chosen ones")}>
    ${t("{count} chosen", { count: names.length })}
    <button onClick=${all("start", t("Start"))}>${t("Start")}</button>
    <button onClick=${all("restart", t("Restart"))}>${t("Restart")}</button>
    <button class="danger" onClick=${all("stop", t("Stop"))}>${t("Stop")}</button></span>`;
}
