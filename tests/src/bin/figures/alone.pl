# Starts OpenCode as the runner does, without its domains, and asks it what the sidecar asks, without the sidecar.
# Prints milliseconds: from its process until it listens, and from its first answer until it has a prompt.
use strict;
use warnings;
use IO::Socket::INET;
use Time::HiRes qw(time sleep);

my ($dir, $port) = ('/tmp/alone', 4999);
system 'rm', '-rf', $dir;
system 'mkdir', '-p', "$dir/.config/opencode/node_modules", "$dir/work", "$dir/tmp";
system 'git', 'init', '-q', "$dir/work";
write_file("$dir/models.json", '{}');
my $provider = '{"npm":"@ai-sdk/openai-compatible","options":{"baseURL":"http://127.0.0.1:9/v1","apiKey":"x"},"models":{"m":{}}}';
my %own = (
    HOME => $dir, TMPDIR => "$dir/tmp", PATH => $ENV{PATH}, OPENCODE_PURE => 1, OPENCODE_MODELS_PATH => "$dir/models.json",
    OPENCODE_CONFIG_CONTENT => qq({"autoupdate":false,"share":"disabled","snapshot":true,"formatter":false,"lsp":false,)
        . qq("enabled_providers":["p"],"model":"p/m","small_model":"p/m","provider":{"p":$provider}}),
    map { ("OPENCODE_DISABLE_$_" => 1) }
        qw(AUTOUPDATE CLAUDE_CODE DEFAULT_PLUGINS EXTERNAL_SKILLS FFF LSP_DOWNLOAD MODELS_FETCH PROJECT_CONFIG SHARE),
);

# Nothing here takes a minute; what was started ends with this.
alarm 120;
$SIG{ALRM} = sub { die "it took too long\n" };
my $pid;
END { if ($pid) { kill 'KILL', $pid; waitpid $pid, 0; system 'rm', '-rf', $dir } }
my $began = time;
$pid = fork // die "fork: $!";
if (!$pid) {
    chdir "$dir/work";
    open STDOUT, '>', "$dir/log";
    open STDERR, '>&', \*STDOUT;
    %ENV = %own;
    exec '/opt/opencode-operator/opencode/opencode', qw(serve --hostname 127.0.0.1 --port), $port;
}
sleep 0.005 until read_file("$dir/log") =~ /listening on/ || time > $began + 60;
my $listens = time;
ask('GET', '/global/health');
my $answers = time;
my $events = ask('GET', "/event?directory=$dir/work", undef, 1);
my $id = 'ses_0123456789abcdefghijklmnop';
ask('POST', '/api/session', qq({"id":"$id","location":{"directory":"$dir/work"}}));
ask('PATCH', "/session/$id", '{"title":"alone"}');
ask('GET', "/session/$id/message/msg_none");
ask('POST', "/session/$id/prompt_async",
    '{"messageID":"msg_0123456789abcdefghijklmnop","model":{"providerID":"p","modelID":"m"},"parts":[{"type":"text","text":"hello"}]}');
my $prompted = time;
printf "%.1f %.1f\n", ($listens - $began) * 1000, ($prompted - $answers) * 1000;

# Sends a request and reads the answer's head and body, of a stream its first line of data.
sub ask {
    my ($method, $path, $body, $stream) = @_;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 10) or die "$path: $!";
    my $length = length($body // '');
    print $socket "$method $path HTTP/1.1\r\nHost: 127.0.0.1:$port\r\nConnection: close\r\n"
        . "Content-Type: application/json\r\nContent-Length: $length\r\n\r\n" . ($body // '');
    my $status = <$socket> // '';
    $status =~ m{^HTTP/1.1 (2..|404) } or die "$path: $status";
    my $rest = 0;
    while (my $line = <$socket>) {
        $rest = $1 if $line =~ /^content-length: (\d+)/i;
        last if $line eq "\r\n";
    }
    if ($stream) { while (my $line = <$socket>) { last if $line =~ /^data:/ } }
    elsif ($rest) { read $socket, my $answer, $rest }
    return $socket;
}

sub read_file { open my $file, '<', $_[0] or return ''; local $/; return scalar <$file> // '' }
sub write_file { open my $file, '>', $_[0] or die "$_[0]: $!"; print $file $_[1]; close $file or die "$_[0]: $!" }
