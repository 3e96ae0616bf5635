/** The same conversation in a program: what the playground shows to copy, and a test runs. */
import { shellWord } from "./format.js";

/** @typedef {{url: string, api: string, session: string | null, seq: number, message: string, tokens: boolean}} SampleOf
 *  `url`: of the gateway, with the path; `api`: of this manager; `tokens`: it asks for some */

/** As Python and JavaScript both write it. @param {string} text */
const quoted = (text) => JSON.stringify(text);

/** By the REST API: for what waits or comes from elsewhere. It speaks into a session that there is. @param {SampleOf} of */
export function curlSample({ api, session, seq, message, tokens }) {
  const key = tokens ? ' -H "Authorization: Bearer $AGENTMGR_TOKEN"' : "";
  const base = `${api}/api/v1/sessions/${session ?? "SESSION"}`;
  return [
    `curl -sS${key} -H 'Content-Type: application/json' \\`,
    `  -d ${shellWord(JSON.stringify({ content: message }))} ${shellWord(`${base}/messages`)}`,
    "# what comes of it, event by event; Ctrl-C ends it",
    `curl -sSN${key} ${shellWord(`${base}/events?since=${seq}`)}`,
  ].join("\n");
}

/** @param {SampleOf} of */
export function pythonSample({ url, message, tokens }) {
  const key = tokens ? ', headers={"Authorization": "Bearer " + os.environ["AGENTMGR_TOKEN"]}' : "";
  return [
    ...(tokens ? ["import os", ""] : []),
    "import trio",
    "",
    "from agentmgr.client import open_session",
    "",
    "",
    "async def main():",
    "    # It survives its connections: after a cut it is taken up where it was.",
    `    async with open_session(${quoted(url)}${key}) as session:`,
    `        async for event in await session.send(${quoted(message)}):`,
    "            print(event.event, event.content)",
    '            if event.event == "agent.user_confirm":',
    "                await session.respond(event, approved=False)",
    "",
    "",
    "trio.run(main)",
  ].join("\n");
}

/** @param {SampleOf} of */
export function javascriptSample({ url, message, tokens }) {
  const address = tokens ? "`" + url + (url.includes("?") ? "&" : "?") + "ticket=${ticket}`" : quoted(url);
  return [
    ...(tokens ? ["// A ticket is good for one connection: your server gets it from POST /api/v1/tickets."] : []),
    `const socket = new WebSocket(${address});`,
    "const tell = (event) => socket.send(JSON.stringify(event));",
    "socket.onopen = () => {",
    '  tell({ event: "user.create_session" });',
    `  tell({ event: "user.message", step_id: "m1", content: ${quoted(message)} });`,
    "};",
    "socket.onmessage = ({ data }) => {",
    "  const { event, step_id, content } = JSON.parse(data);",
    "  console.log(event, content);",
    '  if (event === "agent.user_confirm") tell({ event: "user.response", step_id, content: { confirmed: false } });',
    '  if (event === "agent.final_answer" && step_id === "m1") socket.close();',
    "};",
    "// It ends with its connection; examples/browser_client.html comes back after a cut.",
  ].join("\n");
}
