// A conversation with the client of npm, of which each line is what it has: node agui_client.mjs URL
import { HttpAgent } from "@ag-ui/client";

const agent = new HttpAgent({ url: process.argv[2], threadId: "node" });
const run = (more) => agent.runAgent(more);
const say = (content) => agent.addMessage({ id: crypto.randomUUID(), role: "user", content });
const show = (what) => console.log(JSON.stringify(what));
const answers = () =>
  agent.messages.filter((each) => each.role === "assistant" && each.content).map((each) => each.content);

say("one");
await run();
show(answers());

say("delete it");
await run();
show(agent.pendingInterrupts.map((each) => [each.message, each.reason]));
const resume = agent.pendingInterrupts.map((each) => ({
  interruptId: each.id,
  status: "resolved",
  payload: { confirmed: true },
}));
await run({ resume });
show([agent.pendingInterrupts, answers().at(-1), agent.messages.find((each) => each.role === "tool").content]);

// It is cut off, and takes the same run up again.
say("wait");
const runId = crypto.randomUUID();
const { unsubscribe } = agent.subscribe({ onTextMessageContentEvent: () => agent.abortRun() });
await run({ runId });
unsubscribe();
await run({ runId });
show(answers().slice(-2));

say("bye");
await run();
show([answers().at(-1), agent.state]);
