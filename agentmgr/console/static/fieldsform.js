/** The form of a service's fields: a control for each, made of its schema. */
import { html, useState } from "./vendor/preact.mjs";
import { HIDDEN } from "./fields.js";
import { bytesText, durationText } from "./format.js";
import { t } from "./i18n.js";
import { Field } from "./ui.js";

/** Better names than the fields' own. */
const FIELD_LABELS = /** @type {Record<string, string>} */ ({
  agent_factory_path: "Agent file", cwd: "Working directory", env: "Environment", env_file: "Variables file", host: "Address",
  description: "Description",
});

/** @param {import("./fields.js").ServiceField} field */
export const fieldLabel = ({ name, title }) => t(FIELD_LABELS[name] ?? title);

/** What stands in an empty control. */
const FIELD_EXAMPLES = /** @type {Record<string, string>} */ ({
  name: "my-agent", agent_factory_path: "/home/me/agent.py", command: "node server.js --port {port}", tags: "support, chinese",
});

/**
 * @typedef {import("./fields.js").ServiceField} OneField
 * @param {{field: OneField, typed: any, type: (typed: any) => void, problem?: string, note?: any, required?: boolean}} props
 */
export function FieldControl({ field, typed, type, problem, note, required }) {
  const { name, kind } = field;
  const wrong = problem ? { "aria-invalid": true, "aria-describedby": `${name}-problem` } : {};
  const input = (/** @type {any} */ event) => type(event.target.value);
  let control;
  if (kind === "switch") {
    control = html`<input id=${name} type="checkbox" checked=${typed} ...${wrong}
      onChange=${(/** @type {any} */ event) => type(event.target.checked)} />`;
  } else if (kind === "choice") {
    control = html`<select id=${name} value=${typed} onChange=${input} ...${wrong}>
      ${field.choices.map((one) => html`<option value=${one}>${one}</option>`)}</select>`;
  } else if (kind === "variables") {
    control = html`<${Variables} id=${name} typed=${typed} type=${type} wrong=${wrong} />`;
  } else {
    const { standard } = field;
    const shown = FIELD_EXAMPLES[name] ?? (field.placeholder || (standard === null || typeof standard === "object" ? "" : String(standard)));
    control = html`<input id=${name} type="text" inputmode=${kind === "number" ? "decimal" : undefined} value=${typed}
      placeholder=${shown} required=${required} spellcheck="false" autocomplete="off" autocapitalize="off"
      onInput=${input} ...${wrong} />`;
  }
  const hint = html`${t(field.help)} ${kind === "list" && t("Several, separated by commas.")} ${meaning(field, typed)} ${note}`;
  return html`<${Field} label=${html`${fieldLabel(field)}${field.unit && html` <small>${field.unit}</small>`}`} name=${name} problem=${problem} hint=${hint}>${control}</${Field}>`;
}

/** A large number in words, and what is usual. @param {OneField} field @param {any} typed */
function meaning({ kind, unit, standard }, typed) {
  if (kind !== "number") return null;
  const words = (/** @type {any} */ number) => (unit === "bytes" ? bytesText(number) : unit === "s" ? durationText(number) : String(number));
  const now = Number(typed) >= 90 && unit && typed ? `= ${words(Number(typed))}.` : "";
  return html`${now} ${standard !== null && String(standard) !== typed && t("Default: {standard}.", { standard: words(standard) })}`;
}

/**
 * Variables of the environment. Their values are not shown: not those that are known, nor while they are typed.
 * @param {{id: string, typed: [string, string][], type: (typed: [string, string][]) => void, wrong: object}} props
 */
function Variables({ id, typed, type, wrong }) {
  const [seen, setSeen] = useState(false);
  const rows = [...typed, ["", ""]];
  const set = (/** @type {number} */ at, /** @type {number} */ part) => (/** @type {any} */ event) => {
    const changed = rows.map((row, index) => (index === at ? row.map((one, side) => (side === part ? event.target.value : one)) : row));
    type(/** @type {[string, string][]} */ (changed.filter(([name, value]) => name || value)));
  };
  return html`<div class="variables" role="group" aria-label=${t("Environment")}>
    ${rows.map(([name, value], at) => html`<div class="variable" key=${at}>
      <input id=${at === 0 ? id : undefined} type="text" value=${name} placeholder="NAME" spellcheck="false" autocomplete="off"
        aria-label=${t("Name of variable {number}", { number: at + 1 })} onInput=${set(at, 0)} ...${wrong} />
      <input type=${seen && value !== HIDDEN ? "text" : "password"} value=${value === HIDDEN ? "" : value} autocomplete="new-password"
        placeholder=${value === HIDDEN ? t("as it is; not shown") : t("value")} spellcheck="false"
        aria-label=${t("Value of variable {number}", { number: at + 1 })} onInput=${set(at, 1)} />
      ${at < typed.length && html`<button type="button" class="quiet" aria-label=${t("Remove {name}", { name: name || at + 1 })}
        onClick=${() => type(typed.filter((_, index) => index !== at))}>✕</button>`}</div>`)}
    <label class="inline"><input type="checkbox" checked=${seen} onChange=${() => setSeen(!seen)} />
      ${t("Show what I type")}</label></div>`;
}
