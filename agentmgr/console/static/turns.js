/**
 * What was said in a session, as a timeline of its turns. Nothing here draws, asks or waits; `turnview.js` draws.
 *
 * The events are those of `agentmgr/protocol.py`, in their order, and among them what the person sent:
 * `user.message {step_id, content}` where it is known. With `number` (1 is the first turn of the session), it has
 * its place also when it comes later than the events of its turn.
 */

/**
 * @typedef {{kind: "text" | "thinking", text: string, at: string}} TextPart
 * @typedef {{kind: "tool", step_id: string | null, tool: string, args: unknown, at: string, result?: unknown,
 *   success?: boolean, took_s?: number}} ToolPart `success` is missing as long as there is no result
 * @typedef {{kind: "question", step_id: string, tool: string, args: unknown, message: string, at: string,
 *   timeout_s: number | null, state: "open" | "yes" | "no" | "closed", how?: string}} QuestionPart
 * @typedef {{kind: "restart", parts: Part[], at: string}} RestartPart the turn runs again; what was before
 * @typedef {{kind: "other", event: string, content: unknown, at: string}} OtherPart
 * @typedef {TextPart | ToolPart | QuestionPart | RestartPart | OtherPart} Part
 * @typedef {{
 *   number: number, step_id: string | null, message: unknown, known: boolean, parts: Part[],
 *   status: "waiting" | "running" | "ended", started_at: string | null, ended_at: string | null,
 *   end: {event: string, content: any} | null, input_tokens: number, output_tokens: number, models: string[],
 * }} Turn `known`: the message is
 * @typedef {{turns: Turn[], seq: number, at: number, ended: string | null, missing: number}} Timeline
 *   `seq`: the last event's; `at`: the index of the turn that runs, or waits first; `ended`: why the session is;
 *   `missing`: events that are gone
 */

/** @type {Timeline} */
export const NO_TURNS = { turns: [], seq: 0, at: 0, ended: null, missing: 0 };

const TURN_ENDS = new Set(["agent.final_answer", "agent.error", "agent.timeout", "agent.interrupted"]);

/** These have a `step_id` of their own. */
const OWN_STEPS = new Set(["agent.tool_call", "agent.tool_result", "agent.user_confirm"]);

/**
 * The timeline after some more events. `before` stays as it was; turns that did not change are the same objects.
 * @param {any[]} events
 * @param {Timeline} [before]
 * @returns {Timeline}
 */
export function turnsOf(events, before = NO_TURNS) {
  const next = { ...before, turns: [...before.turns] };
  const fresh = /** @type {Set<Turn>} */ (new Set()); // these are ours to change
  /** @param {number} index */
  const turnAt = (index) => {
    while (next.turns.length <= index) next.turns.push(emptyTurn(next.turns.length + 1));
    let turn = next.turns[index];
    if (!fresh.has(turn)) {
      turn = { ...turn, parts: [...turn.parts] };
      next.turns[index] = turn;
      fresh.add(turn);
    }
    return turn;
  };
  for (const event of events) takeEvent(next, event, turnAt);
  return next;
}

/** @param {number} number @returns {Turn} */
const emptyTurn = (number) => ({
  number, step_id: null, message: null, known: false, parts: [], status: "waiting", started_at: null, ended_at: null,
  end: null, input_tokens: 0, output_tokens: 0, models: [],
});

/** @param {Timeline} timeline @param {string | null | undefined} step_id */
function indexOf({ turns, at }, step_id) {
  if (!step_id) return -1;
  if (turns[at]?.step_id === step_id) return at;
  for (let index = turns.length - 1; index >= 0; index -= 1) if (turns[index].step_id === step_id) return index;
  return -1;
}

/** @param {Timeline} timeline @param {any} event @param {(index: number) => Turn} turnAt */
function takeEvent(timeline, event, turnAt) {
  const { event: name, step_id: step = null, content } = event;
  if (typeof event.seq === "number") {
    if (event.seq <= timeline.seq) return; // said again after a reconnect
    timeline.seq = event.seq;
  }
  if (name === "user.message") return takeMessage(timeline, event, turnAt);
  if (name === "system.error") return takeRefusal(timeline, event, turnAt);
  if (name === "agent.session_end") timeline.ended = String(content?.reason ?? "ended");
  if (name === "system.notice" && content?.missing_to) {
    timeline.missing += content.missing_to - content.missing_from + 1;
  }
  const ofConnection = name.startsWith("system.") && event.seq === undefined;
  if (ofConnection || name === "pong" || /^agent\.(session|state)_/.test(name)) return;
  if (TURN_ENDS.has(name)) return endTurn(timeline, event, turnAt);
  const named = OWN_STEPS.has(name) ? -1 : indexOf(timeline, step);
  const turn = turnAt(named < 0 || timeline.turns[named].status === "ended" ? timeline.at : named);
  turn.started_at ??= event.timestamp;
  turn.status = "running";
  if (!OWN_STEPS.has(name) && name !== "system.notice") turn.step_id ??= step;
  addPart(turn, event);
}

/** @param {Timeline} timeline @param {any} event @param {(index: number) => Turn} turnAt */
function takeMessage(timeline, { step_id, content, number }, turnAt) {
  const known = number === undefined ? indexOf(timeline, step_id) : number - 1;
  const turn = turnAt(known < 0 ? timeline.turns.length : known);
  turn.step_id = step_id ?? turn.step_id;
  turn.message = content;
  turn.known = true;
}

/** A message that was not taken. @param {Timeline} timeline @param {any} event @param {(index: number) => Turn} turnAt */
function takeRefusal(timeline, event, turnAt) {
  const index = indexOf(timeline, event.step_id);
  if (index >= 0 && timeline.turns[index].status === "waiting") endTurn(timeline, event, turnAt);
}

/** @param {Timeline} timeline @param {any} event @param {(index: number) => Turn} turnAt */
function endTurn(timeline, event, turnAt) {
  const named = indexOf(timeline, event.step_id);
  const turn = turnAt(named < 0 ? timeline.at : named);
  turn.step_id ??= event.step_id ?? null;
  turn.status = "ended";
  turn.ended_at = event.timestamp ?? null;
  turn.end = { event: event.event, content: event.content };
  turn.parts = turn.parts.map(closedPart);
  while (timeline.turns[timeline.at]?.status === "ended") timeline.at += 1;
}

/** A part, when what asked is no more. @param {Part} part @returns {Part} */
const closedPart = (part) => (part.kind === "question" && part.state === "open" ? { ...part, state: "closed" } : part);

/** @param {Turn} turn @param {any} event */
function addPart(turn, event) {
  const { event: name, step_id, content, timestamp: at } = event;
  const { parts } = turn;
  const last = parts[parts.length - 1];
  if (name === "agent.partial_answer" || name === "agent.thinking") {
    const kind = name === "agent.thinking" ? "thinking" : "text";
    const text = typeof content === "string" ? content : JSON.stringify(content);
    // Pieces of an answer are joined as they are; a thought is a paragraph of its own.
    if (last?.kind === kind) parts[parts.length - 1] = { ...last, text: last.text + (kind === "text" ? "" : "\n\n") + text };
    else parts.push({ kind, text, at });
  } else if (name === "agent.tool_call") {
    parts.push({ kind: "tool", step_id, tool: String(content?.tool ?? ""), args: content?.args, at });
  } else if (name === "agent.tool_result") {
    addResult(parts, event);
  } else if (name === "agent.user_confirm") {
    const { tool = "", args, message = "", timeout_s = null } = content ?? {};
    parts.push({ kind: "question", step_id, tool: String(tool), args, message: String(message), at, timeout_s, state: "open" });
  } else if (name === "agent.usage") {
    turn.input_tokens += Number(content?.input_tokens) || 0;
    turn.output_tokens += Number(content?.output_tokens) || 0;
    const model = content?.model;
    if (model && !turn.models.includes(String(model))) turn.models = [...turn.models, String(model)];
  } else if (name === "system.notice" && content?.code === "answered") {
    const asked = parts.findLastIndex((part) => part.kind === "question" && part.step_id === step_id);
    const state = content.confirmed ? "yes" : "no";
    if (asked >= 0) parts[asked] = { .../** @type {QuestionPart} */ (parts[asked]), state, how: String(content.message ?? "") };
  } else if (name === "system.notice" && content?.code === "turn_restarted") {
    turn.parts = [{ kind: "restart", parts: parts.map(closedPart), at }];
  } else {
    parts.push({ kind: "other", event: String(name), content, at });
  }
}

/** @param {Part[]} parts @param {any} event */
function addResult(parts, { step_id, content, timestamp: at }) {
  const called = parts.findLastIndex(
    (part) => part.kind === "tool" && part.success === undefined && part.step_id === step_id);
  const call = /** @type {ToolPart} */ (
    parts[called] ?? { kind: "tool", step_id, tool: String(content?.tool ?? ""), args: undefined, at });
  const took_s = called < 0 ? undefined : (Date.parse(at) - Date.parse(call.at)) / 1000;
  const done = { ...call, result: content?.result, success: content?.success !== false, took_s };
  if (called < 0) parts.push(done);
  else parts[called] = done;
}

/** What of the end is not among the parts: the answer where it was not streamed, the error. @param {Turn} turn */
export function endText(turn) {
  const { event, content } = turn.end ?? {};
  if (event === undefined) return "";
  if (event !== "agent.final_answer") return String(content?.message ?? content?.reason ?? "");
  const answer = typeof content === "string" ? content : JSON.stringify(content, null, 2) ?? "";
  const streamed = turn.parts.map((part) => (part.kind === "text" ? part.text : "")).join("");
  return streamed.trim() === answer.trim() ? "" : answer;
}
