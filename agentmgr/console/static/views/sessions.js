/** All sessions of all services, the last used first. */
import { html } from "../vendor/preact.mjs";
import { t } from "../i18n.js";
import { Head } from "../ui.js";
import { Session } from "./session.js";

/** @param {{route: import("../router.js").Route}} props */
export function Sessions({ route }) {
  const id = route.path[1];
  if (id) return html`<${Session} id=${id} />`;
  return html`<${Head} title=${t("Sessions")} />`;
}
