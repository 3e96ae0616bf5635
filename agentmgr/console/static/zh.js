/** The texts of the console in Chinese, by their English ones: those of some views in each file beside this. */
import { ZH_FRAME } from "./zhframe.js";
import { ZH_LIVE } from "./zhlive.js";
import { ZH_SERVICE } from "./zhservice.js";
import { ZH_TALK } from "./zhtalk.js";

/** @type {Record<string, string>} */
export const ZH = { ...ZH_FRAME, ...ZH_LIVE, ...ZH_SERVICE, ...ZH_TALK };
