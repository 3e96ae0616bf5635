/** The texts of the console in Chinese, by their English ones. */
import { ZH_LIVE } from "./zhlive.js";

/** @type {Record<string, string>} */
export const ZH = {
  ...ZH_LIVE,
  "Overview": "总览",
};
