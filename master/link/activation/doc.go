// Package activation connects workers that take listening sockets as systemd passes them: as
// descriptors 3 and up, announced in the environment (man 3 sd_listen_fds).
//
//	LISTEN_FDS=1 LISTEN_PID=… LISTEN_FDNAMES=handfast
//
// nginx and php-fpm, which have conventions of their own for their upgrades, find theirs in
// NGINX and FPM_SOCKETS (Config.Env; package programs knows them). All others that take a number (uvicorn --fd 3, haproxy's fd@3, node's
// listen({fd: 3})) need no variable.
//
// The worker is ready when a process of it waits for connections on each listener (package
// listening).
package activation
