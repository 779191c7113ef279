package backend

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// Throttle bounds a rate of bytes shared by all who use it. A nil Throttle bounds nothing.
type Throttle struct {
	rate float64 // bytes per second

	mu   sync.Mutex
	free time.Time // when the line is free for the next byte
}

// NewThrottle gives a bound of kib KiB per second; 0 or less means none.
func NewThrottle(kib int) *Throttle {
	if kib <= 0 {
		return nil
	}
	return &Throttle{rate: float64(kib) * 1024}
}

// burst is what may go at once after a pause: enough for timers to be coarse, little enough to be fair to
// others on the line.
const burst = 50 * time.Millisecond

// Wait returns when n more bytes may pass, or ctx ends.
func (t *Throttle) Wait(ctx context.Context, n int) error {
	if t == nil || n == 0 {
		return context.Cause(ctx)
	}
	t.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-burst); t.free.Before(earliest) {
		t.free = earliest
	}
	t.free = t.free.Add(time.Duration(float64(n) / t.rate * float64(time.Second)))
	wait := t.free.Sub(now)
	t.mu.Unlock()
	if wait <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// piece is how many bytes pass in one go, so that a stream flows instead of stuttering.
func (t *Throttle) piece(n int) int { return min(n, max(1, int(t.rate*burst.Seconds()))) }

// Reader bounds r.
func (t *Throttle) Reader(r io.Reader) io.Reader {
	if t == nil {
		return r
	}
	return throttledReader{r, t}
}

type throttledReader struct {
	r io.Reader
	t *Throttle
}

func (r throttledReader) Read(p []byte) (int, error) {
	if len(p) > 0 {
		p = p[:r.t.piece(len(p))]
	}
	n, err := r.r.Read(p)
	if waitErr := r.t.Wait(context.Background(), n); err == nil {
		err = waitErr
	}
	return n, err
}

// Writer bounds w.
func (t *Throttle) Writer(w io.WriteCloser) io.WriteCloser {
	if t == nil {
		return w
	}
	return throttledWriter{w, t}
}

type throttledWriter struct {
	io.WriteCloser
	t *Throttle
}

func (w throttledWriter) Write(p []byte) (written int, err error) {
	for {
		part := p[:w.t.piece(len(p))]
		if err := w.t.Wait(context.Background(), len(part)); err != nil {
			return written, err
		}
		n, err := w.WriteCloser.Write(part)
		written += n
		if p = p[n:]; err != nil || len(p) == 0 {
			return written, err
		}
	}
}

// Conn bounds what is read from c by down and what is written by up.
func Conn(c net.Conn, up, down *Throttle) net.Conn {
	if up == nil && down == nil {
		return c
	}
	return throttledConn{c, down.Reader(c), up.Writer(c)}
}

type throttledConn struct {
	net.Conn
	r io.Reader
	w io.Writer
}

func (c throttledConn) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c throttledConn) Write(p []byte) (int, error) { return c.w.Write(p) }
