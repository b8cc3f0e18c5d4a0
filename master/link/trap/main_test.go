package trap

import (
	"os"
	"testing"

	"github.com/handfast/handfast/master/link/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process takes a second to exit
	if os.Getenv(costRole) != "" {
		playCost()
		return
	}
	os.Exit(m.Run())
}

func TestCheck(t *testing.T) {
	if err := Check(); err != nil {
		t.Fatal(err)
	}
}

func TestCheckInjection(t *testing.T) {
	if err := CheckInjection(); err != nil {
		t.Fatal(err)
	}
}
