// All stored events of a session by pages, as JSON on stdout. stored.mjs BASE_URL SESSION    (token in OPENCODE_TOKEN)
const [base, session] = process.argv.slice(2);
const all = [];
for (let after = ""; ; ) {
  const url = `${base}/sessions/${session}/events?limit=500${after && `&after=${after}`}`;
  const answer = await fetch(url, { headers: { authorization: `Bearer ${process.env.OPENCODE_TOKEN}` } });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  const page = await answer.json();
  all.push(...page.events);
  if (!page.more) break;
  after = page.next;
}
console.log(JSON.stringify(all));
