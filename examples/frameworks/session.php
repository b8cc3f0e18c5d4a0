<?php
// PHP's sessions in files that are the worker's own: each is known to the worker that has begun it.
$slot = getenv('HANDFAST_SLOT');
$generation = getenv('HANDFAST_GENERATION');
$path = getenv('SESSIONS') . "/$slot-$generation";
is_dir($path) || mkdir($path);
setcookie('route', getenv('HANDFAST_ROUTE'), ['path' => '/', 'httponly' => true, 'samesite' => 'Lax']);
session_save_path($path);
session_start();
$_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
echo "slot=$slot generation=$generation visits={$_SESSION['visits']}\n";
