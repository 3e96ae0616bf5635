/** One service: how it is, what it writes, how it is configured, how it has ended. */
import { html } from "../vendor/preact.mjs";
import { read } from "../api.js";
import { t } from "../i18n.js";
import { LogWindow } from "../logwindow.js";
import { address } from "../router.js";
import { can, useFigures, useStore } from "../store.js";
import { Failed, Head, Status, Tabs, useLoaded } from "../ui.js";
import { ServiceSteering } from "./service_actions.js";
import { ServiceConfiguration } from "./service_config.js";
import { ServiceEnds } from "./service_ends.js";
import { ServiceOverview } from "./service_overview.js";

/** @type {[string, string][]} */
const SERVICE_TABS = [["", t("Overview")], ["logs", t("Logs")], ["config", t("Configuration")], ["history", t("History")]];

/** @param {{route: import("../router.js").Route}} props */
export function Service({ route }) {
  const ref = route.path[1];
  const row = useStore((all) => [...all.services.values()].find((one) => one.name === ref || one.service_id === ref));
  const loaded = useStore((all) => all.loaded);
  const figures = useFigures(row ? [row.service_id] : []).get(row?.service_id) ?? null;
  const path = `/services/${encodeURIComponent(ref)}`;
  const about = [row?.status, row?.desired_status, row?.version, row?.ready, row?.error_message, row?.health];
  const [service, problem, again] = useLoaded((signal) => read(path, {}, signal), [ref, ...about]);
  if (loaded && !row && (problem?.status === 404 || service)) return html`<${Gone} name=${ref} />`;
  if (!service) {
    return html`<${Head} title=${ref} />${problem ? html`<${Failed} problem=${problem} again=${again} />` : t("Loading …")}`;
  }
  const now = { ...service, ...(row ?? {}), error_message: service.error_message, command: service.command };
  const tab = SERVICE_TABS.some(([name]) => name === route.query.get("tab")) ? route.query.get("tab") : "";
  const tabs = SERVICE_TABS.map(([name, text]) => [name, text, address(route.path, { tab: name })]);
  return html`<${Head} title=${html`${service.name} <${Status} value=${now.status} />`}
      back=${html`<a class="back" href="#/services" aria-label=${t("All services")}>←</a>`}>
      <${ServiceLinks} service=${service} /><${ServiceSteering} service=${now} figures=${figures} /></${Head}>
    ${service.description && html`<p class="description">${service.description}</p>`}
    <${Tabs} label=${t("Parts of this page")} tabs=${tabs} now=${tab} />
    ${tab === "" && html`<${ServiceOverview} service=${now} figures=${figures} route=${route} />`}
    ${tab === "logs" && html`<${LogWindow} service=${service} route=${route} />`}
    ${tab === "config" && html`<${ServiceConfiguration} service=${service} again=${again} />`}
    ${tab === "history" && html`<${ServiceEnds} service=${now} />`}`;
}

/** @param {{service: any}} props */
function ServiceLinks({ service: { name, agent_factory_path } }) {
  return html`${can("connect") && html`<a class="button" href=${address(["playground"], { service: name })}>${t("Talk to it")}</a>`}
    ${agent_factory_path && html`<a class="button" href=${address(["sessions"], { service: name })}>${t("Sessions")}</a>`}`;
}

/** @param {{name: string}} props */
const Gone = ({ name }) => html`<${Head} title=${name} />
  <div class="failed" role="alert"><p>${t("There is no service {name}: it was unregistered, or renamed.", { name })}</p>
    <p><a href="#/services">${t("All services")}</a></p></div>`;
