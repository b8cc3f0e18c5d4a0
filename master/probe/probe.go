package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// interval is the time between two tries.
	interval = 100 * time.Millisecond
	// patience is how long one may take.
	patience = time.Second
)

// ErrUnknown: a text is none of a probe at all.
var ErrUnknown = errors.New("want a delay such as 3s, tcp:HOST:PORT or http://HOST:PORT/PATH")

// Probe is one question. The zero Probe is answered at once.
type Probe struct {
	// Delay is all that is waited for, if the others are empty.
	Delay time.Duration
	// TCP is an address, HTTP a URL; both with {slot} and {generation}.
	TCP, HTTP string
}

// Parse reads a Probe as users write it.
func Parse(text string) (Probe, error) {
	if address, ok := strings.CutPrefix(text, "tcp:"); ok {
		return Probe{TCP: address}, checkAddress(expand(address, 0, 1))
	}
	if strings.HasPrefix(text, "http://") {
		u, err := url.Parse(expand(text, 0, 1))
		if err != nil {
			return Probe{}, err
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "80")
		}
		return Probe{HTTP: text}, checkAddress(u.Host)
	}
	delay, err := time.ParseDuration(text)
	if err != nil || delay < 0 {
		return Probe{}, ErrUnknown
	}
	return Probe{Delay: delay}, nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q: want 1 to 65535", port)
	}
	if host == "" || strings.ContainsAny(host, "{}") {
		return fmt.Errorf("host %q: want a host; {slot} and {generation} stand for numbers", host)
	}
	return nil
}

// expand puts a worker's numbers in.
func expand(text string, slot, generation int) string {
	return strings.NewReplacer("{slot}", strconv.Itoa(slot), "{generation}", strconv.Itoa(generation)).Replace(text)
}

// Wait returns nil when the worker has answered, and else, when ctx has ended, what was wrong
// the last time.
func (p Probe) Wait(ctx context.Context, slot, generation int) (err error) {
	delay := p.Delay
	for {
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(delay):
		}
		asking, cancel := context.WithTimeout(ctx, patience)
		err = p.Ask(asking, slot, generation)
		cancel()
		if err == nil {
			return nil
		}
		delay = interval
	}
}

// Ask asks once, until ctx ends, and returns nil if the worker has answered. A delay is not waited for.
func (p Probe) Ask(ctx context.Context, slot, generation int) error {
	switch {
	case p.TCP != "":
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", expand(p.TCP, slot, generation))
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		return conn.Close()
	case p.HTTP != "":
		return get(ctx, expand(p.HTTP, slot, generation))
	}
	return nil
}

// client uses no proxy, keeps no connection, and does not go where it is sent.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("probe: %s says %s", url, response.Status)
	}
	return nil
}
