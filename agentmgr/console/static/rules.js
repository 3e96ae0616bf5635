/** Routing rules: what they say, in which order they are tried, and how that order is changed. */
import { html, useEffect, useState } from "./vendor/preact.mjs";
import { call, read, readAll } from "./api.js";
import { commandText } from "./format.js";
import { t } from "./i18n.js";
import { useStore } from "./store.js";
import { Foreign, useLoaded } from "./ui.js";

/** @typedef {{field: string, operator: string, value: string | string[], case_sensitive?: boolean}} Condition */

/** What a condition can look at; of the last three any NAME. */
export const RULE_FIELDS = ["path", "host", "user_agent", "origin", "subprotocol", "client_ip", "client_port", "query.NAME", "header.NAME", "cookie.NAME"];

/** These compare with several values, which are typed with commas between. */
export const LIST_OPERATORS = new Set(["in_list", "not_in_list", "in_cidr"]);

/** These compare with nothing. */
export const BARE_OPERATORS = new Set(["exists", "not_exists"]);

/** @type {Record<string, string>} */
const OPERATORS = {
  equals: t("is"), not_equals: t("is not"), contains: t("contains"), not_contains: t("does not contain"),
  starts_with: t("begins with"), ends_with: t("ends with"), regex_match: t("matches the pattern"),
  in_list: t("is one of"), not_in_list: t("is none of"), in_cidr: t("is in the network"),
  exists: t("is present"), not_exists: t("is absent"),
};

/** @type {Record<string, string>} */
const STRATEGIES = {
  round_robin: t("in turn, by weight"), least_connections: t("the one with the fewest connections, by weight"),
  weighted_random: t("at random, by weight"), hash_based: t("the same client always the same one"),
  tag_based: t("in turn among those with the tags"), manual: t("the first that can, in the order of the targets"),
};

/** @param {string} name */
export const operatorText = (name) => OPERATORS[name] ?? name;

/** @param {string} name */
export const strategyText = (name) => STRATEGIES[name] ?? name;

/** @param {string | readonly string[]} value */
export const valueOf = (value) => (typeof value === "string" ? value : value.join(", "));

/** @param {{condition: Condition}} props */
export const ConditionText = ({ condition: { field, operator, value, case_sensitive = true } }) => html`<span class="condition">
  <code><${Foreign} text=${field} most=${100} /></code> ${operatorText(operator)} ${valueOf(value) && html`<code><${Foreign} text=${valueOf(value)} most=${200} /></code>`}
  ${!case_sensitive && html` <small>${t("upper and lower case alike")}</small>`}</span>`;

/** All rules in their order; read again when one was changed, by whomever. */
export function useRules() {
  const last = useStore((all) => all.events.findLast((/** @type {any} */ event) => event.kind.startsWith("rule."))?.event_id);
  return useLoaded((signal) => readAll("/routing/rules", {}, { signal }), [last]);
}

/** How many clients each rule has decided about in the last hour, by its name. */
export function useHits() {
  const [hits] = useLoaded((signal) => read("/routing/hits", {}, signal), [useTick(10_000)]);
  return hits;
}

/** Rises from time to time, while the page is seen. @param {number} ms */
function useTick(ms) {
  const [count, setCount] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || setCount((now) => now + 1), ms);
    return () => clearInterval(timer);
  }, []);
  return count;
}

/** @param {any} rule */
export const rulePath = (rule) => `/routing/rules/${encodeURIComponent(rule.rule_id)}`;

/** Changes a rule that no other person has changed meanwhile. @param {any} rule @param {object} changes */
export const changeRule = (rule, changes) => call("PATCH", rulePath(rule), { body: changes, version: rule.version });

const STEP = 10; // between the numbers, so that there is room for another rule

/**
 * The new priorities that put a rule at another place: its own alone, where there is a number between its neighbours.
 * @param {any[]} rules in their order
 * @param {number} from
 * @param {number} to
 * @returns {[any, number][]}
 */
export function movedRule(rules, from, to) {
  const order = rules.filter((_, index) => index !== from);
  order.splice(to, 0, rules[from]);
  const before = order[to - 1]?.priority;
  const after = order[to + 1]?.priority;
  if (before === undefined) return [[rules[from], after - STEP]];
  if (after === undefined) return [[rules[from], before + STEP]];
  if (after - before >= 2) return [[rules[from], Math.floor((before + after) / 2)]];
  return order.map((rule, index) => /** @type {[any, number]} */ ([rule, (index + 1) * STEP]))
    .filter(([rule, priority]) => rule.priority !== priority);
}

/** @param {[any, number][]} moves */
export const moveCommand = (moves) =>
  moves.map(([rule, priority]) => commandText("routes", "change", rule.name, "--priority", priority)).join(" && ");
