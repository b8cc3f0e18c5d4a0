package proxies_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"os"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

const userID = "nginx-userid.conf"

// TestUserID: nginx makes an id for each browser, by which that stays in its slot from whatever address it comes, from its first
// request on; ids that clients make up are other clients' for no one.
func TestUserID(t *testing.T) {
	const browsers, requests = 20, 5
	trial.Nginx.Need(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	handfast, at := trial.BalanceWith(t, []string{byHeader, "--key", "header:X-Uid", "--trusted-proxies", trustedProxy}, self)
	proxy, address := trial.Nginx.Start(t, userID, at)
	slots := make(map[string]int)
	for i := range browsers {
		jar, _ := cookiejar.New(nil)
		home := ""
		for n := range requests {
			client := trial.ClientAt(netip.AddrFrom4([4]byte{127, 1, byte(n), byte(1 + i)}))
			client.Jar = jar
			r, err := http.NewRequest(http.MethodGet, "http://"+address, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Uid", fmt.Sprint(n)) // which nginx replaces
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			slot := resp.Header.Get("Slot")
			if home == "" {
				home = slot
				slots[home]++
			}
			if slot != home {
				t.Errorf("browser %d is in slot %s, and was in %s", i, slot, home)
			}
			client.CloseIdleConnections()
		}
	}
	if len(slots) < 2 {
		t.Errorf("%d browsers are in slots %v", browsers, slots)
	}
	proxy.StopWith(trial.Nginx.Stop)
	handfast.Stop()
}
