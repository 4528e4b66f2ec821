#!/usr/bin/env bash
# curl, which knows nothing of events: what was cut off in mid-event is dropped, the rest resumed by hand. curl.sh STREAM_URL
set -euo pipefail
url=$1 last='' part=$(mktemp) all=$(mktemp)
trap 'rm -f "$part" "$all"' EXIT
while :; do
  status=$(curl -sN -o "$part" -w '%{http_code}' ${last:+-H "Last-Event-ID: $last"} "$url") || true
  [ "$status" != 204 ] || break
  # Whole events end with an empty line.
  awk 'BEGIN {RS = ""; ORS = "\n\n"} {if (NR > 1) printf "%s\n\n", held; held = $0} END {}' "$part" >"$part.whole"
  # The last one is whole if the file ends with its empty line.
  if [ "$(tail -c 2 "$part" | od -An -tx1 | tr -d ' \n')" = 0a0a ]; then
    awk 'BEGIN {RS = ""} {held = $0} END {printf "%s\n\n", held}' "$part" >>"$part.whole"
  fi
  cat "$part.whole" >>"$all"
  last=$(sed -n 's/^id: //p' "$all" | tail -1)
  rm -f "$part.whole"
  : >"$part"
done
node -e '
const got = [];
for (const block of require("fs").readFileSync(process.argv[1], "utf8").split("\n\n")) {
  const field = (name) => block.split("\n").find((l) => l.startsWith(name + ": "))?.slice(name.length + 2);
  if (field("id")) got.push({ id: field("id"), event: field("event"), data: field("data") });
}
console.log(JSON.stringify({ got, notes: [] }));' "$all"
