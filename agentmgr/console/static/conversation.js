/**
 * A conversation with an agent over a WebSocket of the page's own, as a client has it: `agentmgr/protocol.py`.
 *
 * It survives its connections. Events have numbers without holes: after a cut the agent is asked for those after
 * the last one that came, and what had perhaps not reached it is sent again under the same `step_id`.
 */
import { NO_TURNS, turnsOf } from "./turns.js";

const ENDS = new Set(["agent.final_answer", "agent.error", "agent.timeout", "agent.interrupted"]);
const FRAMES_KEPT = 500; // shown raw; the turns are kept whole
const ACK_EVERY = 32;
const FIRST_DELAY_MS = 200;
const LONGEST_DELAY_MS = 5000;

/**
 * @typedef {{number: number, at: number, sent: boolean, event: string, text: string}} Frame one, as it went over the wire
 * @typedef {"idle" | "connecting" | "open" | "cut" | "lost" | "refused" | "over"} TalkState `cut`: by the person;
 *   `lost`: it comes back by itself; `refused`: the handshake was; `over`: the session is not there any more
 * @typedef {{
 *   state: TalkState, sessionId: string | null, connectionId: string | null, seq: number, received: number,
 *   returns: number, caughtUp: number, holes: number, why: string, close: {code: number, reason: string} | null,
 *   timeline: import("./turns.js").Timeline, frames: Frame[], running: string | null, plain: boolean,
 * }} Talk `returns`: how often it came back; `caughtUp`: events that came late for that; `holes`: that never came;
 *   `plain`: the agent speaks a protocol of its own
 */

export class Conversation {
  /**
   * @param {{
   *   address: (sessionId: string | null) => Promise<string>, protocols: string[], sessionId: string | null,
   *   onChange: (talk: Talk) => void,
   * }} options `address`: asked for each connection, as a ticket is good for one
   */
  constructor({ address, protocols, sessionId, onChange }) {
    this.address = address;
    this.protocols = protocols;
    this.onChange = onChange;
    /** @type {Talk} */
    this.talk = { state: "idle", sessionId, connectionId: null, seq: 0, received: 0, returns: 0, caughtUp: 0, holes: 0,
      why: "", close: null, timeline: NO_TURNS, frames: [], running: null, plain: false };
    /** @type {WebSocket | null} */
    this.socket = null;
    this.ready = false; // the session was taken up on this connection
    this.wasReady = false; // on an earlier one
    this.catchUpTo = 0; // events up to this one are from before the connection
    this.delay = FIRST_DELAY_MS;
    /** @type {Map<string, object>} by step_id: what the agent has perhaps not got */
    this.unconfirmed = new Map();
    this.timer = 0;
    this.frame = 0;
    this.framesSeen = 0;
    /** @type {any[]} */
    this.pending = []; // events that the next picture shows
  }

  async connect() {
    clearTimeout(this.timer);
    this.set({ state: "connecting", why: "", close: null });
    this.ready = false;
    let url;
    try {
      url = await this.address(this.talk.sessionId);
    } catch (error) {
      return this.set({ state: "refused", why: error instanceof Error ? error.message : String(error) });
    }
    if (this.talk.state !== "connecting") return; // it was called off meanwhile
    const socket = new WebSocket(url, this.protocols);
    this.socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      const { sessionId: session_id, seq } = this.talk;
      if (session_id) this.write({ event: "user.reconnect", session_id, last_seq: seq });
      else this.write({ event: "user.create_session" });
    };
    socket.onmessage = ({ data }) => this.take(String(data));
    socket.onclose = ({ code, reason }) => socket === this.socket && this.closed(opened, code, reason);
  }

  /** Closes the connection; the agent goes on. */
  cut() {
    this.leave();
    this.set({ state: "cut" });
  }

  /** Ends it all here; the session stays where it is. */
  leave() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    this.ready = false;
    socket?.close();
  }

  /** @param {string} content */
  say(content) {
    if (this.talk.plain) return this.send(content);
    const step_id = `msg_${randomId()}`;
    this.pending.push({ event: "user.message", step_id, content });
    this.post(step_id, { event: "user.message", step_id, content });
    this.set({ running: step_id });
    if (["idle", "refused"].includes(this.talk.state)) void this.connect();
  }

  /** Ends the turn that runs. */
  stop() {
    const step_id = this.talk.running;
    this.post("cancel", { event: "user.cancel", ...(step_id ? { step_id } : {}) });
  }

  /** @param {string} step_id @param {boolean} confirmed */
  async respond(step_id, confirmed) {
    this.post(step_id, { event: "user.response", step_id, content: { confirmed } });
  }

  /** Puts what was said before into its place. @param {any[]} messages */
  addMessages(messages) {
    this.pending.push(...messages);
    this.set({});
  }

  // What follows is between here and the agent.

  /** @param {string} key @param {object} frame */
  post(key, frame) {
    this.unconfirmed.set(key, frame);
    if (this.ready) this.write(frame);
  }

  /** @param {any} frame */
  write(frame) {
    const { sessionId } = this.talk;
    const text = JSON.stringify(sessionId && !frame.session_id ? { ...frame, session_id: sessionId } : frame);
    this.send(text, frame.event);
  }

  /** @param {string} text @param {string} event */
  send(text, event = "text") {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.note(true, event, text);
    this.socket.send(text);
    this.set({});
  }

  /** @param {boolean} opened @param {number} code @param {string} reason */
  closed(opened, code, reason) {
    this.socket = null;
    this.ready = false;
    if (this.talk.state === "over") return;
    if (!opened && this.talk.received === 0) return this.set({ state: "refused", close: { code, reason } });
    this.set({ state: "lost", close: { code, reason } });
    this.timer = setTimeout(() => this.connect(), this.delay * (0.5 + Math.random() / 2));
    this.delay = Math.min(this.delay * 2, LONGEST_DELAY_MS);
  }

  /** @param {string} text */
  take(text) {
    let event;
    try {
      event = JSON.parse(text);
    } catch {
      event = null;
    }
    if (event === null || typeof event !== "object" || typeof event.event !== "string") {
      this.note(false, "text", text); // an agent that serves the WebSocket itself may say anything
      return this.set({ state: "open", received: this.talk.received + 1, plain: true });
    }
    this.note(false, event.event, text);
    this.pending.push(event);
    this.set({ received: this.talk.received + 1, ...(event.connection_id ? { connectionId: event.connection_id } : {}) });
    const { code, reason, message, missing_from: from, missing_to: to, last_seq } = event.content ?? {};
    if (event.event === "system.error") this.refused(event, code, reason ?? message);
    if (event.event === "system.notice" && (code === "resumed" || code === "gap")) {
      if (to) this.set({ seq: Math.max(this.talk.seq, to), holes: this.talk.holes + (to - from + 1) });
      if (last_seq) this.catchUpTo = last_seq;
      this.resume(event.session_id);
    }
    if (typeof event.seq === "number") this.count(event);
  }

  /** An event of the session. @param {any} event */
  count(event) {
    const { seq, holes, caughtUp } = this.talk;
    if (event.seq <= seq) return; // said again
    const late = event.seq <= this.catchUpTo && this.talk.returns > 0; // it came while there was no connection
    this.set({ sessionId: event.session_id, seq: event.seq, holes: holes + event.seq - seq - 1, caughtUp: caughtUp + (late ? 1 : 0) });
    this.unconfirmed.delete(event.step_id);
    if (event.event === "agent.session_created") this.resume(event.session_id);
    if (event.event === "agent.session_end") this.set({ state: "over", why: String(event.content?.reason ?? ""), running: null });
    if (!ENDS.has(event.event)) {
      if (event.seq % ACK_EVERY === 0) this.write({ event: "user.ack", seq: event.seq });
      return;
    }
    // What was answered or called off meanwhile is settled.
    for (const key of this.unconfirmed.keys()) if (!key.startsWith("msg_")) this.unconfirmed.delete(key);
    if (event.step_id === this.talk.running) this.set({ running: null });
    this.write({ event: "user.ack", seq: event.seq });
  }

  /** @param {any} event @param {string} code @param {string} why */
  refused(event, code, why) {
    if (event.step_id) this.unconfirmed.delete(event.step_id);
    if (code === "session_not_found") {
      this.set({ state: "over", why, running: null });
      this.unconfirmed.clear();
      this.leave();
    } else if (event.step_id === this.talk.running && code !== "duplicate") {
      this.set({ running: null });
    }
  }

  /** The session is here: what may have been lost with the last connection is sent again. @param {string} sessionId */
  resume(sessionId) {
    if (this.ready) return;
    this.ready = true;
    this.delay = FIRST_DELAY_MS;
    this.set({ state: "open", sessionId, returns: this.talk.returns + (this.wasReady ? 1 : 0) });
    this.wasReady = true;
    for (const frame of this.unconfirmed.values()) this.write(frame);
  }

  /** @param {boolean} sent @param {string} event @param {string} text */
  note(sent, event, text) {
    this.framesSeen += 1;
    this.talk.frames = [...this.talk.frames.slice(1 - FRAMES_KEPT), { number: this.framesSeen, at: Date.now(), sent, event, text }];
  }

  /** One picture for all that came since the last. @param {Partial<Talk>} changes */
  set(changes) {
    this.talk = { ...this.talk, ...changes };
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const events = this.pending;
      this.pending = [];
      this.talk = { ...this.talk, timeline: turnsOf(events, this.talk.timeline) };
      this.onChange(this.talk);
    });
  }
}

const randomId = () => [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(16).padStart(8, "0")).join("");
