/** How a service is configured: all fields, and a change that is read before it is made. */
import { html, useEffect, useState } from "../vendor/preact.mjs";
import { call, Problem } from "../api.js";
import { Modal } from "../dialog.js";
import { HIDDEN, optionWords, sameValue, fieldTyped, useServiceFields, fieldValue } from "../fields.js";
import { FieldControl, fieldLabel } from "../fieldsform.js";
import { commandText, valueText, visibleText } from "../format.js";
import { t } from "../i18n.js";
import { address, go } from "../router.js";
import { can } from "../store.js";
import { attempt, CommandLine, Panel } from "../ui.js";

/** The fields that come first, as most people come for them; the others follow in the API's order. */
export const FIRST_FIELDS = ["name", "description", "tags", "agent_factory_path", "command", "cwd", "env", "instances", "port"];

/** The other fields by what they are about; a new one that fits nowhere comes last.
 * @param {import("../fields.js").ServiceField[]} fields @returns {[string, import("../fields.js").ServiceField[]][]} */
export function grouped(fields) {
  /** @type {[string, RegExp][]} */
  const groups = [
    [t("Limits"), /_limit_|^max_(sessions|open|proc|mess)|per_instance|weight|idle_timeout/],
    [t("Start, end, restart"), /restart|stable|^st(art|op)|^drain|manager_death|^after$/],
    [t("Checks"), /ready|health|recovery/],
    [t("Sessions and turns"), /session|conversation|turn|confirm|disconnect|busy|crash|state|seamless|resume/],
    [t("More"), /./],
  ];
  const group = (/** @type {any} */ field) => groups.findIndex(([, names]) => names.test(field.name));
  return groups.map(([title], at) => /** @type {[string, any[]]} */ ([title, fields.filter((one) => group(one) === at)]))
    .filter(([, found]) => found.length);
}

/** @param {any} service @param {string} name what the registration says */
function storedValue(service, name) {
  if (name === "port") return service.port_is_fixed ? service.port : null;
  const own = ["name", "description", "tags", "host"].includes(name);
  return own ? service[name] : service.config[name];
}

/** @param {{service: any, again: () => void}} props */
export function ServiceConfiguration({ service, again }) {
  const fields = useServiceFields();
  const [edits, setEdits] = useState(/** @type {Record<string, any>} what was typed, by field */ ({}));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [reviewing, review] = useState(false);
  const [filter, setFilter] = useState("");
  const dirty = Object.keys(edits).length > 0;
  useEffect(() => {
    if (!dirty) return;
    const stay = (/** @type {Event} */ event) => event.preventDefault(); // the browser asks
    addEventListener("beforeunload", stay);
    return () => removeEventListener("beforeunload", stay);
  }, [dirty]);
  if (!fields) return t("Loading …");
  const what = service.config.agent_factory_path ? "command" : "agent_factory_path";
  const text = filter.toLowerCase();
  const fits = (/** @type {any} */ one) =>
    one.name !== what && (!text || one.name.includes(text) || fieldLabel(one).toLowerCase().includes(text) || one.help.toLowerCase().includes(text));
  const first = FIRST_FIELDS.map((name) => fields.find((one) => one.name === name)).filter(Boolean).filter(fits);
  const others = fields.filter((one) => !FIRST_FIELDS.includes(one.name) && fits(one));
  /** @type {Record<string, any>} */
  const changes = {};
  for (const field of fields) {
    if (!(field.name in edits)) continue;
    const value = fieldValue(field, edits[field.name]);
    if (!sameValue(value, storedValue(service, field.name))) changes[field.name] = value;
  }
  const changed = fields.filter((one) => one.name in changes);
  const control = (/** @type {any} */ field) => html`<${FieldControl} key=${field.name} field=${field}
    typed=${edits[field.name] ?? fieldTyped(field, storedValue(service, field.name))} problem=${problem?.fields.get(field.name)}
    type=${(/** @type {any} */ typed) => (setEdits((now) => ({ ...now, [field.name]: typed })), setProblem(null))}
    note=${field.live ? t("Takes effect at once.") : null} />`;
  const unplaced = problem && !placed(problem, fields);
  return html`<form class="config" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), changed.length && review(true))}>
    <div class="filters"><input type="search" value=${filter} placeholder=${t("Find a field ( / )")} aria-label=${t("Find a field ( / )")}
      onInput=${(/** @type {any} */ event) => setFilter(event.target.value)} />
      <small>${t("Version {version}", { version: service.version })}</small></div>
    ${unplaced && html`<div class="failed" role="alert"><p>${problem.message}</p>
      ${problem.status === 412 && html`<p>${t("What you typed is kept. Load the current configuration, and look at the difference again.")}
        <button type="button" onClick=${() => (setProblem(null), again())}>${t("Load the current one")}</button></p>`}</div>`}
    <fieldset disabled=${!can("admin")}>
      ${first.length > 0 && html`<${Panel} title=${t("About")}><div class="fields">${first.map(control)}</div></${Panel}>`}
      ${grouped(others).map(([title, fields]) => html`<${Panel} key=${title} title=${title}><div class="fields">${fields.map(control)}</div></${Panel}>`)}
    </fieldset>
    ${!first.length && !others.length && html`<p class="empty">${t("No field matches.")}</p>`}
    ${can("admin") && html`<div class="savebar" role="group" aria-label=${t("Changes")}>
      <span>${changed.length ? t("{count} fields changed.", { count: changed.length }) : t("Nothing changed.")}</span>
      <button type="button" disabled=${!dirty} onClick=${() => (setEdits({}), setProblem(null))}>${t("Discard")}</button>
      <button type="submit" class="primary" disabled=${!changed.length}>${t("Review the changes")}</button></div>`}
    ${reviewing && html`<${Difference} service=${service} changed=${changed} changes=${changes} close=${() => review(false)}
      refused=${(/** @type {Problem} */ error) => (review(false), setProblem(error), showFirst(error))} done=${() => (review(false), setEdits({}), again())} />`}
  </form>`;
}

/** Is the problem one of a field? @param {Problem} problem @param {import("../fields.js").ServiceField[]} fields */
export const placed = (problem, fields) => fields.some((one) => problem.fields.has(one.name));

/** Goes to the field that is wrong. @param {Problem} error */
export const showFirst = (error) => requestAnimationFrame(() => {
  const element = document.getElementById([...error.fields.keys()][0] ?? "");
  element?.scrollIntoView({ block: "center" });
  element?.focus();
});

/**
 * @param {{service: any, changed: import("../fields.js").ServiceField[], changes: Record<string, any>, close: () => void,
 *   refused: (error: Problem) => void, done: () => void}} props
 */
function Difference({ service, changed, changes, close, refused, done }) {
  const [busy, setBusy] = useState(false);
  const rename = changes.name ? ["--rename", changes.name] : [];
  const command = commandText("change", service.name, ...rename, ...optionWords(changed, changes));
  const restarts = service.desired_status === "running" && changed.some((one) => !one.live);
  const apply = (/** @type {boolean} */ restarting) => async () => {
    setBusy(true);
    try {
      await call("PATCH", `/services/${service.service_id}`, { body: changes, version: service.version });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setBusy(false);
      return refused(error);
    }
    done();
    const restart = () => (restarting ? call("POST", `/services/${service.service_id}/restart`) : Promise.resolve());
    await attempt(restart, { command, done: t("{name} was changed.", { name: service.name }) });
    if (changes.name) go(address(["services", changes.name], { tab: "config" }), { replace: true });
  };
  return html`<${Modal} title=${t("Changes to apply")} kind="difference" close=${close}>
    <dl class="difference">${changed.map((field) => html`<div key=${field.name}>
      <dt>${fieldLabel(field)} <small>${field.live ? t("at once") : t("at the next start")}</small></dt>
      ${lines(field, storedValue(service, field.name), changes[field.name]).map(([sign, text]) => html`
        <dd class=${sign === "+" ? "added" : "removed"}><span aria-label=${sign === "+" ? t("new:") : t("old:")}>${sign}</span> <code>${visibleText(text)}</code></dd>`)}</div>`)}</dl>
    ${restarts && html`<p>${t("Running instances keep the old configuration until they are restarted: each new one is ready before an old one ends.")}</p>`}
    <p class="same">${t("The same in a terminal:")}</p><${CommandLine} text=${command} />
    <div class="buttons"><button type="button" onClick=${close}>${t("Cancel")}</button>
      <button type="button" class=${restarts ? "" : "primary"} disabled=${busy} onClick=${apply(false)}>${t("Apply")}</button>
      ${restarts && html`<button type="button" class="primary" disabled=${busy} onClick=${apply(true)}>${t("Apply and restart")}</button>`}</div></${Modal}>`;
}

/** @param {import("../fields.js").ServiceField} field @param {any} before @param {any} after @returns {[string, string][]} */
function lines(field, before, after) {
  if (field.kind !== "variables") {
    const shown = (/** @type {any} */ value) => (value === null ? t("not set") : typeof value === "object" ? fieldTyped(field, value).toString() || t("none") : valueText(value) || t("empty"));
    return [["-", shown(before)], ["+", shown(after)]];
  }
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => before[name] !== after[name]);
  return names.flatMap((name) => /** @type {[string, string][]} */ ([
    ...(name in before ? [["-", `${name}=${HIDDEN}`]] : []),
    ...(name in after ? [["+", `${name}=${HIDDEN} (${name in before ? t("another value") : t("new")})`]] : []),
  ]));
}
