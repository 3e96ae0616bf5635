/** What needs a person, first; then how much there is of everything, and what happened last. */
import { html } from "../vendor/preact.mjs";
import { read } from "../api.js";
import { eventText } from "../eventtext.js";
import { bytesText, countText, cpuText } from "../format.js";
import { t } from "../i18n.js";
import { address } from "../router.js";
import { can, useStore } from "../store.js";
import { Ago, Empty, Foreign, Head, Panel, Status, useLoaded } from "../ui.js";
import { ServiceActions, stateOf } from "./services.js";

export function Overview() {
  const loaded = useStore((all) => all.loaded);
  const services = useStore((all) => all.services);
  if (loaded && services.size === 0) return html`<${Welcome} />`;
  return html`<${Head} title=${t("Overview")} />
    <${Tiles} /><div class="columns"><div><${Attention} /><${Few} /><${Doctor} /></div><div><${LastEvents} /></div></div>`;
}

const Welcome = () => html`<${Head} title=${t("Welcome")} />
  <${Panel} title=${t("No service yet")}>
    <p>${t("A service is an agent file, or any command, that is kept running.")}</p>
    ${can("admin") && html`<p><a class="button primary" href="#/register">${t("Register a service")}</a></p>`}
  </${Panel}>`;

/** @param {{label: string, value: any, note?: any, href?: string}} props */
const Tile = ({ label, value, note, href }) => html`<a class="tile" href=${href}>
  <span class="label">${label}</span><strong>${value}</strong><small>${note}</small></a>`;

function Tiles() {
  const services = [...useStore((all) => all.services).values()];
  const overview = useStore((all) => all.overview);
  const running = services.filter((one) => one.status === "running").length;
  const refusals = Object.entries(overview?.refusals ?? {}).sort((a, b) => b[1] - a[1]);
  const refused = refusals.reduce((sum, [, count]) => sum + count, 0);
  return html`<div class="tiles">
    <${Tile} label=${t("Services")} value="${running} / ${services.length}" note=${t("running")} href="#/services" />
    <${Tile} label=${t("Connections")} value=${countText(overview?.connections)} note=${t("through the gateway")}
      href="#/services?sort=-connections" />
    <${Tile} label=${t("Sessions")} value=${countText(overview?.sessions)} note=${t("in memory")} href="#/sessions" />
    <${Tile} label=${t("Questions")} value=${countText(overview?.questions)} note=${t("waiting for a person")}
      href="#/questions" />
    <${Tile} label=${t("Processor")} value=${cpuText(overview?.cpu)} note=${t("of one core, all services")} />
    <${Tile} label=${t("Memory")} value=${bytesText(overview?.memory_bytes)} note=${t("all services")} />
    <${Tile} label=${t("Refused clients")} value=${countText(overview && refused)}
      note=${refusals.slice(0, 2).map(([code, count]) => `${code} ${count}`).join(", ")} href="#/routing" />
  </div>`;
}

const TROUBLE = new Set(["backoff", "unhealthy", "degraded", "error"]);

/** Does it need a person? @param {any} row */
const troubled = (row) => TROUBLE.has(stateOf(row));

function Attention() {
  const rows = [...useStore((all) => all.services).values()].filter(troubled);
  if (!rows.length) return html`<${Panel} title=${t("Needs attention")}><${Empty}>
    <${Status} value="healthy" text=${t("Nothing. Everything is fine.")} /></${Empty}></${Panel}>`;
  return html`<${Panel} title="${t("Needs attention")} (${rows.length})">
    <ul class="attention">${rows.slice(0, 20).map((row) => html`<${Entry} key=${row.service_id} row=${row}>
      <a class="button" href=${address(["services", row.name], { tab: "logs" })}>${t("Logs")}</a></${Entry}>`)}</ul>
    ${rows.length > 20 && html`<p><a href="#/services?sort=status">${t("All of them")}</a></p>`}</${Panel}>`;
}

/** One service, and what can be done with it. @param {{row: any, children: any}} props */
const Entry = ({ row, children }) => html`<li>
  <div><a href=${address(["services", row.name])}>${row.name}</a> <${Status} value=${stateOf(row)} />
    <p class="reason"><${Foreign} text=${row.error_message} most=${300} /></p>
    ${row.next_restart_at && html`<p class="hint">${t("next try")} <${Ago} at=${row.next_restart_at} /></p>`}</div>
  <div class="actions">${children}<${ServiceActions} row=${row} /></div></li>`;

const FEW = 8;

/** The services without trouble, where they are few: a newcomer looks for them here. */
function Few() {
  const all = [...useStore((state) => state.services).values()];
  const rows = all.filter((row) => !troubled(row));
  if (!rows.length || all.length > FEW) return null;
  return html`<${Panel} title=${t("Services")}><ul class="attention">${rows.map((row) => html`
    <${Entry} key=${row.service_id} row=${row}>${(row.status === "running" || row.status === "asleep") && can("connect")
      && html`<a class="button" href=${address(["playground"], { service: row.name })}>${t("Talk to it")}</a>`}</${Entry}>`)}</ul></${Panel}>`;
}

const RESULTS = /** @type {Record<string, string>} */ ({ ok: "healthy", warning: "degraded", error: "failed" });

function Doctor() {
  const loaded = useStore((all) => all.loaded); // what is shown at first goes first
  const [report] = useLoaded(async (signal) => (loaded ? read("/doctor", {}, signal) : null), [loaded]);
  const found = (report?.findings ?? []).filter((/** @type {any} */ one) => one.result !== "ok");
  if (!found.length) return null;
  return html`<${Panel} title=${t("Diagnosis")}>
    <ul class="findings">${found.map((/** @type {any} */ one) => html`<li key=${one.what}>
      <${Status} value=${RESULTS[one.result]} text=${one.what} /> <${Foreign} text=${one.found} />
      ${one.advice && html`<p class="hint"><${Foreign} text=${one.advice} /></p>`}</li>`)}</ul></${Panel}>`;
}

function LastEvents() {
  const events = useStore((all) => all.events);
  const services = useStore((all) => all.services);
  const newest = events.slice(-12).reverse();
  const more = html`<a href="#/events">${t("All events")}</a>`;
  return html`<${Panel} title=${t("Last events")} actions=${more}>${
    newest.length
      ? html`<ol class="events">${newest.map((event) => html`<li key=${event.event_id}>
          <${Ago} at=${event.at} /> <span>${eventText(event, services)}</span></li>`)}</ol>`
      : html`<${Empty}>${t("Nothing has happened in the last hour.")}</${Empty}>`}</${Panel}>`;
}
