package Event;

# What a program is told: the event, in the shape of API Gateway's HTTP payload 2.0, and the environment of CGI/1.1.
use strict;
use warnings;
use Clock ();
use Json  ();
use Text  ();

my @MONTHS = qw(Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec);
my $TEXT_TYPE = qr{\A(?:text/.*|application/(?:json|xml|javascript|x-www-form-urlencoded)|.*\+(?:json|xml))\z};

# The event as JSON. Of a request whose body is still on its way, `body` is null; a payload that is, is null itself. Dies
# for a payload that is no JSON.
sub json {
    my ($head, $body, $function) = @_;
    return Json::encode(_socket($head, $body, $function)) if exists $head->{c};
    return Json::encode(_http($head, $body, $function)) if exists $head->{m};
    return 'null' if !defined $body;
    return '{}' if $body eq '';
    eval { Json::decode($body); 1 } or die "the payload of this call is not JSON: $@";
    return $body;
}

# The environment of one call; `$base` is that of all.
sub environment {
    my ($head, $size, $function, $base) = @_;
    my %env = (
        %$base,
        HEADRACE_INVOCATION  => $head->{id},
        HEADRACE_DEADLINE_MS => sprintf('%.0f', Clock::now() * 1000 + $head->{d}),
    );
    @env{qw(HEADRACE_EVENT HEADRACE_CONNECTION)} = ($head->{ev} // 'connect', $head->{c}) if exists $head->{c};
    return \%env if !exists $head->{m};
    my %headers = _joined($head->{h});
    my ($host, $port) = _host($headers{host} // '', $head->{s});
    for my $name (grep { !/[^a-z0-9-]/ && $_ ne 'proxy' } keys %headers) {    # HTTP_PROXY would turn a program's own calls
        $env{ 'HTTP_' . uc($name =~ tr/-/_/r) } = _latin1($headers{$name});
    }
    delete @env{qw(HTTP_CONTENT_TYPE HTTP_CONTENT_LENGTH)};
    my ($root, $query) = map { Text::encoded($_) } @$head{qw(r q)};
    my $path = Text::encoded($head->{p});
    %env = (
        %env,
        GATEWAY_INTERFACE => 'CGI/1.1',
        REQUEST_METHOD    => $head->{m},
        REQUEST_SCHEME    => $head->{s},
        REQUEST_URI       => "$root$path" . (length $query ? "?$query" : ''),
        SCRIPT_NAME       => $root,
        PATH_INFO         => _path($path),
        QUERY_STRING      => $query,
        CONTENT_TYPE      => _latin1($headers{'content-type'} // ''),
        REMOTE_ADDR       => $head->{ip},
        SERVER_NAME       => _latin1($host),
        SERVER_PORT       => $port,
        SERVER_PROTOCOL   => "HTTP/$head->{v}",
        SERVER_SOFTWARE   => 'headrace',
    );
    $env{CONTENT_LENGTH} = $size if defined $size;
    return \%env;
}

# In the shape of API Gateway's WebSocket events.
sub _socket {
    my ($head, $body, $function) = @_;
    my $kind    = $head->{ev} // 'connect';
    my $request = $kind eq 'connect' ? _http($head, '', $function) : undef;
    my $now     = Clock::now();
    my ($domain) = $request ? $request->{requestContext}{domainName} : _host($head->{host}, 'http');
    my %context = (
        apiId             => $function->{function},
        connectedAt       => $head->{at},
        connectionId      => $head->{c},
        domainName        => $domain,
        eventType         => uc $kind,
        extendedRequestId => $head->{id},
        identity          => { sourceIp => $head->{ip} },
        messageDirection  => 'IN',
        requestId         => $head->{id},
        requestTime       => _clf_time($now),
        requestTimeEpoch  => int($now * 1000),
        routeKey          => $kind eq 'message' ? '$default' : "\$$kind",
        stage             => '$default',
    );
    my %event = (requestContext => \%context, body => '', isBase64Encoded => \0);
    if ($kind eq 'connect') {
        $context{identity}{userAgent} = $request->{requestContext}{http}{userAgent};
        @event{$_} = $request->{$_} for qw(headers queryStringParameters rawPath rawQueryString);
    }
    elsif ($kind eq 'message') {
        $context{messageId} = $head->{id};
        my $binary = !$head->{t};
        $event{body} = !defined $body ? undef : $binary ? Text::base64($body) : Text::decoded($body);
        $event{isBase64Encoded} = \$binary;
    }
    else { @context{qw(disconnectStatusCode disconnectReason)} = @$head{qw(code r)} }
    return \%event;
}

sub _http {
    my ($head, $body, $function) = @_;
    my %headers = _joined($head->{h});
    my ($domain) = _host($headers{host} // '', $head->{s});
    my $now = Clock::now();
    my ($text, $base64) = _body($headers{'content-type'}, $body);
    return {
        version               => '2.0',
        routeKey              => '$default',
        rawPath               => $head->{p},
        rawQueryString        => $head->{q},
        cookies               => [map { s/\A\s+|\s+\z//gr } split /;/, $headers{cookie} // ''],
        headers               => \%headers,
        queryStringParameters => _parameters($head->{q}),
        requestContext        => {
            accountId    => 'anonymous',
            apiId        => $function->{function},
            domainName   => $domain,
            domainPrefix => $domain =~ s/\..*//sr,
            http         => {
                method    => $head->{m},
                path      => $head->{p},
                protocol  => "HTTP/$head->{v}",
                sourceIp  => $head->{ip},
                userAgent => $headers{'user-agent'} // '',
            },
            requestId => $head->{id},
            routeKey  => '$default',
            stage     => '$default',
            time      => _clf_time($now),
            timeEpoch => int($now * 1000),
        },
        body            => $text,
        isBase64Encoded => \$base64,
    };
}

# Names to values, those of several headers of one name joined.
sub _joined {
    my ($list) = @_;
    my %headers;
    for my $header (@$list) {
        my ($name, $value) = @$header;
        my $between = $name eq 'cookie' ? '; ' : ',';
        $headers{$name} = exists $headers{$name} ? "$headers{$name}$between$value" : $value;
    }
    return %headers;
}

sub _host {
    my ($host, $scheme) = @_;
    return ($1, $2) if $host =~ /\A(.*):([0-9]+)\z/s;
    return ($host, $scheme eq 'https' ? 443 : 80);
}

# Decoded, but for control characters: a line break in it would become one in what a program writes.
sub _path {
    my ($path) = @_;
    $path =~ s/%([2-7][0-9a-fA-F]|[89a-fA-F][0-9a-fA-F])/my $byte = chr hex $1; $byte eq "\x7f" ? "%$1" : $byte/ge;
    return $path;
}

sub _parameters {
    my ($query) = @_;
    my %found;
    for my $part (grep { $_ ne '' } split /&/, $query) {
        my ($name, $value) = map { _unquoted($_) } split(/=/, $part, 2), '';
        $found{$name} = exists $found{$name} ? "$found{$name},$value" : $value;
    }
    return \%found;
}

sub _unquoted {
    my ($text) = @_;
    $text =~ tr/+/ /;
    return $text if $text !~ /%/;
    $text = Text::encoded($text);
    $text =~ s/%([0-9a-fA-F]{2})/chr hex $1/ge;
    return Text::decoded($text);
}

sub _body {
    my ($type, $body) = @_;
    return (undef, 0) if !defined $body;
    my $media = defined $type ? lc $type =~ s/;.*//sr : 'text/';
    $media =~ s/\A\s+|\s+\z//g;
    return (Text::decoded($body), 0) if $media =~ $TEXT_TYPE && Text::is_utf8($body);
    return ('', 0) if $body eq '';
    return (Text::base64($body), 1);
}

sub _clf_time {
    my ($second, $minute, $hour, $day, $month, $year) = gmtime int $_[0];
    return sprintf '%02d/%s/%d:%02d:%02d:%02d +0000', $day, $MONTHS[$month], $year + 1900, $hour, $minute, $second;
}

# As the bytes that came; NUL can't be in an environment.
sub _latin1 {
    my ($text) = @_;
    $text = Text::encoded($text) if !utf8::downgrade($text, 1);
    $text =~ tr/\0//d;
    return $text;
}

1;
