// What charts.js uses of uplot.mjs.
export default class uPlot {
  constructor(options: object, data: unknown[], target: Element);
  setData(data: unknown[]): void;
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}
