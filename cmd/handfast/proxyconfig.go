package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master/admin"
)

// proxyTemplates has a file for each proxy: NAME.tmpl, which is given a proxyConfig. A proxy more is a file more, and its
// row in proxies.
//
//go:embed proxyconfig
var proxyTemplates embed.FS

// proxies are those of which there is a configuration.
var proxies = []struct {
	name     string
	noHeader bool   // it has no hash of a header's value
	socket   string // what it has of a handfast that listens on a Unix socket, with %s for the path; empty: it connects to none
}{
	{name: "nginx", socket: "server unix:%s; in the upstream block"},
	{name: "haproxy", socket: "server handfast unix@%s"},
	{name: "apache", socket: `ProxyPass "/" "unix:%s|http://app/"`},
	{name: "caddy", socket: "reverse_proxy unix/%s"},
	{name: "traefik", noHeader: true},
}

// byWords are the values of --by.
var byWords = []string{"address", "cookie", "header:"}

func proxyNames() (names []string) {
	for _, p := range proxies {
		names = append(names, p.name)
	}
	return names
}

// proxyConfig is what a proxy's configuration is made of.
type proxyConfig struct {
	Name    string // of the handfast
	ID      string // of the blocks, variables and the cookie: the name, in letters that all proxies take
	Command string // that printed it
	By      string // address, cookie or header: what a client is recognised by
	Header  string // the name of that header
	Slots   []proxySlot
}

// proxySlot is one server of the proxy.
type proxySlot struct {
	N       int
	Address string // with its port
}

// Later are the slots but the first.
func (c proxyConfig) Later() []proxySlot { return c.Slots[1:] }

// Backwards is Later from the last one on.
func (c proxyConfig) Backwards() []proxySlot {
	slots := slices.Clone(c.Later())
	slices.Reverse(slots)
	return slots
}

// HeaderVariable is the header's name as nginx has it in $http_NAME.
func (c proxyConfig) HeaderVariable() string {
	return strings.ReplaceAll(strings.ToLower(c.Header), "-", "_")
}

// Percent is the share of clients that a slot takes from those before it: with k slots before it one in k+1.
func (s proxySlot) Percent() string { return fmt.Sprintf("%.2f", 100/float64(s.N+1)) }

// Hex is the bound below which are the hashes of that share, in hexadecimal digits.
func (s proxySlot) Hex() string { return fmt.Sprintf("%08x", (uint64(1)<<32)/uint64(s.N+1)) }

// write writes the configuration of a proxy.
func (c proxyConfig) write(w io.Writer, proxy string) error {
	t, err := template.ParseFS(proxyTemplates, "proxyconfig/scale.tmpl", "proxyconfig/"+proxy+".tmpl")
	if err != nil {
		return err
	}
	return t.ExecuteTemplate(w, proxy+".tmpl", c)
}

// proxyConfigCommand is `handfast proxy-config`.
func proxyConfigCommand() *cli.Command {
	var own []cli.Flag
	for _, f := range runFlags() {
		if slices.Contains([]string{"slot-address", "listen", "workers", "config"}, f.Names()[0]) {
			own = append(own, f)
		}
	}
	by := &cli.StringFlag{Name: "by", Value: "address", Usage: "`WHAT` the proxy recognises clients by: address, cookie (one of its own), or header:NAME"}
	return &cli.Command{
		Name:      "proxy-config",
		Usage:     "print the configuration of a proxy that chooses the slot itself",
		ArgsUsage: strings.Join(proxyNames(), "|"),
		Description: "Each slot is a server of the proxy's, at its own address (--slot-address of run), so that the\n" +
			"proxy keeps its pool of connections, and workers may be any servers. Asks the running master; with\n" +
			"--slot-address, or with --config FILE that has it, a master that does not run yet is described.\n" +
			"The first lines of what is printed say where it belongs.\n\n" +
			"--workers N prints the first N slots of a running master, which is to be scaled down to N.",
		Flags: askFlags(append([]cli.Flag{by}, own...)...),
		Action: func(c *cli.Context) error {
			proxy := slices.Index(proxyNames(), c.Args().First())
			if proxy < 0 || c.NArg() > 1 {
				return usagef("proxy-config: want %s, got %q", or(proxyNames()), strings.Join(c.Args().Slice(), " "))
			}
			_, from, err := layer(c)
			v := values{Context: c, from: from, err: err}
			config := v.proxyConfig()
			if config.Header != "" && proxies[proxy].noHeader {
				v.fail("--by header:%s: %s has no hash of a header; use --by cookie or --by address", config.Header, proxies[proxy].name)
			}
			if v.err != nil {
				return v.err
			}
			if err := v.slotServers(&config, proxies[proxy].socket); err != nil {
				return err
			}
			return config.write(c.App.Writer, proxies[proxy].name)
		},
	}
}

// notInID are letters that not every proxy takes in a name.
var notInID = regexp.MustCompile(`[^A-Za-z0-9_]`)

// proxyConfig reads all but the slots.
func (v *values) proxyConfig() proxyConfig {
	c := proxyConfig{Name: v.String("name"), By: v.String("by"), Command: "handfast proxy-config " + v.Args().First()}
	if err := admin.CheckName(c.Name); err != nil {
		v.fail("--name: %w", err)
	}
	c.ID = notInID.ReplaceAllString(c.Name, "_")
	for _, f := range v.Command.Flags {
		if name := f.Names()[0]; typed(v.Context)[name] {
			for _, value := range v.typedValues(f) {
				c.Command += " --" + name + " " + value
			}
		}
	}
	if kind, header, named := strings.Cut(c.By, ":"); named && kind == "header" && forwarded.IsToken(header) {
		c.By, c.Header = kind, header
	} else if c.By != "address" && c.By != "cookie" {
		v.fail("--by %q: want address, cookie or header:NAME", c.By)
	}
	return c
}

func (v *values) typedValues(f cli.Flag) []string {
	if _, repeatable := f.(*cli.StringSliceFlag); repeatable {
		return v.list(f.Names()[0])
	}
	return []string{fmt.Sprint(v.Value(f.Names()[0]))}
}

// noSlotAddresses says what is missing, and what to do.
const noSlotAddresses = "its slots have no addresses of their own: run it with --slot-address 127.77.0.0/24, and --listen 127.0.0.1:PORT or :PORT"

// withoutSlotAddresses says what to do with a handfast that listens on these addresses. socket is what the proxy has of a Unix socket.
func withoutSlotAddresses(listens []string, socket string) string {
	i := slices.IndexFunc(listens, isSocket)
	switch {
	case i < 0:
		return noSlotAddresses
	case socket == "":
		return "it listens on a Unix socket, to which this proxy cannot connect, and " + noSlotAddresses
	}
	return "it listens on a Unix socket, where handfast chooses the slot, and the proxy needs no more than " + fmt.Sprintf(socket, pathOfSocket(listens[i])) + "; for a proxy that chooses, " + noSlotAddresses
}

// slotServers fills in the slots: of the running master, unless another one is described.
func (v *values) slotServers(c *proxyConfig, socket string) error {
	given := typed(v.Context)
	if given["slot-address"] || given["config"] {
		return v.describedSlots(c, socket)
	}
	m, err := v.master()
	if errors.Is(err, admin.ErrNotRunning) && v.String("slot-address") != "" {
		return v.describedSlots(c, socket)
	}
	if err != nil {
		return err
	}
	status, err := m.Status(v.Context.Context)
	if err != nil {
		return err
	}
	c.Name = status.Name
	c.ID = notInID.ReplaceAllString(c.Name, "_")
	slots := status.Slots
	if given["workers"] {
		n := v.workers()
		if v.err != nil {
			return v.err
		}
		if n > len(slots) {
			return usagef("--workers %d: %s has %d slots; first handfast scale %[1]d", n, c.Name, len(slots))
		}
		slots = slots[:n]
	}
	for _, slot := range slots {
		if len(slot.Addresses) == 0 {
			return fmt.Errorf("%s: %s", c.Name, withoutSlotAddresses(status.Addresses, socket))
		}
		c.Slots = append(c.Slots, proxySlot{slot.Slot, slot.Addresses[0]})
	}
	return nil
}

// describedSlots fills in the slots of a master that has these flags.
func (v *values) describedSlots(c *proxyConfig, socket string) error {
	own, workers, listens := v.slotAddress(), v.workers(), v.listens()
	ports := slices.DeleteFunc(slices.Clone(listens), isSocket)
	if v.err == nil && len(ports) == 0 && len(listens) > 0 {
		return usagef("--listen %s: %s", listens[0], withoutSlotAddresses(listens, socket))
	}
	listen := append(ports, defaultListen)[0]
	_, port, err := net.SplitHostPort(listen)
	if err != nil || port == "0" {
		v.fail("--listen %s: want the port on which slots are reached", listen)
	}
	if v.err != nil {
		return v.err
	}
	if !own.IsValid() {
		return usagef("--config %s: %s", v.String("config"), withoutSlotAddresses(listens, socket))
	}
	for slot := range workers {
		c.Slots = append(c.Slots, proxySlot{slot, net.JoinHostPort(own.Of(slot).String(), port)})
	}
	return nil
}
