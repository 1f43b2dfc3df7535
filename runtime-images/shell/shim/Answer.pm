package Answer;

# What a program says about its answer: lines on descriptor 4, `Name: value` each, `Status: 404` among them.
use strict;
use warnings;
use Json ();
use Text ();

use constant LIMIT => 128 << 10;    # bytes of an answer's headers

my %PLATFORM = map { $_ => 1 }
    qw(connection content-length keep-alive proxy-connection te trailer transfer-encoding upgrade);

# Status and headers ([[name, value], ...]) of the lines in `$text`; dies with what is wrong with them.
sub head {
    my ($text) = @_;
    my ($status, @headers) = (200);
    $text =~ s/^socket:[^\n]*\n?//gmi;    # a command: see Sockets
    die 'the headers of the answer take more than ' . LIMIT . " bytes\n" if length $text > LIMIT;
    for my $line (split /\n/, $text) {
        next if $line eq '';
        my ($name, $value) = $line =~ /\A([!#\$%&'*+.^_`|~0-9A-Za-z-]+):(.*)\z/s
            or die Json::encode(Text::decoded(substr $line, 0, 80))
            . " is no header name and value: write headers as `Name: value`, a line each\n";
        $name = lc $name;
        $value = _value($name, $value);
        if ($name eq 'status') { $status = _status($value) }
        elsif (!$PLATFORM{$name}) { push @headers, [$name, $value] }
    }
    return ($status, \@headers);
}

# The media type of a body that starts with `$bytes`, when nothing was said about it.
sub media_type { return Text::looks_like_text($_[0]) ? 'text/plain; charset=utf-8' : 'application/octet-stream' }

# `$output` as JSON: what is JSON stays, the rest is a string.
sub json {
    my ($output) = @_;
    return $output if $output =~ /\S/ && eval { Json::decode($output); 1 };
    $output =~ s/\n\z//;
    return $output eq '' ? 'null' : Json::encode(Text::decoded($output));
}

sub _value {
    my ($name, $bytes) = @_;
    my $value = Text::decoded($bytes);
    if ($value =~ /([^\t\x20-\x7e\x{80}-\x{ff}])/) {
        die "header '$name' contains " . Json::encode($1) . ': line breaks, control characters and characters beyond '
            . "Latin-1 are not allowed in a header\n";
    }
    $value =~ s/\A[ \t]+|[ \t]+\z//g;
    return $value;
}

sub _status {
    my ($value) = @_;
    return 0 + $1 if $value =~ /\A([2-5][0-9][0-9])(?: .*)?\z/;
    die "`Status` is " . Json::encode($value) . ": write a whole number from 200 to 599\n";
}

1;
