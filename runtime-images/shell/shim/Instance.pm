package Instance;

# The life of an instance: dial, say HELLO, wait for LOAD, serve, drain, exit. One loop, no threads: it waits for the
# node and for the programs that run, and reaps whatever they leave behind when it is process 1.
use strict;
use warnings;
use Call    ();
use Clock   ();
use Json    ();
use Link    ();
use POSIX   ();
use Program ();
use Text    ();
use Wire    ();

use constant {
    DIAL_EVERY_S   => 0.2,
    LOST_AFTER_S   => 60,    # without a node, an instance exits
    FAILED_STAYS_S => 10,    # after LOAD_FAILED the node ends the connection; no longer than this
    FLUSH_S        => 5,     # longest wait, at the end, for the node to take the last bytes
};

# Where the kernel counts the processes of this sandbox that were killed for want of memory.
my @OOM_COUNTS = qw(/sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control);

sub new {
    my ($class, %place) = @_;
    return bless { place => \%place, link => undef, calls => {}, dialled_at => -1, lost_at => Clock::monotonic() }, $class;
}

# Live until the end of the process.
sub run {
    my ($self) = @_;
    $self->{killed} = _oom_kills();
    $SIG{PIPE} = 'IGNORE';
    $SIG{CHLD} = sub { };    # ends the wait
    $SIG{$_} = sub { $self->{draining} = 1 } for qw(TERM INT);
    while (1) {
        $self->_dial if !$self->{link};
        $self->_wait;
        $self->_reap;
        $self->_step;
        exit 0 if $self->{draining} && !%{ $self->{calls} } && $self->_said_all;
    }
}

# -- the connection

sub _dial {
    my ($self) = @_;
    my $now = Clock::monotonic();
    return if $now < $self->{dialled_at} + DIAL_EVERY_S;
    $self->{dialled_at} = $now;
    if (my $link = $self->{link} = Link->dial($self->{place}{SOCKET})) { $link->send(Wire::HELLO, 0, $self->_hello) }
    elsif ($now > $self->{lost_at} + LOST_AFTER_S)                     { exit 1 }
}

sub _hello {
    my ($self) = @_;
    my %header = (protocol => Wire::PROTOCOL, runtime => 'shell', pid => $$, instance => $self->{place}{INSTANCE});
    my $loaded = defined $self->{program};
    return Json::encode({ %header, loaded => \$loaded, $loaded ? (kind => 'handler') : () });
}

# The connection has ended: programs that run go on, nobody hears what they say. What waits for more of its request ends.
sub _lost {
    my ($self) = @_;
    exit 1 if $self->{failed_at};
    for my $call (grep { !$_->{gone} } values %{ $self->{calls} }) { $call->{arrived} ? $call->leave : $call->cancel }
    $self->{link} = undef;
    $self->{lost_at} = Clock::monotonic();
}

# True when the node has all that was sent, or takes no more. It says so by ending the connection: whoever exits before
# may reset it under a node that is writing, which then never reads the last frames.
sub _said_all {
    my ($self) = @_;
    $self->{drained_at} //= Clock::monotonic();
    my $link = $self->{link} or return 1;
    $link->finish if $link->{out} eq '';
    return Clock::monotonic() > $self->{drained_at} + FLUSH_S;
}

# -- the loop

sub _wait {
    my ($self) = @_;
    my ($reading, $writing, $patience) = ('', '', $self->{link} ? 60 : DIAL_EVERY_S);
    if (my $link = $self->{link}) {
        vec($reading, fileno $link->{socket}, 1) = 1;
        vec($writing, fileno $link->{socket}, 1) = 1 if $link->{out} ne '';
    }
    for my $call (values %{ $self->{calls} }) {
        my ($from, $to) = $call->watched;
        vec($reading, fileno $_, 1) = 1 for @$from;
        vec($writing, fileno $_, 1) = 1 for @$to;
        my $due = $call->patience;
        $patience = $due if $due < $patience;
    }
    $patience = 0.1 if $self->{draining} && $patience > 0.1;
    select $reading, $writing, undef, $patience < 0 ? 0 : $patience;
}

sub _reap {
    my ($self) = @_;
    while ((my $child = waitpid -1, POSIX::WNOHANG()) > 0) {
        my $status = $?;
        $_->exited($status) for grep { $_->{pid} == $child } values %{ $self->{calls} };
    }
}

sub _step {
    my ($self) = @_;
    if ($self->{link}) {
        for my $frame ($self->{link}->receive) {
            eval { $self->_frame($frame); 1 } or $self->{link}->close;
            last if $self->{link}{closed};
        }
    }
    while (my ($id, $call) = each %{ $self->{calls} }) {
        next if !$call->step;
        delete $self->{calls}{$id};
        $self->_look_at_memory if $call->{exit};
    }
    if (my $link = $self->{link}) {
        $link->flush;
        $self->_lost if $link->{closed};
    }
    exit 1 if $self->{failed_at} && Clock::monotonic() > $self->{failed_at} + FAILED_STAYS_S;
}

# -- frames

sub _frame {
    my ($self, $frame) = @_;
    my ($type, $stream, $header, $body) = @$frame;
    if    ($type == Wire::PING)  { return $self->{link}->send(Wire::PONG, 0) }
    elsif ($type == Wire::DRAIN) { return $self->{draining} = 1 }
    elsif ($type == Wire::LOAD)  { return defined $self->{program} || $self->_load(Wire::header($header)) }
    elsif (!defined $self->{program}) { return }
    elsif ($type == Wire::CALL) { return $self->_call($frame, Wire::header($header)) }
    my $call = $self->{calls}{ $self->_id($stream) };
    return if !$call || $call->{gone};
    if    ($type == Wire::BODY)   { $call->body($body) }
    elsif ($type == Wire::ENDED)  { exists Wire::header($header)->{e} ? $call->cancel : $call->body(undef) }
    elsif ($type == Wire::WINDOW) { $call->{window} += Wire::header($header)->{n} }
    elsif ($type == Wire::CANCEL) { $call->cancel }
}

# Streams of an earlier connection may have the same number.
sub _id { my ($self, $stream) = @_; return join ' ', $stream, $self->{dialled_at} }

sub _load {
    my ($self, $spec) = @_;
    my $started = Clock::monotonic();
    my $program = eval {
        chdir $self->{place}{CODE} or die "the code can't be opened: $!\n";
        Program->new($spec->{handler});
    };
    if (!$program) {
        chomp(my $why = Text::decoded($@));
        $self->{failed_at} = $started;
        return $self->{link}->send(Wire::LOAD_FAILED, 0, Json::encode({ type => 'LoadFailed', message => $why, stack => $why }));
    }
    @$self{qw(program function environment)} = ($program, $spec, $self->_environment($spec));
    my $ms = 0 + sprintf '%.3f', 1000 * (Clock::monotonic() - $started);
    $self->{link}->send(Wire::LOADED, 0, Json::encode({ kind => 'handler', ms => $ms }));
}

# What all calls have in their environment.
sub _environment {
    my ($self, $spec) = @_;
    my %env = (%ENV, map { Text::encoded($_) } %{ $spec->{env} });
    if (defined(my $layer = $self->{place}{LAYER})) {
        my @programs = map { "$layer$_" } qw(/usr/local/bin /usr/bin /bin /usr/sbin /sbin);
        my @libraries = glob "\Q$layer\E{/usr,}/lib{/*-linux-gnu*,}";
        $env{PATH} = join ':', @programs, $env{PATH} // '/usr/local/bin:/usr/bin:/bin';
        $env{LD_LIBRARY_PATH} = join ':', @libraries, $env{LD_LIBRARY_PATH} // ();
    }
    @env{ map { "HEADRACE_$_" } qw(NAMESPACE FUNCTION VERSION MEMORY_MB) } = @$spec{qw(namespace function version memory_mb)};
    return \%env;
}

sub _call {
    my ($self, $frame, $head) = @_;
    my $stream = $frame->[1];
    my $call = eval { Call->new($self, $self->{link}, $frame, $head) };
    if ($call) { $self->{calls}{ $self->_id($stream) } = $call }
    else {
        chomp(my $why = Text::decoded($@));
        $self->{link}->send(Wire::REPLY, $stream, Json::encode({ e => { type => 'CallFailed', message => $why, stack => $why } }));
    }
}

# -- memory

# A program that the kernel killed for want of memory has reached the limit of the instance, which ends with it: the
# platform says why, as of any other runtime's.
sub _look_at_memory {
    my ($self) = @_;
    POSIX::_exit(137) if _oom_kills() > $self->{killed};
}

sub _oom_kills {
    for my $path (@OOM_COUNTS) {
        open(my $file, '<', $path) or next;
        my ($count) = join('', readline $file) =~ /^oom_kill ([0-9]+)/m;
        return $count // 0;
    }
    return 0;
}

1;
