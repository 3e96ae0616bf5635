# Can a program that knows nothing of agentmgr, in any language, be a service? It has to serve WebSockets.
#
# agentmgr register echo-perl --auto-start -- perl examples/perl/echo.pl
# agentmgr chat echo-perl
#
# What comes with Perl will do, and a process for each client; where to listen, it is told by HOST and PORT.
use strict;
use warnings;
use Digest::SHA qw(sha1_base64);
use IO::Socket::INET;

$SIG{CHLD} = 'IGNORE';
my $listener = IO::Socket::INET->new(
    LocalAddr => $ENV{HOST}, LocalPort => $ENV{PORT}, Listen => 128, ReuseAddr => 1,
) or die "cannot listen: $@";
while (1) {
    my $client = $listener->accept or next;    # else a signal came in between
    next if fork;
    close $listener;
    serve($client);
    exit;
}

sub serve {
    my ($client) = @_;
    my $key;
    while (defined(my $line = <$client>)) {
        $key = $1 if $line =~ /^Sec-WebSocket-Key:\s*(\S+)/i;
        last if $line =~ /^\r?\n$/;
    }
    return unless defined $key;
    my $accept = sha1_base64($key . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11');
    print $client join "\r\n", 'HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket',
        'Connection: Upgrade', "Sec-WebSocket-Accept: $accept=", '', '';
    $client->flush;
    while (my ($opcode, $payload) = frame_from($client)) {
        if    ($opcode == 1) { send_frame($client, 1, "Perl heard: $payload") }
        elsif ($opcode == 9) { send_frame($client, 10, $payload) }
        elsif ($opcode == 8) { send_frame($client, 8, $payload); return }
    }
}

sub frame_from {
    my ($client) = @_;
    my ($first, $second) = unpack 'CC', bytes_from($client, 2) // return;
    my $length = $second & 127;
    $length = unpack 'n', bytes_from($client, 2) // return if $length == 126;
    my $mask = bytes_from($client, 4) // return;
    my $payload = bytes_from($client, $length) // return;
    return ($first & 15, $payload ^ substr($mask x ($length / 4 + 1), 0, $length));
}

sub bytes_from {
    my ($client, $count) = @_;
    my $bytes = '';
    while ((my $left = $count - length $bytes) > 0) {
        read($client, $bytes, $left, length $bytes) or return;
    }
    return $bytes;
}

sub send_frame {
    my ($client, $opcode, $payload) = @_;
    my $length = length $payload;
    my $head = $length < 126 ? pack('CC', 0x80 | $opcode, $length) : pack('CCn', 0x80 | $opcode, 126, $length);
    print $client $head, $payload;
    $client->flush;
}
