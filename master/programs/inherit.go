package programs

import (
	"fmt"
	"strings"
)

// InheritedEnv returns the variables by which a program with a convention of its own for its upgrades finds listeners
// that it inherits: those at these addresses, with descriptors from first up. Others look for LISTEN_FDS, or are told
// a number.
func (c *Command) InheritedEnv(addresses []string, first int) []string {
	var nginx, fpm string
	for i, address := range addresses {
		nginx += fmt.Sprintf("%d;", first+i)
		fpm += fmt.Sprintf("%s=%d,", address, first+i)
	}
	switch name := c.Name(); {
	case name == "nginx": // src/core/nginx.c, ngx_add_inherited_sockets
		return []string{"NGINX=" + nginx}
	case strings.HasPrefix(name, "php-fpm"): // sapi/fpm/fpm/fpm_sockets.c
		return []string{"FPM_SOCKETS=" + strings.TrimSuffix(fpm, ",")}
	}
	return nil
}

// InheritsNonBlocking tells whether listeners that the program inherits must not block. nginx takes them for its own, and
// so for non-blocking: else a process of it that another one was quicker than waits in accept, and all its clients with
// it.
func (c *Command) InheritsNonBlocking() bool { return c.Name() == "nginx" }
