# shellcheck shell=bash
# Where cargo finds the sources. Sourced by scripts that build; ROOT is their checkout.

# What is built into the target folder that all checkouts of this machine share is built from one copy of the sources. Cargo takes
# checkouts of a workspace for the same and tells by the age of files what is fresh: two of them would get each other's programs.
# In the copy only what differs gets younger, so a fresh clone builds only what it changes.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
SOURCE=$ROOT

# Sets SOURCE and keeps it as it is until this script has ended. With a target folder of one's own the sources are the checkout
# itself.
take_sources() {
  [ "$CARGO_TARGET_DIR" = "$CACHE/target" ] || return 0
  SOURCE=$CACHE/source
  # Who started this script has taken them.
  [ "${OPENCODE_OPERATOR_SOURCES_OF:-}" != "$ROOT" ] || return 0
  mkdir -p "$SOURCE"
  exec 6>>"$CACHE/source.lock"
  if ! flock -n 6; then
    exec 6>&-
    say "something else is built or tested with $CACHE/target; waiting for it (at most two hours):"
    # shellcheck disable=SC2046 # a list of numbers
    describe $(holders "$CACHE/source.lock")
    say "  A target folder of this checkout needs no waiting: CARGO_TARGET_DIR=$ROOT/target"
    exec 6>>"$CACHE/source.lock"
    flock -w 7200 6 || fail "$CACHE/source.lock is still held after two hours." "See who holds it: fuser -v $CACHE/source.lock"
  fi
  if [ "$ROOT" != "$SOURCE" ]; then
    copy_sources || fail "the sources could not be copied to $SOURCE; the reason is above." "Delete that folder, then run this again."
  fi
  export OPENCODE_OPERATOR_SOURCES_OF=$ROOT
}
leave_sources() { exec 6>&- && unset OPENCODE_OPERATOR_SOURCES_OF; }

# Makes the copy equal to the checkout, without a touch on files that are.
copy_sources() {
  local ours theirs changed
  ours=$(files_of "$ROOT") && theirs=$(files_of "$SOURCE") || return 1
  (cd "$SOURCE" && LC_ALL=C comm -13 <(names_of "$ours") <(names_of "$theirs") | tr '\n' '\0' | xargs -0 -r rm) || return 1
  find "$SOURCE" -mindepth 1 -type d -empty -delete || return 1
  changed=$(LC_ALL=C comm -23 <(printf '%s\n' "$ours") <(printf '%s\n' "$theirs") | cut -f3)
  # First: once cp 9.1 has made a folder it takes the next file for new too, and fails where that is there.
  (cd "$SOURCE" && sed -n 's|/[^/]*$||p' <<<"$changed" | tr '\n' '\0' | xargs -0 -r mkdir -p) || return 1
  (cd "$ROOT" && sed '/^$/d' <<<"$changed" | tr '\n' '\0' |
    xargs -0 -r cp --parents --preserve=mode --target-directory="$SOURCE")
}
# Mode, sum and name of every file that git knows or would take; of every file where there is no git.
files_of() {
  local list status=0
  list=$(mktemp)
  if [ -e "$1/.git" ]; then
    # What was deleted and not yet committed would be listed too, and what became a folder.
    LC_ALL=C comm -z -23 <(git -C "$1" ls-files -z --cached --others --exclude-standard | LC_ALL=C sort -z -u) \
      <(git -C "$1" ls-files -z --deleted | LC_ALL=C sort -z) |
      (cd "$1" && xargs -0 -r sh -c 'exec find "$@" -maxdepth 0 -type f -print0' find) >"$list" || status=1
  else
    (cd "$1" && find . -type d \( -name target -o -name corpus -o -name artifacts \) -prune -o -type f -printf '%P\0') >"$list" || status=1
  fi
  (cd "$1" && paste <(xargs -0 -r stat -c %a <"$list") <(xargs -0 -r sha256sum <"$list" | sed 's/  /\t/')) | LC_ALL=C sort || status=1
  rm -f "$list"
  return $status
}
names_of() { cut -f3 <<<"$1" | sed '/^$/d' | LC_ALL=C sort; }
in_sources() { (cd "$SOURCE" && "$@"); }
