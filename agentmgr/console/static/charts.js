/** Small lines in tables, and charts over time. */
import { html, useState } from "./vendor/preact.mjs";
import { read } from "./api.js";
import { clockText } from "./format.js";
import { language, t } from "./i18n.js";
import { useLoaded } from "./ui.js";

/** A line without axes: how something went. @param {{values: (number | null)[] | undefined}} props */
export function Spark({ values }) {
  const known = (values ?? []).filter((value) => value !== null);
  if (known.length < 2) return null;
  const most = Math.max(...known, 1);
  const points = /** @type {(number | null)[]} */ (values)
    .map((value, at) => [at, value])
    .filter(([, value]) => value !== null)
    .map(([at, value]) => `${((Number(at) / (Number(values?.length) - 1)) * 98 + 1).toFixed(1)},${(19 - (Number(value) / most) * 17).toFixed(1)}`);
  return html`<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">
    <polyline points=${points.join(" ")} /></svg>`;
}

/** The last hour of services, by minute; read again when others are on screen. @param {string[]} ids */
export function useHistory(ids) {
  const asked = ids.slice(0, 100).join(",");
  const [history] = useLoaded(
    async (signal) => (asked ? read("/history", { services: asked, minutes: 60 }, signal) : null),
    [asked, Math.floor(Date.now() / 60_000)],
  );
  return history;
}

/**
 * A chart over time: where one points, the values of that moment; else the newest.
 * @param {{at: number[], series: {label: string, values: (number | null)[], text: (value: number) => string}[], title: string}} props
 *   `at`: seconds since 1970
 */
export function Chart({ at, series, title }) {
  const [pointed, point] = useState(/** @type {number | null} */ (null));
  const from = at[0];
  const span = Math.max(at[at.length - 1] - from, 1);
  const top = roundTop(Math.max(...series.flatMap((one) => one.values.map((value) => value ?? 0))));
  const none = series.every((one) => one.values.every((value) => value === null));
  const x = (/** @type {number} */ time) => ((time - from) / span) * 1000;
  const line = (/** @type {(number | null)[]} */ values) => values.map((value, index) =>
    value === null ? "" : `${(values[index - 1] ?? null) === null ? "M" : "L"}${x(at[index]).toFixed(1)} ${(100 - (value / top) * 100).toFixed(2)}`).join("");
  const move = (/** @type {any} */ event) => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    const time = from + ((event.clientX - left) / width) * span;
    const after = at.findIndex((one) => one >= time);
    point(after > 0 && time - at[after - 1] < at[after] - time ? after - 1 : Math.max(after, 0));
  };
  const moment = pointed !== null && pointed < at.length ? pointed : at.length - 1;
  const marks = distinct([top, top / 2, 0].map((value) => series[0].text(value)));
  return html`<figure class="chart"><figcaption>${title} ${none && html`<small>${t("nothing measured")}</small>`}</figcaption>
    <div class="plot"><div class="marks" aria-hidden="true">${marks.map((mark) => html`<span>${mark}</span>`)}</div>
      <svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label=${title} onPointerMove=${move} onPointerLeave=${() => point(null)}>
        ${[0, 50, 100].map((y) => html`<path class="grid" d="M0 ${y}H1000" />`)}
        ${series.map((one, index) => html`<path class="line${index + 1}" d=${line(one.values)} />`)}
        ${pointed !== null && html`<path class="grid" d="M${x(at[moment])} 0V100" />`}</svg></div>
    <div class="times" aria-hidden="true">${[0, 0.5, 1].map((part) => html`<span>${timeMark(from + span * part)}</span>`)}</div>
    <p class="legend">${series.map((one, index) => html`<span><i class="line${index + 1}" aria-hidden="true"></i> ${one.label} <b>${
      (one.values[moment] ?? null) === null ? "–" : one.text(/** @type {number} */ (one.values[moment])) || one.values[moment]}</b></span>`)}
      <small>${pointed === null ? "" : clockText(at[moment] * 1000)}</small></p></figure>`;
}

/** The end of the scale: 1, 2 or 5 with zeros. @param {number} most */
function roundTop(most) {
  if (most <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return power * /** @type {number} */ ([1, 2, 5, 10].find((step) => step * power >= most));
}

/** Each text once: marks that are close together would say the same. @param {string[]} texts */
const distinct = (texts) => texts.map((text, at) => (text === texts[at - 1] ? "" : text));

/** @param {number} at seconds since 1970 */
const timeMark = (at) => new Date(at * 1000).toLocaleTimeString(language(), { hour: "2-digit", minute: "2-digit", hour12: false });
