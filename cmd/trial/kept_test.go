package trial

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// TestKept: one at a time has a folder, what has failed is tried again, and what was filled stays.
func TestKept(t *testing.T) {
	t.Setenv("GOCACHE", t.TempDir())
	var using, fills atomic.Int32
	failure := errors.New("half of it")
	use := func(folder string) error {
		if using.Add(1) > 1 {
			t.Error("two have the folder")
		}
		defer using.Add(-1)
		part, err := filled(folder, func(part string) error {
			if err := os.WriteFile(filepath.Join(part, "half"), nil, 0o644); err != nil {
				return err
			}
			if fills.Add(1) == 1 {
				return failure
			}
			return os.WriteFile(filepath.Join(part, "whole"), nil, 0o644)
		})
		if err == nil {
			_, err = os.Stat(filepath.Join(part, "whole"))
		}
		return err
	}
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range 8 {
		wg.Go(func() {
			switch err := kept(use, "name", "text"); {
			case errors.Is(err, failure):
				failed.Add(1)
			case err != nil:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if failed.Load() != 1 || fills.Load() != 2 {
		t.Errorf("filled %d times, %d failed; want 2 and 1", fills.Load(), failed.Load())
	}
}
