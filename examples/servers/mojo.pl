# A Mojolicious application with its own server: perl mojo.pl daemon -l http://0.0.0.0:8080
use Mojolicious::Lite -signatures;

get '/*any' => {any => ''} => sub ($c) {
    $c->render(text => sprintf("slot=%s pid=%d generation=%s client=%s\n",
        $ENV{HANDFAST_SLOT}, $$, $ENV{HANDFAST_GENERATION}, $c->tx->remote_address));
};
app->log->level('warn');
app->start;
