/** The lines of a log in memory: millions of them, as the pieces of text in which they came. */

const PIECE_CHARS = 65_536; // smaller pieces are joined
const LINE_CHARS = 4 * 2 ** 20;
const KEPT_CHARS = 128 * 2 ** 20;
const KEPT_LINES = 1_500_000; // an element of more rows would be too high for a browser

/** @typedef {{first: number, text: string, starts: number[]}} Piece `first`: its first line's number; `starts`: of each line */

/** Lines have numbers that stay theirs; `first` is not 0 where lines were put before it, or dropped. */
export class LogLines {
  constructor() {
    /** @type {Piece[]} */
    this.pieces = [];
    this.first = 0;
    this.end = 0; // the number after the last whole line
    this.rest = ""; // the line that is not finished yet
    this.chars = 0;
    this.dropped = 0;
  }

  /** How many there are. */
  get count() {
    return this.end - this.first + (this.rest ? 1 : 0);
  }

  /** @param {string} text as it comes: it may end within a line */
  append(text) {
    text = this.rest + text;
    if (text.length > LINE_CHARS && !text.includes("\n")) text += "\n"; // it may never end
    const whole = text.lastIndexOf("\n") + 1;
    this.rest = text.slice(whole);
    if (!whole) return;
    text = text.slice(0, whole);
    const last = this.pieces.at(-1);
    if (last && last.text.length + text.length <= PIECE_CHARS) {
      this.end += addStarts(last.starts, text, last.text.length);
      last.text += text;
    } else {
      const piece = { first: this.end, text, starts: [] };
      this.end += addStarts(piece.starts, text, 0);
      this.pieces.push(piece);
    }
    this.chars += text.length;
    while (this.pieces.length > 1 && (this.chars > KEPT_CHARS || this.end - this.first > KEPT_LINES)) this.drop();
  }

  /** Puts whole lines before the first. @param {string} text */
  prepend(text) {
    const piece = { first: 0, text, starts: [] };
    this.first -= addStarts(piece.starts, text, 0);
    piece.first = this.first;
    this.pieces.unshift(piece);
    this.chars += text.length;
  }

  /** Forgets the oldest piece. */
  drop() {
    const piece = /** @type {Piece} */ (this.pieces.shift());
    this.first += piece.starts.length;
    this.dropped += piece.starts.length;
    this.chars -= piece.text.length;
  }

  /** The text of a line, without its end. @param {number} number */
  line(number) {
    if (number >= this.end) return this.rest;
    let low = 0;
    for (let high = this.pieces.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1;
      if (this.pieces[middle].first <= number) low = middle;
      else high = middle - 1;
    }
    const { first, text, starts } = this.pieces[low];
    const at = number - first;
    return text.slice(starts[at], (starts[at + 1] ?? text.length) - 1);
  }
}

/** @param {number[]} starts @param {string} text whole lines @param {number} base */
function addStarts(starts, text, base) {
  let count = 0;
  for (let at = 0; at < text.length; at = text.indexOf("\n", at) + 1) {
    starts.push(base + at);
    count += 1;
  }
  return count;
}
