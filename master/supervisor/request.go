package supervisor

import "context"

// Reload replaces all workers, slot by slot: a new one takes a slot over when it
// is ready, and only when it has lasted for the probation the old one drains. It returns when
// all slots run the new generation and have, or with the reason why they do not: then the
// workers that were not replaced go on, and those that do not drain yet take their slots back. A reload that is asked for during another one follows it.
// When ctx ends Reload returns, and the reload goes on.
func (s *Supervisor) Reload(ctx context.Context) error {
	_, result, err := s.StartReload()
	if err != nil {
		return err
	}
	return await(ctx, result)
}

// StartReload is Reload without waiting. It returns the generation that the reload
// starts, by which Snapshot shows its progress, and on result comes how it ended.
func (s *Supervisor) StartReload() (generation int, result <-chan error, err error) {
	ended := make(chan error, 1)
	err = s.do(func() error {
		generation = s.generation + 1
		return s.startReload(ended)
	})
	return generation, ended, err
}

// Replace gives one slot a new worker of the same generation: when it is ready it
// takes the slot over, and when it has lasted for the probation the old one drains. If it does not
// come up, or last, the old one stays, and Replace returns why. When ctx ends Replace returns, and the
// replacement goes on. It does not happen, with ErrReloading, during a reload.
func (s *Supervisor) Replace(ctx context.Context, slot int) error {
	result, err := s.StartReplace(slot)
	if err != nil {
		return err
	}
	return await(ctx, result)
}

// StartReplace is Replace without waiting: on result comes how it ended.
func (s *Supervisor) StartReplace(slot int) (result <-chan error, err error) {
	ended := make(chan error, 1)
	return ended, s.do(func() error { return s.startReplace(slot, ended) })
}

func await(ctx context.Context, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
