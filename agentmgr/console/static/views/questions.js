/** What agents ask a person, of every service: read it, approve or deny. The first answer wins. */
import { html, useEffect, useRef, useState } from "../vendor/preact.mjs";
import { Problem, readAll, readEvents } from "../api.js";
import { t } from "../i18n.js";
import { address } from "../router.js";
import { can, useStore } from "../store.js";
import { QuestionView } from "../turnview.js";
import { Ago, Empty, Failed, Foreign, Head, Status, useEvery, useLoaded } from "../ui.js";
import { answerQuestion, shortId } from "./session.js";

/**
 * @typedef {{session_id: string, service: string, name: string | null, owner: string | null, instance_id: string | null,
 *   step_id: string, content: any, asked_at: string}} Asked as the API has it
 * @typedef {"yes" | "no" | "closed"} Outcome
 */

/** @param {Asked} one */
const keyOfQuestion = (one) => `${one.session_id} ${one.step_id} ${one.asked_at}`;

/** How it was answered: the session's events say so. @param {Asked} one @param {AbortSignal} signal @returns {Promise<Outcome>} */
async function outcomeOf({ session_id, step_id }, signal) {
  /** @type {Outcome} */
  let outcome = "closed";
  const events = readEvents(`/sessions/${encodeURIComponent(session_id)}/events`, { follow: false }, signal);
  for await (const { data } of events) {
    if (data.step_id === step_id && data.content?.code === "answered") outcome = data.content.confirmed ? "yes" : "no";
  }
  return outcome;
}

/**
 * All open questions, and those that were closed while this view looked on, with how.
 * @returns {{items: (Asked & {outcome?: Outcome})[] | undefined, problem: Problem | null, again: () => void}}
 */
function useQuestions() {
  const count = useStore((all) => all.overview?.questions);
  const round = useEvery(3); // one may be asked while another is answered: the count is the same then
  const [open, problem, again] = useLoaded((signal) => readAll("/questions", {}, { signal }), [count, round]);
  const [closed, setClosed] = useState(/** @type {(Asked & {outcome?: Outcome})[]} */ ([]));
  const before = useRef(/** @type {Asked[]} */ ([]));
  const gone = useRef(new AbortController());
  useEffect(() => () => gone.current.abort(), []);
  useEffect(() => {
    if (!open) return;
    const keys = new Set(open.map(keyOfQuestion));
    const left = can("sessions") ? before.current.filter((one) => !keys.has(keyOfQuestion(one))) : [];
    before.current = open;
    for (const one of left) {
      outcomeOf(one, gone.current.signal).catch(() => /** @type {Outcome} */ ("closed")).then((outcome) => {
        if (!gone.current.signal.aborted) setClosed((all) => [...all.slice(-9), { ...one, outcome }]);
      });
    }
  }, [open]);
  return { items: open && [...closed, ...open], problem, again };
}

export function Questions() {
  const { items, problem, again } = useQuestions();
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !(event.target instanceof HTMLElement) || !event.target.matches(".asked")) return;
    const cards = /** @type {HTMLElement[]} */ ([...(list.current?.querySelectorAll(".asked") ?? [])]);
    cards[cards.indexOf(event.target) + step]?.focus();
    event.preventDefault();
  };
  return html`<${Head} title=${t("Questions")} />
    ${problem && html`<${Failed} problem=${problem} again=${again} />`}
    ${items && !items.length && html`<${Empty}><${Status} value="completed" text=${t("No question is open.")} /></${Empty}>`}
    ${!items && !problem && html`<${Empty}>${t("Loading …")}</${Empty}>`}
    ${items && items.length > 0 && can("sessions") && html`<p class="hint">
      ${t("↑ ↓ go from question to question; on one, A approves and D denies. The first answer counts.")}</p>`}
    <div ref=${list} onKeyDown=${move}>${items?.map((one) => html`<${Card} key=${keyOfQuestion(one)} asked=${one} again=${again} />`)}</div>`;
}

/** @param {{asked: Asked & {outcome?: Outcome}, again: () => void}} props */
function Card({ asked, again }) {
  const { content, session_id: id, step_id, instance_id } = asked;
  const busy = useRef(false);
  const answer = async (/** @type {string} */ step, /** @type {boolean} */ yes) => {
    if (busy.current) return;
    busy.current = true;
    await answerQuestion(id, step, yes);
    busy.current = false;
    again();
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const yes = { a: true, d: false }[event.key.toLowerCase()];
    const here = event.target === event.currentTarget && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat;
    if (yes === undefined || !here || asked.outcome || !can("sessions")) return;
    event.preventDefault();
    void answer(step_id, yes);
  };
  const question = {
    kind: /** @type {const} */ ("question"), step_id, tool: String(content?.tool ?? ""), args: content?.args,
    message: String(content?.message ?? ""), at: asked.asked_at, timeout_s: content?.timeout_s ?? null,
    state: asked.outcome ?? /** @type {const} */ ("open"),
  };
  const label = t("Question of {service}", { service: asked.service });
  return html`<article class="panel asked" tabindex="0" aria-label=${label} onKeyDown=${keys}>
    <header><h2><a href=${address(["services", asked.service])}>${asked.service}</a></h2>
      <span>${can("sessions")
          ? html`<a href=${address(["sessions", id])}><${Foreign} text=${asked.name || shortId(id)} most=${60} /></a>`
          : html`<code>${shortId(id)}</code>`}
        ${asked.owner && html` · ${asked.owner}`} · ${t("asked")} <${Ago} at=${asked.asked_at} /></span></header>
    ${instance_id === null && !asked.outcome && html`<p><${Status} value="lost"
      text=${t("The instance that asked is gone; the next one closes this question, or asks it again.")} /></p>`}
    ${content === null
      ? html`<p class="none">${t("What is asked, and to answer it, takes the scope sessions.")}</p>`
      : html`<${QuestionView} question=${question} answer=${can("sessions") ? answer : undefined} />`}</article>`;
}
