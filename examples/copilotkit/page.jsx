// An agent in CopilotKit's chat. The gateway is its runtime: there is no server in Node.
//
//   agentmgr run examples/streaming_agent.py --allow-origin http://localhost:8000
//   cd examples/copilotkit && npm install && npm start      # in another terminal
//
// Then open http://localhost:8000/ and say "delete notes.txt", or load the page again in the middle of an
// answer. Of another gateway or service: http://localhost:8000/?gateway=http://HOST:PORT&agent=NAME

import { createRoot } from "react-dom/client";
import { CopilotChat, CopilotKitProvider, useInterrupt } from "@copilotkit/react-core/v2";
import "@copilotkit/react-core/v2/styles.css";

const asked = new URLSearchParams(location.search);
const gateway = asked.get("gateway") ?? "http://localhost:9090";
const agent = asked.get("agent") ?? "default"; // that is whichever service the gateway's rules choose

// The conversation's name is in the page's address, so that the page finds it again.
if (!location.hash) location.hash = crypto.randomUUID();
const thread = location.hash.slice(1);

function Questions() {
  useInterrupt({
    render: ({ interrupt, resolve }) => (
      <div className="question">
        <p>{interrupt.message}</p>
        <button onClick={() => resolve({ approved: true })}>Yes</button>
        <button onClick={() => resolve({ approved: false })}>No</button>
      </div>
    ),
  });
  return null;
}

// Where the gateway asks for a token: headers={{ Authorization: "Bearer …" }}
createRoot(document.getElementById("root")).render(
  <CopilotKitProvider runtimeUrl={`${gateway}/copilotkit`} agentId={agent}>
    <Questions />
    <CopilotChat threadId={thread} />
  </CopilotKitProvider>,
);
