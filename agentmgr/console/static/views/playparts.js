/** What stands beside a conversation of the playground: who answers, the raw frames, the same as a program. */
import { html, useState } from "../vendor/preact.mjs";
import { call, pause, read } from "../api.js";
import { clockText, countText } from "../format.js";
import { t } from "../i18n.js";
import { Refused } from "../refusals.js";
import { address, currentRoute } from "../router.js";
import { curlSample, javascriptSample, pythonSample } from "../samples.js";
import { snapshot } from "../store.js";
import { Copy, Empty, Foreign, Panel, Status, Tabs, useLoaded } from "../ui.js";

/** @typedef {import("../conversation.js").Talk} Talk */

/** @type {Record<Talk["state"], [string, string]>} a mark and words */
const TALK_STATES = {
  idle: ["stopped", t("not connected")], connecting: ["starting", t("connecting")], open: ["running", t("connected")],
  cut: ["stopped", t("cut by you")], lost: ["lost", t("lost; reconnecting")], refused: ["failed", t("refused")], over: ["stopped", t("over")],
};

/** @param {{talk: Talk, conversation: import("../conversation.js").Conversation, service: string, begin: () => void}} props */
export function TalkFacts({ talk, conversation, service, begin }) {
  // Which instance it is only the gateway knows.
  const [connection] = useLoaded(async (signal) => {
    if (!talk.connectionId || talk.state !== "open") return null;
    const found = await read("/connections", { service, limit: 1000 }, signal);
    return found.items.find((/** @type {any} */ one) => one.connection_id === talk.connectionId) ?? null;
  }, [talk.connectionId, talk.state]);
  const [mark, words] = TALK_STATES[talk.state];
  const whole = talk.holes === 0
    ? t("{count} events of the session, none missing", { count: countText(talk.seq) })
    : t("{count} events of the session; {holes} are no longer kept", { count: countText(talk.seq), holes: countText(talk.holes) });
  return html`<${Panel} title=${t("Connection")}>
    <dl class="talkfacts"><dt>${t("State")}</dt><dd><${Status} value=${mark} text=${words} /></dd>
      <dt>${t("Answered by")}</dt><dd>${connection ? html`<a href=${address(["services", connection.service_name])}>${connection.service_name}</a> <code>${connection.instance_id}</code>` : "–"}</dd>
      ${connection?.rule && html`<dt>${t("Rule")}</dt><dd><a href=${address(["routing", "edit", connection.rule])}>${connection.rule}</a></dd>`}
      <dt>${t("Connection")}</dt><dd><code>${talk.connectionId ?? "–"}</code></dd>
      <dt>${t("Session")}</dt><dd>${talk.sessionId ? html`<a href=${address(["sessions", talk.sessionId])}><code>${talk.sessionId}</code></a>` : "–"}</dd>
      <dt>${t("Received")}</dt><dd><span role="status">${talk.seq > 0 ? whole : "–"}${talk.returns > 0 && html`<br />${t("reconnected: {count}; events received afterwards: {late}", { count: talk.returns, late: countText(talk.caughtUp) })}`}</span></dd></dl>
    <div class="actions">${["open", "connecting", "lost"].includes(talk.state)
      ? html`<button type="button" onClick=${() => conversation.cut()} title=${t("Closes the WebSocket, as a lost network would; the agent goes on.")}>${t("Cut the connection")}</button>`
      : html`<button type="button" class="primary" disabled=${talk.state === "over"} onClick=${() => conversation.connect()}>${talk.seq > 0 ? t("Reconnect") : t("Connect")}</button>`}
      ${talk.sessionId && html`<button type="button" onClick=${begin}>${t("New session")}</button>`}</div></${Panel}>`;
}

/**
 * A browser does not say why a handshake was refused: the manager does, who knows the rules and counts refusals.
 * @param {{talk: Talk, path: string, service: string, again: () => void}} props
 */
export function WhyRefused({ talk, path, service, again }) {
  const [before] = useState(() => ({ ...snapshot().overview?.refusals }));
  const [why] = useLoaded(async (signal) => {
    if (talk.why) return null;
    const decision = await call("POST", "/routing/test", { body: { path, headers: { Origin: location.origin } }, signal });
    if (decision.code) return decision;
    await pause(2500, signal); // until the next sample counts it
    const after = snapshot().overview?.refusals ?? {};
    const code = Object.keys(after).find((name) => after[name] > (before[name] ?? 0)) ?? null;
    return { code, reason: code ? "" : t("The gateway does not say why; is it open at this address?") };
  }, [talk.close]);
  const retry = html`<p><button type="button" onClick=${again}>${t("Try again")}</button></p>`;
  if (talk.why) return html`<div class="failed" role="alert"><p><${Foreign} text=${talk.why} most=${500} /></p>${retry}</div>`;
  if (!why) return html`<p class="failed" role="alert">${t("The gateway refused the connection; asking why …")}</p>`;
  return html`<div><${Refused} code=${why.code} reason=${why.reason} service=${service || why.service} />${retry}</div>`;
}

const FRAMES_DRAWN = 200;

/** The frames as they went over the wire. @param {{frames: import("../conversation.js").Frame[]}} props */
export function Frames({ frames }) {
  const [open, setOpen] = useState(false);
  const summary = html`<summary><h2>${t("Raw frames")}</h2> <span class="hint">${countText(frames.length)}</span></summary>`;
  return html`<details class="panel frames" open=${open} onToggle=${(/** @type {any} */ event) => setOpen(event.currentTarget.open)}>
    ${summary}${open && html`<${FrameList} frames=${frames} />`}</details>`;
}

/** @param {{frames: import("../conversation.js").Frame[]}} props */
function FrameList({ frames }) {
  const [text, setText] = useState("");
  const wanted = text.toLowerCase();
  const found = wanted ? frames.filter((one) => one.text.toLowerCase().includes(wanted)) : frames;
  const lines = () => found.map((one) => `${one.sent ? ">" : "<"} ${one.text}`).join("\n");
  return html`<div class="filters"><input type="search" aria-label=${t("Text in a frame")} placeholder=${t("Text in a frame")} value=${text} onInput=${(/** @type {any} */ event) => setText(event.target.value)} />
      <${Copy} text=${lines()} label=${t("Copy {count} frames", { count: found.length })} /></div>
    ${found.length === 0 && html`<${Empty}>${t("None.")}</${Empty}>`}
    ${found.length > FRAMES_DRAWN && html`<p class="hint">${t("The last {count}.", { count: FRAMES_DRAWN })}</p>`}
    <ol>${found.slice(-FRAMES_DRAWN).reverse().map((one) => html`<li key=${one.number}><details><summary><span class="hint">${clockText(one.at)}</span>${" "}
      <strong class=${one.sent ? "sent" : ""} title=${one.sent ? t("sent") : t("received")}>${one.sent ? "→" : "←"}</strong> <code><${Foreign} text=${one.event} most=${100} /></code></summary>
      <pre class="code"><${Foreign} text=${one.text} most=${4000} /></pre></details></li>`)}</ol>`;
}

/** @param {{which: string, of: import("../samples.js").SampleOf}} props */
export function SampleCode({ which, of }) {
  const { path, query } = currentRoute();
  const to = (/** @type {string} */ code) => address(path, { ...Object.fromEntries(query), code });
  const make = { curl: curlSample, python: pythonSample, javascript: javascriptSample }[which] ?? pythonSample;
  const text = make(of);
  return html`<${Panel} title=${t("The same in a program")} actions=${html`<${Copy} text=${text} />`}>
    <${Tabs} label=${t("The same in a program")} now=${which} tabs=${[["python", "Python", to("python")], ["javascript", "JavaScript", to("javascript")], ["curl", "curl", to("curl")]]} />
    ${which === "curl" && !of.session && html`<p class="hint">${t("It speaks into a session that there is: connect first.")}</p>`}
    <pre class="code sample" tabindex="0"><code>${text}</code></pre></${Panel}>`;
}
