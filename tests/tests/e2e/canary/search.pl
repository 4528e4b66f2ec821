# Looks for texts wherever a process of this container can look: environment, arguments and memory of every process, open files,
# files and their names, sockets. Prints a line per find, then what was looked at. The texts come cut in two, so that nothing but
# this process (which leaves itself out) ever holds one whole.
use strict;
no warnings;
my @needles = map { join '', @$_ } our @halves;
my $longest = 0;
for (@needles) { $longest = length if length > $longest }
my ($self, %count) = ($$);

sub hit { for (@needles) { return 1 if index(${$_[0]}, $_) >= 0 } return 0 }

# Whether an open file holds one; read piece by piece, so that one across a border is found too.
sub hit_file {
    my ($file, $tail) = ($_[0], '');
    while (sysread($file, my $piece, 1 << 20)) {
        $count{bytes} += length $piece;
        $piece = $tail . $piece;
        return 1 if hit(\$piece);
        $tail = length $piece > $longest ? substr($piece, -$longest) : $piece;
    }
    return 0;
}

sub slurp { open(my $file, '<:raw', $_[0]) or return; local $/; my $text = <$file>; return \$text }

my %seen;
sub walk {
    my ($folder) = @_;
    return if $folder =~ m{^/(proc|sys)$};
    opendir(my $dir, $folder) or return;
    for my $name (readdir $dir) {
        next if $name eq '.' || $name eq '..';
        my $path = ($folder eq '/' ? '' : $folder) . "/$name";
        print "name $path\n" if hit(\$path);
        if (-l $path) { my $to = readlink $path; print "link $path\n" if hit(\$to); next }
        if (-d _) { walk($path); next }
        if (-S _) { $count{sockets}++; next }
        next unless -f _;
        my ($device, $inode) = stat _;
        next if $seen{"$device:$inode"}++;
        open(my $file, '<:raw', $path) or do { $count{closed}++; next };
        $count{files}++;
        print "file $path\n" if hit_file($file);
    }
}

sub memory {
    my ($pid) = @_;
    open(my $mem, '<:raw', "/proc/$pid/mem") or return 0;
    open(my $pages, '<:raw', "/proc/$pid/pagemap");
    open(my $maps, '<', "/proc/$pid/maps") or return 0;
    my ($read, $found) = (0, 0);
    while (my $line = <$maps>) {
        my ($from, $to, $may, $what) = $line =~ /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)$/ or next;
        next if $may !~ /^r/ || $what =~ /^\[v(var|syscall|dso)/;
        no warnings 'portable';
        my ($at, $end, $tail) = (hex $from, hex $to, '');
        while ($at < $end) {
            my $length = $end - $at > 1 << 22 ? 1 << 22 : $end - $at;
            # Runtimes reserve far more than they use; what is in no page holds nothing.
            my $there = 1;
            if ($pages && sysseek($pages, $at / 4096 * 8, 0) && sysread($pages, my $bits, $length / 4096 * 8)) {
                $there = $bits !~ /\A(?:.{7}[\x00-\x3f])*\z/s;
            }
            if ($there && sysseek($mem, $at, 0)) {
                my $piece = '';
                while (length $piece < $length) { last unless sysread($mem, $piece, $length - length $piece, length $piece) }
                $read += length $piece;
                $piece = $tail . $piece;
                if (hit(\$piece)) { $found++; print "memory $pid $from $what\n" }
                $tail = length $piece > $longest ? substr($piece, -$longest) : $piece;
            } else { $tail = '' }
            $at += $length;
        }
    }
    return $read;
}

my $environment = join "\0", map { "$_=$ENV{$_}" } keys %ENV;
print "environment of this process\n" if hit(\$environment);
opendir(my $proc, '/proc');
for my $pid (sort { $a <=> $b } grep { /^\d+$/ } readdir $proc) {
    next if $pid == $self;
    $count{processes}++;
    for my $what ('environ', 'cmdline', 'comm', 'status', 'stack', 'wchan', 'cgroup', 'mountinfo', 'auxv') {
        my $text = slurp("/proc/$pid/$what") or next;
        print "$what $pid\n" if hit($text);
    }
    opendir(my $open, "/proc/$pid/fd");
    for my $number (readdir $open) {
        my $path = "/proc/$pid/fd/$number";
        my $to = readlink $path;
        print "descriptor $pid $to\n" if hit(\$to);
        next unless -f $path;
        open(my $file, '<:raw', $path) or next;
        $count{descriptors}++;
        print "descriptor $pid $to\n" if hit_file($file);
    }
    my $read = memory($pid);
    my $exe = readlink("/proc/$pid/exe") || '?';
    print "looked at process $pid $exe memory $read\n";
}
for my $path (glob('/proc/net/* /proc/sys/kernel/*')) {
    next unless -f $path;
    my $text = slurp($path) or next;
    print "file $path\n" if hit($text);
}
walk('/');
print "looked at $_ $count{$_}\n" for sort keys %count;
print "looked at all\n";
