package disktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
)

// errWhy is the cause contexts are cancelled with: it must come through.
var errWhy = errors.New("the test cancelled it")

func cancelBefore(t *testing.T, h Harness) {
	x := h.New(t, 1<<20)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errWhy)
	within(t, "opening with an ended context", func() {
		if d, err := h.Transport.Open(ctx, x.Spec); !errors.Is(err, errWhy) {
			t.Errorf("opening with an ended context gives %v", err)
			if err == nil {
				shut(t, d)
			}
		}
	})
}

func cancelIdle(t *testing.T, h Harness) {
	x, _ := filled(t, h, 1<<20)
	ctx, cancel := context.WithCancelCause(t.Context())
	d := open(t, h, ctx, x.Spec)
	buf := make([]byte, 4096)
	if _, err := d.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	cancel(errWhy)
	within(t, "reading after the context ended", func() {
		if _, err := d.ReadAt(buf, 0); !errors.Is(err, errWhy) {
			t.Errorf("reading after the context ended gives %v", err)
		}
	})
	within(t, "closing after the context ended", func() { shut(t, d) })
	// Nobody holds the disk any more: it can be opened for writing.
	d = open(t, h, t.Context(), writable(x.Spec))
	shut(t, d)
}

func cancelInFlight(t *testing.T, h Harness) {
	x, content := filled(t, h, 2<<20)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	resume := x.Stall()
	d := open(t, h, ctx, x.Spec)
	var wg sync.WaitGroup
	bufs := make([][]byte, 4)
	for i := range bufs {
		bufs[i] = make([]byte, 512<<10)
		wg.Go(func() {
			if _, err := d.ReadAt(bufs[i], int64(i)<<19); !errors.Is(err, errWhy) {
				t.Errorf("a read in flight gives %v", err)
			}
		})
	}
	cancel(errWhy)
	within(t, "reads in flight when the context ended", wg.Wait)
	// The buffers are the caller's again: a late answer that writes into them is caught by the race detector here.
	for i := range bufs {
		clear(bufs[i])
	}
	resume()
	within(t, "closing after the context ended", func() { shut(t, d) })
	for i := range bufs {
		if !bytes.Equal(bufs[i], make([]byte, len(bufs[i]))) {
			t.Error("a late answer was written into a buffer that was given back")
		}
	}
	d = open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	got := make([]byte, len(content))
	if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, content) {
		t.Errorf("the next opening reads otherwise (%v)", err)
	}
}

func cutReading(t *testing.T, h Harness) {
	x, content := filled(t, h, 2<<20)
	d := open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	got := make([]byte, len(content))
	if _, err := d.ReadAt(got[:1<<20], 0); err != nil {
		t.Fatal(err)
	}
	x.Cut()
	within(t, "reading after a cut", func() {
		_, err := d.ReadAt(got, 0)
		switch {
		case h.Reconnects && (err != nil && err != io.EOF || !bytes.Equal(got, content)):
			t.Errorf("reading does not go on after a cut (%v)", err)
		case !h.Reconnects && !errors.Is(err, vddk.ErrConnectionLost):
			t.Errorf("reading after a cut gives %v", err)
		}
	})
}

func cutWriting(t *testing.T, h Harness) {
	x := h.New(t, 4<<20)
	d := open(t, h, t.Context(), writable(x.Spec))
	if _, err := d.WriteAt(random(1<<20, 1), 0); err != nil {
		t.Fatal(err)
	}
	x.Cut()
	within(t, "writing after a cut", func() {
		if _, err := d.WriteAt(random(1<<20, 2), 1<<20); !errors.Is(err, vddk.ErrConnectionLost) {
			t.Errorf("writing after a cut gives %v", err)
		}
	})
	within(t, "reading after a write was cut", func() {
		if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, vddk.ErrConnectionLost) {
			t.Errorf("reading after a write was cut gives %v", err)
		}
	})
	within(t, "closing after a write was cut", func() {
		// What was acknowledged may be lost: Close must not say that it is durable.
		if err := d.Close(); !errors.Is(err, vddk.ErrConnectionLost) {
			t.Errorf("closing after a write was cut gives %v", err)
		}
	})
}

func closeInFlight(t *testing.T, h Harness) {
	x, content := filled(t, h, 2<<20)
	d := open(t, h, t.Context(), x.Spec)
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for i := range 8 {
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			started <- struct{}{}
			for {
				_, err := d.ReadAt(buf, int64(i)<<18)
				switch {
				case errors.Is(err, vddk.ErrClosed):
					return
				case err != nil && err != io.EOF:
					t.Errorf("a read in flight when Close was called gives %v", err)
					return
				case !bytes.Equal(buf, content[i<<18:(i+1)<<18]):
					t.Error("a read in flight when Close was called gives other bytes")
					return
				}
			}
		})
	}
	for range 8 {
		<-started
	}
	within(t, "closing with reads in flight", func() { shut(t, d) })
	within(t, "reads in flight when Close was called", wg.Wait)
}

func closeTwice(t *testing.T, h Harness) {
	x := h.New(t, 1<<20)
	d := open(t, h, t.Context(), writable(x.Spec))
	within(t, "closing twice", func() { shut(t, d); shut(t, d) })
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, vddk.ErrClosed) {
		t.Errorf("reading after Close gives %v", err)
	}
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, vddk.ErrClosed) {
		t.Errorf("writing after Close gives %v", err)
	}
	d = open(t, h, t.Context(), writable(x.Spec))
	shut(t, d)
}
