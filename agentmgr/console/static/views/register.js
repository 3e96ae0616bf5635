/** Registers a service: an agent file, or a command. The API checks it, as it does for the command line. */
import { html, useState } from "../vendor/preact.mjs";
import { call, Problem } from "../api.js";
import { fieldTyped, fieldValue, optionWords, sameValue, useServiceFields } from "../fields.js";
import { FieldControl } from "../fieldsform.js";
import { commandText } from "../format.js";
import { t } from "../i18n.js";
import { inform } from "../notices.js";
import { address, go } from "../router.js";
import { CommandLine, Head, Panel, Tabs } from "../ui.js";
import { FIRST_FIELDS, grouped, placed, showFirst } from "./service_config.js";

/** @param {{route: import("../router.js").Route}} props */
export function Register({ route }) {
  const fields = useServiceFields();
  const [edits, setEdits] = useState(/** @type {Record<string, any>} what was typed, by field */ ({}));
  const [start, setStart] = useState(true);
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [busy, setBusy] = useState(false);
  const what = route.query.get("what") === "command" ? "command" : "agent_factory_path";
  const other = what === "command" ? "agent_factory_path" : "command";
  if (!fields) return html`<${Head} title=${t("Register a service")} />${t("Loading …")}`;
  const [first, rest] = [true, false].map((wanted) => fields.filter((one) => one.name !== other && FIRST_FIELDS.includes(one.name) === wanted));
  /** @type {Record<string, any>} */
  const body = {};
  for (const field of [...first, ...rest]) {
    if (!(field.name in edits)) continue;
    const value = fieldValue(field, edits[field.name]);
    if (!sameValue(value, field.standard)) body[field.name] = value;
  }
  const name = body.name ?? suggested(body[what], what);
  const order = (/** @type {any} */ field) => (field.name === what ? -1 : FIRST_FIELDS.indexOf(field.name));
  const ordered = first.sort((a, b) => order(a) - order(b));
  const control = (/** @type {any} */ field) => html`<${FieldControl} key=${field.name} field=${field} required=${field.name === what}
    typed=${edits[field.name] ?? (field.name === "name" ? name : fieldTyped(field, field.standard))} problem=${problem?.fields.get(field.name)}
    type=${(/** @type {any} */ typed) => (setEdits((now) => ({ ...now, [field.name]: typed })), setProblem(null))} />`;
  const register = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await call("POST", "/services", { body: { ...body, name, auto_start: start } });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setBusy(false);
      setProblem(error);
      return showFirst(error);
    }
    inform("good", t("{name} was registered.", { name }), command);
    go(address(["services", name]));
  };
  const program = what === "command" ? ["--", ...(body.command ?? [])] : [];
  const command = commandText("register", name || "NAME", ...(what === "command" ? [] : [body[what] ?? "FILE"]),
    ...optionWords(fields, body), ...(start ? ["--auto-start"] : []), ...program);
  const tabs = [["", t("Agent file")], ["command", t("Command")]].map(([word, text]) => [word, text, address(["register"], { what: word })]);
  return html`<${Head} title=${t("Register a service")} back=${html`<a class="back" href="#/services" aria-label=${t("All services")}>←</a>`} />
    <${Tabs} label=${t("What to run")} tabs=${tabs} now=${what === "command" ? "command" : ""} />
    <form class="register" onSubmit=${register}>
      ${problem && !placed(problem, fields) && html`<p class="failed" role="alert">${problem.message}</p>`}
      <${Panel} title=${t("About")}><div class="fields">${ordered.map(control)}</div>
        <p class="hint">${t("A path is one of the machine that runs the manager; a relative one begins where the manager was started, if no working directory is given.")}</p></${Panel}>
      <details class="others"><summary>${t("All other options")}</summary>${grouped(rest).map(([title, some]) => html`<${Panel} key=${title} title=${title}><div class="fields">${some.map(control)}</div></${Panel}>`)}</details>
      <div class="savebar"><label class="inline"><input type="checkbox" checked=${start} onChange=${() => setStart(!start)} /> ${t("Start it now")}</label><span></span>
        <button type="submit" class="primary" disabled=${busy} aria-busy=${busy}>${t("Register")}</button></div>
      <p class="same">${t("The same in a terminal:")}</p><${CommandLine} text=${command} /></form>`;
}

/** What a service of this program may be called. @param {any} program @param {string} what */
function suggested(program, what) {
  const text = what === "command" ? (program ?? []).find((/** @type {string} */ word, /** @type {number} */ at) => at && !word.startsWith("-")) ?? program?.[0] : program;
  const file = String(text ?? "").split("/").at(-1)?.split(":")[0] ?? "";
  return file.replace(/\.[a-z]+$/, "").replace(/[^\w.-]/g, "-").replace(/^[^A-Za-z0-9]+/, "");
}
