// The npm package eventsource, which reconnects by itself. Prints what it got as JSON.
//   node node.mjs STREAM_URL
import { EventSource } from "eventsource";
const got = [], notes = [];
const source = new EventSource(process.argv[2]);
for (const name of ["status", "output", "tool_call", "tool_result", "approval", "error", "complete", "gap"])
  source.addEventListener(name, (e) => {
    // Its own error event has no data; a 204 at the end of the stream closes it.
    if (e.data !== undefined) return got.push({ id: e.lastEventId, event: name, data: e.data });
    notes.push(`connection ${source.readyState} ${e.code ?? ""}`);
    if (source.readyState === EventSource.CLOSED) {
      console.log(JSON.stringify({ got, notes }));
      process.exit(0);
    }
  });
