<?php
echo 'slot=', getenv('HANDFAST_SLOT'), ' pid=', getmypid(), ' generation=', getenv('HANDFAST_GENERATION'),
    ' client=', $_SERVER['REMOTE_ADDR'], "\n";
