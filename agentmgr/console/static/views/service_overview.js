/** How a service is: in words, by instance, and over time. */
import { html, useRef } from "../vendor/preact.mjs";
import { bytesText, clockText, commandText, countText, cpuText, shellWord } from "../format.js";
import { t } from "../i18n.js";
import { address } from "../router.js";
import { useStore } from "../store.js";
import { Table } from "../table.js";
import { Ago, CommandLine, Copy, Foreign, Panel, Status } from "../ui.js";
import { ServiceCharts } from "./service_charts.js";
import { EndEntry, useEnds } from "./service_ends.js";

/** What its status means for the one who looks. @param {any} service @returns {string} */
function standing({ status, desired_status: wanted, health, ready, instances, wanted_instances: many, service_id: id }) {
  const all = typeof instances === "number" ? instances : many;
  switch (status) {
    case "running":
      if (wanted === "stopped") return t("It is about to stop.");
      if (ready < all) return t("It runs, but {ready} of {all} instances are ready.", { ready, all });
      if (health === "degraded") return t("It runs, but a recent health check failed.");
      if (health === "unhealthy") return t("It runs, but does not answer its health checks.");
      return all > 1 ? t("It runs: all {all} instances are ready.", { all }) : t("It runs, and accepts connections.");
    case "starting": return t("It is starting, and not ready yet.");
    case "unhealthy": return t("It runs, but does not answer its health checks. If that lasts, it is restarted.");
    case "draining": return t("It is stopping: it accepts no new connections, and finishes the running turns.");
    case "stopping": return t("It is stopping.");
    case "backoff": return t("It crashed, and will be restarted.");
    case "completed": return t("It has done its work and ended. Start it to run it again.");
    case "scheduled": return t("It waits for the next run of its schedule.");
    case "asleep": return t("It is asleep: nothing of it runs until a client comes.");
    case "error": return t("It crashed too often, or cannot start, and is not restarted any more. It stays down until you start it.");
    default: return wanted === "running" && id ? t("It is down, and about to be started.") : t("It is stopped, and stays so until you start it.");
  }
}

/** @param {{service: any, figures: any, route: import("../router.js").Route}} props */
export function ServiceOverview({ service, figures, route }) {
  return html`<div class="columns"><${Standing} service=${service} figures=${figures} /><${About} service=${service} /></div>
    <${Instances} service=${service} figures=${figures} />
    <${ServiceCharts} service=${service} figures=${figures} route=${route} />`;
}

const DOWN = new Set(["stopped", "completed", "scheduled", "asleep", "backoff", "error"]);

/** @param {{service: any, figures: any}} props */
function Standing({ service, figures }) {
  const [ends] = useEnds(service, 1);
  const last = ends?.[0];
  const down = DOWN.has(service.status);
  const ran = useRef(false); // its end is listed a moment after it stopped
  ran.current ||= !down;
  const { error_message: reason } = service;
  const said = [...new Set((figures?.instances ?? []).map((/** @type {any} */ one) => one.said).filter(Boolean))];
  return html`<${Panel} title=${t("State")}>
    <p class="standing"><${Status} value=${service.status === "running" && service.health !== "unknown" ? service.health : service.status}
      text=${standing(service)} /></p>
    ${service.next_restart_at && html`<p>${t("Next try")} <${Ago} at=${service.next_restart_at} /></p>`}
    ${service.next_run_at && html`<p>${t("Next run")}: <time datetime=${service.next_run_at}>${clockText(service.next_run_at)}</time></p>`}
    ${service.last_run?.result && html`<p>${t("Last run")}: <${Status} value=${service.last_run.result} /> <${Ago} at=${service.last_run.ended_at} /></p>`}
    ${!down && service.started_at && html`<p class="hint">${t("Started")}: <${Ago} at=${service.started_at} /></p>`}
    ${said.map((one) => html`<p>${t("It reports:")} <${Foreign} text=${one} most=${300} /></p>`)}
    ${reason && html`<h3>${t("Reason")}</h3><div class="words"><${Foreign} text=${reason} most=${4000} /></div>`}
    ${(service.remarks ?? []).map((/** @type {string} */ one) => html`<p class="hint"><${Foreign} text=${one} most=${300} /></p>`)}
    ${last && html`<h3>${t("Last end")}</h3><${EndEntry} end=${last} open=${down && !reason} />
      <p><a href=${address(["services", service.name], { tab: "history" })}>${t("All ends")}</a></p>`}
    ${down && !last && !reason && ends && !ran.current && html`<p>${t("It has never run.")}</p>`}
    ${service.status === "error" && html`<p class="hint">${t("Fix the cause, then start it. Its last output is in the log.")}${" "}
      <a href=${address(["services", service.name], { tab: "logs" })}>${t("Open the log")}</a></p>`}</${Panel}>`;
}

/** @param {{service: any}} props */
function About({ service }) {
  const gateway = useStore((all) => all.me?.gateway?.[0]);
  const url = gateway && `${gateway}/services/${encodeURIComponent(service.name)}`;
  const { agent_factory_path: file, tags, config } = service;
  return html`<${Panel} title=${t("About")}><dl class="about">
    <dt>${file ? t("Agent file") : t("Command")}</dt>
    <dd><code><${Foreign} text=${file ?? config.command.map(shellWord).join(" ")} most=${400} /></code></dd>
    ${url && html`<dt>${t("Clients connect to")}</dt><dd><code>${url}</code> <${Copy} text=${url} /></dd>`}
    ${typeof config.instances === "string" && html`<dt>${t("Instances")}</dt>
      <dd>${t("{range}, as many as the load needs; now {count}", { range: config.instances, count: service.wanted_instances })}</dd>`}
    ${tags.length > 0 && html`<dt>${t("Tags")}</dt><dd>${tags.map((/** @type {string} */ tag) => html`<a class="tag" href=${address(["services"], { q: tag })}>${tag}</a> `)}</dd>`}
    <dt>${t("Sessions")}</dt><dd>${file && config.sessions === "durable" ? t("kept on disk") : t("in memory only")}</dd>
    <dt>${t("Automatic restarts")}</dt><dd>${!config.auto_restart || config.restart === "never" ? t("never")
      : t("{mode}, {count} times in {seconds} s at most", { mode: t(config.restart), count: config.max_restart_count, seconds: config.restart_window })}</dd>
    <dt>${t("Registered")}</dt><dd><${Ago} at=${service.created_at} /></dd></dl>
    <details class="terminal"><summary>${t("The same in a terminal:")}</summary>
      <${CommandLine} text=${commandText("status", service.name)} />
      <${CommandLine} text=${commandText("chat", url ?? service.name)} /></details></${Panel}>`;
}

/** @type {(name: string, onNodes: boolean, withGpus: boolean) => import("../table.js").Column[]} */
const instanceColumns = (name, onNodes, withGpus) => [
  { name: "slot", label: t("Instance"), kind: "fill", by: (row) => row.slot,
    cell: (row) => html`<a href=${address(["services", name], { tab: "logs", instance: row.slot })}>${t("instance {slot}", { slot: row.slot })}</a>` },
  { name: "status", label: t("Status"), by: (row) => row.status,
    cell: (row) => html`<${Status} value=${row.status === "running" && row.health !== "unknown" ? row.health : row.status} />` },
  .../** @type {import("../table.js").Column[]} */ (onNodes ? [{ name: "node", label: t("Node"), by: (row) => row.node, cell: (row) => row.node || "–" }] : []),
  .../** @type {import("../table.js").Column[]} */ (withGpus ? [{ name: "gpus", label: t("GPUs"), by: (row) => row.gpus.join(), cell: (row) => row.gpus.join(", ") || "–" }] : []),
  { name: "pid", label: "pid", kind: "number", by: (row) => row.pid, cell: (row) => row.pid ?? "–" },
  { name: "port", label: t("Port"), kind: "number wide", by: (row) => row.port, cell: (row) => (row.pid ? row.port : null) ?? "–" },
  { name: "cpu", label: t("Processor"), kind: "number", by: (row) => row.cpu ?? -1, cell: (row) => cpuText(row.cpu) },
  { name: "memory", label: t("Memory"), kind: "number wide", by: (row) => row.memory_bytes ?? -1, cell: (row) => bytesText(row.memory_bytes) },
  { name: "connections", label: t("Connections"), kind: "number wide", by: (row) => row.connections, cell: (row) => countText(row.connections) },
  { name: "sessions", label: t("Sessions"), kind: "number wide", by: (row) => row.sessions ?? -1, cell: (row) => countText(row.sessions) },
  { name: "restarts", label: t("Restarts"), kind: "number wide", by: (row) => row.restart_count, cell: (row) => countText(row.restart_count) },
  { name: "since", label: t("Since"), kind: "wide", by: (row) => row.started_at, cell: (row) => (row.pid ? html`<${Ago} at=${row.started_at} />` : "–") },
  { name: "why", label: t("Last error"), kind: "wide reason", cell: (row) => html`<${Foreign} text=${lastError(row)} most=${160} />` },
];

/** @param {any} row */
const lastError = (row) => row.error_message?.split("\n").at(-1) || row.last_exit;

/** @param {{service: any, figures: any}} props */
function Instances({ service, figures }) {
  const rows = (figures?.instances ?? []).filter((/** @type {any} */ one) => one.status !== "stopped");
  const older = rows.filter((/** @type {any} */ one) => one.pid && one.spec_version < service.version).length;
  return html`<${Panel} title=${t("Instances")}>
    <${Table} label=${t("Instances")} rows=${rows} columns=${instanceColumns(service.name, rows.some((/** @type {any} */ one) => one.node), rows.some((/** @type {any} */ one) => one.gpus.length))} sort="slot"
      keyOf=${(/** @type {any} */ row) => row.instance_id} empty=${t("None: it does not run.")} />
    ${older > 0 && html`<p class="hint">${t("{count} of them run an older version of the configuration, until they are restarted.", { count: older })}</p>`}</${Panel}>`;
}
