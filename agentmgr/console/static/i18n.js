/** Languages. The English text is the key; `zh.js` has the Chinese one. What has none is shown in English. */
import { ZH } from "./zh.js";

/** @type {Record<string, Record<string, string>>} */
const LANGUAGES = { zh: ZH };

/** @returns {string} `en` or `zh` */
export function language() {
  const chosen = localStorage.getItem("agentmgr.language");
  return chosen ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
}

/** @param {string} name */
export function chooseLanguage(name) {
  localStorage.setItem("agentmgr.language", name);
  location.reload(); // every text of the page is another one
}

const texts = LANGUAGES[language()] ?? {};
document.documentElement.lang = language();

/**
 * A text in the user's language; `{name}` in it is filled in.
 * @param {string} text
 * @param {Record<string, string | number>} [values]
 */
export function t(text, values = {}) {
  return (texts[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
