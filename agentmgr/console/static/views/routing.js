/** Which client goes where: the rules in their order, and a bench on which a client can be tried out. */
import { html } from "../vendor/preact.mjs";
import { call } from "../api.js";
import { ask } from "../dialog.js";
import { commandText, countText } from "../format.js";
import { t } from "../i18n.js";
import { RefusalHelp } from "../refusals.js";
import { address } from "../router.js";
import { changeRule, ConditionText, movedRule, moveCommand, rulePath, strategyText, useHits, useRules } from "../rules.js";
import { can, useStore } from "../store.js";
import { Action, attempt, Empty, Failed, Foreign, Head, Panel, Status } from "../ui.js";
import { Bench } from "./rulebench.js";
import { RuleForm } from "./ruleform.js";

/** @param {{route: import("../router.js").Route}} props */
export function Routing({ route }) {
  const [rules, problem, again] = useRules();
  const [, place, name] = route.path;
  if (problem && !rules) return html`<${Head} title=${t("Routing")} /><${Failed} problem=${problem} again=${again} />`;
  if (place === "new" && can("admin")) return html`<${RuleForm} key="new" />`;
  if (place === "edit" && can("admin")) {
    const rule = rules?.find((one) => one.name === name || one.rule_id === name);
    if (rules && !rule) return html`<${Head} title=${t("There is no such rule.")} /><p><a href="#/routing">${t("Routing")}</a></p>`;
    return rule ? html`<${RuleForm} key=${rule.rule_id} rule=${rule} />` : html`<${Head} title=${t("Routing")} />`;
  }
  return html`<${Head} title=${t("Routing")}>
      ${can("admin") && html`<a class="button primary" href="#/routing/new">${t("New rule")}</a>`}</${Head}>
    <div class="columns routing"><div><${Rules} rules=${rules} /><${Refusals} /></div>
      <div>${can("admin") && html`<${Bench} route=${route} rules=${rules} />`}</div></div>`;
}

/** @param {{rules: any[] | undefined}} props */
function Rules({ rules }) {
  const hits = useHits();
  if (!rules) return html`<${Panel} title=${t("Rules")}><${Empty}>${t("Loading …")}</${Empty}></${Panel}>`;
  const rest = html`<li class="rule rest"><p>${t("All other clients: any service, in turn, if it is not named by /services/NAME.")}
    ${hits && html` <span class="hint">${t("{count} in the last hour", { count: countText(hits.default) })}</span>`}</p></li>`;
  return html`<${Panel} title=${t("Rules, in order")}>
    ${rules.length === 0 && html`<p class="hint">${t("There are no rules. A rule sends the clients that match its conditions to certain services.")}</p>`}
    <ol class="rules">${rules.map((rule, index) => html`<${Rule} key=${rule.rule_id} rules=${rules} index=${index} hits=${hits} />`)}${rest}</ol></${Panel}>`;
}

/** @param {{rules: any[], index: number, hits: any}} props */
function Rule({ rules, index, hits }) {
  const rule = rules[index];
  const services = useStore((all) => all.services);
  const known = (/** @type {string} */ target) =>
    [...services.values()].some((one) => one.name === target || one.service_id === target);
  const toggle = rule.enabled ? "disable" : "enable";
  const remove = async () => {
    const command = commandText("routes", "remove", rule.name);
    const text = t("Its clients are then decided by the rules after it. Open connections stay.");
    if (!(await ask({ title: t("Delete the rule {name}?", { name: rule.name }), text, command, confirm: t("Delete"), danger: true }))) return;
    await attempt(() => call("DELETE", rulePath(rule), { version: rule.version }), { command });
  };
  return html`<li class="rule ${rule.enabled ? "" : "off"}">
    <header><strong><a href=${address(["routing", "edit", rule.name])}>${rule.name}</a></strong>
      <${Status} value=${rule.enabled ? "running" : "stopped"} text=${rule.enabled ? t("in use") : t("not in use")} />
      <span class="hint">${t("priority {number}", { number: rule.priority })}</span>
      ${hits && html`<span class="hint">${t("{count} in the last hour", { count: countText(hits.rules?.[rule.name] ?? 0) })}</span>`}</header>
    ${rule.description && html`<p class="hint"><${Foreign} text=${rule.description} most=${300} /></p>`}
    <p>${rule.conditions.length === 0 ? t("Every client") : rule.conditions.map((/** @type {any} */ one, /** @type {number} */ at) => html`${at > 0 && html` ${t("and")} `}
      <${ConditionText} condition=${one} />`)} → ${rule.target_services.map((/** @type {string} */ target) => html`<${Target} name=${target} known=${known(target)} /> `)}
      ${rule.target_tags.map((/** @type {string} */ tag) => html`<span class="tag">#<${Foreign} text=${tag} /></span> `)}
      ${!rule.target_services.length && !rule.target_tags.length && t("any service")}</p>
    <p class="hint">${strategyText(rule.target_strategy)}${rule.fallback_strategy && `; ${t("if none of them can: all services, {strategy}", { strategy: strategyText(rule.fallback_strategy) })}`}</p>
    ${can("admin") && html`<div class="actions">
      <${Move} rules=${rules} from=${index} to=${index - 1} label="↑" title=${t("Try {name} earlier", { name: rule.name })} />
      <${Move} rules=${rules} from=${index} to=${index + 1} label="↓" title=${t("Try {name} later", { name: rule.name })} />
      <${Action} label=${rule.enabled ? t("Disable") : t("Enable")} command=${commandText("routes", toggle, rule.name)}
        run=${() => changeRule(rule, { enabled: !rule.enabled })} />
      <a class="button" href=${address(["routing", "edit", rule.name])}>${t("Edit")}</a>
      <button type="button" class="danger" onClick=${remove}>${t("Delete")}</button></div>`}</li>`;
}

/** A rule may name services that do not exist yet, and may be misspelled. @param {{name: string, known: boolean}} props */
const Target = ({ name, known }) => (known
  ? html`<a href=${address(["services", name])}>${name}</a>`
  : html`<span><${Foreign} text=${name} most=${100} /> <${Status} value="degraded" text=${t("no such service")} /></span>`);

/** @param {{rules: any[], from: number, to: number, label: string, title: string}} props */
function Move({ rules, from, to, label, title }) {
  const possible = to >= 0 && to < rules.length;
  const move = async () => {
    const moves = movedRule(rules, from, to);
    // One after the other: the order is right, or as it was, after each.
    await attempt(async () => {
      for (const [rule, priority] of moves) await changeRule(rule, { priority });
    }, { command: moveCommand(moves) });
  };
  return html`<button type="button" aria-label=${title} title=${title} disabled=${!possible} onClick=${move}>${label}</button>`;
}

/** Whom the gateway has turned away since the manager started. */
function Refusals() {
  const refusals = Object.entries(useStore((all) => all.overview)?.refusals ?? {}).sort((a, b) => b[1] - a[1]);
  return html`<${Panel} title=${t("Refused clients, since the manager started")}>${refusals.length === 0
    ? html`<${Empty}>${t("None.")}</${Empty}>`
    : html`<dl class="refusals">${refusals.map(([code, count]) => html`<div key=${code}><dt><code>${code}</code> <strong>${countText(count)}</strong></dt>
        <dd><${RefusalHelp} code=${code} /></dd></div>`)}</dl>`}</${Panel}>`;
}
