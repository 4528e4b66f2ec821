#!/usr/bin/env node
// Prints a session's event stream in readable form and resumes where it was cut. Also a small example of a client:
//   node hack/stream.mjs http://127.0.0.1:3003 SESSION_ID    (token in OPENCODE_TOKEN)
const [base, session] = process.argv.slice(2);
const token = process.env.OPENCODE_TOKEN;
if (!base || !session || !token) {
  console.error("usage: OPENCODE_TOKEN=... stream.mjs BASE_URL SESSION_ID");
  process.exit(2);
}
const colour = process.stdout.isTTY ? (n, s) => `\x1b[${n}m${s}\x1b[0m` : (_, s) => s;
let open = null; // part whose text is being printed
let fresh = true; // whether the next character begins a line
const line = (s) => {
  if (open !== null && !fresh) process.stdout.write("\n");
  open = null;
  console.log(s);
};
const indent = (s) => s.trimEnd().split("\n").map((l) => "    " + l).join("\n");
const short = (s, n = 1500) => (s.length > n ? s.slice(0, n) + ` … (${s.length} characters)` : s);

function show(type, e) {
  const who = e.agent && e.agent !== "main" ? `[${e.agent}] ` : "";
  switch (type) {
    case "output":
      if (open !== e.part_id) {
        if (open !== null && !fresh) process.stdout.write("\n");
        if (e.source !== "tool") process.stdout.write(who);
        open = e.part_id;
        fresh = true;
      }
      for (const piece of e.text.split(/(?<=\n)/)) {
        process.stdout.write(e.source === "tool" ? (fresh ? "    " : "") + colour(2, piece) : piece);
        fresh = piece.endsWith("\n");
      }
      return;
    case "tool_call":
      return line(`${who}${colour(36, "→ " + e.tool)} ${short(JSON.stringify(e.input), 300)}`);
    case "tool_result":
      return line(`${who}${e.ok ? colour(32, "✓ " + e.tool) : colour(31, "✗ " + e.tool)}` +
        `${e.exit_code === undefined ? "" : ` exit ${e.exit_code}`}${e.output ? "\n" + colour(2, indent(short(e.output))) : ""}`);
    case "status":
      return line(colour(2, `· ${who}${e.status}${e.progress ? ": " + e.progress : ""}`));
    case "approval":
      return line(colour(33, `? ${who}${e.state}: ${e.permission} ${e.patterns.join(" ")} (${e.approval_id})`));
    case "gap":
      return line(colour(31, `! events ${e.from} to ${e.to} are lost: ${e.reason}`));
    case "error":
      return line(colour(31, `! ${e.error} (${e.code})`));
    case "complete":
      line(colour(32, "✓ complete"));
      return line(`  files changed: ${e.files_modified.length ? e.files_modified.join(", ") : "none"}`);
  }
}

let cursor = null;
let failures = 0;
for (;;) {
  try {
    const headers = { authorization: `Bearer ${token}`, ...(cursor ? { "last-event-id": cursor } : {}) };
    const response = await fetch(`${base}/sessions/${session}/stream`, { headers });
    if (response.status === 204) break;
    if (response.status === 404 && failures < 60) throw new Error("the session is not there yet");
    if (!response.ok) {
      console.error(`${response.status}: ${await response.text()}`);
      process.exit(1);
    }
    let over = false;
    let text = "";
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      text += chunk;
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
        const fields = Object.fromEntries(text.slice(0, end).split("\n").filter((l) => !l.startsWith(":"))
          .map((l) => [l.slice(0, l.indexOf(":")), l.slice(l.indexOf(":") + 1).trimStart()]));
        if (fields.event && fields.event !== "heartbeat") {
          const event = JSON.parse(fields.data);
          show(fields.event, event);
          over = fields.event === "complete" || (fields.event === "error" && event.fatal) || event.status === "cancelled";
        }
        if (fields.id) cursor = fields.id;
        failures = 0;
      }
    }
    if (over) break;
  } catch (error) {
    if (++failures > 60) {
      console.error(`the stream cannot be read: ${error.cause?.message ?? error.message}`);
      process.exit(1);
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}
if (open !== null && !fresh) process.stdout.write("\n");
