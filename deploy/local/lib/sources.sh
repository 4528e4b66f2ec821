# shellcheck shell=bash
# Where cargo finds the sources. Sourced by scripts that build; ROOT is their checkout.

# What is built into the target folder that all checkouts of this machine share is built from one copy of the sources. Cargo takes
# checkouts of a workspace for the same and tells by the age of files what is fresh: two of them would get each other's programs.
# In the copy only what differs gets younger, so a fresh clone builds only what it changes.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
SOURCE=$ROOT

# Sets SOURCE and keeps it as it is until this script and all that it starts have ended. With a target folder of one's own the
# sources are the checkout itself.
take_sources() {
  if [ "$CARGO_TARGET_DIR" != "$CACHE/target" ] || [ "$ROOT" = "$CACHE/source" ]; then return; fi
  SOURCE=$CACHE/source
  # Who started this script has taken them.
  [ "${OPENCODE_OPERATOR_SOURCES_OF:-}" != "$ROOT" ] || return 0
  mkdir -p "$SOURCE"
  exec 6>>"$CACHE/source.lock"
  if ! flock -n 6; then
    exec 6>&-
    say "error: something else is built or tested with $CACHE/target right now:"
    # shellcheck disable=SC2046 # a list of numbers
    describe $(holders "$CACHE/source.lock")
    fail "wait for it or stop it, or use a target folder of this checkout: CARGO_TARGET_DIR=$ROOT/target"
  fi
  copy_sources || fail "the sources could not be copied to $SOURCE." "Is the disk full? df $CACHE"
  export OPENCODE_OPERATOR_SOURCES_OF=$ROOT
}
leave_sources() { exec 6>&- && unset OPENCODE_OPERATOR_SOURCES_OF; }
copy_sources() {
  local ours theirs
  ours=$(sums_of_files "$ROOT") && theirs=$(sums_of_files "$SOURCE") || return 1
  (cd "$SOURCE" && LC_ALL=C comm -13 <(names_of "$ours") <(names_of "$theirs") | tr '\n' '\0' | xargs -0 -r rm) || return 1
  (cd "$ROOT" && LC_ALL=C comm -23 <(printf '%s\n' "$ours") <(printf '%s\n' "$theirs") | cut -c67- | tr '\n' '\0' |
    xargs -0 -r cp --parents --preserve=mode --target-directory="$SOURCE")
}
sums_of_files() {
  (cd "$1" && find . \( -name .git -o -name target -o -name corpus -o -name artifacts \) -prune -o -type f -print0 |
    xargs -0 -r sha256sum | LC_ALL=C sort)
}
names_of() { cut -c67- <<<"$1" | sed '/^$/d' | LC_ALL=C sort; }
in_sources() { (cd "$SOURCE" && "$@"); }
