/** The colours that a program gave its output, for text nodes. */
import { html } from "./vendor/preact.mjs";
import { visibleText } from "./format.js";

/** @typedef {{text: string, bold: boolean, faint: boolean, italic: boolean, underline: boolean, fg: any, bg: any}} Fragment */

/** @type {((line: string) => Fragment[]) | null} */
let parseLine = null;

/** Loads what reads colours; until then they are left out. */
export async function loadColours() {
  if (parseLine) return;
  const { AnsiUp } = await import("./vendor/ansi_up.mjs");
  /** Collects what it would make HTML of. */
  class Fragments extends AnsiUp {
    /** @param {Fragment} fragment */
    transform_to_html(fragment) {
      fragments.push(fragment);
      return "";
    }
    /** The text of a link: where it leads is not to be trusted. @param {{text: string}} link */
    process_hyperlink(link) {
      return this.transform_to_html(this.with_state(link));
    }
  }
  /** @type {Fragment[]} */
  let fragments = [];
  parseLine = (line) => {
    fragments = [];
    const parser = new Fragments(); // anew for each line: any of them may be the first that is seen
    parser.ansi_to_html(line);
    // A sequence that does not end hides nothing.
    if (parser._buffer) fragments.push(parser.with_state({ text: parser._buffer }));
    return fragments;
  };
}

const ESCAPES = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\))/g;

/** A line without its colours. @param {string} line */
export const plainLine = (line) => (line.includes("\u001b") ? line.replace(ESCAPES, "") : line);

/** A line as nodes; in each a text that is harmless for the eye. @param {string} line */
export function coloured(line) {
  const rest = line.endsWith("\r") ? line.slice(0, -1) : line;
  if (!rest.includes("\u001b")) return visibleText(rest);
  if (!parseLine) return visibleText(plainLine(rest));
  return parseLine(rest).map((one) => {
    const style = { ...own("color", one.fg), ...own("backgroundColor", one.bg) };
    return html`<span class=${classes(one)} style=${style}>${visibleText(one.text)}</span>`;
  });
}

/** @param {Fragment} fragment */
const classes = ({ bold, faint, italic, underline, fg, bg }) => [
  bold && "bold", faint && "faint", italic && "italic", underline && "underline",
  fg && fg.class_name !== "truecolor" && `${fg.class_name}-fg`,
  bg && (bg.class_name === "truecolor" ? "own-bg" : `${bg.class_name}-bg`),
].filter(Boolean).join(" ");

/** A colour that is none of the sixteen. @param {string} property @param {any} colour */
const own = (property, colour) => (colour?.class_name === "truecolor" ? { [property]: `rgb(${colour.rgb.join()})` } : {});
