/** An event of the manager's log as a sentence, for a person who was just woken up. */
import { durationText, visibleText } from "./format.js";
import { t } from "./i18n.js";

/** What stands between a reason and the end of the log, in `error_message`. */
const LAST_OUTPUT = "; its last output:\n";
const GIVEN_UP = /^(.*?)( \((?:given up after [^)]*|its policy is never to restart)\))?$/s; // behind the output
const MOST_QUOTED = 160; // characters of what a program said last

/** Whom it is about. @param {any} event @param {Map<string, any>} services @returns {string} */
export function eventName(event, services) {
  const { service_id: id, detail = {} } = event;
  return visibleText(String(services.get(id)?.name ?? detail.name ?? id ?? ""));
}

/** Its mark and colour: a word that `Status` knows. @param {any} event @returns {string} */
export function eventStatus({ kind, detail = {} }) {
  if (kind === "instance.health") return String(detail.health);
  if (kind.startsWith("instance.")) return kind.slice("instance.".length);
  if (kind === "session.closed" && detail.ended_by === "backend" && detail.code !== 1000) return "degraded";
  return "stopped";
}

/** @param {any} event @param {Map<string, any>} services @returns {string} */
export function eventText(event, services) {
  const { kind, detail = {} } = event;
  const name = eventName(event, services);
  const several = detail.slot > 0 || services.get(event.service_id)?.instances > 1;
  const who = several && detail.slot !== undefined ? `${name} [${detail.slot}]` : name;
  const say = SENTENCES[kind];
  return say ? say(who, detail, event) : [kind, name].filter(Boolean).join(" · ");
}

/** @type {Record<string, (who: string, detail: any, event: any) => string>} */
const SENTENCES = {
  "service.registered": (who) => t("{who} was registered", { who }),
  "service.changed": (who, { fields }) =>
    t("{who} was changed: {fields}", { who, fields: visibleText(String(fields ?? "")).replaceAll(",", ", ") }),
  "service.unregistered": (who) => t("{who} was unregistered", { who }),
  "instance.starting": (who) => t("{who} is starting", { who }),
  "instance.running": (who, { pid }) => (pid ? t("{who} is ready, as process {pid}", { who, pid }) : t("{who} is ready", { who })),
  "instance.unhealthy": (who, detail) => withWhy(t("{who} fails its health checks", { who }), detail),
  "instance.draining": (who) => t("{who} is draining: no new clients; those it has may finish", { who }),
  "instance.stopping": (who) => t("{who} is stopping", { who }),
  "instance.stopped": (who, detail) => withWhy(t("{who} has stopped", { who }), detail),
  "instance.completed": (who) => t("{who} has completed", { who }),
  "hook.failed": (who, { event, reason }) => t("{who} could not report {event}: {reason}", {
    who, event: visibleText(String(event)), reason: visibleText(String(reason)) }),
  "hook.asked": (who) => t("a question of {who} was passed on", { who }),
  "service.reloaded": (who, { files }) => t("{who} runs the new code of {files}", { who, files: visibleText(String(files)) }),
  "service.scaled": (who, { from, to, reason }) => t("{who} goes from {from} to {to} instances: {reason}", {
    who, from, to, reason: visibleText(String(reason ?? "")) }),
  "service.reload_failed": (who, { files, reason }) => withWhy(t("{files} of {who} does not start; the code before serves on", {
    who, files: visibleText(String(files)) }), { error_message: reason }),
  "service.woken": (who, { reason }) => withWhy(t("{who} is woken", { who }), { error_message: reason }),
  "service.asleep": (who, { reason }) => withWhy(t("{who} fell asleep", { who }), { error_message: reason }),
  "job.skipped": (who) => t("a run of {who} was skipped: the one before still ran", { who }),
  "job.missed": (who) => t("{who} missed a run while no manager ran", { who }),
  "instance.backoff": (who, detail, { at }) => {
    const wait = (Date.parse(detail.next_restart_at) - Date.parse(at)) / 1000;
    const next = Number.isFinite(wait) ? t("restart in {time}", { time: durationText(Math.max(wait, 0)) }) : t("it will be restarted");
    return withWhy(t("{who} crashed", { who }), detail, next);
  },
  "instance.error": (who, detail) => withWhy(t("{who} has failed, and is not restarted", { who }), detail),
  "instance.health": (who, detail) => {
    if (detail.health === "healthy") return t("{who} is healthy again", { who });
    return withWhy(detail.health === "degraded" ? t("{who} is degraded", { who }) : t("{who}: its health is not known", { who }), detail);
  },
  "session.closed": (who, { ended_by: by, code, reason, duration_s: seconds }) => {
    const time = durationText(seconds);
    const text = by === "client" ? t("a client left {who} after {time}", { who, time })
      : by === "backend" ? t("{who} ended a client's connection after {time}", { who, time })
        : t("the gateway ended a connection to {who} after {time}", { who, time });
    const how = [code === 1000 ? "" : code ?? t("without a close code"), visibleText(String(reason ?? ""))];
    return [text, how.filter(Boolean).join(" ")].filter(Boolean).join(": ");
  },
  "session.resumed": (who) => t("a client's connection continues at another instance of {who}", { who }),
  "sessions.pruned": (who, { unused = 0, for_room: room = 0 }) =>
    t("stored sessions of {who} were erased: {unused} unused, {room} for room", { who, unused, room }),
  "rule.created": (who) => t("the routing rule {who} was added", { who }),
  "rule.changed": (who) => t("the routing rule {who} was changed", { who }),
  "rule.deleted": (who) => t("the routing rule {who} was deleted", { who }),
  "node.joined": (_, { node, address }) => t("node {node} has joined, at {address}", { node: visibleText(String(node)), address: visibleText(String(address)) }),
  "node.linked": (_, { node }) => t("node {node} is linked", { node: visibleText(String(node)) }),
  "node.cordoned": (_, detail) => nodeText(t("nothing new is placed on node {node}", { node: visibleText(String(detail.node)) }), detail),
  "node.drained": (_, { node, moved = 0, left = 0 }) =>
    t("node {node} was drained: {moved} instances moved, {left} left", { node: visibleText(String(node)), moved, left }),
  "sessions.moved": (who, { sessions = 0, from, to }) =>
    t("{sessions} sessions of {who} moved from node {from} to node {to}", { who, sessions, from: visibleText(String(from)), to: visibleText(String(to)) }),
  "node.silent": (_, detail) => nodeText(t("nothing is heard of node {node}", { node: visibleText(String(detail.node)) }), detail),
  "node.lost": (_, detail) => nodeText(t("node {node} is lost, and what ran there starts elsewhere", { node: visibleText(String(detail.node)) }), detail),
  "node.forgotten": (_, { node }) => t("node {node} was forgotten", { node: visibleText(String(node)) }),
  "token.created": (who) => t("the token {who} was created", { who }),
  "token.revoked": (who) => t("the token {who} was revoked", { who }),
  "token.policy_changed": (_, { api, gateway }) => t("tokens are required now: API {api}, gateway {gateway}", {
    api: api ? t("yes") : t("no"), gateway: gateway ? t("yes") : t("no") }),
};

/** The sentence with its reason, if there is one. @param {string} sentence @param {any} detail */
function nodeText(sentence, { reason }) {
  return reason ? t("{sentence}: {why}", { sentence, why: visibleText(String(reason)) }) : sentence;
}

/**
 * The sentence with its reason, what comes next, and what the program said last: that is what the reader looks for.
 * @param {string} sentence
 * @param {any} detail
 * @param {string} [next]
 */
function withWhy(sentence, { error_message: message, last_exit: exit, status }, next = "") {
  const [, text, giving = ""] = /** @type {RegExpExecArray} */ (GIVEN_UP.exec(String(message ?? "")));
  const [reason, output = ""] = text.split(LAST_OUTPUT);
  const ended = /^ended (unasked|before it was ready)/.test(reason) && exit;
  const why = ended ? exit : reason || (status === "stopped" && exit !== "exit code 0" ? exit : "");
  const said = output.trimEnd().split("\n").at(-1)?.trim().slice(0, MOST_QUOTED);
  if (why) sentence = t("{sentence}: {why}", { sentence, why: visibleText(/** @type {string} */ (String(why).trim().split("\n").at(-1))) + giving });
  if (next) sentence = t("{sentence}; {next}", { sentence, next });
  return said ? `${sentence} — “${visibleText(said)}”` : sentence;
}
