package Text;

# Bytes and characters. perl's own decoder takes more than UTF-8, so what comes from outside is looked at first.
use strict;
use warnings;

my $CHARACTER = qr/[\x00-\x7f]
    | [\xc2-\xdf][\x80-\xbf]
    | \xe0[\xa0-\xbf][\x80-\xbf] | [\xe1-\xec\xee\xef][\x80-\xbf]{2} | \xed[\x80-\x9f][\x80-\xbf]
    | \xf0[\x90-\xbf][\x80-\xbf]{2} | [\xf1-\xf3][\x80-\xbf]{3} | \xf4[\x80-\x8f][\x80-\xbf]{2}/x;
my $CUT = qr/(?:[\xc2-\xf4] | \xe0[\xa0-\xbf] | [\xe1-\xef][\x80-\xbf] | \xf0[\x90-\xbf][\x80-\xbf]?
    | [\xf1-\xf4][\x80-\xbf]{1,2})\z/x;

# True when `$_[0]` is UTF-8 from its first byte to its last.
sub is_utf8 {
    return 1 if $_[0] !~ /[\x80-\xff]/;
    pos($_[0]) = 0;
    while ($_[0] =~ /\G(?:[\x00-\x7f]++|$CHARACTER)/gc) { }
    return pos($_[0]) == length $_[0];
}

# True when a body that starts with these bytes, cut anywhere, is text.
sub looks_like_text {
    my ($bytes) = @_;
    return 0 if $bytes =~ /\0/;
    return is_utf8($bytes) || ($bytes =~ s/$CUT// && is_utf8($bytes));
}

# The characters of `$bytes`; what is no UTF-8 becomes U+FFFD.
sub decoded {
    my ($bytes) = @_;
    $bytes =~ s{($CHARACTER)|[\x80-\xff]}{$1 // "\xef\xbf\xbd"}ge if !is_utf8($bytes);
    utf8::decode($bytes);
    return $bytes;
}

sub encoded {
    my ($text) = @_;
    utf8::encode($text);
    return $text;
}

# At most `$most` bytes of UTF-8, not cut inside a character.
sub shortened {
    my ($bytes, $most) = @_;
    return $bytes if length $bytes <= $most;
    $bytes = substr $bytes, 0, $most;
    $bytes =~ s/$CUT//;
    return $bytes;
}

sub base64 {
    my $text = pack 'u', $_[0];
    $text =~ s/^.//mg;
    $text =~ tr/\n//d;
    $text =~ tr{` -_}{AA-Za-z0-9+/};
    my $open = (3 - length($_[0]) % 3) % 3;
    substr($text, -$open) = '=' x $open if $open;
    return $text;
}

1;
