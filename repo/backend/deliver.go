package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// CheckRange tells how many bytes Load has to deliver of a file of size bytes. The error is an [ErrPermanent].
func CheckRange(offset, length, size int64) (int64, error) {
	if offset < 0 || length < 0 || offset > size || length > size-offset || (offset == size && size > 0) {
		return 0, Permanent(fmt.Errorf("bytes %d+%d of a file of %d bytes", offset, length, size))
	}
	if length == 0 {
		return size - offset, nil
	}
	return length, nil
}

// Deliver runs fn over exactly n bytes of r: the rest of every Load. A stream that ends early, or breaks, or
// whose ctx ends is an error even when fn did not look at it.
func Deliver(ctx context.Context, r io.Reader, n int64, fn func(io.Reader) error) error {
	d := &delivery{ctx: ctx, r: r, left: n}
	err := fn(d)
	d.r = nil // the reader is valid during fn only
	if d.err == nil {
		return err
	}
	if err == nil || !errors.Is(err, d.err) {
		return errors.Join(d.err, err)
	}
	return err
}

type delivery struct {
	ctx  context.Context
	r    io.Reader
	left int64 // bytes not yet delivered
	err  error // of the stream, sticky
}

func (d *delivery) Read(p []byte) (int, error) {
	if d.r == nil {
		return 0, errors.New("reader used after its Load returned")
	}
	if d.err != nil {
		return 0, d.err
	}
	if d.err = context.Cause(d.ctx); d.err != nil {
		return 0, d.err
	}
	if d.left == 0 {
		return 0, io.EOF
	}
	n, err := d.r.Read(p[:min(int64(len(p)), d.left)])
	d.left -= int64(n)
	switch {
	case d.left == 0 || err == nil:
	case err == io.EOF:
		d.err = fmt.Errorf("stream ended %d bytes early: %w", d.left, io.ErrUnexpectedEOF)
	default:
		d.err = err
	}
	if n == 0 && d.left > 0 {
		return 0, d.err
	}
	return n, nil
}
