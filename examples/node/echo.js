// Can a program in another language be a service? Any command that serves WebSockets can.
//
// agentmgr register echo-js --auto-start -- node examples/node/echo.js {port}
// agentmgr chat echo-js
//
// With no package at all; a real program would use one, such as ws.
const { createHash } = require("node:crypto");
const { createServer } = require("node:http");

function frame(opcode, payload) {
  const length = payload.length;
  const head = length < 126 ? [length] : [126, length >> 8, length & 255];
  return Buffer.concat([Buffer.from([0x80 | opcode, ...head]), payload]);
}

function serve(socket) {
  let data = Buffer.alloc(0);
  socket.on("error", () => socket.destroy());
  socket.on("data", (chunk) => {
    data = Buffer.concat([data, chunk]);
    for (;;) {
      if (data.length < 2) return;
      const long = (data[1] & 127) === 126;
      const start = (long ? 4 : 2) + 4;
      if (data.length < start) return;
      const end = start + (long ? data.readUInt16BE(2) : data[1] & 127);
      if (data.length < end) return;
      const mask = data.subarray(start - 4, start);
      const payload = Buffer.from(data.subarray(start, end)).map((byte, i) => byte ^ mask[i % 4]);
      const opcode = data[0] & 15;
      data = data.subarray(end);
      if (opcode === 1) socket.write(frame(1, Buffer.from(`Node heard: ${payload}`)));
      else if (opcode === 9) socket.write(frame(10, payload));
      else if (opcode === 8) return socket.end(frame(8, payload));
    }
  });
}

const server = createServer((_, response) => response.writeHead(426).end());
server.on("upgrade", (request, socket) => {
  const key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
  const accept = createHash("sha1").update(key).digest("base64");
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  serve(socket);
});
server.listen(Number(process.argv[2]), process.env.HOST);
process.on("SIGTERM", () => process.exit(0));
