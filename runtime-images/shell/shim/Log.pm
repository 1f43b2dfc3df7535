package Log;

# The standard error of a call as LOG frames, whole lines, up to a limit. A line may start with its level, as programs
# of systemd write it: `<3>` is an error, `<4>` a warning, `<6>` information, `<7>` for debugging.
use strict;
use warnings;
use Clock ();
use Text  ();
use Wire  ();

use constant {
    LIMIT => 256 << 10,    # bytes of one call
    FRAME => 32 << 10,     # bytes of text in one frame
    LINE  => 8 << 10,      # bytes of a line that waits for its end
    TAIL  => 8 << 10,      # bytes of the end, kept for the error of a call that fails
};

my @LEVELS = qw(CRITICAL CRITICAL CRITICAL ERROR WARNING INFO INFO DEBUG);
my $CUT = '[headrace: this call has logged 256 KiB; the rest of its output is dropped]';

sub new {
    my ($class, $link, $stream) = @_;
    return bless { link => $link, stream => $stream, left => LIMIT, partial => '', tail => '' }, $class;
}

# Take what was written, cut anywhere.
sub take {
    my ($self, $data) = @_;
    return $self->_remember($data) if $self->{cut};
    $self->{partial} .= $data;
    my $end = 1 + rindex $self->{partial}, "\n";
    $end = length $self->{partial} if length($self->{partial}) - $end > LINE;
    $self->_emit(substr $self->{partial}, 0, $end, '') if $end;
}

# No more comes: the last line may have no end.
sub finish {
    my ($self) = @_;
    $self->_emit($self->{partial}) if $self->{partial} ne '';
    $self->{partial} = '';
}

# The last line that says anything, and the lines before it; both empty when nothing was written.
sub last_words {
    my ($self) = @_;
    my $tail = Text::decoded($self->{tail});
    my ($line) = $tail =~ /([^\n]*\S[^\n]*)\s*\z/;
    return ($line // '', $tail);
}

sub _emit {
    my ($self, $text) = @_;
    $text =~ s/\n\z//;
    return $self->_send('ERROR', $text) if $text !~ /^<[0-7]>/m;
    my ($level, @lines);
    for my $line (split /\n/, $text, -1) {
        my $own = $line =~ s/\A<([0-7])>// ? $LEVELS[$1] : 'ERROR';
        $self->_send($level, join "\n", splice @lines) if @lines && $own ne $level;
        $level = $own;
        push @lines, $line;
    }
    $self->_send($level, join "\n", @lines);
}

# The end of it all says why a call fails.
sub _remember { my ($self, $text) = @_; $self->{tail} = substr $self->{tail} . $text, -TAIL() }

sub _send {
    my ($self, $level, $text) = @_;
    $text = Text::encoded(Text::decoded($text)) if !Text::is_utf8($text);
    $self->_remember("$text\n");
    return if $self->{cut};
    if (length $text >= $self->{left}) {
        $text = Text::shortened($text, $self->{left}) . "\n$CUT";
        $self->{cut} = 1;
    }
    $self->{left} -= 1 + length $text;
    my $header = sprintf '{"t":%.3f,"s":"stderr","l":"%s"}', Clock::now(), $level;
    while ($text ne '') {
        my $piece = Text::shortened($text, FRAME);
        if (length $piece < length $text && (my $end = rindex $piece, "\n") > 0) {
            $piece = substr $piece, 0, $end;
            substr($text, $end, 1) = '';
        }
        $self->{link}->send(Wire::LOG, $self->{stream}, $header, $piece);
        substr($text, 0, length $piece) = '';
    }
}

1;
