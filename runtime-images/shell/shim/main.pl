# The shell shim: runs a program for each call of its function and speaks frames with the node.
#
# Perl 5.20 or later with nothing but what Debian's perl-base holds. The map: `Instance` starts and stops, `Link` is the
# connection, `Program` is the function's file, `Call` one run of it, `Event` what it is told, `Answer` what it says,
# `Log` its standard error; `Wire`, `Json` and `Text` are codecs without I/O.
use strict;
use warnings;

BEGIN { (my $here = $0) =~ s{[^/]*\z}{}; @INC = ($here || './', grep { !ref } @INC) }

use Instance ();

# The descriptors 0 to 4 are those of a running program: nothing of the shim's own may lie there.
my @reserved;
do { open(my $nothing, '+<', '/dev/null') or die "/dev/null: $!\n"; push @reserved, $nothing } until fileno($reserved[-1]) >= 4;

# The environment that the platform gave, taken out of the program's sight.
my %place = map { $_ => delete $ENV{"HEADRACE_$_"} } qw(SOCKET INSTANCE CODE LAYER);

Instance->new(%place)->run;
