/** The way in, where tokens are required: a one-time ticket in the link that `agentmgr console` opens. */
import { html } from "./vendor/preact.mjs";
import { call, Problem } from "./api.js";
import { t } from "./i18n.js";
import { inform } from "./notices.js";
import { signedIn } from "./store.js";
import { CommandLine } from "./ui.js";

/** Trades the ticket in the address, if there is one, for a cookie; the address is cleared of it first. */
export async function tradeTicket() {
  const ticket = /^#ticket=(.+)$/.exec(location.hash)?.[1];
  if (!ticket) return;
  history.replaceState(null, "", "#/");
  try {
    await call("POST", "/console/login", { body: { ticket } });
    await signedIn();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    inform("bad", error.message);
  }
}

export function Login() {
  return html`<main class="login"><h1>agentmgr</h1>
    <p>${t("This manager requires a login. In a terminal, as the user who runs it:")}</p>
    <${CommandLine} text="agentmgr console" />
    <p>${t("It opens this page with a one-time ticket, valid for one minute.")}</p>
    <button class="primary" onClick=${() => signedIn()}>${t("Done, continue")}</button></main>`;
}
