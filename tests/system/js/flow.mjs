// Drives socket.io-client as deployed pages do, and prints what it meets as one JSON line each:
// {who, event, payload} for events, {who, ack, payload} for acknowledgements, {who, refused, data} for connect_error.
//
// The argument is {urls: [teacher's, student's], tokens: {teacher, student, bad}, namespace, session_id}.

import { io } from "socket.io-client";

const { urls, tokens, namespace, session_id } = JSON.parse(process.argv[2]);
const SECONDS = 10;
const about = { session_id };

const say = (line) => console.log(JSON.stringify(line));

const soon = (promise, what) =>
  Promise.race([
    promise,
    new Promise((_, reject) => setTimeout(() => reject(new Error(`no ${what} within ${SECONDS} s`)), SECONDS * 1000).unref()),
  ]);

function open(who, url, token, options = {}) {
  const socket = io(url + namespace, { auth: { token }, reconnection: false, forceNew: true, ...options });
  const heard = [];
  let wake = () => {};
  socket.onAny((event, payload) => {
    say({ who, event, payload });
    heard.push(event);
    wake();
  });
  return {
    socket,
    connected: () => soon(new Promise((resolve, reject) => socket.once("connect", resolve).once("connect_error", reject)), `connect of ${who}`),
    async ask(event, payload) {
      say({ who, ack: event, payload: await socket.timeout(SECONDS * 1000).emitWithAck(event, payload) });
    },
    async hears(event) {
      await soon(
        (async () => {
          while (!heard.includes(event)) await new Promise((resolve) => (wake = resolve));
        })(),
        `${event} for ${who}`,
      );
      heard.splice(heard.indexOf(event), 1);
    },
  };
}

const refused = open("intruder", urls[0], tokens.bad);
await soon(
  new Promise((resolve) =>
    refused.socket.once("connect_error", (error) => {
      say({ who: "intruder", refused: error.message, data: error.data });
      resolve();
    }),
  ),
  "connect_error",
);
refused.socket.close();

// As the library comes: long-polling first, then the upgrade.
const teacher = open("teacher", urls[0], tokens.teacher);
await teacher.connected();
const { engine } = teacher.socket.io;
if (engine.transport.name !== "websocket") {
  await soon(new Promise((resolve) => engine.once("upgrade", resolve)), "upgrade");
}
say({ who: "teacher", transport: engine.transport.name });

const student = open("student", urls[1], tokens.student, { transports: ["websocket"] });
await student.connected();
say({ who: "student", transport: student.socket.io.engine.transport.name });

await student.ask("joinAttendanceSession", about);
await student.hears("attendanceError");

await teacher.ask("startAttendanceSession", about);
await teacher.hears("attendanceSessionStarted");

await student.ask("joinAttendanceSession", { sessionId: session_id });
await student.hears("attendanceSessionJoined");
await student.hears("attendanceProgress");
await teacher.hears("studentJoinedAttendance");

await teacher.ask("getAttendanceSessionData", about);
await teacher.hears("attendanceSessionData");

await teacher.ask("endAttendanceSession", about);
await teacher.hears("attendanceSessionEndedConfirm");
await teacher.hears("attendanceSessionEnded");
await student.hears("attendanceSessionEnded");

teacher.socket.close();
student.socket.close();
