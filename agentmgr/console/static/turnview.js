/** How turns look: the person's message, thinking, tools, questions, answers. All of it is a stranger's text. */
import { html, useMemo, useState } from "./vendor/preact.mjs";
import { clockText, countText, durationText, valueText } from "./format.js";
import { t } from "./i18n.js";
import { address } from "./router.js";
import { endText } from "./turns.js";
import { Foreign, Status, useEvery } from "./ui.js";

/** @typedef {(step_id: string, confirmed: boolean) => Promise<unknown>} AnswerQuestion */

const PARTS_SHOWN = 100; // the last of a turn
const TEXT_SHOWN = 5000; // characters of one text, before a click

const END_TEXT = /** @type {Record<string, [string, string]>} */ ({
  "agent.error": ["failed", t("The turn failed")],
  "agent.timeout": ["failed", t("The turn took too long")],
  "agent.interrupted": ["stopped", t("The turn was interrupted")],
  "system.error": ["failed", t("The message was not accepted")],
});

/**
 * One turn. `answer`: where the person may answer its questions; `service`: whose log says more of an error.
 * @param {{turn: import("./turns.js").Turn, answer?: AnswerQuestion, service?: string}} props
 */
export function TurnView({ turn, answer, service }) {
  // The same turn object is the same picture: of a long session only the turn that moves is drawn again.
  return useMemo(() => html`<article class="turn" aria-label=${t("Turn {number}", { number: turn.number })}>
    <div class="said person">${turn.known
      ? html`<${Foreign} text=${valueText(turn.message) || "–"} most=${TEXT_SHOWN} />`
      : html`<span class="none">${t("The message of this turn is not here.")}</span>`}</div>
    <${Parts} parts=${turn.parts} answer=${answer} />
    <${TurnEnd} turn=${turn} service=${service} /></article>`, [turn, answer]);
}

/** @param {{parts: import("./turns.js").Part[], answer?: AnswerQuestion}} props */
function Parts({ parts, answer }) {
  const [most, setMost] = useState(PARTS_SHOWN);
  const left = Math.max(0, parts.length - most);
  return html`${left > 0 && html`<button class="link" onClick=${() => setMost(most + 10 * PARTS_SHOWN)}>
      ${t("… {count} earlier steps", { count: countText(left) })}</button>`}
    ${parts.slice(left).map((part, index) => html`<${PartView} key=${left + index} part=${part} answer=${answer} />`)}`;
}

/** @param {{part: import("./turns.js").Part, answer?: AnswerQuestion}} props */
function PartView({ part, answer }) {
  switch (part.kind) {
    case "text":
      return html`<div class="said agent"><${Foreign} text=${part.text} most=${TEXT_SHOWN} /></div>`;
    case "thinking":
      return html`<details class="step"><summary><span class="icon" aria-hidden="true">…</span> ${t("Thinking")}</summary>
        <${Foreign} text=${part.text} most=${TEXT_SHOWN} /></details>`;
    case "tool":
      return html`<${ToolView} part=${part} />`;
    case "question":
      return html`<${QuestionView} question=${part} answer=${answer} />`;
    case "restart":
      return html`<details class="step"><summary><${Status} value="restarting"
        text=${t("The instance ended; the turn began again at {time}", { time: clockText(part.at) })} /></summary>
        <${Parts} parts=${part.parts} /></details>`;
    default:
      return html`<details class="step"><summary><${Foreign} text=${part.event} most=${100} /></summary>
        <pre><${Foreign} text=${valueText(part.content)} /></pre></details>`;
  }
}

/** A tool's call with its result. @param {{part: import("./turns.js").ToolPart}} props */
function ToolView({ part }) {
  const state = part.success === undefined ? "waiting" : part.success ? "completed" : "failed";
  const words = { waiting: t("no result"), completed: t("ok"), failed: t("failed") };
  return html`<details class="step tool"><summary><span class="icon" aria-hidden="true">⚙</span>
      <strong><${Foreign} text=${part.tool || "?"} most=${100} /></strong>
      <code class="short"><${Foreign} text=${shortArguments(part.args)} /></code>
      <${Status} value=${state} text=${words[state]} />
      ${part.took_s !== undefined && html`<small>${durationText(part.took_s)}</small>`}</summary>
    <${JsonView} label=${t("Arguments")} value=${part.args} />
    ${part.success !== undefined && html`<${JsonView} label=${t("Result")} value=${part.result} />`}</details>`;
}

/** @param {unknown} args */
function shortArguments(args) {
  const text = args === undefined ? "" : typeof args === "string" ? args : JSON.stringify(args);
  return text.length > 120 ? text.slice(0, 120) + " …" : text;
}

/** A value of a stranger, as JSON that can be read. @param {{label: string, value: unknown}} props */
export const JsonView = ({ label, value }) => html`<figure class="json"><figcaption>${label}</figcaption>
  <pre tabindex="0"><${Foreign} text=${valueText(value) || "–"} /></pre></figure>`;

/**
 * A question, with the buttons that answer it while it is open.
 * @param {{question: import("./turns.js").QuestionPart, answer?: AnswerQuestion}} props
 */
export function QuestionView({ question, answer }) {
  const [sent, setSent] = useState(/** @type {boolean | null} */ (null));
  const open = question.state === "open";
  const words = { open: t("waits for an answer"), yes: t("approved"), no: t("denied"), closed: t("closed without an answer") };
  const mark = { open: "waiting", yes: "completed", no: "failed", closed: "stopped" };
  const give = async (/** @type {boolean} */ yes) => {
    setSent(yes);
    await answer?.(question.step_id, yes);
    setSent(null);
  };
  return html`<section class="question ${open ? "open" : ""}">
    <p><strong><${Foreign} text=${question.message || t("May it use this tool?")} most=${2000} /></strong></p>
    <p><code><${Foreign} text=${question.tool} most=${200} /></code></p>
    <${JsonView} label=${t("Arguments")} value=${question.args} />
    <p class="foot"><${Status} value=${mark[question.state]} text=${words[question.state]} />
      ${question.how && html`<small><${Foreign} text=${question.how} most=${200} /></small>`}
      ${open && html`<${TimeLeft} at=${question.at} timeout_s=${question.timeout_s} />`}</p>
    ${open && answer && html`<div class="buttons">
      <button class="danger" disabled=${sent !== null} aria-busy=${sent === false} onClick=${() => give(false)}>${t("Deny")}</button>
      <button class="primary" disabled=${sent !== null} aria-busy=${sent === true} onClick=${() => give(true)}>${t("Approve")}</button>
    </div>`}</section>`;
}

/** How long a question still waits, ticking. @param {{at: string, timeout_s: number | null | undefined}} props */
export function TimeLeft({ at, timeout_s }) {
  useEvery(1);
  if (!timeout_s) return null;
  const left = Date.parse(at) / 1000 + timeout_s - Date.now() / 1000;
  if (left <= 0) return html`<small class="left late">${t("expired")}</small>`;
  const minutes = Math.floor(left / 60);
  const clock = `${minutes}:${String(Math.floor(left % 60)).padStart(2, "0")}`;
  return html`<small class="left ${left < 30 ? "late" : ""}" title=${t("No answer until then means no.")}>
    ${t("{time} left", { time: left > 7200 ? durationText(left) : clock })}</small>`;
}

/** How the turn ended, or that it runs. @param {{turn: import("./turns.js").Turn, service?: string}} props */
function TurnEnd({ turn, service }) {
  const took = turn.started_at && turn.ended_at ? (Date.parse(turn.ended_at) - Date.parse(turn.started_at)) / 1000 : null;
  const tokens = turn.input_tokens + turn.output_tokens;
  const [mark, words] = END_TEXT[turn.end?.event ?? ""] ?? [];
  const text = endText(turn);
  const error = turn.end?.content?.error_id; // as the log names it
  const at = turn.started_at ?? turn.ended_at;
  return html`${text && html`<div class="said ${mark ? "trouble" : "agent"}">
      ${words && html`<p><${Status} value=${mark} text=${words} /> <code>${turn.end?.content?.code ?? turn.end?.content?.type}</code></p>`}
      <${Foreign} text=${text} most=${TEXT_SHOWN} />
      ${error && service && html`<p><a href=${address(["services", service], { tab: "logs", q: error })}>${t("Open the log")}</a></p>`}</div>`}
    ${!text && words && html`<div class="said trouble"><${Status} value=${mark} text=${words} /></div>`}
    <p class="foot">${turn.status !== "ended" && html`<${Status} value=${turn.status === "running" ? "starting" : "waiting"}
        text=${turn.status === "running" ? t("running") : t("waits for its turn")} />`}
      ${at && html`<time datetime=${at}>${clockText(at)}</time>`}
      ${took !== null && html`<span>${durationText(took)}</span>`}
      ${tokens > 0 && html`<span title=${turn.models.join(", ")}>${t("{in} + {out} tokens",
        { in: countText(turn.input_tokens), out: countText(turn.output_tokens) })}</span>`}</p>`;
}
