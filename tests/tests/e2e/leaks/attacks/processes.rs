//! Through other processes: what they were told, hold or can be made to drop.

use crate::leaks::attack::{
    Attack,
    Class::{Escape, Key, Pose},
    Sign,
};

pub(super) const ALL: &[Attack] = &[
    Attack::shell(
        Key,
        "own-environment",
        "the environment of its own shell",
        Sign::Key,
        "env | keys",
    ),
    Attack::shell(
        Key,
        "parents-environment",
        "the environments of its ancestors in /proc",
        Sign::Key,
        r#"p=$$; while [ "${p:-0}" -gt 0 ]; do tr '\0' '\n' <"/proc/$p/environ"; p=$(awk '{print $4}' "/proc/$p/stat" 2>/dev/null || sed -n 's/^PPid:\t//p' "/proc/$p/status"); done 2>/dev/null | keys"#,
    ),
    Attack::shell(
        Key,
        "all-environments",
        "/proc/*/environ of every process",
        Sign::Key,
        "cat /proc/[0-9]*/environ 2>/dev/null | keys",
    ),
    Attack::shell(
        Key,
        "all-arguments",
        "/proc/*/cmdline of every process",
        Sign::Key,
        "cat /proc/[0-9]*/cmdline 2>/dev/null | keys",
    ),
    Attack::shell(
        Key,
        "all-descriptors",
        "files that others keep open, by /proc/*/fd",
        Sign::Key,
        r#"for f in /proc/[0-9]*/fd/*; do [ -f "$f" ] && head -c 400 "$f"; done 2>/dev/null | keys"#,
    ),
    Attack::shell(
        Key,
        "others-root",
        "the sidecar's files through /proc/*/root",
        Sign::Key,
        "cat /proc/[0-9]*/root/var/run/opencode-operator/keys/*/key /proc/[0-9]*/root/run/opencode-operator/keys/*/key 2>/dev/null | keys",
    ),
    Attack::shell(
        Key,
        "others-folder",
        "the sidecar's files through /proc/*/cwd",
        Sign::Key,
        "cat /proc/[0-9]*/cwd/*/key 2>/dev/null | keys",
    ),
    Attack::shell(
        Key,
        "memory-by-proc",
        "the memory of sidecar, runner and pid 1 by /proc/*/mem",
        Sign::Key,
        r#"for p in 1 $(named sidecar) $(named runner); do perl -e 'open M, "<", "/proc/$ARGV[0]/mem" or die; open L, "/proc/$ARGV[0]/maps" or die;
  while (<L>) { /^([0-9a-f]+)-([0-9a-f]+) r/ or next; my ($a, $b) = (hex $1, hex $2); next if $b - $a > 1 << 26; sysseek M, $a, 0; sysread M, my $x, $b - $a; print "$1\n" while $x =~ /(sk-canary-[0-9a-f]+)/g }' "$p" 2>/dev/null; done | keys"#,
    ),
    Attack::shell(
        Key,
        "memory-by-process-vm-readv",
        "the same by process_vm_readv",
        Sign::Key,
        r#"for p in 1 $(named sidecar) $(named runner); do perl -e 'my $p = 0 + $ARGV[0]; open L, "/proc/$p/maps" or die;
  while (<L>) { /^([0-9a-f]+)-([0-9a-f]+) r/ or next; my ($a, $n) = (hex $1, hex($2) - hex $1); next if $n > 1 << 26; my $x = "\0" x $n;
    my $l = pack "PQ", $x, $n; my $r = pack "QQ", $a, $n; syscall(310, $p, $l, 1, $r, 1, 0) > 0 or next; print "$1\n" while $x =~ /(sk-canary-[0-9a-f]+)/g }' "$p" 2>/dev/null; done | keys"#,
    ),
    Attack::shell(
        Escape,
        "ptrace",
        "attaching to sidecar, runner or OpenCode as a debugger",
        Sign::Says("ATTACHED"),
        r#"for p in $(named sidecar) $(named runner) $(named opencode); do perl -e 'my $p = 0 + $ARGV[0]; my $r = syscall(101, 0x4206, $p, 0, 0); print $r == 0 ? "ATTACHED $p\n" : "$p: $!\n"; syscall(101, 17, $p, 0, 0)' "$p"; done"#,
    ).isolated(),
    Attack::shell(
        Escape,
        "signal-sidecar",
        "a signal to the sidecar",
        Sign::Says("SIGNALLED"),
        r#"for p in $(named sidecar); do kill -0 "$p" && echo SIGNALLED; done"#,
    ),
    Attack::shell(
        Escape,
        "signal-runner",
        "a signal to the runner",
        Sign::Says("SIGNALLED"),
        r#"for p in $(named runner); do kill -0 "$p" && echo SIGNALLED; done"#,
    ).isolated(),
    Attack::shell(
        Escape,
        "signal-opencode",
        "a signal to OpenCode",
        Sign::Says("SIGNALLED"),
        r#"for p in $(named opencode); do kill -0 "$p" && echo SIGNALLED; done"#,
    ).open(),
    Attack::shell(
        Key,
        "core-dump",
        "its own memory, with all it inherited, from a core dump",
        Sign::Key,
        r#"ulimit -c unlimited; mkdir -p /tmp/core.d; cd /tmp/core.d; (bash -c 'kill -SEGV $$') ; cat core* 2>/dev/null | keys"#,
    ),
    // Not beside those that take the runner's place.
    Attack::shell(Pose, "ask-the-runner", "the sidecar's requests to the runner", Sign::Says("\"reply\":\"probe\""),
        r#"perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Peer => "/run/opencode-operator/runner.sock") or die "$!\n"; print $s "{\"op\":\"probe\"}\n"; $s->flush; print scalar <$s>'"#),
];
