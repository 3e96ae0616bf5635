// The Vercel AI SDK with both of OpenAI's protocols; each line is what it has: node ai_sdk.mjs URL
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const baseURL = process.argv[2];
const show = (...what) => console.log(JSON.stringify(what));
const chat = createOpenAICompatible({ name: "agentmgr", baseURL, apiKey: "none" })("echo");
const responses = createOpenAI({ baseURL, apiKey: "none" })("echo");

async function streamed(model, prompt) {
  const stream = streamText({ model, prompt });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  show(pieces.length > 3, pieces.join(""), (await stream.reasoningText).trim(), await stream.finishReason);
}

async function refused(model, prompt) {
  try {
    await generateText({ model, prompt }); // which asks again by itself, where that makes sense
  } catch (error) {
    show(error.name, error.statusCode);
  }
}

/** A conversation, as an application keeps it. */
function conversation(model, headers) {
  const messages = [];
  return async (...said) => {
    messages.push(...said);
    const { text, content, response } = await generateText({ model, messages, headers });
    messages.push(...response.messages);
    show(text);
    return content.find((part) => part.type === "tool-approval-request")?.approvalId;
  };
}
const user = (content) => ({ role: "user", content });

await streamed(chat, "count");
let say = conversation(chat, { "X-Session-Id": "ai-sdk" });
await say(user("one"));
await say(user("delete"));
await say(user("yes"));
await say(user("two"));
await refused(chat, "fail");

await streamed(responses, "count");
say = conversation(responses);
await say(user("one"));
const approvalId = await say(user("delete"));
const approval = { type: "tool-approval-response", approvalId, approved: true, providerExecuted: true };
await say({ role: "tool", content: [approval] });
await say(user("two"));
await refused(responses, "fail");
