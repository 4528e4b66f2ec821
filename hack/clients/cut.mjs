// A backend as one would write it, and a bad network: serves a page to the browser under one origin with the stream, adds
// the token that a browser cannot send, and cuts each stream after a few events, in the middle of one.
//   node cut.mjs SIDECAR_URL OUT_DIR    (token in OPENCODE_TOKEN); prints its port
// GET  /stream/SESSION   the sidecar's stream, cut the first times
// GET  /cuts/SESSION     how often a client's stream (?client=NAME) was really cut
// GET  /page/SESSION     a page that reads it with EventSource and posts what it got to /got/NAME
import { createServer, request } from "node:http";
import { writeFileSync } from "node:fs";
const [base, out] = process.argv.slice(2);
const token = process.env.OPENCODE_TOKEN;
const cuts = new Map(); // client and session → connections so far
const made = new Map(); // the same → cuts so far
const CUTS = Number(process.env.CUTS ?? 25);
const NAMES = ["status", "output", "tool_call", "tool_result", "approval", "error", "complete", "gap"];

const page = (session) => `<!doctype html><meta charset="utf-8"><title>stream</title><script>
const got = [], notes = [];
const source = new EventSource("/stream/${session}?client=browser");
let ended = false;
for (const name of ${JSON.stringify(NAMES)}) source.addEventListener(name, (e) => {
  // EventSource has an event of its own that is called error too: a plain Event, without data.
  if (e instanceof MessageEvent) return got.push({ id: e.lastEventId, event: name, data: e.data });
  notes.push("connection " + source.readyState);
  if (source.readyState === EventSource.CLOSED && !ended) {
    ended = true;
    fetch("/got/browser-${session}", { method: "POST", body: JSON.stringify({ got, notes }) });
  }
});
</script>`;

const server = createServer((req, res) => {
  const url = new URL(req.url, "http://localhost");
  const [, what, name] = url.pathname.split("/");
  if (what === "page") return res.writeHead(200, { "content-type": "text/html" }).end(page(name));
  if (what === "got") {
    const chunks = [];
    req.on("data", (c) => chunks.push(c));
    req.on("end", () => (writeFileSync(`${out}/${name}.json`, Buffer.concat(chunks)), res.writeHead(204).end()));
    return;
  }
  const key = url.searchParams.get("client") + name;
  if (what === "cuts") return res.writeHead(200).end(String(made.get(key) ?? 0));
  if (what !== "stream") return res.writeHead(404).end();
  const connection = (cuts.get(key) ?? 0) + 1;
  cuts.set(key, connection);
  const headers = { authorization: `Bearer ${token}`, accept: "text/event-stream" };
  if (req.headers["last-event-id"]) headers["last-event-id"] = req.headers["last-event-id"];
  const up = request(`${base}/sessions/${name}/stream`, { headers }, (answer) => {
    res.writeHead(answer.statusCode, answer.headers);
    // Anywhere, also within an event, a line or a character; the first bytes are the retry time.
    let left = connection > CUTS ? Infinity : 40 + ((connection * 7919) % 1500);
    answer.on("data", (chunk) => {
      if (left === 0) return;
      // The reader's pause between attempts is the server's wish: here it must be short.
      chunk = Buffer.from(chunk.toString("latin1").replace(/^retry: \d+$/m, "retry: 20"), "latin1");
      if (chunk.length < left) return (left -= chunk.length), void res.write(chunk);
      made.set(key, (made.get(key) ?? 0) + 1);
      res.write(chunk.subarray(0, left), () => (res.destroy(), up.destroy()));
      left = 0;
    });
    answer.on("end", () => res.end());
    answer.on("error", () => res.destroy());
  });
  up.on("error", () => res.destroy());
  res.on("close", () => up.destroy());
  up.end();
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
