// What the log window uses of ansi_up.mjs.
type Colour = { rgb: number[]; class_name: string } | null;
export class AnsiUp {
  ansi_to_html(text: string): string;
  transform_to_html(fragment: { text: string; bold: boolean; faint: boolean; italic: boolean; underline: boolean; fg: Colour; bg: Colour }): string;
}
