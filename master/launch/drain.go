package launch

import (
	"path/filepath"
	"strings"
	"syscall"
)

// DrainSignal returns the signal on which a program finishes what it has and exits, as far as
// we know programs: those that take SIGTERM for "at once" have another one. The whole process
// group gets it.
//
//	nginx, php-fpm   SIGQUIT   (php-fpm: set process_control_timeout, or it waits for nobody)
//	apache2, httpd   SIGWINCH
//	haproxy          SIGUSR1
//	php -S           SIGINT    (finishes one request; what else it has accepted is lost)
//	others           SIGTERM
//
// Some are hasty: uvicorn, and Go's http.Server.Shutdown, then close connections that they have
// accepted and not read a request from. A Go program avoids it by closing its listener a
// moment before. redis closes all.
func DrainSignal(command []string) syscall.Signal {
	if len(command) == 0 {
		return syscall.SIGTERM
	}
	// Debian's names have versions: php8.2, php-fpm8.2.
	switch program := strings.TrimRight(filepath.Base(command[0]), "0123456789."); program {
	case "nginx", "php-fpm":
		return syscall.SIGQUIT
	case "apache", "httpd":
		return syscall.SIGWINCH
	case "haproxy":
		return syscall.SIGUSR1
	case "php":
		return syscall.SIGINT
	}
	return syscall.SIGTERM
}
