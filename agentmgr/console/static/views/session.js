/** One session: its turns as they were and as they come; speak into it, answer it, stop its turn, end it. */
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/preact.mjs";
import { call, pause, Problem, read, readEvents } from "../api.js";
import { ask } from "../dialog.js";
import { commandText, countText } from "../format.js";
import { t } from "../i18n.js";
import { address, go } from "../router.js";
import { can } from "../store.js";
import { NO_TURNS, turnsOf } from "../turns.js";
import { JsonView, TurnView } from "../turnview.js";
import { Action, Ago, attempt, Empty, Failed, Foreign, Head, Panel, Status, useLoaded } from "../ui.js";

const TURNS_SHOWN = 50; // the last ones; each click on "earlier" shows as many again
const SHORT_ID = 12; // as the command line takes it

/** @param {string} id */
const sessionPath = (id) => `/sessions/${encodeURIComponent(id)}`;

/** The beginning of a session's id, which the command line takes for the whole. @param {string} id */
export const shortId = (id) => id.slice(0, SHORT_ID);

/** Answers a question. @param {string} id @param {string} step_id @param {boolean} confirmed */
export const answerQuestion = (id, step_id, confirmed) =>
  attempt(() => call("POST", `${sessionPath(id)}/answers`, { body: { step_id, confirmed } }), {
    command: commandText("questions", "answer", shortId(id), confirmed ? "yes" : "no", "--step", step_id),
    done: confirmed ? t("approved") : t("denied"),
  });

/**
 * The session's events as they come, joined to turns once a frame; a hidden tab reads none.
 * @param {string} id
 * @returns {[import("../turns.js").Timeline, Problem | null]}
 */
function useTimeline(id) {
  const [timeline, setTimeline] = useState(NO_TURNS);
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  useEffect(() => {
    const leaving = new AbortController();
    let now = NO_TURNS;
    /** @type {any[]} */
    let pending = [];
    let frame = 0;
    const draw = () => {
      frame = 0;
      now = turnsOf(pending, now);
      pending = [];
      setTimeline(now);
    };
    const take = (/** @type {any} */ event) => {
      pending.push(event);
      frame ||= requestAnimationFrame(draw);
    };
    const follow = async () => {
      while (!leaving.signal.aborted && !now.ended) {
        if (document.hidden) await seen(leaving.signal);
        const stream = new AbortController();
        const stop = () => (document.hidden || leaving.signal.aborted) && stream.abort();
        document.addEventListener("visibilitychange", stop);
        leaving.signal.addEventListener("abort", stop);
        try {
          const since = Math.max(now.seq, ...pending.map((event) => event.seq ?? 0));
          const events = readEvents(`${sessionPath(id)}/events`, { since, messages: true }, stream.signal);
          for await (const { data } of events) take(data);
          setProblem(null);
          await pause(1000, leaving.signal); // it ended in order: the session has, or the manager stops
        } catch (error) {
          if (stream.signal.aborted) continue;
          if (!(error instanceof Problem)) throw error;
          if (error.status) return setProblem(error);
          await pause(1000, leaving.signal);
        } finally {
          document.removeEventListener("visibilitychange", stop);
        }
      }
    };
    setTimeline(NO_TURNS);
    void follow();
    return () => {
      leaving.abort();
      cancelAnimationFrame(frame);
    };
  }, [id]);
  return [timeline, problem];
}

/** Waits until the tab is seen. @param {AbortSignal} signal @returns {Promise<void>} */
function seen(signal) {
  return new Promise((done) => {
    document.addEventListener("visibilitychange", () => done(), { once: true, signal });
    signal.addEventListener("abort", () => done());
  });
}

/** @param {{id: string}} props */
export function Session({ id }) {
  const back = html`<a href="#/sessions" aria-label=${t("All sessions")}>←</a>`;
  if (!can("sessions")) return html`<${Head} title=${t("Session")} back=${back} /><${Empty}>
    ${t("Your token shows that there are sessions. What was said in them takes the scope sessions.")}</${Empty}>`;
  return html`<${OpenSession} key=${id} id=${id} back=${back} />`;
}

/** @param {{id: string, back: any}} props */
function OpenSession({ id, back }) {
  const [timeline, cut] = useTimeline(id);
  // The figures are read again when a turn has ended.
  const [detail, problem, again] = useLoaded((signal) => read(sessionPath(id), {}, signal), [id, timeline.at, timeline.ended]);
  if (problem && !detail) return html`<${Head} title=${t("Session")} back=${back} /><${Failed} problem=${problem} again=${again} />`;
  if (!detail) return html`<${Head} title=${t("Session")} back=${back} /><${Empty}>${t("Loading …")}</${Empty}>`;
  const running = timeline.turns[timeline.at]?.status === "running";
  const ended = timeline.ended ?? (detail.state === "ended" ? detail.end_reason : null);
  const asking = running && timeline.turns[timeline.at].parts.some((part) => part.kind === "question" && part.state === "open");
  const state = ended ? "ended" : asking ? "asking" : running ? "running" : detail.state === "hibernated" ? "hibernated" : "idle";
  return html`<${Head} title=${html`<${Foreign} text=${detail.name || shortId(id)} most=${100} />`} back=${back}>
      <${SessionStatus} value=${state} />
      ${running && html`<${Action} label=${t("Stop the turn")} scope="sessions" command=${commandText("sessions", "cancel", shortId(id))}
        run=${() => call("POST", `${sessionPath(id)}/cancel`)} />`}
      <a class="button" href="/api/v1${sessionPath(id)}/export" download="${shortId(id)}.jsonl"
        title=${commandText("sessions", "export", shortId(id))}>${t("Export")}</a>
      <button type="button" class="danger" onClick=${() => end(detail)}>${t("End and erase")}</button></${Head}>
    <${Facts} detail=${detail} timeline=${timeline} />
    ${(problem ?? cut) && html`<${Failed} problem=${problem ?? cut} again=${again} />`}
    <${Turns} id=${id} service=${detail.service} timeline=${timeline} />
    ${ended ? html`<${Empty}>${t("This session has ended: {reason}.", { reason: ended })}</${Empty}>` : html`<${Speak} id=${id} busy=${running} />`}`;
}

/** @param {{value: string}} props */
export const SessionStatus = ({ value }) => html`<${Status}
  value=${{ running: "running", asking: "waiting", idle: "stored", hibernated: "asleep", ended: "stopped" }[value] ?? value}
  text=${{ running: t("running"), asking: t("waits for a person"), idle: t("idle"), hibernated: t("hibernated"),
    ended: t("ended") }[value] ?? value} />`;

/** @param {any} detail */
async function end(detail) {
  const { session_id: id, turns } = detail;
  const text = t("It ends, and all that was said in it ({count} turns) is erased, also for the person who speaks there. "
    + "This cannot be taken back; Export saves it before.", { count: turns });
  const command = commandText("sessions", "end", shortId(id));
  if (!(await ask({ title: t("End and erase"), text, command, confirm: t("End and erase"), danger: true }))) return;
  if (await attempt(() => call("DELETE", sessionPath(id)), { command })) go("#/sessions");
}

/** @param {{detail: any, timeline: import("../turns.js").Timeline}} props */
function Facts({ detail, timeline }) {
  const live = { in: 0, out: 0 };
  for (const turn of timeline.turns) {
    live.in += turn.input_tokens;
    live.out += turn.output_tokens;
  }
  const tokens = { in: Math.max(live.in, detail.input_tokens), out: Math.max(live.out, detail.output_tokens) };
  return html`<dl class="facts">
    <div><dt>${t("Service")}</dt><dd><a href=${address(["services", detail.service])}>${detail.service}</a></dd></div>
    <div><dt>${t("Owner")}</dt><dd>${detail.owner ?? html`<span class="none">${t("whoever knows its id")}</span>`}</dd></div>
    <div><dt>${t("Turns")}</dt><dd>${countText(Math.max(detail.turns, timeline.turns.length))}</dd></div>
    <div><dt>${t("Tokens, in + out")}</dt><dd>${countText(tokens.in)} + ${countText(tokens.out)}</dd></div>
    <div><dt>${t("Begun")}</dt><dd><${Ago} at=${detail.created_at} /></dd></div>
    <div><dt>${t("Last used")}</dt><dd><${Ago} at=${detail.last_used_at} /></dd></div>
    <div><dt>${t("Instance")}</dt><dd>${detail.instance_id
      ? html`<code>${detail.instance_id}</code>` : html`<span class="none">${t("on disk")}</span>`}</dd></div>
    <div class="whole"><dt>${t("Id")}</dt><dd><code>${detail.session_id}</code></dd></div></dl>
    ${detail.session_state && Object.keys(detail.session_state).length > 0 && html`<details class="state">
      <summary>${t("What the agent keeps (session.state)")}</summary>
      <${JsonView} label="session.state" value=${detail.session_state} /></details>`}`;
}

/** @param {{id: string, service: string, timeline: import("../turns.js").Timeline}} props */
function Turns({ id, service, timeline }) {
  const [most, setMost] = useState(TURNS_SHOWN);
  const [following, setFollowing] = useState(true);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const answer = useMemo(() => (/** @type {string} */ step, /** @type {boolean} */ yes) => answerQuestion(id, step, yes), [id]);
  const left = useRef(0);
  useLayoutEffect(() => {
    if (following && box.current) box.current.scrollTop = box.current.scrollHeight;
    if (following) left.current = timeline.seq;
  }, [timeline, following]);
  const scrolled = () => {
    const element = /** @type {HTMLElement} */ (box.current);
    setFollowing(element.scrollHeight - element.scrollTop - element.clientHeight < 30);
  };
  const { turns } = timeline;
  const hidden = Math.max(0, turns.length - most);
  const missed = timeline.seq - left.current;
  return html`<${Panel} title=${t("Conversation")} actions=${timeline.missing > 0 && html`<small>
      ${t("{count} events are gone", { count: timeline.missing })}</small>`}>
    <div class="turns" ref=${box} onScroll=${scrolled} tabindex="0" role="log" aria-label=${t("Conversation")}>
      ${hidden > 0 && html`<button class="link" onClick=${() => setMost(most + TURNS_SHOWN)}>
        ${t("{count} earlier turns are not shown: show more", { count: countText(hidden) })}</button>`}
      ${turns.length === 0 && html`<${Empty}>${t("Nothing was said yet.")}</${Empty}>`}
      ${turns.slice(hidden).map((turn) => html`<${TurnView} key=${turn.number} turn=${turn} answer=${answer} service=${service} />`)}</div>
    ${!following && html`<p class="newer"><button onClick=${() => setFollowing(true)}>${missed > 0
      ? t("{count} new events: go to the end", { count: countText(missed) }) : t("Go to the end")}</button></p>`}</${Panel}>`;
}

/** @param {{id: string, busy: boolean}} props */
function Speak({ id, busy }) {
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");
  const [sending, setSending] = useState(false);
  const say = async () => {
    if (!text.trim() || sending) return;
    setSending(true);
    try {
      await call("POST", `${sessionPath(id)}/messages`, { body: { content: text } });
      setText("");
      setProblem("");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setProblem([...error.fields.values()][0] ?? error.message);
    }
    setSending(false);
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void say();
  };
  return html`<form class="speak field ${problem ? "wrong" : ""}" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), say())}>
    <label for="speak">${t("Say something in it, in its owner's name")}</label>
    <div class="line"><textarea id="speak" rows="2" value=${text} onKeyDown=${keys} aria-describedby="speak-hint"
        onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
      <button class="primary" disabled=${!text.trim() || sending} aria-busy=${sending}
        title=${commandText("sessions", "say", shortId(id), text || "TEXT")}>${t("Send")}</button></div>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <p class="hint" id="speak-hint">${busy ? t("A turn runs: your message waits for its end.") : t("Enter sends, Shift+Enter begins a new line.")}</p></form>`;
}
