/** Why the gateway refuses a client, by code, and what helps. */
import { html } from "./vendor/preact.mjs";
import { t } from "./i18n.js";
import { CommandLine, Foreign } from "./ui.js";

/** @type {Record<string, [string, string?]>} what helps, and a command line */
const REFUSAL_HELP = {
  bad_request: [t("The client has to speak HTTP as it should.")],
  head_too_large: [t("The client has to send fewer or shorter headers.")],
  request_timeout: [t("The client has to send its request in time.")],
  upgrade_required: [t("The client has to ask for a WebSocket, version 13.")],
  unsupported_version: [t("The client has to ask for a WebSocket, version 13.")],
  unauthorized: [t("The client needs a token, or a ticket that was not used."), "agentmgr tokens create NAME --scope connect"],
  forbidden: [t("The client needs a token that opens this service."), "agentmgr tokens list"],
  origin_not_allowed: [t("Start the gateway with --allow-origin and the address of that web page.")],
  proxy_not_trusted: [t("Start the gateway with --trusted-proxy and the network of that proxy.")],
  bad_proxy_header: [t("The proxy before the gateway has to send the PROXY protocol.")],
  service_not_found: [t("The client has to use the name of a service that there is."), "agentmgr list"],
  session_elsewhere: [t("The client has to use the address of the service that holds its session; the reason names it.")],
  too_many_handshakes: [t("The client has to come back later, and less often.")],
  too_many_sessions: [t("One address has as many connections as it may have.")],
  too_many_connections: [t("The gateway has as many connections as this machine has room for.")],
  no_service_available: [t("Start a service that may take this client."), "agentmgr start NAME"],
  at_capacity: [t("All instances are full: add one, or raise max_sessions."), "agentmgr scale NAME 2"],
  bad_gateway: [t("The instance did not answer as it should; its log says more."), "agentmgr logs NAME"],
  backend_timeout: [t("The instance did not answer in time; its log says more."), "agentmgr logs NAME"],
  backend_refused: [t("The instance itself refused the client; its log says more."), "agentmgr logs NAME"],
};

/** What helps against a refusal. @param {{code: string, service?: string | null}} props `service`: for the command line */
export function RefusalHelp({ code, service }) {
  const [help, command] = REFUSAL_HELP[code] ?? [];
  if (!help) return null;
  return html`<div class="help"><p class="hint">${help}</p>
    ${command && html`<${CommandLine} text=${service ? command.replace("NAME", service) : command} />`}</div>`;
}

/** A refusal with its words. @param {{code: string | null, reason: string, service?: string | null}} props */
export const Refused = ({ code, reason, service }) => html`<div class="failed" role="alert">
  <p><strong>${t("Refused")}</strong> <code><${Foreign} text=${code ?? ""} most=${100} /></code> <${Foreign} text=${reason} most=${2000} /></p>
  ${code && html`<${RefusalHelp} code=${code} service=${service} />`}</div>`;
