package nfc

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func take(t *testing.T, l *Limiter, want buffers) *lease {
	t.Helper()
	e, _, err := l.acquire(t.Context(), "esx1:902", want)
	if err != nil {
		t.Fatal(err)
	}
	e.opened()
	return e
}

func TestHostMemoryIsShared(t *testing.T) {
	l := &Limiter{}
	want := buffers{1 << 20, 4}
	var all []*lease
	var sum int64
	for i := range DefaultConnections {
		e := take(t, l, want)
		if i < 9 && e.buffers != want {
			t.Errorf("disk %d gets %+v", i, e.buffers)
		}
		if e.buffers.size < 64<<10 || e.buffers.count < 1 {
			t.Errorf("disk %d gets %+v, too little to work", i, e.buffers)
		}
		sum += e.buffers.bytes()
		all = append(all, e)
	}
	if sum > DefaultMemory {
		t.Errorf("%d bytes of buffers in all", sum)
	}
	for _, e := range all {
		e.release()
	}
	if h := l.of("esx1:902"); h.memory != 0 || h.connections != 0 || h.openings != 0 {
		t.Errorf("not all is given back: %+v", h)
	}
	if e := take(t, l, want); e.buffers != want {
		t.Errorf("the next gets %+v", e.buffers)
	}
}

func TestConnectionsAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Limiter{Connections: 2}
		a, b := take(t, l, least()), take(t, l, least())
		got := make(chan bool)
		go func() {
			e, waited, err := l.acquire(t.Context(), "esx1:902", least())
			if err != nil {
				t.Error(err)
			}
			got <- waited
			e.release()
		}()
		synctest.Wait()
		if _, waited, err := l.acquire(t.Context(), "esx2:902", least()); waited || err != nil {
			t.Error("another host waits too")
		}
		a.release()
		if waited := <-got; !waited {
			t.Error("the third connection did not wait")
		}
		b.release()
		why := errors.New("why")
		ctx, cancel := context.WithCancelCause(t.Context())
		c, d := take(t, l, least()), take(t, l, least())
		go func() {
			_, _, err := l.acquire(ctx, "esx1:902", least())
			got <- errors.Is(err, why)
		}()
		synctest.Wait()
		cancel(why)
		if !<-got {
			t.Error("waiting does not end with the context")
		}
		c.release()
		d.release()
	})
}

func TestHandshakesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Limiter{Openings: 1}
		first, _, err := l.acquire(t.Context(), "esx1:902", least())
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *lease)
		go func() {
			e, _, _ := l.acquire(t.Context(), "esx1:902", least())
			got <- e
		}()
		synctest.Wait()
		select {
		case <-got:
			t.Error("two handshakes at a time")
		default:
		}
		first.opened()
		e := <-got
		first.release()
		e.release()
	})
}

func TestComplaintsAreHeeded(t *testing.T) {
	now := time.Unix(1000, 0)
	l := &Limiter{Connections: 8, now: func() time.Time { return now }}
	want := buffers{1 << 20, 4}
	a, b := take(t, l, want), take(t, l, want)
	l.complain("esx1:902")
	c := take(t, l, want)
	if c.buffers != least() {
		t.Errorf("after a complaint a disk gets %+v", c.buffers)
	}
	now = now.Add(calmAfter)
	if d := take(t, l, want); d.buffers != want {
		t.Errorf("long after a complaint a disk gets %+v", d.buffers)
	}
	for _, e := range []*lease{a, b, c} {
		e.release()
	}
}
