package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// Policy says how long to insist. The zero Policy is the default, restic's figures: one second first, doubled
// each time up to a minute, for a quarter of an hour.
type Policy struct {
	Initial time.Duration // first pause
	Longest time.Duration // no pause is longer
	Budget  time.Duration // from the first attempt on; the first retry is made even if it takes longer
	// Notify, if any, is told of each failure before the pause. It must be safe for concurrent use.
	Notify func(what string, err error, pause time.Duration)
}

func (p Policy) withDefaults() Policy {
	if p.Initial <= 0 {
		p.Initial = time.Second
	}
	if p.Longest <= 0 {
		p.Longest = time.Minute
	}
	if p.Budget <= 0 {
		p.Budget = 15 * time.Minute
	}
	return p
}

// Retry repeats what fails in b until it succeeds, the policy's budget is spent, or retrying cannot help:
// [ErrPermanent], [ErrNotExist], [ErrExist], [ErrReadOnly], the end of ctx, or an error of the caller's own
// function over data that arrived well.
func Retry(b Backend, p Policy) Backend { return &retry{b, p.withDefaults()} }

type retry struct {
	Backend
	policy Policy
}

var _ Backend = (*retry)(nil)

// callerError is an error of the caller's function; the store is not to blame.
type callerError struct{ error }

func (e callerError) Unwrap() error { return e.error }

func hopeless(err error) bool {
	return errors.As(err, new(callerError)) || errors.Is(err, ErrPermanent) || errors.Is(err, ErrNotExist) ||
		errors.Is(err, ErrExist) || errors.Is(err, ErrReadOnly)
}

// Do repeats attempt as [Retry] does with operations. what is for people.
func (p Policy) Do(ctx context.Context, what string, attempt func() error) error {
	return p.withDefaults().run(ctx, what, func(int) error { return attempt() })
}

// run calls attempt, which is told how many went before it.
func (p Policy) run(ctx context.Context, what string, attempt func(n int) error) error {
	start, pause := time.Now(), p.Initial
	for n := 0; ; n++ {
		err := attempt(n)
		if err == nil || ctx.Err() != nil || hopeless(err) {
			return err
		}
		// Half to one and a half of the pause: clients that failed together must not come back together.
		wait := time.Duration(float64(pause) * (0.5 + rand.Float64()))
		if elapsed := time.Since(start); n > 0 && elapsed+wait > p.Budget {
			return fmt.Errorf("%w after %d attempts in %s: %w", ErrGivenUp, n+1, elapsed.Round(time.Second), err)
		}
		if p.Notify != nil {
			p.Notify(what, err, wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(context.Cause(ctx), err)
		}
		pause = min(2*pause, p.Longest)
	}
}

func (r *retry) Save(ctx context.Context, h Handle, data []byte) error {
	return r.policy.run(ctx, "save "+h.String(), func(n int) error {
		err := r.Backend.Save(ctx, h, data)
		if n > 0 && h.Type == restic.ConfigFile && errors.Is(err, ErrExist) && r.holds(ctx, h, data) {
			return nil // an attempt that seemed to fail had stored it
		}
		return err
	})
}

// holds reports whether exactly data is stored as h.
func (r *retry) holds(ctx context.Context, h Handle, data []byte) bool {
	var got []byte
	err := r.Backend.Load(ctx, h, 0, 0, func(rd io.Reader) (err error) {
		got, err = io.ReadAll(io.LimitReader(rd, int64(len(data))+1))
		return err
	})
	return err == nil && bytes.Equal(got, data)
}

func (r *retry) Load(ctx context.Context, h Handle, offset, length int64, fn func(io.Reader) error) error {
	return r.policy.run(ctx, "load "+h.String(), func(int) error {
		return r.Backend.Load(ctx, h, offset, length, func(rd io.Reader) error {
			watched := &watchedReader{r: rd}
			err := fn(watched)
			if err != nil && watched.err == nil {
				return callerError{err}
			}
			return err
		})
	})
}

// watchedReader remembers whether reading failed.
type watchedReader struct {
	r   io.Reader
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

func (r *retry) Stat(ctx context.Context, h Handle) (info FileInfo, err error) {
	err = r.policy.run(ctx, "stat "+h.String(), func(int) error {
		info, err = r.Backend.Stat(ctx, h)
		return err
	})
	return info, err
}

// List begins again when it breaks off, and tells no file twice.
func (r *retry) List(ctx context.Context, t restic.FileType, fn func(FileInfo) error) error {
	told := make(map[restic.ID]struct{})
	return r.policy.run(ctx, "list "+string(t), func(int) error {
		return r.Backend.List(ctx, t, func(info FileInfo) error {
			id, err := restic.ParseID(info.Name)
			if err != nil {
				return callerError{fmt.Errorf("store lists %w", err)}
			}
			if _, ok := told[id]; ok {
				return nil
			}
			told[id] = struct{}{}
			if err := fn(info); err != nil {
				return callerError{err}
			}
			return nil
		})
	})
}

func (r *retry) Remove(ctx context.Context, h Handle) error {
	return r.policy.run(ctx, "remove "+h.String(), func(n int) error {
		err := r.Backend.Remove(ctx, h)
		if n > 0 && errors.Is(err, ErrNotExist) {
			return nil // an attempt that seemed to fail had removed it
		}
		return err
	})
}

func (r *retry) Retained(ctx context.Context, h Handle) (until time.Time, err error) {
	err = r.policy.run(ctx, "ask for the retention of "+h.String(), func(int) error {
		until, err = r.Backend.Retained(ctx, h)
		return err
	})
	return until, err
}
