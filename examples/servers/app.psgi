# A PSGI application, for starman.
use strict;
use warnings;

sub {
    my $env = shift;
    my $text = sprintf("slot=%s pid=%d generation=%s client=%s\n",
        $ENV{HANDFAST_SLOT}, $$, $ENV{HANDFAST_GENERATION}, $env->{REMOTE_ADDR});
    return [200, ['Content-Type' => 'text/plain'], [$text]];
};
