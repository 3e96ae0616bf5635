// What the log window uses of ansi_up.mjs.
type Colour = { rgb: number[]; class_name: string } | null;
type Text = { text: string; bold: boolean; faint: boolean; italic: boolean; underline: boolean; fg: Colour; bg: Colour };
export class AnsiUp {
  _buffer: string;
  ansi_to_html(text: string): string;
  with_state(packet: { text: string }): Text;
  transform_to_html(fragment: Text): string;
  process_hyperlink(link: { text: string; url: string }): string;
}
