/** The fields of a service, as the API's own schema has them: what they are for, what they may hold, what is usual. */
import { call } from "./api.js";
import { shellWord } from "./format.js";
import { useLoaded } from "./ui.js";

/**
 * @typedef {{
 *   name: string, title: string, help: string, unit: string, placeholder: string, standard: any, live: boolean, nullable: boolean,
 *   kind: "text" | "number" | "choice" | "switch" | "list" | "words" | "variables",
 *   choices: string[],
 * }} ServiceField `standard`: what it is if left out; `live`: it takes effect without a restart
 * @typedef {string | boolean | [string, string][]} Typed what a control of the form holds
 */

/** In place of a value that is not shown. Given back, it means: as it was. */
export const HIDDEN = "***";

/** @type {Promise<ServiceField[]> | null} */
let fieldsLoaded = null;

/** All fields of a service; undefined until they are here. @returns {ServiceField[] | undefined} */
export function useServiceFields() {
  const [fields] = useLoaded(async () => {
    fieldsLoaded ??= call("GET", "/openapi.json", { base: "" }).then((document) => serviceFieldsOf(document.components.schemas));
    fieldsLoaded.catch(() => (fieldsLoaded = null));
    return fieldsLoaded;
  }, []);
  return fields;
}

/** @param {any} schemas @returns {ServiceField[]} */
function serviceFieldsOf(schemas) {
  return Object.entries(schemas.NewService.properties).map(([name, stated]) => {
    const parts = stated.anyOf ?? [stated];
    const part = parts.find((/** @type {any} */ one) => one.type !== "null");
    const { type, enum: choices = [] } = part.$ref ? schemas[part.$ref.split("/").at(-1)] : part;
    return {
      name,
      title: stated.title ?? name,
      unit: stated["x-unit"] ?? "",
      placeholder: (stated["x-placeholder"] ?? "").replaceAll("`", ""),
      help: (stated.description ?? "").replaceAll("`", ""),
      standard: stated.default ?? null,
      live: stated["x-live"] === true,
      nullable: parts.some((/** @type {any} */ one) => one.type === "null"),
      kind: controlKind(name, type, choices),
      choices,
    };
  });
}

/** @param {string} name @param {string} type @param {string[]} choices @returns {ServiceField["kind"]} */
function controlKind(name, type, choices) {
  if (name === "command") return "words";
  if (choices.length) return "choice";
  if (type === "integer" || type === "number") return "number";
  if (type === "boolean") return "switch";
  return type === "object" ? "variables" : type === "array" ? "list" : "text";
}

/** A value as its control shows it. @param {ServiceField} field @param {any} value @returns {Typed} */
export function fieldTyped(field, value) {
  if (field.kind === "switch") return Boolean(value);
  if (field.kind === "variables") return Object.entries(value ?? {});
  if (field.kind === "words") return value.map(shellWord).join(" ");
  if (field.kind === "list") return value.join(", ");
  return value === null || value === undefined ? "" : String(value);
}

/**
 * What the control means. What it cannot mean is given as it was typed, for the API to refuse in its own words.
 * @param {ServiceField} field
 * @param {any} typed
 */
export function fieldValue(field, typed) {
  if (field.kind === "switch") return typed;
  if (field.kind === "variables") return Object.fromEntries(typed.filter((/** @type {string[]} */ [name, value]) => name || value));
  if (field.kind === "words") return shellWords(typed);
  if (field.kind === "list") return typed.split(/,(?![^(]*\))/).map((/** @type {string} */ word) => word.trim()).filter(Boolean);
  if (typed.trim() === "" && (field.nullable || field.kind === "number")) return field.nullable ? null : field.standard;
  if (field.kind === "number") return Number.isNaN(Number(typed)) ? typed : Number(typed);
  return field.kind === "choice" ? typed : typed.trim();
}

/** Are they the same value? The order of names says nothing. @param {any} a @param {any} b */
export const sameValue = (a, b) => ordered(a) === ordered(b);

/** @param {any} value @returns {string} */
const ordered = (value) => JSON.stringify(
  value !== null && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).sort() : value);

/**
 * A command line taken apart, as a shell does it: quotes and backslashes, nothing else.
 * @param {string} text
 * @returns {string[]}
 */
export function shellWords(text) {
  const words = [];
  let word = /** @type {string | null} */ (null);
  for (const [, single, double, escaped, blank, plain] of text.matchAll(
    /'([^']*)'?|"((?:\\.|[^"\\])*)"?|\\(.)|(\s+)|([^\s'"\\]+)/gs,
  )) {
    if (blank !== undefined) {
      if (word !== null) words.push(word);
      word = null;
    } else {
      word = (word ?? "") + (single ?? double?.replace(/\\(["\\$`])/g, "$1") ?? escaped ?? plain ?? "");
    }
  }
  return word === null ? words : [...words, word];
}

/**
 * The options of a command line that say the same. @param {ServiceField[]} fields @param {Record<string, any>} values
 * @returns {string[]}
 */
export function optionWords(fields, values) {
  /** @type {string[]} */
  const words = [];
  for (const { name, kind, nullable } of fields) {
    const value = values[name];
    if (value === undefined || kind === "words" || name === "agent_factory_path" || name === "name") continue;
    const flag = `--${name.replaceAll("_", "-")}`;
    if (kind === "switch") words.push(value ? flag : `--no-${flag.slice(2)}`);
    else if (name === "tags") words.push(flag, value.join(","));
    else if (kind === "list") words.push(...value.flatMap((/** @type {string} */ one) => [flag, one]));
    else if (kind === "variables") words.push(...Object.entries(value).flatMap(([key, text]) => [flag, `${key}=${text && HIDDEN}`]));
    else if (value !== null) words.push(flag, String(value));
    else if (nullable && name === "port") words.push(flag, "0");
  }
  return words;
}
