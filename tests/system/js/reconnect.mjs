// Connects socket.io-client in three ways, as deployed pages do, and prints what each meets as one JSON line: first
// {connected: 3}; then {who, draining}, {who, lost}, {who, back}. Ends when all are back without having done anything for it.
//
// The argument is {url, token}; the namespace is in the URL.

import { io } from "socket.io-client";

const { url, token } = JSON.parse(process.argv[2]);
const say = (line) => console.log(JSON.stringify(line));
const ways = { upgraded: ["polling", "websocket"], polling: ["polling"], websocket: ["websocket"] };

const sockets = Object.entries(ways).map(([who, transports]) => {
  const socket = io(url, { auth: { token }, transports, forceNew: true, reconnectionDelay: 200, reconnectionDelayMax: 500 });
  socket.on("serverDraining", ({ reconnect_in_ms }) => say({ who, draining: reconnect_in_ms }));
  socket.on("disconnect", (reason) => say({ who, lost: reason }));
  const settled = new Promise((resolve) => {
    socket.once("connect", () => {
      const { engine } = socket.io;
      if (who !== "upgraded" || engine.transport.name === "websocket") resolve();
      else engine.once("upgrade", resolve);
    });
  });
  return { who, socket, settled };
});

await Promise.all(sockets.map(({ settled }) => settled));
const back = sockets.map(({ who, socket }) => new Promise((resolve) => socket.once("connect", () => resolve(say({ who, back: true })))));
say({ connected: sockets.length });
await Promise.all(back);
process.exit(0);
