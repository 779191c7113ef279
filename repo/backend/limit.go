package backend

import (
	"context"
	"io"
	"time"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// Limit lets at most connections operations into b at once; 0 means b.Connections().
//
// Lock files pass without waiting: a lock that is not refreshed in time, because packs hold all connections,
// costs the whole run. Listings pass too: they are few, and their callbacks may need connections of their own.
func Limit(b Backend, connections int) Backend {
	if connections <= 0 {
		connections = b.Connections()
	}
	return &limit{b, make(chan struct{}, connections)}
}

type limit struct {
	Backend
	slots chan struct{}
}

var _ Backend = (*limit)(nil)

func (l *limit) Connections() int { return cap(l.slots) }

func (l *limit) run(ctx context.Context, h Handle, op func() error) error {
	if h.Type == restic.LockFile {
		return op()
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
		return op()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *limit) Save(ctx context.Context, h Handle, data []byte) error {
	return l.run(ctx, h, func() error { return l.Backend.Save(ctx, h, data) })
}

func (l *limit) Load(ctx context.Context, h Handle, offset, length int64, fn func(io.Reader) error) error {
	return l.run(ctx, h, func() error { return l.Backend.Load(ctx, h, offset, length, fn) })
}

func (l *limit) Stat(ctx context.Context, h Handle) (info FileInfo, err error) {
	err = l.run(ctx, h, func() error {
		info, err = l.Backend.Stat(ctx, h)
		return err
	})
	return info, err
}

func (l *limit) Retained(ctx context.Context, h Handle) (until time.Time, err error) {
	err = l.run(ctx, h, func() error {
		until, err = l.Backend.Retained(ctx, h)
		return err
	})
	return until, err
}

func (l *limit) Remove(ctx context.Context, h Handle) error {
	return l.run(ctx, h, func() error { return l.Backend.Remove(ctx, h) })
}

// LimitRate bounds how fast files move, for stores whose connections cannot be bounded themselves: a directory,
// which may well be on a network file system.
func LimitRate(b Backend, up, down *Throttle) Backend {
	if up == nil && down == nil {
		return b
	}
	return &rated{b, up, down}
}

type rated struct {
	Backend
	up, down *Throttle
}

var _ Backend = (*rated)(nil)

func (r *rated) Save(ctx context.Context, h Handle, data []byte) error {
	if err := r.up.Wait(ctx, len(data)); err != nil {
		return err
	}
	return r.Backend.Save(ctx, h, data)
}

func (r *rated) Load(ctx context.Context, h Handle, offset, length int64, fn func(io.Reader) error) error {
	return r.Backend.Load(ctx, h, offset, length, func(rd io.Reader) error { return fn(r.down.Reader(rd)) })
}

// Call is one finished operation, for metrics and logs. Verb is save, load, stat, list or remove; Bytes counts
// what was saved or read.
type Call struct {
	Verb   string
	Handle Handle // only Type for list
	Bytes  int64
	Took   time.Duration
	Err    error
}

// Observe tells fn of every operation of b when it is done. fn must be safe for concurrent use.
func Observe(b Backend, fn func(Call)) Backend { return &observe{b, fn} }

type observe struct {
	Backend
	fn func(Call)
}

var _ Backend = (*observe)(nil)

func (o *observe) run(call Call, op func(bytes *int64) error) error {
	start := time.Now()
	call.Err = op(&call.Bytes)
	call.Took = time.Since(start)
	o.fn(call)
	return call.Err
}

func (o *observe) Save(ctx context.Context, h Handle, data []byte) error {
	return o.run(Call{Verb: "save", Handle: h}, func(n *int64) error {
		err := o.Backend.Save(ctx, h, data)
		if err == nil {
			*n = int64(len(data))
		}
		return err
	})
}

func (o *observe) Load(ctx context.Context, h Handle, offset, length int64, fn func(io.Reader) error) error {
	return o.run(Call{Verb: "load", Handle: h}, func(n *int64) error {
		return o.Backend.Load(ctx, h, offset, length, func(r io.Reader) error { return fn(&countingReader{r, n}) })
	})
}

type countingReader struct {
	r io.Reader
	n *int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

func (o *observe) Stat(ctx context.Context, h Handle) (info FileInfo, err error) {
	err = o.run(Call{Verb: "stat", Handle: h}, func(*int64) error {
		info, err = o.Backend.Stat(ctx, h)
		return err
	})
	return info, err
}

func (o *observe) List(ctx context.Context, t restic.FileType, fn func(FileInfo) error) error {
	return o.run(Call{Verb: "list", Handle: Handle{Type: t}}, func(*int64) error { return o.Backend.List(ctx, t, fn) })
}

func (o *observe) Remove(ctx context.Context, h Handle) error {
	return o.run(Call{Verb: "remove", Handle: h}, func(*int64) error { return o.Backend.Remove(ctx, h) })
}
