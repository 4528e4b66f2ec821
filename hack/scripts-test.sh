#!/usr/bin/env bash
# What the scripts share.
# deploy/local/lib/sources.sh: the copy equals the checkout that is built, touches nothing that is equal, and belongs to one at a time.
# hack/common.sh: a forwarded port is this run's, and ending it ends kubectl.
set -euo pipefail
lib=$(cd "$(dirname "${BASH_SOURCE[0]}")/../deploy/local/lib" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OPENCODE_OPERATOR_CACHE=$dir/cache
unset CARGO_TARGET_DIR OPENCODE_OPERATOR_SOURCES_OF OPENCODE_OPERATOR_LOGS
# shellcheck disable=SC2016 # for the shell that is started
in_checkout() { # CHECKOUT COMMAND: runs it with the sources taken
  bash -euc 'set -o pipefail; ROOT=$1; . "$2/common.sh"; . "$2/sources.sh"; take_sources; eval "$3"' sh "$1" "$lib" "$2"
}
passed=0
is() { # WHAT WANTED GOT
  [ "$2" = "$3" ] || { printf 'error: %s: wanted %s, got %s\n' "$1" "$2" "$3" >&2; exit 1; }
  passed=$((passed + 1))
}
age() { stat -c %y "$dir/cache/source/$1"; }

for name in a b; do
  mkdir -p "$dir/$name/src"
  git init -q "$dir/$name"
  printf 'target\n' >"$dir/$name/.gitignore"
  printf 'same\n' >"$dir/$name/src/same"
  printf '%s\n' "$name" >"$dir/$name/src/differs"
  printf 'gone\n' >"$dir/$name/src/gone"
  git -C "$dir/$name" add -A
done
mkdir "$dir/a/target" && touch "$dir/a/target/ignored"
chmod +x "$dir/b/src/same"
rm "$dir/b/src/gone"

is "what is built is the checkout" a "$(in_checkout "$dir/a" 'in_sources cat src/differs')"
is "what git ignores stays out" "" "$(find "$dir/cache/source" -name ignored)"
same=$(age src/same) differs=$(age src/differs)
in_checkout "$dir/a" true
is "nothing changed, nothing is younger" "$same $differs" "$(age src/same) $(age src/differs)"
is "another checkout's files are not taken for its own" b "$(in_checkout "$dir/b" 'in_sources cat src/differs')"
[ "$(age src/differs)" != "$differs" ] || { printf 'error: what changed is not younger: cargo would not build it\n' >&2; exit 1; }
is "modes go along" 755 "$(stat -c %a "$dir/cache/source/src/same")"
is "what was deleted is gone" "" "$(find "$dir/cache/source" -name gone)"
# Files in a new folder among others that change: whichever comes first, by their sums.
for name in 1 2 3 4 5 6 7 8; do
  printf 'old\n' >"$dir/b/top-$name"
done
in_checkout "$dir/b" true
for name in 1 2 3 4 5 6 7 8; do
  mkdir -p "$dir/b/new-$name/below"
  printf '%s\n' "$name" | tee "$dir/b/top-$name" >"$dir/b/new-$name/below/file"
done
is "new folders come among changed files" "$(cat "$dir/b"/top-*)" "$(in_checkout "$dir/b" 'in_sources cat top-1 new-2/below/file top-3 new-4/below/file top-5 top-6 top-7 top-8')"
# While one checkout has the sources another one waits, and says for whom.
# shellcheck disable=SC2016
in_checkout "$dir/a" '
  (unset OPENCODE_OPERATOR_SOURCES_OF; exec 6>&-
   timeout 2 bash -euc "ROOT=${1%a}b; . \"$2/common.sh\"; . \"$2/sources.sh\"; take_sources" 2>"$CACHE/said") || true
  in_sources cat src/differs >"$CACHE/kept"'
is "another one says that it waits" 1 "$(grep -c 'waiting for it' "$dir/cache/said")"
is "nobody changes them meanwhile" a "$(cat "$dir/cache/kept")"

# A kubectl that says its port at once, under a function of its name as in hack/demo.sh. A hundred times, for what an earlier run
# left in the log is a matter of who is first.
mkdir "$dir/bin"
cat >"$dir/bin/kubectl" <<'SH'
#!/bin/sh
[ -n "$FAKE_PORT" ] || exit 1
printf 'Forwarding from 127.0.0.1:%s -> 3003\n' "$FAKE_PORT"
exec sleep 60
SH
chmod +x "$dir/bin/kubectl"
# shellcheck disable=SC2016
forwarded=$(OPENCODE_OPERATOR_STATE=$dir/state bash -euc '. "$1/hack/common.sh"; PATH=$2:$PATH
  kubectl() { command kubectl "$@"; }
  own=0 ended=0
  for FAKE_PORT in {2000..2099}; do
    export FAKE_PORT
    forward_port space pod 3003 "$LOGS/forward.log"
    [ "$FORWARD_PORT" != "$FAKE_PORT" ] || own=$((own + 1))
    [ "$(cat "/proc/$FORWARD_PID/comm")" = bash ] || ended=$((ended + 1))
    kill "$FORWARD_PID"
  done
  echo "$own $ended"' sh "$lib/../../.." "$dir/bin")
is "each forwarded port is its own run's, and what is ended is the program" "100 100" "$forwarded"
# shellcheck disable=SC2016
said=$(FAKE_PORT='' OPENCODE_OPERATOR_STATE=$dir/state bash -euc '. "$1/hack/common.sh"; PATH=$2:$PATH
  forward_port space pod 3003 "$LOGS/forward.log"' sh "$lib/../../.." "$dir/bin" 2>&1) || true
is "a kubectl that ends is said" 1 "$(grep -c 'kubectl port-forward ended' <<<"$said")"
printf 'test result: ok. %d passed; 0 failed;\n' "$passed"
