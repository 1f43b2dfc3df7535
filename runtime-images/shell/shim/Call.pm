package Call;

# One run of the program, from its CALL frame to its answer.
#
# The program has five descriptors: 0 is the body of the request, as it arrives; 1 the body of the answer; 2 the log; 3 the
# event as JSON, a file to read; 4 takes the status and headers of the answer, before its body begins. An answer that is
# short and complete within a moment is one frame; else it streams, and a program that writes faster than its caller
# reads has to wait. It ends when the program has ended: what it left running holds nothing up.
use strict;
use warnings;
use Answer ();
use Clock  ();
use Event  ();
use Json   ();
use Link   ();
use Log    ();
use Sockets ();
use Text   ();
use Wire   ();

use constant {
    MOMENT_S      => 0.005,
    GRACE_S       => 2,           # between the two signals to a program whose caller is gone
    GRANT         => 64 << 10,    # consumed bytes worth a WINDOW frame
    READ          => 64 << 10,
    AT_ONCE       => 16,          # reads in a row: a program that never stops writing must not hold up the others
    LONGEST_WHOLE => 8 << 20,     # bytes of what is kept until it is whole
};

# Start it; `$instance` knows function, program and environment. Dies with why that was not possible.
sub new {
    my ($class, $instance, $link, $frame, $head) = @_;
    my (undef, $stream, undef, $body) = @$frame;
    my $self = bless {
        link     => $link,
        stream   => $stream,
        head     => $head,
        file     => $instance->{program}{file},
        log      => Log->new($link, $stream),
        input    => $body,             # that the program has not taken
        inline   => length $body,      # bytes that came inside CALL, outside the window
        arrived  => !_true($head->{more}),
        consumed => 0,
        notes    => '',                # status and headers
        output   => '',
        window   => Wire::WINDOW_SIZE,
        gone     => 0,                 # nobody waits for the answer
        opened   => 0,                 # HEAD was sent
    }, $class;
    my $event = Event::json($head, $self->{arrived} ? $body : undef, $instance->{function});
    my $size  = $self->{arrived} ? length $body : _length($head);
    $self->_start($instance->{program}, Event::environment($head, $size, @$instance{qw(function environment)}), $event);
    return $self;
}

sub _true   { return ref $_[0] ? ${ $_[0] } : $_[0] }
sub _length { my ($found) = grep { $_->[0] eq 'content-length' } @{ $_[0]{h} }; return $found && $found->[1] }

sub _start {
    my ($self, $program, $environment, $event) = @_;
    open(my $file, '+>', undef) or die "a file for the event: $!\n";
    (syswrite($file, $event) // 0) == length $event or die "the event does not fit into /tmp: $!\n";
    sysseek $file, 0, 0;
    my %theirs;
    for my $end (qw(in out err notes)) {
        pipe(my $reading, my $writing) or die "a pipe: $!\n";
        ($theirs{$end}, $self->{"${end}_end"}) = $end eq 'in' ? ($reading, $writing) : ($writing, $reading);
        Link::nonblocking($self->{"${end}_end"});
    }
    my $child = fork;
    die "a process for the call: $!\n" if !defined $child;
    $program->become($environment, @theirs{qw(in out err)}, $file, $theirs{notes}) if !$child;
    setpgrp $child, $child;    # here too: a signal may be due before the child has done it
    $self->{pid} = $child;
}

# -- the request

# A piece of the body; undef: it is complete.
sub body {
    my ($self, $data) = @_;
    if (defined $data) { $self->{input} .= $data }
    else               { $self->{arrived} = 1 }
}

sub _give {
    my ($self) = @_;
    my $end = $self->{in_end} or return $self->_took(length $self->{input});
    my $sent = $self->{input} eq '' ? 0 : syswrite $end, $self->{input}, READ;
    if (defined $sent) { $self->_took($sent) }
    elsif (!Link::later()) { $self->_close('in') }    # the program reads no more
    $self->_close('in') if $self->{arrived} && $self->{input} eq '';
}

# So many bytes are out of the way; the node may send more.
sub _took {
    my ($self, $size) = @_;
    substr($self->{input}, 0, $size) = '';
    my $free = $size < $self->{inline} ? $size : $self->{inline};
    $self->{inline} -= $free;
    $self->{consumed} += $size - $free;
    return if $self->{consumed} < GRANT;
    $self->{link}->send(Wire::WINDOW, $self->{stream}, qq({"n":$self->{consumed}}));
    $self->{consumed} = 0;
}

# -- the life of the program

# Nobody waits any more: what it answers is dropped.
sub leave { my ($self) = @_; $self->{gone} = 1; $self->{output} = '' }

# End the program, at first with a word of warning.
sub cancel {
    my ($self) = @_;
    $self->leave;
    $self->_end;
}

sub _end {
    my ($self) = @_;
    return if defined $self->{exit};    # its number may be another's by now
    kill 'TERM', -$self->{pid};
    $self->{kill_at} = Clock::monotonic() + GRACE_S;
}

# True when nothing of the output is wanted.
sub _dropping { return $_[0]{gone} || defined $_[0]{broken} }

sub exited { my ($self, $status) = @_; $self->{exit} = $status }

# -- descriptors

# The ends to watch, as lists for reading and for writing.
sub watched {
    my ($self) = @_;
    my @reading = $self->{link}->full ? () : @$self{qw(err_end notes_end)};
    my $room = $self->_dropping || length $self->{output} <= READ && (!$self->{opened} || $self->{window} > 0);
    push @reading, $self->{out_end} if $room && !$self->{link}->full;
    my @writing = $self->{input} ne '' ? $self->{in_end} : ();
    return ([grep { defined } @reading], [grep { defined } @writing]);
}

# Seconds until something has to be done, whatever the descriptors say.
sub patience {
    my ($self) = @_;
    my $now = Clock::monotonic();
    my @due = map { $_ - $now } grep { defined } @$self{qw(kill_at open_at)};
    # A program that has closed its output is about to end. The signal that says so may come just before the wait begins.
    push @due, $self->{out_end} ? 0.1 : ++$self->{polls} < 20 ? 0.001 : 0.05;
    return (sort { $a <=> $b } @due)[0];
}

# Do what can be done now; true when the call has ended.
sub step {
    my ($self) = @_;
    my $ended = defined $self->{exit};    # asked before reading: what it wrote is in the pipes by then
    $self->_give;
    $self->_read_log($ended);
    $self->_read_notes;
    $self->_read_output($ended);
    if (!$ended && defined $self->{kill_at} && Clock::monotonic() >= $self->{kill_at}) {
        kill 'KILL', -$self->{pid};
        delete $self->{kill_at};
    }
    return $self->_finish if $ended && !$self->{out_end};
    $self->_stream;
    return 0;
}

sub _close { my ($self, $end) = @_; delete $self->{"${end}_end"} }

# Up to READ bytes; undef when there are none now, or no more.
sub _read {
    my ($self, $end) = @_;
    my $handle = $self->{"${end}_end"} or return undef;
    my $size = sysread $handle, my $data, READ;
    return $data if $size;
    $self->_close($end) if defined $size || !Link::later();
    return undef;
}

sub _read_log {
    my ($self, $ended) = @_;
    for (1 .. AT_ONCE) {
        return if $self->{link}->full && !$ended;
        $self->{log}->take($self->_read('err') // return);
    }
}

sub _read_notes {
    my ($self) = @_;
    for (1 .. AT_ONCE) {
        my $data = $self->_read('notes') // return;
        $self->{notes} .= $data if !$self->_dropping && !$self->{opened};
        $self->_break('what was written to descriptor 4 takes more than ' . LONGEST_WHOLE . ' bytes')
            if length $self->{notes} > LONGEST_WHOLE && !$self->_dropping;
    }
}

sub _read_output {
    my ($self, $ended) = @_;
    for (1 .. AT_ONCE) {
        return if !($self->_dropping || length $self->{output} <= READ || $ended);
        my $data = $self->_read('out') // last;
        next if $self->_dropping;
        $self->{output} .= $data;
        $self->{open_at} //= Clock::monotonic() + MOMENT_S if !$self->{opened};
    }
    $self->_close('out') if $ended;    # whoever still writes was left behind
}

# -- the answer

# Send what of a long or slow answer may be sent now.
sub _stream {
    my ($self) = @_;
    return if $self->_dropping;
    my $long = length $self->{output} > READ;
    if (!$self->{opened}) {
        return if !$long && !(defined $self->{open_at} && Clock::monotonic() >= $self->{open_at});
        $self->_read_notes;
        return $self->_keep if $self->_is_one_piece;
        my ($status, $headers) = eval { $self->_head } or return $self->_break($@);
        $self->{link}->send(Wire::HEAD, $self->{stream}, Json::encode({ s => $status, h => $headers }));
        $self->{opened} = 1;
        $self->{empty}  = $status == 204 || $status == 304;
        delete $self->{open_at};
    }
    $self->_send_output;
}

# True for a JSON payload, whose answer is a value, and for whatever has to do with WebSockets.
sub _is_one_piece {
    my ($self) = @_;
    return 1 if exists $self->{head}{c} || $self->{notes} =~ /^socket:/mi;
    return $self->_is_value;
}

sub _is_value { my ($self) = @_; return !exists $self->{head}{m} && $self->{notes} !~ /^content-type:/mi }

# Nothing is sent before it is whole.
sub _keep {
    my ($self) = @_;
    delete $self->{open_at};
    $self->{kept} .= $self->{output};
    $self->{output} = '';
    $self->_break('the answer takes more than ' . LONGEST_WHOLE . ' bytes: say its Content-Type on descriptor 4, then it streams')
        if length $self->{kept} > LONGEST_WHOLE;
}

sub _send_output {
    my ($self) = @_;
    $self->{output} = '' if $self->{empty};
    while ($self->{output} ne '' && $self->{window} > 0) {
        my $piece = substr $self->{output}, 0, $self->{window} < Wire::CHUNK ? $self->{window} : Wire::CHUNK, '';
        $self->{window} -= length $piece;
        $self->{link}->send(Wire::BODY, $self->{stream}, '', $piece);
    }
}

sub _head {
    my ($self) = @_;
    my ($status, $headers) = Answer::head($self->{notes});
    push @$headers, ['content-type', Answer::media_type($self->{output})]
        if $self->{output} ne '' && $status != 204 && $status != 304 && !grep { $_->[0] eq 'content-type' } @$headers;
    return ($status, $headers);
}

# The answer is none: the call fails with `$why`, whatever else the program does.
sub _break {
    my ($self, $why) = @_;
    chomp($self->{broken} = $why);
    $self->{output} = '';
    $self->_end;
}

# The program has ended and all that it said was read; true when all of it is sent.
sub _finish {
    my ($self) = @_;
    $self->{log}->finish if !$self->{finished}++;
    return 1 if $self->{gone};
    if ($self->{opened}) {
        $self->_send_output;
        return 0 if $self->{output} ne '';
        my $error = $self->_error;
        $self->{link}->send(Wire::ENDED, $self->{stream}, $error ? Json::encode({ e => $error }) : '');
        return 1;
    }
    my $error = $self->_error;
    return $self->_refuse($error) if $error;
    $self->{commands} //= eval { $self->_collected } or return $self->_refuse(_described('BadResponse', $@));
    return 0 if !$self->_tell;
    return $self->_answer;
}

# The commands to the function's WebSockets. From here on `output` is the whole of it.
sub _collected {
    my ($self) = @_;
    $self->{output} = ($self->{kept} // '') . $self->{output};
    my $own = $self->{head}{c};
    my @back = exists $self->{head}{ev} ? Sockets::message($self->{output}, $own) : ();
    return [@back, Sockets::commands($self->{notes}, $own)];
}

# Send commands as the window allows; true when all are sent.
sub _tell {
    my ($self) = @_;
    while (my $command = $self->{commands}[0]) {
        my ($type, $header, $body) = @$command;
        my $room = $self->{window} < Wire::CHUNK ? $self->{window} : Wire::CHUNK;
        return 0 if $body ne '' && $room <= 0;
        my $piece = substr $body, 0, $room, '';
        $self->{window} -= length $piece;
        my %more = $body ne '' ? (more => \1) : ();
        $self->{link}->send($type, $self->{stream}, Json::encode({ %$header, %more }), $piece);
        $command->[2] = $body;
        shift @{ $self->{commands} } if !%more;
    }
    return 1;
}

# Send the answer, which is whole; true when all of it is sent.
sub _answer {
    my ($self) = @_;
    my ($status, $headers) = eval { $self->_whole };
    return $self->_refuse(_described('BadResponse', $@)) if !defined $status;
    return $self->_accept($headers) if exists $self->{head}{ws} && $status < 300;
    my $head = Json::encode(exists $self->{head}{ev} ? { s => $status } : { s => $status, h => $headers });
    if (length $self->{output} > Wire::INLINE) {
        return $self->_refuse(_described('BadResponse', 'a refusal has ' . Wire::INLINE . ' bytes at most')) if exists $self->{head}{ws};
        $self->{link}->send(Wire::HEAD, $self->{stream}, $head);
        $self->{opened} = 1;
        return $self->_finish;
    }
    $self->{link}->send(Wire::REPLY, $self->{stream}, $head, $self->{output});
    return 1;
}

sub _accept {
    my ($self, $headers) = @_;
    my ($chosen) = map { $_->[1] } grep { $_->[0] eq 'sec-websocket-protocol' } @$headers;
    my %header = (ev => \1, defined $chosen ? (sp => $chosen) : ());
    $self->{link}->send(Wire::WS_ACCEPT, $self->{stream}, Json::encode(\%header));
    return 1;
}

# Status and headers of an answer that is whole; `output` becomes its body.
sub _whole {
    my ($self) = @_;
    if (!exists $self->{head}{c} && $self->_is_value) {
        $self->{output} = Answer::json($self->{output});
        return (200, [['content-type', 'application/json']]);
    }
    my ($status, $headers) = $self->_head;
    $self->{output} = '' if $status == 204 || $status == 304 || exists $self->{head}{ev};
    return ($status, $headers);
}

sub _refuse {
    my ($self, $error) = @_;
    $self->{link}->send(Wire::REPLY, $self->{stream}, Json::encode({ e => $error }));
    return 1;
}

# Why the call failed, as the `e` of a frame; undef when it did not.
sub _error {
    my ($self) = @_;
    return _described('BadResponse', $self->{broken}) if defined $self->{broken};
    my $exit = $self->{exit} or return undef;
    my ($type, $what) = $exit & 127 ? ('Signal', 'signal ' . ($exit & 127)) : ('ExitCode', 'exit code ' . ($exit >> 8));
    my ($line, $tail) = $self->{log}->last_words;
    $tail = "\n$tail" if $tail ne '';
    $tail =~ s/\n+\z//;
    return { type => $type, message => $line ne '' ? $line : $what, stack => "$self->{file}: $what$tail" };
}

sub _described { my ($type, $message) = @_; chomp $message; return { type => $type, message => $message, stack => $message } }

1;
