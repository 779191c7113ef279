package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// gRPC ends a cancelled call at once on the caller's side, before the other side has cleaned up. The contract wants
// the call to last until vSphere is as it was. Therefore a call carries an id, ends of contexts cross as the RPC
// Cancel, and the caller goes on reading.

// callIDKey is the metadata of a call that names it for Cancel.
const callIDKey = "vmkeep-call-id"

// cancelRetry is how long the caller waits before it asks again to cancel a call that the plugin did not yet know.
const cancelRetry = 20 * time.Millisecond

// calls are the running calls of a plugin.
type calls struct {
	log hclog.Logger

	mu      sync.Mutex
	cancels map[string]context.CancelFunc
}

func newCalls(log hclog.Logger) *calls {
	return &calls{log: log, cancels: make(map[string]context.CancelFunc)}
}

// run carries out one call: fn's context also ends when the call's id is cancelled, and a panic becomes an error.
func (c *calls) run(ctx context.Context, fn func(ctx context.Context) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if ids := metadata.ValueFromIncomingContext(ctx, callIDKey); len(ids) == 1 && ids[0] != "" {
		c.mu.Lock()
		c.cancels[ids[0]] = cancel
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			delete(c.cancels, ids[0])
			c.mu.Unlock()
		}()
	}
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("panic", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = &Error{Code: CodeInternal, Summary: "vmkeep met a defect of its own", Detail: fmt.Sprint(p),
				Remedy: "report it with the plugin's log; run \"vmkeep recover\" before the next backup"}
		}
	}()
	return fn(ctx)
}

// cancel ends the context of a running call. It reports whether there is such a call.
func (c *calls) cancel(id string) bool {
	c.mu.Lock()
	cancel, ok := c.cancels[id]
	c.mu.Unlock()
	if ok {
		cancel()
	}
	return ok
}

// inFlight counts a host's calls, so that their answers can be awaited before the connection is closed: a plugin has
// drained when its operations have ended, but their reports may still be on the way.
type inFlight struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n becomes 0; nil while nobody waits
}

func (f *inFlight) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n += n
	if f.n == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
}

// wait returns when no call is in flight, or ctx ends.
func (f *inFlight) wait(ctx context.Context) {
	f.mu.Lock()
	if f.n == 0 {
		f.mu.Unlock()
		return
	}
	if f.idle == nil {
		f.idle = make(chan struct{})
	}
	idle := f.idle
	f.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// lasting makes a context for one call that outlives ctx. When ctx ends, the plugin is asked to cancel the call.
// finish must be called when the call has returned.
func (c *client) lasting(ctx context.Context) (_ context.Context, finish func()) {
	c.calls.add(1)
	id := rand.Text()
	call, end := context.WithCancel(metadata.AppendToOutgoingContext(context.WithoutCancel(ctx), callIDKey, id))
	var asking sync.WaitGroup
	asking.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer asking.Done()
		for {
			r, err := c.rpc.Cancel(call, &pb.CancelRequest{CallId: id})
			if err != nil || r.GetFound() {
				return
			}
			select {
			case <-call.Done():
				return
			case <-time.After(cancelRetry):
			}
		}
	})
	return call, func() {
		if stop() {
			asking.Done()
		}
		end()
		asking.Wait()
		c.calls.add(-1)
	}
}

// asError is the [*Error] in err's chain, or one made of err.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if CodeOf(err) == CodeCancelled {
		return &Error{Code: CodeCancelled, Summary: "cancelled", Err: err}
	}
	return &Error{Code: CodeInternal, Summary: err.Error(), Err: err}
}

// broken is the [*Error] for a call that the connection or the protocol failed. ctx is the caller's.
func broken(ctx context.Context, what string, err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.Canceled, codes.DeadlineExceeded:
		return &Error{Code: CodeCancelled, Summary: what + " was cancelled", Err: context.Cause(ctx)}
	case codes.Unimplemented:
		return tooOld("the plugin cannot "+what, err)
	case codes.Unavailable:
		return &Error{Code: CodeInternal, Summary: "the plugin ended in the middle of " + what, Detail: s.Message(),
			Remedy: "see its log; run \"vmkeep recover\" to remove what it may have left on vSphere", Err: err}
	default:
		return &Error{Code: CodeInternal, Summary: "the plugin did not understand " + what, Detail: s.Message(),
			Remedy: "check that plugin and host have the same version", Err: err}
	}
}

// tooOld is the [*Error] for what a plugin lacks and its host knows.
func tooOld(summary string, err error) *Error {
	return &Error{Code: CodeUnsupported, Summary: summary, Detail: "it is older than this program",
		Remedy: "install the vmkeep-plugin that belongs to this program", Err: err}
}
