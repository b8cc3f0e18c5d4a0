package programs

import (
	"regexp"
	"strconv"
)

// addressInUse is how programs say that an address is in use: EADDRINUSE of Node, what strerror(3) says, Python's
// number, Java and PostgreSQL.
var addressInUse = regexp.MustCompile(`(?i)EADDRINUSE|address (is )?already in use|address in use|errno 98|\(98\b`)

// portBeside is what may be an address's port beside that.
var portBeside = regexp.MustCompile(`(?:[:\]]|port[ =:"']+|,\s*)(\d{2,5})\b`)

// portField is the port as Node writes it in an error's fields, each on a line of its own.
var portField = regexp.MustCompile(`(?m)^[ |]*port: (\d+)`)

// AddressInUse reads what a program wrote before it failed: whether that was because of an address that
// was in use, and which port it named; 0 for none.
func AddressInUse(words string) (number uint16, yes bool) {
	at := addressInUse.FindAllStringIndex(words, -1)
	if at == nil {
		return 0, false
	}
	for _, found := range at {
		start, end := found[0], found[1]
		for start > 0 && words[start-1] != '\n' {
			start--
		}
		for end < len(words) && words[end] != '\n' {
			end++
		}
		ports := portBeside.FindAllStringSubmatch(words[start:end], -1)
		for i := len(ports) - 1; i >= 0; i-- { // a time may stand before
			if n, err := strconv.ParseUint(ports[i][1], 10, 16); err == nil && n >= 10 && n != 98 {
				return uint16(n), true
			}
		}
	}
	if named := portField.FindAllStringSubmatch(words, -1); named != nil {
		n, _ := strconv.ParseUint(named[len(named)-1][1], 10, 16)
		return uint16(n), true
	}
	return 0, true
}

// OwnAddress says how the program is configured so that two of it do not want the same address of their
// own, other than the one that it serves clients on.
func (c *Command) OwnAddress(network string, port uint16) string {
	if name, _ := c.server(); name == "caddy" {
		switch {
		case network == "udp":
			return "turn HTTP/3 off in caddy's global options: servers { protocols h1 h2 }"
		case port == 2019:
			return "caddy's global option: admin off"
		}
	}
	return "give each worker its own, by {slot} in the command, --env or HANDFAST_SLOT, and {generation} if it is to outlive a reload; or none"
}
