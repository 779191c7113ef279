package engine_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
)

// A vCenter that does not answer keeps neither those waiting who do not need it, nor those who do not want it any more.
func TestWhoDoesNotNeedVSphereDoesNotWaitForIt(t *testing.T) {
	r := newRig(t, oneDisk())
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	defer mute.Close()
	asked, given := make(chan struct{}), make(chan struct{})
	go func() {
		c, err := mute.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		close(asked)
		io.Copy(io.Discard, c) // until who dials gives it up
		close(given)
	}()
	cfg := r.config
	cfg.VSphere.URL = "https://user:secret@" + mute.Addr().String() + "/sdk"
	r.must(r.Configure(t.Context(), cfg))

	machines := func(ctx context.Context) (ended chan error) {
		ended = make(chan error, 1)
		go func() {
			_, err := r.Machines(ctx, plugin.Selection{})
			ended <- err
		}()
		return ended
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dials := machines(ctx)
	<-asked
	_, err = r.Points(t.Context(), plugin.PointFilter{})
	r.must(err)
	waits, stop := context.WithCancel(t.Context())
	waiting := machines(waits)
	stop()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("who waited got %v", err)
	}
	select {
	case <-given:
		t.Error("they waited until the dialing was given up")
	default:
	}
	cancel()
	if err := <-dials; !errors.Is(err, context.Canceled) {
		t.Errorf("who dialled got %v", err)
	}
}
