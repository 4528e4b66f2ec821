//! In somebody else's place: the sidecar's for clients, the proxy's for OpenCode, OpenCode's and the runner's for the sidecar.

use crate::leaks::attack::{
    Attack,
    Class::{Escape, Pose},
    Sign, When,
};

pub(super) const ALL: &[Attack] = &[
    Attack::shell(Pose, "share-the-port", "port 3003 beside the sidecar", Sign::Poses,
        "impostor 3003 0.0.0.0"),
    Attack::shell(Pose, "port-on-one-address", "port 3003 of the pod's own address, which is more exact", Sign::Poses,
        r#"impostor 3003 "$POD_IP""#),
    Attack::shell(Pose, "port-on-ipv6", "port 3003 of ::1, which localhost may mean", Sign::Says("BOUND"),
        r#"perl -MSocket=:DEFAULT,inet_pton,pack_sockaddr_in6 -e 'socket(S, AF_INET6, SOCK_STREAM, 6) or die "socket: $!\n"; setsockopt(S, IPPROTO_IPV6, IPV6_V6ONLY, 1); bind(S, pack_sockaddr_in6(3003, inet_pton(AF_INET6, "::1"))) or die "bind: $!\n"; listen(S, 1) and print "BOUND\n"'"#).isolated(),
    Attack::shell(Pose, "port-while-the-sidecar-restarts", "port 3003 the moment the sidecar dies", Sign::Poses,
        "waiting 3003").later(When::Sidecar, "cat bound-3003").isolated(),
    Attack::shell(Pose, "proxy-while-the-sidecar-restarts", "port 3004 the moment the sidecar dies", Sign::Says("BOUND 3004"),
        "waiting 3004").later(When::Sidecar, "cat bound-3004").isolated(),
    Attack::shell(Pose, "opencode-while-it-restarts", "port 4096 the moment OpenCode dies: the sidecar sends its password", Sign::Says("asic "),
        "waiting 4096").later(When::Restart, "cat bound-4096").isolated(),
    Attack::shell(Pose, "replace-the-runners-socket", "the runner's place: what the sidecar sends it holds OpenCode's password", Sign::Says("\"op\""),
        r#"rm -f runner-heard; setsid timeout 15 perl -MIO::Socket::UNIX -e 'my $p = "/run/opencode-operator/runner.sock"; unlink $p; my $l = IO::Socket::UNIX->new(Local => $p, Listen => 9) or die "$!\n"; chmod 0777, $p; while (my $c = $l->accept) { my $t = <$c>; open O, ">>", "runner-heard"; print O $t; close O; last if $t =~ /"op"/ } unlink $p' >runner-err 2>&1 </dev/null & wait $!; cat runner-err runner-heard"#).isolated(),
    Attack::shell(Escape, "outlive-the-turn", "a process that leaves its group and lives on after the turn was cancelled", Sign::Says("ALIVE"),
        r#"rm -f beat; (setsid perl -e 'fork and exit; $0 = "quiet"; for (1..600) { open O, ">", "/tmp/leaks/beat"; print O time . " $_"; close O; select undef, undef, undef, 0.1 }' >/dev/null 2>&1 </dev/null &); sleep 60"#)
        .later(When::Cancel, r#"b=$(cat beat); sleep 1; [ "$(cat beat)" != "$b" ] && echo ALIVE"#),
];
