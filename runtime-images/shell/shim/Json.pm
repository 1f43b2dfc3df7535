package Json;

# JSON as bytes of UTF-8, to and from perl's values: `undef` is null, \1 and \0 are true and false, and a scalar is a
# number when it was made as one.
use strict;
use warnings;
no warnings 'recursion';
use Text ();

use constant DEEPEST => 1000;

my %UNESCAPED = (b => "\b", f => "\f", n => "\n", r => "\r", t => "\t", map { $_ => $_ } '"', '\\', '/');
my %ESCAPED = (reverse(%UNESCAPED), '/' => undef);

sub encode { return Text::encoded(_text($_[0])) }

# Dies with what is wrong.
sub decode {
    my ($bytes) = @_;
    die "it is not UTF-8\n" if !Text::is_utf8($bytes);
    local $_ = $bytes;
    pos = 0;
    my $value = _value(0);
    /\G[ \t\r\n]*+/gc;
    die "it goes on after its end\n" if pos != length;
    return $value;
}

sub _text {
    my ($value) = @_;
    return 'null' if !defined $value;
    my $kind = ref $value;
    return '{' . join(',', map { _quoted($_) . ':' . _text($value->{$_}) } sort keys %$value) . '}' if $kind eq 'HASH';
    return '[' . join(',', map { _text($_) } @$value) . ']' if $kind eq 'ARRAY';
    return $$value ? 'true' : 'false' if $kind;
    return _is_number($value) ? "$value" : _quoted($value);
}

# Numbers give 0 here, strings give NULs.
sub _is_number { return length $_[0] < 32 && !utf8::is_utf8($_[0]) && ($_[0] ^ $_[0]) eq '0' }

sub _quoted {
    my ($text) = @_;
    $text =~ s{(["\\\x00-\x1f\x{d800}-\x{dfff}])}{defined $ESCAPED{$1} ? "\\$ESCAPED{$1}" : sprintf '\\u%04x', ord $1}ge;
    return qq("$text");
}

# What follows is for the text in `$_`, from its `pos` on.

sub _value {
    my ($depth) = @_;
    die "it is nested too deeply\n" if $depth > DEEPEST;
    /\G[ \t\r\n]*+/gc;
    return _string() if /\G"/gc;
    return _object($depth) if /\G\{/gc;
    return _array($depth) if /\G\[/gc;
    return 0 + $1 if /\G(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)/gc;
    return \(my $truth = $1 eq 'true') if /\G(true|false)/gc;
    return undef if /\Gnull/gc;
    die 'no value at byte ' . pos() . "\n";
}

sub _object {
    my ($depth) = @_;
    my %object;
    return \%object if /\G[ \t\r\n]*+\}/gc;
    while (1) {
        /\G[ \t\r\n]*+"/gc or die 'no key at byte ' . pos() . "\n";
        my $key = _string();
        /\G[ \t\r\n]*+:/gc or die 'no colon at byte ' . pos() . "\n";
        $object{$key} = _value($depth + 1);
        next if /\G[ \t\r\n]*+,/gc;
        return \%object if /\G[ \t\r\n]*+\}/gc;
        die 'an object without end at byte ' . pos() . "\n";
    }
}

sub _array {
    my ($depth) = @_;
    my @array;
    return \@array if /\G[ \t\r\n]*+\]/gc;
    while (1) {
        push @array, _value($depth + 1);
        next if /\G[ \t\r\n]*+,/gc;
        return \@array if /\G[ \t\r\n]*+\]/gc;
        die 'an array without end at byte ' . pos() . "\n";
    }
}

sub _string {
    my $found = '';
    while (1) {
        $found .= $1 if /\G([^"\\\x00-\x1f]++)/gc;
        last if /\G"/gc;
        if (/\G\\u([0-9a-fA-F]{4})/gc) { $found .= _unicode(hex $1) }
        elsif (m{\G\\(["\\/bfnrt])}gc) { $found .= $UNESCAPED{$1} }
        else                           { die 'a string without end at byte ' . pos() . "\n" }
    }
    utf8::decode($found);
    return $found;
}

# The bytes of a character given by its escape, or by this one and the next.
sub _unicode {
    my ($code) = @_;
    if ($code >> 10 == 0x36 && /\G\\u([dD][c-fC-F][0-9a-fA-F]{2})/gc) {
        $code = 0x10000 + (($code & 0x3ff) << 10) + (hex($1) & 0x3ff);
    }
    return Text::encoded(chr $code);
}

1;
