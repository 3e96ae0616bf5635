/** A service over the last hour or day: what was measured each minute, and from now on each second. */
import { html, useMemo } from "../vendor/preact.mjs";
import { read } from "../api.js";
import { Chart } from "../charts.js";
import { bytesText, countText, cpuText, durationText } from "../format.js";
import { t } from "../i18n.js";
import { goQuery } from "../router.js";
import { useStore } from "../store.js";
import { Panel, useLoaded } from "../ui.js";

/** @type {() => {title: string, lines: [string, string][], text: (value: number) => string}[]} each line: series, label */
const charts = () => [
  { title: t("Connections and sessions"), lines: [["connections", t("Connections")], ["sessions", t("Sessions")]], text: (value) => (Number.isInteger(value) ? countText(value) : "") },
  { title: t("Processor"), lines: [["cpu", t("of one core")]], text: cpuText },
  { title: t("Memory"), lines: [["memory_bytes", t("resident")]], text: bytesText },
  { title: t("First byte of an answer"), lines: [["first_byte_p50_s", "p50"], ["first_byte_p95_s", "p95"]], text: durationText },
  { title: t("Automatic restarts"), lines: [["restarts", t("since it was registered")]], text: (value) => (Number.isInteger(value) ? countText(value) : "") },
];

/** @param {{service: any, figures: any, route: import("../router.js").Route}} props */
export function ServiceCharts({ service, figures, route }) {
  const day = route.query.get("range") === "day";
  const minutes = day ? 1440 : 60;
  const minute = Math.floor(Date.now() / 60_000);
  const [history] = useLoaded(
    async (signal) => {
      const { minutes: at, services } = await read("/history", { services: service.service_id, minutes }, signal);
      return { at, ...services[service.service_id] };
    }, [service.service_id, minutes, minute]);
  const trace = useStore((all) => all.traces.get(service.service_id));
  const series = useMemo(() => joined(history, trace, minutes), [history, trace, minutes]);
  const ranges = /** @type {[string, string][]} */ ([["", t("Last hour")], ["day", t("Last day")]]);
  const actions = html`<div class="choice" role="group" aria-label=${t("How far back")}>${ranges.map(([range, text]) => html`
    <button type="button" aria-pressed=${(range === "day") === day} onClick=${() => goQuery({ range }, { replace: false })}>${text}</button>`)}</div>`;
  return html`<${Panel} title=${t("Over time")} actions=${actions}>
    ${series.at.length < 2 && html`<p class="empty">${t("Nothing measured yet.")}</p>`}
    <div class="charts">${series.at.length > 1 && charts().map(({ title, lines, text }) => html`<${Chart} key=${title + day} title=${title} at=${series.at}
      series=${lines.map(([name, label]) => ({ label, values: series.values[name], text }))} />`)}</div></${Panel}>`;
}

const NAMES = ["connections", "sessions", "cpu", "memory_bytes", "first_byte_p50_s", "first_byte_p95_s", "restarts"];

/**
 * The minutes that were stored, and then the seconds that this page has seen.
 * @param {any} history @param {any[] | undefined} trace @param {number} minutes
 */
function joined(history, trace = [], minutes) {
  const from = Date.now() / 1000 - minutes * 60;
  /** @type {number[]} */
  const at = (history?.at ?? []).slice();
  /** @type {Record<string, (number | null)[]>} */
  const values = {};
  const last = at.at(-1) ?? from;
  const seen = trace.filter((one) => one.at / 1000 > last);
  for (const name of NAMES) values[name] = [...(history?.[name] ?? at.map(() => null)), ...seen.map((one) => one[name] ?? null)];
  at.push(...seen.map((one) => one.at / 1000));
  return { at, values };
}
