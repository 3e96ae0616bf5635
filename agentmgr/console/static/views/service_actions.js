/** What can be done with a service, and in words what each costs those who use it. */
import { html, useState } from "../vendor/preact.mjs";
import { call, Problem, read } from "../api.js";
import { ask, Modal } from "../dialog.js";
import { commandText, mostInstances } from "../format.js";
import { t } from "../i18n.js";
import { go } from "../router.js";
import { can } from "../store.js";
import { Action, attempt, CommandLine, Field } from "../ui.js";

/** @param {any} service @returns {string} below `/api/v1` */
const servicePath = (service) => `/services/${service.service_id}`;

/** @param {{service: any, figures: any}} props */
export function ServiceSteering({ service, figures }) {
  const [scaling, setScaling] = useState(false);
  if (!can("admin")) return null;
  const { name } = service;
  const connections = figures?.connections ?? service.connections ?? service.active_sessions;
  const down = service.desired_status === "stopped" || service.status === "completed";
  const restart = () => call("POST", `${servicePath(service)}/restart`);
  const start = () => call("POST", `${servicePath(service)}/start`);
  return html`${down
    ? html`<${Action} label=${t("Start")} primary command=${commandText("start", name)} run=${start}
        done=${t("{name} is starting.", { name })} />`
    : html`${service.status === "error" && html`<${Action} label=${t("Start")} primary
          command=${commandText("start", name)} run=${start} done=${t("{name} is starting.", { name })} />`}
        <${Action} label=${t("Restart")} command=${commandText("restart", name)} run=${restart}
          done=${t("{name} is restarting: each new instance is ready before an old one ends.", { name })} />
        <button type="button" title=${commandText("stop", name)} onClick=${() => stopService(service)}>${t("Stop")}</button>`}
    ${service.config?.schedule && html`<${Action} label=${t("Run now")} command=${commandText("run-now", name)}
      run=${() => call("POST", `${servicePath(service)}/run-now`)} done=${t("{name} runs now.", { name })} />`}
    <button type="button" title=${commandText("scale", name, "N")} onClick=${() => setScaling(true)}>${t("Scale")}</button>
    <button type="button" class="danger" title=${commandText("unregister", name)}
      onClick=${() => unregister(service, connections)}>${t("Unregister")}</button>
    ${scaling && html`<${ScaleDialog} service=${service} connections=${connections} close=${() => setScaling(false)} />`}`;
}

/** Asks first where connections are open, as the API has them now. @param {any} service or its row */
export async function stopService(service) {
  const { name } = service;
  const command = commandText("stop", name);
  const now = await read(servicePath(service)).catch(() => null); // a problem is said by the stop itself
  if (now?.active_sessions > 0) {
    const text = whatStopCosts(now, now.active_sessions);
    if (!(await ask({ title: t("Stop {name}?", { name }), text, command, confirm: t("Stop"), danger: true }))) return;
  }
  await attempt(() => call("POST", `${servicePath(service)}/stop`), { command, done: t("{name} is stopping.", { name }) });
}

/** @param {any} service @param {number} connections */
function whatStopCosts({ config }, connections) {
  const kept = config.agent_factory_path && config.sessions === "durable";
  const seconds = config.drain_timeout;
  return [
    t("{count} connections are open. A turn that runs may end within {seconds} s; then they are closed.", { count: connections, seconds }),
    kept
      ? t("Their sessions are kept on disk: clients take them up again when it runs.")
      : t("What the sessions remember is in memory only, and is lost."),
  ].join(" ");
}

/** @param {any} service @param {number} connections */
async function unregister(service, connections) {
  const { name } = service;
  const text = [
    connections > 0 ? t("{count} connections are open; they are closed.", { count: connections }) : "",
    t("It is stopped, and its configuration and history are deleted. Its log stays on disk."),
  ].join(" ");
  const command = commandText("unregister", name);
  if (!(await ask({ title: t("Unregister {name}?", { name }), text, command, confirm: t("Unregister"), danger: true }))) return;
  const remove = (/** @type {boolean} */ force) => () => call("DELETE", servicePath(service), { query: { force: force || undefined } });
  const done = t("{name} was unregistered.", { name });
  try {
    await remove(false)();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status !== 409) return void attempt(() => Promise.reject(error));
    // It keeps sessions: the API says how many, and wants to hear that they are to be erased.
    const forced = commandText("unregister", name, "--force");
    const title = t("Erase its sessions too?");
    if (!(await ask({ title, text: error.message, command: forced, confirm: t("Erase and unregister"), danger: true }))) return;
    if (await attempt(remove(true), { command: forced, done })) go("#/services");
    return;
  }
  await attempt(() => Promise.resolve(), { command, done });
  go("#/services");
}

/** @param {{service: any, connections: number, close: () => void}} props */
function ScaleDialog({ service, connections, close }) {
  const now = service.config.instances;
  const [typed, setTyped] = useState(String(now));
  const [problem, setProblem] = useState("");
  const command = commandText("scale", service.name, typed);
  const wanted = Number.isNaN(Number(typed)) || typed.trim() === "" ? typed.trim() : Number(typed);
  const scale = async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      await call("POST", `${servicePath(service)}/scale`, { body: { instances: wanted } });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      return setProblem(error.fields.get("instances") ?? error.message);
    }
    close();
    await attempt(() => Promise.resolve(), { command, done: t("{name} was scaled to {count} instances.", { name: service.name, count: wanted }) });
  };
  const fewer = mostInstances(wanted) < service.wanted_instances && connections > 0;
  return html`<${Modal} title=${t("Scale {name}", { name: service.name })} close=${close}><form onSubmit=${scale}>
    <${Field} label=${t("Instances")} name="instances" problem=${problem} hint=${fewer
      ? t("Instances that are removed accept no new connections, and end when their turns have ended.")
      : t("Now {count}. A range such as 1..4 follows the load. Adding instances does not touch the running ones.", { count: now })}>
      <input id="instances" type="text" inputmode="decimal" value=${typed} aria-invalid=${problem ? true : undefined}
        onInput=${(/** @type {any} */ event) => setTyped(event.target.value)} /></${Field}>
    <p class="same">${t("The same in a terminal:")}</p><${CommandLine} text=${command} />
    <div class="buttons"><button type="button" onClick=${close}>${t("Cancel")}</button>
      <button type="submit" class="primary">${t("Scale")}</button></div></form></${Modal}>`;
}
