// What a client got is what is stored: every event once, in order. compare.mjs GOT.json EVENTS.json NAME
import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
const [gotFile, storedFile, name] = process.argv.slice(2);
const { got, notes } = JSON.parse(readFileSync(gotFile, "utf8"));
const stored = JSON.parse(readFileSync(storedFile, "utf8"));
const die = (text) => (console.error(`${name}: ${text}`), process.exit(1));
if (stored.length < 5) die(`only ${stored.length} events are stored: too few for a test`);
got.forEach((e, i) => {
  if (e.id !== stored[i]?.id) die(`event ${i + 1} is ${e.id}, not ${stored[i]?.id}`);
  if (!isDeepStrictEqual(JSON.parse(e.data), stored[i].event)) die(`event ${e.id} differs`);
  if (e.event !== stored[i].event.type) die(`event ${e.id} came as ${e.event}`);
});
if (got.length !== stored.length) die(`${got.length} of ${stored.length} events`);
console.log(`${name}: ${got.length} events, each once and in order, over ${notes.length} breaks that it told of`);
