/** The texts of the console in Chinese, by their English ones. */

/** @type {Record<string, string>} */
export const ZH = {
  "Overview": "总览",
};
