/** A place to talk to an agent as its clients do, by the gateway, and to see what goes over the wire. */
import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact.mjs";
import { call, read } from "../api.js";
import { Conversation } from "../conversation.js";
import { commandText } from "../format.js";
import { t } from "../i18n.js";
import { address, goQuery } from "../router.js";
import { can, snapshot, useStore } from "../store.js";
import { TurnView } from "../turnview.js";
import { CommandLine, Empty, Field, Foreign, Head, Panel, Status } from "../ui.js";
import { Frames, SampleCode, TalkFacts, WhyRefused } from "./playparts.js";
import { ServiceActions } from "./services.js";

const TURNS_DRAWN = 50; // the last ones

/** The address on the gateway. @param {string} service @param {string} path */
const pathOf = (service, path) => (service ? `/services/${encodeURIComponent(service)}${path === "/" ? "" : path}` : path);

/** Does the name in the browser's bar mean this machine? Then the gateway lets the page in as it is. */
const onThisMachine = () => /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(location.hostname);

/** @param {{route: import("../router.js").Route}} props */
export function Playground({ route }) {
  const me = useStore((all) => all.me);
  const gateway = me?.gateway?.[0];
  if (!gateway) return html`<${Head} title=${t("Playground")} /><${Panel} title=${t("The gateway is not open")}>
    <p>${t("Clients connect through the gateway. It opens together with the manager, or on its own:")}</p>
    <${CommandLine} text="agentmgr proxy --port 9090" /></${Panel}>`;
  const service = route.query.get("service") ?? "";
  const path = route.query.get("path") || "/";
  const protocols = route.query.get("protocols") ?? "";
  // Another place is another conversation. The session is not part of it: it is made there.
  return html`<${Head} title=${t("Playground")} />
    <${Place} service=${service} path=${path} protocols=${protocols} />
    <${Talking} key=${`${service} ${path} ${protocols}`} gateway=${gateway} service=${service} path=${pathOf(service, path)}
      protocols=${protocols.split(",").map((one) => one.trim()).filter(Boolean)} wanted=${route.query.get("session")} code=${route.query.get("code") ?? "python"} />`;
}

/** To whom. @param {{service: string, path: string, protocols: string}} props */
function Place({ service, path, protocols }) {
  const services = useStore((all) => all.services);
  const names = useMemo(() => [...services.values()].map((one) => one.name).sort(), [services]);
  const row = [...services.values()].find((one) => one.name === service);
  const [typed, setTyped] = useState({ path, protocols });
  useEffect(() => setTyped({ path, protocols }), [path, protocols]);
  const wrong = typed.path.startsWith("/") ? "" : t("It begins with /.");
  const leave = { session: null }; // another place has other sessions
  const apply = () => wrong || (typed.path === path && typed.protocols === protocols) || goQuery({ ...typed, path: typed.path === "/" ? null : typed.path, ...leave }, { replace: false });
  return html`<${Panel} title=${t("Talk to")}>
    <form class="place" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), apply())}>
      <${Field} label=${t("Service")} name="play-service">
        <select id="play-service" value=${service} onChange=${(/** @type {any} */ event) => goQuery({ service: event.target.value, ...leave }, { replace: false })}>
          <option value="">${t("any: the routing rules choose")}</option>
          ${!names.includes(service) && service && html`<option value=${service}>${service}</option>`}
          ${names.map((name) => html`<option value=${name} selected=${name === service}>${name}</option>`)}</select></${Field}>
      <${Field} label=${t("Path, with its query")} name="play-path" problem=${wrong}>
        <input id="play-path" class="mono" value=${typed.path} spellcheck=${false} onInput=${(/** @type {any} */ event) => setTyped({ ...typed, path: event.target.value })} onBlur=${apply} /></${Field}>
      <${Field} label=${t("Subprotocols")} name="play-protocols">
        <input id="play-protocols" class="mono" value=${typed.protocols} spellcheck=${false} onInput=${(/** @type {any} */ event) => setTyped({ ...typed, protocols: event.target.value })} onBlur=${apply} /></${Field}>
      <button class="away">${t("Use")}</button></form>
    ${row && row.status !== "running" && html`<div class="attention-row"><${Status} value=${row.status} /> <${Foreign} text=${row.error_message} most=${200} />
      <span class="actions"><${ServiceActions} row=${row} /></span></div>`}
    ${service && !row && services.size > 0 && html`<p class="problem" role="alert">${t("There is no service of this name.")}</p>`}
    ${!service && html`<p class="hint">${t("A page cannot send headers of its own. What the rules see of it, the test bench shows:")} <a href=${address(["routing"], { path })}>${t("Routing")}</a></p>`}</${Panel}>`;
}

/** @param {{gateway: string, service: string, path: string, protocols: string[], wanted: string | null, code: string}} props */
function Talking({ gateway, service, path, protocols, wanted, code }) {
  const [conversation, talk, begin] = useConversation(gateway, path, protocols, wanted);
  const [said, setSaid] = useState("");
  const ready = useStore((all) => [...all.services.values()].some((one) => one.name === service && one.ready > 0));
  useEffect(() => {
    if (ready && talk.state === "refused") void conversation.connect(); // it was started meanwhile
  }, [ready]);
  const turns = talk.timeline.turns;
  const moving = turns[talk.timeline.at];
  const busy = talk.running !== null || moving?.status === "running";
  const answer = useMemo(() => (/** @type {string} */ step, /** @type {boolean} */ yes) => conversation.respond(step, yes), [conversation]);
  const scroll = useRef(/** @type {HTMLElement | null} */ (null));
  const following = useRef(true); // until the person scrolls up
  useEffect(() => {
    if (scroll.current && following.current) scroll.current.scrollTop = scroll.current.scrollHeight;
  }, [talk.timeline]);
  const scrolled = (/** @type {any} */ { currentTarget: box }) => {
    following.current = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  };
  return html`<div class="columns play"><div><${Panel} title=${t("Conversation")} actions=${html`<${Link2Session} id=${talk.sessionId} />`}>
      <div class="talk" ref=${scroll} onScroll=${scrolled} tabindex="0" role="log" aria-label=${t("Conversation")}>
        ${turns.length === 0 && html`<${Empty}>${talk.plain ? t("This agent speaks a protocol of its own: see the raw frames.") : t("Write something: the console connects by itself.")}</${Empty}>`}
        ${turns.length > TURNS_DRAWN && html`<p class="hint">${t("Only the last {count} turns are shown here; the session's page has all.", { count: TURNS_DRAWN })}</p>`}
        ${turns.slice(-TURNS_DRAWN).map((turn) => html`<${TurnView} key=${turn.number} turn=${turn} answer=${answer} />`)}</div>
      <div><${Trouble} talk=${talk} path=${path} service=${service} begin=${begin} conversation=${conversation} /></div>
      <${Composer} busy=${busy} say=${(/** @type {string} */ text) => (setSaid(text), conversation.say(text))} stop=${() => conversation.stop()} over=${talk.state === "over"} /></${Panel}></div>
    <div><${TalkFacts} talk=${talk} conversation=${conversation} service=${service} begin=${begin} />
      <${Frames} frames=${talk.frames} />
      <${SampleCode} which=${code} of=${{ url: gateway + path, api: location.origin, session: talk.sessionId, seq: talk.seq, message: said || "hello", tokens: me().gateway_tokens || me().login_required }} /></div></div>`;
}

const me = () => snapshot().me ?? {};

/** @param {{id: string | null}} props */
const Link2Session = ({ id }) => id && html`<a href=${address(["sessions", id])}><code>${id.slice(0, 12)}</code></a>`;

/**
 * The conversation at this place, for as long as the page is there; its session is in the address.
 * @param {string} gateway @param {string} path @param {string[]} protocols @param {string | null} wanted
 * @returns {[Conversation, import("../conversation.js").Talk, () => void]}
 */
function useConversation(gateway, path, protocols, wanted) {
  const [talk, setTalk] = useState(/** @type {import("../conversation.js").Talk | null} */ (null));
  const held = useRef(/** @type {Conversation | null} */ (null));
  const make = (/** @type {string | null} */ sessionId) => new Conversation({ protocols, sessionId, onChange: setTalk,
    address: async (session) => {
      const url = new URL(gateway + path);
      if (session) url.searchParams.set("session_id", session); // the gateway finds the instance that holds it
      const { gateway_tokens: tokens } = me();
      if (tokens || !onThisMachine()) url.searchParams.set("ticket", (await call("POST", "/tickets", { body: {} })).ticket);
      return url.href;
    } });
  held.current ??= make(wanted);
  const conversation = held.current;
  const shown = talk ?? conversation.talk;
  useEffect(() => {
    if (wanted) void takeUp(conversation, wanted);
    return () => held.current?.leave();
  }, []);
  useEffect(() => {
    if (shown.sessionId && shown.state !== "over" && shown.sessionId !== wanted) goQuery({ session: shown.sessionId });
  }, [shown.sessionId, shown.state]);
  const begin = () => {
    held.current?.leave();
    held.current = make(null);
    setTalk(held.current.talk);
    goQuery({ session: null });
    void held.current.connect();
  };
  return [conversation, shown, begin];
}

/** What a person said is no event of the session: the API has it, for whom may read it. @param {Conversation} conversation @param {string} id */
async function takeUp(conversation, id) {
  void conversation.connect();
  if (!can("sessions")) return;
  const detail = await read(`/sessions/${encodeURIComponent(id)}`).catch(() => null); // the agent says why it is not there
  conversation.addMessages((detail?.history ?? []).map((/** @type {any} */ turn) => ({
    event: "user.message", step_id: turn.step_id, content: turn.message, number: turn.number })));
}

/** Why one cannot speak just now. @param {{talk: import("../conversation.js").Talk, path: string, service: string, begin: () => void, conversation: Conversation}} props */
function Trouble({ talk, path, service, begin, conversation }) {
  if (talk.state === "refused") return html`<${WhyRefused} talk=${talk} path=${path} service=${service} again=${() => conversation.connect()} />`;
  if (talk.state === "lost") return html`<p class="failed" role="alert">${t("The connection is lost ({code}); reconnecting.", { code: talk.close?.code ?? "?" })} <${Foreign} text=${talk.close?.reason} most=${200} /></p>`;
  if (talk.state !== "over") return null;
  return html`<div class="failed" role="alert"><p>${t("This session no longer exists: {why}.", { why: talk.why })}</p>
    ${talk.why === "unknown" && html`<p class="hint">${t("Or another client made it: its page speaks into it all the same.")} <${Link2Session} id=${talk.sessionId} /></p>`}
    <button type="button" class="primary" onClick=${begin}>${t("Begin a new session")}</button></div>`;
}

/** @param {{busy: boolean, over: boolean, say: (text: string) => void, stop: () => void}} props */
function Composer({ busy, over, say, stop }) {
  const [text, setText] = useState("");
  const send = () => {
    if (!text.trim() || over) return;
    say(text);
    setText("");
  };
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), send())}>
    <textarea rows="2" aria-label=${t("Message")} placeholder=${t("Message (Enter sends, Shift-Enter begins a new line)")} value=${text} disabled=${over}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && (event.preventDefault(), send())}></textarea>
    <div class="actions"><button class="primary" disabled=${over || !text.trim()}>${t("Send")}</button>
      <button type="button" class="danger" disabled=${!busy} title=${commandText("sessions", "cancel", "SESSION")} onClick=${stop}>${t("Stop the turn")}</button></div></form>`;
}
