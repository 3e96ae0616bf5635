/** An event of the manager's log as a sentence. */
import { visibleText } from "./format.js";

/** @param {any} event @param {Map<string, any>} services @returns {string} */
export function eventText(event, services) {
  const { kind, service_id: id, detail = {} } = event;
  const name = services.get(id)?.name ?? detail.name ?? detail.service_name ?? id ?? "";
  const slot = detail.slot > 0 ? ` [${detail.slot}]` : "";
  const said = detail.error_message ?? detail.reason ?? detail.last_exit ?? "";
  return visibleText([`${kind}`, `${name}${slot}`, said].filter(Boolean).join(" · "));
}
