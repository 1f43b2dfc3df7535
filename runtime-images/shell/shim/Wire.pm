package Wire;

# The frames of PROTOCOL.md: a codec without I/O.
use strict;
use warnings;
use Json ();

use constant {
    HELLO => 1, LOAD => 2, LOADED => 3, LOAD_FAILED => 4, CALL => 5, REPLY => 6, HEAD => 7, BODY => 8, ENDED => 9,
    WINDOW => 10, LOG => 11, CANCEL => 12, PING => 13, PONG => 14, DRAIN => 15, WS_ACCEPT => 16,
    WS_MESSAGE => 17, WS_CLOSE => 18, WS_GROUP => 19,
};
use constant {
    PROTOCOL    => 1,
    MAX_PAYLOAD => 1 << 20,
    INLINE      => 64 << 10,     # the longest body of CALL and REPLY
    CHUNK       => 256 << 10,    # and of BODY
    WINDOW_SIZE => 1 << 20,    # body bytes in flight on a stream before the first WINDOW
};
use constant PREFIX_SIZE => 13;

# One frame as bytes. `$header`: JSON as bytes, or empty.
sub encode {
    my ($type, $stream, $header, $body) = @_;
    $header //= '';
    $body   //= '';
    return pack('NCNN', length($header) + length($body), $type, $stream, length $header) . $header . $body;
}

# The frame whose header is the hash `$header`.
sub frame { my ($type, $stream, $header, $body) = @_; return encode($type, $stream, Json::encode($header), $body) }

# The header of a received frame as a hash; dies when it is no JSON object.
sub header {
    my ($bytes) = @_;
    return {} if $bytes eq '';
    my $header = Json::decode($bytes);
    die "a frame header is no object\n" if ref $header ne 'HASH';
    return $header;
}

sub new { my $rest = ''; return bless \$rest }    # a decoder: it holds what is left of the bytes so far

# The frames that `$data` completes, [type, stream, header, body] each; dies for what is no frame.
sub feed {
    my ($self, $data) = @_;
    $$self .= $data;
    my ($at, @frames) = (0);
    while (length($$self) - $at >= PREFIX_SIZE) {
        my ($size, $type, $stream, $header) = unpack 'NCNN', substr($$self, $at, PREFIX_SIZE);
        die "a frame announces $size bytes, header $header\n" if $size > MAX_PAYLOAD || $header > $size;
        last if length($$self) - $at - PREFIX_SIZE < $size;
        $at += PREFIX_SIZE;
        push @frames, [$type, $stream, substr($$self, $at, $header), substr($$self, $at + $header, $size - $header)];
        $at += $size;
    }
    substr($$self, 0, $at) = '' if $at;
    return @frames;
}

1;
