/** How the instances of a service have ended: why, when, and what they wrote last. */
import { html } from "../vendor/preact.mjs";
import { plainLine } from "../ansi.js";
import { read } from "../api.js";
import { durationText } from "../format.js";
import { t } from "../i18n.js";
import { Ago, Empty, Failed, Foreign, Panel, Status, useLoaded } from "../ui.js";

/** The newest first. @param {any} service @param {number} limit @returns {[any[] | undefined, any, () => void]} */
export function useEnds(service, limit) {
  const [page, problem, again] = useLoaded(
    (signal) => read(`/services/${service.service_id}/ends`, { limit }, signal),
    [service.service_id, limit, service.status, service.ready, service.restart_count, service.error_message],
  );
  return [page?.items, problem, again];
}

/** @param {{service: any}} props */
export function ServiceEnds({ service }) {
  const [ends, problem, again] = useEnds(service, 50);
  if (problem) return html`<${Failed} problem=${problem} again=${again} />`;
  if (!ends) return t("Loading …");
  return html`<${Panel} title=${t("Ends, newest first")}>${
    ends.length === 0
      ? html`<${Empty}>${t("No instance has ended yet.")}</${Empty}>`
      : html`<ol class="ends">${ends.map((end, at) => html`<li key=${end.at + end.slot}><${EndEntry} end=${end} open=${at === 0} /></li>`)}</ol>`}</${Panel}>`;
}

/** One end. @param {{end: any, open: boolean}} props */
export function EndEntry({ end, open }) {
  const output = plainLine((end.output ?? "").trimEnd());
  return html`<div class="end"><p><${Status} value=${end.planned ? "completed" : "failed"} text=${end.planned ? t("planned") : t("unplanned")} />${" "}
      <strong><${Foreign} text=${end.reason.trim().split("\n").at(-1)} most=${500} /></strong></p>
    <p class="hint"><${Ago} at=${end.at} /> · ${[t("instance {slot}", { slot: end.slot }), end.node,
      end.pid && `pid ${end.pid}`, end.exit, end.ran_s !== null && t("after {time}", { time: durationText(end.ran_s) })].filter(Boolean).join(" · ")}</p>
    ${output && html`<details open=${open}><summary>${t("Last output")}</summary>
      <div class="words"><${Foreign} text=${output} most=${8000} /></div></details>`}</div>`;
}
