/** The views, in the order of the sidebar. Each is a component, which gets the `route`. */
import { Access } from "./views/access.js";
import { Events } from "./views/events.js";
import { Overview } from "./views/overview.js";
import { Playground } from "./views/playground.js";
import { Questions } from "./views/questions.js";
import { Register } from "./views/register.js";
import { Routing } from "./views/routing.js";
import { Service } from "./views/service.js";
import { Services } from "./views/services.js";
import { Sessions } from "./views/sessions.js";

/**
 * @typedef {{
 *   name: string,
 *   label?: string,
 *   icon?: string,
 *   scope?: "read" | "sessions" | "connect" | "admin",
 *   View: (props: {route: import("./router.js").Route}) => any,
 * }} ViewEntry `name`: the first part of its address; without a label it is not in the sidebar; `scope`: what it takes
 */

/** @type {ViewEntry[]} */
export const VIEWS = [
  { name: "overview", label: "Overview", icon: "◎", View: Overview },
  { name: "services", label: "Services", icon: "▤",
    View: (props) => (props.route.path[1] ? Service(props) : Services(props)) }, // each place is drawn afresh
  { name: "sessions", label: "Sessions", icon: "❝", View: Sessions },
  { name: "questions", label: "Questions", icon: "?", View: Questions },
  { name: "routing", label: "Routing", icon: "⇄", View: Routing },
  { name: "playground", label: "Playground", icon: "▷", scope: "connect", View: Playground },
  { name: "events", label: "Events", icon: "≡", View: Events },
  { name: "register", scope: "admin", View: Register },
  { name: "access", label: "Access", icon: "◆", scope: "admin", View: Access },
];
