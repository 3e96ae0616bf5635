/** The test bench: a client as it might come, and what each rule makes of it. */
import { html } from "../vendor/preact.mjs";
import { call, pause } from "../api.js";
import { commandText, countText } from "../format.js";
import { t } from "../i18n.js";
import { Refused } from "../refusals.js";
import { address, goQuery } from "../router.js";
import { ConditionText, strategyText } from "../rules.js";
import { useStore } from "../store.js";
import { CommandLine, Field, Foreign, Panel, Status, useLoaded } from "../ui.js";

/** @type {Record<string, [string, string]>} a mark and words for each verdict */
const VERDICTS = {
  decides: ["completed", t("decides")],
  comes_later: ["stopped", t("matches, but an earlier one decides")],
  no_match: ["failed", t("does not match")],
  disabled: ["stopped", t("not in use")],
  unusable: ["degraded", t("cannot be used: one of its conditions is invalid")],
};

/**
 * `Name: value` lines as headers, and the first line that is none.
 * @param {string} text
 * @returns {{headers: Record<string, string>, wrong: string | null}}
 */
export function headersOf(text) {
  /** @type {Record<string, string>} */
  const headers = {};
  for (const line of text.split("\n").map((one) => one.trim()).filter(Boolean)) {
    const colon = line.indexOf(":");
    if (colon < 1) return { headers, wrong: line };
    const name = line.slice(0, colon).trim();
    const value = line.slice(colon + 1).trim();
    headers[name] = name in headers ? `${headers[name]}, ${value}` : value;
  }
  return { headers, wrong: null };
}

/** @param {{route: import("../router.js").Route, rules: any[] | undefined}} props */
export function Bench({ route, rules }) {
  const path = route.query.get("path") ?? "/";
  const ip = route.query.get("ip") ?? "127.0.0.1";
  const typed = route.query.get("headers") ?? "";
  const { headers, wrong } = headersOf(typed);
  const services = useStore((all) => all.services);
  const state = [...services.values()].map((one) => `${one.name} ${one.status} ${one.ready}`).join();
  const made = rules?.map((one) => `${one.rule_id} ${one.version}`).join();
  const [decision, problem] = useLoaded(async (signal) => {
    await pause(120, signal); // while the user types
    return call("POST", "/routing/test", { body: { path, client_ip: ip, headers }, signal });
  }, [path, ip, typed, state, made]);
  const change = (/** @type {string} */ name) => (/** @type {any} */ event) => goQuery({ [name]: event.target.value });
  const command = commandText("routes", "test", "--path", path, ...(ip === "127.0.0.1" ? [] : ["--client-ip", ip]),
    ...Object.entries(headers).flatMap(([name, value]) => ["--header", `${name}: ${value}`]));
  return html`<${Panel} title=${t("Try a client")}>
    <${Field} label=${t("Path, with its query")} name="bench-path" problem=${problem?.fields.get("path")}>
      <input id="bench-path" class="mono" value=${path} onInput=${change("path")} spellcheck=${false} /></${Field}>
    <${Field} label=${t("Headers, one on each line")} name="bench-headers" problem=${wrong ? t("“{line}” is not Name: value", { line: wrong }) : problem?.fields.get("headers")}>
      <textarea id="bench-headers" class="mono" rows="3" placeholder="User-Agent: Mobile" value=${typed} onInput=${change("headers")} spellcheck=${false}></textarea></${Field}>
    <${Field} label=${t("Client's address")} name="bench-ip" problem=${problem?.fields.get("client_ip")}>
      <input id="bench-ip" class="mono" value=${ip} onInput=${change("ip")} spellcheck=${false} /></${Field}>
    ${problem && problem.fields.size === 0 && html`<p class="problem" role="alert">${problem.message}</p>`}
    ${decision && html`<div aria-live="polite" class=${problem ? "off" : ""}><${Decision} decision=${decision} /></div>`}
    <p class="hint">${t("The same in a terminal:")}</p><${CommandLine} text=${command} />
    <p><a class="button" href=${address(["playground"], { path })}>${t("Connect like this in the playground")}</a></p></${Panel}>`;
}

/** @param {{decision: any}} props */
const Decision = ({ decision }) => html`${decision.chosen
    ? html`<p class="outcome"><${Status} value="completed" text=${t("This client gets")} /> <a href=${address(["services", decision.service])}>${decision.service}</a>${" "}
        <code>${decision.chosen}</code></p>`
    : html`<${Refused} code=${decision.code} reason=${decision.reason} service=${decision.service} />`}
  ${decision.chosen && html`<p class="hint"><${Foreign} text=${decision.reason} most=${500} /></p>
    <p class="hint">${t("Chosen among {count} instances: {strategy}", { count: countText(decision.candidates.length), strategy: strategyText(decision.strategy) })}</p>`}
  ${decision.rules?.length > 0 && html`<ol class="verdicts">${decision.rules.map((/** @type {any} */ rule) => html`<${RuleVerdict} key=${rule.rule_id} rule=${rule} />`)}</ol>`}`;

/** @param {{rule: any}} props */
function RuleVerdict({ rule }) {
  const [mark, words] = VERDICTS[rule.verdict] ?? ["stopped", rule.verdict];
  return html`<li class=${rule.verdict === "decides" ? "decides" : ""}><p><strong>${rule.name}</strong> <${Status} value=${mark} text=${words} /></p>
    <ul>${rule.conditions.map((/** @type {any} */ one) => html`<li>
      <${Status} value=${one.holds ? "completed" : "failed"} text=${html`<${ConditionText} condition=${one} />`} /> —${" "}
      <small>${one.seen.length ? t("the request has") : t("the request has none")} ${one.seen.map((/** @type {string} */ seen) => html`<code><${Foreign} text=${seen} most=${200} /></code> `)}</small></li>`)}</ul></li>`;
}
