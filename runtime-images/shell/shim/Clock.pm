package Clock;

# Time in seconds, finer than perl's own `time`; perl-base has no Time::HiRes.
use strict;
use warnings;
use POSIX ();

my %CALL = (x86_64 => 228, aarch64 => 113, riscv64 => 113, i686 => 265, armv7l => 263, ppc64le => 246, s390x => 260);
my $CALL = $CALL{ (POSIX::uname())[4] };
my $LAYOUT = length(pack 'l!', 0) == 8 ? 'q q' : 'l l';

sub monotonic { return _read(1) // _uptime() }
sub now       { return _read(0) // time }

sub _read {
    my ($clock) = @_;
    my $found = pack $LAYOUT, 0, 0;
    return undef if !defined $CALL || syscall($CALL, $clock, $found) != 0;
    my ($seconds, $nanoseconds) = unpack $LAYOUT, $found;
    return $seconds + $nanoseconds / 1e9;
}

sub _uptime {
    open(my $file, '<', '/proc/uptime') or return time;
    return 0 + (split ' ', readline $file)[0];
}

1;
