package Sockets;

# What a program asks of the WebSockets of its function, which the node holds: lines on descriptor 4 such as
# `Socket: join tea`, and for an event of a socket its output, which goes back as a message.
use strict;
use warnings;
use Json ();
use Text ();
use Wire ();

use constant {
    MESSAGE_LIMIT => 1 << 20,    # bytes of one message
    GROUP_LIMIT   => 128,        # characters of a group's name
    REASON_LIMIT  => 123,        # bytes of a close reason
};

my $CODE = qr/100[0-37-9]|101[0-4]|[34][0-9]{3}/;

# The commands in `$notes`, [type, header, body] each, in order; `$own` is the connection of the call, if it has one.
sub commands {
    my ($notes, $own) = @_;
    return map { _command($_, $own) } $notes =~ /^socket:[ \t]*([^\n]*)/gmi;
}

# The output of an event as what goes back to the sender: text is a message without its last line break.
sub message {
    my ($output, $own) = @_;
    return () if $output eq '';
    my $text = Text::looks_like_text($output) && Text::is_utf8($output);
    $output =~ s/\n\z// if $text;
    return _send($output, $text, { to => $own });
}

sub _command {
    my ($line, $own) = @_;
    my ($verb, $rest) = split / +/, $line, 2;
    $rest //= '';
    return _send($rest, 1, { to => _own($own) }) if $verb eq 'send';
    return _send($2, 1, { to => $1 })         if $verb eq 'send-to' && $rest =~ /\A(\S{1,64})(?: (.*))?\z/s;
    return _send($2, 1, { g => _group($1) })  if $verb eq 'send-group' && $rest =~ /\A(\S+)(?: (.*))?\z/s;
    if ($verb =~ /\A(?:join|leave)\z/ && $rest =~ /\A(\S+)(?: (\S{1,64}))?\z/) {
        my %header = (g => _group($1), to => $2 // _own($own));
        return [Wire::WS_GROUP, { %header, $verb eq 'join' ? (in => \1) : () }, ''];
    }
    return _close($rest, _own($own)) if $verb eq 'close';
    return _close($2 // '', $1)      if $verb eq 'close-other' && $rest =~ /\A(\S{1,64})(?: (.*))?\z/s;
    die Json::encode(Text::decoded(substr $line, 0, 80)) . " is no command: write `Socket: send TEXT`, `send-to CONNECTION TEXT`, "
        . "`send-group GROUP TEXT`, `join GROUP`, `leave GROUP`, `close [CODE [REASON]]` or `close-other CONNECTION`\n";
}

sub _send {
    my ($body, $text, $header) = @_;
    $body //= '';
    die 'the message has ' . length($body) . ' bytes; the limit is ' . MESSAGE_LIMIT . ": send it in parts\n"
        if length $body > MESSAGE_LIMIT;
    return [Wire::WS_MESSAGE, { %$header, t => $text ? 1 : 0 }, $body];
}

sub _close {
    my ($rest, $to) = @_;
    my ($code, $reason) = $rest eq '' ? (1000, '') : $rest =~ /\A($CODE)(?: (.*))?\z/s;
    die "`Socket: close` takes a code, 1000 or one from 3000 to 4999, and a reason\n" if !defined $code;
    die 'a close reason may have ' . REASON_LIMIT . " bytes\n" if length($reason // '') > REASON_LIMIT;
    return [Wire::WS_CLOSE, { c => 0 + $code, r => Text::decoded($reason // ''), to => $to }, ''];
}

sub _own {
    my ($own) = @_;
    return $own // die "this call has no connection of its own: name one (`Socket: send-to CONNECTION TEXT`)\n";
}

sub _group {
    my $name = Text::decoded($_[0]);
    die 'the name of a group may have ' . GROUP_LIMIT . " characters\n" if length $name > GROUP_LIMIT;
    return $name;
}

1;
