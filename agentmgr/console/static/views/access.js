/** Keys: tokens for the API and the gateway, tickets for one connection, and who needs one. */
import { html, useState } from "../vendor/preact.mjs";
import { call, Problem, read, readAll } from "../api.js";
import { ask, Modal } from "../dialog.js";
import { clockText, commandText } from "../format.js";
import { t } from "../i18n.js";
import { can, snapshot, useStore } from "../store.js";
import { Table } from "../table.js";
import { Action, Ago, attempt, CommandLine, Copy, Empty, Failed, Field, Head, Panel, Status, useLoaded } from "../ui.js";

// A key is shown once, over whatever page: the first token makes this page ask for a login, and must not hide its key.

/** @type {{name: string, key: string} | null} */
let newKey = null;
/** @type {(() => void) | null} */
let redrawKey = null;

/** @param {{name: string, key: string} | null} key */
function showKey(key) {
  newKey = key;
  redrawKey?.();
}

export function ShownKey() {
  const [, redraw] = useState(0);
  redrawKey = () => redraw((count) => count + 1);
  if (!newKey) return null;
  const { name, key } = newKey;
  return html`<${Modal} title=${t("The key of {name}", { name })} close=${() => showKey(null)}>
    <p><strong>${t("It is shown this once: only a hash of it is kept.")}</strong></p>
    <div class="command"><code class="key">${key}</code><${Copy} text=${key} /></div>
    <p class="hint">${t("For programs:")} <code>Authorization: Bearer …</code></p>
    <div class="buttons"><button type="button" class="primary" onClick=${() => showKey(null)}>${t("I have saved it")}</button></div></${Modal}>`;
}

/** Ends this browser's login, where it has one. */
export function LogOut() {
  const me = useStore((all) => all.me);
  if (!isLogin(me?.token)) return null;
  const leave = async () => {
    await call("POST", "/console/logout");
    location.reload(); // what is on the page is gone with it
  };
  return html`<button type="button" onClick=${() => attempt(leave)}>${t("Log out")}</button>`;
}

/** A token that was made for a login here. @param {string | null | undefined} name */
const isLogin = (name) => /^console-[0-9a-f]{12}$/.test(name ?? "");

export function Access() {
  const [loaded, problem, again] = useLoaded(async (signal) => {
    const [tokens, policy] = await Promise.all([readAll("/tokens", {}, { signal }), read("/token-policy", {}, signal)]);
    return { tokens, policy };
  }, []);
  return html`<${Head} title=${t("Access")}><${LogOut} /></${Head}>
    ${problem && html`<${Failed} problem=${problem} again=${again} />`}
    ${loaded && html`<${Policy} policy=${loaded.policy} tokens=${loaded.tokens} again=${again} />
      <${Tokens} tokens=${loaded.tokens} again=${again} />`}
    <div class="columns">${loaded && html`<${NewTokenForm} first=${!loaded.policy.api} again=${again} />`}<${TicketForm} /></div>`;
}

/** Who has to show a key. @param {{policy: any, tokens: any[], again: () => void}} props */
function Policy({ policy, tokens, again }) {
  const doors = [
    { name: "api", label: t("API and console"), free: t("only the user who runs the manager, and root"), opens: tokens.length > 0 },
    { name: "gateway", label: t("Gateway"), free: t("whoever reaches it; on loopback: every user of this machine"), opens: tokens.some((one) => one.scopes.some((/** @type {string} */ scope) => /^(connect|admin)/.test(scope))) },
  ];
  const change = (/** @type {string} */ name, /** @type {boolean} */ on) => async () => {
    await call("PATCH", "/token-policy", { body: { [name]: on } });
    again();
  };
  return html`<${Panel} title=${t("Who needs a token")}><ul class="doors">${doors.map(({ name, label, free, opens }) => {
    const asks = policy[name];
    return html`<li><strong>${label}</strong>
      <${Status} value=${asks ? "completed" : "degraded"} text=${asks ? t("requires a token") : t("requires no token")} />
      ${!asks && html`<small>${t("lets in {whom}", { whom: free })}</small>`}
      ${asks && !opens && html`<${Status} value="failed" text=${t("and no token opens it")} />`}
      <${Action} label=${asks ? t("Stop requiring one") : t("Require a token")} danger=${asks} run=${change(name, !asks)}
        command=${commandText("tokens", "require", asks ? "off" : "on", `--${name}`)}
        ask=${asks ? t("lets in {whom}", { whom: free }) : t("From then on, clients without a token are refused.")} /></li>`;
  })}</ul></${Panel}>`;
}

/** @param {{tokens: any[], again: () => void}} props */
function Tokens({ tokens, again }) {
  const mine = snapshot().me?.token;
  const revoke = async (/** @type {any} */ row) => {
    const command = commandText("tokens", "revoke", row.name);
    const text = t("It opens nothing from then on, and what it has opened ends at once: connections through the gateway "
      + "(close code 1008), followed events and logs, requests that wait. This cannot be taken back.");
    if (!(await ask({ title: t("Revoke {name}", { name: row.name }), text, command, confirm: t("Revoke"), danger: true }))) return;
    const path = `/tokens/${encodeURIComponent(row.token_id)}`;
    if (await attempt(() => call("DELETE", path), { command, done: t("{name} is revoked.", { name: row.name }) })) again();
  };
  /** @type {import("../table.js").Column[]} */
  const columns = [
    { name: "name", label: t("Name"), kind: "fill", by: (row) => row.name, cell: (row) => html`${row.name} ${
      row.name === mine ? html`<${Status} value="live" text=${t("this browser")} />` : isLogin(row.name) && html`<small>${t("a login")}</small>`}` },
    { name: "scopes", label: t("Scopes"), by: (row) => row.scopes.join(), cell: (row) => html`<code title=${row.scopes.join(", ")}>${row.scopes.join(", ")}</code>` },
    { name: "created", label: t("Created"), kind: "wide", by: (row) => row.created_at, cell: (row) => html`<${Ago} at=${row.created_at} />` },
    { name: "expires", label: t("Ends"), by: (row) => row.expires_at ?? "9", cell: (row) => row.expires_at
      ? Date.parse(row.expires_at) < Date.now() ? html`<${Status} value="failed" text=${t("expired")} />` : html`<${Ago} at=${row.expires_at} />`
      : t("never") },
    { name: "revoke", label: "", cell: (row) => row.name === mine && isLogin(mine) ? html`<${LogOut} />`
      : html`<button type="button" class="danger" onClick=${() => revoke(row)} aria-label=${t("Revoke {name}", { name: row.name })}>${t("Revoke")}</button>` },
  ];
  return html`<${Panel} title=${t("Tokens")}>${tokens.length
    ? html`<${Table} label=${t("Tokens")} columns=${columns} rows=${tokens} sort="name" keyOf=${(/** @type {any} */ row) => row.token_id} empty="" />`
    : html`<${Empty}>${t("There are no tokens: the API and the gateway require none.")}</${Empty}>`}</${Panel}>`;
}

const SCOPES = /** @type {[string, string][]} */ ([
  ["admin", t("everything")],
  ["read", t("to see all but what is said in sessions")],
  ["sessions", t("to see that too, and to speak and answer there")],
  ["connect", t("to connect to every service through the gateway")],
]);

/** @param {{first: boolean, again: () => void}} props `first`: the API requires no token yet */
function NewTokenForm({ first, again }) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState(/** @type {Set<string>} */ (new Set(["read"])));
  const [only, setOnly] = useState("");
  const [days, setDays] = useState("90");
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const services = useStore((all) => all.services);
  const toggle = (/** @type {string} */ scope) => {
    const next = new Set(scopes);
    if (!next.delete(scope)) next.add(scope);
    setScopes(next);
  };
  const wanted = [...scopes, ...only.split(/[\s,]+/).filter(Boolean).map((one) => `connect:${one}`)];
  const command = commandText("tokens", "create", name || "NAME", ...wanted.flatMap((scope) => ["--scope", scope]),
    ...(days ? ["--expires-days", days] : []));
  const make = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (first && !(await ask({ title: t("Make a token"), command, confirm: t("Make a token"), text: t("From then on the API requires a token, "
      + "and this page a login: agentmgr console, in a terminal, opens it again. The key is shown first.") }))) return;
    try {
      const made = await call("POST", "/tokens", { body: { name, scopes: wanted, expires_in_days: days ? Number(days) : null } });
      showKey({ name: made.name, key: made.key });
      setName("");
      setProblem(null);
      again();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setProblem(error);
    }
  };
  const wrong = (/** @type {string} */ field) => problem?.fields.get(field);
  return html`<${Panel} title=${t("Make a token")}><form onSubmit=${make}>
    <${Field} label=${t("Name")} name="token-name" problem=${wrong("name") ?? (problem && !problem.fields.size ? problem.message : undefined)}>
      <input id="token-name" required value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} /></${Field}>
    <fieldset class="field ${wrong("scopes") ? "wrong" : ""}"><legend>${t("It may")}</legend>
      ${SCOPES.map(([scope, words]) => html`<label class="check"><input type="checkbox" checked=${scopes.has(scope)}
        onChange=${() => toggle(scope)} /> <span><code>${scope}</code> ${words}</span></label>`)}
      ${wrong("scopes") && html`<p class="problem" role="alert">${wrong("scopes")}</p>`}</fieldset>
    <${Field} label=${t("Or connect to these services only")} name="token-services" hint=${t("Names, separated by commas.")}>
      <input id="token-services" list="service-names" value=${only} onInput=${(/** @type {any} */ event) => setOnly(event.target.value)} />
      <datalist id="service-names">${[...services.values()].map((row) => html`<option value=${row.name} />`)}</datalist></${Field}>
    <${Field} label=${t("Valid for how many days")} name="token-days" problem=${wrong("expires_in_days")} hint=${t("Empty: for ever.")}>
      <input id="token-days" inputmode="decimal" value=${days} onInput=${(/** @type {any} */ event) => setDays(event.target.value)} /></${Field}>
    <div class="buttons"><button class="primary" title=${command} disabled=${!name || !wanted.length}>${t("Make a token")}</button></div></form></${Panel}>`;
}

/** A key to the gateway for those who cannot send a token: a browser's WebSocket. */
function TicketForm() {
  const [service, setService] = useState("");
  const [made, setMade] = useState(/** @type {any} */ (null));
  const services = useStore((all) => all.services);
  if (!can("connect")) return null;
  const command = commandText("tokens", "ticket", ...(service ? ["--service", service] : []));
  const make = async () => setMade(await call("POST", "/tickets", { body: service ? { service } : {} }));
  const gateway = snapshot().me?.gateway?.[0];
  const url = made && gateway && `${gateway}${service ? `/services/${encodeURIComponent(service)}` : ""}?ticket=${encodeURIComponent(made.ticket)}`;
  return html`<${Panel} title=${t("A ticket for the gateway")}>
    <p class="hint">${t("It opens the gateway once, within a short time, for clients that cannot send a token, such as a page in a browser.")}</p>
    <${Field} label=${t("Service")} name="ticket-service"><select id="ticket-service" value=${service}
      onChange=${(/** @type {any} */ event) => (setService(event.target.value), setMade(null))}>
      <option value="">${t("Every service")}</option>
      ${[...services.values()].map((row) => row.name).sort().map((name) => html`<option value=${name}>${name}</option>`)}</select></${Field}>
    <div class="buttons"><${Action} label=${t("Make a ticket")} scope="connect" command=${command} run=${make} /></div>
    ${made && html`<${CommandLine} text=${url ?? made.ticket} />
      <p class="hint">${t("Valid for one connection, until {time}.", { time: clockText(made.expires_at) })}</p>`}</${Panel}>`;
}
