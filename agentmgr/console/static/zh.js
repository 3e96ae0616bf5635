/** The texts of the console in Chinese, by their English ones. */
import { ZH_LIVE } from "./zhlive.js";
import { ZH_TALK } from "./zhtalk.js";

/** @type {Record<string, string>} */
export const ZH = {
  ...ZH_LIVE,
  ...ZH_TALK,
  "Overview": "总览",
};
