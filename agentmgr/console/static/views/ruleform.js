/** A rule to fill in. Which operators and strategies there are, and what is usual, the API's own schema says. */
import { html, useState } from "../vendor/preact.mjs";
import { call, Problem } from "../api.js";
import { commandText } from "../format.js";
import { t } from "../i18n.js";
import { inform } from "../notices.js";
import { go } from "../router.js";
import { BARE_OPERATORS, changeRule, LIST_OPERATORS, operatorText, RULE_FIELDS, strategyText, valueOf } from "../rules.js";
import { snapshot } from "../store.js";
import { CommandLine, Failed, Field, Head, Panel, useLoaded } from "../ui.js";

/**
 * @typedef {{field: string, operator: string, value: string, case_sensitive: boolean}} TypedCondition
 * @typedef {{
 *   name: string, description: string, priority: string, enabled: boolean, conditions: TypedCondition[],
 *   target_services: string, target_tags: string, match_all_tags: boolean, target_strategy: string,
 *   fallback_strategy: string, hash_key: string,
 * }} TypedRule as it is typed: lists with commas
 */

/** @param {any} rule the fields of the schema, or a rule @returns {TypedRule} */
const typedRule = (rule) => ({
  name: rule.name ?? "",
  description: rule.description ?? "",
  priority: String(rule.priority),
  enabled: rule.enabled,
  conditions: (rule.conditions ?? []).map((/** @type {any} */ one) => ({ ...one, value: valueOf(one.value ?? "") })),
  target_services: valueOf(rule.target_services ?? []),
  target_tags: valueOf(rule.target_tags ?? []),
  match_all_tags: rule.match_all_tags,
  target_strategy: rule.target_strategy,
  fallback_strategy: rule.fallback_strategy ?? "",
  hash_key: rule.hash_key ?? "",
});

/** @param {string} text */
const words = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);

/** What is sent. What is no number goes as it is: the API says so in its own words. @param {TypedRule} typed */
const ruleBody = (typed) => ({
  ...typed,
  priority: /^-?\d+$/.test(typed.priority.trim()) ? Number(typed.priority) : typed.priority,
  conditions: typed.conditions.map((one) => ({
    ...one,
    value: BARE_OPERATORS.has(one.operator) ? "" : LIST_OPERATORS.has(one.operator) ? words(one.value) : one.value,
  })),
  target_services: words(typed.target_services),
  target_tags: words(typed.target_tags),
  fallback_strategy: typed.fallback_strategy || null,
  hash_key: typed.hash_key || null,
});

/** @param {TypedRule} typed @param {boolean} isNew */
function ruleCommand(typed, isNew) {
  const cased = typed.conditions.every((one) => one.case_sensitive !== false);
  return commandText("routes", isNew ? "add" : "change", typed.name || "NAME", "--priority", typed.priority,
    ...typed.conditions.flatMap((one) => ["--when", one.field, one.operator, BARE_OPERATORS.has(one.operator) ? "" : one.value]),
    ...(cased ? [] : ["--ignore-case"]),
    ...words(typed.target_services).flatMap((name) => ["--service", name]),
    ...(typed.target_tags ? ["--tags", words(typed.target_tags).join()] : []), ...(typed.match_all_tags ? ["--all-tags"] : []),
    "--strategy", typed.target_strategy, ...(typed.fallback_strategy ? ["--fallback", typed.fallback_strategy] : []),
    ...(typed.hash_key ? ["--hash-key", typed.hash_key] : []), ...(typed.description ? ["--description", typed.description] : []),
    ...(isNew && !typed.enabled ? ["--disabled"] : []));
}

/** @param {{rule?: any}} props without a rule: a new one */
export function RuleForm({ rule }) {
  const [schemas, problem, again] = useLoaded(async (signal) =>
    (await call("GET", "/openapi.json", { base: "", signal })).components.schemas, []);
  const title = rule ? t("Rule {name}", { name: rule.name }) : t("New rule");
  const back = html`<a href="#/routing">${t("Routing")}</a>`;
  return html`<${Head} title=${title} back=${back} />
    <div>${problem ? html`<${Failed} problem=${problem} again=${again} />` : schemas && html`<${Form} schemas=${schemas} rule=${rule} />`}</div>`;
}

/** @param {any} schemas */
const usualRule = (schemas) =>
  Object.fromEntries(Object.entries(schemas.NewRule.properties).map(([name, stated]) => [name, /** @type {any} */ (stated).default]));

/** @param {{schemas: any, rule?: any}} props */
function Form({ schemas, rule }) {
  const [typed, setTyped] = useState(() => typedRule(rule ?? usualRule(schemas)));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [busy, setBusy] = useState(false);
  const set = (/** @type {Partial<TypedRule>} */ changes) => setTyped((now) => ({ ...now, ...changes }));
  const wrong = (/** @type {string} */ path) =>
    [...(problem?.fields ?? [])].filter(([at]) => at === path || at.startsWith(`${path}[`)).map(([, text]) => text).join("; ");
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const body = ruleBody(typed);
      await (rule ? changeRule(rule, body) : call("POST", "/routing/rules", { body }));
      inform("good", rule ? t("Changed; it applies from the next client on.") : t("Added; it applies from the next client on."), ruleCommand(typed, !rule));
      go("#/routing");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setProblem(error);
      setBusy(false);
    }
  };
  const text = (/** @type {"name" | "description" | "priority" | "target_services" | "target_tags" | "hash_key"} */ name, /** @type {string} */ label, hint = "", list = "") =>
    html`<${Field} label=${label} name="rule-${name}" problem=${wrong(name)} hint=${hint}>
      <input id="rule-${name}" value=${typed[name]} list=${list || undefined} aria-describedby=${wrong(name) ? `rule-${name}-problem` : undefined}
        onInput=${(/** @type {any} */ input) => set({ [name]: input.target.value })} spellcheck=${false} autocomplete="off" /></${Field}>`;
  const strategies = schemas.RoutingStrategy.enum;
  const hashes = typed.target_strategy === "hash_based" || typed.fallback_strategy === "hash_based";
  const known = new Set(["name", "description", "priority", "target_services", "target_tags", "hash_key", "target_strategy", "fallback_strategy"]);
  const elsewhere = problem && ![...problem.fields.keys()].some((at) => known.has(at.replace(/\[.*/, "")) || at.startsWith("conditions["));
  return html`<form class="ruleform" onSubmit=${save}>
    <datalist id="service-names">${[...snapshot().services.values()].slice(0, 500).map((one) => html`<option value=${one.name} />`)}</datalist>
    <datalist id="rule-fields">${RULE_FIELDS.map((field) => html`<option value=${field} />`)}</datalist>
    <${Panel} title=${t("The rule")}>
      ${text("name", t("Name"))}${text("description", t("What it is for"))}
      ${text("priority", t("Priority"), t("The lowest number is tried first."))}
      <label class="check"><input type="checkbox" checked=${typed.enabled} onChange=${(/** @type {any} */ input) => set({ enabled: input.target.checked })} /> ${t("in use")}</label></${Panel}>
    <${Panel} title=${t("Which clients")}>
      <p class="hint">${t("All conditions must hold. Without any, every client matches.")}</p>
      ${typed.conditions.map((one, index) => html`<${ConditionFields} key=${index} index=${index} one=${one} wrong=${wrong} operators=${schemas.ConditionOperator.enum}
        change=${(/** @type {Partial<TypedCondition>} */ changes) => set({ conditions: typed.conditions.map((old, at) => (at === index ? { ...old, ...changes } : old)) })}
        remove=${() => set({ conditions: typed.conditions.filter((_, at) => at !== index) })} />`)}
      <p><button type="button" onClick=${() => set({ conditions: [...typed.conditions, { field: "", operator: "equals", value: "", case_sensitive: true }] })}>${t("Add a condition")}</button></p></${Panel}>
    <${Panel} title=${t("Where they go")}>
      ${text("target_services", t("Services"), t("Names, separated by commas. Without any, the tags decide; without both, any service."), "service-names")}
      ${text("target_tags", t("Tags"), t("Services with one of these tags."))}
      <label class="check"><input type="checkbox" checked=${typed.match_all_tags} onChange=${(/** @type {any} */ input) => set({ match_all_tags: input.target.checked })} /> ${t("with all of these tags")}</label>
      <${Strategy} name="target_strategy" label=${t("Which one of them")} value=${typed.target_strategy} all=${strategies} problem=${wrong("target_strategy")} set=${set} />
      <${Strategy} name="fallback_strategy" label=${t("If none of them can")} value=${typed.fallback_strategy} all=${strategies} none=${t("the client waits, or is refused")} problem=${wrong("fallback_strategy")} set=${set} />
      ${hashes && text("hash_key", t("Clients are the same by"), t("A field as in a condition, such as query.user; without one, the client's address."), "rule-fields")}</${Panel}>
    ${elsewhere && html`<${Failed} problem=${problem} />`}
    <p class="hint">${t("The same in a terminal:")}</p><${CommandLine} text=${ruleCommand(typed, !rule)} />
    <div class="buttons"><a class="button" href="#/routing">${t("Cancel")}</a>
      <button class="primary" disabled=${busy} aria-busy=${busy}>${rule ? t("Change the rule") : t("Add the rule")}</button></div></form>`;
}

/** @param {{name: string, label: string, value: string, all: string[], none?: string, problem: string, set: (changes: any) => void}} props */
const Strategy = ({ name, label, value, all, none, problem, set }) => html`<${Field} label=${label} name="rule-${name}" problem=${problem}>
  <select id="rule-${name}" value=${value} onChange=${(/** @type {any} */ input) => set({ [name]: input.target.value })}>
    ${none && html`<option value="">${none}</option>`}
    ${all.map((one) => html`<option value=${one} selected=${one === value}>${one}: ${strategyText(one)}</option>`)}</select></${Field}>`;

/**
 * @param {{index: number, one: TypedCondition, operators: string[], wrong: (path: string) => string,
 *   change: (changes: Partial<TypedCondition>) => void, remove: () => void}} props
 */
function ConditionFields({ index, one, operators, wrong, change, remove }) {
  const at = `conditions[${index}]`;
  const id = `condition-${index}`;
  return html`<fieldset class="conditionfields"><legend>${t("Condition {number}", { number: index + 1 })}</legend>
    <${Field} label=${t("Of the request")} name="${id}-field" problem=${wrong(`${at}.field`)}>
      <input id="${id}-field" class="mono" list="rule-fields" placeholder="query.lang" value=${one.field} spellcheck=${false} onInput=${(/** @type {any} */ input) => change({ field: input.target.value })} /></${Field}>
    <${Field} label=${t("how")} name="${id}-operator" problem=${wrong(`${at}.operator`)}>
      <select id="${id}-operator" value=${one.operator} onChange=${(/** @type {any} */ input) => change({ operator: input.target.value })}>
        ${operators.map((name) => html`<option value=${name} selected=${name === one.operator}>${operatorText(name)}</option>`)}</select></${Field}>
    ${!BARE_OPERATORS.has(one.operator) && html`<${Field} label=${LIST_OPERATORS.has(one.operator) ? t("Values, separated by commas") : t("Value")} name="${id}-value" problem=${wrong(`${at}.value`)}>
      <input id="${id}-value" class="mono" value=${one.value} spellcheck=${false} onInput=${(/** @type {any} */ input) => change({ value: input.target.value })} /></${Field}>
      <label class="check"><input type="checkbox" checked=${one.case_sensitive === false} onChange=${(/** @type {any} */ input) => change({ case_sensitive: !input.target.checked })} /> ${t("upper and lower case alike")}</label>`}
    <button type="button" class="quiet" aria-label=${t("Remove condition {number}", { number: index + 1 })} onClick=${remove}>✕</button></fieldset>`;
}
