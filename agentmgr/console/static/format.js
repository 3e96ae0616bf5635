/** Figures and times as people read them. */
import { language, t } from "./i18n.js";

const NONE = "–";

/** @param {number | null | undefined} bytes */
export function bytesText(bytes) {
  if (bytes === null || bytes === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  for (; bytes >= 1024 && power < units.length - 1; power += 1) bytes /= 1024;
  return `${power && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[power]}`;
}

/** @param {number | null | undefined} cores a fraction of one */
export function cpuText(cores) {
  if (cores === null || cores === undefined) return NONE;
  const percent = cores * 100;
  return `${percent < 10 ? percent.toFixed(1) : Math.round(percent)} %`;
}

/** Of a number, or of a range such as "2..8". @param {number | string} instances */
export const mostInstances = (instances) => Number(String(instances).split("..").at(-1));

/** @param {number | null | undefined} count */
export function countText(count) {
  return count === null || count === undefined ? NONE : count.toLocaleString(language());
}

/** @param {number | null | undefined} seconds */
export function durationText(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return NONE;
  if (seconds < 1) return t("{count} ms", { count: Math.round(seconds * 1000) });
  if (seconds < 90) return t("{count} s", { count: seconds < 10 ? seconds.toFixed(1) : Math.round(seconds) });
  if (seconds < 5400) return t("{count} min", { count: Math.round(seconds / 60) });
  if (seconds < 129_600) return t("{count} h", { count: Math.round(seconds / 3600) });
  return t("{count} days", { count: Math.round(seconds / 86_400) });
}

/** How long ago, or in how long. @param {string | null | undefined} time ISO 8601 @param {number} now ms */
export function agoText(time, now = Date.now()) {
  if (!time) return NONE;
  const seconds = (now - Date.parse(time)) / 1000;
  if (Math.abs(seconds) < 1.5) return t("now");
  const length = durationText(Math.abs(seconds));
  return seconds < 0 ? t("in {time}", { time: length }) : t("{time} ago", { time: length });
}

// Made once: to make one takes longer than a hundred times to use it.
const clockFormat = new Intl.DateTimeFormat(language(), { timeStyle: "medium", hourCycle: "h23" });
const dateFormat = new Intl.DateTimeFormat(language());

/** A time of day, with the date where that is not today. @param {string | number | null | undefined} time */
export function clockText(time) {
  if (!time) return NONE;
  const at = new Date(time);
  const clock = clockFormat.format(at);
  return at.toDateString() === new Date().toDateString() ? clock : `${dateFormat.format(at)} ${clock}`;
}

/** Marks that change how text is shown: direction, escapes, what is not seen. They are shown as their number. */
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/**
 * Text of a stranger, made harmless for the eye: an agent cannot turn a line around, nor hide a part of it.
 * @param {string} text
 */
export function visibleText(text) {
  return text.replace(UNSEEN, (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * The beginning of a text that is too long to show whole, and how much is left out.
 * @param {string} text
 * @param {number} most characters
 * @returns {[string, number]}
 */
export function cutText(text, most) {
  return text.length <= most ? [text, 0] : [text.slice(0, most), text.length - most];
}

/** What a value of JSON looks like. @param {unknown} value */
export function valueText(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "";
}

/** A word of a command line, quoted where the shell would read it otherwise. @param {string} text */
export function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A command line of ours. @param {...(string | number)} words */
export const commandText = (...words) => ["agentmgr", ...words.map((word) => shellWord(String(word)))].join(" ");
