/** Small lines in tables, and charts over time. */
import { html, useEffect, useRef } from "./vendor/preact.mjs";
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
 * A chart over time.
 * @param {{at: number[], series: {label: string, values: (number | null)[], text: (value: number) => string}[], title: string}} props
 *   `at`: seconds since 1970
 */
export function Chart({ at, series, title }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const data = [at, ...series.map((one) => one.values)];
  const newest = useRef(data);
  newest.current = data;
  useEffect(() => {
    let gone = false;
    const draw = async () => {
      const { default: uPlot } = await import("./vendor/uplot.mjs");
      const element = box.current;
      if (gone || !element) return;
      const style = getComputedStyle(element);
      const ink = style.getPropertyValue("--dim");
      const grid = { stroke: style.getPropertyValue("--line"), width: 1 };
      plot.current = new uPlot({
        width: element.clientWidth,
        height: 160,
        legend: { live: true },
        axes: [
          { stroke: ink, grid, values: (/** @type {any} */ _, /** @type {number[]} */ marks) => distinct(marks.map(timeMark)) },
          { stroke: ink, grid, size: 64, values: (/** @type {any} */ _, /** @type {number[]} */ marks) => distinct(marks.map((mark) => series[0].text(mark))) },
        ],
        scales: { y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => [0, Math.max(high, 1e-9) * 1.1] } },
        series: [{ label: t("Time"), value: (/** @type {any} */ _, /** @type {number | null} */ at) => (at ? clockText(at * 1000) : "–") }, ...series.map((one, index) => ({
          label: one.label, stroke: style.getPropertyValue(`--chart${index + 1}`), width: 1.5, spanGaps: false, points: { show: false },
          value: (/** @type {any} */ _, /** @type {number | null} */ value) => (value === null ? "–" : one.text(value)),
        }))],
      }, newest.current, element);
    };
    void draw();
    const sized = new ResizeObserver(() => plot.current?.setSize({ width: box.current?.clientWidth ?? 300, height: 160 }));
    if (box.current) sized.observe(box.current);
    return () => {
      gone = true;
      sized.disconnect();
      plot.current?.destroy();
    };
  }, [series.map((one) => one.label).join()]);
  useEffect(() => plot.current?.setData(newest.current), [at]);
  const none = series.every((one) => one.values.every((value) => value === null));
  return html`<figure class="chart"><figcaption>${title} ${none && html`<small>${t("nothing measured")}</small>`}</figcaption><div ref=${box}></div></figure>`;
}

/** Each text once: marks that are close together would say the same. @param {string[]} texts */
const distinct = (texts) => texts.map((text, at) => (text === texts[at - 1] ? "" : text));

/** @param {number} at seconds since 1970 */
const timeMark = (at) => new Date(at * 1000).toLocaleTimeString(language(), { hour: "2-digit", minute: "2-digit", hour12: false });
