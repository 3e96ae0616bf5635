/**
 * Where in the console the user is: all of it is in the address, behind the `#`.
 *
 * `#/services/echo?tab=logs` is the path `["services", "echo"]` and the query `tab=logs`. A fragment, so that the
 * server has one page to serve, and never sees what a user looked for.
 */
import { useEffect, useState } from "./vendor/preact.mjs";

/** @typedef {{path: string[], query: URLSearchParams}} Route */

/** @returns {Route} */
export function currentRoute() {
  const [, path, query] = /** @type {RegExpExecArray} */ (/^#?\/?([^?]*)\??(.*)$/s.exec(location.hash));
  return { path: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone %, which a user typed
  }
}

/**
 * The address of a view, for a link.
 * @param {string[]} path
 * @param {Record<string, string | number | null | undefined>} [query] empty values are left out
 */
export function address(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(kept.map(([name, value]) => [name, String(value)])).toString();
  return "#/" + path.map(encodeURIComponent).join("/") + (text && "?" + text);
}

/**
 * Goes to a view. `replace`: without a step for the Back button, as for each letter of a filter.
 * @param {string} target made by `address`
 * @param {{replace?: boolean}} [how]
 */
export function go(target, { replace = false } = {}) {
  if (target === location.hash) return;
  if (!replace) {
    location.hash = target;
    return;
  }
  history.replaceState(null, "", target);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/**
 * Changes some of the query of the present view.
 * @param {Record<string, string | number | null | undefined>} changes
 * @param {{replace?: boolean}} [how]
 */
export function goQuery(changes, how = { replace: true }) {
  const { path, query } = currentRoute();
  go(address(path, { ...Object.fromEntries(query), ...changes }), how);
}

/** The present route, and again at each change. @returns {Route} */
export function useRoute() {
  const [route, setRoute] = useState(currentRoute);
  useEffect(() => {
    const follow = () => setRoute(currentRoute());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}
