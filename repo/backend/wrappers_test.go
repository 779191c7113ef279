package backend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func TestWrappersKeepTheGuarantees(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend {
		b := backend.Observe(backendtest.NewMemory(), func(backend.Call) {})
		b = backend.LimitRate(b, backend.NewThrottle(1<<30), backend.NewThrottle(1<<30))
		return backend.Retry(backend.Limit(b, 2), backend.Policy{})
	})
}

// ops are one of each kind of operation; each returns the bytes or names it got.
var ops = map[backendtest.Verb]func(context.Context, backend.Backend, backend.Handle, []byte) ([]byte, error){
	backendtest.Save: func(ctx context.Context, b backend.Backend, _ backend.Handle, data []byte) ([]byte, error) {
		other := append(bytes.Clone(data), '!')
		return data, b.Save(ctx, backendtest.HandleOf(restic.PackFile, other), other)
	},
	backendtest.Load: func(ctx context.Context, b backend.Backend, h backend.Handle, _ []byte) (got []byte, err error) {
		err = b.Load(ctx, h, 0, 0, func(r io.Reader) (err error) {
			got, err = io.ReadAll(r)
			return err
		})
		return got, err
	},
	backendtest.Stat: func(ctx context.Context, b backend.Backend, h backend.Handle, data []byte) ([]byte, error) {
		_, err := b.Stat(ctx, h)
		return data, err
	},
	backendtest.List: func(ctx context.Context, b backend.Backend, _ backend.Handle, data []byte) ([]byte, error) {
		return data, b.List(ctx, restic.PackFile, func(backend.FileInfo) error { return nil })
	},
	backendtest.Remove: func(ctx context.Context, b backend.Backend, h backend.Handle, data []byte) ([]byte, error) {
		return data, b.Remove(ctx, h)
	},
}

func stored(t *testing.T) (*backendtest.Memory, backend.Handle, []byte) {
	t.Helper()
	m, data := backendtest.NewMemory(), backendtest.Bytes(5000)
	h := backendtest.HandleOf(restic.PackFile, data)
	if err := m.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	return m, h, data
}

func TestRetryOutlastsFailures(t *testing.T) {
	for verb, op := range ops {
		for name, faults := range map[string][]backendtest.Fault{
			"failing":     {backendtest.Fail(1), backendtest.Fail(2)},
			"lost answer": {backendtest.LoseAnswer(1), backendtest.Fail(2)},
			"broken":      {backendtest.Break(1, 10), backendtest.Break(2, 4999)},
		} {
			t.Run(string(verb)+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m, h, data := stored(t)
					f := backendtest.Inject(m, faults...)
					var pauses []time.Duration
					b := backend.Retry(f, backend.Policy{Notify: func(_ string, _ error, pause time.Duration) { pauses = append(pauses, pause) }})
					got, err := op(t.Context(), b, h, data)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%v, %d bytes", err, len(got))
					}
					if n := f.Count(backendtest.Is(verb)); n != 3 {
						t.Errorf("%d attempts, want 3", n)
					}
					for i, pause := range pauses {
						if full := time.Second << i; pause < full/2 || pause > full*3/2 {
							t.Errorf("pause %d is %v, want %v give or take a half", i, pause, full)
						}
					}
				})
			})
		}
	}
}

func TestDoInsistsAsRetryDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		err := backend.Policy{}.Do(t.Context(), "open", func() error {
			if n++; n < 4 {
				return backendtest.ErrInjected
			}
			return backend.Permanent(errors.New("wrong"))
		})
		if n != 4 || !errors.Is(err, backend.ErrPermanent) || err.Error() != "wrong" {
			t.Errorf("%d attempts, %v", n, err)
		}
	})
}

func TestRetryTellsNoFileTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, _ := stored(t)
		data := backendtest.Bytes(20)
		if err := m.Save(t.Context(), backendtest.HandleOf(restic.PackFile, data), data); err != nil {
			t.Fatal(err)
		}
		b := backend.Retry(backendtest.Inject(m, backendtest.LoseAnswer(1), backendtest.LoseAnswer(2)), backend.Policy{})
		var names []string
		err := b.List(t.Context(), restic.PackFile, func(info backend.FileInfo) error {
			names = append(names, info.Name)
			return nil
		})
		slices.Sort(names)
		if err != nil || len(slices.Compact(slices.Clone(names))) != 2 || len(names) != 2 {
			t.Errorf("listed %v, %v", names, err)
		}
	})
}

func TestRetryStopsWhenItsBudgetIsSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := backendtest.Inject(backendtest.NewMemory(), backendtest.FailAlways(backendtest.ErrInjected))
		start := time.Now()
		_, err := backend.Retry(f, backend.Policy{}).Stat(t.Context(), backend.Handle{Type: restic.ConfigFile})
		if took := time.Since(start); !errors.Is(err, backendtest.ErrInjected) || !errors.Is(err, backend.ErrGivenUp) || took < 13*time.Minute || took > 15*time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
		// 1+2+4+8+16+32 seconds, then minutes, each give or take a half.
		if n := f.Count(); n < 15 || n > 35 {
			t.Errorf("%d attempts in a quarter of an hour", n)
		}
	})
}

func TestSlowFailureIsRetriedOnceEvenBeyondTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := backendtest.Inject(backendtest.NewMemory(), backendtest.Delay(time.Hour), backendtest.FailAlways(backendtest.ErrInjected))
		_, err := backend.Retry(f, backend.Policy{}).Stat(t.Context(), backend.Handle{Type: restic.ConfigFile})
		if n := f.Count(); n != 2 || !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("%d attempts, %v", n, err)
		}
	})
}

func TestRetryNeverRepeatsWhatCannotHelp(t *testing.T) {
	for _, reason := range []error{backend.ErrPermanent, backend.ErrNotExist, backend.ErrExist, backend.ErrReadOnly} {
		for verb, op := range ops {
			m, h, data := stored(t)
			f := backendtest.Inject(m, backendtest.FailAlways(fmt.Errorf("wrapped: %w", reason)))
			_, err := op(t.Context(), backend.Retry(f, backend.Policy{}), h, data)
			if n := f.Count(); n != 1 || !errors.Is(err, reason) {
				t.Errorf("%s: %d attempts, %v", verb, n, err)
			}
		}
	}
	m, h, _ := stored(t)
	f, mine := backendtest.Inject(m), errors.New("mine")
	err := backend.Retry(f, backend.Policy{}).Load(t.Context(), h, 0, 0, func(r io.Reader) error {
		if _, err := io.ReadAll(r); err != nil {
			return err
		}
		return mine
	})
	if n := f.Count(); n != 1 || !errors.Is(err, mine) {
		t.Errorf("caller's error: %d attempts, %v", n, err)
	}
}

func TestRetryEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := backendtest.Inject(backendtest.NewMemory(), backendtest.FailAlways(backendtest.ErrInjected))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err := backend.Retry(f, backend.Policy{}).Remove(ctx, backend.Handle{Type: restic.ConfigFile})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, backendtest.ErrInjected) || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestConfigWhoseAnswerWasLostIsOursOnlyIfItHoldsOurBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := backend.Handle{Type: restic.ConfigFile}
		mine := backendtest.Bytes(100)
		b := backend.Retry(backendtest.Inject(backendtest.NewMemory(), backendtest.LoseAnswer(1)), backend.Policy{})
		if err := b.Save(t.Context(), h, mine); err != nil {
			t.Errorf("own config: %v", err)
		}
		m := backendtest.NewMemory()
		m.Replace(h, backendtest.Bytes(100))
		b = backend.Retry(backendtest.Inject(m, backendtest.Fail(1)), backend.Policy{})
		if err := b.Save(t.Context(), h, mine); !errors.Is(err, backend.ErrExist) {
			t.Errorf("somebody else's config: %v", err)
		}
	})
}

func TestLimitBoundsOperationsButNotLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside, most atomic.Int32
		release := make(chan struct{})
		f := backendtest.Inject(backendtest.NewMemory(), backendtest.On(backendtest.Do(0, func(context.Context, backendtest.Op) error {
			if n := inside.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-release
			inside.Add(-1)
			return nil
		}), backendtest.OfType(restic.PackFile)))
		b := backend.Limit(f, 3)
		if n := b.Connections(); n != 3 {
			t.Errorf("Connections() = %d", n)
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				data := backendtest.Bytes(20)
				if err := b.Save(t.Context(), backendtest.HandleOf(restic.PackFile, data), data); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := inside.Load(); n != 3 {
			t.Errorf("%d operations inside, want 3", n)
		}
		lock := backendtest.Bytes(20)
		if err := b.Save(t.Context(), backendtest.HandleOf(restic.LockFile, lock), lock); err != nil {
			t.Errorf("lock file behind packs: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Stat(ctx, backend.Handle{Type: restic.ConfigFile}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Stat without a free connection: %v", err)
		}
		close(release)
		wg.Wait()
		if n := most.Load(); n != 3 {
			t.Errorf("%d operations inside at once", n)
		}
	})
}

func TestThrottleKeepsTheRateForAllTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, data := stored(t) // 5000 bytes
		b := backend.LimitRate(m, backend.NewThrottle(1), backend.NewThrottle(2))
		start := time.Now()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, err := ops[backendtest.Load](t.Context(), b, h, data); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took, want := time.Since(start), 4*5000*time.Second/2048; took < want-time.Second || took > want+time.Second {
			t.Errorf("20000 bytes at 2 KiB/s took %v, want %v", took, want)
		}
		start = time.Now()
		if _, err := ops[backendtest.Save](t.Context(), b, h, data); err != nil {
			t.Error(err)
		}
		if took, want := time.Since(start), 5001*time.Second/1024; took < want-time.Second || took > want+time.Second {
			t.Errorf("5001 bytes at 1 KiB/s took %v, want %v", took, want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := ops[backendtest.Save](ctx, b, h, append(data, 'x')); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Save within a second: %v", err)
		}
	})
}

func TestThrottledConnectionFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		c := backend.Conn(here, backend.NewThrottle(10), nil)
		var largest int
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := there.Read(buf)
				largest = max(largest, n)
				if err != nil {
					return
				}
			}
		})
		start := time.Now()
		if n, err := c.Write(make([]byte, 51_200)); n != 51_200 || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
		if took := time.Since(start); took < 4900*time.Millisecond || took > 5100*time.Millisecond {
			t.Errorf("50 KiB at 10 KiB/s took %v", took)
		}
		if err := errors.Join(c.Close(), there.Close()); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if largest > 1024 {
			t.Errorf("%d bytes went at once", largest)
		}
	})
}

func TestObserveTellsBytesTimeAndError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, data := stored(t)
		var calls []backend.Call
		b := backend.Observe(backendtest.Inject(m, backendtest.Delay(time.Second)), func(c backend.Call) { calls = append(calls, c) })
		for _, verb := range []backendtest.Verb{backendtest.Load, backendtest.Save, backendtest.Remove, backendtest.Stat, backendtest.List} {
			if _, err := ops[verb](t.Context(), b, h, data); (err != nil) != (verb == backendtest.Stat) {
				t.Errorf("%s: %v", verb, err)
			}
		}
		want := []backend.Call{{Verb: "load", Bytes: 5000}, {Verb: "save", Bytes: 5001}, {Verb: "remove"}, {Verb: "stat"}, {Verb: "list"}}
		for i, c := range calls {
			if c.Verb != want[i].Verb || c.Bytes != want[i].Bytes || c.Took != time.Second || (c.Err != nil) != (c.Verb == "stat") || c.Handle.Type != restic.PackFile {
				t.Errorf("call %d: %+v", i, c)
			}
		}
		if len(calls) != len(want) {
			t.Errorf("%d calls told, want %d", len(calls), len(want))
		}
	})
}

func TestDeliveryThatBreaksFailsEvenUnnoticed(t *testing.T) {
	swallow := func(r io.Reader) error { _, _ = io.ReadAll(r); return nil }
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		r    io.Reader
		want error
	}{
		"short":  {bytes.NewReader(make([]byte, 9)), io.ErrUnexpectedEOF},
		"broken": {io.MultiReader(bytes.NewReader(make([]byte, 5)), readerFunc(func([]byte) (int, error) { return 0, broken })), broken},
		"exact":  {bytes.NewReader(make([]byte, 10)), nil},
		"long":   {bytes.NewReader(make([]byte, 11)), nil},
	} {
		if err := backend.Deliver(t.Context(), test.r, 10, swallow); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	var kept io.Reader
	if err := backend.Deliver(t.Context(), bytes.NewReader(make([]byte, 10)), 10, func(r io.Reader) error { kept = r; return nil }); err != nil {
		t.Error(err)
	}
	if n, err := kept.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("reader used after Load: %d, %v", n, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
