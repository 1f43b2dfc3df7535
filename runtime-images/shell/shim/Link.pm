package Link;

# The connection to the node, never blocking. What waits to be sent is bounded by the windows of the streams; programs
# that log more than the node takes have to wait (`Call` reads no more of theirs while this is `full`).
use strict;
use warnings;
use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use Socket qw(PF_UNIX SOCK_STREAM pack_sockaddr_un);
use Wire ();

use constant {
    RECEIVE => 128 << 10,    # bytes asked of the socket at once
    BACKLOG => 1 << 20,      # unsent bytes beyond which nobody may add to them
};

# A connection to the node that listens at `$path`; undef when nobody does, or not yet.
sub dial {
    my ($class, $path) = @_;
    socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or return undef;
    nonblocking($socket);
    connect($socket, pack_sockaddr_un($path)) or return undef;
    return bless { socket => $socket, decoder => Wire->new, out => '', closed => 0 }, $class;
}

sub nonblocking { my ($handle) = @_; fcntl($handle, F_SETFL, fcntl($handle, F_GETFL, 0) | O_NONBLOCK) }

# True when a system call that failed may be tried again.
sub later { return $! == EAGAIN || $! == EINTR }

sub send {
    my ($self, @frame) = @_;
    $self->{out} .= Wire::encode(@frame) if !$self->{closed};
}

sub full { return length($_[0]{out}) > BACKLOG }

# Give the socket what it takes.
sub flush {
    my ($self) = @_;
    return if $self->{closed} || $self->{out} eq '';
    my $sent = syswrite $self->{socket}, $self->{out};
    if (defined $sent) { substr($self->{out}, 0, $sent) = '' }
    elsif (!later())   { $self->close }
}

# Nothing more will be sent.
sub finish {
    my ($self) = @_;
    shutdown $self->{socket}, 1 if !$self->{finished}++;
}

# The frames that have arrived; the connection ends with its peer, and on anything that is no frame.
sub receive {
    my ($self) = @_;
    my $size = sysread $self->{socket}, my $data, RECEIVE;
    return if !defined $size && later();
    my @frames = $size ? eval { $self->{decoder}->feed($data) } : ();
    $self->close if !$size || $@;
    return @frames;
}

sub close {
    my ($self) = @_;
    $self->{closed} = 1;
    $self->{out} = '';
    close $self->{socket};
}

1;
